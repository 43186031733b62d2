//! The packet store beside plain files: rates, disk, memory and opening.
//!
//! Owns what is done to a store of its own in a temporary folder. Plain files are written and read in
//! turns with packets, so that both meet the same disk in the same minute; figures of two runs on a
//! shared machine can't be compared. Bodies are random, so nothing on the way compresses them.

pub(crate) mod packet;
mod space;
mod speed;

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::error::{Result, io};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Folder on the file system that is measured [default: the system's temporary folder].
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Bodies of 1 MiB to put, to read first and to read again; at least 32.
    #[arg(long, default_value_t = 128)]
    packets: u32,
    /// Times that the live set is replaced once as a whole.
    #[arg(long, default_value_t = 10)]
    turns: u32,
    /// Live set of the turns, in MiB, in bodies of 2 KiB to 256 KiB.
    #[arg(long, default_value_t = 64)]
    live_mib: u32,
    /// Packets in the store that is opened.
    #[arg(long, default_value_t = 20_000)]
    opened: u32,
    /// What is stored while memory is measured, in MiB; 8192 for the figure that is promised.
    #[arg(long, default_value_t = 1024)]
    stored_mib: u32,
    /// One line of JSON (there is no other form yet).
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<serde_json::Value> {
    let folder = match &arguments.folder {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir(),
    };
    let folder = folder.map_err(io("a temporary folder"))?;
    let inner = |name: &str| -> Result<PathBuf> {
        let path = folder.path().join(name);
        std::fs::create_dir(&path).map_err(io(name))?;
        Ok(path)
    };
    // First, while this process has touched nothing else.
    let memory = space::memory(&inner("memory")?, arguments.stored_mib)?;
    discard(&folder.path().join("memory"))?;
    let speed = speed::measure(&inner("speed")?, arguments.packets.max(32))?;
    discard(&folder.path().join("speed"))?;
    let turns = space::turns(&inner("turns")?, arguments.turns, arguments.live_mib)?;
    discard(&folder.path().join("turns"))?;
    let open = speed::open(&inner("open")?, arguments.opened)?;
    Ok(json!({
        "put_ratio": speed.put_ratio, "put_mib_per_s": speed.put_mib_per_s,
        "plain_put_mib_per_s": speed.plain_put_mib_per_s,
        "first_read_ratio": speed.first_read_ratio,
        "first_read_mib_per_s": speed.first_read_mib_per_s,
        "plain_read_mib_per_s": speed.plain_read_mib_per_s,
        "hit_us": speed.hit_us, "put_many_ratio": speed.put_many_ratio,
        "disk_ratio": turns.disk_ratio, "disk_ratio_before_compaction": turns.before,
        "live_mib": turns.live_mib, "turns": arguments.turns,
        "disk_after_delete_mib": turns.after_delete_mib,
        "open_s": open.seconds, "opened": arguments.opened,
        "open_after_kill_s": open.after_kill_seconds,
        "resident_mib": memory.resident_mib, "working_set_mib": memory.working_set_mib,
        "stored_mib": arguments.stored_mib,
    }))
}

fn discard(path: &Path) -> Result<()> {
    std::fs::remove_dir_all(path).map_err(io("removing what was measured"))
}
