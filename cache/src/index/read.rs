//! What the index can be asked.
//!
//! Owns the look-ups and the ordered lists; never writes. Invariant: a value that does not decode is an error, never
//! a guess.

use std::ops::Bound;

use super::{Index, Place, key, made_for_key, namespace_key};
use crate::document::Document;
use crate::error::{Error, Result};
use crate::event::Gone;
use crate::id::{PacketId, PacketKey};
use crate::manifest::Manifest;

impl Index {
    /// The manifest of a live packet, with its pin and its last noted use.
    pub(crate) fn manifest(&self, id: &PacketId) -> Result<Option<Manifest>> {
        let Some(value) = self.db.get(key(b'm', id.as_bytes()))? else {
            return Ok(None);
        };
        let mut manifest =
            Manifest::decode(*id, &value).map_err(|_| Error::IndexValue { what: "a manifest" })?;
        manifest.pinned = self.pinned(id)?;
        if let Some(at) = self.db.get(key(b'u', id.as_bytes()))? {
            manifest.last_used_at_ms = milliseconds(&at)?;
        }
        Ok(Some(manifest))
    }

    /// The packet that a key leads to.
    pub(crate) fn id_of(&self, packet_key: &PacketKey) -> Result<Option<PacketId>> {
        let Some(value) = self.db.get(key(b'k', packet_key.as_bytes()))? else {
            return Ok(None);
        };
        id(&value).map(Some)
    }

    /// Why the packet of this key is gone.
    pub(crate) fn grave(&self, packet_key: &PacketKey) -> Result<Option<Gone>> {
        let Some(value) = self.db.get(key(b'g', packet_key.as_bytes()))? else {
            return Ok(None);
        };
        decode_grave(&value).map(Some)
    }

    /// When the packet of this key went, as its tombstone says.
    pub(crate) fn grave_at(&self, packet_key: &PacketKey) -> Result<Option<u64>> {
        let value = self.db.get(key(b'g', packet_key.as_bytes()))?;
        let at = |value: sled::IVec| milliseconds(value.get(2..).unwrap_or_default());
        value.map(at).transpose()
    }

    /// Number of graves of this kind.
    pub(crate) fn count_graves(&self, why: Gone) -> Result<u64> {
        self.db.scan_prefix(b"g").try_fold(0u64, |count, entry| {
            Ok(count + u64::from(decode_grave(&entry?.1)? == why))
        })
    }

    pub(crate) fn pinned(&self, id: &PacketId) -> Result<bool> {
        Ok(self.db.contains_key(key(b'p', id.as_bytes()))?)
    }

    /// Number of pinned packets.
    pub(crate) fn count_pinned(&self) -> Result<u64> {
        self.db.scan_prefix(b"p").try_fold(0, |count, entry| {
            entry?;
            Ok(count + 1)
        })
    }

    /// Every live packet, in the order of ids.
    pub(crate) fn manifests(&self) -> impl Iterator<Item = Result<Manifest>> + '_ {
        self.db.scan_prefix(b"m").keys().map(|entry| {
            let id = id(entry?.get(1..).unwrap_or_default())?;
            self.manifest(&id)?
                .ok_or(Error::IndexValue { what: "a manifest" })
        })
    }

    /// Up to `limit` ids of live packets behind `after`, in order.
    pub(crate) fn ids(&self, after: Option<&PacketId>, limit: usize) -> Result<Vec<PacketId>> {
        self.behind(b"m", after.map(|id| id.as_bytes().as_slice()))
            .take_while(|name| name.as_ref().map_or(true, |name| name.starts_with(b"m")))
            .take(limit)
            .map(|name| id(name?.get(1..).unwrap_or_default()))
            .collect()
    }

    /// Up to `limit` packets of a namespace behind `after`, in the order of ids.
    pub(crate) fn list(
        &self,
        namespace: &str,
        after: Option<&PacketId>,
        limit: usize,
    ) -> Result<Vec<Manifest>> {
        let prefix = namespace_key(b'n', namespace, &[]);
        let mut found = Vec::new();
        for entry in self.behind(&prefix, after.map(|id| id.as_bytes().as_slice())) {
            let name = entry?;
            let Some(rest) = name.strip_prefix(prefix.as_slice()) else {
                break;
            };
            if found.len() >= limit {
                break;
            }
            // A packet that goes while it is listed is left out.
            found.extend(self.manifest(&id(rest)?)?);
        }
        Ok(found)
    }

    /// The document of this name.
    pub(crate) fn document(&self, namespace: &str, name: &str) -> Result<Option<Document>> {
        let Some(value) = self
            .db
            .get(namespace_key(b'd', namespace, name.as_bytes()))?
        else {
            return Ok(None);
        };
        decode_document(namespace, name, &value).map(Some)
    }

    /// Up to `limit` documents of a namespace behind the name `after`, in the order of names.
    pub(crate) fn documents(
        &self,
        namespace: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Document>> {
        let prefix = namespace_key(b'd', namespace, &[]);
        let mut found = Vec::new();
        for entry in self.behind(&prefix, after.map(str::as_bytes)) {
            let entry = entry?;
            let Some(name) = entry.strip_prefix(prefix.as_slice()) else {
                break;
            };
            if found.len() >= limit {
                break;
            }
            found.extend(self.document(namespace, text(name)?)?);
        }
        Ok(found)
    }

    /// Every document of every namespace.
    pub(crate) fn all_documents(&self) -> Result<Vec<Document>> {
        let mut found = Vec::new();
        for entry in self.db.scan_prefix(b"d") {
            let (name, value) = entry?;
            let wrong = Error::IndexValue { what: "a name" };
            let Some((length, rest)) = name.get(1..).and_then(<[u8]>::split_first) else {
                return Err(wrong);
            };
            let Some((namespace, name)) = rest.split_at_checked(usize::from(*length)) else {
                return Err(wrong);
            };
            found.push(decode_document(text(namespace)?, text(name)?, &value)?);
        }
        Ok(found)
    }

    /// The documents that a packet stands for.
    pub(crate) fn documents_of(&self, packet: &PacketId) -> Result<Vec<Document>> {
        let prefix = key(b'r', packet.as_bytes());
        let mut found = Vec::new();
        for entry in self.db.scan_prefix(&prefix).keys() {
            let entry = entry?;
            let rest = entry.strip_prefix(prefix.as_slice()).unwrap_or_default();
            let (length, rest) = rest.split_first().ok_or(Error::IndexValue {
                what: "a reference",
            })?;
            let (namespace, name) =
                rest.split_at_checked(usize::from(*length))
                    .ok_or(Error::IndexValue {
                        what: "a reference",
                    })?;
            found.extend(self.document(text(namespace)?, text(name)?)?);
        }
        Ok(found)
    }

    /// A packet's place in the document that it stands for, or in the first of them; none where it stands for none.
    pub(crate) fn place(&self, packet: &PacketId) -> Result<Option<Place>> {
        let first = self.db.scan_prefix(key(b'r', packet.as_bytes())).next();
        let Some(entry) = first else { return Ok(None) };
        decode_place(&entry?.1).map(Some)
    }

    /// The packets that were made for a document, bound to it or not.
    pub(crate) fn made_for(&self, namespace: &str, name: &str) -> Result<Vec<PacketId>> {
        let prefix = made_for_key(namespace, name);
        let entries = self.db.scan_prefix(&prefix).keys();
        entries
            .map(|entry| id(entry?.get(prefix.len()..).unwrap_or_default()))
            .collect()
    }

    /// Up to `limit` packets that were made of a text.
    pub(crate) fn of_source(
        &self,
        namespace: &str,
        source: &[u8; 32],
        limit: usize,
    ) -> Result<Vec<PacketId>> {
        let prefix = namespace_key(b's', namespace, source);
        let entries = self.db.scan_prefix(&prefix).keys().take(limit);
        entries
            .map(|entry| id(entry?.get(prefix.len()..).unwrap_or_default()))
            .collect()
    }

    /// Keys from `prefix` + `after` on, that one not included.
    fn behind(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
    ) -> impl Iterator<Item = sled::Result<sled::IVec>> + use<> {
        let start = match after {
            Some(after) => Bound::Excluded([prefix, after].concat()),
            None => Bound::Included(prefix.to_vec()),
        };
        self.db.range((start, Bound::<Vec<u8>>::Unbounded)).keys()
    }
}

fn id(bytes: &[u8]) -> Result<PacketId> {
    let bytes = bytes
        .try_into()
        .map_err(|_| Error::IndexValue { what: "an id" })?;
    Ok(PacketId::from_bytes(bytes))
}

fn text(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| Error::IndexValue { what: "a name" })
}

fn milliseconds(bytes: &[u8]) -> Result<u64> {
    let bytes = bytes
        .try_into()
        .map_err(|_| Error::IndexValue { what: "a time" })?;
    Ok(u64::from_le_bytes(bytes))
}

fn decode_document(namespace: &str, name: &str, value: &[u8]) -> Result<Document> {
    Document::decode(namespace, name, value).map_err(|_| Error::IndexValue { what: "a document" })
}

fn decode_place(value: &[u8]) -> Result<Place> {
    let (numbers, rest) = value.as_chunks::<4>();
    match (numbers, rest) {
        ([part, parts], []) => Ok((u32::from_le_bytes(*part), u32::from_le_bytes(*parts))),
        _ => Err(Error::IndexValue {
            what: "a part's place",
        }),
    }
}

fn decode_grave(value: &[u8]) -> Result<Gone> {
    value
        .first_chunk::<2>()
        .and_then(|code| Gone::from_code(u16::from_le_bytes(*code)))
        .ok_or(Error::IndexValue {
            what: "the reason of a miss",
        })
}
