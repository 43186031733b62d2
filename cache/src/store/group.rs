//! Group commit: what many writers put at once becomes durable by one sync.
//!
//! Owns the records that are written and wait for their sync, and who does it: the first of those who wait, for all
//! of them, while the next group gathers. Never decides what is put. Invariants: nothing is in the index before its
//! sync; groups become durable in the order in which they were written; whatever depends on a record that waits, or
//! ends packets, waits until none does (see [`Store::settled`]).

use std::collections::HashSet;
use std::sync::{Arc, MutexGuard, OnceLock, PoisonError};

use super::{Store, Writer};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::extent::{Pending, Placed, Written, record_len};
use crate::file::{ExtentFile, free_bytes};
use crate::id::PacketKey;
use crate::lease::locked;
use crate::packet::PacketHeader;

/// What became of a group, for all who wait for it.
pub(super) type Outcome = Arc<OnceLock<Result<()>>>;

/// What the records that wait will change.
#[derive(Debug, Default)]
pub(super) struct Claims {
    keys: HashSet<PacketKey>,
    /// Namespace and name of documents.
    names: HashSet<(String, String)>,
    bytes: u64,
}

impl Claims {
    fn concern(&self, header: &PacketHeader) -> bool {
        let name = (header.namespace.clone(), header.document.clone());
        self.keys.contains(&header.key) || self.names.contains(&name)
    }
}

/// Records of one extent that wait for their sync.
#[derive(Debug)]
pub(super) struct Group {
    file: Arc<ExtentFile>,
    /// Where its first record begins, and that one's sequence.
    start: (u64, u64),
    records: Vec<(Pending<'static>, Placed)>,
    claims: Claims,
    outcome: Outcome,
}

impl Group {
    fn new(file: Arc<ExtentFile>, start: (u64, u64)) -> Self {
        Self {
            file,
            start,
            records: Vec::new(),
            claims: Claims::default(),
            outcome: Outcome::default(),
        }
    }

    /// Offset and sequence behind the last record before it.
    pub(super) fn start(&self) -> (u64, u64) {
        self.start
    }

    fn add(&mut self, batch: Vec<Pending<'_>>, placed: Vec<Placed>) {
        for (pending, placed) in batch.into_iter().zip(placed) {
            self.claims.bytes += record_len(&pending);
            match &pending.event {
                Event::Packet { header, .. } => {
                    self.claims.keys.insert(header.key);
                }
                Event::Document {
                    namespace, name, ..
                } => {
                    let name = (namespace.clone(), name.clone());
                    self.claims.names.insert(name);
                }
                Event::Tombstone { .. } | Event::Pin { .. } => {}
            }
            self.records.push((pending.written(), placed));
        }
    }

    /// What is told first holds.
    fn tell(&self, result: Result<()>) {
        drop(self.outcome.set(result));
    }
}

impl Drop for Group {
    /// Whoever waits for a group that nobody brought to its end must not wait for ever.
    fn drop(&mut self) {
        if self.outcome.get().is_none() {
            let ended = std::io::ErrorKind::Interrupted.into();
            self.tell(Err(Error::io("sync", self.file.path())(ended)));
        }
    }
}

impl Store {
    /// Whether a put needs nothing but room: no record that waits concerns it, it ends no packet and evicts none.
    pub(super) fn may_join(
        &self,
        writer: &Writer,
        header: &PacketHeader,
        bytes: u64,
        bind: bool,
    ) -> Result<bool> {
        let group = writer.group.as_ref().map(|group| &group.claims);
        let mut waiting = 0;
        for claims in group.into_iter().chain(&writer.flushing) {
            waiting += claims.bytes;
            if claims.concern(header) {
                return Ok(false);
            }
        }
        // A group lies in one extent, and who waits for quiet must get it.
        if writer.settling > 0 || (waiting > 0 && !self.extents.fits(&writer.tail, bytes)) {
            return Ok(false);
        }
        let (namespace, name) = (&header.namespace, &header.document);
        let known = bind
            && (self.index.document(namespace, name)?.is_some()
                || !self.index.made_for(namespace, name)?.is_empty());
        if known || self.live(&header.key)?.is_some() {
            return Ok(false);
        }
        let needed = bytes.saturating_add(waiting);
        let spare = free_bytes(&self.directory)?.saturating_sub(needed);
        let crowded = locked(&self.usage).is_over(&self.limits, namespace, needed);
        Ok(!crowded && spare >= self.limits.free_floor)
    }

    /// Writes a batch into the group that gathers. It counts once [`Store::durable`] says so.
    pub(super) fn join(&self, writer: &mut Writer, batch: Vec<Pending<'_>>) -> Result<Outcome> {
        let sequence = writer.tail.next_sequence;
        let bytes = batch.iter().map(record_len).sum();
        let written = self.extents.write(&mut writer.tail, &batch);
        let Written {
            file,
            start,
            placed,
        } = written.map_err(|error| self.with_figures(error, bytes))?;
        let group = writer
            .group
            .get_or_insert_with(|| Group::new(file, (start, sequence)));
        group.add(batch, placed);
        Ok(Arc::clone(&group.outcome))
    }

    /// Returns when a group is durable and in the index, or failed.
    pub(super) fn durable(&self, outcome: &Outcome) -> Result<()> {
        let mut writer = locked(&self.writer);
        loop {
            match outcome.get() {
                Some(Ok(())) => return Ok(()),
                Some(Err(error)) => return Err(error.again()),
                None => writer = self.turn(writer),
            }
        }
    }

    /// The writer's lock with no record waiting: all that was written is in the index.
    pub(super) fn settled(&self) -> MutexGuard<'_, Writer> {
        let mut writer = locked(&self.writer);
        writer.settling += 1;
        while writer.group.is_some() || writer.flushing.is_some() {
            writer = self.turn(writer);
        }
        writer.settling -= 1;
        writer
    }

    /// Syncs the group that gathers, or waits for who syncs the one before.
    fn turn<'a>(&'a self, mut writer: MutexGuard<'a, Writer>) -> MutexGuard<'a, Writer> {
        if writer.flushing.is_some() {
            let woken = self.flushed.wait(writer);
            return woken.unwrap_or_else(PoisonError::into_inner);
        }
        let Some(mut group) = writer.group.take() else {
            return writer;
        };
        writer.flushing = Some(std::mem::take(&mut group.claims));
        drop(writer);
        // The one wait for the disk; meanwhile others write on behind what is synced.
        let synced = group.file.sync();
        let mut writer = locked(&self.writer);
        let claims = writer.flushing.take().unwrap_or_default();
        self.flushed.notify_all();
        let result = synced.map_err(|error| self.give_up(&mut writer, &group, error));
        let records = group
            .records
            .iter()
            .map(|(pending, placed)| (pending, placed));
        let result = result.and_then(|()| self.take_in(&mut writer, records, claims.bytes));
        group.tell(result);
        writer
    }

    /// A sync failed: nothing from the group's start on counts, so the group behind it fails as well.
    fn give_up(&self, writer: &mut Writer, group: &Group, error: Error) -> Error {
        let from = (group.file.as_ref(), group.start.0);
        self.extents.abandon(&mut writer.tail, from, &error);
        if let Some(next) = writer.group.take() {
            next.tell(Err(error.again()));
        }
        error
    }
}
