//! Attention of one token of a sequence over all of its context: packets and tail where they lie.
//!
//! The query comes turned to each stretch's own positions (see `layers::attention`), so keys are read
//! as they were stored. Long contexts are cut into pieces that threads share; the pieces' softmaxes
//! are merged exactly, always in the same order, so the result does not depend on the threads.

use super::team::Crew;
use super::wide::{LANES, Numbers, Vector, Work, ahead, load, widest};

/// Keys of one piece.
const PIECE: usize = 256;
/// Queries that share one reading of keys and values.
const FEW: usize = 4;
/// Vectors of a value that are read at once.
const WIDE: usize = 4;

/// A stretch of one layer's context: keys and values of all heads, `[kv_heads, rows, head_dim]` each,
/// of which rows `from .. from + tokens` are seen.
pub(crate) struct Stretch<'a, E> {
    pub(crate) keys: &'a [E],
    pub(crate) values: &'a [E],
    /// Rows that a head has room for.
    pub(crate) rows: usize,
    pub(crate) from: usize,
    pub(crate) tokens: usize,
    /// Which of the queries is turned for this stretch.
    pub(crate) turn: usize,
}

/// The queries of one token, `[turns, heads, head_dim]`, scaled.
pub(crate) struct Queries<'a> {
    pub(crate) numbers: &'a [f32],
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

/// A piece of one sequence's context, for the queries of one key-value head.
#[derive(Clone, Copy)]
struct Piece {
    sequence: usize,
    kv_head: usize,
    stretch: usize,
    from: usize,
    tokens: usize,
}

/// What the queries of a group got from a piece.
struct Seen {
    piece: Piece,
    /// The largest score and the sum of exponentials below it, of each query.
    weights: Vec<(f32, f32)>,
    /// Σ exp(score − largest) · value, `[queries, head_dim]`.
    values: Vec<f32>,
}

/// One sequence's part of the work.
pub(crate) struct Sequence<'a, E> {
    pub(crate) queries: Queries<'a>,
    pub(crate) stretches: Vec<Stretch<'a, E>>,
}

/// Attention of every sequence's token; `out [sequences, heads · head_dim]`.
pub(crate) fn attend<E: Numbers>(
    crew: &mut Crew<'_>,
    sequences: &[Sequence<'_, E>],
    out: &mut [f32],
) {
    let mut seen = pieces(sequences);
    crew.chunks(&mut seen, 1, |_, seen| {
        for seen in seen {
            widest(Reading { sequences, seen });
        }
    });
    for (index, (sequence, out)) in sequences.iter().zip(rows(out, sequences)).enumerate() {
        let Queries {
            heads,
            kv_heads,
            head_dim,
            ..
        } = sequence.queries;
        let group = heads / kv_heads.max(1);
        for (kv_head, out) in out.chunks_exact_mut((group * head_dim).max(1)).enumerate() {
            let own = |seen: &&Seen| seen.piece.sequence == index && seen.piece.kv_head == kv_head;
            let own: Vec<&Seen> = seen.iter().filter(own).collect();
            for (query, out) in out.chunks_exact_mut(head_dim.max(1)).enumerate() {
                merge(&own, query, out);
            }
        }
    }
}

fn rows<'o, E>(
    out: &'o mut [f32],
    sequences: &[Sequence<'_, E>],
) -> impl Iterator<Item = &'o mut [f32]> {
    let width = sequences
        .first()
        .map_or(1, |first| first.queries.heads * first.queries.head_dim);
    out.chunks_exact_mut(width.max(1))
}

/// All pieces, of which nothing is seen yet.
fn pieces<E>(sequences: &[Sequence<'_, E>]) -> Vec<Seen> {
    let mut pieces = Vec::new();
    for (sequence, work) in sequences.iter().enumerate() {
        for kv_head in 0..work.queries.kv_heads {
            for (stretch, seen) in work.stretches.iter().enumerate() {
                for start in (0..seen.tokens).step_by(PIECE) {
                    let piece = Piece {
                        sequence,
                        kv_head,
                        stretch,
                        from: seen.from + start,
                        tokens: PIECE.min(seen.tokens - start),
                    };
                    pieces.push(Seen {
                        piece,
                        weights: Vec::new(),
                        values: Vec::new(),
                    });
                }
            }
        }
    }
    pieces
}

/// The reading of one piece.
struct Reading<'a, 'b, E> {
    sequences: &'a [Sequence<'b, E>],
    seen: &'a mut Seen,
}

impl<E: Numbers> Work for Reading<'_, '_, E> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        read::<V, E>(self.sequences, self.seen);
    }
}

/// The queries of one key-value head over one piece.
#[inline(always)]
fn read<V: Vector, E: Numbers>(sequences: &[Sequence<'_, E>], seen: &mut Seen) {
    let piece = seen.piece;
    let Some(sequence) = sequences.get(piece.sequence) else {
        return;
    };
    let Some(stretch) = sequence.stretches.get(piece.stretch) else {
        return;
    };
    let queries = &sequence.queries;
    let width = queries.head_dim;
    let group = queries.heads / queries.kv_heads.max(1);
    let first = (stretch.turn * queries.heads + piece.kv_head * group) * width;
    let own = queries.numbers.get(first..first + group * width);
    let own = own.unwrap_or_default();
    let start = (piece.kv_head * stretch.rows + piece.from) * width;
    let lie = start..start + piece.tokens * width;
    let keys = stretch.keys.get(lie.clone()).unwrap_or_default();
    let values = stretch.values.get(lie).unwrap_or_default();

    seen.values.resize(group * width, 0.0);
    let few = own.chunks(FEW * width.max(1));
    for (own, to) in few.zip(seen.values.chunks_mut(FEW * width.max(1))) {
        let lie = (piece.tokens, width);
        let weights = match own.len() / width.max(1) {
            1 => read_few::<V, E, 1>(own, keys, values, to, lie),
            2 => read_few::<V, E, 2>(own, keys, values, to, lie),
            3 => read_few::<V, E, 3>(own, keys, values, to, lie),
            _ => read_few::<V, E, FEW>(own, keys, values, to, lie),
        };
        seen.weights
            .extend(weights.into_iter().take(own.len() / width.max(1)));
    }
}

/// `N` queries over one piece of `(tokens, width)`: writes Σ weight · value of each to `to [N, width]` and
/// gives the largest score of each and the sum of its weights; zeros behind the last.
#[inline(always)]
#[expect(
    clippy::indexing_slicing,
    clippy::needless_range_loop,
    reason = "arrays of N are counted through: iterators over them keep vectors in memory"
)]
fn read_few<V: Vector, E: Numbers, const N: usize>(
    queries: &[f32],
    keys: &[E],
    values: &[E],
    to: &mut [f32],
    (tokens, width): (usize, usize),
) -> [(f32, f32); FEW] {
    let mut own = [&[][..]; N];
    for n in 0..N {
        own[n] = &queries[n * width..(n + 1) * width];
    }
    // Scores, and then weights, of sixteen tokens at a time: `[tokens / 16, N]`.
    let mut scores = Vec::with_capacity(tokens.div_ceil(LANES));
    for keys in keys.chunks(LANES * width) {
        scores.push(score::<V, E, N>(own, keys));
    }
    let mut all = [(0.0, 0.0); FEW];
    for n in 0..N {
        all[n] = weigh::<V, N>(&mut scores, n, tokens);
    }
    let mut at = 0;
    while at < width {
        if at + WIDE * LANES <= width {
            gather::<V, E, N, WIDE>(values, &scores, to, (at, width));
            at += WIDE * LANES;
        } else {
            gather::<V, E, N, 1>(values, &scores, to, (at, width));
            at += LANES;
        }
    }
    all
}

/// The scores of `N` queries over up to sixteen `keys`; zeros behind the last.
#[inline(always)]
#[expect(clippy::indexing_slicing, reason = "see `read_few`")]
fn score<V: Vector, E: Numbers, const N: usize>(
    queries: [&[f32]; N],
    keys: &[E],
) -> [[f32; LANES]; N] {
    let width = queries[0].len();
    let mut products = [[V::splat(0.0); LANES]; N];
    for (place, key) in keys.chunks_exact(width).enumerate().take(LANES) {
        ahead(key);
        let mut totals = [V::splat(0.0); N];
        let mut at = 0;
        while at < width {
            let key: V = load(&key[at..]);
            for n in 0..N {
                totals[n] = load::<V, f32>(&queries[n][at..]).multiply_add(key, totals[n]);
            }
            at += LANES;
        }
        for n in 0..N {
            products[n][place] = totals[n];
        }
    }
    let mut scores = [[0.0; LANES]; N];
    for n in 0..N {
        V::sums(&products[n]).store(&mut scores[n]);
    }
    scores
}

/// Turns the scores of query `n` into exponentials below the largest, which is given back with their sum.
#[inline(always)]
#[expect(clippy::indexing_slicing, reason = "`n` is below `N`")]
fn weigh<V: Vector, const N: usize>(
    scores: &mut [[[f32; LANES]; N]],
    n: usize,
    tokens: usize,
) -> (f32, f32) {
    let rest = tokens % LANES;
    if let (Some(last), true) = (scores.last_mut(), rest > 0) {
        last[n][rest..].fill(f32::NEG_INFINITY);
    }
    let mut most = V::splat(f32::NEG_INFINITY);
    for scores in &*scores {
        most = most.at_least(V::load(&scores[n]));
    }
    let largest = most.largest();
    let below = V::splat(-largest);
    let mut sum = V::splat(0.0);
    for scores in &mut *scores {
        let weights = V::load(&scores[n]).plus(below).exp();
        weights.store(&mut scores[n]);
        sum = sum.plus(weights);
    }
    (largest, sum.sum())
}

/// Σ weight · value of `N` queries: `C` vectors from `at` on of `to [N, width]`.
#[inline(always)]
#[expect(clippy::indexing_slicing, reason = "see `read_few`")]
fn gather<V: Vector, E: Numbers, const N: usize, const C: usize>(
    values: &[E],
    weights: &[[[f32; LANES]; N]],
    to: &mut [f32],
    (at, width): (usize, usize),
) {
    let mut totals = [[V::splat(0.0); C]; N];
    for (values, weights) in values.chunks(LANES * width).zip(weights) {
        for (place, value) in values.chunks_exact(width).enumerate().take(LANES) {
            ahead(&value[at..]);
            for c in 0..C {
                let value: V = load(&value[at + c * LANES..]);
                for n in 0..N {
                    let weight = V::splat(weights[n][place]);
                    totals[n][c] = value.multiply_add(weight, totals[n][c]);
                }
            }
        }
    }
    for n in 0..N {
        for c in 0..C {
            let mut numbers = [0.0; LANES];
            totals[n][c].store(&mut numbers);
            let to = &mut to[n * width..(n + 1) * width][at + c * LANES..];
            for (to, number) in to.iter_mut().zip(numbers) {
                *to = number;
            }
        }
    }
}

/// What one query of a group got from all pieces, as if they had been one.
fn merge(seen: &[&Seen], query: usize, out: &mut [f32]) {
    let weights = |seen: &Seen| seen.weights.get(query).copied().unwrap_or((0.0, 0.0));
    let largest = seen
        .iter()
        .fold(f32::NEG_INFINITY, |most, seen| most.max(weights(seen).0));
    let mut total = 0.0_f32;
    out.fill(0.0);
    for seen in seen {
        let (own, sum) = weights(seen);
        let share = (own - largest).exp();
        total += sum * share;
        let values = seen.values.chunks_exact(out.len().max(1)).nth(query);
        for (out, value) in out.iter_mut().zip(values.unwrap_or_default()) {
            *out += value * share;
        }
    }
    for out in out {
        *out /= total;
    }
}
