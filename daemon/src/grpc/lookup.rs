//! What a look-up finds, and why it does not.
//!
//! Owns the words and causes of misses. Invariant: another namespace's packets are neither a hit nor a reason: whether
//! a tenant has a text can't be asked by another.

use addenda_cache::{Gone, Manifest, Miss, PacketKey};
use addenda_proto::addenda::v1::lookup_request::{Query, query::By};
use addenda_proto::addenda::v1::lookup_response::Hit;
use addenda_proto::addenda::v1::{MissCause, MissedDocument};

use crate::documents::{Documents, Missed};
use crate::engine::command::Origin;
use crate::error::{Error, Result};
use crate::grpc::packets::record;
use crate::grpc::{Serving, check};
use crate::limits;
use crate::packets::{Differs, Stale};

/// Packets of a text that are looked at for the reason of a miss.
const CANDIDATES: usize = 16;

/// One query of a lookup.
///
/// # Errors
/// A query out of its bounds, or the store's.
pub(crate) fn look_up(
    serving: &Serving,
    namespace: &str,
    query: Query,
    origin: Origin,
) -> Result<Hit> {
    let asked = match query.by {
        None => {
            return Err(Error::invalid(
                "queries",
                "has a query that asks for nothing",
            ));
        }
        Some(By::Key(text)) => Asked {
            keys: vec![check::digest("queries.key", &text)?],
            text: None,
            name: None,
        },
        Some(By::Text(text)) => {
            check::text("queries.text", &text, limits::DOCUMENT_BYTES)?;
            check::at_most_bytes("queries.name", &query.name, limits::NAME_BYTES)?;
            let documents = &serving.documents;
            let key = |ids: &Vec<u32>| documents.packets.key(namespace, ids, origin);
            Asked {
                keys: documents.parts(&text)?.iter().map(key).collect(),
                text: Some(text),
                name: (!query.name.is_empty()).then_some(query.name),
            }
        }
        Some(By::Document(name)) => return document(serving, namespace, &name, origin),
    };
    asked.find(serving, namespace, origin)
}

/// The keys that a query comes to.
struct Asked {
    keys: Vec<PacketKey>,
    text: Option<String>,
    name: Option<String>,
}

impl Asked {
    fn find(&self, serving: &Serving, namespace: &str, origin: Origin) -> Result<Hit> {
        let store = serving.documents.packets.store();
        let mut manifests = Vec::with_capacity(self.keys.len());
        for key in &self.keys {
            let found = store.lookup(key)?;
            match found.filter(|manifest| manifest.header.namespace == namespace) {
                Some(manifest) => manifests.push(manifest),
                None => return self.why(serving, namespace, key, origin),
            }
        }
        hit(serving, &manifests, origin)
    }

    /// Why there is no packet of this key: it is gone, or the text has packets of other keys, or its document has
    /// another text.
    fn why(
        &self,
        serving: &Serving,
        namespace: &str,
        key: &PacketKey,
        origin: Origin,
    ) -> Result<Hit> {
        let packets = &serving.documents.packets;
        let store = packets.store();
        if let Some(Miss::Gone(gone)) = store.why_missing(key)? {
            let (cause, reason) = of_gone(gone);
            return Ok(miss(cause, reason));
        }
        if let Some(text) = &self.text {
            let source = Documents::source(text).0;
            let others = store.of_source(namespace, &source, CANDIDATES)?;
            let stale = |manifest: &Manifest| packets.stale(manifest, origin);
            if let Some(stale) = others.iter().find_map(stale) {
                return Ok(of_stale(&stale));
            }
            if !others.is_empty() {
                return Ok(miss(MissCause::Split, "cut into other parts; put it again"));
            }
        }
        if let Some(name) = &self.name
            && store.document(namespace, name)?.is_some()
        {
            return Ok(miss(MissCause::Text, "the document has another text"));
        }
        Ok(miss(
            MissCause::NeverStored,
            "was never stored under the present weights, tokenizer and settings",
        ))
    }
}

/// The first packet of a document that serves now, all of it, or why it does not.
fn document(serving: &Serving, namespace: &str, name: &str, origin: Origin) -> Result<Hit> {
    check::text("queries.document", name, limits::NAME_BYTES)?;
    let store = serving.documents.packets.store();
    let mut best = None;
    let known = store.document(namespace, name)?;
    for edition in known.iter().flat_map(|document| &document.editions) {
        let Some(ids) = edition.whole() else {
            best.get_or_insert_with(|| {
                miss(
                    MissCause::Incomplete,
                    "some of its parts were deleted or evicted",
                )
            });
            continue;
        };
        let manifests: Option<Vec<_>> = ids
            .iter()
            .map(|id| store.get(id))
            .collect::<addenda_cache::Result<_>>()?;
        let Some(manifests) = manifests else { continue };
        let hit = hit(serving, &manifests, origin)?;
        if hit.packet.is_some() {
            return Ok(hit);
        }
        best = Some(hit);
    }
    let never = || miss(MissCause::NeverStored, "no document of this name was put");
    Ok(best.unwrap_or_else(never))
}

/// The first of a text's packets where all of them serve, or why one does not.
fn hit(serving: &Serving, manifests: &[Manifest], origin: Origin) -> Result<Hit> {
    let packets = &serving.documents.packets;
    let stale = |manifest: &Manifest| packets.stale(manifest, origin);
    if let Some(stale) = manifests.iter().find_map(stale) {
        return Ok(of_stale(&stale));
    }
    let first = manifests.first();
    let packet = first.map(|manifest| record(packets.store(), manifest));
    Ok(Hit {
        packet: packet.transpose()?,
        miss_reason: String::new(),
        miss_cause: MissCause::Unspecified.into(),
    })
}

fn miss(cause: MissCause, reason: &str) -> Hit {
    Hit {
        packet: None,
        miss_reason: reason.to_owned(),
        miss_cause: cause.into(),
    }
}

fn of_stale(stale: &Stale) -> Hit {
    miss(cause(stale.differs), &stale.reason)
}

fn cause(differs: Differs) -> MissCause {
    match differs {
        Differs::Revision => MissCause::Revision,
        Differs::Adapter => MissCause::Adapter,
        Differs::Codec => MissCause::Codec,
        Differs::Rope => MissCause::Rope,
        Differs::Primer => MissCause::Primer,
        Differs::Tokenizer => MissCause::Tokenizer,
    }
}

/// What differed, as a metric's label.
pub(crate) fn word(differs: Differs) -> &'static str {
    match differs {
        Differs::Revision => "revision",
        Differs::Adapter => "adapter",
        Differs::Codec => "codec",
        Differs::Rope => "rope",
        Differs::Primer => "primer",
        Differs::Tokenizer => "tokenizer",
    }
}

fn of_gone(gone: Gone) -> (MissCause, &'static str) {
    match gone {
        Gone::Deleted => (MissCause::Deleted, "was deleted"),
        Gone::Replaced => (
            MissCause::Replaced,
            "was replaced by another text of its document",
        ),
        Gone::Evicted => (MissCause::Evicted, "was evicted to make room"),
        Gone::Quarantined => (MissCause::Quarantined, "was found damaged and set aside"),
        _ => (MissCause::NeverStored, "is gone"),
    }
}

/// A document whose packets had to be computed, as the wire shows it.
pub(crate) fn missed(missed: &Missed) -> MissedDocument {
    MissedDocument {
        document: missed.document.clone(),
        cause: cause(missed.stale.differs).into(),
        reason: missed.stale.reason.clone(),
    }
}
