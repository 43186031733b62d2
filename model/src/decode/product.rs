//! Products of a few vectors with a map's weights, on all threads of the pool.
//!
//! Each weight is read from memory once for all vectors, which is what a decode step's time goes
//! into. Invariant: a vector's product is the same number for number, whatever other vectors it is
//! computed beside and on however many threads: every row sums in four lanes' columns of its own, in
//! the order of the inputs.

use super::rows::{Eights, Fours, GROUP, Plain, QUARTERS, Row, Rows};
use super::wide::{LANES, Numbers, Vector, Work, load, widest};
use rayon::prelude::{IndexedParallelIterator, ParallelIterator, ParallelSliceMut};

/// Rows that one task computes: enough to be worth handing out, few enough to share evenly.
const TASK: usize = 32;
/// Vectors that share one reading of a row's weights.
const TOGETHER: usize = 4;

/// Vectors that go into products: `[count, inputs]`, row-major.
pub(crate) struct Vectors<'a> {
    pub(crate) numbers: &'a [f32],
    inputs: usize,
    /// The sums of each vector's groups, `[count, groups]`.
    sums: Vec<f32>,
}

impl<'a> Vectors<'a> {
    pub(crate) fn new(numbers: &'a [f32], inputs: usize) -> Self {
        let groups = inputs / GROUP;
        let sums = numbers.chunks_exact(inputs.max(1)).flat_map(|vector| {
            let groups = vector.chunks_exact(GROUP).take(groups);
            groups.map(|group| group.iter().sum::<f32>())
        });
        Self {
            numbers,
            inputs,
            sums: sums.collect(),
        }
    }

    fn count(&self) -> usize {
        self.numbers.len() / self.inputs.max(1)
    }

    #[inline(always)]
    fn vector(&self, index: usize) -> One<'_> {
        let numbers = part(self.numbers, index, self.inputs);
        One {
            numbers,
            quarters: numbers.as_chunks().0.as_chunks().0,
            sums: part(&self.sums, index, self.inputs / GROUP),
        }
    }
}

/// One vector.
#[derive(Clone, Copy)]
struct One<'a> {
    numbers: &'a [f32],
    /// Pairs of groups.
    quarters: &'a [[[f32; LANES]; QUARTERS]],
    /// Of each group.
    sums: &'a [f32],
}

impl<'a> One<'a> {
    /// The group behind so many pairs, in halves.
    #[inline(always)]
    fn behind(&self, pairs: usize) -> (&'a [f32], &'a [f32]) {
        let group = self.numbers.get(pairs * 2 * GROUP..).unwrap_or_default();
        group.split_at_checked(LANES).unwrap_or((group, &[]))
    }
}

/// Writes the product of each row with each vector to `out [outputs, vectors]`.
pub(crate) fn product(rows: Rows<'_>, vectors: &Vectors<'_>, out: &mut [f32]) {
    let count = vectors.count().max(1);
    out.par_chunks_mut(TASK * count)
        .enumerate()
        .for_each(|(task, out)| {
            widest(SomeRows {
                rows,
                first: task * TASK,
                vectors,
                out,
            });
        });
}

/// The rows from `first` on, as many as `out` has place for.
struct SomeRows<'a> {
    rows: Rows<'a>,
    first: usize,
    vectors: &'a Vectors<'a>,
    out: &'a mut [f32],
}

impl Work for SomeRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        match self.rows {
            Rows::F32 { inputs, numbers } => {
                self.each::<V, _>(|row| Plain::new(part(numbers, row, inputs)));
            }
            Rows::Bf16 { inputs, numbers } => {
                self.each::<V, _>(|row| Plain::new(part(numbers, row, inputs)));
            }
            Rows::Int8 {
                inputs,
                numbers,
                scales,
            } => self.each::<V, _>(|row| {
                let scales = part(scales, row, inputs / GROUP);
                Eights::new(part(numbers, row, inputs), scales)
            }),
            Rows::Int4 {
                inputs,
                pairs,
                scales,
                lows,
            } => self.each::<V, _>(|row| {
                let groups = inputs / GROUP;
                let (scales, lows) = (part(scales, row, groups), part(lows, row, groups));
                Fours::new(part(pairs, row, inputs / 2), scales, lows)
            }),
        }
    }
}

impl SomeRows<'_> {
    #[inline(always)]
    fn each<V: Vector, R: Row>(self, row: impl Fn(usize) -> R) {
        let count = self.vectors.count().max(1);
        let rows = self.out.len() / count;
        let mut index = 0;
        // A few vectors with all rows, then the next few: these stay in the nearest cache.
        while index + TOGETHER <= count {
            let x = [0, 1, 2, 3].map(|more| self.vectors.vector(index + more));
            for place in 0..rows {
                let sums = dot::<V, R, TOGETHER>(row(self.first + place), x);
                let at = place * count + index;
                if let Some(out) = self.out.get_mut(at..at + TOGETHER) {
                    out.copy_from_slice(&sums);
                }
            }
            index += TOGETHER;
        }
        while index < count {
            let x = [self.vectors.vector(index)];
            for place in 0..rows {
                let [sum] = dot::<V, R, 1>(row(self.first + place), x);
                if let Some(out) = self.out.get_mut(place * count + index) {
                    *out = sum;
                }
            }
            index += 1;
        }
    }
}

#[inline(always)]
fn part<T>(all: &[T], index: usize, length: usize) -> &[T] {
    all.get(index * length..(index + 1) * length)
        .unwrap_or_default()
}

/// The products of one row with `N` vectors.
///
/// Each is summed in the same order whatever `N` is: every quarter of a pair in lanes of its own, which
/// also makes four sums that need not wait for each other.
#[inline(always)]
#[expect(
    clippy::indexing_slicing,
    clippy::needless_range_loop,
    reason = "arrays of N and slices of one length are counted through: iterators over them, or a way \
              out of the loop, keep vectors in memory"
)]
fn dot<V: Vector, R: Row, const N: usize>(row: R, x: [One<'_>; N]) -> [f32; N] {
    let pairs = row.pairs();
    let mut quarters = [&[][..]; N];
    for n in 0..N {
        quarters[n] = &x[n].quarters[..pairs];
    }
    let mut totals = [[V::splat(0.0); QUARTERS]; N];
    for pair in 0..pairs {
        let [a, b, c, d] = row.pair::<V>(pair);
        for n in 0..N {
            let total = &mut totals[n];
            let [e, f, g, h] = &quarters[n][pair];
            total[0] = a.multiply_add(V::load(e), total[0]);
            total[1] = b.multiply_add(V::load(f), total[1]);
            total[2] = c.multiply_add(V::load(g), total[2]);
            total[3] = d.multiply_add(V::load(h), total[3]);
        }
    }
    let mut out = [0.0; N];
    for n in 0..N {
        let total = &mut totals[n];
        if let Some([a, b]) = row.last::<V>() {
            let (first, second) = x[n].behind(pairs);
            total[0] = a.multiply_add(load(first), total[0]);
            total[1] = b.multiply_add(load(second), total[1]);
        }
        let whole = total[0].plus(total[1]).plus(total[2].plus(total[3]));
        out[n] = whole.sum() + row.rest(x[n].numbers, x[n].sums);
    }
    out
}

/// `Σ aᵢ bᵢ` of two vectors of one length.
#[inline(always)]
pub(crate) fn inner<V: Vector, E: Numbers>(a: &[f32], b: &[E]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks(), b.as_chunks());
    let mut total = V::splat(0.0);
    for (a, b) in a.iter().zip(b) {
        total = V::load(a).multiply_add(E::load(b), total);
    }
    if !a_rest.is_empty() {
        total = load::<V, _>(a_rest).multiply_add(load(b_rest), total);
    }
    total.sum()
}
