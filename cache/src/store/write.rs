//! Putting packets, binding documents, pinning.
//!
//! Owns the way of a put; evicting and deleting are in `remove`. Invariants: a batch of events is durable before the
//! index hears of it, and in the index before the call returns; a put that is refused changes nothing but, at most,
//! what was evicted for it.

use std::collections::BTreeSet;
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;

use super::{CHECKPOINT_BYTES, CHECKPOINT_RECORDS, Store, Writer, now_ms};
use crate::document::{Document, Edition, MAX_DOCUMENT_PACKETS};
use crate::error::{Error, Result};
use crate::event::{Event, Gone};
use crate::extent::{Origin, Payload, Pending, Placed, record_len};
use crate::file::free_bytes;
use crate::id::{KeyFields, PacketId, PacketKey, token_bytes};
use crate::lease::locked;
use crate::manifest::Manifest;
use crate::packet::{PacketHeader, check_document, check_namespace};
use crate::payload::payload_hasher;
use crate::record::{self, MAX_PAYLOAD, body_offset};

/// What a put came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Put {
    /// The packet's id.
    pub id: PacketId,
    /// False: a packet of this key was there already, and its id is the one above.
    pub created: bool,
}

impl Store {
    /// Stores a packet; durable when this returns. `body` is written piece by piece, as one.
    ///
    /// Where a packet of the same key is live already nothing is written for it. Where the header names a document,
    /// the document is bound to the packet, as [`Store::bind`] does with this one part.
    ///
    /// The header's key must be the one that its fields and `token_ids` derive to.
    pub fn put(&self, header: &PacketHeader, token_ids: &[u32], body: &[&[u8]]) -> Result<Put> {
        self.put_as(header, token_ids, body, !header.document.is_empty())
    }

    /// Like [`Store::put`], but binds nothing: for one part of a document, which is bound once all parts are there.
    /// Until then the packet is found by its key only; deleting or binding the document that its header names takes
    /// it along.
    pub fn stage(&self, header: &PacketHeader, token_ids: &[u32], body: &[&[u8]]) -> Result<Put> {
        self.put_as(header, token_ids, body, false)
    }

    fn put_as(
        &self,
        header: &PacketHeader,
        token_ids: &[u32],
        body: &[&[u8]],
        bind: bool,
    ) -> Result<Put> {
        check_put(header, token_ids, body)?;
        if let Some(manifest) = self.live(&header.key)? {
            let mut writer = bind.then(|| self.settled());
            match self.put_again(writer.as_deref_mut(), header, &manifest.id) {
                // It went just now: it is put anew.
                Err(Error::NotFound { .. }) => {}
                other => return other,
            }
        }
        let tokens = token_bytes(token_ids);
        let count = u32::try_from(token_ids.len())
            .map_err(|_| Error::invalid("token_ids", "must be fewer than 2^32"))?;
        let padding = vec![0; usize::try_from(body_offset(count)).unwrap_or(0) - tokens.len()];
        let mut pieces: Vec<&[u8]> = vec![&tokens, &padding];
        pieces.extend_from_slice(body);
        let mut hasher = payload_hasher();
        for piece in &pieces {
            hasher.update(piece);
        }
        let digest = *hasher.finalize().as_bytes();
        let length = pieces.iter().map(|piece| piece.len() as u64).sum();
        let id = PacketId::derive(&header.identity(), &digest);
        let packet = Pending {
            event: Event::Packet {
                id,
                header: Box::new(header.clone()),
                token_ids: count,
                body_len: length - body_offset(count),
            },
            payload: Payload {
                pieces: &pieces,
                length,
                digest,
            },
            origin: Origin::New,
        };
        let writer = locked(&self.writer);
        if self.may_join(&writer, header, record_len(&packet), bind)? {
            self.put_among_others(writer, packet, bind)?;
        } else {
            drop(writer);
            let mut writer = self.settled();
            // Another thread may have put it meanwhile.
            if let Some(manifest) = self.live(&header.key)? {
                return self.put_again(bind.then_some(&mut *writer), header, &manifest.id);
            }
            self.make_room(&mut writer, &header.namespace, &packet)?;
            let batch = self.with_binding(packet, bind)?;
            self.commit(&mut writer, &batch)?;
        }
        self.reclaim();
        Ok(Put { id, created: true })
    }

    /// Puts a packet that concerns no other; one sync serves all that are put so at a time.
    fn put_among_others(
        &self,
        mut writer: MutexGuard<'_, Writer>,
        packet: Pending<'_>,
        bind: bool,
    ) -> Result<()> {
        let batch = self.with_binding(packet, bind)?;
        let outcome = self.join(&mut writer, batch)?;
        drop(writer);
        self.durable(&outcome)
    }

    /// A packet and, where it is to stand for the document that its header names, the events that bind the two.
    fn with_binding<'a>(&self, packet: Pending<'a>, bind: bool) -> Result<Vec<Pending<'a>>> {
        let binding = match &packet.event {
            Event::Packet { id, header, .. } if bind => {
                self.binding(&header.namespace, &header.document, &header.source, &[*id])?
            }
            _ => Vec::new(),
        };
        let mut batch = vec![packet];
        batch.extend(binding);
        Ok(batch)
    }

    /// A packet of the same key is live: binds the document to it, with a writer's lock to do so.
    fn put_again(
        &self,
        writer: Option<&mut Writer>,
        header: &PacketHeader,
        id: &PacketId,
    ) -> Result<Put> {
        if let Some(writer) = writer {
            let (namespace, name) = (&header.namespace, &header.document);
            self.bind_as(writer, namespace, name, &header.source, &[*id])?;
        }
        self.touch(id);
        Ok(Put {
            id: *id,
            created: false,
        })
    }

    /// Says that these packets, in this order, are a document's whole text; durable when this returns. With the source
    /// that the document has already, they join its others (of other weights revisions, say). With another source they
    /// take their place, at one stroke, and those that no other document needs and nobody pinned are deleted; so are
    /// packets that were staged for the document and are not among its parts.
    pub fn bind(
        &self,
        namespace: &str,
        document: &str,
        source: &[u8; 32],
        parts: &[PacketId],
    ) -> Result<()> {
        check_namespace(namespace)?;
        check_document(document)?;
        if parts.is_empty() {
            return Err(Error::invalid("parts", "must not be empty"));
        }
        self.bind_as(&mut self.settled(), namespace, document, source, parts)
    }

    fn bind_as(
        &self,
        writer: &mut Writer,
        namespace: &str,
        document: &str,
        source: &[u8; 32],
        parts: &[PacketId],
    ) -> Result<()> {
        for id in parts {
            let manifest = self.index.manifest(id)?;
            let manifest = manifest.ok_or(Error::NotFound { id: *id })?;
            if manifest.header.namespace != namespace {
                return Err(Error::invalid("namespace", "must be the packet's own"));
            }
        }
        let batch = self.binding(namespace, document, source, parts)?;
        if !batch.is_empty() {
            self.commit(writer, &batch)?;
            self.reclaim();
        }
        Ok(())
    }

    /// Spares a packet from eviction; durable when this returns.
    pub fn pin(&self, id: &PacketId) -> Result<Manifest> {
        self.set_pin(id, true)
    }

    /// Takes a pin back; durable when this returns.
    pub fn unpin(&self, id: &PacketId) -> Result<Manifest> {
        self.set_pin(id, false)
    }

    fn set_pin(&self, id: &PacketId, pinned: bool) -> Result<Manifest> {
        let mut writer = self.settled();
        let found = self.live_id(id)?.ok_or(Error::NotFound { id: *id })?;
        if found.pinned != pinned {
            self.commit(
                &mut writer,
                &[Pending::event(Event::Pin { id: *id, pinned })],
            )?;
        }
        Ok(Manifest { pinned, ..found })
    }

    /// The events that bind a document to packets; none where it is bound to them already.
    fn binding(
        &self,
        namespace: &str,
        name: &str,
        source: &[u8; 32],
        parts: &[PacketId],
    ) -> Result<Vec<Pending<'static>>> {
        let old = self.index.document(namespace, name)?;
        let mut gone: BTreeSet<PacketId> = old.iter().flat_map(Document::ids).collect();
        let same_text = old.filter(|old| old.source == *source);
        let mut editions = same_text.map(|old| old.editions).unwrap_or_default();
        let edition = Edition::of(parts);
        if editions.contains(&edition) {
            return Ok(Vec::new());
        }
        editions.retain(|older| !older.is_within(&edition));
        editions.push(edition);
        let packets = |editions: &[Edition]| -> usize {
            editions.iter().map(|edition| edition.parts.len()).sum()
        };
        while packets(&editions) > MAX_DOCUMENT_PACKETS && editions.len() > 1 {
            drop(editions.remove(0));
        }
        if packets(&editions) > MAX_DOCUMENT_PACKETS {
            return Err(Error::invalid(
                "document",
                format!("must not have more than {MAX_DOCUMENT_PACKETS} packets"),
            ));
        }
        gone.extend(self.index.made_for(namespace, name)?);
        for id in editions.iter().flat_map(Edition::ids) {
            gone.remove(&id);
        }
        let orphans = self.orphans(namespace, name, gone.iter())?;
        let document = Event::Document {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            source: *source,
            editions,
        };
        let mut batch = vec![Pending::event(document)];
        for orphan in orphans.iter().filter(|orphan| !orphan.pinned) {
            batch.push(tombstone(orphan.id, orphan.header.key, Gone::Replaced));
        }
        Ok(batch)
    }

    /// Those packets of a document that no other document needs.
    pub(super) fn orphans<'a>(
        &self,
        namespace: &str,
        name: &str,
        ids: impl Iterator<Item = &'a PacketId>,
    ) -> Result<Vec<Manifest>> {
        let mut orphans = Vec::new();
        for id in ids {
            let is_this = |other: &Document| other.namespace == namespace && other.name == name;
            if self.index.documents_of(id)?.iter().all(is_this) {
                orphans.extend(self.index.manifest(id)?);
            }
        }
        Ok(orphans)
    }

    /// Refuses what the budget does not allow; evicts where that makes room.
    fn make_room(&self, writer: &mut Writer, namespace: &str, packet: &Pending<'_>) -> Result<()> {
        let needed = record_len(packet);
        let can_punch = self.can_punch.load(Ordering::Relaxed);
        let victims = locked(&self.usage).victims(
            &self.limits,
            (namespace, needed),
            can_punch,
            |id, location| Ok(self.leases.is_leased(location) || self.index.pinned(id)?),
        )?;
        // Before anything is evicted: a disk that others filled is not helped by emptying the cache.
        let (free, floor) = (free_bytes(&self.directory)?, self.limits.free_floor);
        if free.saturating_sub(needed) < floor {
            return Err(Error::DiskFloor {
                needed,
                free,
                floor,
            });
        }
        self.evict(writer, &victims)
    }

    /// Appends events, then applies them to the index. The writer's lock must be [settled](Store::settled).
    pub(super) fn commit(&self, writer: &mut Writer, batch: &[Pending<'_>]) -> Result<()> {
        let bytes = batch.iter().map(record_len).sum();
        let placed = self.extents.append(&mut writer.tail, batch);
        let placed = placed.map_err(|error| self.with_figures(error, bytes))?;
        self.take_in(writer, batch.iter().zip(&placed), bytes)
    }

    /// Applies durable events, which take so many bytes, to the index.
    pub(super) fn take_in<'a>(
        &self,
        writer: &mut Writer,
        records: impl Iterator<Item = (&'a Pending<'a>, &'a Placed)>,
        bytes: u64,
    ) -> Result<()> {
        locked(&self.usage).wrote(bytes);
        writer.bytes_since_checkpoint += bytes;
        for (pending, placed) in records {
            writer.records_since_checkpoint += 1;
            if let Err(error) = self.apply(pending, placed) {
                writer.index_is_behind = true;
                return Err(error);
            }
        }
        if writer.bytes_since_checkpoint >= CHECKPOINT_BYTES {
            self.checkpoint_if(writer, 1)
        } else {
            self.checkpoint_if(writer, CHECKPOINT_RECORDS)
        }
    }

    /// A full disk, with the figures.
    pub(super) fn with_figures(&self, error: Error, needed: u64) -> Error {
        match error {
            Error::Io { source, .. } if is_full(&source) => Error::DiskFull {
                needed,
                free: free_bytes(&self.directory).unwrap_or_default(),
            },
            other => other,
        }
    }

    fn apply(&self, pending: &Pending<'_>, placed: &Placed) -> Result<()> {
        let change = match &pending.event {
            Event::Packet {
                id,
                header,
                token_ids,
                body_len,
            } => {
                let manifest = Manifest {
                    id: *id,
                    header: (**header).clone(),
                    location: placed.location,
                    token_ids: *token_ids,
                    body_len: *body_len,
                    payload_digest: pending.payload.digest,
                    sequence: placed.sequence,
                    pinned: false,
                    last_used_at_ms: now_ms(),
                };
                self.index.put(&manifest)?
            }
            // The index has what a copy says, and what came after it too.
            _ if pending.origin != Origin::New => return Ok(()),
            event => self.index.apply(event)?,
        };
        let mut usage = locked(&self.usage);
        match (&change.removed, &change.added) {
            (Some(removed), None) => usage.remove(&removed.id),
            (Some(_), Some(added)) if usage.relocate(&added.id, added.location) => {
                self.leases.set_verified(added.location);
            }
            (_, Some(added)) => {
                usage.add(added);
                usage.touch(&added.id, added.last_used_at_ms);
            }
            (None, None) => {}
        }
        drop(usage);
        if let Some(removed) = change.removed {
            self.leases.bury(&removed);
        }
        Ok(())
    }
}

fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded
    )
}

/// The event of a packet's end.
pub(super) fn tombstone(id: PacketId, key: PacketKey, why: Gone) -> Pending<'static> {
    Pending::event(Event::Tombstone {
        id,
        key,
        why,
        at_ms: now_ms(),
    })
}

fn check_put(header: &PacketHeader, token_ids: &[u32], body: &[&[u8]]) -> Result<()> {
    header.check()?;
    let derived = PacketKey::derive(&KeyFields {
        revision: &header.revision,
        tokenizer: &header.tokenizer,
        adapter: &header.adapter,
        primer: &header.primer,
        token_ids,
        dtype: &header.dtype,
        rope: &header.rope,
        namespace: &header.namespace,
    });
    if derived != header.key {
        return Err(Error::invalid(
            "key",
            "must be derived from the header's fields and the token ids",
        ));
    }
    let length: u64 = body.iter().map(|piece| piece.len() as u64).sum();
    if length == 0 {
        return Err(Error::invalid("body", "must not be empty"));
    }
    if length.saturating_add(record::align(token_ids.len() as u64 * 4)) > MAX_PAYLOAD {
        return Err(Error::invalid(
            "body",
            format!("must be {MAX_PAYLOAD} bytes long at most"),
        ));
    }
    Ok(())
}
