//! One token's queries of a group over one piece: they share one reading of keys and values.

use crate::decode::wide::{LANES, Numbers, Vector, ahead, load};

/// Queries that share a reading.
const FEW: usize = 4;
/// Vectors of a value that are read at once.
const WIDE: usize = 4;

/// `queries [queries, width]` over `keys` and `values [tokens, width]`, all of which they see: writes
/// Σ weight · value of each to `to [queries, width]` and gives the largest score of each and the sum of its
/// weights.
#[inline(always)]
pub(super) fn read<V: Vector, E: Numbers>(
    queries: &[f32],
    (keys, values): (&[E], &[E]),
    to: &mut [f32],
    width: usize,
) -> Vec<(f32, f32)> {
    let tokens = keys.len() / width.max(1);
    let mut all = Vec::with_capacity(queries.len() / width.max(1));
    let few = queries.chunks(FEW * width.max(1));
    for (own, to) in few.zip(to.chunks_mut(FEW * width.max(1))) {
        let lie = (tokens, width);
        let count = own.len() / width.max(1);
        let weights = match count {
            1 => read_few::<V, E, 1>(own, keys, values, to, lie),
            2 => read_few::<V, E, 2>(own, keys, values, to, lie),
            3 => read_few::<V, E, 3>(own, keys, values, to, lie),
            _ => read_few::<V, E, FEW>(own, keys, values, to, lie),
        };
        all.extend(weights.into_iter().take(count));
    }
    all
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
