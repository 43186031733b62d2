//! Reading records back from an extent, damaged ones included.
//!
//! Owns finding the next intact record and telling a torn tail (nothing intact follows) from a damaged middle
//! (something does). Never changes a file. Invariant: what is returned as a record has its frame and meta verified;
//! its payload is verified by [`verify_payload`] only.

use std::sync::Arc;

use memmap2::Mmap;

use crate::error::{Error, Result};
use crate::event::Event;
use crate::file::ExtentFile;
use crate::id::PacketId;
use crate::manifest::{Location, Manifest};
use crate::payload::{self, Hands};
use crate::record::{self, ALIGN, COPY_VERSION, FRAME, Frame, align};

/// Read at once where a record begins; nearly all frames and metas fit.
const FIRST_READ: usize = 4096;
/// Read at once when a lost frame is sought: little enough to stay in the CPU cache.
const CHUNK: usize = 1 << 17;

/// An intact frame and what it says.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) event: Event,
    pub(crate) sequence: u64,
    /// Whether it was copied here by a compaction.
    pub(crate) copy: bool,
    pub(crate) location: Location,
    pub(crate) payload_digest: [u8; 32],
    /// Offset of the next record.
    pub(crate) next: u64,
}

impl Found {
    /// The manifest of the packet that this record puts, if it puts one.
    pub(crate) fn manifest(&self) -> Option<Manifest> {
        let Event::Packet {
            id,
            header,
            token_ids,
            body_len,
        } = &self.event
        else {
            return None;
        };
        Some(Manifest {
            id: *id,
            header: (**header).clone(),
            location: self.location,
            token_ids: *token_ids,
            body_len: *body_len,
            payload_digest: self.payload_digest,
            sequence: self.sequence,
            pinned: false,
            last_used_at_ms: 0,
        })
    }
}

/// What lies at a place of an extent.
#[derive(Debug)]
pub(crate) enum Step {
    Record(Box<Found>),
    /// Bytes that are no record, with an intact record behind them.
    Gap {
        from: u64,
        to: u64,
    },
    /// Bytes that are no record, up to the end.
    Tail {
        from: u64,
    },
    End,
}

/// Walks an extent from a record's offset on.
#[derive(Debug)]
pub(crate) struct Scanner<'a> {
    file: &'a ExtentFile,
    length: u64,
    offset: u64,
}

impl<'a> Scanner<'a> {
    pub(crate) fn new(file: &'a ExtentFile, offset: u64) -> Result<Self> {
        Ok(Self::up_to(file, offset, file.len()?))
    }

    /// Walks no further than `end`.
    pub(crate) fn up_to(file: &'a ExtentFile, offset: u64, end: u64) -> Self {
        Self {
            file,
            length: end,
            offset,
        }
    }

    pub(crate) fn step(&mut self) -> Result<Step> {
        if self.offset >= self.length {
            return Ok(Step::End);
        }
        if let Ok(found) = read_record(self.file, self.length, self.offset)? {
            self.offset = found.next;
            return Ok(Step::Record(Box::new(found)));
        }
        let from = self.offset;
        match self.find_intact(from.saturating_add(ALIGN))? {
            Some(to) => {
                self.offset = to;
                Ok(Step::Gap { from, to })
            }
            None => {
                self.offset = self.length;
                Ok(Step::Tail { from })
            }
        }
    }

    /// The first intact record at or behind `from`, a multiple of 64.
    fn find_intact(&self, from: u64) -> Result<Option<u64>> {
        let mut buffer = vec![0; CHUNK];
        let mut at = from;
        while at < self.length {
            let length = usize::try_from(self.length - at)
                .unwrap_or(CHUNK)
                .min(CHUNK);
            let chunk = buffer.get_mut(..length).unwrap_or_default();
            self.file.read_at(chunk, at)?;
            for (slot, bytes) in (0u64..).zip(chunk.chunks(64)) {
                let offset = at.saturating_add(slot * ALIGN);
                if bytes.starts_with(record::MAGIC)
                    && read_record(self.file, self.length, offset)?.is_ok()
                {
                    return Ok(Some(offset));
                }
            }
            at = at.saturating_add(CHUNK as u64);
        }
        Ok(None)
    }
}

/// Why the bytes at a place are no record.
pub(crate) type NoRecord = &'static str;

/// Reads the record at `offset` of an extent that is `length` bytes long.
pub(crate) fn read_record(
    file: &ExtentFile,
    length: u64,
    offset: u64,
) -> Result<std::result::Result<Found, NoRecord>> {
    let available = length.saturating_sub(offset);
    let mut buffer = vec![
        0;
        usize::try_from(available)
            .unwrap_or(FIRST_READ)
            .min(FIRST_READ)
    ];
    file.read_at(&mut buffer, offset)?;
    let Some((head, _)) = buffer.split_first_chunk::<FRAME>() else {
        return Ok(Err("the frame is cut short"));
    };
    let head = *head;
    let Some(frame) = Frame::parse(&head) else {
        return Ok(Err("the frame is not one"));
    };
    if frame.record_len() > available {
        return Ok(Err("the record runs past the end of its extent"));
    }
    let payload_start = frame.payload_start();
    let Ok(lead) = usize::try_from(payload_start) else {
        return Ok(Err("the frame is not one"));
    };
    if lead > buffer.len() {
        buffer.resize(lead, 0);
        file.read_at(&mut buffer, offset)?;
    }
    let lead = buffer.get(FRAME..lead).unwrap_or_default();
    let (meta, padding) = lead
        .split_at_checked(frame.meta_len as usize)
        .unwrap_or_default();
    if !Frame::verify(file.key(), offset, &head, meta) {
        return Ok(Err("the frame's digest does not match"));
    }
    if frame.version > COPY_VERSION {
        return Err(Error::NewerFormat {
            path: file.path().to_path_buf(),
            found: u32::from(frame.version),
            known: u32::from(COPY_VERSION),
        });
    }
    if padding.iter().any(|&byte| byte != 0) {
        return Ok(Err("the padding is not zero"));
    }
    let Ok(event) = Event::decode(frame.version, frame.kind, frame.id, meta) else {
        return Ok(Err("the event does not decode"));
    };
    let location = Location {
        extent: file.number(),
        offset,
        payload: offset.saturating_add(payload_start),
        payload_len: frame.payload_len,
    };
    Ok(check_event(&event, &frame).map(|()| Found {
        event,
        sequence: frame.sequence,
        copy: frame.version == COPY_VERSION,
        location,
        payload_digest: frame.payload_digest,
        next: offset.saturating_add(frame.record_len()),
    }))
}

/// The lengths and the id that a packet's frame and meta each say must agree.
fn check_event(event: &Event, frame: &Frame) -> std::result::Result<(), NoRecord> {
    let Event::Packet {
        id,
        header,
        token_ids,
        body_len,
    } = event
    else {
        return if frame.payload_len == 0 {
            Ok(())
        } else {
            Err("the event has a payload")
        };
    };
    if record::body_offset(*token_ids).checked_add(*body_len) != Some(frame.payload_len) {
        return Err("the payload's length does not match");
    }
    if PacketId::derive(&header.identity(), &frame.payload_digest) != *id {
        return Err("the id does not match");
    }
    Ok(())
}

/// The map of a payload that, with the zeros behind it, is what was written; none where it is not.
pub(crate) fn verify_payload(
    file: &ExtentFile,
    location: &Location,
    expected: &[u8; 32],
    hands: &Hands,
) -> Result<Option<Arc<Mmap>>> {
    let end = location.payload.saturating_add(location.payload_len);
    if align(end) > file.len()? {
        return Ok(None);
    }
    let mut padding = [0; ALIGN as usize];
    let padding = padding
        .get_mut(..usize::try_from(align(end) - end).unwrap_or(0))
        .unwrap_or_default();
    file.read_at(padding, end)?;
    if padding.iter().any(|&byte| byte != 0) {
        return Ok(None);
    }
    payload::verified(file, location, expected, hands)
}

#[cfg(test)]
mod tests;
