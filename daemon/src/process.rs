//! What must be so before the process's first thread: how OpenMP's threads wait.
//!
//! Owns the one environment variable that is not a setting. OpenMP reads it when libtorch is
//! loaded, which is before `main`, so it cannot be set from within: the process starts itself over.

use std::os::unix::process::CommandExt;
use std::process::Command;

const VARIABLE: &str = "OMP_WAIT_POLICY";

/// Makes sure that computing threads sleep while they wait for each other, instead of spinning: on
/// busy cores that costs several milliseconds an operation. Where the environment says nothing,
/// this replaces the process by itself with the variable set; otherwise it returns at once.
///
/// To be called before any thread is started.
pub fn wait_passively() {
    if std::env::var_os(VARIABLE).is_some() {
        return;
    }
    let again = std::env::current_exe().map(|program| {
        let mut command = Command::new(program);
        command.args(std::env::args_os().skip(1));
        command.env(VARIABLE, "passive").exec()
    });
    // Only slower, not wrong: `exec` returns only if it failed.
    let (Ok(error) | Err(error)) = again;
    tracing::warn!(%error, "could not start over with {VARIABLE}=passive; computing may be slower");
}
