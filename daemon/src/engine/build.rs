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
    kv: SequenceKv,
    origin: Origin,
    reply: oneshot::Sender<Result<Built>>,
}

impl Building {
    /// Begins, or answers with what is wrong.
    pub(crate) fn begin(
        ticket: Ticket,
        request: Build,
        (model, primer): (&Transformer, &mut PrimerKv),
        under: Under,
    ) -> Option<Self> {
        match primer.context((request.form, &request.ids), under.revision, model) {
            Ok(kv) => Some(Self {
                ticket,
                ids: request.ids,
                form: request.form,
                codec: request.codec,
                done: 0,
                kv,
                origin: under.origin(request.form),
                reply: request.reply,
            }),
            Err(error) => {
                drop(request.reply.send(Err(error)));
                None
            }
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

    /// Computes the next chunk; true when there is none left.
    ///
    /// # Errors
    /// The model's.
    pub(crate) fn step(&mut self, view: View<'_>, chunk: usize) -> Result<bool> {
        if self.origin.adapter != NO_ADAPTER {
            return self.step_wrapped(view, chunk);
        }
        let model = view.model;
        let rest = self.ids.get(self.done..).unwrap_or_default();
        let run = rest.get(..chunk.max(1)).unwrap_or(rest);
        if !run.is_empty() {
            // Only what the pass leaves in the context is wanted.
            drop(model.forward(Input::Ids(run), &mut self.kv)?);
            self.done += run.len();
        }
        Ok(self.done == self.ids.len())
    }

    /// The same for a document between the adapter's soft tokens.
    fn step_wrapped(&mut self, view: View<'_>, chunk: usize) -> Result<bool> {
        let adapter = view.adapter.ok_or(Error::Stale)?;
        let all = adapter.wrapped_tokens(self.ids.len());
        let end = self.done.saturating_add(chunk.max(1)).min(all);
        let run = adapter.wrap_part(view.model, &self.ids, self.done..end)?;
        drop(view.model.forward(Input::Embeddings(&run), &mut self.kv)?);
        self.done = end;
        Ok(self.done == all)
    }

    /// Begins again where the weights, or the adapter it is wrapped in, have changed.
    ///
    /// # Errors
    /// libtorch's.
    pub(crate) fn weights_changed(
        &mut self,
        under: Under,
        (model, primer): (&Transformer, &mut PrimerKv),
    ) -> Result<()> {
        let origin = under.origin(self.form);
        if origin != self.origin {
            self.kv = primer.context((self.form, &self.ids), under.revision, model)?;
            self.done = 0;
            self.origin = origin;
        }
        Ok(())
    }

    /// Answers with the bytes, or with the error.
    pub(crate) fn end(self, result: Result<&Transformer>) {
        let tokens = self.kv.own_tokens();
        let bytes = result.and_then(|model| Ok(self.codec.encode(&model.packet(self.kv)?)?));
        let built = bytes.map(|bytes| Built {
            bytes,
            tokens,
            origin: self.origin,
        });
        drop(self.reply.send(built));
    }
}
