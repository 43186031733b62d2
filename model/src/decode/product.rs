//! Products of a few vectors with a map's weights, on all threads of the team.
//!
//! Each weight is read from memory once for all vectors, which is what a decode step's time goes
//! into. Invariant: a vector's product is the same number for number, whatever other vectors it is
//! computed beside and on however many threads: every row sums in an order of its own.

use super::rows::{Blocks, Plain, QUARTERS, Rows};
use super::team::Crew;
use super::whole::Whole;
use super::wide::{GROUP, LANES, Numbers, Vector, Work, widest};

/// Tasks for each thread: enough to share evenly, few enough to be worth handing out.
const TASKS: usize = 8;
/// Vectors that share one reading of a plain row's weights.
const TOGETHER: usize = 4;
/// Vectors that share one reading of a packed block.
const BESIDE: usize = 8;

/// The products of each row with each of `vectors [count, inputs]`, in blocks of sixteen rows:
/// `[blocks, count, 16]`; a last block has zeros behind the last row.
pub(crate) fn product(
    crew: &mut Crew<'_>,
    rows: Rows<'_>,
    vectors: &[f32],
    (inputs, outputs): (usize, usize),
) -> Vec<f32> {
    let count = vectors.len() / inputs.max(1);
    let blocks = outputs.div_ceil(LANES);
    let mut out = vec![0.0; blocks * LANES * count];
    let task = blocks.div_ceil(crew.threads() * TASKS);
    let task = Split {
        blocks: task,
        numbers: task * LANES * count.max(1),
    };
    match rows {
        Rows::F32 { inputs, numbers } => of_plain(crew, task, (numbers, inputs), vectors, &mut out),
        Rows::Bf16 { inputs, numbers } => {
            of_plain(crew, task, (numbers, inputs), vectors, &mut out);
        }
        Rows::Int8(blocks) => of_blocks(crew, task, blocks, vectors, &mut out),
        Rows::Int4(blocks) => of_blocks(crew, task, blocks, vectors, &mut out),
    }
    out
}

/// How much of a product one task computes.
#[derive(Clone, Copy)]
struct Split {
    blocks: usize,
    /// Of the output.
    numbers: usize,
}

fn of_plain<E: Numbers>(
    crew: &mut Crew<'_>,
    task: Split,
    (numbers, inputs): (&[E], usize),
    vectors: &[f32],
    out: &mut [f32],
) {
    crew.chunks(out, task.numbers, |index, out| {
        widest(SomeRows {
            numbers,
            inputs,
            first: index * task.blocks * LANES,
            vectors,
            out,
        });
    });
}

fn of_blocks<B: Blocks + Sync>(
    crew: &mut Crew<'_>,
    task: Split,
    blocks: B,
    vectors: &[f32],
    out: &mut [f32],
) {
    let mut groups = vec![Whole::default(); vectors.len() / GROUP];
    crew.chunks(&mut groups, blocks.groups(), |index, groups| {
        let inputs = index * blocks.groups() * GROUP;
        Whole::round(vectors.get(inputs..).unwrap_or_default(), groups);
    });
    crew.chunks(out, task.numbers, |index, out| {
        widest(SomeBlocks {
            blocks,
            first: index * task.blocks,
            vectors: &groups,
            out,
        });
    });
}

/// Plain rows from `first` on, as many as `out` has place for.
struct SomeRows<'a, E> {
    numbers: &'a [E],
    inputs: usize,
    first: usize,
    vectors: &'a [f32],
    out: &'a mut [f32],
}

impl<E: Numbers> Work for SomeRows<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let count = (self.vectors.len() / self.inputs.max(1)).max(1);
        let rows = self.out.len() / count;
        let mut index = 0;
        // A few vectors with all rows, then the next few: these stay in the nearest cache.
        while index + TOGETHER <= count {
            let x = [0, 1, 2, 3].map(|more| part(self.vectors, index + more, self.inputs));
            for place in 0..rows {
                let row = Plain::new(part(self.numbers, self.first + place, self.inputs));
                let sums = dot::<V, E, TOGETHER>(row, x);
                for (more, sum) in sums.into_iter().enumerate() {
                    keep(self.out, (place, count, index + more), sum);
                }
            }
            index += TOGETHER;
        }
        while index < count {
            let x = [part(self.vectors, index, self.inputs)];
            for place in 0..rows {
                let row = Plain::new(part(self.numbers, self.first + place, self.inputs));
                let [sum] = dot::<V, E, 1>(row, x);
                keep(self.out, (place, count, index), sum);
            }
            index += 1;
        }
    }
}

/// Writes a row's product to its block.
#[inline(always)]
fn keep(out: &mut [f32], (row, count, vector): (usize, usize, usize), sum: f32) {
    let at = (row / LANES * count + vector) * LANES + row % LANES;
    if let Some(out) = out.get_mut(at) {
        *out = sum;
    }
}

/// The blocks from `first` on, as many as `out` has place for.
struct SomeBlocks<'a, B> {
    blocks: B,
    first: usize,
    /// `[count, groups]`.
    vectors: &'a [Whole],
    out: &'a mut [f32],
}

impl<B: Blocks> Work for SomeBlocks<'_, B> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(mut self) {
        let count = (self.vectors.len() / self.blocks.groups().max(1)).max(1);
        for place in 0..self.out.len() / (LANES * count) {
            let mut index = 0;
            while index + BESIDE <= count {
                self.block::<V, BESIDE>(place, count, index);
                index += BESIDE;
            }
            while index + 2 <= count {
                self.block::<V, 2>(place, count, index);
                index += 2;
            }
            if index < count {
                self.block::<V, 1>(place, count, index);
            }
        }
    }
}

impl<B: Blocks> SomeBlocks<'_, B> {
    /// One block with `N` vectors from `index` on.
    #[inline(always)]
    #[expect(
        clippy::indexing_slicing,
        clippy::needless_range_loop,
        reason = "see `dot`"
    )]
    fn block<V: Vector, const N: usize>(&mut self, place: usize, count: usize, index: usize) {
        let groups = self.blocks.groups();
        let mut vectors = [&[][..]; N];
        for n in 0..N {
            vectors[n] = &part(self.vectors, index + n, groups)[..groups];
        }
        let mut totals = [V::splat(0.0); N];
        for group in 0..groups {
            let mut inputs = [&vectors[0][group]; N];
            for n in 1..N {
                inputs[n] = &vectors[n][group];
            }
            let at = (self.first + place) * groups + group;
            self.blocks.add(at, inputs, &mut totals);
        }
        let (out, _) = self.out.as_chunks_mut();
        for n in 0..N {
            totals[n].store(&mut out[place * count + index + n]);
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
/// Each is summed in the same order whatever `N` is: in four sums that need not wait for each other.
#[inline(always)]
#[expect(
    clippy::indexing_slicing,
    clippy::needless_range_loop,
    reason = "arrays of N and slices of one length are counted through: iterators over them, or a way \
              out of the loop, keep vectors in memory"
)]
fn dot<V: Vector, E: Numbers, const N: usize>(row: Plain<'_, E>, x: [&[f32]; N]) -> [f32; N] {
    let fours = row.fours();
    let mut quarters: [&[[[f32; LANES]; QUARTERS]]; N] = [&[]; N];
    for n in 0..N {
        quarters[n] = &x[n].as_chunks().0.as_chunks().0[..fours];
    }
    let mut totals = [[V::splat(0.0); QUARTERS]; N];
    for four in 0..fours {
        let [a, b, c, d] = row.four::<V>(four);
        for n in 0..N {
            let total = &mut totals[n];
            let [e, f, g, h] = &quarters[n][four];
            total[0] = a.multiply_add(V::load(e), total[0]);
            total[1] = b.multiply_add(V::load(f), total[1]);
            total[2] = c.multiply_add(V::load(g), total[2]);
            total[3] = d.multiply_add(V::load(h), total[3]);
        }
    }
    let mut out = [0.0; N];
    for n in 0..N {
        let [a, b, c, d] = totals[n];
        out[n] = a.plus(b).plus(c.plus(d)).sum() + row.rest(x[n]);
    }
    out
}
