//! Finding, listing and reading packets.
//!
//! Owns the way of a hit; never writes but to quarantine what is damaged. Invariant: a body leaves here only after
//! its record and payload were verified in this process.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use memmap2::Mmap;

use super::{Store, now_ms};
use crate::document::Document;
use crate::error::{Error, Result};
use crate::event::Gone;
use crate::file::ExtentFile;
use crate::id::{PacketId, PacketKey};
use crate::lease::{Body, Lease, locked};
use crate::manifest::Manifest;
use crate::packet::{check_document, check_namespace};
use crate::scan::{read_record, verify_payload};

/// Most entries of one page.
const MAX_PAGE: usize = 10_000;

/// Why a look-up found nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Miss {
    /// No packet ever had this key, or it is forgotten.
    NeverStored,
    /// There was one.
    Gone(Gone),
}

impl Store {
    /// The packet of this key. Counted as a hit or a miss; not a use.
    pub fn lookup(&self, key: &PacketKey) -> Result<Option<Manifest>> {
        let found = self.live(key)?;
        let counter = if found.is_some() {
            &self.hits
        } else {
            &self.misses
        };
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(found)
    }

    /// The packet of this id.
    pub fn get(&self, id: &PacketId) -> Result<Option<Manifest>> {
        self.live_id(id)
    }

    /// Up to `limit` packets of a namespace, in the order of ids, behind `after`.
    pub fn list(
        &self,
        namespace: &str,
        after: Option<&PacketId>,
        limit: usize,
    ) -> Result<Vec<Manifest>> {
        check_namespace(namespace)?;
        let mut manifests = self.index.list(namespace, after, limit.min(MAX_PAGE))?;
        let usage = locked(&self.usage);
        for manifest in &mut manifests {
            if let Some(used) = usage.used_at_ms(&manifest.id) {
                manifest.last_used_at_ms = used;
            }
        }
        Ok(manifests)
    }

    /// The document of this name; none where it was never bound or all its packets are gone.
    pub fn document(&self, namespace: &str, name: &str) -> Result<Option<Document>> {
        check_namespace(namespace)?;
        check_document(name)?;
        self.index.document(namespace, name)
    }

    /// Up to `limit` documents of a namespace, in the order of names, behind the name `after`.
    pub fn documents(
        &self,
        namespace: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Document>> {
        check_namespace(namespace)?;
        self.index.documents(namespace, after, limit.min(MAX_PAGE))
    }

    /// A packet's place in the document that it stands for: which part it is, from 0, and of how many. A packet that
    /// stands for none is the one part of itself.
    pub fn place(&self, id: &PacketId) -> Result<(u32, u32)> {
        Ok(self.index.place(id)?.unwrap_or((0, 1)))
    }

    /// The bytes of a packet, mapped into memory; counts as a use.
    ///
    /// The first read after a start verifies record and payload against their BLAKE3. Where they don't match the
    /// packet is quarantined: this returns [`Error::Damaged`], and its key is a miss from now on.
    pub fn read(&self, id: &PacketId) -> Result<Body> {
        let body = self.read_quietly(id)?;
        locked(&self.usage).touch(id, now_ms());
        Ok(body)
    }

    /// Notes a use of a packet without reading it; false where there is none.
    pub fn touch(&self, id: &PacketId) -> bool {
        locked(&self.usage).touch(id, now_ms())
    }

    /// Reads without counting as a use.
    pub(crate) fn read_quietly(&self, id: &PacketId) -> Result<Body> {
        let (manifest, lease) = self.lease(id)?.ok_or(Error::NotFound { id: *id })?;
        match self.map(&manifest, &lease) {
            Ok(body) => Ok(body),
            Err(error) => {
                if let Error::Damaged { what, .. } = &error {
                    tracing::error!(%id, what, "a packet is damaged; it is quarantined");
                    // Where the quarantine can't be written, the next read finds the damage again.
                    if let Err(second) = self.quarantine(*id, manifest.header.key) {
                        tracing::error!(%id, %second, "the quarantine could not be written");
                    }
                }
                Err(error)
            }
        }
    }

    fn map(&self, manifest: &Manifest, lease: &Arc<Lease>) -> Result<Body> {
        let map = lease.map(|| {
            let place = &manifest.location;
            let file = self.home(manifest)?;
            if !self.leases.is_verified(place) {
                let map = self.verify_record(manifest)?;
                self.mark_verified(manifest);
                return Ok(map);
            }
            Ok(Arc::new(file.map(place.payload, place.payload_len)?))
        })?;
        Ok(Body::new(map, Arc::clone(lease), manifest))
    }

    /// The extent that a packet lies in.
    fn home(&self, manifest: &Manifest) -> Result<Arc<ExtentFile>> {
        let home = self.extents.get(manifest.location.extent);
        home.ok_or(Error::Damaged {
            id: manifest.id,
            what: "its extent is missing",
        })
    }

    /// Keeps a packet from being reclaimed while it is looked at.
    pub(crate) fn lease(&self, id: &PacketId) -> Result<Option<(Manifest, Arc<Lease>)>> {
        self.leases.take(|| self.index.manifest(id))
    }

    /// Up to `limit` ids of live packets of all namespaces behind `after`, in order.
    pub(crate) fn page_of_all(
        &self,
        after: Option<&PacketId>,
        limit: usize,
    ) -> Result<Vec<PacketId>> {
        self.index.ids(after, limit)
    }

    /// All extents, each with the end of what was written to it.
    pub(crate) fn written(&self) -> Result<Vec<(Arc<ExtentFile>, u64)>> {
        // With the writer's lock, so that no half-written record is counted in.
        let writer = self.settled();
        let active = writer.tail.active.as_ref();
        let end_of = |file: &ExtentFile| {
            active
                .filter(|(current, _)| current.number() == file.number())
                .map_or_else(|| file.len(), |(_, end)| Ok(*end))
        };
        let files = self.extents.all().into_iter();
        files
            .map(|file| Ok((Arc::clone(&file), end_of(&file)?)))
            .collect()
    }

    /// Spares a packet the verification at its next read.
    pub(crate) fn mark_verified(&self, manifest: &Manifest) {
        self.leases.set_verified(manifest.location);
    }

    /// Compares a packet on disk with its manifest and its digests; gives the map of its payload.
    pub(crate) fn verify_record(&self, manifest: &Manifest) -> Result<Arc<Mmap>> {
        let place = &manifest.location;
        let damaged = |what| Error::Damaged {
            id: manifest.id,
            what,
        };
        let file = self.home(manifest)?;
        let found = read_record(&file, file.len()?, place.offset)?.map_err(damaged)?;
        let stored = found
            .manifest()
            .ok_or(damaged("another record is in its place"))?;
        let expected = Manifest {
            pinned: false,
            last_used_at_ms: 0,
            ..manifest.clone()
        };
        if stored != expected {
            return Err(damaged("the index and the record differ"));
        }
        verify_payload(&file, place, &stored.payload_digest, &self.hands)?
            .ok_or(damaged("its bytes do not match their digest"))
    }

    /// Why this key is a miss; none where it is a hit.
    pub fn why_missing(&self, key: &PacketKey) -> Result<Option<Miss>> {
        if self.live(key)?.is_some() {
            return Ok(None);
        }
        Ok(Some(
            self.index.grave(key)?.map_or(Miss::NeverStored, Miss::Gone),
        ))
    }

    /// Up to `limit` packets that were made of a text, whatever else they were derived from.
    pub fn of_source(
        &self,
        namespace: &str,
        source: &[u8; 32],
        limit: usize,
    ) -> Result<Vec<Manifest>> {
        check_namespace(namespace)?;
        let ids = self.index.of_source(namespace, source, limit)?;
        let manifests: Result<Vec<_>> = ids.iter().map(|id| self.live_id(id)).collect();
        Ok(manifests?.into_iter().flatten().collect())
    }

    /// The live packet of a key.
    pub(super) fn live(&self, key: &PacketKey) -> Result<Option<Manifest>> {
        let Some(id) = self.index.id_of(key)? else {
            return Ok(None);
        };
        // The key in the manifest is checked too: an index that leads astray is a miss, not a wrong answer.
        Ok(self
            .live_id(&id)?
            .filter(|manifest| manifest.header.key == *key))
    }

    pub(super) fn live_id(&self, id: &PacketId) -> Result<Option<Manifest>> {
        let Some(mut manifest) = self.index.manifest(id)? else {
            return Ok(None);
        };
        if let Some(used) = locked(&self.usage).used_at_ms(id) {
            manifest.last_used_at_ms = used;
        }
        Ok(Some(manifest))
    }
}
