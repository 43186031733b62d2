//! The certificates of a data directory: one small file each.
//!
//! Owns the folder `certificates/`. Invariants: a file is written whole or not at all; one that is
//! damaged, of another version, or whose content does not hash to its name is left alone and not
//! believed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::certificates::{Basis, Certificate};
use crate::error::{Error, Result};

/// Certificates that are kept; the oldest go first.
const MOST: usize = 1000;

/// All certificates of this daemon. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Certificates {
    folder: PathBuf,
    /// Oldest first.
    kept: Arc<Mutex<Vec<Certificate>>>,
}

impl Certificates {
    /// Reads those of `data_dir`.
    ///
    /// # Errors
    /// The folder can't be made or read.
    pub(crate) fn open(data_dir: &Path) -> Result<Self> {
        let folder = data_dir.join("certificates");
        let io = |source| Error::Io {
            path: folder.clone(),
            source,
        };
        std::fs::create_dir_all(&folder).map_err(io)?;
        let mut kept = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            if let Some(certificate) = read(&path) {
                kept.push(certificate);
            } else {
                tracing::warn!(path = %path.display(), "this is no certificate that can be believed");
            }
        }
        kept.sort_by_key(|certificate| certificate.measured_at_ms);
        Ok(Self {
            folder,
            kept: Arc::new(Mutex::new(kept)),
        })
    }

    /// Keeps a certificate; durable when this returns.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn keep(&self, certificate: Certificate) -> Result<()> {
        let path = self.path(&certificate);
        let io = |source| Error::Io {
            path: path.clone(),
            source,
        };
        let text = serde_json::to_vec_pretty(&certificate)
            .map_err(|error| io(std::io::Error::other(error)))?;
        let mut file = tempfile::NamedTempFile::new_in(&self.folder).map_err(io)?;
        std::io::Write::write_all(&mut file, &text).map_err(io)?;
        file.as_file().sync_all().map_err(io)?;
        file.persist(&path).map_err(|error| io(error.error))?;
        let folder = std::fs::File::open(&self.folder).map_err(io)?;
        folder.sync_all().map_err(io)?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push(certificate);
        while kept.len() > MOST {
            let oldest = kept.remove(0);
            // What stays behind is only read once more.
            drop(std::fs::remove_file(self.path(&oldest)));
        }
        Ok(())
    }

    /// Newest first.
    pub(crate) fn list(&self) -> Vec<Certificate> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().rev().cloned().collect()
    }

    /// The newest certificate of what runs now, if there is one.
    pub(crate) fn find(&self, now: &Basis) -> Option<Certificate> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().rev().find(|kept| kept.basis == *now).cloned()
    }

    fn path(&self, certificate: &Certificate) -> PathBuf {
        self.folder.join(format!("{}.json", certificate.id()))
    }
}

/// A certificate from its file; none if it can't be believed.
fn read(path: &Path) -> Option<Certificate> {
    let text = std::fs::read(path).ok()?;
    believed(&text, path.file_stem()?.to_str()?)
}

/// A certificate from what its file of this name says.
pub(crate) fn believed(text: &[u8], name: &str) -> Option<Certificate> {
    let certificate: Certificate = serde_json::from_slice(text).ok()?;
    (certificate.is_known() && certificate.id().to_string() == name).then_some(certificate)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
    use super::Certificates;
    use crate::certificates::tests::certificate;
    use addenda_proto::addenda::v1::Mode;

    #[test]
    fn certificates_outlive_the_daemon_and_forged_ones_are_not_believed() {
        let data = tempfile::tempdir().unwrap();
        let certificates = Certificates::open(data.path()).unwrap();
        let good = certificate(Mode::Packet, 0.9);
        certificates.keep(good.clone()).unwrap();
        let path = certificates.path(&good);
        let again = Certificates::open(data.path()).unwrap();
        assert_eq!(again.find(&good.basis), Some(good.clone()));
        let forged = std::fs::read_to_string(&path)
            .unwrap()
            .replace("\"low\": 0.9", "\"low\": 0.99");
        std::fs::write(&path, forged).unwrap();
        let again = Certificates::open(data.path()).unwrap();
        assert_eq!(again.find(&good.basis), None);
    }
}
