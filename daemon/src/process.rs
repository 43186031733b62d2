//! What must be so before the process's first thread: how OpenMP's threads wait, and how the
//! allocator keeps memory.
//!
//! Owns the environment variables that are not settings. They are read when libtorch and libc are
//! loaded, which is before `main`, so they cannot be set from within: the process starts itself over.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Each with what it is set to where the environment says nothing.
const VARIABLES: [(&str, &str); 4] = [
    // Computing threads that wait for each other spin for a fraction of a millisecond and then
    // sleep. Spinning on, they would take the core from the one they wait for wherever cores are
    // busy, several milliseconds an operation. Not spinning at all (GOMP_SPINCOUNT=0: right where
    // other programs keep the cores busy) each of a token's hundreds of small operations pays for
    // being woken.
    ("OMP_WAIT_POLICY", "passive"),
    ("GOMP_SPINCOUNT", "10000"),
    // Memory of one operation's result is kept for the next one's, instead of given back to the
    // system and faulted in anew: that costs large elementwise operations more than their work.
    ("MALLOC_MMAP_THRESHOLD_", "33554432"),
    ("MALLOC_TRIM_THRESHOLD_", "268435456"),
];

/// Replaces the process by itself with these variables set, where the environment says nothing of
/// one of them; otherwise returns at once.
///
/// To be called before any thread is started.
pub fn start_over_prepared() {
    let missing = VARIABLES
        .iter()
        .filter(|(name, _)| std::env::var_os(name).is_none());
    let missing: Vec<(&str, &str)> = missing.copied().collect();
    if missing.is_empty() {
        return;
    }
    let again = std::env::current_exe().map(|program| {
        let mut command = Command::new(program);
        command.args(std::env::args_os().skip(1));
        command.envs(missing).exec()
    });
    // Only slower, not wrong: `exec` returns only if it failed.
    let (Ok(error) | Err(error)) = again;
    tracing::warn!(%error, "could not start over with its environment set; computing may be slower");
}
