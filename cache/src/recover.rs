//! Bringing the index to what the extents say: the records behind the last checkpoint at every open, all of them
//! where the index is missing or unreadable.
//!
//! Owns replaying, cutting a torn tail and setting a broken index aside. Never changes a record. Invariants: a packet
//! is added only after its payload was verified; only the last extent is cut, and only behind its last intact record.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::budget::Usage;
use crate::error::{Error, Result};
use crate::event::{Event, Gone};
use crate::extent::{Extents, Opened, Tail};
use crate::file::{ExtentFile, FIRST_RECORD, sync_directory};
use crate::id::{PacketId, PacketKey};
use crate::index::{Change, Checkpoint, Index};
use crate::lease::Leases;
use crate::lock::wait_until_free;
use crate::manifest::Location;
use crate::scan::{Found, Scanner, Step, verify_payload};
use crate::store::StoreOptions;

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
    options: &StoreOptions,
    anew: Option<String>,
    progress: &mut dyn FnMut(&RecoverProgress),
) -> Result<Recovered> {
    let distrusted = anew.is_some();
    match attempt(directory, options, anew, progress) {
        // Some damage shows only when the index is read; it is made anew once.
        Err(error @ (Error::Index(_) | Error::IndexValue { .. })) if !distrusted => {
            let reason = format!("it could not be read: {error}");
            attempt(directory, options, Some(reason), progress)
        }
        other => other,
    }
}

fn attempt(
    directory: &Path,
    options: &StoreOptions,
    anew: Option<String>,
    progress: &mut dyn FnMut(&RecoverProgress),
) -> Result<Recovered> {
    let Opened {
        extents,
        unreadable,
        next_extent,
    } = Extents::open(&directory.join("extents"), options.extent_bytes)?;
    let path = directory.join("index");
    let (index, from, rebuilt) = open_index(&path, &extents, options.index_cache_bytes, anew)?;
    let leases = Leases::default();
    let mut replay = Replay {
        index: &index,
        leases: &leases,
        progress,
        state: RecoverProgress::default(),
        report: Recovery {
            rebuilt,
            unreadable,
            ..Recovery::default()
        },
        suspects: BTreeMap::new(),
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
    path.parent().map_or(Ok(()), sync_directory)
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

struct Replay<'a> {
    index: &'a Index,
    leases: &'a Leases,
    progress: &'a mut dyn FnMut(&RecoverProgress),
    state: RecoverProgress,
    report: Recovery,
    suspects: BTreeMap<PacketId, PacketKey>,
    tail: Tail,
}

impl Replay<'_> {
    fn run(&mut self, extents: &Extents, from: Option<&Checkpoint>) -> Result<()> {
        let starts: Vec<(Arc<ExtentFile>, u64)> = extents
            .all()
            .into_iter()
            .filter_map(|file| match from {
                Some(checkpoint) if file.number() < checkpoint.extent => None,
                Some(checkpoint) if file.number() == checkpoint.extent => {
                    Some((file, checkpoint.offset))
                }
                _ => Some((file, FIRST_RECORD)),
            })
            .collect();
        for (file, start) in &starts {
            self.state.bytes_total += file.len()?.saturating_sub(*start);
        }
        for (file, start) in &starts {
            let last = file.number().saturating_add(1) == self.tail.next_extent;
            let end = self.extent(file, *start, last)?;
            if last {
                self.tail.active = Some((Arc::clone(file), end));
            }
        }
        // What was cut or skipped is done too.
        self.state.bytes_done = self.state.bytes_total;
        (self.progress)(&self.state);
        self.report.records = self.state.records;
        self.report.damaged = self.suspects.keys().copied().collect();
        Ok(())
    }

    /// Replays one extent and returns the end of its last intact record.
    fn extent(&mut self, file: &ExtentFile, start: u64, last: bool) -> Result<u64> {
        let mut scanner = Scanner::new(file, start)?;
        let mut end = start;
        // A packet whose payload does not match and that nothing follows was never acknowledged.
        let mut torn: Option<Found> = None;
        loop {
            match scanner.step()? {
                Step::Record(found) => {
                    self.give_up(torn.take());
                    let at = std::mem::replace(&mut end, found.next);
                    if !self.record(file, &found)? {
                        torn = Some(*found);
                    }
                    self.state.bytes_done += end.saturating_sub(at);
                    (self.progress)(&self.state);
                }
                Step::Gap { from, to } => {
                    tracing::error!(extent = %file.path().display(), from, to, "bytes of the extent are damaged");
                    self.give_up(torn.take());
                    self.report.damaged_bytes += to - from;
                    end = to;
                }
                Step::Tail { .. } | Step::End => break,
            }
        }
        match torn {
            Some(found) if last => end = found.location.offset,
            other => self.give_up(other),
        }
        let length = file.len()?;
        if last && length > end {
            tracing::warn!(extent = %file.path().display(), bytes = length - end, "an unfinished write is cut off");
            file.cut(end)?;
            file.sync()?;
            self.report.cut_bytes += length - end;
        }
        Ok(end)
    }

    fn give_up(&mut self, found: Option<Found>) {
        if let Some(manifest) = found.and_then(|found| found.manifest()) {
            self.suspects.insert(manifest.id, manifest.header.key);
        }
    }

    /// Applies a record; false where it is a packet whose payload does not match.
    fn record(&mut self, file: &ExtentFile, found: &Found) -> Result<bool> {
        self.state.records += 1;
        self.tail.next_sequence = self
            .tail
            .next_sequence
            .max(found.sequence.saturating_add(1));
        let change = if let Some(manifest) = found.manifest() {
            if !verify_payload(file, &found.location, &found.payload_digest)? {
                return Ok(false);
            }
            self.suspects.remove(&manifest.id);
            self.leases.set_verified(manifest.location);
            self.index.put(&manifest)?
        } else {
            // A dead packet's payload may be a hole, which is no damage.
            if let Event::Tombstone { id, .. } = &found.event {
                self.suspects.remove(id);
            }
            self.index.apply(&found.event)?
        };
        if let Change {
            removed: Some(removed),
            ..
        } = change
        {
            self.leases.bury(&removed);
        }
        Ok(true)
    }
}
