//! How a decoder's fuzz target is run: in seconds over its kept corpus by `cargo test`, for as long as one likes and
//! guided by coverage by `make fuzz`.
//!
//! Owns the run, the edits that an ordinary run makes to the corpus, and the bound on what a decoder may allocate.
//! Knows no format: the targets lie beside their decoders. Invariants: an ordinary run is the same every time; an
//! input that fails is kept in the target's folder `crashes`, and is tried first from then on.
//!
//! Used by tests only. Whatever links it has its allocations counted.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

pub use bolero;

mod edit;
mod heap;

pub use heap::within;

/// Runs a target over the corpus in `__fuzz__/<name>/corpus` beside the file that this stands in, and over so many
/// edits of it. It must be all that a test does.
#[macro_export]
macro_rules! target {
    ($name:literal, $edits:expr, $try:expr) => {{
        let attempt = $crate::unwinding($try);
        let folder = $crate::folder(env!("CARGO_MANIFEST_DIR"), file!(), $name);
        $crate::bolero::check!(name = $name)
            .with_iterations(256)
            .with_max_len($crate::LONGEST)
            .for_each(&attempt);
        $crate::edited(&folder, $edits, &attempt);
    }};
}

/// Longest input that is tried, bytes.
pub const LONGEST: usize = 16 << 10;

/// The folder of a target: beside its source file, whose path is given from the workspace's root on.
#[must_use]
pub fn folder(package: &str, file: &str, name: &str) -> PathBuf {
    let roots = Path::new(package).ancestors();
    let mut files = roots.map(|root| root.join(file));
    let file = files.find(|path| path.exists()).unwrap_or_default();
    file.with_file_name("__fuzz__").join(name)
}

/// What [`target!`] needs of a closure that a panic may leave.
pub fn unwinding(attempt: impl Fn(&[u8])) -> impl Fn(&[u8]) + std::panic::RefUnwindSafe {
    let attempt = AssertUnwindSafe(attempt);
    move |bytes: &[u8]| (*attempt)(bytes)
}

/// Tries edits of what is kept in a target's folder, the same ones every time.
///
/// # Panics
/// Where an attempt does; and where nothing is kept, for then next to nothing would be tried.
pub fn edited(folder: &Path, edits: u32, attempt: &dyn Fn(&[u8])) {
    // Another engine has done the work.
    if cfg!(fuzzing) {
        return;
    }
    let corpus = corpus(&folder.join("corpus"));
    assert!(!corpus.is_empty(), "{} has no corpus", folder.display());
    let mut editor = edit::Editor::new(corpus);
    for _ in 0..edits {
        let input = editor.next();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| attempt(&input))) {
            keep(&folder.join("crashes"), &input);
            resume_unwind(panic);
        }
    }
}

/// What is kept, in the order of names.
fn corpus(folder: &Path) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let contents = paths.iter().map(std::fs::read);
    contents.map_while(Result::ok).collect()
}

/// Keeps an input that failed, under a name made of its bytes.
fn keep(folder: &Path, input: &[u8]) {
    let name = input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let path = folder.join(format!("{name:016x}"));
    // The panic says what is wrong; where the input can't be kept, the same one comes in the next run.
    let kept = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&path, input));
    eprintln!("the input that failed: {} ({kept:?})", path.display());
}
