//! Contexts that branch: several that go on from one beginning, which they share.

use super::{SequenceKv, Span};
use crate::error::Result;
use crate::tensor::{NoGrad, int};
use std::rc::Rc;

impl SequenceKv {
    /// Makes the tokens that are this sequence's own a packet, so that whatever branches off shares them.
    /// Their keys stay turned to where they stand. Returns the packet's bytes; 0 where there is nothing.
    ///
    /// # Errors
    /// libtorch's; the context is as before.
    pub fn freeze(&mut self) -> Result<usize> {
        let _guard = NoGrad::new();
        if self.tail_tokens == 0 {
            return Ok(0);
        }
        let empty = self.empty()?;
        let packet = Rc::new(self.own_packet()?);
        let bytes = packet.shape().bytes()?;
        for span in &mut self.spans {
            if let Span::Tail { at, start, tokens } = *span {
                *span = Span::Packet {
                    at,
                    from: start,
                    tokens,
                    anchor: 0,
                    packet: Rc::clone(&packet),
                };
            }
        }
        self.layers = empty.layers;
        self.tail_tokens = 0;
        Ok(bytes)
    }

    /// The same context once more, to go on by itself: packets are shared, tokens of its own copied.
    ///
    /// # Errors
    /// libtorch's.
    pub fn branch(&self) -> Result<Self> {
        let _guard = NoGrad::new();
        let own = int(self.tail_tokens);
        let mut branch = self.empty()?;
        for (to, from) in branch.layers.iter_mut().zip(&self.layers) {
            to.reserve(own, 0, self.device)?;
            for (to, from) in [(&to.keys, &from.keys), (&to.values, &from.values)] {
                to.f_narrow(1, 0, own)?
                    .f_copy_(&from.f_narrow(1, 0, own)?)?;
            }
        }
        branch.spans.clone_from(&self.spans);
        (branch.tail_tokens, branch.tokens) = (self.tail_tokens, self.tokens);
        Ok(branch)
    }

    /// A context of the same model, without tokens.
    fn empty(&self) -> Result<Self> {
        Self::of_shape(self.shape_of(0), self.context, self.device)
    }
}
