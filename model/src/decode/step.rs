//! One token of several sequences through all layers, in f32, without libtorch.
//!
//! Owns the order of a step. Products, attention and what each sequence has for itself go over the team's
//! threads; norms and sums between them are a few thousand numbers and stay on one. Whatever is read or written was laid out before
//! (see `decode`), so nothing here fails.

use super::attend::{Queries, Sequence, Stretch, attend};
use super::product::product;
use super::rows::Rows;
use super::team::Crew;
use super::wide::{LANES, Numbers, Vector, Work, load, widest};
use crate::config::Activation;

/// A root-mean-square norm: its weight and what is added to the mean square.
#[derive(Clone, Copy)]
pub(crate) struct Norm<'a> {
    pub(crate) weight: &'a [f32],
    pub(crate) eps: f32,
}

/// A linear map.
pub(crate) struct Map<'a> {
    pub(crate) rows: Rows<'a>,
    /// Empty where there is none.
    pub(crate) bias: &'a [f32],
    pub(crate) outputs: usize,
}

/// The attention of one layer.
pub(crate) struct Attention<'a> {
    pub(crate) qkv: Map<'a>,
    pub(crate) q_norm: Option<Norm<'a>>,
    pub(crate) k_norm: Option<Norm<'a>>,
    pub(crate) output: Map<'a>,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) scale: f32,
    pub(crate) window: Option<usize>,
}

/// One layer.
pub(crate) struct Layer<'a> {
    pub(crate) before_attention: Norm<'a>,
    pub(crate) attention: Attention<'a>,
    pub(crate) after_attention: Option<Norm<'a>>,
    pub(crate) before_mlp: Norm<'a>,
    pub(crate) gate_up: Map<'a>,
    pub(crate) down: Map<'a>,
    pub(crate) after_mlp: Option<Norm<'a>>,
    pub(crate) activation: Activation,
    /// Which of a place's two sets of angles turns queries and keys.
    pub(crate) local: bool,
}

/// Cosines and sines of one position, `head_dim / 2` each.
pub(crate) struct Turn {
    pub(crate) cos: Vec<f32>,
    pub(crate) sin: Vec<f32>,
}

/// A stretch of a sequence's context, as positions.
#[derive(Clone, Copy)]
pub(crate) struct Lie {
    pub(crate) at: usize,
    /// The first row of the tail, or of the packet.
    pub(crate) from: usize,
    pub(crate) tokens: usize,
    /// The packet's number among the sequence's; `None` is the tail.
    pub(crate) packet: Option<usize>,
}

/// Where a sequence's new token stands.
pub(crate) struct Place {
    pub(crate) position: usize,
    /// The tail's row that its keys and values go to.
    pub(crate) row: usize,
    /// The context with the new token in it.
    pub(crate) lies: Vec<Lie>,
    /// Angles at its own position and, after it, relative to each packet.
    pub(crate) turns: Vec<Turn>,
    /// The same of windowed layers where they turn by other angles; else empty.
    pub(crate) local_turns: Vec<Turn>,
}

/// Keys and values of one layer of one sequence, `[kv_heads, rows, head_dim]` each.
pub(crate) struct Memory<'a, E> {
    pub(crate) keys: &'a mut [E],
    pub(crate) values: &'a mut [E],
    pub(crate) rows: usize,
    /// Of each packet: keys, values, rows.
    pub(crate) packets: Vec<(&'a [E], &'a [E], usize)>,
}

/// Runs the residual streams `x [sequences, d]` through one layer; `memories` and `places` are the
/// sequences'.
pub(crate) fn layer<E: Numbers>(
    crew: &mut Crew<'_>,
    layer: &Layer<'_>,
    places: &[Place],
    memories: &mut [Memory<'_, E>],
    x: &mut [f32],
) {
    let d = x.len() / places.len().max(1);
    let normed = normed(x, layer.before_attention);
    let attention = &layer.attention;
    let qkv = attention.qkv.of(crew, &normed, d);
    let width = attention.heads * attention.head_dim;
    let tokens = qkv.chunks_exact(attention.qkv.outputs).zip(places);
    let mut entries: Vec<_> = tokens
        .zip(&mut *memories)
        .map(|((qkv, place), memory)| (qkv, place, memory, Vec::new()))
        .collect();
    crew.chunks(&mut entries, 1, |_, entries| {
        for (qkv, place, memory, queries) in entries {
            let turns = match layer.local {
                true => &place.local_turns,
                false => &place.turns,
            };
            *queries = enter(attention, qkv, (place.row, turns), memory);
        }
    });
    let queries: Vec<Vec<f32>> = entries.into_iter().map(|entry| entry.3).collect();
    let mut attended = vec![0.0; places.len() * width];
    let work = queries.iter().zip(places).zip(&*memories);
    let work = work.map(|((queries, place), memory)| sequence(attention, queries, place, memory));
    attend(crew, &work.collect::<Vec<_>>(), &mut attended);
    let output = attention.output.of(crew, &attended, width);
    add(x, output, layer.after_attention);

    let normed = self::normed(x, layer.before_mlp);
    let gate_up = layer.gate_up.of(crew, &normed, d);
    let inner = layer.gate_up.outputs / 2;
    let mut key = vec![0.0; places.len() * inner];
    crew.chunks(&mut key, inner, |index, key| {
        let own = gate_up.chunks_exact(2 * inner).nth(index);
        let (gate, up) = own.unwrap_or_default().split_at(key.len());
        key.copy_from_slice(gate);
        widest(Gated {
            activation: layer.activation,
            up,
            key,
        });
    });
    add(x, layer.down.of(crew, &key, inner), layer.after_mlp);
}

/// Norms, turns and keeps one token's keys and values; its queries for each turn, scaled,
/// `[turns, heads, head_dim]`.
fn enter<E: Numbers>(
    attention: &Attention<'_>,
    qkv: &[f32],
    (row, turns): (usize, &[Turn]),
    memory: &mut Memory<'_, E>,
) -> Vec<f32> {
    let width = attention.head_dim;
    let (q, kv) = qkv.split_at(attention.heads * width);
    let (k, v) = kv.split_at(attention.kv_heads * width);
    let own = |head: &[f32], norm: Option<Norm<'_>>| {
        norm.map_or_else(|| head.to_vec(), |norm| normed(head, norm))
    };
    if let Some(here) = turns.first() {
        for (head, (k, v)) in k.chunks_exact(width).zip(v.chunks_exact(width)).enumerate() {
            let at = (head * memory.rows + row) * width;
            let mut key = own(k, attention.k_norm);
            turn(&mut key, here);
            if let Some(kept) = memory.keys.get_mut(at..at + width) {
                narrow(&key, kept);
            }
            if let Some(kept) = memory.values.get_mut(at..at + width) {
                narrow(v, kept);
            }
        }
    }
    let plain: Vec<f32> = q
        .chunks_exact(width)
        .flat_map(|head| own(head, attention.q_norm))
        .collect();
    let mut queries = Vec::with_capacity(turns.len() * plain.len());
    for angles in turns {
        let start = queries.len();
        queries.extend(plain.iter().map(|number| number * attention.scale));
        let turned = queries.get_mut(start..).unwrap_or_default();
        for head in turned.chunks_exact_mut(width) {
            turn(head, angles);
        }
    }
    queries
}

/// What one sequence's queries see in this layer.
fn sequence<'a, E>(
    attention: &Attention<'_>,
    queries: &'a [f32],
    place: &Place,
    memory: &'a Memory<'_, E>,
) -> Sequence<'a, E> {
    // The window counts the token itself.
    let first = attention
        .window
        .map_or(0, |window| (place.position + 1).saturating_sub(window));
    let stretches = place.lies.iter().filter_map(|lie| {
        let hidden = first.saturating_sub(lie.at).min(lie.tokens);
        let (keys, values, rows) = match lie.packet {
            None => (&*memory.keys, &*memory.values, memory.rows),
            Some(index) => *memory.packets.get(index)?,
        };
        (hidden < lie.tokens).then_some(Stretch {
            keys,
            values,
            rows,
            from: lie.from + hidden,
            tokens: lie.tokens - hidden,
            turn: lie.packet.map_or(0, |index| index + 1),
        })
    });
    Sequence {
        stretches: stretches.collect(),
        queries: Queries {
            numbers: queries,
            heads: attention.heads,
            kv_heads: attention.kv_heads,
            head_dim: attention.head_dim,
        },
    }
}

/// Turns one head in the half-split form (see `layers::rope`).
fn turn(head: &mut [f32], angles: &Turn) {
    let (first, second) = head.split_at_mut(head.len() / 2);
    let angles = angles.cos.iter().zip(&angles.sin);
    for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(angles) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

/// `x / sqrt(mean(x²) + eps) · w` of each row as wide as the weight.
pub(crate) fn normed(x: &[f32], norm: Norm<'_>) -> Vec<f32> {
    let mut out = x.to_vec();
    for row in out.chunks_exact_mut(norm.weight.len().max(1)) {
        widest(Normed { norm, row });
    }
    out
}

/// One row, in its own place.
struct Normed<'a> {
    norm: Norm<'a>,
    row: &'a mut [f32],
}

impl Work for Normed<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let mut square = V::splat(0.0);
        for part in self.row.chunks(LANES) {
            let part: V = load(part);
            square = part.multiply_add(part, square);
        }
        let mean = square.sum() / self.row.len() as f32;
        let scale = 1.0 / (mean + self.norm.eps).sqrt();
        for (x, weight) in self.row.iter_mut().zip(self.norm.weight) {
            *x = *x * scale * weight;
        }
    }
}

/// `x + norm(output)`, or without the norm where the model has none there.
fn add(x: &mut [f32], output: Vec<f32>, norm: Option<Norm<'_>>) {
    let output = match norm {
        Some(norm) => normed(&output, norm),
        None => output,
    };
    for (x, output) in x.iter_mut().zip(output) {
        *x += output;
    }
}

/// `act(key) · up`, in the place of `key`.
struct Gated<'a> {
    activation: Activation,
    up: &'a [f32],
    key: &'a mut [f32],
}

impl Work for Gated<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let ((up, up_rest), (key, key_rest)) = (self.up.as_chunks(), self.key.as_chunks_mut());
        for (key, up) in key.iter_mut().zip(up) {
            let gate = activated(self.activation, V::load(key));
            gate.multiply(V::load(up)).store(key);
        }
        let gate: V = activated(self.activation, load(key_rest));
        let mut last = [0.0; LANES];
        gate.multiply(load(up_rest)).store(&mut last);
        for (key, last) in key_rest.iter_mut().zip(last) {
            *key = last;
        }
    }
}

/// `x · σ(slope)`, which silu and gelu both are.
#[inline(always)]
fn activated<V: Vector>(activation: Activation, x: V) -> V {
    let slope = match activation {
        Activation::Silu => x,
        // ½ (1 + tanh y) = σ(2 y), with y = √(2/π) (x + 0.044715 x³).
        Activation::GeluTanh => {
            let square = x
                .multiply(x)
                .multiply_add(V::splat(0.044_715), V::splat(1.0));
            x.multiply(square).multiply(V::splat(1.595_769))
        }
    };
    let opposite = slope.multiply(V::splat(-1.0)).exp();
    x.divide(opposite.plus(V::splat(1.0)))
}

/// Rounds to what `to` can hold.
fn narrow<E: Numbers>(from: &[f32], to: &mut [E]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = E::narrow(*from);
    }
}

impl Map<'_> {
    /// The map of each of `x [vectors, inputs]`, `[vectors, outputs]`.
    pub(crate) fn of(&self, crew: &mut Crew<'_>, x: &[f32], inputs: usize) -> Vec<f32> {
        let blocks = product(crew, self.rows, x, (inputs, self.outputs));
        let count = x.len() / inputs.max(1);
        let mut out = blocks;
        if count == 1 {
            out.truncate(self.outputs);
        } else {
            let blocks = std::mem::take(&mut out);
            out.reserve_exact(self.outputs * count);
            for vector in 0..count {
                let own = blocks.chunks_exact(LANES).skip(vector).step_by(count);
                own.for_each(|numbers| out.extend_from_slice(numbers));
                out.truncate(self.outputs * (vector + 1));
            }
        }
        if !self.bias.is_empty() {
            for out in out.chunks_exact_mut(self.outputs) {
                for (out, bias) in out.iter_mut().zip(self.bias) {
                    *out += bias;
                }
            }
        }
        out
    }
}
