//! How much disk and memory a store takes.

use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use addenda_cache::{Body, Effort, PacketId};

use super::packet::Sample;
use super::speed::open_store;
use crate::error::{Result, io};
use crate::pages::resident;

const MEBIBYTE: f64 = 1_048_576.0;

/// Bodies of the live set: small ones, which holes can't give back, and large ones.
const LENGTHS: [usize; 4] = [2 << 10, 16 << 10, 64 << 10, 256 << 10];

pub(crate) struct Turns {
    pub(crate) live_mib: f64,
    /// Bytes of the data directory, the index included, by those of live packets.
    pub(crate) disk_ratio: f64,
    pub(crate) before: f64,
    pub(crate) after_delete_mib: f64,
}

/// Replaces a live set of documents so many times, compacts, then deletes everything.
pub(crate) fn turns(folder: &Path, turns: u32, live_mib: u32) -> Result<Turns> {
    let store = open_store(folder)?;
    let mut lengths = LENGTHS.iter().copied().cycle();
    let mut set = Vec::new();
    while set.iter().sum::<usize>() < (live_mib as usize) << 20 {
        set.extend(lengths.next());
    }
    let documents = u32::try_from(set.len()).unwrap_or(u32::MAX);
    for turn in 0..=turns {
        for (document, length) in (0..).zip(&set) {
            let name = format!("document-{document}");
            Sample::new(turn * documents + document, &name, *length).put(&store)?;
        }
    }
    let live = store.stats()?.live_bytes as f64;
    let before = allocated(folder)? as f64 / live;
    store.compact(Effort::Thorough, &mut |_| ControlFlow::Continue(()))?;
    let disk_ratio = allocated(folder)? as f64 / live;
    for document in 0..documents {
        store.delete_document("default", &format!("document-{document}"))?;
    }
    store.compact(Effort::Thorough, &mut |_| ControlFlow::Continue(()))?;
    Ok(Turns {
        live_mib: live / MEBIBYTE,
        disk_ratio,
        before,
        after_delete_mib: allocated(folder)? as f64 / MEBIBYTE,
    })
}

pub(crate) struct Memory {
    /// Resident memory that the store added, without the bodies that are held.
    pub(crate) resident_mib: f64,
    /// Bodies that are held.
    pub(crate) working_set_mib: f64,
}

/// Memory of this process with so much stored, all of it read once and some of it held.
pub(crate) fn memory(folder: &Path, stored_mib: u32) -> Result<Memory> {
    let (before, _) = resident("self")?;
    let ids: Vec<PacketId> = {
        let store = open_store(folder)?;
        let put = |number| Sample::new(number, "", 1 << 20).put(&store);
        (0..stored_mib).map(put).collect::<Result<_>>()?
    };
    let store = open_store(folder)?;
    let mut held: Vec<Body> = Vec::new();
    for (number, id) in ids.iter().enumerate() {
        let body = store.read(id)?;
        if number % ids.len().div_ceil(64).max(1) == 0 {
            held.push(body);
        }
    }
    // Every page of what is held, so that it is resident.
    let touched: u64 = held.iter().map(|body| touch(body.as_ref())).sum();
    std::hint::black_box(touched);
    let working_set_mib = held.len() as f64;
    let (after, _) = resident("self")?;
    let resident_mib = (after - before) / MEBIBYTE - working_set_mib;
    Ok(Memory {
        resident_mib,
        working_set_mib,
    })
}

fn touch(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .step_by(4096)
        .map(|byte| u64::from(*byte))
        .sum()
}

/// Bytes that a folder takes on its file system, holes not counted.
fn allocated(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder).map_err(io("the store"))? {
        let entry = entry.map_err(io("the store"))?;
        let metadata = entry.metadata().map_err(io("the store"))?;
        bytes += if metadata.is_dir() {
            allocated(&entry.path())?
        } else {
            metadata.blocks() * 512
        };
    }
    Ok(bytes)
}
