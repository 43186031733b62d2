//! The scrub: a slow walk over all packets that finds what decays on disk before a request does.
//!
//! Owns how far it came, which it remembers over restarts. How fast and how often it walks is for others to say.
//! Invariant: within one lap each packet that stays is verified once, however often the walk was interrupted; one
//! that was put meanwhile may wait for the next lap.

use std::ops::ControlFlow;

use crate::canonical::{Decoder, Encoder, Malformed};
use crate::error::Result;
use crate::id::PacketId;
use crate::index::Index;
use crate::store::{Store, now_ms};
use crate::verify::DamagedPacket;

/// Packets taken from the index at once.
const PAGE: usize = 64;
const VERSION: u16 = 1;

/// Where the walk stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScrubState {
    /// The packet that was verified last; none between two laps.
    pub after: Option<PacketId>,
    /// When the last lap ended, ms since 1970-01-01T00:00:00Z; none before the first end.
    pub lap_ended_at_ms: Option<u64>,
}

/// What one stretch of the walk came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Packets verified, damaged ones included.
    pub packets: u64,
    /// Bytes of packets verified.
    pub bytes: u64,
    /// Packets that are quarantined now.
    pub damaged: Vec<DamagedPacket>,
    /// All packets were walked; the next stretch begins a lap.
    pub lap_ended: bool,
}

impl ScrubState {
    pub(crate) fn encode(self) -> Vec<u8> {
        let after = self.after.map(|id| *id.as_bytes()).unwrap_or_default();
        Encoder::new()
            .u16(VERSION)
            .bytes(&after)
            .u64(self.lap_ended_at_ms.unwrap_or_default())
            .finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> std::result::Result<Self, Malformed> {
        let mut decoder = Decoder::new(bytes);
        if decoder.u16("scrub version")? != VERSION {
            return Err(Malformed("scrub version"));
        }
        let after: [u8; 32] = decoder.array("place")?;
        let ended = decoder.u64("end of the last lap")?;
        decoder.finish()?;
        Ok(Self {
            after: (after != [0; 32]).then(|| PacketId::from_bytes(after)),
            lap_ended_at_ms: (ended > 0).then_some(ended),
        })
    }
}

impl Store {
    /// Where the scrub stands.
    ///
    /// # Errors
    /// The index's.
    pub fn scrub_state(&self) -> Result<ScrubState> {
        self.at_rest(Index::scrub)
    }

    /// Goes on with the walk until `bytes` of packets were verified, a lap has ended, or `go_on` breaks; one packet
    /// at least. Damaged packets are quarantined; serving goes on meanwhile.
    ///
    /// # Errors
    /// A disk that can't be read, or the index's; the next call goes on at the same place.
    pub fn scrub(
        &self,
        bytes: u64,
        go_on: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Scrubbed> {
        let mut state = self.scrub_state()?;
        let mut done = Scrubbed::default();
        'walk: loop {
            let page = self.page_of_all(state.after.as_ref(), PAGE)?;
            if page.is_empty() {
                done.lap_ended = true;
                state = ScrubState {
                    after: None,
                    lap_ended_at_ms: Some(now_ms()),
                };
                break;
            }
            for id in page {
                if let Some((checked, damaged)) = self.check(&id)? {
                    done.packets += 1;
                    done.bytes += checked;
                    done.damaged.extend(damaged);
                }
                state.after = Some(id);
                if done.bytes >= bytes || go_on().is_break() {
                    break 'walk;
                }
            }
        }
        self.at_rest(|index| index.set_scrub(state))?;
        Ok(done)
    }
}
