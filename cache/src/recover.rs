//! Bringing the index to what the extents say: the records behind the last checkpoint at every open, all of them
//! where the index is missing or unreadable.
//!
//! Owns opening, setting a broken index aside and counting what lives. Never changes a record. Invariant: an index is
//! believed only where it belongs to these extents.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::budget::Usage;
use crate::error::{Error, Result};
use crate::event::{Event, Gone};
use crate::extent::{Extents, Opened, Tail};
use crate::file::sync_directory;
use crate::id::{PacketId, PacketKey};
use crate::index::{Checkpoint, Index};
use crate::lease::Leases;
use crate::lock::wait_until_free;
use crate::manifest::Location;
use crate::payload::Hands;
use crate::store::StoreOptions;
use addenda_disk::Disk;

mod replay;

use replay::Replay;

/// How far a replay is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecoverProgress {
    /// Bytes of extents read so far.
    pub bytes_done: u64,
    /// Bytes of extents to read in all.
    pub bytes_total: u64,
    /// Records applied so far.
    pub records: u64,
}

/// What was done to bring the index up to date, and what was found on the way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Why the index was made anew; none: it was there and sound.
    pub rebuilt: Option<String>,
    /// Records replayed.
    pub records: u64,
    /// Bytes of unfinished writes that were cut off the last extent.
    pub cut_bytes: u64,
    /// Bytes in extents that are no record, with intact records behind them.
    pub damaged_bytes: u64,
    /// Packets whose bytes are damaged; they are quarantined.
    pub damaged: Vec<PacketId>,
    /// Extents whose header is damaged beyond reading; their packets are misses.
    pub unreadable: Vec<PathBuf>,
}

/// An index that follows its extents to the end.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) extents: Extents,
    pub(crate) index: Index,
    pub(crate) leases: Leases,
    pub(crate) hands: Hands,
    pub(crate) usage: Usage,
    pub(crate) tail: Tail,
    pub(crate) report: Recovery,
    /// Packets with damaged payloads, to be quarantined.
    pub(crate) suspects: BTreeMap<PacketId, PacketKey>,
}

/// Opens extents and index of a data directory and brings the index up to date. `anew` says why the index is not to
/// be trusted.
pub(crate) fn recover(
    directory: &Path,
    (options, disk): (&StoreOptions, &Disk),
    anew: Option<String>,
    progress: &mut dyn FnMut(&RecoverProgress),
) -> Result<Recovered> {
    let distrusted = anew.is_some();
    match attempt(directory, (options, disk), anew, progress) {
        // Some damage shows only when the index is read; it is made anew once.
        Err(error @ (Error::Index(_) | Error::IndexValue { .. })) if !distrusted => {
            let reason = format!("it could not be read: {error}");
            attempt(directory, (options, disk), Some(reason), progress)
        }
        other => other,
    }
}

fn attempt(
    directory: &Path,
    (options, disk): (&StoreOptions, &Disk),
    anew: Option<String>,
    progress: &mut dyn FnMut(&RecoverProgress),
) -> Result<Recovered> {
    let Opened {
        extents,
        unreadable,
        next_extent,
    } = Extents::open(&directory.join("extents"), options.extent_bytes, disk)?;
    let path = directory.join("index");
    let (index, from, rebuilt) = open_index(&path, &extents, options.index_cache_bytes, anew)?;
    let (leases, hands) = (Leases::default(), Hands::new());
    let mut replay = Replay {
        index: &index,
        leases: &leases,
        hands: &hands,
        progress,
        state: RecoverProgress::default(),
        report: Recovery {
            rebuilt,
            unreadable,
            ..Recovery::default()
        },
        suspects: BTreeMap::new(),
        follows: from.is_some(),
        tail: Tail {
            active: None,
            next_extent,
            next_sequence: from
                .as_ref()
                .map_or(1, |checkpoint| checkpoint.next_sequence),
        },
    };
    replay.run(&extents, from.as_ref())?;
    let Replay {
        report,
        suspects,
        tail,
        ..
    } = replay;
    let usage = census(&index, &extents, &tail)?;
    Ok(Recovered {
        extents,
        index,
        leases,
        hands,
        usage,
        tail,
        report,
        suspects,
    })
}

/// The index and the place to replay from; none: from the beginning. The text says why it was made anew.
fn open_index(
    path: &Path,
    extents: &Extents,
    cache_bytes: u64,
    anew: Option<String>,
) -> Result<(Index, Option<Checkpoint>, Option<String>)> {
    let reason = if let Some(reason) = anew {
        reason
    } else if path.exists() {
        wait_until_free(&path.join("db"))?;
        match Index::open(path, cache_bytes).and_then(|index| {
            let (checkpoint, current) = (index.checkpoint()?, index.is_of_this_version()?);
            Ok((index, checkpoint, current))
        }) {
            Ok((_, _, false)) => "another version of Addenda made it".to_owned(),
            Ok((index, None, true)) => return Ok((index, None, None)),
            Ok((index, Some(checkpoint), true)) if fits(&checkpoint, extents)? => {
                return Ok((index, Some(checkpoint), None));
            }
            Ok(_) => "it does not belong to these extents".to_owned(),
            Err(error) => format!("it could not be opened: {error}"),
        }
    } else if extents.all().is_empty() {
        return Ok((Index::open(path, cache_bytes)?, None, None));
    } else {
        "it was missing".to_owned()
    };
    tracing::warn!(%reason, "the index is made anew from the extents");
    set_aside(path)?;
    Ok((Index::open(path, cache_bytes)?, None, Some(reason)))
}

fn fits(checkpoint: &Checkpoint, extents: &Extents) -> Result<bool> {
    let Some(file) = extents.get(checkpoint.extent) else {
        return Ok(false);
    };
    Ok(file.salt() == &checkpoint.salt && file.len()? >= checkpoint.offset)
}

/// Keeps one broken index for whoever wants to know why; it is never read again.
fn set_aside(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let aside = path.with_extension("broken");
    if aside.exists() {
        std::fs::remove_dir_all(&aside).map_err(Error::io("remove", &aside))?;
    }
    std::fs::rename(path, &aside).map_err(Error::io("rename", path))?;
    path.parent()
        .map_or(Ok(()), |parent| sync_directory(parent, &Disk::default()))
}

/// Counts the live packets, least recently used first, and forgets those whose record's place is gone: its extent was
/// removed, or ends before it.
fn census(index: &Index, extents: &Extents, tail: &Tail) -> Result<Usage> {
    let mut ends = BTreeMap::new();
    for file in extents.all() {
        ends.insert(file.number(), file.len()?);
    }
    if let Some((file, end)) = &tail.active {
        ends.insert(file.number(), *end);
    }
    let is_home = |place: &Location| {
        let end = ends.get(&place.extent).copied().unwrap_or_default();
        place.offset.saturating_add(place.record_len()) <= end
    };
    let manifests = index.manifests().collect::<Result<Vec<_>>>()?;
    let (mut live, homeless): (Vec<_>, Vec<_>) = manifests
        .into_iter()
        .partition(|manifest| is_home(&manifest.location));
    for manifest in homeless {
        tracing::error!(id = %manifest.id, "the packet's record is gone from its extent");
        let (id, key) = (manifest.id, manifest.header.key);
        index.apply(&Event::Tombstone {
            id,
            key,
            why: Gone::Quarantined,
            at_ms: 0,
        })?;
    }
    live.sort_by_key(|manifest| {
        (
            manifest.last_used_at_ms.max(manifest.header.created_at_ms),
            manifest.sequence,
        )
    });
    let mut usage = Usage::default();
    live.iter().for_each(|manifest| usage.add(manifest));
    Ok(usage)
}
