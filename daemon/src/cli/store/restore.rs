//! `addenda store restore`: a data directory from a backup.
//!
//! Everything is verified in a folder beside the data directory, which takes its name only at the end: a restore that
//! was broken off leaves nothing that could be taken for a data directory.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Deserialize;

use super::backup::{MANIFEST, checked, failed};
use super::rebuild::rebuild;
use crate::cli::console::Console;
use crate::cli::error::{Error, Result};
use crate::config::Config;
use crate::grpc::upkeep::BACKUP_VERSION;

#[derive(Deserialize)]
struct Manifest {
    version: u32,
    files: Vec<Entry>,
    packets: u64,
}

#[derive(Deserialize)]
struct Entry {
    path: String,
    bytes: u64,
    digest: String,
}

pub(crate) fn run(folder: &Path, config: &Config, console: &mut Console) -> Result<ExitCode> {
    let manifest = read(folder)?;
    let target = &config.data_dir;
    check_free(target)?;
    let beside = beside(target);
    if beside.exists() {
        std::fs::remove_dir_all(&beside).map_err(failed(&beside))?;
    }
    std::fs::create_dir_all(&beside).map_err(failed(&beside))?;
    copy(&manifest, folder, &beside, console)?;
    let rebuilt = rebuild(&beside, config, console)?;
    if rebuilt.packets != manifest.packets || rebuilt.damaged > 0 {
        return Err(Error::refused(
            format!(
                "the backup has {} packets, of which {} can be read",
                manifest.packets, rebuilt.packets
            ),
            "take another backup; this one is damaged",
        ));
    }
    let ledger = beside.join("ledger");
    if ledger.exists() {
        addenda_editor::inspect_ledger(&ledger).map_err(crate::error::Error::from)?;
    }
    if target.exists() {
        std::fs::remove_dir(target).map_err(failed(target))?;
    }
    std::fs::rename(&beside, target).map_err(failed(target))?;
    rebuilt.tell("restored", target, console)?;
    Ok(ExitCode::SUCCESS)
}

fn read(folder: &Path) -> Result<Manifest> {
    let path = folder.join(MANIFEST);
    let text = std::fs::read_to_string(&path).map_err(|source| Error::File {
        path: path.clone(),
        source,
    })?;
    parse(&text, &path)
}

fn parse(text: &str, path: &Path) -> Result<Manifest> {
    let unreadable = |reason: String| {
        Error::refused(
            format!("{} is no backup's list of files: {reason}", path.display()),
            "take another backup, or the Addenda that made this one",
        )
    };
    // The version first: a newer one may have other fields.
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|error| unreadable(error.to_string()))?;
    let version = value.get("version").and_then(serde_json::Value::as_u64);
    match version {
        Some(version) if version > u64::from(BACKUP_VERSION) => Err(unreadable(format!(
            "it has version {version}, and this Addenda knows versions up to {BACKUP_VERSION}"
        ))),
        _ => {
            let manifest: Manifest =
                serde_json::from_value(value).map_err(|error| unreadable(error.to_string()))?;
            if manifest.version == 0 {
                return Err(unreadable("its version is 0".to_owned()));
            }
            Ok(manifest)
        }
    }
}

/// Refuses a data directory in which something is.
fn check_free(target: &Path) -> Result<()> {
    let mut entries = match std::fs::read_dir(target) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(target)(error)),
    };
    if entries.next().is_some() {
        return Err(Error::refused(
            format!("{} is not empty", target.display()),
            "give another --data-dir, or move the old one away",
        ));
    }
    Ok(())
}

fn beside(target: &Path) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_os_string();
    name.push(".restoring");
    target.with_file_name(name)
}

fn copy(manifest: &Manifest, from: &Path, to: &Path, console: &mut Console) -> Result<()> {
    let bar = console.bytes("copying");
    bar.set_length(manifest.files.iter().map(|file| file.bytes).sum());
    for entry in &manifest.files {
        let inner = checked(&entry.path)?;
        let (source, target) = (from.join(inner), to.join(inner));
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(failed(parent))?;
        }
        let mut reader = File::open(&source).map_err(failed(&source))?;
        let mut writer = File::create_new(&target).map_err(failed(&target))?;
        let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0);
        let mut piece = vec![0; 1 << 20];
        loop {
            let read = reader.read(&mut piece).map_err(failed(&source))?;
            let Some(piece) = piece.get(..read).filter(|piece| !piece.is_empty()) else {
                break;
            };
            hasher.update(piece);
            writer.write_all(piece).map_err(failed(&target))?;
            bytes += piece.len() as u64;
            bar.inc(piece.len() as u64);
        }
        writer.sync_all().map_err(failed(&target))?;
        if bytes != entry.bytes || hasher.finalize().to_string() != entry.digest {
            return Err(Error::refused(
                format!("{} is not what was backed up", source.display()),
                "take another backup; this one is damaged",
            ));
        }
    }
    bar.finish_and_clear();
    Ok(())
}

#[cfg(test)]
mod fuzz {
    use std::path::{Component, Path};

    use super::{checked, parse};

    #[test]
    fn a_backups_list_of_files_never_names_one_outside_of_it() {
        addenda_fuzz::target!("backup_manifest", 10_000, |bytes: &[u8]| {
            let Ok(text) = std::str::from_utf8(bytes) else {
                return;
            };
            let listed = addenda_fuzz::within(1 << 20, || parse(text, Path::new("backup.json")));
            for entry in listed.map(|manifest| manifest.files).unwrap_or_default() {
                if let Ok(path) = checked(&entry.path) {
                    let mut parts = path.components();
                    assert!(parts.all(|part| matches!(part, Component::Normal(_))));
                    assert!(!entry.path.is_empty());
                }
            }
        });
    }
}
