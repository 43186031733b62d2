//! Documents by name: from text to packets, and from names back to tokens or packets.
//!
//! Owns the decision whether the packets that are there serve or new ones must be computed. Computing
//! is the engine's, bytes are the store's. Invariants: a packet that was made under other weights is
//! never handed out; its tokens are, and they suffice to compute it anew. A document is handed out
//! whole, in the order of its text, or not at all; a changed text takes the place of the old one at
//! one stroke, when all of it is durable.

pub(crate) mod gone;
pub(crate) mod joint;
mod keep;

use std::sync::Arc;

use addenda_cache::{Document as Binding, Manifest, PacketId, Store};
use addenda_model::Tokenizer;
use tokio::sync::Semaphore;

use crate::digest::Digest;
use crate::engine::Engine;
use crate::engine::command::{Form, Origin, Ticket};
use crate::error::{Error, Result};
use crate::limits;
use crate::packets::{PacketSource, Packets, Stale};
use crate::prompt;
use crate::turns::{Turn, Turns};

/// Domain of the digest of a document's text.
const SOURCE_CONTEXT: &str = "addenda 2026-11 document source v1";

/// All documents of this daemon. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Documents {
    pub(crate) engine: Engine,
    pub(crate) packets: Packets,
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// Longest context of the model, tokens.
    context: usize,
    /// Most tokens of a packet, soft ones apart.
    pub(crate) part_tokens: usize,
    /// By namespace and name.
    names: Turns<(String, String)>,
    keys: Turns<addenda_cache::PacketKey>,
    builds: Arc<Semaphore>,
}

/// A document whose turn it is to be put: until it is, no other text of its name is, and it is not
/// deleted.
pub(crate) struct Named {
    namespace: String,
    name: String,
    source: Digest,
    text: String,
    turn: Turn,
}

/// A document as its packets are derived from it.
struct Document {
    namespace: String,
    name: String,
    source: [u8; 32],
    /// Token ids of each part, in order.
    parts: Vec<Arc<Vec<u32>>>,
    /// Whether the parts are the whole document, so that its name stands for them.
    whole: bool,
}

/// A document that is in the store.
pub(crate) struct Stored {
    /// Its packets in the order of its text, at least one; each with whether it was computed now.
    pub(crate) parts: Vec<(Manifest, bool)>,
}

impl Stored {
    /// Whether anything had to be computed.
    pub(crate) fn created(&self) -> bool {
        self.parts.iter().any(|(_, created)| *created)
    }

    /// Tokens that were computed, soft ones included.
    pub(crate) fn computed_tokens(&self) -> u64 {
        let computed = self.parts.iter().filter(|(_, created)| *created);
        computed
            .map(|(manifest, _)| u64::from(manifest.header.tokens))
            .sum()
    }
}

/// A part of a document that a request answers from.
pub(crate) struct Resolved {
    pub(crate) ids: Vec<u32>,
    /// Its packet of the form that was asked for, under the present weights.
    pub(crate) packet: Option<(PacketId, PacketSource)>,
    /// Whether that packet had to be computed now.
    pub(crate) rebuilt: bool,
    /// Why the document's packets had to be computed; with its first part only.
    pub(crate) missed: Option<Missed>,
}

/// A document whose packets did not serve.
pub(crate) struct Missed {
    /// As the request named it.
    pub(crate) document: String,
    pub(crate) stale: Stale,
}

/// Packets that are all of what a reference means, of one origin.
struct Edition {
    name: String,
    source: [u8; 32],
    whole: bool,
    manifests: Vec<Manifest>,
}

impl Documents {
    pub(crate) fn new(
        engine: Engine,
        packets: Packets,
        tokenizer: Arc<Tokenizer>,
        context: usize,
        packet_tokens: usize,
    ) -> Self {
        let most = prompt::longest_packet(context);
        Self {
            engine,
            packets,
            tokenizer,
            context,
            part_tokens: packet_tokens.min(most).max(1),
            names: Turns::default(),
            keys: Turns::default(),
            builds: Arc::new(Semaphore::new(limits::BUILDS)),
        }
    }

    /// The digest of a text, by which its packets are found whatever they were made under.
    pub(crate) fn source(text: &str) -> Digest {
        Digest(blake3::derive_key(SOURCE_CONTEXT, text.as_bytes()))
    }

    /// Waits for the turn of a document's name; an empty one is the digest of the text.
    pub(crate) async fn named(&self, namespace: &str, name: &str, text: String) -> Named {
        let source = Self::source(&text);
        let name = match name {
            "" => source.to_string(),
            name => name.to_owned(),
        };
        Named {
            turn: self.turn(namespace, &name).await,
            namespace: namespace.to_owned(),
            name,
            source,
            text,
        }
    }

    /// Waits until nobody puts a document of this name, and keeps others from it.
    pub(crate) async fn turn(&self, namespace: &str, name: &str) -> Turn {
        let key = (namespace.to_owned(), name.to_owned());
        self.names.take(key).await
    }

    /// Turns a text into packets of the present weights, or finds them.
    ///
    /// # Errors
    /// An empty document, a full store, or the engine's.
    pub(crate) async fn put(&self, ticket: &Ticket, named: Named) -> Result<Stored> {
        let this = self.clone();
        let text = named.text;
        let parts = blocking(move || this.parts(&text)).await?;
        let document = Document {
            namespace: named.namespace,
            name: named.name,
            source: named.source.0,
            parts: parts.into_iter().map(Arc::new).collect(),
            whole: true,
        };
        let stored = self.keep(ticket, document, Form::Wrapped).await;
        drop(named.turn);
        stored
    }

    /// Token ids of the parts that a text becomes packets of.
    ///
    /// # Errors
    /// An empty text, or the tokenizer's.
    pub(crate) fn parts(&self, text: &str) -> Result<Vec<Vec<u32>>> {
        prompt::document(text, &self.tokenizer, self.part_tokens)
    }

    /// What a request's document, named or given by a packet's id, is: its parts, in order.
    ///
    /// # Errors
    /// No such document, one of another tokenizer, or the engine's.
    pub(crate) async fn resolve(
        &self,
        ticket: &Ticket,
        namespace: &str,
        reference: &str,
        form: Option<Form>,
    ) -> Result<Vec<Resolved>> {
        let wanted = form.unwrap_or(Form::Wrapped);
        let origin = self.engine.state().under.origin(wanted);
        let (this, space) = (self.clone(), namespace.to_owned());
        let name = reference.to_owned();
        let (edition, ids) = blocking(move || this.known(&space, &name, origin)).await?;
        self.check_length(ids.iter().map(Vec::len).sum())?;
        if form.is_none() {
            let plain = |ids| Resolved {
                ids,
                packet: None,
                rebuilt: false,
                missed: None,
            };
            return Ok(ids.into_iter().map(plain).collect());
        }
        let stale = |manifest: &Manifest| self.packets.stale(manifest, origin);
        let stale = edition.manifests.iter().find_map(stale);
        let stored = if stale.is_some() {
            let document = Document {
                namespace: namespace.to_owned(),
                name: edition.name,
                source: edition.source,
                parts: ids.iter().cloned().map(Arc::new).collect(),
                whole: edition.whole,
            };
            self.keep(ticket, document, wanted).await?
        } else {
            let found = edition.manifests.into_iter();
            Stored {
                parts: found.map(|manifest| (manifest, false)).collect(),
            }
        };
        let packets = self.packets.clone();
        let document = reference.to_owned();
        let mut missed = stale.map(|stale| Missed { document, stale });
        blocking(move || {
            let parts = ids.into_iter().zip(stored.parts);
            let open = parts.map(|(ids, (manifest, rebuilt))| {
                Ok(Resolved {
                    ids,
                    packet: Some((manifest.id, packets.open(&manifest)?)),
                    rebuilt,
                    missed: missed.take(),
                })
            });
            open.collect()
        })
        .await
    }

    /// The best packets that are known for a reference, and the tokens of each.
    fn known(
        &self,
        namespace: &str,
        reference: &str,
        origin: Origin,
    ) -> Result<(Edition, Vec<Vec<u32>>)> {
        let store = self.packets.store();
        let mut editions = Vec::new();
        if let Ok(id) = reference.parse::<PacketId>() {
            let manifest = store.get(&id)?;
            let mine = manifest.filter(|manifest| manifest.header.namespace == namespace);
            if let Some(manifest) = mine {
                editions.push(of_packet(store, manifest)?);
            }
        }
        let mut hint = "put it first; `addenda packet list` shows those there are";
        if editions.is_empty()
            && let Some(binding) = store.document(namespace, reference)?
        {
            hint = "some of its parts were deleted or evicted; put it again";
            editions = of_document(store, &binding)?;
        }
        // Packets that serve as they are come first; then the newest.
        editions.sort_by_key(|edition| {
            let mut manifests = edition.manifests.iter();
            manifests.any(|manifest| self.packets.stale(manifest, origin).is_some())
        });
        let mut trouble = Error::NotFound {
            what: "document",
            id: reference.to_owned(),
            hint,
        };
        for edition in editions {
            let ids = |manifest: &Manifest| {
                self.packets.check(manifest)?;
                Ok(store.read(&manifest.id)?.token_ids())
            };
            let all: Result<Vec<_>> = edition.manifests.iter().map(ids).collect();
            match all {
                Ok(ids) => return Ok((edition, ids)),
                Err(error) => trouble = error,
            }
        }
        Err(trouble)
    }

    /// A document must leave room for a question and its answer.
    fn check_length(&self, tokens: usize) -> Result<()> {
        if tokens >= self.context {
            let context = self.context;
            return Err(addenda_model::Error::TooLong { tokens, context }.into());
        }
        Ok(())
    }
}

/// A packet by its id: its document, where it is all of it; else itself alone.
fn of_packet(store: &Store, manifest: Manifest) -> Result<Edition> {
    let header = &manifest.header;
    let binding = match header.document.as_str() {
        "" => None,
        name => store.document(&header.namespace, name)?,
    };
    let itself = [Some(manifest.id)];
    let is_all = |binding: &Binding| {
        let mut editions = binding.editions.iter();
        editions.any(|edition| edition.parts == itself)
    };
    let whole = binding.filter(is_all);
    Ok(Edition {
        name: header.document.clone(),
        source: whole.as_ref().map_or(header.source, |whole| whole.source),
        whole: whole.is_some(),
        manifests: vec![manifest],
    })
}

/// The editions of a document of which no part is missing, newest first.
fn of_document(store: &Store, binding: &Binding) -> Result<Vec<Edition>> {
    let mut editions = Vec::new();
    for edition in binding.editions.iter().rev() {
        let Some(ids) = edition.whole() else { continue };
        let manifests: Option<Vec<_>> = ids
            .iter()
            .map(|id| store.get(id))
            .collect::<addenda_cache::Result<_>>()?;
        editions.extend(manifests.map(|manifests| Edition {
            name: binding.name.clone(),
            source: binding.source,
            whole: true,
            manifests,
        }));
    }
    Ok(editions)
}

/// Runs what may block (disk, tokenizing, hashing) beside the threads that serve.
///
/// # Errors
/// The work's own; a panic in it fails this request alone.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let result = tokio::task::spawn_blocking(work).await;
    result.unwrap_or_else(|error| {
        Err(Error::Panicked {
            message: error.to_string(),
        })
    })
}
