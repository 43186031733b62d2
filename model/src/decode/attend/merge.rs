//! What queries got from the pieces of their context, as if these had been one: the softmaxes of parts are put together
//! by the largest score and the sum of exponentials of each (log-sum-exp), exactly.

use crate::decode::wide::{LANES, Vector, Work};

/// What a block's queries got from a piece.
pub(super) enum Got {
    /// Nothing yet.
    Nothing,
    /// As `few::read` gives it.
    Few {
        /// The largest score of each query and the sum of exponentials below it.
        weights: Vec<(f32, f32)>,
        /// Σ exp(score − largest) · value, `[queries, width]`.
        values: Vec<f32>,
    },
    /// The same with a query to a lane.
    Many {
        weights: Vec<Weights>,
        /// `[sixteens of queries, width]`.
        values: Vec<[f32; LANES]>,
    },
}

/// The largest score of each of sixteen queries and the sum of exponentials below it.
pub(super) struct Weights {
    largest: [f32; LANES],
    sums: [f32; LANES],
}

impl Weights {
    #[inline(always)]
    pub(super) fn of<V: Vector>(largest: V, sum: V) -> Self {
        let mut weights = Self {
            largest: [0.0; LANES],
            sums: [0.0; LANES],
        };
        largest.store(&mut weights.largest);
        sum.store(&mut weights.sums);
        weights
    }
}

/// What the queries of a block got from all of their pieces: `[queries, width]`.
pub(super) struct Merging<'a> {
    pub(super) parts: &'a [Got],
    pub(super) queries: usize,
    pub(super) width: usize,
}

impl Work for Merging<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<V: Vector>(self) -> Vec<f32> {
        let mut merged = vec![0.0; self.queries * self.width];
        if let Some(Got::Many { .. }) = self.parts.first() {
            let mut totals = vec![[0.0; LANES]; self.width];
            for (index, to) in merged.chunks_mut(LANES * self.width).enumerate() {
                sixteen::<V>(self.parts, index, &mut totals);
                by_query(&totals, to);
            }
        } else {
            for (index, to) in merged.chunks_exact_mut(self.width).enumerate() {
                one(self.parts, index, to);
            }
        }
        merged
    }
}

/// The `index`th sixteen queries.
#[inline(always)]
fn sixteen<V: Vector>(parts: &[Got], index: usize, totals: &mut [[f32; LANES]]) {
    let mut largest = V::splat(f32::NEG_INFINITY);
    for part in parts {
        if let Some((weights, _)) = part.sixteen(index, totals.len()) {
            largest = largest.at_least(V::load(&weights.largest));
        }
    }
    let below = largest.multiply(V::splat(-1.0));
    let mut sum = V::splat(0.0);
    totals.fill([0.0; LANES]);
    for part in parts {
        if let Some((weights, values)) = part.sixteen(index, totals.len()) {
            let share = V::load(&weights.largest).plus(below).exp();
            sum = V::load(&weights.sums).multiply_add(share, sum);
            for (total, value) in totals.iter_mut().zip(values) {
                V::load(value)
                    .multiply_add(share, V::load(total))
                    .store(total);
            }
        }
    }
    for total in totals {
        V::load(total).divide(sum).store(total);
    }
}

/// Numbers `[width, lanes]` as `to [queries, width]`.
#[inline(always)]
#[expect(clippy::indexing_slicing, reason = "see `few::read_few`")]
fn by_query(totals: &[[f32; LANES]], to: &mut [f32]) {
    for (lane, to) in to.chunks_exact_mut(totals.len()).enumerate() {
        for (to, totals) in to.iter_mut().zip(totals) {
            *to = totals[lane];
        }
    }
}

/// The `index`th query.
fn one(parts: &[Got], index: usize, to: &mut [f32]) {
    let width = to.len();
    let parts = || parts.iter().filter_map(|part| part.one(index, width));
    let most = parts().fold(f32::NEG_INFINITY, |most, (largest, ..)| most.max(largest));
    let mut total = 0.0_f32;
    for (largest, sum, values) in parts() {
        let share = (largest - most).exp();
        total += sum * share;
        for (to, value) in to.iter_mut().zip(values) {
            *to += value * share;
        }
    }
    for to in to {
        *to /= total;
    }
}

impl Got {
    #[inline(always)]
    fn sixteen(&self, index: usize, width: usize) -> Option<(&Weights, &[[f32; LANES]])> {
        match self {
            Self::Many { weights, values } => weights
                .get(index)
                .zip(values.get(index * width..(index + 1) * width)),
            _ => None,
        }
    }

    fn one(&self, index: usize, width: usize) -> Option<(f32, f32, &[f32])> {
        match self {
            Self::Few { weights, values } => {
                let (largest, sum) = *weights.get(index)?;
                Some((
                    largest,
                    sum,
                    values.get(index * width..(index + 1) * width)?,
                ))
            }
            _ => None,
        }
    }
}
