//! One document on its way to a packet: a prefill behind the primer alone, a chunk at a time.
//!
//! Owns the KV until it is bytes. Writes nothing to disk: that is its client's part, so that no
//! fsync ever holds the engine. Invariant: a packet is computed under one weights revision and with
//! one adapter; when either changes it begins again.

use addenda_model::{Codec, Input, SequenceKv, Transformer};
use tokio::sync::oneshot;

use crate::engine::command::{Build, Built, Form, NO_ADAPTER, Origin, Ticket, Under, View};
use crate::engine::primer::PrimerKv;
use crate::error::{Error, Result};

/// A document on its way to a packet.
pub(crate) struct Building {
    pub(crate) ticket: Ticket,
    ids: Vec<u32>,
    form: Form,
    codec: Codec,
    done: usize,
    /// None while the primer is on its way.
    kv: Option<SequenceKv>,
    origin: Origin,
    reply: oneshot::Sender<Result<Built>>,
}

impl Building {
    pub(crate) fn begin(ticket: Ticket, request: Build, under: Under) -> Self {
        Self {
            ticket,
            ids: request.ids,
            form: request.form,
            codec: request.codec,
            done: 0,
            kv: None,
            origin: under.origin(request.form),
            reply: request.reply,
        }
    }

    /// Whether somebody still wants it.
    ///
    /// # Errors
    /// The reason why not.
    pub(crate) fn check(&self) -> Result<()> {
        if self.reply.is_closed() {
            return Err(Error::Cancelled);
        }
        self.ticket.check()
    }

    /// Computes the next chunk, of the primer first where that is not there; true when there is none left.
    ///
    /// # Errors
    /// The model's.
    pub(crate) fn step(
        &mut self,
        view: View<'_>,
        primer: &mut PrimerKv,
        chunk: usize,
    ) -> Result<bool> {
        let model = view.model;
        let Some(kv) = &mut self.kv else {
            let document = (self.form, &self.ids[..]);
            self.kv = primer.context(document, (self.origin.revision, model), chunk)?;
            return Ok(false);
        };
        if self.origin.adapter != NO_ADAPTER {
            let adapter = view.adapter.ok_or(Error::Stale)?;
            let all = adapter.wrapped_tokens(self.ids.len());
            let end = self.done.saturating_add(chunk.max(1)).min(all);
            let run = adapter.wrap_part(model, &self.ids, self.done..end)?;
            drop(model.forward(Input::Embeddings(&run), kv)?);
            self.done = end;
            return Ok(self.done == all);
        }
        let rest = self.ids.get(self.done..).unwrap_or_default();
        let run = rest.get(..chunk.max(1)).unwrap_or(rest);
        if !run.is_empty() {
            // Only what the pass leaves in the context is wanted.
            drop(model.forward(Input::Ids(run), kv)?);
            self.done += run.len();
        }
        Ok(self.done == self.ids.len())
    }

    /// Begins again where the weights, or the adapter it is wrapped in, have changed.
    pub(crate) fn weights_changed(&mut self, under: Under) {
        let origin = under.origin(self.form);
        if origin != self.origin {
            self.kv = None;
            self.done = 0;
            self.origin = origin;
        }
    }

    /// Answers with the bytes, or with the error.
    pub(crate) fn end(self, result: Result<&Transformer>) {
        let built = result.and_then(|model| {
            let kv = self.kv.ok_or(Error::Stale)?;
            let tokens = kv.own_tokens();
            Ok(Built {
                bytes: self.codec.encode(&model.packet(kv)?)?,
                tokens,
                origin: self.origin,
            })
        });
        drop(self.reply.send(built));
    }
}
