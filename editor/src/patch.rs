//! The low-rank change of one layer's down-projection, and how changes become an overlay on the base weights.
//!
//! Invariant: an overlay is base plus the patches in their order, never the weights that happen to be served plus
//! one more; so nothing accumulates, and no patches give the base itself.

use std::collections::BTreeMap;

use addenda_model::{Overlay, Transformer};
use tch::{Kind, Tensor};

use crate::bundle::PatchKind;
use crate::digest::Canonical;
use crate::error::{Error, Result};
use crate::rows::floats;
use crate::solve::Solution;

/// ΔW = left · rightᵀ of one layer.
#[derive(Debug)]
pub struct Patch {
    layer: usize,
    /// f32 `[d, m]`.
    left: Tensor,
    /// f32 `[f, m]`.
    right: Tensor,
    /// Share of what was wanted that λ kept back.
    unmet: f64,
    /// Estimate from below of the condition number of λC.
    condition: f64,
}

impl Patch {
    pub(crate) fn new(layer: usize, solution: &Solution, condition: f64) -> Result<Self> {
        let single = |tensor: &Tensor| {
            tensor
                .f_to_kind(Kind::Float)
                .map_err(Error::torch("rounding a patch"))
        };
        let (left, right) = (single(&solution.left)?, single(&solution.right)?);
        Ok(Self {
            layer,
            left,
            right,
            unmet: solution.unmet,
            condition,
        })
    }

    /// From its factors, and from what [`Self::unmet`] and [`Self::condition`] said, as they were kept.
    pub(crate) fn restored(
        layer: usize,
        (left, right): (Tensor, Tensor),
        (unmet, condition): (f64, f64),
    ) -> Self {
        Self {
            layer,
            left,
            right,
            unmet,
            condition,
        }
    }

    /// What it is made of. Every patch that is installed is made of facts, so far.
    #[must_use]
    pub fn kind(&self) -> PatchKind {
        PatchKind::Facts
    }

    /// f32 `[d, m]`; ΔW = left · rightᵀ.
    pub(crate) fn left(&self) -> &Tensor {
        &self.left
    }

    /// f32 `[f, m]`.
    pub(crate) fn right(&self) -> &Tensor {
        &self.right
    }

    /// The layer whose down-projection it changes, from 0.
    #[must_use]
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// Facts in it: its rank at most.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.left
            .size()
            .last()
            .map_or(0, |rank| usize::try_from(*rank).unwrap_or(0))
    }

    /// Share of what was wanted at this layer that λ kept back; 0 is all reached.
    #[must_use]
    pub fn unmet(&self) -> f64 {
        self.unmet
    }

    /// Estimate from below of the condition number of the system that was solved.
    #[must_use]
    pub fn condition(&self) -> f64 {
        self.condition
    }

    /// ΔW, f32 `[d, f]` on the CPU.
    pub fn delta(&self) -> Result<Tensor> {
        self.right
            .f_tr()
            .and_then(|right| self.left.f_matmul(&right))
            .map_err(Error::torch("multiplying a patch out"))
    }

    /// ‖ΔW‖ (Frobenius).
    pub fn norm(&self) -> Result<f64> {
        self.delta()?
            .f_norm()
            .and_then(f64::try_from)
            .map_err(Error::torch("measuring a patch"))
    }

    /// BLAKE3 of layer, shapes and numbers.
    pub fn digest(&self) -> Result<[u8; 32]> {
        let mut canonical = Canonical::new("addenda 2026-01 patch");
        canonical.number(self.layer as u64);
        for factor in [&self.left, &self.right] {
            for size in factor.size() {
                canonical.number(size.unsigned_abs());
            }
            let numbers = floats(factor).map_err(Error::torch("reading a patch"))?;
            canonical.bytes(
                &numbers
                    .iter()
                    .flat_map(|number| number.to_le_bytes())
                    .collect::<Vec<u8>>(),
            );
        }
        Ok(canonical.finish())
    }
}

/// Base weights plus the patches, in their order.
pub(crate) fn overlay(model: &Transformer, patches: &[Patch]) -> Result<Overlay> {
    let mut edited: BTreeMap<usize, Tensor> = BTreeMap::new();
    for patch in patches {
        let delta = patch.delta()?;
        let weight = match edited.remove(&patch.layer) {
            Some(weight) => weight,
            None => model.base_down_proj(patch.layer)?,
        };
        let delta = delta
            .f_to_device(weight.device())
            .map_err(Error::torch("placing a patch"))?;
        let weight = weight
            .f_add(&delta)
            .map_err(Error::torch("adding a patch"))?;
        edited.insert(patch.layer, weight);
    }
    Ok(model.overlay(&edited)?)
}
