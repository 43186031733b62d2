//! Attention of some tokens of a sequence over all of its context: packets and tail where they lie.
//!
//! Queries come turned to each stretch's own positions (see `layers::attention`), so keys are read as they
//! were stored. Long contexts are cut into pieces that threads share; the pieces' softmaxes are merged
//! exactly, always in the same order, so the result does not depend on the threads.

mod few;
mod many;
mod pairs;

use super::team::Crew;
use super::wide::{LANES, Numbers, Pairs, Vector, Work, widest};
use many::Lanes;
use std::ops::Range;

/// Keys of one piece.
const PIECE: usize = 256;
/// Queries of a block, where a sequence has several tokens: they share a reading of what they see.
const QUERIES: usize = 4 * LANES;

/// A stretch of one layer's context: keys and values of all heads, `[kv_heads, rows, head_dim]` each,
/// of which rows `from .. from + tokens` are seen.
pub(crate) struct Stretch<'a, E> {
    pub(crate) keys: &'a [E],
    pub(crate) values: &'a [E],
    /// Rows that a head has room for.
    pub(crate) rows: usize,
    pub(crate) from: usize,
    /// The position of row `from`.
    pub(crate) at: usize,
    pub(crate) tokens: usize,
    /// Which of the queries is turned for this stretch.
    pub(crate) turn: usize,
}

/// The queries of a sequence's tokens.
pub(crate) struct Queries<'a> {
    /// Of each token, `[turns, heads, head_dim]`, scaled.
    pub(crate) tokens: &'a [Vec<f32>],
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl Queries<'_> {
    /// Queries that share a key-value head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads.max(1)
    }

    /// One token's queries of key-value head `kv_head`, `[group, head_dim]`.
    fn of_token(&self, token: usize, kv_head: usize, turn: usize) -> &[f32] {
        let width = self.group() * self.head_dim;
        let start = turn * self.heads * self.head_dim + kv_head * width;
        let numbers = self.tokens.get(token);
        numbers
            .and_then(|numbers| numbers.get(start..start + width))
            .unwrap_or_default()
    }

    /// The `index`th query of key-value head `kv_head`, counted token by token.
    fn get(&self, kv_head: usize, index: usize, turn: usize) -> &[f32] {
        let group = self.group().max(1);
        let mut own = self
            .of_token(index / group, kv_head, turn)
            .chunks_exact(self.head_dim.max(1));
        own.nth(index % group).unwrap_or_default()
    }
}

/// One sequence's part of the work.
pub(crate) struct Sequence<'a, E> {
    pub(crate) queries: Queries<'a>,
    pub(crate) stretches: Vec<Stretch<'a, E>>,
    /// Where the first token stands.
    pub(crate) position: usize,
    /// How many tokens a token sees, itself counted.
    pub(crate) window: Option<usize>,
}

impl<E> Sequence<'_, E> {
    /// Which of `tokens` from position `at` on a query of the token `index` sees.
    fn seen(&self, index: usize, at: usize, tokens: usize) -> Range<usize> {
        let end = self.position + index + 1;
        let first = self.window.map_or(0, |window| end.saturating_sub(window));
        first.saturating_sub(at).min(tokens)..end.saturating_sub(at).min(tokens)
    }
}

/// Some queries of one key-value head.
struct Block {
    sequence: usize,
    kv_head: usize,
    /// As [`Queries::get`] counts.
    queries: Range<usize>,
    /// What of the context they see, among all pieces.
    pieces: Range<usize>,
}

/// A piece of a stretch for a block of queries.
#[derive(Clone, Copy)]
struct Piece {
    block: usize,
    stretch: usize,
    /// Counted from the stretch's first row.
    from: usize,
    tokens: usize,
}

/// What a block's queries got from a piece.
struct Seen {
    piece: Piece,
    /// The largest score and the sum of exponentials below it, of each query.
    weights: Vec<(f32, f32)>,
    /// Σ exp(score − largest) · value, `[queries, head_dim]`.
    values: Vec<f32>,
}

/// Attention of every sequence's tokens; `out [tokens, heads · head_dim]`.
pub(crate) fn attend<E: Numbers>(
    crew: &mut Crew<'_>,
    sequences: &[Sequence<'_, E>],
    out: &mut [f32],
) {
    let (blocks, mut seen) = laid_out(sequences);
    crew.chunks(&mut seen, 1, |_, seen| {
        for seen in seen {
            widest(Reading {
                sequences,
                blocks: &blocks,
                seen,
            });
        }
    });
    let each = sequences.iter().enumerate();
    let each = each.flat_map(|(index, sequence)| {
        (0..sequence.queries.tokens.len()).map(move |token| (index, sequence, token))
    });
    let each: Vec<_> = each.collect();
    let width = out.len() / each.len().max(1);
    crew.chunks(out, width, |row, out| {
        let Some((index, sequence, token)) = each.get(row) else {
            return;
        };
        let (group, width) = (sequence.queries.group(), sequence.queries.head_dim);
        for block in blocks.iter().filter(|block| block.sequence == *index) {
            let seen = seen.get(block.pieces.clone()).unwrap_or_default();
            for head in 0..group {
                let query = token * group + head;
                let at = (block.kv_head * group + head) * width;
                if let (true, Some(out)) =
                    (block.queries.contains(&query), out.get_mut(at..at + width))
                {
                    merge(seen, query - block.queries.start, out);
                }
            }
        }
    });
}

/// All blocks, and all pieces of which nothing is seen yet.
fn laid_out<E>(sequences: &[Sequence<'_, E>]) -> (Vec<Block>, Vec<Seen>) {
    let (mut blocks, mut all) = (Vec::new(), Vec::new());
    for (index, sequence) in sequences.iter().enumerate() {
        let queries = &sequence.queries;
        let count = queries.tokens.len() * queries.group();
        let size = match queries.tokens.len() {
            1 => count,
            _ => QUERIES,
        };
        for kv_head in 0..queries.kv_heads {
            for first in (0..count).step_by(size.max(1)) {
                let own = first..count.min(first + size);
                let last = (own.end - 1) / queries.group().max(1);
                let begin = all.len();
                for (stretch, lie) in sequence.stretches.iter().enumerate() {
                    let seen = sequence.seen(last, lie.at, lie.tokens).end;
                    for from in (0..seen).step_by(PIECE) {
                        let piece = Piece {
                            block: blocks.len(),
                            stretch,
                            from,
                            tokens: PIECE.min(lie.tokens - from),
                        };
                        all.push(Seen {
                            piece,
                            weights: Vec::new(),
                            values: Vec::new(),
                        });
                    }
                }
                blocks.push(Block {
                    sequence: index,
                    kv_head,
                    queries: own,
                    pieces: begin..all.len(),
                });
            }
        }
    }
    (blocks, all)
}

/// The reading of one piece.
struct Reading<'a, 'b, E> {
    sequences: &'a [Sequence<'b, E>],
    blocks: &'a [Block],
    seen: &'a mut Seen,
}

impl<E: Numbers> Work for Reading<'_, '_, E> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Some(sight) = Sight::of(self.sequences, self.blocks, self.seen.piece) else {
            return;
        };
        let Seen {
            weights, values, ..
        } = self.seen;
        values.resize(sight.block.queries.len() * sight.width, 0.0);
        *weights = match sight.alone() {
            Some(queries) => few::read::<V, E>(queries, sight.lie, values, sight.width),
            None => {
                let lanes = sight.lanes();
                let each = lanes.iter().zip(values.chunks_mut(LANES * sight.width));
                let mut all = Vec::with_capacity(sight.block.queries.len());
                for (lanes, values) in each {
                    all.extend(many::read::<V, E>(lanes, sight.lie, values, sight.width));
                }
                all
            }
        };
    }

    #[inline(always)]
    fn run_in_pairs<V: Pairs>(self) {
        let Some(sight) = Sight::of(self.sequences, self.blocks, self.seen.piece) else {
            return;
        };
        let (keys, values) = sight.lie;
        let halves = E::halves(keys).zip(E::halves(values));
        let (Some(lie), true, None) = (halves, sight.width.is_multiple_of(2), sight.alone()) else {
            return self.run::<V>();
        };
        let Seen {
            weights, values, ..
        } = self.seen;
        values.resize(sight.block.queries.len() * sight.width, 0.0);
        *weights = pairs::read::<V>(&sight.lanes(), lie, values, sight.width);
    }
}

/// What a block's queries see of a piece.
struct Sight<'a, 'b, E> {
    sequence: &'a Sequence<'b, E>,
    block: &'a Block,
    stretch: &'a Stretch<'b, E>,
    piece: Piece,
    /// Its keys and values, `[tokens, width]`.
    lie: (&'b [E], &'b [E]),
    width: usize,
}

impl<'a, 'b, E> Sight<'a, 'b, E> {
    #[inline(always)]
    fn of(sequences: &'a [Sequence<'b, E>], blocks: &'a [Block], piece: Piece) -> Option<Self> {
        let block = blocks.get(piece.block)?;
        let sequence = sequences.get(block.sequence)?;
        let stretch = sequence.stretches.get(piece.stretch)?;
        let width = sequence.queries.head_dim;
        let start = (block.kv_head * stretch.rows + stretch.from + piece.from) * width;
        let lie = start..start + piece.tokens * width;
        let lie = (stretch.keys.get(lie.clone())?, stretch.values.get(lie)?);
        Some(Self {
            sequence,
            block,
            stretch,
            piece,
            lie,
            width,
        })
    }

    /// The queries of a token that is its sequence's only one.
    #[inline(always)]
    fn alone(&self) -> Option<&'a [f32]> {
        let queries = &self.sequence.queries;
        let turn = self.stretch.turn;
        (queries.tokens.len() == 1).then(|| queries.of_token(0, self.block.kv_head, turn))
    }

    /// The queries, sixteen at a time, and what each sees.
    #[inline(always)]
    fn lanes(&self) -> Vec<Lanes<'a>> {
        let (queries, piece) = (&self.sequence.queries, self.piece);
        let group = queries.group().max(1);
        let mut all = Vec::with_capacity(self.block.queries.len().div_ceil(LANES));
        for first in self.block.queries.clone().step_by(LANES) {
            let mut lanes = Lanes {
                queries: [&[]; LANES],
                seen: std::array::from_fn(|_| 0..piece.tokens),
            };
            let places = lanes.queries.iter_mut().zip(&mut lanes.seen);
            for ((query, seen), index) in places.zip(first..self.block.queries.end) {
                *query = queries.get(self.block.kv_head, index, self.stretch.turn);
                let at = self.stretch.at + piece.from;
                *seen = self.sequence.seen(index / group, at, piece.tokens);
            }
            all.push(lanes);
        }
        all
    }
}

/// What one query of a block got from all pieces, as if they had been one.
fn merge(seen: &[Seen], query: usize, out: &mut [f32]) {
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

#[cfg(test)]
#[expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "what goes wrong fails the test"
)]
mod tests {
    use super::{Queries, Sequence, Stretch, attend};
    use crate::decode::team::Team;
    use crate::decode::wide::Numbers;
    use half::bf16;

    const HEADS: usize = 3;
    const WIDTH: usize = 36;
    /// Of a packet whose beginning is left out, and of the tail that the tokens themselves end.
    const PACKET: usize = 300;
    const TAIL: usize = 95;
    const TOKENS: usize = 90;

    /// Numbers without a pattern, from -1 to 1.
    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        let number = |i: usize| (i + seed * 977) * 2_654_435 % 2003;
        (0..count)
            .map(|i| number(i) as f32 / 1001.0 - 1.0)
            .collect()
    }

    /// Attention of one key-value head's queries over a packet and a tail, and the farthest that any number of it is
    /// from its definition.
    fn farthest<E: Numbers>(window: Option<usize>) -> f64 {
        let of = |count, seed| -> Vec<E> {
            let numbers = numbers(count * WIDTH, seed);
            numbers.into_iter().map(E::narrow).collect()
        };
        let (keys, values) = ([of(PACKET, 1), of(TAIL, 2)], [of(PACKET, 3), of(TAIL, 4)]);
        let queries: Vec<Vec<f32>> = (0..TOKENS)
            .map(|token| numbers(2 * HEADS * WIDTH, 5 + token))
            .collect();
        let left_out = 7;
        let stretch = |index: usize, from: usize, at: usize| Stretch {
            keys: &keys[index],
            values: &values[index],
            rows: keys[index].len() / WIDTH,
            from,
            at,
            tokens: keys[index].len() / WIDTH - from,
            turn: 1 - index,
        };
        let behind = PACKET - left_out;
        let position = behind + TAIL - TOKENS;
        let sequences = [Sequence {
            queries: Queries {
                tokens: &queries,
                heads: HEADS,
                kv_heads: 1,
                head_dim: WIDTH,
            },
            stretches: vec![stretch(0, left_out, 0), stretch(1, 0, behind)],
            position,
            window,
        }];
        let mut out = vec![0.0; TOKENS * HEADS * WIDTH];
        let team = Team::new(2).unwrap();
        team.run(|crew| attend(crew, &sequences, &mut out));

        let mut farthest = 0.0_f64;
        for (query, out) in out.chunks(WIDTH).enumerate() {
            let (token, head) = (query / HEADS, query % HEADS);
            let end = position + token + 1;
            let seen = window.map_or(0, |window| end.saturating_sub(window))..end;
            let mut total = 0.0;
            let mut sums = [0.0; WIDTH];
            for place in seen {
                let (index, row) = match place.checked_sub(behind) {
                    None => (0, place + left_out),
                    Some(row) => (1, row),
                };
                let row = row * WIDTH..(row + 1) * WIDTH;
                let start = ((1 - index) * HEADS + head) * WIDTH;
                let query = queries[token][start..start + WIDTH].iter();
                let products = query.zip(&keys[index][row.clone()]);
                let score: f64 = products.map(|(q, k)| f64::from(q * k.widen())).sum();
                total += score.exp();
                for (sum, value) in sums.iter_mut().zip(&values[index][row]) {
                    *sum += score.exp() * f64::from(value.widen());
                }
            }
            for (out, sum) in out.iter().zip(sums) {
                farthest = farthest.max((f64::from(*out) - sum / total).abs());
            }
        }
        farthest
    }

    #[test]
    fn many_queries_get_what_attention_is_defined_as() {
        for window in [None, Some(60)] {
            let (wide, half) = (farthest::<f32>(window), farthest::<bf16>(window));
            assert!(wide < 2e-6, "{window:?}, f32: {wide:e}");
            // Some processors round queries and weights to bf16, too.
            assert!(half < 1e-2, "{window:?}, bf16: {half:e}");
        }
    }
}
