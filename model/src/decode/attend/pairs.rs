//! As `many`, of keys and values in bf16 on a processor that multiplies two of them at once: a pair of a key's numbers
//! with a pair of each query's, and values of two neighbouring tokens with their two weights.
//!
//! Queries and weights are rounded to bf16 for that, as they are where libtorch attends; sums are in f32.

use super::many::{Lanes, hide, largest};
use super::merge::Weights;
use crate::decode::wide::{LANES, PairLanes, Pairs};
use half::bf16;

/// Keys that are scored, or numbers of values that are summed, at once.
const ABREAST: usize = 16;

/// Sixteen queries of each of `lanes` over `keys` and `values [tokens, width]`, an even width: writes
/// Σ weight · value of each to `totals [lanes, width]`.
#[inline(always)]
pub(super) fn read<V: Pairs>(
    lanes: &[Lanes<'_>],
    (keys, values): (&[bf16], &[bf16]),
    totals: &mut [[f32; LANES]],
    width: usize,
) -> Vec<Weights> {
    let tokens = keys.len() / width;
    let values = side_by_side::<V>(values, width);
    let mut queries = vec![[[bf16::ZERO; 2]; LANES]; width / 2];
    let mut scores = vec![[0.0; LANES]; tokens];
    let mut weights = vec![[[bf16::ZERO; 2]; LANES]; tokens.div_ceil(2)];
    let mut all = Vec::with_capacity(lanes.len());
    for (lanes, totals) in lanes.iter().zip(totals.chunks_exact_mut(width)) {
        lay_out::<V>(lanes, &mut queries);
        score::<V>(&queries, keys, &mut scores);
        hide(&lanes.seen, &mut scores);
        all.push(weigh::<V>(&scores, &mut weights));
        gather::<V>(&values, &weights, totals);
    }
    all
}

/// Values of two neighbouring tokens side by side, `[tokens / 2, width]`; beside a last one zeros.
#[inline(always)]
fn side_by_side<V: Pairs>(values: &[bf16], width: usize) -> Vec<[bf16; 2]> {
    let mut pairs = vec![[bf16::ZERO; 2]; values.len().div_ceil(2 * width) * width];
    let zeros = vec![bf16::ZERO; width];
    for (two, to) in values.chunks(2 * width).zip(pairs.chunks_exact_mut(width)) {
        let (first, second) = two.split_at(width);
        let second = if second.is_empty() { &zeros } else { second };
        let ((some, first), (beside, second)) = (first.as_chunks(), second.as_chunks());
        let (whole, rest) = to.as_chunks_mut();
        for ((to, first), second) in whole.iter_mut().zip(some).zip(beside) {
            V::beside(first, second, to);
        }
        for ((to, first), second) in rest.iter_mut().zip(first).zip(second) {
            *to = [*first, *second];
        }
    }
    pairs
}

/// Queries as pairs of their numbers, `[width / 2]`.
#[inline(always)]
#[expect(clippy::indexing_slicing, reason = "see `few::read_few`")]
fn lay_out<V: Pairs>(lanes: &Lanes<'_>, queries: &mut [PairLanes]) {
    let mut both = vec![[[0.0; LANES]; 2]; queries.len()];
    for (lane, query) in lanes.queries.iter().enumerate() {
        for (to, pair) in both.iter_mut().zip(query.as_chunks::<2>().0) {
            to[0][lane] = pair[0];
            to[1][lane] = pair[1];
        }
    }
    for (to, [first, second]) in queries.iter_mut().zip(&both) {
        V::pair(V::load(first).rounded(), V::load(second).rounded(), to);
    }
}

/// The score of each query over each key.
#[inline(always)]
#[expect(clippy::indexing_slicing, reason = "see `few::read_few`")]
fn score<V: Pairs>(queries: &[PairLanes], keys: &[bf16], scores: &mut [[f32; LANES]]) {
    let (keys, _) = keys.as_chunks::<2>();
    let width = queries.len();
    let (some, rest) = scores.as_chunks_mut::<ABREAST>();
    let done = some.len() * ABREAST;
    for (scores, keys) in some.iter_mut().zip(keys.chunks_exact(ABREAST * width)) {
        let mut own = [&[][..]; ABREAST];
        for n in 0..ABREAST {
            own[n] = &keys[n * width..][..width];
        }
        let mut totals = [V::splat(0.0); ABREAST];
        for at in 0..width {
            for n in 0..ABREAST {
                totals[n] = totals[n].add_products(&queries[at], &own[n][at]);
            }
        }
        for n in 0..ABREAST {
            totals[n].store(&mut scores[n]);
        }
    }
    for (scores, key) in rest.iter_mut().zip(keys.chunks_exact(width).skip(done)) {
        let mut total = V::splat(0.0);
        for at in 0..width {
            total = total.add_products(&queries[at], &key[at]);
        }
        total.store(scores);
    }
}

/// Exponentials of scores below each query's largest, of two neighbouring tokens as a pair; the largest, and the sums
/// of what was rounded.
#[inline(always)]
fn weigh<V: Pairs>(scores: &[[f32; LANES]], weights: &mut [PairLanes]) -> Weights {
    let most = largest::<V>(scores);
    let below = most.multiply(V::splat(-1.0));
    let mut sum = V::splat(0.0);
    for (scores, to) in scores.chunks(2).zip(weights) {
        let mut two = [V::splat(0.0); 2];
        for (to, scores) in two.iter_mut().zip(scores) {
            *to = V::load(scores).plus(below).exp().rounded();
            sum = sum.plus(*to);
        }
        let [first, second] = two;
        V::pair(first, second, to);
    }
    Weights::of(most, sum)
}

/// Σ weight · value of each query, `totals [width]`.
#[inline(always)]
#[expect(clippy::indexing_slicing, reason = "see `few::read_few`")]
fn gather<V: Pairs>(values: &[[bf16; 2]], weights: &[PairLanes], totals: &mut [[f32; LANES]]) {
    let width = totals.len();
    let (some, rest) = totals.as_chunks_mut::<ABREAST>();
    let done = some.len() * ABREAST;
    for (place, totals) in some.iter_mut().enumerate() {
        let mut own = [V::splat(0.0); ABREAST];
        for (weights, values) in weights.iter().zip(values.chunks_exact(width)) {
            let values = &values.as_chunks::<ABREAST>().0[place];
            for n in 0..ABREAST {
                own[n] = own[n].add_products(weights, &values[n]);
            }
        }
        for n in 0..ABREAST {
            own[n].store(&mut totals[n]);
        }
    }
    for (place, total) in rest.iter_mut().enumerate() {
        let mut own = V::splat(0.0);
        for (weights, values) in weights.iter().zip(values.chunks_exact(width)) {
            own = own.add_products(weights, &values[done + place]);
        }
        own.store(total);
    }
}
