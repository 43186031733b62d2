//! The certificates of a data directory: one small file each.
//!
//! Owns the folder `certificates/`. Invariants: a file is written whole or not at all; one that is
//! damaged, of another version, or whose content does not hash to its name is left alone and not
//! believed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use addenda_proto::addenda::v1::Mode;

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
            match read(&path) {
                Some(certificate) => kept.push(certificate),
                None => tracing::warn!(path = %path.display(), "this is no certificate that can be believed"),
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

    /// The first of `ways`, which come cheapest first, whose certificate meets `bar` with its lower
    /// bound; or why there is none.
    ///
    /// # Errors
    /// A sentence for the answer's summary.
    pub(crate) fn choose(
        &self,
        ways: &[Basis],
        bar: f64,
    ) -> std::result::Result<(Mode, Certificate), String> {
        let mut best: Option<f64> = None;
        for way in ways {
            let Some(certificate) = self.find(way) else {
                continue;
            };
            let low = certificate.figures.agreement.low;
            if low >= bar {
                return Ok((way.mode(), certificate));
            }
            best = Some(best.map_or(low, |best| best.max(low)));
        }
        Err(match best {
            None => "no mode has a certificate for these weights and packets; `addenda adapter certify` measures".to_owned(),
            Some(best) => format!(
                "the certified agreement is at least {best:.3}, and {bar:.3} is asked for"
            ),
        })
    }

    fn path(&self, certificate: &Certificate) -> PathBuf {
        self.folder.join(format!("{}.json", certificate.id()))
    }
}

/// A certificate from its file; none if it can't be believed.
fn read(path: &Path) -> Option<Certificate> {
    let text = std::fs::read(path).ok()?;
    let certificate: Certificate = serde_json::from_slice(&text).ok()?;
    let name = path.file_stem()?.to_str()?;
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
        let forged = std::fs::read_to_string(&path).unwrap().replace("\"low\": 0.9", "\"low\": 0.99");
        std::fs::write(&path, forged).unwrap();
        let again = Certificates::open(data.path()).unwrap();
        assert_eq!(again.find(&good.basis), None);
    }

    #[test]
    fn the_cheapest_mode_that_meets_the_bar_is_chosen_or_none() {
        let data = tempfile::tempdir().unwrap();
        let certificates = Certificates::open(data.path()).unwrap();
        let (packet, link) = (certificate(Mode::Packet, 0.8), certificate(Mode::Link, 0.95));
        let ways = [packet.basis.clone(), link.basis.clone()];
        assert!(certificates.choose(&ways, 0.5).unwrap_err().contains("no mode has a certificate"));
        certificates.keep(packet).unwrap();
        certificates.keep(link).unwrap();
        assert_eq!(certificates.choose(&ways, 0.7).unwrap().0, Mode::Packet);
        assert_eq!(certificates.choose(&ways, 0.9).unwrap().0, Mode::Link);
        assert!(certificates.choose(&ways, 0.99).unwrap_err().contains("0.950"));
    }
}
