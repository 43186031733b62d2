//! A document's parts on their way to durable packets.
//!
//! Owns the order: what is there is found, what is missing is computed and durable, and only then does
//! the document's name stand for all of it. Invariants: all packets of a document that are bound
//! together are of one origin; a packet that two ask for at once is computed once; no more than
//! [`limits::BUILDS`] packets are between the engine and the disk.

use std::sync::Arc;

use addenda_cache::{Manifest, PacketKey};
use tokio::task::JoinSet;

use super::{Document, Documents, Stored, blocking};
use crate::engine::command::{Build, Command, Form, Origin, Ticket};
use crate::error::{Error, Result};
use crate::limits;
use crate::packets::Keep;

impl Documents {
    /// The packets of a document under the present weights, found or computed; its name stands for
    /// them from now on.
    ///
    /// # Errors
    /// A full store, weights that change again and again, or the engine's.
    pub(super) async fn keep(
        &self,
        ticket: &Ticket,
        document: Document,
        form: Form,
    ) -> Result<Stored> {
        let document = Arc::new(document);
        let gone = self.outgoing(&document).await?;
        let mut computed = vec![false; document.parts.len()];
        for _ in 0..limits::STALE_RETRIES {
            let origin = self.engine.state().under.origin(form);
            let mut found = self.find(&document, origin).await?;
            self.complete(ticket, &document, form, (&mut found, &mut computed))
                .await?;
            let manifests: Vec<Manifest> = found.into_iter().flatten().collect();
            if !is_of_one_origin(&manifests) {
                // The weights changed meanwhile.
                continue;
            }
            self.bind(&document, &manifests).await?;
            self.forget(&document.namespace, gone).await?;
            return Ok(Stored {
                parts: manifests.into_iter().zip(computed).collect(),
            });
        }
        Err(Error::Stale)
    }

    /// The packet of each part, where there is one.
    async fn find(
        &self,
        document: &Arc<Document>,
        origin: Origin,
    ) -> Result<Vec<Option<Manifest>>> {
        let (packets, document) = (self.packets.clone(), Arc::clone(document));
        blocking(move || {
            let keys = document
                .parts
                .iter()
                .map(|ids| packets.key(&document.namespace, ids, origin));
            keys.map(|key| Ok(packets.store().lookup(&key)?)).collect()
        })
        .await
    }

    /// Computes what is missing, a few parts at once so that the engine need not wait for the disk.
    async fn complete(
        &self,
        ticket: &Ticket,
        document: &Arc<Document>,
        form: Form,
        (found, computed): (&mut [Option<Manifest>], &mut [bool]),
    ) -> Result<()> {
        let missing = |(part, found): (usize, &Option<Manifest>)| found.is_none().then_some(part);
        let missing: Vec<usize> = found.iter().enumerate().filter_map(missing).collect();
        let mut missing = missing.into_iter();
        // Dropped with what still runs in it, where one part fails.
        let mut running = JoinSet::new();
        loop {
            while running.len() < limits::BUILDS
                && let Some(part) = missing.next()
            {
                let (this, ticket) = (self.clone(), ticket.clone());
                let document = Arc::clone(document);
                running.spawn(async move {
                    let made = this.make(&ticket, &document, part, form).await?;
                    Ok::<_, Error>((part, made))
                });
            }
            let Some(done) = running.join_next().await else {
                return Ok(());
            };
            let message = |error: tokio::task::JoinError| Error::Panicked {
                message: error.to_string(),
            };
            let (part, (manifest, created)) = done.map_err(message)??;
            if let (Some(found), Some(computed)) = (found.get_mut(part), computed.get_mut(part)) {
                *found = Some(manifest);
                *computed |= created;
            }
        }
    }

    /// Computes and stores one part; finds it where another request did so meanwhile.
    async fn make(
        &self,
        ticket: &Ticket,
        document: &Arc<Document>,
        part: usize,
        form: Form,
    ) -> Result<(Manifest, bool)> {
        let ids = document.parts.get(part).cloned().unwrap_or_default();
        let origin = self.engine.state().under.origin(form);
        let key = self.packets.key(&document.namespace, &ids, origin);
        let _turn = self.keys.take(key).await;
        let _permit = tokio::select! {
            permit = self.builds.acquire() => permit,
            () = ticket.cancel.cancelled() => return Err(Error::Cancelled),
        };
        ticket.check()?;
        if let Some(manifest) = self.made_meanwhile(key).await? {
            return Ok((manifest, false));
        }
        let (codec, tokens) = (self.packets.codec(), ids.as_ref().clone());
        let built = self
            .engine
            .ask(ticket, |reply| {
                Command::Build(Box::new(Build {
                    ids: tokens,
                    form,
                    codec,
                    reply,
                }))
            })
            .await?;
        // The key and no name: names may tell whom a document is about.
        tracing::debug!(%key, tokens = built.tokens, "a packet was computed");
        let (packets, document) = (self.packets.clone(), Arc::clone(document));
        let stored = blocking(move || {
            let put = packets.keep(
                &Keep {
                    namespace: &document.namespace,
                    document: &document.name,
                    source: document.source,
                    ids: &ids,
                    alone: document.whole && document.parts.len() == 1,
                },
                &built,
            )?;
            // Another request may have deleted it meanwhile; then that was the last word.
            let manifest = packets.store().get(&put.id)?;
            let manifest = manifest.ok_or(addenda_cache::Error::NotFound { id: put.id })?;
            Ok((manifest, put.created))
        });
        stored.await
    }

    async fn made_meanwhile(&self, key: PacketKey) -> Result<Option<Manifest>> {
        let packets = self.packets.clone();
        blocking(move || {
            // Asked in this order, the usual case is not counted as a second miss.
            if packets.store().why_missing(&key)?.is_some() {
                return Ok(None);
            }
            Ok(packets.store().lookup(&key)?)
        })
        .await
    }

    /// Lets the document's name stand for these packets.
    async fn bind(&self, document: &Arc<Document>, manifests: &[Manifest]) -> Result<()> {
        if !document.whole {
            return Ok(());
        }
        let ids: Vec<_> = manifests.iter().map(|manifest| manifest.id).collect();
        let (packets, document) = (self.packets.clone(), Arc::clone(document));
        blocking(move || {
            let (namespace, name) = (&document.namespace, &document.name);
            let bound = packets
                .store()
                .bind(namespace, name, &document.source, &ids);
            match bound {
                // Its own later parts took the place of its first ones.
                Err(addenda_cache::Error::NotFound { .. }) if ids.len() > 1 => {
                    Err(Error::Precondition {
                        field: "document",
                        reason: format!(
                            "{name:?} lost one of its {} packets before the last was stored; \
                             put it again, or raise the setting `max_store_bytes`",
                            ids.len()
                        ),
                    })
                }
                other => Ok(other?),
            }
        })
        .await
    }
}

fn is_of_one_origin(manifests: &[Manifest]) -> bool {
    let origin = |manifest: &Manifest| (manifest.header.revision, manifest.header.adapter);
    let mut pairs = manifests.iter().zip(manifests.iter().skip(1));
    pairs.all(|(one, next)| origin(one) == origin(next))
}
