//! New tokens of several sequences through all layers, in f32, without libtorch.
//!
//! Owns the order of a step. Whatever takes longer than handing it out goes over the team's threads. What is
//! read or written was laid out before (see `decode`), so nothing here fails.

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
    /// The first row of the tail, or of the shared memory.
    pub(crate) from: usize,
    pub(crate) tokens: usize,
    /// The number of a block or packet among [`Memory::shared`]; `None` is the tail.
    pub(crate) shared: Option<usize>,
    /// Which of a token's turns its queries are turned by.
    pub(crate) turn: usize,
}

/// The new tokens of one sequence, one behind the other.
pub(crate) struct Run {
    /// Where the first one stands.
    pub(crate) position: usize,
    /// The tail's row that its keys and values go to.
    pub(crate) row: usize,
    /// The context with all of them in it.
    pub(crate) lies: Vec<Lie>,
    /// Of each token: angles at its own position and, after it, relative to each packet.
    pub(crate) turns: Vec<Vec<Turn>>,
    /// The same of windowed layers where they turn by other angles; else nothing.
    pub(crate) local_turns: Vec<Vec<Turn>>,
}

impl Run {
    fn tokens(&self) -> usize {
        self.turns.len()
    }

    /// The angles that a layer turns by.
    fn turns(&self, local: bool) -> &[Vec<Turn>] {
        match local {
            true => &self.local_turns,
            false => &self.turns,
        }
    }
}

/// Keys and values of one layer of one sequence, `[kv_heads, rows, head_dim]` each.
pub(crate) struct Memory<'a, E> {
    pub(crate) keys: &'a mut [E],
    pub(crate) values: &'a mut [E],
    pub(crate) rows: usize,
    /// Of each block and each packet: keys, values, rows.
    pub(crate) shared: Vec<(&'a [E], &'a [E], usize)>,
}

/// Sends the residual streams `x [tokens, d]` through one layer; `memories` and `runs` are the sequences'.
pub(crate) fn layer<E: Numbers>(
    crew: &mut Crew<'_>,
    layer: &Layer<'_>,
    runs: &[Run],
    memories: &mut [Memory<'_, E>],
    x: &mut [f32],
) {
    let tokens: usize = runs.iter().map(Run::tokens).sum();
    let d = x.len() / tokens.max(1);
    let normed = normed(crew, x, layer.before_attention);
    let attention = &layer.attention;
    let qkv = attention.qkv.of(crew, &normed, d);
    let attended = attended(crew, (attention, layer.local), runs, memories, &qkv);
    let width = attention.heads * attention.head_dim;
    let output = attention.output.of(crew, &attended, width);
    add(crew, x, output, layer.after_attention);

    let normed = self::normed(crew, x, layer.before_mlp);
    let gate_up = layer.gate_up.of(crew, &normed, d);
    let inner = layer.gate_up.outputs / 2;
    let mut key = vec![0.0; tokens * inner];
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
    let down = layer.down.of(crew, &key, inner);
    add(crew, x, down, layer.after_mlp);
}

/// Keeps the keys and values of tokens and gives what their queries see, before the output map:
/// `[tokens, heads · head_dim]`. Of `qkv [tokens, heads + 2 · kv_heads, head_dim]` nothing is normed or turned yet;
/// `local` says by which of a place's two sets of angles it is to be.
pub(crate) fn attended<E: Numbers>(
    crew: &mut Crew<'_>,
    (attention, local): (&Attention<'_>, bool),
    runs: &[Run],
    memories: &mut [Memory<'_, E>],
    qkv: &[f32],
) -> Vec<f32> {
    let mut rest = qkv.chunks_exact(attention.qkv.outputs);
    let entering = runs.iter().zip(&mut *memories);
    let mut entering: Vec<_> = entering
        .map(|(run, memory)| {
            let own: Vec<&[f32]> = rest.by_ref().take(run.tokens()).collect();
            (own, run, memory)
        })
        .collect();
    crew.chunks(&mut entering, 1, |_, entering| {
        for (own, run, memory) in entering {
            for (index, (own, turns)) in own.iter().zip(run.turns(local)).enumerate() {
                keep(attention, own, (run.row + index, turns), memory);
            }
        }
    });
    let turns = runs.iter().flat_map(|run| run.turns(local));
    let tokens = qkv.chunks_exact(attention.qkv.outputs).zip(turns);
    let mut asking: Vec<_> = tokens.map(|token| (token, Vec::new())).collect();
    crew.chunks(&mut asking, 1, |_, asking| {
        for ((own, turns), queries) in asking {
            *queries = queries_of(attention, own, turns);
        }
    });
    let queries: Vec<Vec<f32>> = asking.into_iter().map(|(_, queries)| queries).collect();
    let mut rest = &queries[..];
    let sequences = runs.iter().zip(&*memories).map(|(run, memory)| {
        let (own, others) = rest.split_at(run.tokens().min(rest.len()));
        rest = others;
        sequence(attention, own, run, memory)
    });
    let sequences: Vec<_> = sequences.collect();
    let mut out = vec![0.0; queries.len() * attention.heads * attention.head_dim];
    attend(crew, &sequences, &mut out);
    out
}

/// Norms, turns and keeps one token's keys and values in `row`.
fn keep<E: Numbers>(
    attention: &Attention<'_>,
    qkv: &[f32],
    (row, turns): (usize, &[Turn]),
    memory: &mut Memory<'_, E>,
) {
    let width = attention.head_dim;
    let (_, kv) = qkv.split_at(attention.heads * width);
    let (k, v) = kv.split_at(attention.kv_heads * width);
    let Some(angles) = turns.first() else {
        return;
    };
    let mut keys = k.to_vec();
    norm_heads(&mut keys, attention.k_norm);
    widest(Turned {
        heads: &mut keys,
        angles,
    });
    for (from, to) in [(&keys[..], &mut *memory.keys), (v, &mut *memory.values)] {
        for (head, from) in from.chunks_exact(width).enumerate() {
            let at = (head * memory.rows + row) * width;
            if let Some(to) = to.get_mut(at..at + width) {
                widest(Narrowed { from, to });
            }
        }
    }
}

/// One token's queries for each turn, scaled, `[turns, heads, head_dim]`.
fn queries_of(attention: &Attention<'_>, qkv: &[f32], turns: &[Turn]) -> Vec<f32> {
    let (q, _) = qkv.split_at(attention.heads * attention.head_dim);
    let mut plain = q.to_vec();
    norm_heads(&mut plain, attention.q_norm);
    for number in &mut plain {
        *number *= attention.scale;
    }
    let mut queries = plain.repeat(turns.len());
    for (heads, angles) in queries.chunks_exact_mut(plain.len()).zip(turns) {
        widest(Turned { heads, angles });
    }
    queries
}

/// Norms each of `heads`, where there is a norm.
fn norm_heads(heads: &mut [f32], norm: Option<Norm<'_>>) {
    if let Some(norm) = norm {
        for row in heads.chunks_exact_mut(norm.weight.len().max(1)) {
            widest(Normed { norm, row });
        }
    }
}

/// What the queries of one sequence's tokens see in this layer.
fn sequence<'a, E>(
    attention: &Attention<'_>,
    queries: &'a [Vec<f32>],
    run: &Run,
    memory: &'a Memory<'_, E>,
) -> Sequence<'a, E> {
    // What the first token does not see, nobody sees.
    let first = attention
        .window
        .map_or(0, |window| (run.position + 1).saturating_sub(window));
    let stretches = run.lies.iter().filter_map(|lie| {
        let hidden = first.saturating_sub(lie.at).min(lie.tokens);
        let (keys, values, rows) = match lie.shared {
            None => (&*memory.keys, &*memory.values, memory.rows),
            Some(index) => *memory.shared.get(index)?,
        };
        (hidden < lie.tokens).then_some(Stretch {
            keys,
            values,
            rows,
            from: lie.from + hidden,
            at: lie.at + hidden,
            tokens: lie.tokens - hidden,
            turn: lie.turn,
        })
    });
    Sequence {
        stretches: stretches.collect(),
        queries: Queries {
            tokens: queries,
            heads: attention.heads,
            kv_heads: attention.kv_heads,
            head_dim: attention.head_dim,
        },
        position: run.position,
        window: attention.window,
    }
}

/// One token's heads, turned in their own place in the half-split form (see `layers::rope`).
struct Turned<'a> {
    heads: &'a mut [f32],
    angles: &'a Turn,
}

impl Work for Turned<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Turn { cos, sin } = self.angles;
        for head in self.heads.chunks_exact_mut(2 * cos.len().max(1)) {
            let (first, second) = head.split_at_mut(cos.len());
            for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}

/// Rows that are worth handing to another thread.
const WORTH: usize = 8;

/// `x / sqrt(mean(x²) + eps) · w` of each row as wide as the weight.
pub(crate) fn normed(crew: &mut Crew<'_>, x: &[f32], norm: Norm<'_>) -> Vec<f32> {
    let mut out = x.to_vec();
    let width = norm.weight.len().max(1);
    crew.chunks(&mut out, WORTH * width, |_, rows| {
        for row in rows.chunks_exact_mut(width) {
            widest(Normed { norm, row });
        }
    });
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
fn add(crew: &mut Crew<'_>, x: &mut [f32], output: Vec<f32>, norm: Option<Norm<'_>>) {
    let output = match norm {
        Some(norm) => normed(crew, &output, norm),
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

/// Numbers rounded to what `to` can hold.
struct Narrowed<'a, E> {
    from: &'a [f32],
    to: &'a mut [E],
}

impl<E: Numbers> Work for Narrowed<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        for (to, from) in self.to.iter_mut().zip(self.from) {
            *to = E::narrow(*from);
        }
    }
}

impl Map<'_> {
    /// The map of each of `x [vectors, inputs]`, `[vectors, outputs]`.
    pub(crate) fn of(&self, crew: &mut Crew<'_>, x: &[f32], inputs: usize) -> Vec<f32> {
        let mut blocks = product(crew, self.rows, x, (inputs, self.outputs));
        let count = x.len() / inputs.max(1);
        if count == 1 {
            blocks.truncate(self.outputs);
            self.add_bias(&mut blocks);
            return blocks;
        }
        let mut out = vec![0.0; self.outputs * count];
        crew.chunks(&mut out, WORTH * self.outputs, |index, out| {
            for (vector, out) in out.chunks_exact_mut(self.outputs).enumerate() {
                let own = blocks.chunks_exact(LANES).skip(index * WORTH + vector);
                for (out, own) in out.chunks_mut(LANES).zip(own.step_by(count)) {
                    for (out, own) in out.iter_mut().zip(own) {
                        *out = *own;
                    }
                }
                self.add_bias(out);
            }
        });
        out
    }

    fn add_bias(&self, out: &mut [f32]) {
        for (out, bias) in out.iter_mut().zip(self.bias) {
            *out += bias;
        }
    }
}
