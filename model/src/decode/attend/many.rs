//! Queries of neighbouring tokens over one piece, sixteen at a time: a query to a lane, so that nothing is summed
//! across lanes, and every number of a key or value is used sixteen times at once.
//!
//! In bf16, a processor that multiplies pairs of them takes two numbers at once (`pairs.rs`).

use super::merge::Weights;
use crate::decode::wide::{LANES, Numbers, Vector};
use std::ops::Range;

/// Keys that are scored, or numbers of values that are summed, at once.
const ABREAST: usize = 8;
/// Keys or values that are widened at once, to stay in the nearest cache.
const TILE: usize = 32;
/// The score of a key that is not seen: far below any other, and finite, so that a query that sees nothing
/// of a piece gets numbers that count for nothing in the merge.
const HIDDEN: f32 = -1e30;

/// What sixteen queries ask of a piece.
pub(super) struct Lanes<'a> {
    /// The queries, as many as there are.
    pub(super) queries: [&'a [f32]; LANES],
    /// Of each, which of the piece's tokens it sees.
    pub(super) seen: [Range<usize>; LANES],
}

/// The queries over `keys` and `values [tokens, width]`: writes Σ weight · value of each to `totals [width]`, which are
/// zeros.
#[inline(always)]
pub(super) fn read<V: Vector, E: Numbers>(
    lanes: &Lanes<'_>,
    (keys, values): (&[E], &[E]),
    totals: &mut [[f32; LANES]],
) -> Weights {
    let width = totals.len();
    let mut scores = vec![[0.0; LANES]; keys.len() / width];
    let mut wide = vec![0.0; TILE * width];
    score::<V, E>(lanes, keys, &mut wide, &mut scores);
    hide(&lanes.seen, &mut scores);
    let weights = weigh::<V>(&mut scores);
    gather::<V, E>(values, &scores, &mut wide, totals);
    weights
}

/// The score of each query over each key.
#[inline(always)]
#[expect(clippy::indexing_slicing, reason = "see `few::read_few`")]
fn score<V: Vector, E: Numbers>(
    lanes: &Lanes<'_>,
    keys: &[E],
    wide: &mut [f32],
    scores: &mut [[f32; LANES]],
) {
    let width = wide.len() / TILE;
    let mut queries = vec![[0.0; LANES]; width];
    for (lane, query) in lanes.queries.iter().enumerate() {
        for (to, number) in queries.iter_mut().zip(*query) {
            to[lane] = *number;
        }
    }
    for (keys, scores) in keys.chunks(TILE * width).zip(scores.chunks_mut(TILE)) {
        widen::<V, E>(keys, wide);
        let (some, rest) = scores.as_chunks_mut::<ABREAST>();
        let done = some.len() * ABREAST;
        for (scores, keys) in some.iter_mut().zip(wide.chunks_exact(ABREAST * width)) {
            let mut totals = [V::splat(0.0); ABREAST];
            for at in 0..width {
                let query = V::load(&queries[at]);
                for n in 0..ABREAST {
                    let key = V::splat(keys[n * width + at]);
                    totals[n] = query.multiply_add(key, totals[n]);
                }
            }
            for n in 0..ABREAST {
                totals[n].store(&mut scores[n]);
            }
        }
        for (scores, key) in rest.iter_mut().zip(wide.chunks_exact(width).skip(done)) {
            let mut total = V::splat(0.0);
            for at in 0..width {
                total = V::load(&queries[at]).multiply_add(V::splat(key[at]), total);
            }
            total.store(scores);
        }
    }
}

/// Takes away the scores of keys that a query does not see.
#[inline(always)]
pub(super) fn hide(seen: &[Range<usize>; LANES], scores: &mut [[f32; LANES]]) {
    let tokens = scores.len();
    if seen.iter().all(|seen| *seen == (0..tokens)) {
        return;
    }
    for (token, scores) in scores.iter_mut().enumerate() {
        for (score, seen) in scores.iter_mut().zip(seen) {
            if token < seen.start || token >= seen.end {
                *score = HIDDEN;
            }
        }
    }
}

/// The largest score of each query.
#[inline(always)]
pub(super) fn largest<V: Vector>(scores: &[[f32; LANES]]) -> V {
    let mut most = V::splat(HIDDEN);
    for scores in scores {
        most = most.at_least(V::load(scores));
    }
    most
}

/// Turns scores into exponentials below each query's largest; these, and the sums.
#[inline(always)]
fn weigh<V: Vector>(scores: &mut [[f32; LANES]]) -> Weights {
    let most = largest::<V>(scores);
    let below = most.multiply(V::splat(-1.0));
    let mut sum = V::splat(0.0);
    for scores in scores {
        let weights = V::load(scores).plus(below).exp();
        weights.store(scores);
        sum = sum.plus(weights);
    }
    Weights::of(most, sum)
}

/// Σ weight · value of each query, `totals [width]`.
#[inline(always)]
#[expect(clippy::indexing_slicing, reason = "see `few::read_few`")]
fn gather<V: Vector, E: Numbers>(
    values: &[E],
    weights: &[[f32; LANES]],
    wide: &mut [f32],
    totals: &mut [[f32; LANES]],
) {
    let width = wide.len() / TILE;
    for (values, weights) in values.chunks(TILE * width).zip(weights.chunks(TILE)) {
        widen::<V, E>(values, wide);
        let (some, rest) = totals.as_chunks_mut::<ABREAST>();
        let done = some.len() * ABREAST;
        for (place, totals) in some.iter_mut().enumerate() {
            let mut own = [V::splat(0.0); ABREAST];
            for n in 0..ABREAST {
                own[n] = V::load(&totals[n]);
            }
            for (weight, value) in weights.iter().zip(wide.chunks_exact(width)) {
                let weight = V::load(weight);
                let value = &value[place * ABREAST..(place + 1) * ABREAST];
                for n in 0..ABREAST {
                    own[n] = weight.multiply_add(V::splat(value[n]), own[n]);
                }
            }
            for n in 0..ABREAST {
                own[n].store(&mut totals[n]);
            }
        }
        for (place, total) in rest.iter_mut().enumerate() {
            let mut own = V::load(total);
            for (weight, value) in weights.iter().zip(wide.chunks_exact(width)) {
                own = V::load(weight).multiply_add(V::splat(value[done + place]), own);
            }
            own.store(total);
        }
    }
}

/// As f32, at the beginning of `wide`.
#[inline(always)]
fn widen<V: Vector, E: Numbers>(from: &[E], wide: &mut [f32]) {
    let (whole, rest) = from.as_chunks();
    for (to, from) in wide.as_chunks_mut().0.iter_mut().zip(whole) {
        E::load::<V>(from).store(to);
    }
    let done = whole.len() * LANES;
    for (to, from) in wide.iter_mut().skip(done).zip(rest) {
        *to = from.widen();
    }
}
