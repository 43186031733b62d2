//! Documents that are deleted or get another text: what is derived from the old text goes with it.
//!
//! Owns finding what that is: joint packets in the store, and KV that the engine keeps in memory. Never deletes a
//! document's own packets; the store does, at one stroke with the change of its name. Invariant: what is told to be
//! gone is gone from both before the change is acknowledged.

use std::sync::Arc;

use addenda_cache::{Document as Binding, Manifest, PacketId, Removed, Store};
use tokio_util::sync::CancellationToken;

use super::{Document, Documents, blocking};
use crate::engine::command::{Command, Forget, Ticket};
use crate::error::{Error, Result};
use crate::limits;

/// A text that is no more.
#[derive(Debug, Default)]
pub(crate) struct Gone {
    packets: Vec<PacketId>,
    /// Token ids of each part.
    texts: Vec<Vec<u32>>,
}

impl Gone {
    /// All of a document; nothing where there is none. To be called while its packets are there; touches the disk.
    ///
    /// # Errors
    /// The store's.
    pub(crate) fn document(store: &Store, namespace: &str, name: &str) -> Result<Self> {
        let binding = store.document(namespace, name)?;
        let ids: Vec<PacketId> = binding.iter().flat_map(Binding::ids).collect();
        Self::packets(store, &ids)
    }

    /// What these packets hold.
    ///
    /// # Errors
    /// The store's.
    pub(crate) fn packets(store: &Store, ids: &[PacketId]) -> Result<Self> {
        let mut gone = Self::default();
        for id in ids {
            match store.read(id) {
                Ok(body) => {
                    gone.packets.push(*id);
                    gone.texts.push(body.token_ids());
                }
                // What cannot be read cannot be compared, and must not keep its document from being deleted.
                Err(
                    addenda_cache::Error::Damaged { .. } | addenda_cache::Error::NotFound { .. },
                ) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(gone)
    }

    /// Deletes the joint packets in which one of the texts stands; touches the disk.
    ///
    /// # Errors
    /// The store's.
    pub(crate) fn forget_joint(&self, store: &Store, namespace: &str) -> Result<Removed> {
        let mut removed = Removed::default();
        if self.texts.is_empty() {
            return Ok(removed);
        }
        let mut after = None;
        loop {
            let most = limits::LARGEST_PAGE as usize;
            let page = store.list(namespace, after.as_ref(), most)?;
            let Some(last) = page.last() else {
                return Ok(removed);
            };
            after = Some(last.id);
            for manifest in page.iter().filter(|manifest| is_joint(manifest)) {
                let joint = Self::packets(store, &[manifest.id])?;
                let stands = |ids: &Vec<u32>| self.texts.iter().any(|text| is_in(text, ids));
                if joint.texts.iter().any(stands) {
                    let one = store.delete(&manifest.id)?;
                    removed.packets += one.packets;
                    removed.bytes += one.bytes;
                }
            }
        }
    }
}

/// Packets of documents have their names.
fn is_joint(manifest: &Manifest) -> bool {
    manifest.header.document.is_empty()
}

fn is_in(text: &[u32], ids: &[u32]) -> bool {
    ids.windows(text.len().max(1)).any(|part| part == text)
}

impl Documents {
    /// What goes when this text takes the place of another under its name.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn outgoing(&self, document: &Arc<Document>) -> Result<Gone> {
        if !document.whole {
            return Ok(Gone::default());
        }
        let (packets, document) = (self.packets.clone(), Arc::clone(document));
        blocking(move || {
            let store = packets.store();
            let old = store.document(&document.namespace, &document.name)?;
            if old.is_none_or(|old| old.source == document.source) {
                return Ok(Gone::default());
            }
            let mut gone = Gone::document(store, &document.namespace, &document.name)?;
            let stays = |text: &Vec<u32>| document.parts.iter().any(|part| **part == *text);
            gone.texts.retain(|text| !stays(text));
            Ok(gone)
        })
        .await
    }

    /// Has the engine, and the store's joint packets, forget a text.
    ///
    /// # Errors
    /// The store's. An engine that serves nothing any more keeps nothing that could be served.
    pub(crate) async fn forget(&self, namespace: &str, gone: Gone) -> Result<Removed> {
        if gone.texts.is_empty() {
            return Ok(Removed::default());
        }
        let (packets, space) = (self.packets.clone(), namespace.to_owned());
        let (gone, removed) = blocking(move || {
            let removed = gone.forget_joint(packets.store(), &space)?;
            Ok((gone, removed))
        })
        .await?;
        // Nobody may hurry it: it must be done before the change is acknowledged.
        let ticket = Ticket {
            received: std::time::Instant::now(),
            deadline: None,
            cancel: CancellationToken::new(),
            patient: true,
            span: tracing::Span::current(),
        };
        let namespace = namespace.to_owned();
        let asked = self.engine.ask(&ticket, |reply| {
            Command::Forget(Forget {
                namespace,
                texts: gone.texts,
                packets: gone.packets,
                reply,
            })
        });
        match asked.await {
            Ok(())
            | Err(Error::Poisoned { .. } | Error::Stopping | Error::Starting | Error::EngineGone) => {
                Ok(removed)
            }
            Err(error) => Err(error),
        }
    }
}
