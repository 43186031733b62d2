//! Keys and values: of one sequence while it runs, and of a packet for good.
//!
//! A [`SequenceKv`] is a run of *spans*: stretches of its own tail, which grows in place, and
//! packets, which it shares with every other sequence that reads them. A packet is immutable
//! and keeps its keys as if it began at position 0; where it lies in a sequence is known to the
//! sequence alone. Nothing here knows where a packet's bytes come from.

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::layers::part::Part;
use crate::tensor::{borrow_bytes, element_size, int, to_bytes};
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// What a packet's bytes mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketShape {
    /// Layers of the model.
    pub layers: usize,
    /// Key-value heads of a layer.
    pub kv_heads: usize,
    /// Tokens, soft ones included.
    pub tokens: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// The dtype of every element.
    pub kind: Kind,
}

impl PacketShape {
    /// Bytes of the keys of one layer; the values take as many.
    ///
    /// # Errors
    /// The dtype can't be stored, or the product overflows.
    fn plane_bytes(&self) -> Result<usize> {
        [
            self.kv_heads,
            self.tokens,
            self.head_dim,
            element_size(self.kind)?,
        ]
        .into_iter()
        .try_fold(1_usize, usize::checked_mul)
        .ok_or_else(|| Error::Invalid(format!("{self:?} is too large")))
    }

    /// Bytes of the whole packet.
    ///
    /// # Errors
    /// The dtype can't be stored, or the product overflows.
    pub fn bytes(&self) -> Result<usize> {
        (2 * self.layers)
            .checked_mul(self.plane_bytes()?)
            .ok_or_else(|| Error::Invalid(format!("{self:?} is too large")))
    }
}

/// Keys and values `[kv_heads, tokens, head_dim]` of one layer.
pub(crate) struct Plane {
    pub(crate) keys: Tensor,
    pub(crate) values: Tensor,
}

/// The stored KV of one document, built in isolation at positions 0, 1, …; shared as an `Rc`
/// by all sequences that read it, and never written.
pub struct PacketKv {
    shape: PacketShape,
    layers: Vec<Plane>,
    /// What the tensors lie in, where they don't own their memory. Declared after them: they
    /// are dropped first.
    owner: Option<Box<dyn AsRef<[u8]>>>,
}

impl PacketKv {
    /// A packet of `layers` of `shape`, in memory that they own.
    pub(crate) fn new(shape: PacketShape, layers: Vec<Plane>) -> Self {
        Self {
            shape,
            layers,
            owner: None,
        }
    }

    /// What its bytes mean.
    #[must_use]
    pub fn shape(&self) -> PacketShape {
        self.shape
    }

    /// Whether its memory belongs to somebody else (a memory map).
    #[must_use]
    pub fn is_borrowed(&self) -> bool {
        self.owner.is_some()
    }

    /// Keys and values of one layer.
    pub(crate) fn plane(&self, layer: usize) -> Result<&Plane> {
        let layers = self.layers.len();
        self.layers
            .get(layer)
            .ok_or_else(|| Error::Invalid(format!("layer {layer} of a packet of {layers} layers")))
    }

    /// For each layer its keys and then its values, each `[kv_heads, tokens, head_dim]`,
    /// row-major, little-endian.
    ///
    /// # Errors
    /// libtorch's.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(self.shape.bytes()?);
        for layer in &self.layers {
            bytes.extend(to_bytes(&layer.keys)?);
            bytes.extend(to_bytes(&layer.values)?);
        }
        Ok(bytes)
    }

    /// A packet over `owner`'s bytes, as [`Self::to_bytes`] wrote them. On the CPU they are not
    /// copied, and `owner` lives as long as the packet does; its bytes must not change or move.
    ///
    /// # Errors
    /// There are more or fewer bytes than `shape` says.
    pub fn from_owner(
        owner: Box<dyn AsRef<[u8]>>,
        shape: PacketShape,
        device: Device,
    ) -> Result<Self> {
        let bytes = (*owner).as_ref();
        let plane = shape.plane_bytes()?;
        if bytes.len() != shape.bytes()? {
            return Err(Error::Invalid(format!(
                "a packet of {shape:?} takes {} bytes, not {}",
                shape.bytes()?,
                bytes.len()
            )));
        }
        let dims = [int(shape.kv_heads), int(shape.tokens), int(shape.head_dim)];
        let mut planes = bytes.chunks_exact(plane.max(1));
        let mut next = || -> Result<Tensor> {
            let bytes = planes.next().unwrap_or_default();
            // SAFETY: the tensor is stored beside `owner` and dropped before it; `owner` is
            // boxed, so that its bytes stay where they are, and nothing writes to packets.
            Ok(unsafe { borrow_bytes(bytes, &dims, shape.kind)? }.f_to_device(device)?)
        };
        let layers = (0..shape.layers)
            .map(|_| {
                Ok(Plane {
                    keys: next()?,
                    values: next()?,
                })
            })
            .collect::<Result<_>>()?;
        let owner = (device == Device::Cpu).then_some(owner);
        Ok(Self {
            shape,
            layers,
            owner,
        })
    }
}

/// A stretch of a sequence's context.
enum Span {
    /// Tokens `start .. start + tokens` of the sequence's own tail, at position `at`.
    Tail {
        at: usize,
        start: usize,
        tokens: usize,
    },
    /// A packet that begins at position `at`.
    Packet { at: usize, packet: Rc<PacketKv> },
}

/// One layer of a sequence's own tail: `[kv_heads, capacity, head_dim]`, filled from the left.
struct Tail {
    keys: Tensor,
    values: Tensor,
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
        let empty = || {
            let shape = [int(config.num_kv_heads), 0, int(config.head_dim)];
            Tensor::f_empty(shape, (kind, device))
        };
        let layers = (0..config.num_layers)
            .map(|_| {
                Ok(Tail {
                    keys: empty()?,
                    values: empty()?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            layers,
            spans: Vec::new(),
            tail_tokens: 0,
            tokens: 0,
            context: config.context,
            kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            kind,
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
        let elements = |tail: &Tail| tail.keys.numel() + tail.values.numel();
        let size = element_size(self.kind).unwrap_or(0);
        self.layers.iter().map(|tail| elements(tail) * size).sum()
    }

    /// Places a packet at the end of the context. Nothing is copied or computed.
    ///
    /// # Errors
    /// The packet is of another model or dtype, or the context would grow too long.
    pub fn attach(&mut self, packet: Rc<PacketKv>) -> Result<()> {
        let shape = packet.shape();
        let here = PacketShape {
            layers: self.layers.len(),
            kv_heads: self.kv_heads,
            tokens: shape.tokens,
            head_dim: self.head_dim,
            kind: self.kind,
        };
        if shape != here {
            return Err(Error::Invalid(format!(
                "a packet of {shape:?} can't be read by a model of {here:?}"
            )));
        }
        self.check_room(shape.tokens)?;
        if shape.tokens > 0 {
            self.spans.push(Span::Packet {
                at: self.tokens,
                packet,
            });
            self.tokens += shape.tokens;
        }
        Ok(())
    }

    /// Forgets everything from position `len` on. Memory is kept for what comes next.
    ///
    /// # Errors
    /// `len` is beyond the end, or lies inside a packet.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        let inside = self.spans.iter().any(|span| match span {
            Span::Packet { at, packet } => *at < len && len < at + packet.shape.tokens,
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
        let shape = PacketShape {
            layers: self.layers.len(),
            kv_heads: self.kv_heads,
            tokens: self.tokens,
            head_dim: self.head_dim,
            kind: self.kind,
        };
        let own = |t: &Tensor| t.f_narrow(1, 0, int(self.tokens))?.f_contiguous();
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
        Ok(PacketKv {
            shape,
            layers,
            owner: None,
        })
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

    /// Positions at which the packets begin, in order.
    pub(crate) fn packet_positions(&self) -> Vec<usize> {
        let position = |span: &Span| match span {
            Span::Packet { at, .. } => Some(*at),
            Span::Tail { .. } => None,
        };
        self.spans.iter().filter_map(position).collect()
    }

    /// What layer `index` sees and writes while `tokens` more are computed.
    pub(crate) fn layer(&mut self, index: usize) -> Result<LayerKv<'_>> {
        let layers = self.layers.len();
        let tail = self.layers.get_mut(index).ok_or_else(|| {
            Error::Invalid(format!("layer {index} of a context of {layers} layers"))
        })?;
        let (own, at) = (self.tail_tokens, self.tokens);
        Ok(LayerKv {
            index,
            tail,
            spans: &self.spans,
            own,
            at,
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
}

/// One layer of a sequence, while a run of tokens passes through it.
pub(crate) struct LayerKv<'a> {
    index: usize,
    tail: &'a mut Tail,
    spans: &'a [Span],
    /// Tokens of the tail before this run.
    own: usize,
    /// Position of the run's first token.
    at: usize,
    device: Device,
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

    /// The packets of the context, in order; their keys count positions from 0.
    pub(crate) fn packets(&self) -> Vec<LayerSpan> {
        let packet = |span: &Span| match span {
            Span::Tail { .. } => None,
            Span::Packet { at, packet } => packet.layers.get(self.index).map(|plane| LayerSpan {
                keys: plane.keys.shallow_clone(),
                values: plane.values.shallow_clone(),
                at: *at,
                tokens: packet.shape.tokens,
            }),
        };
        self.spans.iter().filter_map(packet).collect()
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

    /// The whole tail, what was just appended included.
    pub(crate) fn tail(&self) -> Result<(Tensor, Tensor)> {
        let own = int(self.own);
        Ok((
            self.tail.keys.f_narrow(1, 0, own)?,
            self.tail.values.f_narrow(1, 0, own)?,
        ))
    }

    /// The tail before this run: in one piece, or, where positions matter, one piece for each
    /// stretch between packets.
    pub(crate) fn tail_before(&self, by_position: bool, run: usize) -> Result<Vec<LayerSpan>> {
        let piece = |at: usize, start: usize, tokens: usize| -> Result<LayerSpan> {
            let part = |t: &Tensor| t.f_narrow(1, int(start), int(tokens));
            Ok(LayerSpan {
                keys: part(&self.tail.keys)?,
                values: part(&self.tail.values)?,
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
            Span::Tail { at, start, tokens } => Some(piece(*at, *start, *tokens)),
            Span::Packet { .. } => None,
        });
        stretches.collect()
    }
}

impl Tail {
    /// Makes room for `wanted` tokens. Grows by doubling, so that a token costs one copy of
    /// itself on average, however long the sequence becomes.
    fn reserve(&mut self, wanted: i64, filled: i64, device: Device) -> Result<()> {
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
