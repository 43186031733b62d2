//! Keys turned to another place, in a copy.
//!
//! - A packet that was computed behind a primer: its keys are turned back to where they lie as if it began at
//!   position 0.
//! - The other way to read a packet: its keys turned to their places in a copy that the sequence owns. That costs
//!   memory and time for every sequence that reads a packet, and saves the turning of queries and the merging of
//!   parts. Blending needs it, for it writes among what the packets gave.

use crate::error::Result;
use crate::kv::SequenceKv;
use crate::layer_kv::cut;
use crate::layers::block::Block;
use crate::packet::{PacketKv, Plane};
use crate::tensor::{NoGrad, int};
use crate::transformer::Transformer;
use std::ops::Range;
use tch::Tensor;

impl Transformer {
    /// What a context computed behind the packets that it begins with, as a packet of its own; all of it where there
    /// are none. Keys are turned in f32 and rounded once more to the model's dtype.
    ///
    /// # Errors
    /// Packets stand among its own tokens, or libtorch's.
    pub fn packet(&self, kv: SequenceKv) -> Result<PacketKv> {
        let _guard = NoGrad::new();
        let before = kv.len() - kv.own_tokens();
        let packet = kv.into_packet()?;
        if before == 0 {
            return Ok(packet);
        }
        let turned = |(layer, block): (usize, &Block)| {
            let back = self.rope(block).turn(-int(before))?;
            let plane = packet.plane(layer)?;
            Ok(Plane {
                keys: back.rotate(&plane.keys)?,
                values: plane.values.shallow_clone(),
            })
        };
        let layers = self.blocks.iter().enumerate().map(turned);
        Ok(PacketKv::new(
            packet.shape(),
            layers.collect::<Result<_>>()?,
        ))
    }

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
        let turn = self.rope(self.block(layer)?).turn(int(anchor))?;
        Ok((turn.rotate(&keys)?, values))
    }
}
