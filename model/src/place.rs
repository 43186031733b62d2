//! The other way to read a packet: its keys turned to their places in a copy that the sequence owns.
//!
//! Costs memory and time for every sequence that reads a packet, and saves the turning of queries and
//! the merging of parts. Blending needs it, for it writes among what the packets gave.

use crate::error::Result;
use crate::kv::SequenceKv;
use crate::layer_kv::cut;
use crate::packet::PacketKv;
use crate::tensor::NoGrad;
use crate::transformer::Transformer;
use std::ops::Range;
use tch::Tensor;

impl Transformer {
    /// Places the first `tokens` of a packet at the end of the context as a copy of its own.
    ///
    /// # Errors
    /// The packet is of another model or dtype or has fewer tokens, the context would grow too
    /// long, or libtorch's.
    pub fn attach_copy(&self, packet: &PacketKv, tokens: usize, kv: &mut SequenceKv) -> Result<()> {
        let _guard = NoGrad::new();
        let at = kv.len();
        kv.check_packet(packet.shape(), &(0..tokens))?;
        kv.make_room(tokens)?;
        for layer in 0..self.blocks.len() {
            let (keys, values) = self.placed(packet, layer, 0..tokens, at)?;
            kv.layer(layer, 0)?.append(&keys, &values)?;
        }
        kv.advance(tokens);
        Ok(())
    }

    /// Keys and values `[kv_heads, n, head_dim]` of those `tokens` of a packet in one layer, as they
    /// are where the packet's token 0 stands at position `anchor`.
    pub(crate) fn placed(
        &self,
        packet: &PacketKv,
        layer: usize,
        tokens: Range<usize>,
        anchor: usize,
    ) -> Result<(Tensor, Tensor)> {
        let plane = packet.plane(layer)?;
        let keys = cut(&plane.keys, tokens.start, tokens.len())?;
        let values = cut(&plane.values, tokens.start, tokens.len())?;
        let turn = self.rope(self.block(layer)?).turn(anchor)?;
        Ok((turn.rotate(&keys)?, values))
    }
}
