//! The real models that tests use, from the user's cache. A test whose model is
//! not there fails and says how to get it: skipping would look like passing.

use addenda_model::{ModelFiles, Tokenizer, catalogue};
use std::path::PathBuf;
use std::sync::LazyLock;

pub(crate) const SMOLLM2: &str = "smollm2-135m";
pub(crate) const GEMMA3: &str = "gemma3-270m";

/// The file of a model of the catalogue.
pub(crate) fn path(name: &str) -> PathBuf {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = set("ADDENDA_CACHE_DIR")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("addenda")))
        .or_else(|| Some(set("HOME")?.join(".cache/addenda")))
        .expect("HOME is not set");
    match catalogue::resolve(name, &cache) {
        Ok(path) => path,
        Err(error) => {
            panic!("this test needs the model {name}, and `make test` fetches it: {error}")
        }
    }
}

/// A model of the catalogue, opened.
pub(crate) fn open(name: &str) -> ModelFiles {
    match ModelFiles::open(&path(name)) {
        Ok(files) => files,
        Err(error) => panic!("the model {name} does not open: {error}"),
    }
}

/// The tokenizer of SmolLM2, made once for all tests.
pub(crate) fn smollm2_tokenizer() -> &'static Tokenizer {
    static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| open(SMOLLM2).tokenizer);
    &TOKENIZER
}

/// The tokenizer of Gemma 3, made once for all tests.
pub(crate) fn gemma3_tokenizer() -> &'static Tokenizer {
    static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| open(GEMMA3).tokenizer);
    &TOKENIZER
}
