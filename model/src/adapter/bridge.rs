//! A bridge: keys and values of every layer, which stand between the last packet and what is asked.
//!
//! Owns its shape, what it begins as, and how it becomes a packet that sequences read as any other. Its keys lie as if it
//! began at position 0.

use std::fmt;

use tch::Tensor;

use super::{Adapter, Parts};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::packet::{PacketKv, PacketShape, Plane};
use crate::tensor::{NoGrad, int};
use crate::transformer::{Input, Transformer};

/// The sides of a bridge `[layers, 2, kv_heads, P, head_dim]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sides {
    pub(crate) layers: i64,
    pub(crate) kv_heads: i64,
    pub(crate) tokens: i64,
    pub(crate) head_dim: i64,
}

impl Sides {
    /// Those of so many tokens in a model of `config`.
    pub(crate) fn of(config: &ModelConfig, tokens: i64) -> Self {
        Self {
            layers: int(config.num_layers),
            kv_heads: int(config.num_kv_heads),
            tokens,
            head_dim: int(config.head_dim),
        }
    }
}

impl fmt::Display for Sides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} layers with {} key-value heads of {}",
            self.layers, self.kv_heads, self.head_dim
        )
    }
}

/// The sides of a bridge's tensor.
///
/// # Errors
/// It is none's.
pub(crate) fn sides(bridge: &Tensor) -> Result<Sides> {
    match bridge.size()[..] {
        [layers, 2, kv_heads, tokens, head_dim] if layers > 0 && kv_heads > 0 && head_dim > 0 => {
            Ok(Sides {
                layers,
                kv_heads,
                tokens,
                head_dim,
            })
        }
        ref other => Err(Error::Invalid(format!(
            "a bridge is [layers, 2, kv_heads, tokens, head_dim], not {other:?}"
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
        let packet = |ids: &[u32]| -> Result<PacketKv> {
            let mut kv = model.isolated_kv()?;
            drop(model.forward(Input::Ids(ids), &mut kv)?);
            kv.into_packet()
        };
        let mut kv = model.isolated_kv()?;
        if !before.is_empty() {
            kv.attach(packet(before)?.into())?;
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
        let shape = PacketShape::of(model.config(), model.kind(), self.bridge_tokens());
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
