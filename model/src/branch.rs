//! Contexts that branch: several that go on from one beginning, which they share.

use crate::error::Result;
use crate::kv::{SequenceKv, Span};
use crate::layer_kv::{Tail, cut};
use crate::packet::{PacketKv, Plane};
use crate::tensor::{NoGrad, int};
use std::rc::Rc;
use tch::Tensor;

impl SequenceKv {
    /// Makes the tokens that are this sequence's own a packet, so that whatever branches off shares them.
    /// Their keys stay turned to where they stand. Returns the packet's bytes; 0 where there is nothing.
    ///
    /// # Errors
    /// libtorch's; the context is as before.
    pub fn freeze(&mut self) -> Result<usize> {
        let _guard = NoGrad::new();
        let own = self.tail_tokens;
        if own == 0 {
            return Ok(0);
        }
        let copy = |t: &Tensor| -> Result<Tensor> {
            let new = Tensor::f_empty(
                [int(self.kv_heads), int(own), int(self.head_dim)],
                (t.kind(), self.device),
            )?;
            new.shallow_clone().f_copy_(&cut(t, 0, own)?)?;
            Ok(new)
        };
        let planes = self.layers.iter().map(|tail| {
            Ok(Plane {
                keys: copy(&tail.keys)?,
                values: copy(&tail.values)?,
            })
        });
        let packet = PacketKv::new(self.shape_of(own), planes.collect::<Result<_>>()?);
        let bytes = packet.shape().bytes()?;
        let empty = self.empty_layers()?;
        let packet = Rc::new(packet);
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
        self.layers = empty;
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
        let mut layers = self.empty_layers()?;
        for (to, from) in layers.iter_mut().zip(&self.layers) {
            to.reserve(own, 0, self.device)?;
            for (to, from) in [(&to.keys, &from.keys), (&to.values, &from.values)] {
                to.f_narrow(1, 0, own)?
                    .f_copy_(&from.f_narrow(1, 0, own)?)?;
            }
        }
        Ok(Self {
            layers,
            spans: self.spans.clone(),
            ..*self
        })
    }

    fn empty_layers(&self) -> Result<Vec<Tail>> {
        let empty = [int(self.kv_heads), 0, int(self.head_dim)];
        let layers = self.layers.iter();
        let layers = layers.map(|_| Tail::new(empty, self.kind, self.device));
        layers.collect()
    }
}
