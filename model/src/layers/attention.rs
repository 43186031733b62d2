//! Grouped-query attention of one layer, in two forms over the same weights.
//!
//! - [`Attention::forward`] serves: one sequence with its cache, no gradients. Where a query
//!   meets a packet, **the query is turned back** to its position relative to the packet, and
//!   the parts of the context are merged by their log-sum-exps (see `layers::part`).
//! - [`Attention::forward_batch`] studies: many rows without a cache, any mask, differentiable.
//!
//! Tensors of a head are `[.., heads, T, head_dim]`; positions count from the sequence's start.

use super::linear::Linear;
use super::norm::RmsNorm;
use super::part::{Attended, Part, Stand, merge};
use super::rope::{Angles, RunAngles};
use super::stretches::{Stretch, Stretches};
use crate::config::ModelConfig;
use crate::decode::{self, Copy, Packing};
use crate::error::Result;
use crate::layer_kv::LayerKv;
use crate::packet::Plane;
use crate::tensor::{in_kind, int};
use crate::weights::Weights;
use tch::{Device, Kind, Tensor};

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

/// Keys (rotated) and values of the tokens that stand before those of a batch,
/// `[B, P, kv_heads, head_dim]` each.
#[derive(Debug)]
pub(crate) struct Before {
    keys: Tensor,
    values: Tensor,
}

impl Before {
    /// P.
    pub(crate) fn tokens(&self) -> usize {
        let tokens = self.keys.size().get(1).copied().unwrap_or(0);
        usize::try_from(tokens).unwrap_or(0)
    }

    /// Those of some rows, `rows` i64 `[n]`.
    pub(crate) fn of(&self, rows: &Tensor) -> Result<Self> {
        Ok(Self {
            keys: self.keys.f_index_select(0, rows)?,
            values: self.values.f_index_select(0, rows)?,
        })
    }

    /// Those of a primer's first tokens, as what stands before each of so many rows.
    fn of_plane(plane: &Plane, tokens: usize, (rows, kind): (i64, Kind)) -> Result<Self> {
        let of = |t: &Tensor| -> Result<Tensor> {
            let t = in_kind(&t.f_narrow(1, 0, int(tokens))?.f_transpose(0, 1)?, kind)?;
            Ok(t.f_unsqueeze(0)?.f_expand([rows, -1, -1, -1], false)?)
        };
        Ok(Self {
            keys: of(&plane.keys)?,
            values: of(&plane.values)?,
        })
    }

    /// These behind others.
    fn behind(self, before: Option<&Self>) -> Result<Self> {
        let Some(before) = before else {
            return Ok(self);
        };
        Ok(Self {
            keys: Tensor::f_cat(&[&before.keys, &self.keys], 1)?,
            values: Tensor::f_cat(&[&before.values, &self.values], 1)?,
        })
    }

    /// Those of the first tokens.
    fn first(&self, tokens: i64) -> Result<Self> {
        Ok(Self {
            keys: self.keys.f_narrow(1, 0, tokens)?,
            values: self.values.f_narrow(1, 0, tokens)?,
        })
    }
}

/// What the tokens of a batch attend to, and the positions that they are turned to.
#[derive(Clone, Copy)]
pub(crate) enum Sight<'a> {
    /// Every row's tokens behind the P tokens of `before`, turned by `angles`. `mask [.., S, P + S]` is true where a
    /// query (row) sees a key (column); `None` is causal, and then there is nothing before. (A window is part of the
    /// mask.)
    Rows {
        angles: &'a Angles,
        mask: Option<&'a Tensor>,
        before: Option<&'a Before>,
    },
    /// Rows with isolated documents in them, which stand behind `primer`.
    Stretches {
        stretches: &'a Stretches,
        primer: Option<&'a Plane>,
    },
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

    /// `x [B, S, d]` to the attention's output `[B, S, d]`, and the keys and values of all tokens before and in the
    /// rows. Differentiable in `x`.
    pub(crate) fn forward_batch(&self, x: &Tensor, sight: Sight<'_>) -> Result<(Tensor, Before)> {
        let (rows, tokens, _) = x.size3()?;
        let Projected { qk, v } = self.project(x)?;
        let angles = match sight {
            Sight::Rows { angles, .. } => angles,
            Sight::Stretches { stretches, .. } => &stretches.row,
        };
        let (q, own) = self.of_rows(&angles.rotate(&qk)?, &v)?;
        let (out, seen) = match sight {
            Sight::Rows { mask, before, .. } => {
                let seen = own.behind(before)?;
                (self.attend_rows(&q, &seen, mask)?, seen)
            }
            Sight::Stretches { stretches, primer } => {
                let all = stretches.each.iter();
                let all =
                    all.map(|stretch| self.attend_stretch((&q, &own), (&qk, &v), stretch, primer));
                let all = all.collect::<Result<Vec<_>>>()?;
                (Tensor::f_cat(&all, 2)?, own)
            }
        };
        let out = out.f_transpose(1, 2)?;
        let out = out.f_reshape([rows, tokens, self.heads * self.head_dim])?;
        Ok((self.output.forward(&out)?, seen))
    }

    /// Rotated queries and keys `[B, n, heads + kv_heads, head_dim]` apart, queries as `[B, heads, n, head_dim]`, and
    /// keys together with their values.
    fn of_rows(&self, rotated: &Tensor, v: &Tensor) -> Result<(Tensor, Before)> {
        let q = rotated.f_narrow(-2, 0, self.heads)?.f_transpose(1, 2)?;
        let own = Before {
            keys: rotated.f_narrow(-2, self.heads, self.kv_heads)?,
            values: v.shallow_clone(),
        };
        Ok((q, own))
    }

    /// What the queries of one stretch get, `[B, heads, n, head_dim]`: of a document from the primer and itself, else
    /// from the row up to there. `q` and `own` are the row's at its own positions, `qk` and `v` those before rotation.
    fn attend_stretch(
        &self,
        (q, own): (&Tensor, &Before),
        (qk, v): (&Tensor, &Tensor),
        stretch: &Stretch,
        primer: Option<&Plane>,
    ) -> Result<Tensor> {
        let (from, count) = (int(stretch.tokens.start), int(stretch.tokens.len()));
        let mask = Some(&stretch.visible);
        let Some((primed, angles)) = &stretch.alone else {
            let seen = own.first(int(stretch.tokens.end))?;
            return self.attend_rows(&q.f_narrow(2, from, count)?, &seen, mask);
        };
        let rotated = angles.rotate(&qk.f_narrow(1, from, count)?)?;
        let (q, own) = self.of_rows(&rotated, &v.f_narrow(1, from, count)?)?;
        let rows = q.size4()?.0;
        let primer = primer.map(|plane| Before::of_plane(plane, *primed, (rows, q.kind())));
        let seen = own.behind(primer.transpose()?.as_ref())?;
        self.attend_rows(&q, &seen, mask)
    }

    /// What queries `q [B, heads, n, head_dim]` get from `seen`, `[B, heads, n, head_dim]`; causal without a mask.
    fn attend_rows(&self, q: &Tensor, seen: &Before, mask: Option<&Tensor>) -> Result<Tensor> {
        let expand = |t: &Tensor| -> Result<Tensor> {
            let groups = self.heads / self.kv_heads;
            let expanded = t.f_repeat_interleave_self_int(groups, 2, None)?;
            Ok(expanded.f_transpose(1, 2)?)
        };
        let (k, v) = (expand(&seen.keys)?, expand(&seen.values)?);
        let causal = mask.is_none();
        Ok(Tensor::f_scaled_dot_product_attention(
            q, &k, &v, mask, 0.0, causal, self.scale, false,
        )?)
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
