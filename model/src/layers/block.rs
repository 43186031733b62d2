//! One layer of the decoder: attention and MLP, each behind a norm and added to the residual
//! stream. Gemma norms what they give once more before adding it.

use super::attention::{Attention, Before, Run, Sight};
use super::mlp::Mlp;
use super::norm::RmsNorm;
use super::rope::RunAngles;
use crate::config::ModelConfig;
use crate::decode::{self, Copy, Packing};
use crate::error::Result;
use crate::layer_kv::LayerKv;
use crate::taps::{Pass, Site};
use crate::tensor::{in_kind, int};
use crate::weights::Weights;
use tch::{Device, Kind, Tensor};

pub(crate) struct Block {
    layer: usize,
    before_attention: RmsNorm,
    attention: Attention,
    after_attention: Option<RmsNorm>,
    before_mlp: RmsNorm,
    pub(crate) mlp: Mlp,
    after_mlp: Option<RmsNorm>,
}

impl Block {
    pub(crate) fn load(
        config: &ModelConfig,
        weights: &mut Weights,
        layer: usize,
        device: Device,
        kind: Kind,
    ) -> Result<Self> {
        let prefix = format!("model.layers.{layer}");
        let d = int(config.hidden_size);
        let attention = Attention::load(config, weights, layer, device, kind)?;
        let mlp = Mlp::load(config, weights, &format!("{prefix}.mlp"), device, kind)?;
        let mut norm = |name: &str| -> Result<RmsNorm> {
            let weight = weights.take(&format!("{prefix}.{name}.weight"), &[d])?;
            let weight = weight.f_to_device(device)?;
            RmsNorm::new(&weight, config.norm_plus_one, config.norm_eps, kind)
        };
        // With post-norms, "post_attention_layernorm" is what its name says; without, it is
        // the norm before the MLP.
        let before_attention = norm("input_layernorm")?;
        let after_attention = norm("post_attention_layernorm")?;
        let (after_attention, before_mlp, after_mlp) = if config.post_norms {
            let before_mlp = norm("pre_feedforward_layernorm")?;
            (
                Some(after_attention),
                before_mlp,
                Some(norm("post_feedforward_layernorm")?),
            )
        } else {
            (None, after_attention, None)
        };
        Ok(Self {
            layer,
            before_attention,
            attention,
            after_attention,
            before_mlp,
            mlp,
            after_mlp,
        })
    }

    /// The base in another dtype; what is in it already is shared.
    pub(crate) fn base_in_kind(&self, kind: Kind) -> Result<Self> {
        let norm = |norm: &Option<RmsNorm>| norm.as_ref().map(|norm| norm.in_kind(kind));
        Ok(Self {
            layer: self.layer,
            before_attention: self.before_attention.in_kind(kind)?,
            attention: self.attention.in_kind(kind)?,
            after_attention: norm(&self.after_attention).transpose()?,
            before_mlp: self.before_mlp.in_kind(kind)?,
            mlp: self.mlp.base_in_kind(kind)?,
            after_mlp: norm(&self.after_mlp).transpose()?,
        })
    }

    /// How far back this layer sees, in tokens; `None` is without limit.
    pub(crate) fn window(&self) -> Option<usize> {
        self.attention.window()
    }

    pub(crate) fn parameters(&self) -> usize {
        self.attention.parameters() + self.mlp.parameters()
    }

    /// Keeps the weights packed as well, or not any more; bytes that it takes.
    pub(crate) fn pack(&mut self, packing: Option<Packing>) -> Result<usize> {
        Ok(self.attention.pack(packing)? + self.mlp.pack(packing)?)
    }

    /// As decode steps read it; `has_local` where windowed layers turn by angles of their own.
    pub(crate) fn for_decode(&self, copy: Copy, has_local: bool) -> Result<decode::Layer<'_>> {
        let (gate_up, down, activation) = self.mlp.for_decode(copy)?;
        Ok(decode::Layer {
            before_attention: self.before_attention.for_decode(),
            attention: self.attention.for_decode(copy)?,
            after_attention: self.after_attention.as_ref().map(RmsNorm::for_decode),
            before_mlp: self.before_mlp.for_decode(),
            gate_up,
            down,
            after_mlp: self.after_mlp.as_ref().map(RmsNorm::for_decode),
            activation,
            local: has_local && self.window().is_some(),
        })
    }

    /// The residual stream `[T, d]` of the tokens of `runs`, one behind the other, through this layer.
    pub(crate) fn forward(&self, x: &Tensor, runs: &mut [Run<'_>]) -> Result<Tensor> {
        let normed = self.before_attention.forward(x)?;
        let attended = self.attention.forward(&normed, runs)?;
        self.behind_attention(x, attended)
    }

    /// The same with attention that is computed elsewhere; see [`Attention::forward_with`].
    pub(crate) fn forward_with(
        &self,
        x: &Tensor,
        attend: impl FnOnce(&decode::Attention<'_>, &[f32]) -> Vec<f32>,
    ) -> Result<Tensor> {
        let normed = self.before_attention.forward(x)?;
        let attended = self.attention.forward_with(&normed, attend)?;
        self.behind_attention(x, attended)
    }

    /// The same of tokens at scattered positions; see [`Attention::forward_scattered`].
    pub(crate) fn forward_scattered(
        &self,
        x: &Tensor,
        angles: &RunAngles,
        kv: &LayerKv<'_>,
        places: (&[i64], usize),
    ) -> Result<Tensor> {
        let normed = self.before_attention.forward(x)?;
        let attended = self
            .attention
            .forward_scattered(&normed, angles, kv, places)?;
        self.behind_attention(x, attended)
    }

    /// Keys (rotated) and values `[kv_heads, T, head_dim]` of the residual stream `x [T, d]`.
    pub(crate) fn keys_values(&self, x: &Tensor, angles: &RunAngles) -> Result<(Tensor, Tensor)> {
        let normed = self.before_attention.forward(x)?;
        self.attention.keys_values(&normed, angles)
    }

    /// What follows on attention: its output into the stream, and the MLP.
    fn behind_attention(&self, x: &Tensor, attended: Tensor) -> Result<Tensor> {
        let x = add(x, attended, self.after_attention.as_ref())?;
        let key = self.mlp.key(&self.before_mlp.forward(&x)?)?;
        let down = in_kind(self.mlp.down(), key.kind())?;
        let out = key.f_linear::<&Tensor>(&down, None)?;
        add(&x, out, self.after_mlp.as_ref())
    }

    /// The residual stream `[B, S, d]` of a batch, through this layer and its taps; and this
    /// layer's keys and values.
    pub(crate) fn forward_batch(
        &self,
        x: &Tensor,
        sight: Sight<'_>,
        pass: &mut Pass<'_>,
    ) -> Result<(Tensor, Before)> {
        let normed = self.before_attention.forward(x)?;
        let (attended, seen) = self.attention.forward_batch(&normed, sight)?;
        let attended = pass.tap(self.layer, Site::AttentionOut, attended)?;
        let x = add(x, attended, self.after_attention.as_ref())?;
        let key = self.mlp.key(&self.before_mlp.forward(&x)?)?;
        let key = pass.tap(self.layer, Site::MlpKey, key)?;
        let down = match pass.overlay {
            None => self.mlp.down(),
            Some(overlay) => overlay
                .matrices
                .get(&self.layer)
                .unwrap_or_else(|| self.mlp.base_down()),
        };
        let out = key.f_linear::<&Tensor>(&in_kind(down, key.kind())?, None)?;
        let out = pass.tap(self.layer, Site::MlpOut, out)?;
        let x = add(&x, out, self.after_mlp.as_ref())?;
        Ok((pass.tap(self.layer, Site::Residual, x)?, seen))
    }
}

/// `residual + norm(output)`, or without the norm where the model has none there.
fn add(residual: &Tensor, output: Tensor, norm: Option<&RmsNorm>) -> Result<Tensor> {
    let output = match norm {
        Some(norm) => norm.forward(&output)?,
        None => output,
    };
    Ok(residual.f_add(&output)?)
}
