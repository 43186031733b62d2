//! A bridge: keys and values of every layer, which stand between the last packet and what is asked.
//!
//! Owns its shape, what it begins as, and how it becomes a packet that sequences read as any other. Its keys lie as if it
//! began at position 0.

use tch::Tensor;

use super::{Adapter, Parts};
use crate::error::{Error, Result};
use crate::packet::{PacketKv, PacketShape, Plane};
use crate::tensor::{NoGrad, int};
use crate::transformer::{Input, Transformer};

/// The shape of a bridge's tensor `[layers, 2, kv_heads, P, head_dim]` as a packet's.
///
/// # Errors
/// It is none's.
pub(crate) fn shape(bridge: &Tensor) -> Result<PacketShape> {
    let sides: Vec<usize> = bridge
        .size()
        .into_iter()
        .filter_map(|side| usize::try_from(side).ok())
        .collect();
    match sides[..] {
        [layers, 2, kv_heads, tokens, head_dim] if layers.min(kv_heads).min(head_dim) > 0 => {
            Ok(PacketShape {
                layers,
                kv_heads,
                tokens,
                head_dim,
                kind: bridge.kind(),
            })
        }
        _ => Err(Error::Invalid(format!(
            "a bridge is [layers, 2, kv_heads, tokens, head_dim], not {sides:?}"
        ))),
    }
}

impl Adapter {
    /// From a bridge `[layers, 2, kv_heads, P, head_dim]`, which is copied to f32 on the CPU.
    ///
    /// # Errors
    /// Other sides, too few or too many tokens, or a value that is not finite.
    pub fn of_bridge(
        bridge: &Tensor,
        base: [u8; 32],
        name: String,
        training: String,
    ) -> Result<Self> {
        Self::of(&Parts::Bridge(bridge.shallow_clone()), base, name, training)
    }

    /// A bridge that is not trained: the KV of the tokens `ids` behind those of `before`, such as a sentence that says
    /// what is to be done with the documents. A student begins as close to its teacher with it as without.
    ///
    /// # Errors
    /// Too few or too many tokens, an unknown id, or libtorch's.
    pub fn bridge_of_tokens(
        model: &Transformer,
        (before, ids): (&[u32], &[u32]),
        base: [u8; 32],
        name: String,
    ) -> Result<Self> {
        let _guard = NoGrad::new();
        let mut kv = model.isolated_kv()?;
        if !before.is_empty() {
            let mut alone = model.isolated_kv()?;
            drop(model.forward(Input::Ids(before), &mut alone)?);
            kv.attach(alone.into_packet()?.into())?;
        }
        drop(model.forward(Input::Ids(ids), &mut kv)?);
        let packet = model.packet(kv)?;
        let layers = (0..packet.shape().layers).map(|layer| {
            let Plane { keys, values } = packet.plane(layer)?;
            Ok(Tensor::f_stack(&[keys, values], 0)?)
        });
        let bridge = Tensor::f_stack(&layers.collect::<Result<Vec<_>>>()?, 0)?;
        Self::of_bridge(&bridge, base, name, String::from("{}"))
    }

    /// The bridge as a packet that `model` reads, in its dtype and on its device; `None` of soft tokens.
    ///
    /// # Errors
    /// A bridge for another model, or libtorch's.
    pub fn bridge_packet(&self, model: &Transformer) -> Result<Option<PacketKv>> {
        let _guard = NoGrad::new();
        let Parts::Bridge(bridge) = self.parts() else {
            return Ok(None);
        };
        self.check_fits(model)?;
        let bridge = bridge
            .f_to_device(model.device())?
            .f_to_kind(model.kind())?;
        let shape = shape(&bridge)?;
        let layers = (0..shape.layers).map(|layer| {
            let [keys, values] = planes(&bridge, layer)?;
            Ok(Plane {
                keys: keys.f_contiguous()?,
                values: values.f_contiguous()?,
            })
        });
        let layers = layers.collect::<Result<_>>()?;
        Ok(Some(PacketKv::new(shape, layers)))
    }
}

/// Keys and values `[kv_heads, P, head_dim]` of one layer; differentiable.
pub(crate) fn planes(bridge: &Tensor, layer: usize) -> Result<[Tensor; 2]> {
    let layer = bridge.f_select(0, int(layer))?;
    Ok([layer.f_select(0, 0)?, layer.f_select(0, 1)?])
}
