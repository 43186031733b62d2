//! The primer's KV, which packets are computed behind.
//!
//! A document that is computed all alone takes its own first tokens for the beginning of everything: they draw the
//! attention that a context's first token draws, once for each packet. Behind the primer they don't, and the document's
//! keys and values are about those it would have among a request's documents. The primer's own are computed once and
//! shared; no packet holds them.

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
    computed: Option<(Digest, Rc<PacketKv>)>,
}

impl PrimerKv {
    pub(crate) fn new(primer: Primer) -> Self {
        Self {
            primer,
            computed: None,
        }
    }

    /// The context that a packet of this form and these token ids, soft ones not counted, is computed in.
    ///
    /// # Errors
    /// The model's.
    pub(crate) fn context(
        &mut self,
        (form, ids): (Form, &[u32]),
        revision: Digest,
        model: &Transformer,
    ) -> Result<SequenceKv> {
        let mut kv = model.isolated_kv()?;
        let before = self.primer.before(ids);
        if form != Form::Joint && before > 0 {
            let primer = Rc::clone(self.computed(revision, model)?);
            kv.attach_part(primer, 0..before)?;
        }
        Ok(kv)
    }

    /// What a student's packets are computed behind, under the weights of this revision.
    ///
    /// # Errors
    /// The model's.
    pub(crate) fn study<T>(
        &mut self,
        revision: Digest,
        model: &Transformer,
        study: impl FnOnce(Option<adapter::Primer<'_>>) -> Result<T>,
    ) -> Result<T> {
        if self.primer.ids().is_empty() {
            return study(None);
        }
        let kv = Rc::clone(self.computed(revision, model)?);
        study(Some(adapter::Primer {
            kv: &kv,
            before: &|ids| self.primer.before(ids),
        }))
    }

    fn computed(&mut self, revision: Digest, model: &Transformer) -> Result<&Rc<PacketKv>> {
        let kept = self.computed.take().filter(|(under, _)| *under == revision);
        let kv = match kept {
            Some((_, kv)) => kv,
            None => {
                let mut kv = model.isolated_kv()?;
                drop(model.forward(Input::Ids(self.primer.ids()), &mut kv)?);
                Rc::new(model.packet(kv)?)
            }
        };
        Ok(&self.computed.insert((revision, kv)).1)
    }
}
