//! One layer of a sequence's own KV, and what that layer sees while a run of tokens passes.
//!
//! Owns the tail's memory and its growth. Which stretches make up the context is the
//! [`SequenceKv`](crate::SequenceKv)'s to know.

use crate::error::Result;
use crate::kv::{KvBlock, SequenceKv, Span, rows};
use crate::layers::part::Part;
use crate::packet::Plane;
use crate::tensor::int;
use std::ops::Range;
use std::rc::Rc;
use tch::{Device, Kind, TchError, Tensor};

/// Tokens `start .. start + tokens` of `t [kv_heads, n, head_dim]`, as a view.
pub(crate) fn cut(
    t: &Tensor,
    start: usize,
    tokens: usize,
) -> std::result::Result<Tensor, TchError> {
    t.f_narrow(1, int(start), int(tokens))
}

/// One layer of a sequence's own tail: `[kv_heads, capacity, head_dim]`, filled from the left.
pub(crate) struct Tail {
    pub(crate) keys: Tensor,
    pub(crate) values: Tensor,
}

/// One layer of a sequence, while a run of tokens passes through it.
pub(crate) struct LayerKv<'a> {
    pub(crate) index: usize,
    pub(crate) tail: &'a mut Tail,
    /// The sequence's own tokens before the tail.
    pub(crate) blocks: &'a [Rc<KvBlock>],
    pub(crate) spans: &'a [Span],
    /// Tokens of the tail before this run.
    pub(crate) own: usize,
    /// Position of the run's first token.
    pub(crate) at: usize,
    /// Tokens right before this run that are in the tail but in no span yet.
    pub(crate) done: usize,
    pub(crate) device: Device,
}

/// Keys and values `[kv_heads, tokens, head_dim]` of neighbouring positions.
pub(crate) struct LayerSpan {
    pub(crate) keys: Tensor,
    pub(crate) values: Tensor,
    pub(crate) at: usize,
    pub(crate) tokens: usize,
}

impl LayerSpan {
    /// What attention takes.
    pub(crate) fn part(&self) -> Part {
        Part {
            keys: self.keys.shallow_clone(),
            values: self.values.shallow_clone(),
            at: self.at,
        }
    }
}

impl LayerKv<'_> {
    /// Position of the run's first token.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    /// The packets of the context, in order; their keys are turned as [`SequenceKv::anchors`] says.
    pub(crate) fn packets(&self) -> Result<Vec<LayerSpan>> {
        let mut packets = Vec::new();
        for span in self.spans {
            if let Span::Packet {
                at,
                from,
                tokens,
                packet,
                ..
            } = span
            {
                let plane = packet.plane(self.index)?;
                packets.push(LayerSpan {
                    keys: cut(&plane.keys, *from, *tokens)?,
                    values: cut(&plane.values, *from, *tokens)?,
                    at: *at,
                    tokens: *tokens,
                });
            }
        }
        Ok(packets)
    }

    /// Writes the run's keys and values `[kv_heads, T, head_dim]` behind the tail, where room was made.
    pub(crate) fn append(&mut self, keys: &Tensor, values: &Tensor) -> Result<()> {
        let tokens = keys.size3()?.1;
        self.tail
            .keys
            .f_narrow(1, int(self.own), tokens)?
            .f_copy_(keys)?;
        self.tail
            .values
            .f_narrow(1, int(self.own), tokens)?
            .f_copy_(values)?;
        self.own += usize::try_from(tokens).unwrap_or(0);
        Ok(())
    }

    /// Writes keys and values `[kv_heads, n, head_dim]` in the place of those that lie behind the
    /// tail for the tokens at `positions`.
    pub(crate) fn replace(&self, positions: &[i64], keys: &Tensor, values: &Tensor) -> Result<()> {
        let rows = int(self.own) - int(self.at);
        let rows: Vec<i64> = positions.iter().map(|position| position + rows).collect();
        let rows = Tensor::f_from_slice(&rows)?.f_to_device(self.device)?;
        for (tail, new) in [(&self.tail.keys, keys), (&self.tail.values, values)] {
            let new = new.f_to_kind(tail.kind())?;
            // A view: `f_index_copy_` needs a tensor that it may call its own.
            drop(tail.shallow_clone().f_index_copy_(1, &rows, &new)?);
        }
        Ok(())
    }

    /// Those `tokens` of what lies behind the tail.
    pub(crate) fn laid(&self, tokens: Range<usize>) -> Result<LayerSpan> {
        let start = self.own + tokens.start;
        Ok(LayerSpan {
            keys: cut(&self.tail.keys, start, tokens.len())?,
            values: cut(&self.tail.values, start, tokens.len())?,
            at: self.at + tokens.start,
            tokens: tokens.len(),
        })
    }

    /// All of the sequence's own tokens, what was just appended included.
    pub(crate) fn own(&self) -> Result<(Tensor, Tensor)> {
        self.rows(0, self.sealed() + self.own)
    }

    /// The sequence's own tokens before this run: in one piece, or, where positions matter, one piece for
    /// each stretch between packets.
    pub(crate) fn own_before(&self, by_position: bool, run: usize) -> Result<Vec<LayerSpan>> {
        let piece = |at: usize, start: usize, tokens: usize| -> Result<LayerSpan> {
            let (keys, values) = self.rows(start, tokens)?;
            Ok(LayerSpan {
                keys,
                values,
                at,
                tokens,
            })
        };
        let before = self.sealed() + self.own - run;
        if !by_position {
            return if before == 0 {
                Ok(Vec::new())
            } else {
                Ok(vec![piece(0, 0, before)?])
            };
        }
        let stretches = self.spans.iter().filter_map(|span| match span {
            Span::Own { at, start, tokens } => Some((*at, *start, *tokens)),
            Span::Packet { .. } => None,
        });
        let done = (self.at - self.done, before - self.done, self.done);
        let stretches = stretches.chain((self.done > 0).then_some(done));
        stretches
            .map(|(at, start, tokens)| piece(at, start, tokens))
            .collect()
    }

    fn rows(&self, start: usize, tokens: usize) -> Result<(Tensor, Tensor)> {
        rows(self.blocks, (self.tail, self.index), start, tokens)
    }

    /// Own tokens before the tail.
    fn sealed(&self) -> usize {
        self.blocks.len() * SequenceKv::BLOCK
    }
}

impl Tail {
    /// Without tokens: `shape` is `[kv_heads, 0, head_dim]`.
    pub(crate) fn new(shape: [i64; 3], kind: Kind, device: Device) -> Result<Self> {
        Ok(Self {
            keys: Tensor::f_empty(shape, (kind, device))?,
            values: Tensor::f_empty(shape, (kind, device))?,
        })
    }

    pub(crate) fn into_plane(self) -> Plane {
        Plane {
            keys: self.keys,
            values: self.values,
        }
    }

    /// Tokens that there is memory for.
    pub(crate) fn capacity(&self) -> usize {
        self.keys
            .size3()
            .map_or(0, |(_, rows, _)| usize::try_from(rows).unwrap_or(0))
    }

    /// `rows` from row `from` on in memory of their own, for `capacity` of them at least.
    pub(crate) fn rest(&self, from: usize, rows: usize, capacity: usize) -> Result<Self> {
        let copy = |old: &Tensor| -> Result<Tensor> {
            let (kv_heads, _, head_dim) = old.size3()?;
            let shape = [kv_heads, int(capacity.max(rows)), head_dim];
            let new = Tensor::f_empty(shape, (old.kind(), old.device()))?;
            cut(&new, 0, rows)?.f_copy_(&cut(old, from, rows)?)?;
            Ok(new)
        };
        Ok(Self {
            keys: copy(&self.keys)?,
            values: copy(&self.values)?,
        })
    }
}
