//! Documents by name: from text to packets, and from names back to tokens or packets.
//!
//! Owns the decision whether a packet that is there serves or a new one must be computed. Computing
//! is the engine's, bytes are the store's. Invariant: a packet that was made under other weights is
//! never handed out; its tokens are, and they suffice to compute it anew.

pub(crate) mod joint;

use std::sync::Arc;

use addenda_cache::{Manifest, PacketId};
use addenda_model::Tokenizer;

use crate::digest::Digest;
use crate::engine::Engine;
use crate::engine::command::{Build, Command, Form, Origin, Ticket};
use crate::error::{Error, Result};
use crate::packets::{Keep, PacketSource, Packets};
use crate::prompt;

/// Domain of the digest of a document's text.
const SOURCE_CONTEXT: &str = "addenda 2026-11 document source v1";

/// All documents of this daemon. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Documents {
    pub(crate) engine: Engine,
    pub(crate) packets: Packets,
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// Longest context of the model, tokens.
    pub(crate) context: usize,
}

/// A document that is in the store.
pub(crate) struct Stored {
    pub(crate) manifest: Manifest,
    /// False when it was there already.
    pub(crate) created: bool,
}

/// A document that a request answers from.
pub(crate) struct Resolved {
    pub(crate) ids: Vec<u32>,
    /// Its packet of the form that was asked for, under the present weights.
    pub(crate) packet: Option<(PacketId, PacketSource)>,
    /// Whether that packet had to be computed now.
    pub(crate) rebuilt: bool,
}

impl Documents {
    /// Turns a text into a packet of the present weights, or finds it. An empty name is the
    /// digest of the text.
    ///
    /// # Errors
    /// An empty or too long document, a full store, or the engine's.
    pub(crate) async fn put(
        &self,
        ticket: &Ticket,
        namespace: &str,
        name: &str,
        text: String,
    ) -> Result<Stored> {
        let source = Digest(blake3::derive_key(SOURCE_CONTEXT, text.as_bytes()));
        let name = if name.is_empty() {
            source.to_string()
        } else {
            name.to_owned()
        };
        let tokenizer = Arc::clone(&self.tokenizer);
        let ids = blocking(move || prompt::document(&text, &tokenizer)).await?;
        self.check_length(ids.len())?;
        let document = Document {
            namespace: namespace.to_owned(),
            name,
            source: source.0,
            ids: Arc::new(ids),
        };
        if let Some(manifest) = self.find(&document, Form::Wrapped).await? {
            return Ok(Stored {
                manifest,
                created: false,
            });
        }
        self.build(ticket, document, Form::Wrapped).await
    }

    /// What a request's document, named or given by its packet's id, is.
    ///
    /// # Errors
    /// No such document, one of another tokenizer, or the engine's.
    pub(crate) async fn resolve(
        &self,
        ticket: &Ticket,
        namespace: &str,
        reference: &str,
        form: Option<Form>,
    ) -> Result<Resolved> {
        let wanted = form.unwrap_or(Form::Wrapped);
        let origin = self.engine.state().under.origin(wanted);
        let (this, space) = (self.clone(), namespace.to_owned());
        let name = reference.to_owned();
        let (manifest, ids) = blocking(move || this.known(&space, &name, origin)).await?;
        if form.is_none() {
            return Ok(Resolved {
                ids,
                packet: None,
                rebuilt: false,
            });
        }
        self.check_length(ids.len())?;
        let document = Document {
            namespace: namespace.to_owned(),
            name: manifest.header.document.clone(),
            source: manifest.header.source,
            ids: Arc::new(ids),
        };
        let fresh = self.packets.stale(&manifest, origin).is_none();
        let found = if fresh {
            Some(manifest)
        } else {
            self.find(&document, wanted).await?
        };
        let ids = Arc::clone(&document.ids);
        let (manifest, rebuilt) = match found {
            Some(manifest) => (manifest, false),
            None => {
                let stored = self.build(ticket, document, wanted).await?;
                (stored.manifest, stored.created)
            }
        };
        let packets = self.packets.clone();
        let id = manifest.id;
        let packet = blocking(move || packets.open(&manifest)).await?;
        let packet = Some((id, packet));
        Ok(Resolved {
            ids: Arc::unwrap_or_clone(ids),
            packet,
            rebuilt,
        })
    }

    /// The packet of these tokens and this form under the present weights, if there is one; the
    /// document's name stands for it from now on.
    async fn find(&self, document: &Document, form: Form) -> Result<Option<Manifest>> {
        let origin = self.engine.state().under.origin(form);
        let (packets, document) = (self.packets.clone(), document.clone());
        blocking(move || {
            let key = packets.key(&document.namespace, &document.ids, origin);
            let Some(manifest) = packets.store().lookup(&key)? else {
                return Ok(None);
            };
            packets.store().bind(
                &document.namespace,
                &document.name,
                &document.source,
                &manifest.id,
            )?;
            Ok(Some(manifest))
        })
        .await
    }

    /// Computes and stores a packet.
    async fn build(&self, ticket: &Ticket, document: Document, form: Form) -> Result<Stored> {
        let ids = document.ids.as_ref().clone();
        let codec = self.packets.codec();
        let built = self
            .engine
            .ask(ticket, |reply| {
                Command::Build(Box::new(Build {
                    ids,
                    form,
                    codec,
                    reply,
                }))
            })
            .await?;
        let packets = self.packets.clone();
        blocking(move || {
            let keep = Keep {
                namespace: &document.namespace,
                document: &document.name,
                source: document.source,
                ids: &document.ids,
            };
            let put = packets.keep(&keep, &built)?;
            // Another request may have deleted it meanwhile; then that was the last word.
            let manifest = packets.store().get(&put.id)?;
            let manifest = manifest.ok_or(addenda_cache::Error::NotFound { id: put.id })?;
            Ok(Stored {
                manifest,
                created: put.created,
            })
        })
        .await
    }

    /// The best packet that is known for a reference, and its tokens.
    fn known(
        &self,
        namespace: &str,
        reference: &str,
        origin: Origin,
    ) -> Result<(Manifest, Vec<u32>)> {
        let store = self.packets.store();
        let mut manifests = Vec::new();
        if let Ok(id) = reference.parse::<PacketId>() {
            let manifest = store.get(&id)?;
            manifests.extend(manifest.filter(|manifest| manifest.header.namespace == namespace));
        }
        if manifests.is_empty()
            && let Some(document) = store.document(namespace, reference)?
        {
            for id in &document.ids {
                manifests.extend(store.get(id)?);
            }
        }
        // A packet that serves as it is comes first; then the newest.
        manifests.sort_by_key(|manifest| {
            (
                self.packets.stale(manifest, origin).is_some(),
                std::cmp::Reverse(manifest.sequence),
            )
        });
        let mut trouble = Error::NotFound {
            what: "document",
            id: reference.to_owned(),
            hint: "put it first; `addenda packet list` shows those there are",
        };
        for manifest in manifests {
            let ids = self
                .packets
                .check(&manifest)
                .and_then(|()| Ok(store.read(&manifest.id)?.token_ids()));
            match ids {
                Ok(ids) => return Ok((manifest, ids)),
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

/// A document as its packet is derived from it.
#[derive(Clone)]
struct Document {
    namespace: String,
    name: String,
    source: [u8; 32],
    ids: Arc<Vec<u32>>,
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
