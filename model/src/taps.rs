//! Taps: read, add to, or replace what flows through the model at a layer and token, in
//! [`Transformer::forward_batch`](crate::Transformer::forward_batch) and its like. This is what
//! locating and editing facts is made of.
//!
//! A tap never changes the model; an [`Overlay`] lets a pass run as if other down-projections
//! were served, without touching those that are.

use crate::error::{Error, Result};
use crate::packet::PacketKv;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use tch::{Device, Tensor};

/// A place in every layer that a tap can be put at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// The residual stream as it leaves the layer, width `hidden_size`.
    Residual,
    /// The input of `down_proj`: act(gate) · up, width `intermediate_size`.
    MlpKey,
    /// The output of `down_proj`, before any norm behind it, width `hidden_size`.
    MlpOut,
    /// The output of attention, before any norm behind it, width `hidden_size`.
    AttentionOut,
}

/// What a tap does at its site.
#[derive(Debug)]
pub enum Action {
    /// Keeps what passes, `[n, width]`, with its gradients where the pass has any.
    Read,
    /// Adds `[n, width]` to what passes; gradients flow into it.
    Add(Tensor),
    /// Puts `[n, width]` in the place of what passes; gradients flow into it.
    Replace(Tensor),
}

/// One tap: at n tokens of one site of one layer.
#[derive(Debug)]
pub struct Tap {
    /// The layer, from 0.
    pub layer: usize,
    /// Where in the layer.
    pub site: Site,
    /// (row, token) pairs, each within the batch.
    pub at: Vec<(i64, i64)>,
    /// What to do there.
    pub action: Action,
}

/// What the tokens of a row see of each other.
#[derive(Clone, Default)]
pub enum Mask {
    /// Each token sees itself and all before it.
    #[default]
    Causal,
    /// The packets' mask: a token inside a document sees the primer, itself, and what stands before it there; one
    /// outside of all documents sees everything before it.
    Documents(Documents),
}

/// The documents of a row, each computed as its packet is.
#[derive(Clone)]
pub struct Documents {
    /// In order, none within another.
    pub each: Vec<Isolated>,
    /// What documents stand behind, from position 0 on, and nothing else sees; it is no part of the row.
    pub primer: Option<Rc<PacketKv>>,
}

/// A document in a row, as its packet is built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Isolated {
    /// Where it is in the row; soft tokens belong to it. Not empty.
    pub tokens: Range<usize>,
    /// So many of the primer's first tokens stand before it, and it takes the positions that follow those.
    pub primed: usize,
}

impl Documents {
    /// A row of so many tokens in stretches, in order: documents, with what they are primed by, and what stands between.
    ///
    /// # Errors
    /// A document that does not fit the row.
    pub(crate) fn stretches(&self, tokens: usize) -> Result<Vec<(Range<usize>, Option<usize>)>> {
        let mut stretches = Vec::with_capacity(2 * self.each.len() + 1);
        let mut end = 0;
        for document in &self.each {
            let span = &document.tokens;
            if span.start < end || span.is_empty() || span.end > tokens {
                return Err(Error::Invalid(format!(
                    "a document at {span:?} does not fit a row of {tokens} tokens behind {end}"
                )));
            }
            stretches.push((end..span.start, None));
            stretches.push((span.clone(), Some(document.primed)));
            end = span.end;
        }
        stretches.push((end..tokens, None));
        stretches.retain(|(range, _)| !range.is_empty());
        Ok(stretches)
    }
}

/// The terms of one batched pass.
#[derive(Default)]
pub struct Pass<'a> {
    /// What tokens see of each other. A layer's window is added to it.
    pub mask: Mask,
    /// What to read and change on the way. Taps at one place act in this order.
    pub taps: &'a [Tap],
    /// After the pass, what each [`Action::Read`] tap read; `None` for the others.
    pub reads: Vec<Option<Tensor>>,
    /// The down-projections to run with; `None` runs with those that are served.
    pub overlay: Option<&'a Overlay>,
}

impl<'a> Pass<'a> {
    /// A causal pass over the served weights that reads nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with taps.
    #[must_use]
    pub fn with_taps(mut self, taps: &'a [Tap]) -> Self {
        self.taps = taps;
        self
    }

    /// The same as if `overlay` were served.
    #[must_use]
    pub fn under(mut self, overlay: &'a Overlay) -> Self {
        self.overlay = Some(overlay);
        self
    }

    /// The same with another mask.
    #[must_use]
    pub fn with_mask(mut self, mask: Mask) -> Self {
        self.mask = mask;
        self
    }

    /// A causal pass over the same weights that reads nothing.
    pub(crate) fn of_weights(&self) -> Self {
        Self {
            overlay: self.overlay,
            ..Self::default()
        }
    }

    /// What the tap at `index` read.
    ///
    /// # Errors
    /// There is no such tap, it is no reading one, or its layer was not run.
    pub fn read(&self, index: usize) -> Result<&Tensor> {
        let read = self.reads.get(index).and_then(Option::as_ref);
        read.ok_or_else(|| Error::Invalid(format!("tap {index} has read nothing")))
    }

    /// Runs the taps at `site` of `layer` on `x [B, S, width]`.
    pub(crate) fn tap(&mut self, layer: usize, site: Site, x: Tensor) -> Result<Tensor> {
        self.reads.resize_with(self.taps.len(), || None);
        let mut x = x;
        for (tap, read) in self.taps.iter().zip(&mut self.reads) {
            if tap.layer != layer || tap.site != site || tap.at.is_empty() {
                continue;
            }
            let [rows, tokens] = tap.places(x.device())?;
            let places = [Some(&rows), Some(&tokens)];
            match &tap.action {
                Action::Read => *read = Some(x.f_index(&places)?),
                Action::Add(delta) => {
                    x = x.f_index_put(&places, &delta.f_to_kind(x.kind())?, true)?;
                }
                Action::Replace(value) => {
                    x = x.f_index_put(&places, &value.f_to_kind(x.kind())?, false)?;
                }
            }
        }
        Ok(x)
    }
}

impl Tap {
    /// The rows and the tokens as index tensors.
    fn places(&self, device: Device) -> Result<[Tensor; 2]> {
        let rows: Vec<i64> = self.at.iter().map(|place| place.0).collect();
        let tokens: Vec<i64> = self.at.iter().map(|place| place.1).collect();
        Ok([
            Tensor::f_from_slice(&rows)?.f_to_device(device)?,
            Tensor::f_from_slice(&tokens)?.f_to_device(device)?,
        ])
    }
}

/// Edited down-projections, by layer; a layer that is not named keeps its base matrix.
#[derive(Debug, Default)]
pub struct Overlay {
    /// `[d, d_ff]`, in the model's dtype and on its device.
    pub(crate) matrices: BTreeMap<usize, Tensor>,
}

impl Overlay {
    /// The base weights: no layer edited.
    #[must_use]
    pub fn base() -> Self {
        Self::default()
    }

    /// Another handle on the same matrices: one is not for two threads.
    #[must_use]
    pub fn share(&self) -> Self {
        let matrices = self.matrices.iter();
        Self {
            matrices: matrices
                .map(|(layer, own)| (*layer, own.shallow_clone()))
                .collect(),
        }
    }

    /// The layers that are edited, in order.
    pub fn layers(&self) -> impl Iterator<Item = usize> + '_ {
        self.matrices.keys().copied()
    }
}
