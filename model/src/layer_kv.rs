//! One layer of a sequence's own KV, and what that layer sees while a run of tokens passes.
//!
//! Owns the tail's memory and its growth. Which stretches make up the context is the
//! [`SequenceKv`](crate::SequenceKv)'s to know.

use crate::error::Result;
use crate::kv::Span;
use crate::layers::part::Part;
use crate::tensor::int;
use std::ops::Range;
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

    /// Writes the run's keys and values `[kv_heads, T, head_dim]` behind the tail.
    pub(crate) fn append(&mut self, keys: &Tensor, values: &Tensor) -> Result<()> {
        let tokens = keys.size3()?.1;
        self.tail
            .reserve(int(self.own) + tokens, int(self.own), self.device)?;
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

    /// Makes room for `tokens` behind the tail.
    pub(crate) fn reserve(&mut self, tokens: usize) -> Result<()> {
        let wanted = int(self.own + tokens);
        self.tail.reserve(wanted, int(self.own), self.device)
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

    /// The whole tail, what was just appended included.
    pub(crate) fn tail(&self) -> Result<(Tensor, Tensor)> {
        Ok((
            cut(&self.tail.keys, 0, self.own)?,
            cut(&self.tail.values, 0, self.own)?,
        ))
    }

    /// The tail before this run: in one piece, or, where positions matter, one piece for each
    /// stretch between packets.
    pub(crate) fn tail_before(&self, by_position: bool, run: usize) -> Result<Vec<LayerSpan>> {
        let piece = |at: usize, start: usize, tokens: usize| -> Result<LayerSpan> {
            Ok(LayerSpan {
                keys: cut(&self.tail.keys, start, tokens)?,
                values: cut(&self.tail.values, start, tokens)?,
                at,
                tokens,
            })
        };
        let before = self.own - run;
        if !by_position {
            return if before == 0 {
                Ok(Vec::new())
            } else {
                Ok(vec![piece(0, 0, before)?])
            };
        }
        let stretches = self.spans.iter().filter_map(|span| match span {
            Span::Tail { at, start, tokens } => Some((*at, *start, *tokens)),
            Span::Packet { .. } => None,
        });
        let done = (self.at - self.done, before - self.done, self.done);
        let stretches = stretches.chain((self.done > 0).then_some(done));
        stretches
            .map(|(at, start, tokens)| piece(at, start, tokens))
            .collect()
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

    /// Elements that memory is held for.
    pub(crate) fn elements(&self) -> usize {
        self.keys.numel() + self.values.numel()
    }

    /// Makes room for `wanted` tokens. Grows by doubling, so that a token costs one copy of
    /// itself on average, however long the sequence becomes.
    pub(crate) fn reserve(&mut self, wanted: i64, filled: i64, device: Device) -> Result<()> {
        let (kv_heads, capacity, head_dim) = self.keys.size3()?;
        if wanted <= capacity {
            return Ok(());
        }
        let capacity = wanted.max(2 * capacity).max(64);
        let grow = |old: &Tensor| -> Result<Tensor> {
            let new = Tensor::f_empty([kv_heads, capacity, head_dim], (old.kind(), device))?;
            new.f_narrow(1, 0, filled)?
                .f_copy_(&old.f_narrow(1, 0, filled)?)?;
            Ok(new)
        };
        (self.keys, self.values) = (grow(&self.keys)?, grow(&self.values)?);
        Ok(())
    }
}
