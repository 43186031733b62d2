//! `addenda store backup`: a copy of the data directory, taken while the daemon serves.
//!
//! A backup is a folder with the files of a data directory and `backup.json`, which is written last: a folder
//! without it is no backup.

use std::fs::File;
use std::io::Write;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use addenda_proto::addenda::v1::backup_chunk::Part;
use addenda_proto::addenda::v1::{BackupManifest, BackupRequest};

use crate::cli::client::Client;
use crate::cli::console::Console;
use crate::cli::error::{Error, Result};
use crate::cli::json::Descriptors;
use crate::cli::text::count;
use crate::config::format_bytes;

/// The file that makes a folder a backup.
pub(crate) const MANIFEST: &str = "backup.json";

pub(crate) async fn run(connect: &str, folder: &Path, console: &mut Console) -> Result<ExitCode> {
    let client = Client::connect(connect).await?;
    std::fs::create_dir(folder).map_err(failed(folder))?;
    let request = BackupRequest {};
    let mut chunks = client.admin().backup(request).await?.into_inner();
    let bar = console.bytes("copying");
    let mut receiving = Receiving::new(folder);
    while let Some(chunk) = chunks.message().await? {
        bar.set_length(chunk.bytes_total.max(receiving.bytes));
        bar.set_position(receiving.bytes);
        if let Some(part) = chunk.part {
            receiving.take(part)?;
        }
    }
    bar.finish_and_clear();
    let manifest = receiving.finish()?;
    if console.json() {
        console.message("BackupManifest", &manifest)?;
        return Ok(ExitCode::SUCCESS);
    }
    console.line(&format!(
        "{}: {} of {}, {} of the ledger, {}",
        folder.display(),
        count(manifest.packets, "packet"),
        count(manifest.documents, "document"),
        count(manifest.facts, "frame"),
        format_bytes(manifest.files.iter().map(|file| file.bytes).sum())
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// A backup that comes in.
struct Receiving<'a> {
    folder: &'a Path,
    file: Option<(PathBuf, File)>,
    hasher: blake3::Hasher,
    digests: Vec<(String, String)>,
    path: String,
    bytes: u64,
    manifest: Option<BackupManifest>,
}

impl<'a> Receiving<'a> {
    fn new(folder: &'a Path) -> Self {
        Self {
            folder,
            file: None,
            hasher: blake3::Hasher::new(),
            digests: Vec::new(),
            path: String::new(),
            bytes: 0,
            manifest: None,
        }
    }

    fn take(&mut self, part: Part) -> Result<()> {
        match part {
            Part::File(path) => {
                self.close()?;
                let target = self.folder.join(checked(&path)?);
                if let Some(parent) = target.parent() {
                    std::fs::create_dir_all(parent).map_err(failed(parent))?;
                }
                let file = File::create_new(&target).map_err(failed(&target))?;
                self.file = Some((target, file));
                self.path = path;
            }
            Part::Data(bytes) => {
                if let Some((path, file)) = &mut self.file {
                    file.write_all(&bytes).map_err(failed(path))?;
                }
                self.hasher.update(&bytes);
                self.bytes += bytes.len() as u64;
            }
            Part::Manifest(manifest) => {
                self.close()?;
                self.manifest = Some(manifest);
            }
        }
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        if let Some((path, file)) = self.file.take() {
            file.sync_all().map_err(failed(&path))?;
            let digest = self.hasher.finalize().to_string();
            self.digests.push((std::mem::take(&mut self.path), digest));
        }
        self.hasher.reset();
        Ok(())
    }

    /// Compares what came with what was sent, and only then says that it is a backup.
    fn finish(self) -> Result<BackupManifest> {
        let manifest = self.manifest.ok_or(Error::Incomplete {
            what: "the end of the backup",
        })?;
        let sent = manifest.files.iter();
        let sent: Vec<_> = sent
            .map(|file| (file.path.clone(), file.digest.clone()))
            .collect();
        if sent != self.digests {
            return Err(Error::refused(
                "the backup did not arrive as it was sent",
                "make it again in another folder",
            ));
        }
        let text = Descriptors::load()?.value("BackupManifest", &manifest)?;
        let path = self.folder.join(MANIFEST);
        let write = || {
            let mut file = File::create_new(&path)?;
            file.write_all(format!("{text:#}\n").as_bytes())?;
            file.sync_all()?;
            File::open(self.folder)?.sync_all()
        };
        write().map_err(failed(&path))?;
        Ok(manifest)
    }
}

/// A path that stays within its folder.
///
/// # Errors
/// One that does not.
pub(crate) fn checked(path: &str) -> Result<&Path> {
    let inner = Path::new(path);
    let mut components = inner.components();
    if path.is_empty() || !components.all(|part| matches!(part, Component::Normal(_))) {
        return Err(Error::refused(
            format!("the backup has a file {path:?}, which is no file of a data directory"),
            "make the backup again",
        ));
    }
    Ok(inner)
}

/// A file or folder that can't be used.
pub(crate) fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Daemon(crate::error::Error::Io { path, source })
}
