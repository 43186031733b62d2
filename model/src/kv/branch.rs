//! Contexts that branch: several that go on from one beginning, which they share.

use super::SequenceKv;
use crate::error::Result;
use crate::tensor::NoGrad;

impl SequenceKv {
    /// The same context once more, to go on by itself: packets and blocks are shared, tokens of the tail copied.
    ///
    /// # Errors
    /// libtorch's.
    pub fn branch(&mut self) -> Result<Self> {
        let _guard = NoGrad::new();
        self.seal()?;
        let (rows, capacity) = (self.tail_rows(), self.capacity());
        let layers = self.layers.iter();
        let layers = layers.map(|tail| tail.rest(0, rows, capacity));
        let mut branch = Self {
            layers: layers.collect::<Result<_>>()?,
            blocks: self.blocks.clone(),
            spans: self.spans.clone(),
            held: self.held.clone(),
            share: self.held.share(0),
            ..*self
        };
        branch.count();
        Ok(branch)
    }
}
