//! Compaction: what still counts is copied out of extents of which little does, and they are removed.
//!
//! Owns which extents are worth it and which of their records still count. Readers go on meanwhile, and writers wait
//! for one batch at most. Invariants: a copy says that it is one and keeps its original's place in the order of all
//! events, so that their fold stays what it was; an extent goes only after its copies are durable, the index leads to
//! them durably, and nobody is about to map anything in it.

use std::ops::ControlFlow;
use std::sync::Arc;

use memmap2::Mmap;

use super::{Store, Writer};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::extent::{Origin, Payload, Pending};
use crate::file::{ExtentFile, FIRST_RECORD};
use crate::lease::{Lease, locked};
use crate::scan::{Found, Scanner, Step};

mod census;

use census::Census;

/// Copied at once, while writers wait.
const BATCH_BYTES: u64 = 4 << 20;
const BATCH_RECORDS: usize = 128;
/// Which extents are worth a compaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// Those of which an eighth is dead: as little disk as can be had.
    Thorough,
    /// Those of which half is dead, and 64 MiB at least: little copying for what it gives back.
    Cheap,
}

impl Effort {
    fn is_worth(self, dead: u64, taken: u64) -> bool {
        match self {
            Self::Thorough => dead.saturating_mul(8) >= taken,
            Self::Cheap => dead >= 64 << 20 && dead.saturating_mul(2) >= taken,
        }
    }
}

/// How far a compaction is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CompactProgress {
    /// Extents done with.
    pub extents: u64,
    /// Extents that are worth it, as of the start.
    pub extents_total: u64,
    /// Bytes of records walked so far.
    pub bytes: u64,
    /// Bytes of records to walk, as of the start.
    pub bytes_total: u64,
}

/// What a compaction came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CompactReport {
    /// Extents that were removed.
    pub removed: u64,
    /// Extents that wait for a reader; the next compaction removes them.
    pub waiting: u64,
    /// Packets that were copied.
    pub packets: u64,
    /// Bytes of records that were copied.
    pub copied_bytes: u64,
    /// Bytes on disk before.
    pub disk_bytes_before: u64,
    /// Bytes on disk now.
    pub disk_bytes: u64,
    /// False: the caller stopped it.
    pub complete: bool,
}

/// A record that is to be copied, with what keeps it from being reclaimed meanwhile.
struct Kept {
    found: Found,
    body: Option<(Arc<Mmap>, Arc<Lease>)>,
}

impl Store {
    /// Gives back the disk of records that do not count any more, holes or not. Serving goes on; `progress` is called
    /// after each batch and may stop it.
    ///
    /// # Errors
    /// A disk that fails or is full; then nothing is lost, and what was copied need not be copied again.
    pub fn compact(
        &self,
        effort: Effort,
        progress: &mut dyn FnMut(&CompactProgress) -> ControlFlow<()>,
    ) -> Result<CompactReport> {
        let _only = locked(&self.compacting);
        self.reclaim();
        let mut report = CompactReport {
            disk_bytes_before: self.extents.allocated()?,
            ..CompactReport::default()
        };
        let victims = self.worth_compacting(effort)?;
        let mut state = CompactProgress {
            extents_total: victims.len() as u64,
            ..CompactProgress::default()
        };
        for file in &victims {
            state.bytes_total += file.len()?.saturating_sub(FIRST_RECORD);
        }
        let mut census = if victims.is_empty() {
            Census::default()
        } else {
            self.census()?
        };
        for file in victims {
            if self
                .empty_out(&file, &census, &mut state, &mut report, progress)?
                .is_break()
            {
                return self.finish(report);
            }
            if self.remove_extent(&file)? {
                census.forget(file.number());
                report.removed += 1;
            } else {
                report.waiting += 1;
            }
            state.extents += 1;
        }
        report.complete = true;
        self.finish(report)
    }

    /// Whether a compaction of this effort would give anything back.
    ///
    /// # Errors
    /// The disk's.
    pub fn needs_compaction(&self, effort: Effort) -> Result<bool> {
        for file in self.extents.all() {
            if self.is_worth(&file, effort)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_worth(&self, file: &ExtentFile, effort: Effort) -> Result<bool> {
        let taken = file.allocated()?.saturating_sub(FIRST_RECORD);
        let live = locked(&self.usage).live_in(file.number());
        Ok(file.len()? > FIRST_RECORD && effort.is_worth(taken.saturating_sub(live), taken))
    }

    fn finish(&self, mut report: CompactReport) -> Result<CompactReport> {
        self.reclaim();
        report.disk_bytes = self.extents.allocated()?;
        locked(&self.usage).set_disk_bytes(report.disk_bytes);
        tracing::info!(
            removed = report.removed,
            copied_bytes = report.copied_bytes,
            before = report.disk_bytes_before,
            now = report.disk_bytes,
            "the store is compacted"
        );
        Ok(report)
    }

    /// Extents of which enough is dead, oldest first. The one that grows is closed where it is among them.
    fn worth_compacting(&self, effort: Effort) -> Result<Vec<Arc<ExtentFile>>> {
        let mut worth = Vec::new();
        let mut writer = self.settled();
        for file in self.extents.all() {
            if self.is_worth(&file, effort)? {
                worth.push(file);
            }
        }
        let active = writer.tail.active.as_ref().map(|(file, _)| file.number());
        if worth.iter().any(|file| Some(file.number()) == active) {
            self.extents.roll(&mut writer.tail)?;
        }
        Ok(worth)
    }

    /// Copies what counts of one extent to where the store grows.
    fn empty_out(
        &self,
        file: &Arc<ExtentFile>,
        census: &Census,
        state: &mut CompactProgress,
        report: &mut CompactReport,
        progress: &mut dyn FnMut(&CompactProgress) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let mut scanner = Scanner::new(file, FIRST_RECORD)?;
        let mut batch: Vec<Kept> = Vec::new();
        let mut bytes = 0;
        loop {
            let step = scanner.step()?;
            if let Step::Record(found) = step {
                state.bytes += found.next.saturating_sub(found.location.offset);
                if let Some(kept) = self.keep(*found, census)? {
                    bytes += kept.found.location.record_len();
                    batch.push(kept);
                }
            } else if let Step::Gap { .. } = step {
                // What the index still leads to in there is found below.
            } else {
                break;
            }
            if bytes >= BATCH_BYTES || batch.len() >= BATCH_RECORDS {
                self.copy(&mut batch, report)?;
                bytes = 0;
                if progress(state).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        self.copy(&mut batch, report)?;
        let lost = locked(&self.usage).packets_in(file.number());
        for id in lost {
            // Its record was not found where the index says that it is.
            if let Some(manifest) = self.index.manifest(&id)? {
                tracing::error!(%id, "a packet's record is damaged; it is quarantined");
                self.quarantine(id, manifest.header.key)?;
            }
        }
        Ok(progress(state))
    }

    /// Whether a record still counts; a packet's bytes come along.
    fn keep(&self, found: Found, census: &Census) -> Result<Option<Kept>> {
        if let Event::Packet { id, .. } = &found.event {
            let Some((manifest, lease)) = self.lease(id)? else {
                return Ok(None);
            };
            if manifest.location != found.location {
                return Ok(None);
            }
            return match self.verify_record(&manifest) {
                Ok(map) => Ok(Some(Kept {
                    found,
                    body: Some((map, lease)),
                })),
                Err(Error::Damaged { what, .. }) => {
                    tracing::error!(id = %manifest.id, what, "a packet is damaged; it is quarantined");
                    self.quarantine(manifest.id, manifest.header.key)?;
                    Ok(None)
                }
                Err(error) => Err(error),
            };
        }
        let counts = self.counts(&found, census)?;
        Ok(counts.then_some(Kept { found, body: None }))
    }

    /// Copies a batch, save those packets that went meanwhile.
    fn copy(&self, batch: &mut Vec<Kept>, report: &mut CompactReport) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let mut writer = self.settled();
        self.copy_with(&mut writer, batch, report)?;
        drop(writer);
        batch.clear();
        self.reclaim();
        Ok(())
    }

    fn copy_with(
        &self,
        writer: &mut Writer,
        batch: &[Kept],
        report: &mut CompactReport,
    ) -> Result<()> {
        let mut live = Vec::new();
        for kept in batch {
            let Some((map, _)) = &kept.body else {
                live.push((kept, None));
                continue;
            };
            let manifest = self.index.manifest(&kept.found.event.id())?;
            if manifest.is_some_and(|manifest| manifest.location == kept.found.location) {
                report.packets += 1;
                live.push((kept, Some([map.as_ref().as_ref()])));
            }
        }
        let pending: Vec<Pending<'_>> = live
            .iter()
            .map(|(kept, pieces)| Pending {
                event: kept.found.event.clone(),
                payload: pieces.as_ref().map_or(Payload::NONE, |pieces| Payload {
                    pieces,
                    length: kept.found.location.payload_len,
                    digest: kept.found.payload_digest,
                }),
                origin: Origin::Copy {
                    sequence: kept.found.sequence,
                },
            })
            .collect();
        if pending.is_empty() {
            return Ok(());
        }
        report.copied_bytes += pending.iter().map(crate::extent::record_len).sum::<u64>();
        self.commit(writer, &pending)
    }

    /// Removes an extent in which nothing counts any more; false where someone is about to read in it.
    fn remove_extent(&self, file: &Arc<ExtentFile>) -> Result<bool> {
        let mut writer = self.settled();
        if !locked(&self.usage).packets_in(file.number()).is_empty() {
            return Ok(false);
        }
        // From here on no start needs anything of this extent.
        self.checkpoint_if(&mut writer, 0)?;
        if writer.index_is_behind {
            return Ok(false);
        }
        self.index.flush()?;
        self.leases
            .retire(file.number(), || self.extents.remove(file.number()))
    }
}
