//! The keys and values that one running sequence sees.
//!
//! A [`SequenceKv`] is a run of *spans*: stretches of tokens that it has computed itself, and
//! stretches of packets, which it shares with every other sequence that reads them. A packet keeps
//! its keys as if it began at position 0; a span knows where in the sequence that token 0 would
//! stand, its *anchor*, also where only a later stretch of the packet is read. Its own tokens lie in
//! blocks, which others may share, and the last of them in a tail that grows in place.

mod block;
mod branch;
mod held;
mod lies;

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::layer_kv::{LayerKv, Tail};
use crate::packet::{PacketKv, PacketShape, Plane};
use crate::tensor::int;
use held::Share;
use std::ops::Range;
use std::rc::Rc;
use tch::{Device, Kind};

pub use block::KvBlock;
pub(crate) use block::rows;
pub(crate) use held::Held;

/// A stretch of a sequence's context.
#[derive(Clone)]
pub(crate) enum Span {
    /// Tokens `start .. start + tokens` of those that are the sequence's own, at position `at`.
    Own {
        at: usize,
        start: usize,
        tokens: usize,
    },
    /// Tokens `from .. from + tokens` of a packet, at position `at`.
    Packet {
        at: usize,
        from: usize,
        tokens: usize,
        packet: Rc<PacketKv>,
    },
}

/// The keys and values that one running sequence sees.
pub struct SequenceKv {
    /// Its own tokens, as far as they are sealed: the first of them.
    blocks: Vec<Rc<KvBlock>>,
    /// Of each layer the own tokens behind the blocks.
    layers: Vec<Tail>,
    spans: Vec<Span>,
    own_tokens: usize,
    tokens: usize,
    context: usize,
    kv_heads: usize,
    head_dim: usize,
    kind: Kind,
    device: Device,
    /// What all contexts of the model hold, and what this one's tail does.
    held: Held,
    share: Share,
}

impl SequenceKv {
    /// An empty context for a model of `config` that computes in `kind` on `device`; its memory is counted in
    /// `held`.
    ///
    /// # Errors
    /// libtorch's.
    pub(crate) fn new(
        config: &ModelConfig,
        (kind, device): (Kind, Device),
        held: &Held,
    ) -> Result<Self> {
        let shape = PacketShape::of(config, kind, 0);
        let empty = [int(shape.kv_heads), 0, int(shape.head_dim)];
        let layers = (0..shape.layers).map(|_| Tail::new(empty, kind, device));
        Ok(Self {
            blocks: Vec::new(),
            layers: layers.collect::<Result<_>>()?,
            spans: Vec::new(),
            own_tokens: 0,
            tokens: 0,
            context: config.context,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            kind,
            device,
            held: held.clone(),
            share: held.share(0),
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
        self.own_tokens
    }

    /// Bytes of memory of the tokens that are this sequence's own, also where it shares them; packets are not
    /// counted.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let blocks: usize = self.blocks.iter().map(|block| block.bytes()).sum();
        blocks + self.share.bytes()
    }

    /// Bytes of memory that it does not share.
    #[must_use]
    pub fn tail_bytes(&self) -> usize {
        self.share.bytes()
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
                packet,
            });
            self.tokens += tokens;
        }
        Ok(())
    }

    /// Forgets everything from position `len` on. The tail's memory is kept for what comes next.
    ///
    /// # Errors
    /// `len` is beyond the end, or lies inside a packet; or libtorch's.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        let inside = self.spans.iter().any(|span| match span {
            Span::Packet { at, tokens, .. } => *at < len && len < at + tokens,
            Span::Own { .. } => false,
        });
        if len > self.tokens || inside {
            return Err(Error::Invalid(format!(
                "a context of {} tokens can't be cut at {len}",
                self.tokens
            )));
        }
        let own = |span: &Span| match span {
            Span::Own { at, tokens, .. } => (*tokens).min(len.saturating_sub(*at)),
            Span::Packet { .. } => 0,
        };
        self.keep_own(self.spans.iter().map(own).sum())?;
        self.spans.retain_mut(|span| match span {
            Span::Packet { at, .. } => *at < len,
            Span::Own { at, tokens, .. } => {
                *tokens = (*tokens).min(len.saturating_sub(*at));
                *tokens > 0
            }
        });
        self.tokens = len;
        Ok(())
    }

    /// The tokens behind the packets that the context begins with, their keys as they lie.
    ///
    /// # Errors
    /// Packets stand among its own tokens, or libtorch's.
    pub(crate) fn into_packet(self) -> Result<PacketKv> {
        let own = |span: &&Span| matches!(span, Span::Own { .. });
        if self.spans.iter().filter(own).count() > 1 || !self.spans.last().is_some_and(|s| own(&s))
        {
            return Err(Error::Invalid(
                "a packet can only be made of tokens that were computed together".to_owned(),
            ));
        }
        let layers = (0..self.layers.len()).map(|index| {
            let (keys, values) = self.own_rows(index, 0, self.own_tokens)?;
            Ok(Plane {
                keys: keys.f_contiguous()?,
                values: values.f_contiguous()?,
            })
        });
        let layers = layers.collect::<Result<_>>()?;
        Ok(PacketKv::new(self.shape_of(self.own_tokens), layers))
    }

    /// Fails unless `tokens` more fit into the model's context.
    pub(crate) fn check_room(&self, tokens: usize) -> Result<()> {
        Error::unless_within(self.tokens.saturating_add(tokens), self.context)
    }

    /// Fails unless these tokens of a packet of `shape` can be read here.
    pub(crate) fn check_packet(&self, shape: PacketShape, tokens: &Range<usize>) -> Result<()> {
        shape.check_readable(self.shape_of(shape.tokens))?;
        if tokens.start > tokens.end || tokens.end > shape.tokens {
            return Err(Error::Invalid(format!(
                "a packet of {} tokens has no tokens {tokens:?}",
                shape.tokens
            )));
        }
        Ok(())
    }

    /// The positions at which the token 0 of each packet would stand, in order of the packets.
    pub(crate) fn anchors(&self) -> Vec<i64> {
        let anchor = |span: &Span| match span {
            Span::Packet { at, from, .. } => Some(int(*at) - int(*from)),
            Span::Own { .. } => None,
        };
        self.spans.iter().filter_map(anchor).collect()
    }

    /// What layer `index` sees and writes while more tokens are computed, of which `done` have
    /// passed through this layer already.
    pub(crate) fn layer(&mut self, index: usize, done: usize) -> Result<LayerKv<'_>> {
        let layers = self.layers.len();
        let own = self.tail_rows() + done;
        let tail = self.layers.get_mut(index).ok_or_else(|| {
            Error::Invalid(format!("layer {index} of a context of {layers} layers"))
        })?;
        Ok(LayerKv {
            index,
            tail,
            blocks: &self.blocks,
            spans: &self.spans,
            own,
            at: self.tokens + done,
            done,
            device: self.device,
        })
    }

    /// Takes the `tokens` that every layer has appended into the context.
    pub(crate) fn advance(&mut self, added: usize) {
        match self.spans.last_mut() {
            Some(Span::Own { at, tokens, .. }) if *at + *tokens == self.tokens => *tokens += added,
            _ => self.spans.push(Span::Own {
                at: self.tokens,
                start: self.own_tokens,
                tokens: added,
            }),
        }
        self.own_tokens += added;
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
