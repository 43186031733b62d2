//! Reading everything once to see whether it is still what was stored.
//!
//! Owns the walk and its report; comparing a record is the store's, quarantining too. Never repairs: what is damaged
//! becomes a miss and is computed anew by whoever needs it.

use std::ops::ControlFlow;

use crate::error::{Error, Result};
use crate::file::FIRST_RECORD;
use crate::id::PacketId;
use crate::scan::{Scanner, Step};
use crate::store::Store;

/// How far a verification is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Packets verified so far.
    pub packets: u64,
    /// Packets in all, as of the start.
    pub packets_total: u64,
    /// Bytes of packets verified so far.
    pub bytes: u64,
    /// Bytes of packets in all, as of the start.
    pub bytes_total: u64,
    /// Packets found damaged so far.
    pub damaged: u64,
}

/// A packet that was found damaged and is quarantined now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedPacket {
    /// Its id.
    pub id: PacketId,
    /// Whose it was.
    pub namespace: String,
    /// The document that it was first made for.
    pub document: String,
    /// What did not match.
    pub what: &'static str,
}

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Packets verified, damaged ones included.
    pub packets: u64,
    /// Bytes of packets verified.
    pub bytes: u64,
    /// Packets that are quarantined now.
    pub damaged: Vec<DamagedPacket>,
    /// Bytes in extents that are no record; what was there is lost or was never finished.
    pub damaged_bytes: u64,
    /// False: the caller stopped it.
    pub complete: bool,
}

/// Packets taken from the index at once.
const PAGE: usize = 256;

impl Store {
    /// Verifies every live packet and every record's frame. Damaged packets are quarantined. Serving goes on
    /// meanwhile; `progress` is called after each packet and may stop the walk.
    pub fn verify(
        &self,
        progress: &mut dyn FnMut(&VerifyProgress) -> ControlFlow<()>,
    ) -> Result<VerifyReport> {
        let stats = self.stats()?;
        let mut report = VerifyReport::default();
        let mut state = VerifyProgress {
            packets_total: stats.packets,
            bytes_total: stats.live_bytes,
            ..VerifyProgress::default()
        };
        let mut after = None;
        loop {
            let page = self.page_of_all(after.as_ref(), PAGE)?;
            let Some(last) = page.last() else { break };
            after = Some(*last);
            for id in page {
                if let Some((bytes, damaged)) = self.check(&id)? {
                    state.packets += 1;
                    state.bytes += bytes;
                    state.damaged += u64::from(damaged.is_some());
                    report.damaged.extend(damaged);
                }
                (report.packets, report.bytes) = (state.packets, state.bytes);
                if progress(&state).is_break() {
                    return Ok(report);
                }
            }
        }
        report.damaged_bytes = self.damaged_bytes()?;
        report.complete = true;
        Ok(report)
    }

    /// Verifies a packet and quarantines it where it is damaged; gives its bytes. None where it is gone.
    pub(crate) fn check(&self, id: &PacketId) -> Result<Option<(u64, Option<DamagedPacket>)>> {
        // Leased, so that it is not reclaimed under our eyes; gone meanwhile is fine.
        let Some((manifest, _lease)) = self.lease(id)? else {
            return Ok(None);
        };
        let bytes = manifest.bytes();
        match self.verify_record(&manifest) {
            Ok(_) => {
                self.mark_verified(&manifest);
                Ok(Some((bytes, None)))
            }
            Err(Error::Damaged { what, .. }) => {
                tracing::error!(%id, what, "a packet is damaged; it is quarantined");
                self.quarantine(*id, manifest.header.key)?;
                let damaged = DamagedPacket {
                    id: *id,
                    namespace: manifest.header.namespace,
                    document: manifest.header.document,
                    what,
                };
                Ok(Some((bytes, Some(damaged))))
            }
            Err(error) => Err(error),
        }
    }

    /// Bytes of extents, up to where the writer is, that are no record.
    fn damaged_bytes(&self) -> Result<u64> {
        let mut bytes = 0u64;
        for (file, end) in self.written()? {
            let mut scanner = Scanner::up_to(&file, FIRST_RECORD, end);
            loop {
                match scanner.step()? {
                    Step::Record(_) => {}
                    Step::Gap { from, to } => bytes += to - from,
                    Step::Tail { from } => bytes += end.saturating_sub(from),
                    Step::End => break,
                }
            }
        }
        Ok(bytes)
    }
}
