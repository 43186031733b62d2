//! `addenda store rebuild`: the index anew from the extents.

use std::path::Path;
use std::process::ExitCode;

use addenda_cache::Store;
use serde_json::json;

use crate::cli::console::Console;
use crate::cli::error::{Error, Result};
use crate::cli::text::count;
use crate::config::{Config, format_bytes};

/// What a data directory holds whose index was made anew.
pub(crate) struct Rebuilt {
    pub(crate) packets: u64,
    pub(crate) damaged: u64,
    bytes: u64,
    records: u64,
}

pub(crate) fn run(config: &Config, console: &mut Console) -> Result<ExitCode> {
    let directory = &config.data_dir;
    if !directory.join("extents").exists() {
        return Err(Error::refused(
            format!("{} is no data directory", directory.display()),
            "say which with --data-dir; `addenda config print` shows the usual one",
        ));
    }
    let rebuilt = rebuild(directory, config, console)?;
    rebuilt.tell("rebuilt", directory, console)?;
    Ok(if rebuilt.damaged == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Makes the index of a data directory anew, verifying every packet.
///
/// # Errors
/// A daemon that has it open, a newer format, or the disk's.
pub(crate) fn rebuild(directory: &Path, config: &Config, console: &mut Console) -> Result<Rebuilt> {
    let bar = console.bytes("reading packets");
    let store = Store::rebuild(directory, config.store_options(), &mut |progress| {
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes_done);
    })
    .map_err(crate::error::Error::from)?;
    bar.finish_and_clear();
    let stats = store.stats().map_err(crate::error::Error::from)?;
    Ok(Rebuilt {
        packets: stats.packets,
        damaged: store.recovery().damaged.len() as u64,
        bytes: stats.live_bytes,
        records: store.recovery().records,
    })
}

impl Rebuilt {
    pub(crate) fn tell(&self, what: &str, directory: &Path, console: &mut Console) -> Result<()> {
        if console.json() {
            let line = json!({
                "data_dir": directory.display().to_string(), "packets": self.packets,
                "bytes": self.bytes, "records": self.records, "damaged": self.damaged,
            });
            return console.line(&line.to_string());
        }
        console.line(&format!(
            "{what} {}: {}, {}, {} damaged",
            directory.display(),
            count(self.packets, "packet"),
            format_bytes(self.bytes),
            self.damaged
        ))
    }
}
