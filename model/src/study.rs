//! The way through the transformer that studies: many rows, taps, masks, gradients, no cache.
//!
//! Gives the same numbers as [`Transformer::forward`], which serves (the tests hold them to it).

use crate::adapter::{bridge_shape, planes};
use crate::error::{Error, Result};
use crate::layers::attention::{Before, Sight};
use crate::layers::rope::Rope;
use crate::layers::stretches::{Stretches, visible};
use crate::packet::{PacketKv, PacketShape, Plane};
use crate::taps::{Documents, Mask, Pass};
use crate::tensor::{in_kind, int};
use crate::transformer::Transformer;
use std::ops::Range;
use tch::Tensor;

impl Transformer {
    /// A batch without a cache: ids i64 `[B, S]`, each row from position 0, padded on the right
    /// (nothing sees what comes after it, so padding does no harm). Hidden states after the last
    /// norm, `[B, S, d]`. Differentiable in whatever the taps put in.
    ///
    /// # Errors
    /// A tap or mask outside of the batch, rows longer than the context, or libtorch's.
    pub fn forward_batch(&self, ids: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor> {
        let x = self.embed(ids)?;
        let x = self.run(x, 0..self.blocks.len(), pass)?;
        self.norm.forward(&x)
    }

    /// The same from input embeddings `[B, S, d]`, scaled as [`Self::embed`] scales them.
    ///
    /// # Errors
    /// As [`Self::forward_batch`].
    pub fn forward_embeddings(&self, embeddings: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor> {
        let x = self.for_run(&embeddings.f_to_kind(self.kind)?)?;
        let x = self.run(x, 0..self.blocks.len(), pass)?;
        in_kind(&self.norm.forward(&x)?, self.kind)
    }

    /// One row of input embeddings `[1, S, d]` behind `context`, whose keys stand at their positions from 0 on, and behind
    /// an adapter's `bridge` between the two, `[layers, 2, kv_heads, P, head_dim]`. Hidden states after the last norm,
    /// `[1, S, d]`. Differentiable in the embeddings and in the bridge.
    ///
    /// # Errors
    /// A context that grows too long, or libtorch's.
    pub(crate) fn forward_over(
        &self,
        embeddings: &Tensor,
        context: &PacketKv,
        bridge: &Tensor,
    ) -> Result<Tensor> {
        let tokens = usize::try_from(embeddings.size3()?.1).unwrap_or(0);
        let stands = context.shape().tokens;
        let own = bridge_shape(bridge)?.tokens;
        let at = stands + own;
        Error::unless_within(at + tokens, self.config.context)?;
        let of = |(rope, window): (&Rope, Option<usize>)| -> Result<_> {
            let mask = visible(at, tokens, window, self.device)?;
            Ok((rope.angles(at, tokens)?, mask, rope.turn(int(stands))?))
        };
        let ways = self.ways();
        let [full, windowed] = [of(ways[0])?, of(ways[1])?];
        let mut pass = Pass::new();
        let mut x = self.for_run(&embeddings.f_to_kind(self.kind)?)?;
        let kind = x.kind();
        for (layer, block) in self.blocks.iter().enumerate() {
            let (angles, mask, turn) = block.window().map_or(&full, |_| &windowed);
            let [keys, values] = planes(bridge, layer)?;
            let keys = turn.rotate(&keys)?;
            let between = Before::of_plane(&Plane { keys, values }, own, (1, kind))?;
            let before = Before::of_plane(context.plane(layer)?, stands, (1, kind))?;
            let sight = Sight::Rows {
                angles,
                mask: Some(mask),
                before: Some(&between.behind(Some(&before))?),
            };
            (x, _) = block.forward_batch(&x, sight, &mut pass)?;
        }
        in_kind(&self.norm.forward(&x)?, self.kind)
    }

    /// The first layers only, `0 ..= layer`: the residual stream `[B, S, d]` as it leaves `layer`.
    ///
    /// # Errors
    /// As [`Self::forward_batch`], or there is no such layer.
    pub fn forward_to(&self, layer: usize, ids: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor> {
        self.check_layer(layer)?;
        let x = self.embed(ids)?;
        self.run(x, 0..layer + 1, pass)
    }

    /// Some layers only, `first ..= last`: from the residual stream `[B, S, d]` as it enters `first` to
    /// the one that leaves `last`.
    ///
    /// # Errors
    /// As [`Self::forward_batch`], or there are no such layers.
    pub fn forward_between(
        &self,
        first: usize,
        last: usize,
        residual: &Tensor,
        pass: &mut Pass<'_>,
    ) -> Result<Tensor> {
        self.check_layer(last)?;
        self.run(residual.f_to_kind(self.kind)?, first..last + 1, pass)
    }

    /// The last layers only, from the residual stream `[B, S, d]` as it left `layer`: hidden
    /// states after the last norm, `[B, S, d]`. Differentiable in `residual`.
    ///
    /// # Errors
    /// As [`Self::forward_batch`], or there is no such layer.
    pub fn forward_from(
        &self,
        layer: usize,
        residual: &Tensor,
        pass: &mut Pass<'_>,
    ) -> Result<Tensor> {
        self.check_layer(layer)?;
        let x = residual.f_to_kind(self.kind)?;
        let x = self.run(x, layer + 1..self.blocks.len(), pass)?;
        self.norm.forward(&x)
    }

    /// Runs `layers` on the residual stream `x [B, S, d]`.
    fn run(&self, mut x: Tensor, layers: Range<usize>, pass: &mut Pass<'_>) -> Result<Tensor> {
        let tokens = usize::try_from(x.size3()?.1).unwrap_or(0);
        Error::unless_within(tokens, self.config.context)?;
        let blocks = self.blocks.get(layers.clone()).unwrap_or_default();
        let ways = self.ways();
        if let Mask::Documents(documents) = pass.mask.clone() {
            let primer = documents.primer.as_deref();
            self.check_primer(&documents)?;
            let of =
                |(rope, window)| Stretches::new((rope, window, self.device), &documents, tokens);
            let [full, windowed] = [of(ways[0])?, of(ways[1])?];
            for (layer, block) in layers.zip(blocks) {
                let sight = Sight::Stretches {
                    stretches: block.window().map_or(&full, |_| &windowed),
                    primer: primer.map(|primer| primer.plane(layer)).transpose()?,
                };
                (x, _) = block.forward_batch(&x, sight, pass)?;
            }
            return Ok(x);
        }
        let of = |(rope, window): (&Rope, Option<usize>)| -> Result<_> {
            // Where no window bites, plain causality says it all.
            let bites = window.is_some_and(|window| tokens > window);
            let mask = bites.then(|| visible(0, tokens, window, self.device));
            Ok((rope.angles(0, tokens)?, mask.transpose()?))
        };
        let [full, windowed] = [of(ways[0])?, of(ways[1])?];
        for block in blocks {
            let (angles, mask) = block.window().map_or(&full, |_| &windowed);
            let sight = Sight::Rows {
                angles,
                mask: mask.as_ref(),
                before: None,
            };
            (x, _) = block.forward_batch(&x, sight, pass)?;
        }
        Ok(x)
    }

    /// How layers see: those that see everything, and those with a window.
    pub(crate) fn ways(&self) -> [(&Rope, Option<usize>); 2] {
        let local = self.local_rope.as_ref().unwrap_or(&self.rope);
        [(&self.rope, None), (local, self.config.sliding_window)]
    }

    /// Fails unless every document can stand behind the primer.
    fn check_primer(&self, documents: &Documents) -> Result<()> {
        let primer = documents.primer.as_ref().map(|primer| primer.shape());
        let tokens = primer.map_or(0, |shape| shape.tokens);
        if let Some(shape) = primer {
            shape.check_readable(PacketShape::of(&self.config, self.kind, tokens))?;
        }
        for document in &documents.each {
            if document.primed > tokens {
                return Err(Error::Invalid(format!(
                    "a document behind {} tokens of a primer that has {tokens}",
                    document.primed
                )));
            }
            let tokens = document.primed.saturating_add(document.tokens.len());
            Error::unless_within(tokens, self.config.context)?;
        }
        Ok(())
    }
}
