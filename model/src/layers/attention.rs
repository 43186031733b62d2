//! Grouped-query attention of one layer, in two forms over the same weights.
//!
//! - [`Attention::forward`] serves: one sequence with its cache, no gradients. Where a query
//!   meets a packet, **the query is turned back** to its position relative to the packet, and
//!   the parts of the context are merged by their log-sum-exps (see `layers::part`).
//! - [`Attention::forward_batch`] studies: many rows without a cache, any mask, differentiable
//!   (see `rows.rs`).
//!
//! Tensors of a head are `[.., heads, T, head_dim]`; positions count from the sequence's start.

mod rows;

use super::linear::Linear;
use super::norm::RmsNorm;
use super::part::{Attended, Part, Stand, merge};
use super::rope::RunAngles;
use crate::config::ModelConfig;
use crate::decode::{self, Copy, Packing};
use crate::error::Result;
use crate::layer_kv::LayerKv;
use crate::tensor::{elements, in_kind, int};
use crate::weights::Weights;
use tch::{Device, Kind, Tensor};

pub(crate) use rows::{Before, Sight};

pub(crate) struct Attention {
    /// `[(heads + 2 · kv_heads) · head_dim, d]`: queries, keys, values.
    qkv: Linear,
    output: Linear,
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
    heads: i64,
    kv_heads: i64,
    head_dim: i64,
    scale: f64,
    /// Keys farther back than this are not seen; `None` sees all.
    window: Option<usize>,
}

/// The next tokens of one sequence on their way through a layer.
pub(crate) struct Run<'a> {
    pub(crate) tokens: usize,
    pub(crate) angles: &'a RunAngles,
    pub(crate) kv: LayerKv<'a>,
}

/// Of T tokens, before rotation.
struct Projected {
    /// Queries and keys, `[.., T, heads + kv_heads, head_dim]`.
    qk: Tensor,
    /// Values, `[.., T, kv_heads, head_dim]`.
    v: Tensor,
}

impl Attention {
    pub(crate) fn load(
        config: &ModelConfig,
        weights: &mut Weights,
        layer: usize,
        device: Device,
        kind: Kind,
    ) -> Result<Self> {
        let prefix = format!("model.layers.{layer}.self_attn");
        let (heads, kv_heads) = (int(config.num_heads), int(config.num_kv_heads));
        let (d, head_dim) = (int(config.hidden_size), int(config.head_dim));
        let mut parts = Vec::new();
        for (name, heads) in [
            ("q_proj", heads),
            ("k_proj", kv_heads),
            ("v_proj", kv_heads),
        ] {
            let name = format!("{prefix}.{name}");
            parts.push(Linear::take(
                weights,
                &name,
                &[heads * head_dim, d],
                config.qkv_bias,
            )?);
        }
        let output = format!("{prefix}.o_proj");
        let output = Linear::take(weights, &output, &[d, heads * head_dim], false)?;
        let mut norm = |name: &str| -> Result<Option<RmsNorm>> {
            if !config.qk_norm {
                return Ok(None);
            }
            let weight = weights.take(&format!("{prefix}.{name}.weight"), &[head_dim])?;
            let weight = weight.f_to_device(device)?;
            RmsNorm::new(&weight, config.norm_plus_one, config.norm_eps, kind).map(Some)
        };
        let windowed = config.sliding_layers.get(layer).copied().unwrap_or(false);
        Ok(Self {
            q_norm: norm("q_norm")?,
            k_norm: norm("k_norm")?,
            qkv: Linear::stack(&parts)?.to(device, kind)?,
            output: output.to(device, kind)?,
            heads,
            kv_heads,
            head_dim,
            scale: config.attention_scale,
            window: if windowed {
                config.sliding_window
            } else {
                None
            },
        })
    }

    /// The same in another dtype; what is in it already is shared.
    pub(crate) fn in_kind(&self, kind: Kind) -> Result<Self> {
        let norm = |norm: &Option<RmsNorm>| norm.as_ref().map(|norm| norm.in_kind(kind));
        Ok(Self {
            qkv: self.qkv.in_kind(kind)?,
            output: self.output.in_kind(kind)?,
            q_norm: norm(&self.q_norm).transpose()?,
            k_norm: norm(&self.k_norm).transpose()?,
            ..*self
        })
    }

    /// How far back this layer sees, in tokens; `None` is without limit.
    pub(crate) fn window(&self) -> Option<usize> {
        self.window
    }

    /// Keeps the weights packed as well, or not any more; bytes that it takes.
    pub(crate) fn pack(&mut self, packing: Option<Packing>) -> Result<usize> {
        Ok(self.qkv.pack(packing)? + self.output.pack(packing)?)
    }

    /// As decode steps read it.
    pub(crate) fn for_decode(&self, copy: Copy) -> Result<decode::Attention<'_>> {
        let count = |number: i64| usize::try_from(number).unwrap_or(0);
        Ok(decode::Attention {
            qkv: self.qkv.for_decode(copy)?,
            output: self.output.for_decode(copy)?,
            q_norm: self.q_norm.as_ref().map(RmsNorm::for_decode),
            k_norm: self.k_norm.as_ref().map(RmsNorm::for_decode),
            heads: count(self.heads),
            kv_heads: count(self.kv_heads),
            head_dim: count(self.head_dim),
            scale: self.scale as f32,
            window: self.window,
        })
    }

    pub(crate) fn parameters(&self) -> usize {
        self.qkv.parameters() + self.output.parameters()
    }

    /// `x [T, d]`, the tokens of `runs` one behind the other, to the attention's output `[T, d]`.
    /// Appends their keys (rotated) and values to what is each sequence's own.
    pub(crate) fn forward(&self, x: &Tensor, runs: &mut [Run<'_>]) -> Result<Tensor> {
        let Projected { qk, v } = self.project(x)?;
        if let [run] = runs {
            let attended = self.attended(&Projected { qk, v }, run, x.kind())?;
            return self.output.forward(&attended);
        }
        let mut all = Vec::with_capacity(runs.len());
        let mut from = 0;
        for run in runs {
            let own = Projected {
                qk: qk.f_narrow(0, from, int(run.tokens))?,
                v: v.f_narrow(0, from, int(run.tokens))?,
            };
            all.push(self.attended(&own, run, x.kind())?);
            from += int(run.tokens);
        }
        self.output.forward(&Tensor::f_cat(&all, 0)?)
    }

    /// `x [T, d]` to the attention's output `[T, d]` by whoever can `attend`: from queries, keys and values
    /// `[T, heads + 2 · kv_heads, head_dim]`, neither normed nor turned, to what queries see, `[T, heads · head_dim]`.
    pub(crate) fn forward_with(
        &self,
        x: &Tensor,
        attend: impl FnOnce(&decode::Attention<'_>, &[f32]) -> Vec<f32>,
    ) -> Result<Tensor> {
        let qkv = self.qkv.forward(x)?.f_to_kind(Kind::Float)?;
        // SAFETY: nobody else has it.
        let numbers = unsafe { elements(&qkv)? };
        let attended = attend(&self.for_decode(Copy::Loaded)?, numbers);
        let attended = Tensor::f_from_slice(&attended)?.f_reshape([qkv.size2()?.0, -1])?;
        self.output.forward(&in_kind(&attended, x.kind())?)
    }

    /// What one sequence's tokens get from its context, before the output projection, `[T, heads · head_dim]`.
    fn attended(&self, projected: &Projected, run: &mut Run<'_>, kind: Kind) -> Result<Tensor> {
        let Projected { qk, v } = projected;
        let (kv, tokens) = (&mut run.kv, run.tokens);
        let at = kv.position();
        let stand = Stand::Run { at, tokens };
        let [q, k, v] = self.turned(qk, v, run.angles)?;

        let mut parts = self.attend_packets(qk, run.angles, kv, stand)?;
        kv.append(&k, &v)?;
        if tokens == 1 && self.window.is_none() {
            // One query sees all of its own tokens, itself included.
            let (keys, values) = kv.own()?;
            let part = Part {
                keys,
                values,
                at: 0,
            };
            parts.push(self.attend_past(&q, &part, stand)?);
        } else {
            parts.extend(self.attend_own(&q, kv, stand, tokens)?);
            let own = Part {
                keys: k,
                values: v,
                at,
            };
            parts.push(own.attend_own(&q, self.scale, self.window)?);
        }
        together(parts, tokens, kind)
    }

    /// `x [n, d]`, the tokens at the scattered `positions` among `tokens` whose KV is laid out
    /// behind the tail already, to the attention's output `[n, d]`. Their own keys and values take
    /// the place of those that lie there; each query sees what stands before it and itself.
    pub(crate) fn forward_scattered(
        &self,
        x: &Tensor,
        angles: &RunAngles,
        kv: &LayerKv<'_>,
        (positions, tokens): (&[i64], usize),
    ) -> Result<Tensor> {
        let stand = Stand::Scattered(positions);
        let Projected { qk, v } = self.project(x)?;
        let [q, k, v] = self.turned(&qk, &v, angles)?;
        kv.replace(positions, &k, &v)?;
        let mut parts = self.attend_packets(&qk, angles, kv, stand)?;
        parts.extend(self.attend_own(&q, kv, stand, 0)?);
        // All queries see what stands before the first of them.
        let before = stand.first() - kv.position();
        let laid = kv.laid(0..before)?;
        if before > 0 && self.reaches(stand, stand.first()) {
            parts.push(self.attend_past(&q, &laid.part(), stand)?);
        }
        let among = kv.laid(before..(stand.end() - kv.position()).min(tokens))?;
        parts.push(
            among
                .part()
                .attend_among(&q, self.scale, stand, self.window)?,
        );
        self.output
            .forward(&together(parts, positions.len(), x.kind())?)
    }

    /// Keys (rotated) and values `[kv_heads, T, head_dim]` of `x [T, d]`.
    pub(crate) fn keys_values(&self, x: &Tensor, angles: &RunAngles) -> Result<(Tensor, Tensor)> {
        let Projected { qk, v } = self.project(x)?;
        let [_, k, v] = self.turned(&qk, &v, angles)?;
        Ok((k, v))
    }

    /// Queries and keys at their own positions, and values: `[heads, T, head_dim]` each.
    fn turned(&self, qk: &Tensor, v: &Tensor, angles: &RunAngles) -> Result<[Tensor; 3]> {
        let rotated = angles.here.rotate(qk)?.f_transpose(0, 1)?;
        let q = rotated.f_narrow(0, 0, self.heads)?;
        let k = rotated.f_narrow(0, self.heads, self.kv_heads)?;
        Ok([q, k, v.f_transpose(0, 1)?])
    }

    /// What queries `q [heads, T, head_dim]` get from the sequence's own tokens but for the last `run` of them.
    fn attend_own(
        &self,
        q: &Tensor,
        kv: &LayerKv<'_>,
        stand: Stand<'_>,
        run: usize,
    ) -> Result<Vec<Attended>> {
        let spans = kv.own_before(self.window.is_some(), run)?;
        let seen = spans
            .iter()
            .filter(|span| self.reaches(stand, span.at + span.tokens));
        seen.map(|span| self.attend_past(q, &span.part(), stand))
            .collect()
    }

    /// What the queries in `qk [T, heads + kv_heads, head_dim]` get from each packet in reach:
    /// packets stay as they are, and the queries are turned to where they stand from there.
    fn attend_packets(
        &self,
        qk: &Tensor,
        angles: &RunAngles,
        kv: &LayerKv<'_>,
        stand: Stand<'_>,
    ) -> Result<Vec<Attended>> {
        let mut parts = Vec::new();
        let packets = kv.packets()?;
        if packets.is_empty() {
            return Ok(parts);
        }
        let q = qk.f_narrow(-2, 0, self.heads)?;
        let together = packets.chunks(angles.packets_at_a_time);
        for (packets, angles) in together.zip(&angles.from_packets) {
            let turned = angles.rotate(&q)?.f_transpose(1, 2)?;
            for (index, packet) in packets.iter().enumerate() {
                if self.reaches(stand, packet.at + packet.tokens) {
                    let q = turned.f_select(0, int(index))?;
                    parts.push(self.attend_past(&q, &packet.part(), stand)?);
                }
            }
        }
        Ok(parts)
    }

    /// `x [.., T, d]` to queries, keys and values, normed where the model norms them.
    fn project(&self, x: &Tensor) -> Result<Projected> {
        let mut shape = x.size();
        shape.pop();
        shape.extend([-1, self.head_dim]);
        let qkv = self.qkv.forward(x)?.f_reshape(&shape)?;
        let part = |start: i64, heads: i64| qkv.f_narrow(-2, start, heads);
        let qk = match (&self.q_norm, &self.k_norm) {
            (Some(q_norm), Some(k_norm)) => {
                let q = q_norm.forward(&part(0, self.heads)?)?;
                let k = k_norm.forward(&part(self.heads, self.kv_heads)?)?;
                Tensor::f_cat(&[q, k], -2)?
            }
            _ => part(0, self.heads + self.kv_heads)?,
        };
        let v = part(self.heads + self.kv_heads, self.kv_heads)?;
        Ok(Projected { qk, v })
    }

    /// Whether the first query sees any key before position `end`.
    fn reaches(&self, stand: Stand<'_>, end: usize) -> bool {
        self.window
            .is_none_or(|window| stand.first() < end + window - 1)
    }

    /// All queries over keys that lie before them. Without a window nothing is masked, so the
    /// queries of a group are folded into one long query per key-value head.
    fn attend_past(&self, q: &Tensor, part: &Part, stand: Stand<'_>) -> Result<Attended> {
        match self.window {
            None => part.attend_all(q, self.scale),
            Some(window) => part.attend_window(q, self.scale, stand, window),
        }
    }
}

/// The parts as one, in `kind`, `[tokens, heads · head_dim]`.
fn together(parts: Vec<Attended>, tokens: usize, kind: Kind) -> Result<Tensor> {
    let merged = merge(parts)?.f_to_kind(kind)?;
    Ok(merged.f_transpose(0, 1)?.f_reshape([int(tokens), -1])?)
}
