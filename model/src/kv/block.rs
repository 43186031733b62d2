//! Blocks: the tokens that a context has computed, [`BLOCK`] at a time, once they are written for good.
//!
//! A block's keys are turned to the positions at which its tokens stand, so it serves every context that has the
//! same tokens at the same places: branches of a search, and requests that begin alike. What is shared is never
//! written: a context that goes on in the middle of a block copies what it goes on behind.

use super::held::Share;
use super::{SequenceKv, Span};
use crate::error::{Error, Result};
use crate::layer_kv::{Tail, cut};
use crate::packet::{PacketKv, Plane};
use crate::tensor::{NoGrad, int};
use std::rc::Rc;
use tch::Tensor;

/// Tokens of a whole block.
pub(crate) const BLOCK: usize = 256;
/// Tokens that a context makes room for at least.
const LEAST: usize = 64;

/// Some tokens' keys and values in all layers, at their places; never written.
pub struct KvBlock {
    kv: PacketKv,
    share: Share,
}

impl KvBlock {
    /// Tokens in it.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.kv.shape().tokens
    }

    /// Bytes of memory that it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.share.bytes()
    }

    pub(crate) fn plane(&self, layer: usize) -> Result<&Plane> {
        self.kv.plane(layer)
    }
}

impl SequenceKv {
    /// Tokens of a whole block.
    pub const BLOCK: usize = BLOCK;

    /// Tokens of the context's own that lie in blocks.
    pub(crate) fn sealed(&self) -> usize {
        self.blocks.len() * BLOCK
    }

    /// Tokens that lie in the tail.
    pub(crate) fn tail_rows(&self) -> usize {
        self.own_tokens - self.sealed()
    }

    /// Bytes that `tokens` more of its own need at most, beside what the context holds now.
    #[must_use]
    pub fn growth(&self, tokens: usize) -> usize {
        let rows = self.tail_rows();
        let sealed = rows / BLOCK * BLOCK;
        let (sealing, capacity) = match sealed {
            0 => (0, self.capacity()),
            // Its memory becomes the block.
            BLOCK if rows == BLOCK && self.capacity() == BLOCK => (0, 0),
            _ => {
                let rest = LEAST.max(rows - sealed);
                (sealed + rest, rest)
            }
        };
        let wanted = rows - sealed + tokens;
        let growing = match wanted <= capacity {
            true => 0,
            false => larger(capacity, wanted),
        };
        (sealing + growing) * self.token_bytes()
    }

    /// Makes room for `tokens` more: whole blocks of the tail are sealed, and what is left has room behind it.
    ///
    /// # Errors
    /// The context would grow too long, or libtorch's; the context is as before.
    pub(crate) fn make_room(&mut self, tokens: usize) -> Result<()> {
        self.check_room(tokens)?;
        self.seal()?;
        let (rows, wanted) = (self.tail_rows(), self.tail_rows() + tokens);
        if wanted > self.capacity() {
            let capacity = larger(self.capacity(), wanted);
            let grown = self.layers.iter().map(|tail| tail.rest(0, rows, capacity));
            self.layers = grown.collect::<Result<_>>()?;
        }
        self.count();
        Ok(())
    }

    /// Makes blocks of the tail's tokens, as far as they are whole.
    ///
    /// # Errors
    /// libtorch's; the context is as before.
    pub(crate) fn seal(&mut self) -> Result<()> {
        let _guard = NoGrad::new();
        let rows = self.tail_rows();
        if rows < BLOCK {
            return Ok(());
        }
        if rows == BLOCK && self.capacity() == BLOCK {
            let empty = self.tails()?;
            let tails = std::mem::replace(&mut self.layers, empty);
            let planes = tails.into_iter().map(Tail::into_plane);
            let block = self.block(BLOCK, planes.collect());
            self.blocks.push(block);
        } else {
            let first = self.sealed();
            let starts = (0..rows / BLOCK).map(|index| first + index * BLOCK);
            let blocks = starts.map(|start| self.copied(start, BLOCK));
            let blocks = blocks.collect::<Result<Vec<_>>>()?;
            let sealed = blocks.len() * BLOCK;
            let rest = self.layers.iter();
            let rest = rest.map(|tail| tail.rest(sealed, rows - sealed, LEAST));
            self.layers = rest.collect::<Result<_>>()?;
            self.blocks.extend(blocks);
        }
        self.count();
        Ok(())
    }

    /// The first `tokens` as blocks, the last of which may be a copied part of one.
    ///
    /// # Errors
    /// The context is shorter, or has a packet among them; or libtorch's.
    pub fn leading(&mut self, tokens: usize) -> Result<Vec<Rc<KvBlock>>> {
        let _guard = NoGrad::new();
        let own = match self.spans.first() {
            Some(Span::Own { tokens, .. }) => *tokens,
            _ => 0,
        };
        if tokens > own {
            return Err(Error::Invalid(format!(
                "the first {tokens} tokens of this context were not computed in it"
            )));
        }
        self.seal()?;
        let whole = tokens / BLOCK;
        let mut blocks = self.blocks.get(..whole).unwrap_or_default().to_vec();
        if !tokens.is_multiple_of(BLOCK) {
            blocks.push(self.copied(whole * BLOCK, tokens % BLOCK)?);
        }
        Ok(blocks)
    }

    /// Begins with the first `tokens` of `blocks`, which lie one behind the other from position 0; all but the
    /// last are whole. Shares what is wanted whole and copies the rest.
    ///
    /// # Errors
    /// The context is not empty, the blocks are of another model, or have fewer tokens; or libtorch's.
    pub fn begin_with(&mut self, blocks: &[Rc<KvBlock>], tokens: usize) -> Result<()> {
        let _guard = NoGrad::new();
        let (whole, rest) = (tokens / BLOCK, tokens % BLOCK);
        let wanted = blocks.get(..tokens.div_ceil(BLOCK)).unwrap_or_default();
        let held: usize = wanted.iter().map(|block| block.tokens()).sum();
        let fits = |block: &Rc<KvBlock>| block.kv.shape() == self.shape_of(block.tokens());
        let are_whole = wanted.iter().take(whole);
        if !self.is_empty()
            || held < tokens
            || !wanted.iter().all(fits)
            || !{ are_whole }.all(|block| block.tokens() == BLOCK)
        {
            return Err(Error::Invalid(format!(
                "a context of {} tokens can't begin with {tokens} of blocks of {held}",
                self.len()
            )));
        }
        self.check_room(tokens)?;
        let (shared, part) = wanted.split_at(whole.min(wanted.len()));
        if let Some(block) = part.first() {
            self.layers = self.unsealed(block, rest)?;
        }
        self.blocks = shared.to_vec();
        self.count();
        self.advance(tokens);
        Ok(())
    }

    /// Keeps of its own tokens only so many; what is left of a block that is cut goes back into the tail.
    pub(super) fn keep_own(&mut self, tokens: usize) -> Result<()> {
        let _guard = NoGrad::new();
        if tokens < self.sealed() {
            let (whole, rest) = (tokens / BLOCK, tokens % BLOCK);
            self.layers = match self.blocks.get(whole) {
                Some(block) if rest > 0 => self.unsealed(block, rest)?,
                _ => self.tails()?,
            };
            self.blocks.truncate(whole);
        }
        self.own_tokens = tokens;
        self.count();
        Ok(())
    }

    /// Tails that hold the first `tokens` of a block.
    fn unsealed(&self, block: &KvBlock, tokens: usize) -> Result<Vec<Tail>> {
        let capacity = larger(0, tokens);
        let tails = (0..self.layers.len()).map(|layer| {
            let plane = block.plane(layer)?;
            let whole = Tail {
                keys: plane.keys.shallow_clone(),
                values: plane.values.shallow_clone(),
            };
            whole.rest(0, tokens, capacity)
        });
        tails.collect()
    }

    /// A copy of some of its own tokens.
    fn copied(&self, start: usize, tokens: usize) -> Result<Rc<KvBlock>> {
        let planes = (0..self.layers.len()).map(|layer| {
            let (keys, values) = self.own_rows(layer, start, tokens)?;
            let copy = Tail { keys, values }.rest(0, tokens, tokens)?;
            Ok(copy.into_plane())
        });
        Ok(self.block(tokens, planes.collect::<Result<_>>()?))
    }

    fn block(&self, tokens: usize, planes: Vec<Plane>) -> Rc<KvBlock> {
        let bytes = tokens * self.token_bytes();
        Rc::new(KvBlock {
            kv: PacketKv::new(self.shape_of(tokens), planes),
            share: self.held.share(bytes),
        })
    }

    /// Keys and values `[kv_heads, tokens, head_dim]` of some of its own tokens in one layer, of blocks and tail;
    /// a copy where they lie in more than one.
    pub(crate) fn own_rows(
        &self,
        layer: usize,
        start: usize,
        tokens: usize,
    ) -> Result<(Tensor, Tensor)> {
        let tail = self
            .layers
            .get(layer)
            .ok_or_else(|| Error::Invalid(format!("a context has no layer {layer}")))?;
        rows(&self.blocks, (tail, layer), start, tokens)
    }

    /// Empty tails.
    fn tails(&self) -> Result<Vec<Tail>> {
        let empty = [int(self.kv_heads), 0, int(self.head_dim)];
        let tails = self.layers.iter();
        tails
            .map(|_| Tail::new(empty, self.kind, self.device))
            .collect()
    }

    /// Tokens that the tail has memory for.
    pub(super) fn capacity(&self) -> usize {
        self.layers.first().map_or(0, Tail::capacity)
    }

    /// Bytes of one token.
    pub(super) fn token_bytes(&self) -> usize {
        self.shape_of(1).bytes().unwrap_or(0)
    }

    /// Counts what the tail holds.
    pub(super) fn count(&mut self) {
        self.share.set(self.capacity() * self.token_bytes());
    }
}

/// Keys and values `[kv_heads, tokens, head_dim]` of some own tokens of a context in one layer; a copy where they
/// lie in more than one of its blocks and its tail.
pub(crate) fn rows(
    blocks: &[Rc<KvBlock>],
    (tail, layer): (&Tail, usize),
    start: usize,
    tokens: usize,
) -> Result<(Tensor, Tensor)> {
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    for (block, from, tokens) in pieces(blocks.len(), start, tokens) {
        let (all_keys, all_values) = match block.and_then(|block| blocks.get(block)) {
            Some(block) => {
                let plane = block.plane(layer)?;
                (&plane.keys, &plane.values)
            }
            None => (&tail.keys, &tail.values),
        };
        keys.push(cut(all_keys, from, tokens)?);
        values.push(cut(all_values, from, tokens)?);
    }
    let one = |mut all: Vec<Tensor>| match (all.pop(), all.is_empty()) {
        (Some(only), true) => Ok(only),
        (Some(last), false) => {
            all.push(last);
            Tensor::f_cat(&all, 1)
        }
        (None, _) => cut(&tail.keys, 0, 0),
    };
    Ok((one(keys)?, one(values)?))
}

/// Own tokens of a context with so many blocks, cut where they lie: the block's number (none: the tail), the
/// first row there, and how many.
pub(crate) fn pieces(
    blocks: usize,
    start: usize,
    tokens: usize,
) -> impl Iterator<Item = (Option<usize>, usize, usize)> {
    let end = start + tokens;
    let mut at = start;
    std::iter::from_fn(move || {
        let block = at / BLOCK;
        let (place, first, last) = match block < blocks {
            true => (Some(block), block * BLOCK, (block + 1) * BLOCK),
            false => (None, blocks * BLOCK, end),
        };
        let piece = (place, at - first, last.min(end) - at.min(end));
        at = last;
        (piece.2 > 0).then_some(piece)
    })
}

/// Tokens that a tail with room for `capacity` gets room for, when it needs `wanted`: up to a block it doubles, so
/// that a token is copied once on average.
fn larger(capacity: usize, wanted: usize) -> usize {
    match wanted <= BLOCK {
        true => wanted.max(2 * capacity).clamp(LEAST, BLOCK),
        false => wanted,
    }
}
