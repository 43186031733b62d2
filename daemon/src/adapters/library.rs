//! The adapters that there are: those of the data directory and those that ship with the program.
//!
//! Owns `adapters/` of the data directory: one safetensors file an adapter under its digest, and
//! `active.json`, which remembers the choice. Every file appears whole or not at all. Makes no
//! tensor. Invariant: what is handed out has the digest that it is asked for by, and is for the
//! model that is served.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::UNIX_EPOCH;

use addenda_model::adapter::Description;
use serde::{Deserialize, Serialize};

use super::file::{read, write};
use super::shipped::SHIPPED;
use crate::config::AdapterChoice;
use crate::digest::{Digest, Unclear, beginning};
use crate::error::{Error, Result};
use crate::limits;

/// The file that remembers which adapter is active.
const ACTIVE: &str = "active.json";

/// An adapter as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: Digest,
    pub(crate) name: String,
    pub(crate) base: Digest,
    pub(crate) header_tokens: usize,
    pub(crate) trailer_tokens: usize,
    pub(crate) bridge_tokens: usize,
    /// How it was trained: JSON.
    pub(crate) training: String,
    pub(crate) created_at_ms: u64,
    /// Ships with the program.
    pub(crate) shipped: Option<&'static [u8]>,
}

/// All adapters of one data directory, as a model sees them.
pub(crate) struct Library {
    directory: PathBuf,
    /// The model that is served.
    base: Digest,
    /// Oldest first.
    entries: Mutex<Vec<Entry>>,
    /// Held from a change of the active adapter to its being remembered.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Serialize, Deserialize)]
struct Active {
    version: u32,
    /// 64 hex digits, or "none".
    adapter: String,
}

impl Library {
    /// Opens the adapters of `directory`, which is made where it is missing. A damaged file is left
    /// out, with a word in the log.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub(crate) fn open(directory: PathBuf, base: Digest) -> Result<Self> {
        let failed = |source| Error::Io {
            path: directory.clone(),
            source,
        };
        std::fs::create_dir_all(&directory).map_err(failed)?;
        let mut entries: Vec<Entry> = Vec::new();
        for bytes in SHIPPED.iter().copied().filter(|bytes| !bytes.is_empty()) {
            let described = Description::read(bytes)?;
            if described.base == base.0 {
                entries.push(Entry::new(described, 0, Some(bytes)));
            }
        }
        let files = std::fs::read_dir(&directory).map_err(failed)?;
        let mut found = Vec::new();
        for file in files {
            let path = file.map_err(failed)?.path();
            if path.extension().is_some_and(|end| end == "safetensors") {
                match entry_of(&path) {
                    Ok(entry) => found.push(entry),
                    Err(error) => {
                        tracing::warn!(path = %path.display(), %error, "an adapter is left out");
                    }
                }
            }
        }
        found.sort_by_key(|entry| entry.created_at_ms);
        entries.extend(found);
        Ok(Self {
            directory,
            base,
            entries: Mutex::new(entries),
            turn: tokio::sync::Mutex::new(()),
        })
    }

    /// Where trainings keep what they need to go on.
    pub(crate) fn trainings(&self) -> PathBuf {
        self.directory.join("training")
    }

    /// Waits for the right to change the active adapter: two changes are remembered in the order in
    /// which they were made.
    pub(crate) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Newest first.
    pub(crate) fn list(&self) -> Vec<Entry> {
        self.lock().iter().rev().cloned().collect()
    }

    /// The adapter of this id, of this name, or whose id alone begins so; of several of one name, the newest.
    ///
    /// # Errors
    /// There is none, or it could be several.
    pub(crate) fn find(&self, reference: &str) -> Result<Entry> {
        let entries = self.lock();
        let newest = |fits: &dyn Fn(&Entry) -> bool| entries.iter().rev().find(|entry| fits(entry));
        let whole = newest(&|entry| entry.id.to_string() == reference);
        if let Some(entry) = whole.or_else(|| newest(&|entry| entry.name == reference)) {
            return Ok(entry.clone());
        }
        match beginning(reference, entries.iter(), |entry| entry.id.to_string()) {
            Ok(entry) => Ok(entry.clone()),
            Err(Unclear::Several) => Err(Error::invalid(
                "id",
                "more than one adapter begins so; give more digits",
            )),
            Err(Unclear::NoId | Unclear::Unknown) => Err(Error::NotFound {
                what: "adapter",
                id: reference.to_owned(),
                hint: "`addenda adapter list` shows those there are",
            }),
        }
    }

    /// An adapter's file.
    ///
    /// # Errors
    /// It cannot be read, or is not what it was.
    pub(crate) fn bytes(&self, entry: &Entry) -> Result<Vec<u8>> {
        if let Some(bytes) = entry.shipped {
            return Ok(bytes.to_vec());
        }
        let bytes = read(&self.path(entry.id))?;
        let described = Description::read(&bytes)?;
        if described.digest != entry.id.0 {
            return Err(Error::Precondition {
                field: "adapter",
                reason: format!("{} has changed on disk; import it again", entry.id),
            });
        }
        Ok(bytes)
    }

    /// Takes an adapter's file in; the same one again changes nothing.
    ///
    /// # Errors
    /// A file that is none, of another model, one too many, or the disk's.
    pub(crate) fn add(&self, bytes: &[u8]) -> Result<Entry> {
        let described = Description::read(bytes)?;
        let entry = Entry::new(described, crate::jobs::now_ms(), None);
        self.check(&entry)?;
        let mut entries = self.lock();
        if let Some(known) = entries.iter().find(|known| known.id == entry.id) {
            return Ok(known.clone());
        }
        if entries.len() >= limits::ADAPTERS {
            let reason = format!(
                "are {} already; remove some from {}",
                entries.len(),
                self.directory.display()
            );
            return Err(Error::Precondition {
                field: "adapters",
                reason,
            });
        }
        write(&self.path(entry.id), bytes)?;
        entries.push(entry.clone());
        Ok(entry)
    }

    /// Fails unless an adapter is for the model that is served.
    ///
    /// # Errors
    /// It is another model's.
    pub(crate) fn check(&self, entry: &Entry) -> Result<()> {
        if entry.base == self.base {
            return Ok(());
        }
        let reason = format!(
            "\"{}\" was trained for the base weights {}, and those that are served are {}",
            entry.name, entry.base, self.base
        );
        Err(Error::Precondition {
            field: "adapter",
            reason,
        })
    }

    /// Remembers the choice for the next start.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn remember(&self, active: Option<Digest>) -> Result<()> {
        let active = Active {
            version: 1,
            adapter: active.map_or_else(|| "none".to_owned(), |id| id.to_string()),
        };
        let text = serde_json::to_vec(&active).unwrap_or_default();
        write(&self.directory.join(ACTIVE), &text)
    }

    /// The adapter to begin with: what the setting says, or else what was chosen last, or else the
    /// one that ships for this model.
    ///
    /// # Errors
    /// The setting names an adapter that is not there or another model's.
    pub(crate) fn first(&self, choice: &AdapterChoice) -> Result<Option<Entry>> {
        match choice {
            AdapterChoice::None => Ok(None),
            AdapterChoice::Named(reference) => {
                let entry = self.find(reference)?;
                self.check(&entry)?;
                Ok(Some(entry))
            }
            AdapterChoice::Auto => {
                let remembered = read(&self.directory.join(ACTIVE)).ok();
                let remembered =
                    remembered.and_then(|text| serde_json::from_slice::<Active>(&text).ok());
                let wanted = remembered.map(|active| active.adapter);
                if wanted.as_deref() == Some("none") {
                    return Ok(None);
                }
                let wanted = wanted.and_then(|id| self.find(&id).ok());
                let wanted = wanted.filter(|entry| self.check(entry).is_ok());
                let shipped = || {
                    self.lock()
                        .iter()
                        .find(|one| one.shipped.is_some())
                        .cloned()
                };
                Ok(wanted.or_else(shipped))
            }
        }
    }

    fn path(&self, id: Digest) -> PathBuf {
        self.directory.join(format!("{id}.safetensors"))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn new(described: Description, created_at_ms: u64, shipped: Option<&'static [u8]>) -> Self {
        Self {
            id: Digest(described.digest),
            name: described.name,
            base: Digest(described.base),
            header_tokens: described.header_tokens,
            trailer_tokens: described.trailer_tokens,
            bridge_tokens: described.bridge_tokens,
            training: described.training,
            created_at_ms,
            shipped,
        }
    }
}

fn entry_of(path: &Path) -> Result<Entry> {
    let described = Description::read(&read(path)?)?;
    let written = path.metadata().and_then(|metadata| metadata.modified());
    let written = written
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let written = written.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    });
    Ok(Entry::new(described, written, None))
}
