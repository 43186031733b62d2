//! Attention of one token of a sequence over all of its context: packets and tail where they lie.
//!
//! The query comes turned to each stretch's own positions (see `layers::attention`), so keys are read
//! as they were stored. Long contexts are cut into pieces that threads share; the pieces' softmaxes
//! are merged exactly, always in the same order, so the result does not depend on the threads.

use super::product::inner;
use super::wide::{LANES, Numbers, Vector, Work, load, widest};
use rayon::prelude::{IntoParallelIterator, ParallelIterator};

/// Keys of one piece.
const PIECE: usize = 512;

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
pub(crate) fn attend<E: Numbers>(sequences: &[Sequence<'_, E>], out: &mut [f32]) {
    let pieces = pieces(sequences);
    let work = |piece: &Piece| {
        widest(Reading {
            sequences,
            piece: *piece,
        })
    };
    // Handing out less than a piece for each of two threads costs more than it saves.
    let keys: usize = pieces.iter().map(|piece| piece.tokens).sum();
    let seen: Vec<Seen> = if keys < PIECE {
        pieces.iter().map(work).collect()
    } else {
        pieces
            .into_par_iter()
            .map(|piece| work(&piece))
            .collect::<Vec<_>>()
    };
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

fn pieces<E>(sequences: &[Sequence<'_, E>]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (sequence, work) in sequences.iter().enumerate() {
        for kv_head in 0..work.queries.kv_heads {
            for (stretch, seen) in work.stretches.iter().enumerate() {
                for start in (0..seen.tokens).step_by(PIECE) {
                    pieces.push(Piece {
                        sequence,
                        kv_head,
                        stretch,
                        from: seen.from + start,
                        tokens: PIECE.min(seen.tokens - start),
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
    piece: Piece,
}

impl<E: Numbers> Work for Reading<'_, '_, E> {
    type Output = Seen;

    #[inline(always)]
    fn run<V: Vector>(self) -> Seen {
        read::<V, E>(self.sequences, self.piece)
    }
}

/// The queries of one key-value head over one piece.
#[inline(always)]
fn read<V: Vector, E: Numbers>(sequences: &[Sequence<'_, E>], piece: Piece) -> Seen {
    let nothing = Seen {
        piece,
        weights: Vec::new(),
        values: Vec::new(),
    };
    let Some(sequence) = sequences.get(piece.sequence) else {
        return nothing;
    };
    let Some(stretch) = sequence.stretches.get(piece.stretch) else {
        return nothing;
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

    // Scores and then weights, `[queries, keys]`: a key is read once for all queries of its group.
    let mut scores = vec![0.0_f32; group * piece.tokens];
    for (index, key) in keys.chunks_exact(width.max(1)).enumerate() {
        let scores = scores.chunks_exact_mut(piece.tokens.max(1));
        for (query, scores) in own.chunks_exact(width.max(1)).zip(scores) {
            if let Some(score) = scores.get_mut(index) {
                *score = inner::<V, E>(query, key);
            }
        }
    }
    let mut weights = Vec::with_capacity(group);
    for scores in scores.chunks_exact_mut(piece.tokens.max(1)) {
        weights.push(weigh::<V>(scores));
    }
    let mut gathered = vec![0.0_f32; group * width];
    let fours = scores.chunks(4 * piece.tokens.max(1));
    for (weights, to) in fours.zip(gathered.chunks_mut(4 * width.max(1))) {
        gather::<V, E>(values, weights, to, (piece.tokens, width));
    }
    Seen {
        piece,
        weights,
        values: gathered,
    }
}

/// Turns scores into exponentials below the largest, which is given back with their sum.
#[inline(always)]
fn weigh<V: Vector>(scores: &mut [f32]) -> (f32, f32) {
    let mut largest = f32::NEG_INFINITY;
    for score in &*scores {
        largest = largest.max(*score);
    }
    let below = V::splat(-largest);
    let mut sum = V::splat(0.0);
    let (whole, rest) = scores.as_chunks_mut();
    for scores in whole {
        let weights = V::load(scores).plus(below).exp();
        weights.store(scores);
        sum = sum.plus(weights);
    }
    let mut sum = sum.sum();
    let mut last = [f32::NEG_INFINITY; LANES];
    for (last, score) in last.iter_mut().zip(&*rest) {
        *last = *score;
    }
    V::load(&last).plus(below).exp().store(&mut last);
    for (score, weight) in rest.iter_mut().zip(last) {
        *score = weight;
        sum += weight;
    }
    (largest, sum)
}

/// Σ weight · value of up to four queries: `weights [queries, tokens]`, `to [queries, width]`.
#[inline(always)]
fn gather<V: Vector, E: Numbers>(
    values: &[E],
    weights: &[f32],
    to: &mut [f32],
    (tokens, width): (usize, usize),
) {
    let mut rows = [&[][..]; 4];
    for (row, weights) in rows.iter_mut().zip(weights.chunks_exact(tokens.max(1))) {
        *row = weights;
    }
    let count = weights.len() / tokens.max(1);
    for at in (0..width).step_by(LANES) {
        let lanes = LANES.min(width - at);
        let totals: [V; 4] = match count {
            1 => gather_lanes::<V, E, 1>(values, rows, at, width),
            2 => gather_lanes::<V, E, 2>(values, rows, at, width),
            3 => gather_lanes::<V, E, 3>(values, rows, at, width),
            _ => gather_lanes::<V, E, 4>(values, rows, at, width),
        };
        for (total, to) in totals.into_iter().zip(to.chunks_exact_mut(width)) {
            let mut numbers = [0.0; LANES];
            total.store(&mut numbers);
            let to = to.get_mut(at..at + lanes).unwrap_or_default();
            for (to, number) in to.iter_mut().zip(numbers) {
                *to = number;
            }
        }
    }
}

/// The sixteen numbers from `at` on, of the first `N` queries.
#[inline(always)]
#[expect(
    clippy::indexing_slicing,
    reason = "arrays of N are counted through: iterators over them keep vectors in memory"
)]
fn gather_lanes<V: Vector, E: Numbers, const N: usize>(
    values: &[E],
    weights: [&[f32]; 4],
    at: usize,
    width: usize,
) -> [V; 4] {
    let mut totals = [V::splat(0.0); 4];
    for (index, value) in values.chunks_exact(width).enumerate() {
        let value: V = load(value.get(at..).unwrap_or_default());
        for n in 0..N {
            let weight = weights[n].get(index).copied().unwrap_or(0.0);
            totals[n] = value.multiply_add(V::splat(weight), totals[n]);
        }
    }
    totals
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
