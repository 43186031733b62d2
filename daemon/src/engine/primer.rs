//! What packets are computed behind: the tokens that usually stand before documents.
//!
//! A document that is computed all alone takes its own first tokens for the beginning of everything: they draw the
//! attention that a context's first token draws, once for each packet. Behind the primer they don't, and the document's
//! keys and values are about those it would have among a request's: some positions are left out between the two, as if
//! other documents stood there. The primer's own are computed once and shared; no packet holds them.

use std::rc::Rc;

use addenda_model::{Input, PacketKv, SequenceKv, Transformer};

use crate::digest::Digest;
use crate::engine::command::Form;
use crate::error::Result;

/// The primer, computed under the weights that it was last needed under.
pub(crate) struct Primer {
    /// May be empty.
    ids: Vec<u32>,
    computed: Option<(Digest, Rc<PacketKv>)>,
}

impl Primer {
    pub(crate) fn new(ids: Vec<u32>) -> Self {
        Self {
            ids,
            computed: None,
        }
    }

    /// The context that a packet of this form and so many tokens of text is computed in.
    ///
    /// # Errors
    /// The model's.
    pub(crate) fn context(
        &mut self,
        (form, tokens): (Form, usize),
        revision: Digest,
        model: &Transformer,
    ) -> Result<SequenceKv> {
        let mut kv = model.isolated_kv()?;
        if form != Form::Joint && !self.ids.is_empty() {
            kv.attach(self.computed(revision, model)?)?;
            kv.skip(model.primer_gap(self.ids.len(), tokens))?;
        }
        Ok(kv)
    }

    fn computed(&mut self, revision: Digest, model: &Transformer) -> Result<Rc<PacketKv>> {
        if let Some((under, packet)) = &self.computed
            && *under == revision
        {
            return Ok(Rc::clone(packet));
        }
        let mut kv = model.isolated_kv()?;
        drop(model.forward(Input::Ids(&self.ids), &mut kv)?);
        let packet = Rc::new(model.packet(kv)?);
        self.computed = Some((revision, Rc::clone(&packet)));
        Ok(packet)
    }
}
