//! A context as decode steps see it: slices of all that a step reads and writes.

use super::block::pieces;
use super::{SequenceKv, Span};
use crate::decode::{Lie, Memory, Numbers};
use crate::error::Result;
use crate::tensor::{elements, elements_mut};

impl SequenceKv {
    /// The stretches of the context, with so many `more` tokens of its own behind it.
    pub(crate) fn lies_with(&self, more: usize) -> Vec<Lie> {
        let mut lies = Vec::new();
        let mut packets = 0;
        for span in &self.spans {
            match span {
                Span::Own { at, start, tokens } => self.own_lies(&mut lies, *at, (*start, *tokens)),
                Span::Packet {
                    at, from, tokens, ..
                } => {
                    lies.push(Lie {
                        at: *at,
                        from: *from,
                        tokens: *tokens,
                        shared: Some(self.blocks.len() + packets),
                        turn: packets + 1,
                    });
                    packets += 1;
                }
            }
        }
        match (self.spans.last(), lies.last_mut()) {
            (Some(Span::Own { .. }), Some(last))
                if last.shared.is_none() && last.at + last.tokens == self.tokens =>
            {
                last.tokens += more;
            }
            _ => lies.push(Lie {
                at: self.tokens,
                from: self.tail_rows(),
                tokens: more,
                shared: None,
                turn: 0,
            }),
        }
        lies
    }

    /// Those of own tokens at position `at`.
    fn own_lies(&self, lies: &mut Vec<Lie>, mut at: usize, (start, tokens): (usize, usize)) {
        for (shared, from, tokens) in pieces(self.blocks.len(), start, tokens) {
            lies.push(Lie {
                at,
                from,
                tokens,
                shared,
                turn: 0,
            });
            at += tokens;
        }
    }

    /// Every layer's keys and values, on the CPU. Room was made for what is written.
    pub(crate) fn memories<E: Numbers>(&mut self) -> impl Iterator<Item = Result<Memory<'_, E>>> {
        let (spans, blocks) = (&self.spans, &self.blocks);
        let layers = self.layers.iter_mut().enumerate();
        layers.map(move |(index, tail)| {
            let rows = tail.capacity();
            let packets = spans.iter().filter_map(|span| match span {
                Span::Packet { packet, .. } => Some((packet.plane(index), packet.shape().tokens)),
                Span::Own { .. } => None,
            });
            let blocks = blocks
                .iter()
                .map(|block| (block.plane(index), block.tokens()));
            let shared = blocks.chain(packets).map(|(plane, rows)| {
                let plane = plane?;
                // SAFETY: blocks and packets are never written.
                let (keys, values) = unsafe { (elements(&plane.keys)?, elements(&plane.values)?) };
                Ok((keys, values, rows))
            });
            let shared = shared.collect::<Result<_>>()?;
            // SAFETY: the tail is this sequence's own, which is borrowed for writing.
            let (keys, values) = unsafe {
                (
                    elements_mut(&mut tail.keys)?,
                    elements_mut(&mut tail.values)?,
                )
            };
            Ok(Memory {
                keys,
                values,
                rows,
                shared,
            })
        })
    }
}
