//! The primer's KV, which packets are computed behind.
//!
//! A document that is computed all alone takes its own first tokens for the beginning of everything: they draw the
//! attention that a context's first token draws, once for each packet. Behind the primer they don't, and the document's
//! keys and values are about those it would have among a request's documents. The primer's own are computed once, a chunk
//! at a time like a document's, and shared; no packet holds them.

use std::rc::Rc;

use addenda_model::adapter;
use addenda_model::{Input, PacketKv, SequenceKv, Transformer};

use crate::digest::Digest;
use crate::engine::command::Form;
use crate::error::Result;
use crate::primer::Primer;

/// The primer, computed under the weights that it was last needed under.
pub(crate) struct PrimerKv {
    primer: Primer,
    state: State,
}

enum State {
    Needless,
    /// So far under the weights of this revision.
    Begun(Digest, SequenceKv),
    Computed(Digest, Rc<PacketKv>),
}

impl PrimerKv {
    pub(crate) fn new(primer: Primer) -> Self {
        Self {
            primer,
            state: State::Needless,
        }
    }

    /// The context that a packet of this form and these token ids, soft ones not counted, is computed in; `None` as
    /// long as the primer is on its way, of which at most `chunk` tokens are computed at a call.
    ///
    /// # Errors
    /// The model's.
    pub(crate) fn context(
        &mut self,
        (form, ids): (Form, &[u32]),
        (revision, model): (Digest, &Transformer),
        chunk: usize,
    ) -> Result<Option<SequenceKv>> {
        if form == Form::Joint || self.primer.ids().is_empty() {
            return Ok(Some(model.isolated_kv()?));
        }
        let Some(primer) = self.advance((revision, model), chunk)? else {
            return Ok(None);
        };
        let mut kv = model.isolated_kv()?;
        kv.attach_part(primer, 0..self.primer.before(ids))?;
        Ok(Some(kv))
    }

    /// What a student's packets are computed behind, under the weights of this revision; `None` as long as it is on its
    /// way, as with [`Self::context`].
    ///
    /// # Errors
    /// The model's.
    pub(crate) fn study<T>(
        &mut self,
        (revision, model): (Digest, &Transformer),
        chunk: usize,
        study: impl FnOnce(Option<adapter::Primer<'_>>) -> Result<T>,
    ) -> Result<Option<T>> {
        if self.primer.ids().is_empty() {
            return study(None).map(Some);
        }
        let Some(kv) = self.advance((revision, model), chunk)? else {
            return Ok(None);
        };
        let primer = adapter::Primer {
            kv: &kv,
            before: &|ids| self.primer.before(ids),
        };
        study(Some(primer)).map(Some)
    }

    /// Computes the next tokens, `chunk` at most; all of it once none is left.
    fn advance(
        &mut self,
        (revision, model): (Digest, &Transformer),
        chunk: usize,
    ) -> Result<Option<Rc<PacketKv>>> {
        let mut kv = match std::mem::replace(&mut self.state, State::Needless) {
            State::Computed(under, kv) if under == revision => {
                self.state = State::Computed(revision, Rc::clone(&kv));
                return Ok(Some(kv));
            }
            State::Begun(under, kv) if under == revision => kv,
            _ => model.isolated_kv()?,
        };
        let rest = self.primer.ids().get(kv.own_tokens()..);
        let rest = rest.unwrap_or_default();
        let run = rest.get(..chunk.max(1)).unwrap_or(rest);
        drop(model.forward(Input::Ids(run), &mut kv)?);
        if run.len() < rest.len() {
            self.state = State::Begun(revision, kv);
            return Ok(None);
        }
        let kv = Rc::new(model.packet(kv)?);
        self.state = State::Computed(revision, Rc::clone(&kv));
        Ok(Some(kv))
    }
}
