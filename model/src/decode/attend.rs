//! Attention of some tokens of a sequence over all of its context: packets and tail where they lie.
//!
//! Queries come turned to each stretch's own positions (see `layers::attention`), so keys are read as they
//! were stored. Long contexts are cut into pieces that threads share; the pieces' softmaxes are merged
//! exactly, always in the same order, so the result does not depend on the threads.

mod few;
mod many;
mod merge;
mod pairs;

use super::team::Crew;
use super::wide::{LANES, Numbers, Pairs, Vector, Work, widest};
use many::Lanes;
use merge::{Got, Merging};
use std::ops::Range;

/// Keys of one piece.
const PIECE: usize = 256;
/// Queries of a block, where a sequence has several tokens: they share a reading of what they see.
const QUERIES: usize = 8 * LANES;

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

/// Attention of every sequence's tokens; `out [tokens, heads · head_dim]`.
pub(crate) fn attend<E: Numbers>(
    crew: &mut Crew<'_>,
    sequences: &[Sequence<'_, E>],
    out: &mut [f32],
) {
    let (blocks, pieces) = laid_out(sequences);
    let mut got: Vec<Got> = pieces.iter().map(|_| Got::Nothing).collect();
    crew.chunks(&mut got, 1, |index, got| {
        let sight = pieces
            .get(index)
            .and_then(|piece| Sight::of(sequences, &blocks, *piece));
        if let (Some(sight), [got]) = (sight, got) {
            *got = widest(Reading(sight));
        }
    });
    let mut merged = vec![Vec::new(); blocks.len()];
    crew.chunks(&mut merged, 1, |index, merged| {
        let (Some(block), [merged]) = (blocks.get(index), merged) else {
            return;
        };
        let parts = got.get(block.pieces.clone());
        if let (Some(parts), Some(sequence)) = (parts, sequences.get(block.sequence)) {
            *merged = widest(Merging {
                parts,
                queries: block.queries.len(),
                width: sequence.queries.head_dim,
            });
        }
    });
    hand_out(sequences, &blocks, &merged, out);
}

/// Each block's `merged [queries, head_dim]` to the rows of its tokens in `out [tokens, heads · head_dim]`.
fn hand_out<E>(
    sequences: &[Sequence<'_, E>],
    blocks: &[Block],
    merged: &[Vec<f32>],
    mut out: &mut [f32],
) {
    let mut blocks = blocks.iter().zip(merged).peekable();
    for (index, Sequence { queries, .. }) in sequences.iter().enumerate() {
        let (group, width) = (queries.group().max(1), queries.head_dim);
        let (own, behind) = out.split_at_mut(queries.tokens.len() * queries.heads * width);
        while let Some((block, merged)) = blocks.next_if(|(block, _)| block.sequence == index) {
            for (query, merged) in block.queries.clone().zip(merged.chunks_exact(width)) {
                let (token, head) = (query / group, block.kv_head * group + query % group);
                let at = (token * queries.heads + head) * width;
                if let Some(own) = own.get_mut(at..at + width) {
                    own.copy_from_slice(merged);
                }
            }
        }
        out = behind;
    }
}

/// All blocks, sequence after sequence, and all pieces.
fn laid_out<E>(sequences: &[Sequence<'_, E>]) -> (Vec<Block>, Vec<Piece>) {
    let (mut blocks, mut pieces) = (Vec::new(), Vec::new());
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
                let begin = pieces.len();
                for (stretch, lie) in sequence.stretches.iter().enumerate() {
                    let seen = sequence.seen(last, lie.at, lie.tokens).end;
                    let whole = lie.at + lie.tokens <= sequence.position;
                    let size = if whole { even(lie.tokens) } else { PIECE };
                    for from in (0..seen).step_by(size) {
                        pieces.push(Piece {
                            block: blocks.len(),
                            stretch,
                            from,
                            tokens: size.min(lie.tokens - from),
                        });
                    }
                }
                blocks.push(Block {
                    sequence: index,
                    kv_head,
                    queries: own,
                    pieces: begin..pieces.len(),
                });
            }
        }
    }
    (blocks, pieces)
}

/// Tokens of each piece of a stretch that grows no more: about [`PIECE`], so that a packet of 520 tokens has no piece
/// of eight.
fn even(tokens: usize) -> usize {
    let pieces = (tokens + PIECE / 2) / PIECE;
    tokens.div_ceil(pieces.max(1)).next_multiple_of(LANES)
}

/// The reading of one piece.
struct Reading<'a, 'b, E>(Sight<'a, 'b, E>);

impl<E: Numbers> Work for Reading<'_, '_, E> {
    type Output = Got;

    #[inline(always)]
    fn run<V: Vector>(self) -> Got {
        let Self(sight) = self;
        if let Some(queries) = sight.alone() {
            let mut values = vec![0.0; queries.len()];
            let weights = few::read::<V, E>(queries, sight.lie, &mut values, sight.width);
            return Got::Few { weights, values };
        }
        let lanes = sight.lanes();
        let mut values = vec![[0.0; LANES]; lanes.len() * sight.width];
        let mut weights = Vec::with_capacity(lanes.len());
        for (lanes, values) in lanes.iter().zip(values.chunks_exact_mut(sight.width)) {
            weights.push(many::read::<V, E>(lanes, sight.lie, values));
        }
        Got::Many { weights, values }
    }

    #[inline(always)]
    fn run_in_pairs<V: Pairs>(self) -> Got {
        let Self(sight) = &self;
        let (keys, values) = sight.lie;
        let halves = E::halves(keys).zip(E::halves(values));
        let (Some(lie), true, None) = (halves, sight.width.is_multiple_of(2), sight.alone()) else {
            return self.run::<V>();
        };
        let lanes = sight.lanes();
        let mut values = vec![[0.0; LANES]; lanes.len() * sight.width];
        let weights = pairs::read::<V>(&lanes, lie, &mut values, sight.width);
        Got::Many { weights, values }
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
