//! Which records of a store still count, for a compaction.
//!
//! Owns the walk over all frames and the rules. Never writes but to forget reasons of misses that are too old.
//! Invariant: an event that another event overrides only as long as it is there is kept until that one's extent goes
//! too, so that no fold of what is left differs from the present.

use std::collections::HashMap;

use super::super::{Store, now_ms};
use crate::canonical::Encoder;
use crate::error::Result;
use crate::event::Event;
use crate::file::FIRST_RECORD;
use crate::id::PacketId;
use crate::scan::{Found, Scanner, Step};

/// The reason of a miss is remembered for so long after its packet's last bytes went.
const GRAVE_MS: u64 = 30 * 24 * 3_600_000;

/// Which records of all extents are about the same thing.
#[derive(Debug, Default)]
pub(super) struct Census {
    /// Extents with a record of the packet, dead ones included.
    packets: HashMap<PacketId, Vec<u64>>,
    /// Of each document: sequence and extent of each of its bindings.
    documents: HashMap<[u8; 32], Vec<(u64, u64)>>,
    /// Of each packet: the sequence of the last pin or unpin.
    pins: HashMap<PacketId, u64>,
}

impl Store {
    pub(super) fn census(&self) -> Result<Census> {
        let mut census = Census::default();
        for (file, end) in self.written()? {
            let mut scanner = Scanner::up_to(&file, FIRST_RECORD, end);
            loop {
                match scanner.step()? {
                    Step::Record(found) => census.note(&found),
                    Step::Gap { .. } => {}
                    Step::Tail { .. } | Step::End => break,
                }
            }
        }
        Ok(census)
    }

    /// Whether an event without a payload still says something that nothing else says.
    pub(super) fn counts(&self, found: &Found, census: &Census) -> Result<bool> {
        let extent = found.location.extent;
        Ok(match &found.event {
            Event::Packet { .. } => true,
            Event::Tombstone { id, key, at_ms, .. } => {
                census.is_elsewhere(id, extent) || {
                    let old = at_ms.saturating_add(GRAVE_MS) < now_ms();
                    if old {
                        self.index.forget_grave(key, *at_ms)?;
                    }
                    !old && self.index.grave_at(key)? == Some(*at_ms)
                }
            }
            Event::Document {
                namespace, name, ..
            } => {
                let bindings = census.bindings(namespace, name);
                let last = bindings.iter().map(|(sequence, _)| *sequence).max();
                let earlier =
                    |(sequence, other): &(u64, u64)| *sequence < found.sequence && *other != extent;
                last == Some(found.sequence)
                    && (self.index.document(namespace, name)?.is_some()
                        || bindings.iter().any(earlier))
            }
            Event::Pin { id, .. } => {
                census.pins.get(id) == Some(&found.sequence) && self.index.manifest(id)?.is_some()
            }
        })
    }
}

impl Census {
    fn note(&mut self, found: &Found) {
        let extent = found.location.extent;
        match &found.event {
            Event::Packet { id, .. } => self.packets.entry(*id).or_default().push(extent),
            Event::Document {
                namespace, name, ..
            } => {
                let bindings = self.documents.entry(named(namespace, name)).or_default();
                bindings.push((found.sequence, extent));
            }
            Event::Pin { id, .. } => {
                let last = self.pins.entry(*id).or_default();
                *last = found.sequence.max(*last);
            }
            Event::Tombstone { .. } => {}
        }
    }

    /// Whether another extent has a record of this packet, which would come back to life without its tombstone.
    fn is_elsewhere(&self, id: &PacketId, extent: u64) -> bool {
        let extents = self.packets.get(id).map(Vec::as_slice).unwrap_or_default();
        extents.iter().any(|other| *other != extent)
    }

    fn bindings(&self, namespace: &str, name: &str) -> &[(u64, u64)] {
        let bindings = self.documents.get(&named(namespace, name));
        bindings.map(Vec::as_slice).unwrap_or_default()
    }

    /// An extent is gone, and with it what it held.
    pub(super) fn forget(&mut self, extent: u64) {
        for extents in self.packets.values_mut() {
            extents.retain(|other| *other != extent);
        }
        for bindings in self.documents.values_mut() {
            bindings.retain(|(_, other)| *other != extent);
        }
    }
}

fn named(namespace: &str, name: &str) -> [u8; 32] {
    let encoded = Encoder::new().text(namespace).text(name).finish();
    *blake3::hash(&encoded).as_bytes()
}
