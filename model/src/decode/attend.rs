//! Attention of some tokens of a sequence over all of its context: packets and tail where they lie.
//!
//! Queries come turned to each stretch's own positions (see `layers::attention`), so keys are read as they
//! were stored. Long contexts are cut into pieces that threads share; the pieces' softmaxes are merged
//! exactly, always in the same order, so the result does not depend on the threads.

mod few;
mod many;

use super::team::Crew;
use super::wide::{LANES, Numbers, Vector, Work, widest};
use many::Lanes;
use std::ops::Range;

/// Keys of one piece.
const PIECE: usize = 256;

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
            _ => LANES,
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
        let Seen {
            piece,
            weights,
            values,
        } = self.seen;
        let Some(block) = self.blocks.get(piece.block) else {
            return;
        };
        let Some(sequence) = self.sequences.get(block.sequence) else {
            return;
        };
        let Some(stretch) = sequence.stretches.get(piece.stretch) else {
            return;
        };
        let width = sequence.queries.head_dim;
        let start = (block.kv_head * stretch.rows + stretch.from + piece.from) * width;
        let lie = start..start + piece.tokens * width;
        let lie = (
            stretch.keys.get(lie.clone()).unwrap_or_default(),
            stretch.values.get(lie).unwrap_or_default(),
        );
        values.resize(block.queries.len() * width, 0.0);
        *weights = match sequence.queries.tokens {
            [_] => {
                let own = sequence.queries.of_token(0, block.kv_head, stretch.turn);
                few::read::<V, E>(own, lie, values, width)
            }
            _ => {
                let lanes = lanes(sequence, block, stretch, *piece);
                many::read::<V, E>(&lanes, lie, values, width)
            }
        };
    }
}

/// A block's queries and what they see of a piece.
#[inline(always)]
fn lanes<'a, E>(
    sequence: &'a Sequence<'_, E>,
    block: &Block,
    stretch: &Stretch<'_, E>,
    piece: Piece,
) -> Lanes<'a> {
    let group = sequence.queries.group().max(1);
    let mut lanes = Lanes {
        queries: [&[]; LANES],
        seen: std::array::from_fn(|_| 0..piece.tokens),
    };
    let places = lanes.queries.iter_mut().zip(&mut lanes.seen);
    for ((query, seen), index) in places.zip(block.queries.clone()) {
        *query = sequence.queries.get(block.kv_head, index, stretch.turn);
        *seen = sequence.seen(index / group, stretch.at + piece.from, piece.tokens);
    }
    lanes
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
