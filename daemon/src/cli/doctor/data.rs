//! The data directory: whether it can be written, who holds it, whether ledger and store can be
//! read.

use std::fs::{File, TryLockError};
use std::io::Read;
use std::path::Path;

use addenda_cache::{Store, StoreOptions};
use rustix::fs::{Access, access};

use super::Report;
use super::machine::existing;
use crate::cli::text::{count, grouped};
use crate::config::{Config, format_bytes};

/// Looks at everything; gives the process that holds the directory, if one does.
pub(super) fn look(config: &Config, report: &mut Report) -> Option<String> {
    let directory = &config.data_dir;
    if !directory.exists() {
        not_yet(directory, report);
        return None;
    }
    if !directory.is_dir() {
        let mend = "move the file away, or set data_dir to a directory";
        report.problem(
            "directory",
            format!("{} is a file", directory.display()),
            mend,
        );
        return None;
    }
    if let Err(error) = access(
        directory,
        Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK,
    ) {
        let mend = format!(
            "let the daemon's user own it: sudo chown -R USER {}",
            directory.display()
        );
        report.problem(
            "directory",
            format!("{}: {error}", directory.display()),
            mend,
        );
        return None;
    }
    report.ok(
        "directory",
        format!("{} can be written", directory.display()),
    );
    match owner(directory) {
        Ok(Some(owner)) => {
            report.ok(
                "lock",
                format!("held by {owner}; its store is looked at by asking it"),
            );
            return Some(owner);
        }
        Ok(None) => report.ok("lock", "free"),
        Err(error) => {
            let mend = "let the daemon's user own the file LOCK";
            report.problem("lock", error.to_string(), mend);
            return None;
        }
    }
    ledger(directory, report);
    store(config, report);
    None
}

fn not_yet(directory: &Path, report: &mut Report) {
    let parent = existing(directory);
    let finding = format!("{} is not there yet", directory.display());
    match access(&parent, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => report.ok("directory", format!("{finding}; the daemon makes it")),
        Err(error) => report.problem(
            "directory",
            format!("{finding}, and {}: {error}", parent.display()),
            format!(
                "make it for the daemon's user: sudo install -d -o USER {}",
                directory.display()
            ),
        ),
    }
}

/// Who holds the directory's lock: `process 123 on host`.
fn owner(directory: &Path) -> std::io::Result<Option<String>> {
    let path = directory.join("LOCK");
    if !path.exists() {
        return Ok(None);
    }
    let mut file = File::open(&path)?;
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            Read::by_ref(&mut file)
                .take(1024)
                .read_to_string(&mut text)?;
            let mut words = text.split_whitespace();
            let process = words.next().unwrap_or("unknown");
            let host = words.next().unwrap_or("this machine");
            Ok(Some(format!("process {process} on {host}")))
        }
    }
}

/// Nobody holds the directory, so the store may be opened as the daemon would open it.
fn store(config: &Config, report: &mut Report) {
    if !config.data_dir.join("extents").exists() {
        return report.ok("store", "empty: no packet was ever put");
    }
    let options = StoreOptions {
        free_floor: config.min_free_bytes,
        ..StoreOptions::default()
    };
    let stats = Store::open(&config.data_dir, options).and_then(|store| store.stats());
    match stats {
        Ok(stats) if stats.quarantined > 0 => report.warning(
            "store",
            format!("{} damaged and set aside", count(stats.quarantined, "packet")),
            "put or warm their documents again; check the disk (smartctl)",
        ),
        Ok(stats) => report.ok(
            "store",
            format!(
                "{} packets, {} live, {} on disk",
                grouped(stats.packets),
                format_bytes(stats.live_bytes),
                format_bytes(stats.disk_bytes)
            ),
        ),
        Err(error) => report.problem(
            "store",
            error.to_string(),
            "restore extents/ and index/ from a backup, or move both away and warm the documents again: facts are not in them",
        ),
    }
}

fn ledger(directory: &Path, report: &mut Report) {
    let directory = directory.join("ledger");
    if !directory.join("facts.ledger").exists() {
        return report.ok("ledger", "empty: no fact was ever added");
    }
    match addenda_editor::inspect_ledger(&directory) {
        Ok(frames) => report.ok("ledger", format!("{}, chain whole", count(frames, "frame"))),
        Err(error) => report.problem("ledger", error.to_string(), "restore ledger/ from a backup"),
    }
}
