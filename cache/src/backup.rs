//! A copy of all that lives, taken while the store serves.
//!
//! Owns what goes into the copy and its order. The copy is extents like any others, with nothing dead in them: a
//! store that is opened on them makes its index anew and verifies every packet. Invariants: what was bound, and to
//! what, is as of one moment; a packet's bytes are verified before they leave; a packet that goes meanwhile is left
//! out, for it was deleted by then.

use std::collections::BTreeSet;

use crate::document::Document;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::extent::sealed;
use crate::file::{ExtentFile, FIRST_RECORD, head};
use crate::id::PacketId;
use crate::record::align;
use crate::store::Store;

/// Size at which the copy's next extent begins.
const EXTENT_BYTES: u64 = 1 << 30;
/// Bytes handed out at once.
const PIECE: usize = 1 << 20;

/// A piece of a backup, in order.
#[derive(Debug, Clone, Copy)]
pub enum BackupPart<'a> {
    /// Another file begins; its path in the data directory.
    File(&'a str),
    /// The next bytes of that file; 1 MiB at most.
    Bytes(&'a [u8]),
}

/// What a backup holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BackupReport {
    /// Packets.
    pub packets: u64,
    /// Documents that are bound to packets.
    pub documents: u64,
    /// Bytes of extents.
    pub bytes: u64,
}

/// What lived at one moment.
struct Moment {
    ids: Vec<PacketId>,
    documents: Vec<Document>,
    pinned: BTreeSet<PacketId>,
}

impl Store {
    /// Hands out a copy of everything that lives; serving goes on. What `take` refuses ends it.
    ///
    /// # Errors
    /// A disk that can't be read, or whatever `take` says.
    pub fn backup<E: From<Error>>(
        &self,
        take: &mut dyn FnMut(BackupPart<'_>) -> std::result::Result<(), E>,
    ) -> std::result::Result<BackupReport, E> {
        let moment = self.moment()?;
        let mut writer = Writer {
            take,
            number: 0,
            key: [0; 32],
            offset: u64::MAX,
            sequence: 0,
            report: BackupReport::default(),
        };
        writer.roll()?;
        let mut copied = BTreeSet::new();
        for id in &moment.ids {
            if writer.packet(self, id)? {
                copied.insert(*id);
            }
        }
        for mut document in moment.documents {
            document
                .editions
                .retain_mut(|edition| edition.keep(|id| copied.contains(id)));
            if !document.editions.is_empty() {
                writer.report.documents += 1;
                writer.event(&Event::Document {
                    namespace: document.namespace,
                    name: document.name,
                    source: document.source,
                    editions: document.editions,
                })?;
            }
        }
        for id in moment.pinned.intersection(&copied) {
            writer.event(&Event::Pin {
                id: *id,
                pinned: true,
            })?;
        }
        Ok(writer.report)
    }

    fn moment(&self) -> Result<Moment> {
        self.at_rest(|index| {
            let (mut ids, mut pinned) = (Vec::new(), BTreeSet::new());
            for manifest in index.manifests() {
                let manifest = manifest?;
                ids.push((manifest.location, manifest.id));
                if manifest.pinned {
                    pinned.insert(manifest.id);
                }
            }
            // In the order in which they lie, so that a disk reads them in one go.
            ids.sort_unstable();
            Ok(Moment {
                ids: ids.into_iter().map(|(_, id)| id).collect(),
                documents: index.all_documents()?,
                pinned,
            })
        })
    }
}

/// The extents of a copy.
struct Writer<'a, E> {
    take: &'a mut dyn FnMut(BackupPart<'_>) -> std::result::Result<(), E>,
    number: u64,
    key: [u8; 32],
    offset: u64,
    sequence: u64,
    report: BackupReport,
}

impl<E: From<Error>> Writer<'_, E> {
    /// Copies a packet; false where it is gone or damaged.
    fn packet(&mut self, store: &Store, id: &PacketId) -> std::result::Result<bool, E> {
        let Some((manifest, _lease)) = store.lease(id)? else {
            return Ok(false);
        };
        let map = match store.verify_record(&manifest) {
            Ok(map) => map,
            Err(Error::Damaged { what, .. }) => {
                tracing::error!(%id, what, "a packet is damaged; it is quarantined and not in the backup");
                store.quarantine(*id, manifest.header.key)?;
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        };
        let event = Event::Packet {
            id: *id,
            header: Box::new(manifest.header.clone()),
            token_ids: manifest.token_ids,
            body_len: manifest.body_len,
        };
        self.record(&event, map.as_ref(), manifest.payload_digest)?;
        self.report.packets += 1;
        Ok(true)
    }

    fn event(&mut self, event: &Event) -> std::result::Result<(), E> {
        self.record(event, &[], [0; 32])
    }

    fn record(
        &mut self,
        event: &Event,
        payload: &[u8],
        digest: [u8; 32],
    ) -> std::result::Result<(), E> {
        if self.offset >= EXTENT_BYTES {
            self.roll()?;
        }
        self.sequence += 1;
        let length = payload.len() as u64;
        let place = (self.key, self.offset, self.sequence);
        let mut head = sealed(event, place, (length, digest));
        head.resize(usize::try_from(align(head.len() as u64)).unwrap_or(0), 0);
        self.bytes(&head)?;
        for piece in payload.chunks(PIECE) {
            self.bytes(piece)?;
        }
        let padding = usize::try_from(align(length) - length).unwrap_or(0);
        self.bytes(&vec![0; padding])
    }

    fn roll(&mut self) -> std::result::Result<(), E> {
        self.number += 1;
        let salt = rand::random();
        self.key = ExtentFile::key_of(&salt);
        self.offset = 0;
        let name = format!("extents/{}", ExtentFile::name(self.number));
        (self.take)(BackupPart::File(&name))?;
        self.bytes(&head(self.number, &salt))?;
        debug_assert_eq!(self.offset, FIRST_RECORD);
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> std::result::Result<(), E> {
        self.offset += bytes.len() as u64;
        self.report.bytes += bytes.len() as u64;
        (self.take)(BackupPart::Bytes(bytes))
    }
}
