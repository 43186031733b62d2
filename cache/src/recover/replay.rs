//! Replaying what the extents say into the index.
//!
//! Owns the walk over records, in the order in which they happened, and cutting a torn tail. Invariants: a packet is
//! added only after its payload was verified; only the last extent is cut, and only behind its last intact record.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{RecoverProgress, Recovery};
use crate::error::Result;
use crate::event::Event;
use crate::extent::{Extents, Tail};
use crate::file::{ExtentFile, FIRST_RECORD};
use crate::id::{PacketId, PacketKey};
use crate::index::{Change, Checkpoint, Index};
use crate::lease::Leases;
use crate::manifest::Manifest;
use crate::payload::Hands;
use crate::scan::{Found, Scanner, Step, read_record, verify_payload};

pub(super) struct Replay<'a> {
    pub(super) index: &'a Index,
    pub(super) leases: &'a Leases,
    pub(super) hands: &'a Hands,
    pub(super) progress: &'a mut dyn FnMut(&RecoverProgress),
    pub(super) state: RecoverProgress,
    pub(super) report: Recovery,
    pub(super) suspects: BTreeMap<PacketId, PacketKey>,
    pub(super) tail: Tail,
    /// The index has all that happened before; only what lies behind the checkpoint is replayed.
    pub(super) follows: bool,
}

/// A record as the order of all events sees it; a copy comes behind its original.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    sequence: u64,
    copy: bool,
    extent: u64,
    offset: u64,
    length: u64,
}

impl Entry {
    fn of(found: &Found) -> Self {
        Self {
            sequence: found.sequence,
            copy: found.copy,
            extent: found.location.extent,
            offset: found.location.offset,
            length: found.next.saturating_sub(found.location.offset),
        }
    }
}

impl Replay<'_> {
    pub(super) fn run(&mut self, extents: &Extents, from: Option<&Checkpoint>) -> Result<()> {
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
        // From the beginning on, what lies where says nothing of the order: compactions have copied some of it.
        let mut order = from.is_none().then(Vec::new);
        for (file, start) in &starts {
            let last = file.number().saturating_add(1) == self.tail.next_extent;
            let end = self.extent(file, *start, last, &mut order)?;
            if last {
                self.tail.active = Some((Arc::clone(file), end));
            }
        }
        self.in_order(extents, order.unwrap_or_default())?;
        // What was cut or skipped is done too.
        self.state.bytes_done = self.state.bytes_total;
        (self.progress)(&self.state);
        self.report.records = self.state.records;
        self.report.damaged = self.suspects.keys().copied().collect();
        Ok(())
    }

    /// Replays one extent and returns the end of its last intact record.
    ///
    /// With an `order`, records are only noted there.
    fn extent(
        &mut self,
        file: &ExtentFile,
        start: u64,
        last: bool,
        order: &mut Option<Vec<Entry>>,
    ) -> Result<u64> {
        let mut scanner = Scanner::new(file, start)?;
        let mut end = start;
        // A packet whose payload does not match and that nothing follows was never acknowledged.
        let mut torn: Option<Found> = None;
        loop {
            match scanner.step()? {
                Step::Record(found) => {
                    self.give_up(torn.take().filter(|_| order.is_none()));
                    let at = std::mem::replace(&mut end, found.next);
                    if let Some(order) = order {
                        order.push(Entry::of(&found));
                        torn = Some(*found);
                        continue;
                    }
                    if !self.record(file, &found)? {
                        torn = Some(*found);
                    }
                    self.state.bytes_done += end.saturating_sub(at);
                    (self.progress)(&self.state);
                }
                Step::Gap { from, to } => {
                    tracing::error!(extent = %file.path().display(), from, to, "bytes of the extent are damaged");
                    self.give_up(torn.take().filter(|_| order.is_none()));
                    self.report.damaged_bytes += to - from;
                    end = to;
                }
                Step::Tail { .. } | Step::End => break,
            }
        }
        match (torn, order) {
            (Some(found), None) if last => end = found.location.offset,
            (found, None) => self.give_up(found),
            (Some(found), Some(order)) if last && !self.is_whole(file, &found)? => {
                end = found.location.offset;
                order.pop();
            }
            _ => {}
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

    /// Applies what was noted, in the order in which it happened. Of a record and its copy one is applied: the copy,
    /// for the original's bytes may have been given back.
    fn in_order(&mut self, extents: &Extents, mut order: Vec<Entry>) -> Result<()> {
        order.sort_unstable();
        let mut entries = order.into_iter().peekable();
        while let Some(entry) = entries.next() {
            if entries
                .peek()
                .is_some_and(|next| next.sequence == entry.sequence)
            {
                continue;
            }
            let Some(file) = extents.get(entry.extent) else {
                continue;
            };
            if let Ok(found) = read_record(&file, file.len()?, entry.offset)?
                && !self.record(&file, &found)?
            {
                self.give_up(Some(found));
            }
            self.state.bytes_done += entry.length;
            (self.progress)(&self.state);
        }
        Ok(())
    }

    /// Whether a record's payload is all there.
    fn is_whole(&self, file: &ExtentFile, found: &Found) -> Result<bool> {
        if found.manifest().is_none() {
            return Ok(true);
        }
        let map = verify_payload(file, &found.location, &found.payload_digest, self.hands)?;
        Ok(map.is_some())
    }

    fn give_up(&mut self, found: Option<Found>) {
        if let Some(manifest) = found.and_then(|found| found.manifest()) {
            self.suspects.insert(manifest.id, manifest.header.key);
        }
    }

    /// Whether a copy's packet is what the index knows by that id: it may have been deleted behind the copy.
    fn is_of_a_live_one(&self, copy: &Manifest) -> Result<bool> {
        if !self.follows {
            return Ok(true);
        }
        let known = self.index.manifest(&copy.id)?;
        Ok(known.is_some_and(|known| known.sequence == copy.sequence))
    }

    /// Applies a record; false where it is a packet whose payload does not match.
    fn record(&mut self, file: &ExtentFile, found: &Found) -> Result<bool> {
        self.state.records += 1;
        self.tail.next_sequence = self
            .tail
            .next_sequence
            .max(found.sequence.saturating_add(1));
        let change = if let Some(manifest) = found.manifest() {
            let place = &found.location;
            if verify_payload(file, place, &found.payload_digest, self.hands)?.is_none() {
                return Ok(false);
            }
            if found.copy && !self.is_of_a_live_one(&manifest)? {
                return Ok(true);
            }
            self.suspects.remove(&manifest.id);
            self.leases.set_verified(manifest.location);
            self.index.put(&manifest)?
        } else if found.copy && self.follows {
            // The index had it from its original.
            return Ok(true);
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
