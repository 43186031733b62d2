//! The keys and values that one running sequence sees.
//!
//! A [`SequenceKv`] is a run of *spans*: stretches of its own tail, which grows in place, and
//! stretches of packets, which it shares with every other sequence that reads them. A packet keeps
//! its keys as if it began at position 0; a span knows where in the sequence that token 0 would
//! stand, its *anchor*, also where only a later stretch of the packet is read. A tail that has become a
//! packet (see `branch`) has its keys where they stand: its anchor is 0.

mod branch;

use crate::config::ModelConfig;
use crate::decode::{Lie, Memory, Numbers};
use crate::error::{Error, Result};
use crate::layer_kv::{LayerKv, Tail, cut};
use crate::packet::{PacketKv, PacketShape, Plane};
use crate::tensor::{element_size, elements, elements_mut, int};
use std::ops::Range;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// A stretch of a sequence's context.
#[derive(Clone)]
pub(crate) enum Span {
    /// Tokens `start .. start + tokens` of the sequence's own tail, at position `at`.
    Tail {
        at: usize,
        start: usize,
        tokens: usize,
    },
    /// Tokens `from .. from + tokens` of a packet, at position `at`; its keys are turned as if its positions
    /// counted from `anchor`.
    Packet {
        at: usize,
        from: usize,
        tokens: usize,
        anchor: i64,
        packet: Rc<PacketKv>,
    },
}

/// The keys and values that one running sequence sees.
pub struct SequenceKv {
    layers: Vec<Tail>,
    spans: Vec<Span>,
    tail_tokens: usize,
    tokens: usize,
    context: usize,
    kv_heads: usize,
    head_dim: usize,
    kind: Kind,
    device: Device,
}

impl SequenceKv {
    /// An empty context for a model of `config` that computes in `kind` on `device`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn new(config: &ModelConfig, kind: Kind, device: Device) -> Result<Self> {
        let shape = PacketShape {
            layers: config.num_layers,
            kv_heads: config.num_kv_heads,
            tokens: 0,
            head_dim: config.head_dim,
            kind,
        };
        Self::of_shape(shape, config.context, device)
    }

    /// An empty context of at most `context` tokens that reads packets of `shape`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn of_shape(shape: PacketShape, context: usize, device: Device) -> Result<Self> {
        let empty = [int(shape.kv_heads), 0, int(shape.head_dim)];
        let layers = (0..shape.layers)
            .map(|_| Tail::new(empty, shape.kind, device))
            .collect::<Result<_>>()?;
        Ok(Self {
            layers,
            spans: Vec::new(),
            tail_tokens: 0,
            tokens: 0,
            context,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            kind: shape.kind,
            device,
        })
    }

    /// Tokens in the context so far, which is the position of the next one.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tokens
    }

    /// Whether the context is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    /// Tokens whose KV is this sequence's own.
    #[must_use]
    pub fn own_tokens(&self) -> usize {
        self.tail_tokens
    }

    /// Bytes of memory that are this sequence's own; packets are not counted.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let size = element_size(self.kind).unwrap_or(0);
        let elements: usize = self.layers.iter().map(Tail::elements).sum();
        elements * size
    }

    /// Bytes that `tokens` take as a packet.
    ///
    /// # Errors
    /// More than can be counted.
    pub fn bytes_of(&self, tokens: usize) -> Result<usize> {
        self.shape_of(tokens).bytes()
    }

    /// Places a packet at the end of the context. Nothing is copied or computed.
    ///
    /// # Errors
    /// The packet is of another model or dtype, or the context would grow too long.
    pub fn attach(&mut self, packet: Rc<PacketKv>) -> Result<()> {
        let tokens = packet.shape().tokens;
        self.attach_part(packet, 0..tokens)
    }

    /// The same with those `tokens` of the packet alone: the first of them takes the next position.
    ///
    /// # Errors
    /// The packet has no such tokens; or as [`Self::attach`].
    pub fn attach_part(&mut self, packet: Rc<PacketKv>, tokens: Range<usize>) -> Result<()> {
        self.check_packet(packet.shape(), &tokens)?;
        let (from, tokens) = (tokens.start, tokens.len());
        self.check_room(tokens)?;
        if tokens > 0 {
            self.spans.push(Span::Packet {
                at: self.tokens,
                from,
                tokens,
                anchor: int(self.tokens) - int(from),
                packet,
            });
            self.tokens += tokens;
        }
        Ok(())
    }

    /// Forgets everything from position `len` on. Memory is kept for what comes next.
    ///
    /// # Errors
    /// `len` is beyond the end, or lies inside a packet.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        let inside = self.spans.iter().any(|span| match span {
            Span::Packet { at, tokens, .. } => *at < len && len < at + tokens,
            Span::Tail { .. } => false,
        });
        if len > self.tokens || inside {
            return Err(Error::Invalid(format!(
                "a context of {} tokens can't be cut at {len}",
                self.tokens
            )));
        }
        self.spans.retain_mut(|span| match span {
            Span::Packet { at, .. } => *at < len,
            Span::Tail { at, tokens, .. } => {
                *tokens = (*tokens).min(len.saturating_sub(*at));
                *tokens > 0
            }
        });
        self.tokens = len;
        let own = |span: &Span| match span {
            Span::Tail { tokens, .. } => *tokens,
            Span::Packet { .. } => 0,
        };
        self.tail_tokens = self.spans.iter().map(own).sum();
        Ok(())
    }

    /// A copy of the first `tokens` as a packet of its own, whose place is position 0.
    ///
    /// # Errors
    /// The context is shorter, or has among them tokens of a packet that stands elsewhere: its keys
    /// are not turned to their places.
    pub fn first(&self, tokens: usize) -> Result<PacketKv> {
        let mut pieces = Vec::new();
        let mut left = tokens;
        for span in self.spans.iter().take_while(|span| span.at() < tokens) {
            let piece = left.min(span.tokens());
            left -= piece;
            match span {
                Span::Packet { anchor, .. } if *anchor != 0 => break,
                _ => pieces.push((span, piece)),
            }
        }
        if left > 0 || pieces.iter().map(|(_, piece)| piece).sum::<usize>() != tokens {
            return Err(Error::Invalid(format!(
                "the first {tokens} tokens of this context were not computed at their places"
            )));
        }
        let layers = self.layers.iter().enumerate().map(|(index, tail)| {
            let mut parts = (Vec::new(), Vec::new());
            for (span, piece) in &pieces {
                let (keys, values) = match span {
                    Span::Tail { start, .. } => (
                        cut(&tail.keys, *start, *piece)?,
                        cut(&tail.values, *start, *piece)?,
                    ),
                    Span::Packet { from, packet, .. } => {
                        let plane = packet.plane(index)?;
                        (
                            cut(&plane.keys, *from, *piece)?,
                            cut(&plane.values, *from, *piece)?,
                        )
                    }
                };
                parts.0.push(keys);
                parts.1.push(values);
            }
            Ok(Plane {
                keys: Tensor::f_cat(&parts.0, 1)?,
                values: Tensor::f_cat(&parts.1, 1)?,
            })
        });
        let layers = layers.collect::<Result<_>>()?;
        Ok(PacketKv::new(self.shape_of(tokens), layers))
    }

    /// The context as a packet of its own, in memory that it owns.
    ///
    /// # Errors
    /// The context holds packets itself: their keys are not turned to their places.
    pub fn into_packet(self) -> Result<PacketKv> {
        if self.tail_tokens != self.tokens {
            return Err(Error::Invalid(
                "a packet can only be made of tokens that were computed together".to_owned(),
            ));
        }
        self.own_packet()
    }

    /// The tokens that are this sequence's own as a packet; it may lie in the same memory.
    fn own_packet(&self) -> Result<PacketKv> {
        let own = |t: &Tensor| cut(t, 0, self.tail_tokens)?.f_contiguous();
        let layers = self
            .layers
            .iter()
            .map(|tail| {
                Ok(Plane {
                    keys: own(&tail.keys)?,
                    values: own(&tail.values)?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(PacketKv::new(self.shape_of(self.tail_tokens), layers))
    }

    /// Fails unless `tokens` more fit into the model's context.
    pub(crate) fn check_room(&self, tokens: usize) -> Result<()> {
        let wanted = self.tokens.saturating_add(tokens);
        if wanted > self.context {
            return Err(Error::TooLong {
                tokens: wanted,
                context: self.context,
            });
        }
        Ok(())
    }

    /// Fails unless these tokens of a packet of `shape` can be read here.
    pub(crate) fn check_packet(&self, shape: PacketShape, tokens: &Range<usize>) -> Result<()> {
        let here = self.shape_of(shape.tokens);
        if shape != here {
            return Err(Error::Invalid(format!(
                "a packet of {shape:?} can't be read by a model of {here:?}"
            )));
        }
        if tokens.start > tokens.end || tokens.end > shape.tokens {
            return Err(Error::Invalid(format!(
                "a packet of {} tokens has no tokens {tokens:?}",
                shape.tokens
            )));
        }
        Ok(())
    }

    /// The context as decode steps see it, with so many `more` tokens behind it.
    pub(crate) fn lies_with(&self, more: usize) -> Vec<Lie> {
        let mut packets = 0..;
        let lies = self.spans.iter().map(|span| match span {
            Span::Tail { at, start, tokens } => Lie {
                at: *at,
                from: *start,
                tokens: *tokens,
                packet: None,
            },
            Span::Packet {
                at, from, tokens, ..
            } => Lie {
                at: *at,
                from: *from,
                tokens: *tokens,
                packet: packets.next(),
            },
        });
        let mut lies: Vec<Lie> = lies.collect();
        match lies.last_mut() {
            Some(last) if last.packet.is_none() => last.tokens += more,
            _ => lies.push(Lie {
                at: self.tokens,
                from: self.tail_tokens,
                tokens: more,
                packet: None,
            }),
        }
        lies
    }

    /// Every layer's keys and values, with room for so many `more` tokens, on the CPU.
    pub(crate) fn memories<E: Numbers>(
        &mut self,
        more: usize,
    ) -> Result<impl Iterator<Item = Result<Memory<'_, E>>>> {
        let (own, device, spans) = (self.tail_tokens, self.device, &self.spans);
        for tail in &mut self.layers {
            tail.reserve(int(own + more), int(own), device)?;
        }
        let layers = self.layers.iter_mut().enumerate();
        Ok(layers.map(move |(index, tail)| {
            let rows = usize::try_from(tail.keys.size3()?.1).unwrap_or(0);
            let packets = spans.iter().filter_map(|span| match span {
                Span::Packet { packet, .. } => Some(packet),
                Span::Tail { .. } => None,
            });
            let packets = packets.map(|packet| {
                let plane = packet.plane(index)?;
                // SAFETY: packets are never written.
                let (keys, values) = unsafe { (elements(&plane.keys)?, elements(&plane.values)?) };
                Ok((keys, values, packet.shape().tokens))
            });
            let packets = packets.collect::<Result<_>>()?;
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
                packets,
            })
        }))
    }

    /// The positions at which the token 0 of each packet would stand, in order of the packets.
    pub(crate) fn anchors(&self) -> Vec<i64> {
        let anchor = |span: &Span| match span {
            Span::Packet { anchor, .. } => Some(*anchor),
            Span::Tail { .. } => None,
        };
        self.spans.iter().filter_map(anchor).collect()
    }

    /// What layer `index` sees and writes while more tokens are computed, of which `done` have
    /// passed through this layer already.
    pub(crate) fn layer(&mut self, index: usize, done: usize) -> Result<LayerKv<'_>> {
        let layers = self.layers.len();
        let tail = self.layers.get_mut(index).ok_or_else(|| {
            Error::Invalid(format!("layer {index} of a context of {layers} layers"))
        })?;
        Ok(LayerKv {
            index,
            tail,
            spans: &self.spans,
            own: self.tail_tokens + done,
            at: self.tokens + done,
            done,
            device: self.device,
        })
    }

    /// Takes the `tokens` that every layer has appended into the context.
    pub(crate) fn advance(&mut self, added: usize) {
        match self.spans.last_mut() {
            Some(Span::Tail { tokens, .. }) => *tokens += added,
            _ => self.spans.push(Span::Tail {
                at: self.tokens,
                start: self.tail_tokens,
                tokens: added,
            }),
        }
        self.tail_tokens += added;
        self.tokens += added;
    }

    fn shape_of(&self, tokens: usize) -> PacketShape {
        PacketShape {
            layers: self.layers.len(),
            kv_heads: self.kv_heads,
            tokens,
            head_dim: self.head_dim,
            kind: self.kind,
        }
    }
}

impl Span {
    fn at(&self) -> usize {
        match self {
            Self::Tail { at, .. } | Self::Packet { at, .. } => *at,
        }
    }

    fn tokens(&self) -> usize {
        match self {
            Self::Tail { tokens, .. } | Self::Packet { tokens, .. } => *tokens,
        }
    }
}
