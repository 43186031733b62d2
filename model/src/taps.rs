//! Taps: read, add to, or replace what flows through the model at a layer and token, in
//! [`Transformer::forward_batch`](crate::Transformer::forward_batch) and its like. This is what
//! locating and editing facts is made of.
//!
//! A tap never changes the model; an [`Overlay`] lets a pass run as if other down-projections
//! were served, without touching those that are.

use crate::error::{Error, Result};
use crate::tensor::int;
use std::collections::BTreeMap;
use std::ops::Range;
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Mask {
    /// Each token sees itself and all before it.
    #[default]
    Causal,
    /// The packets' mask: a token inside a document sees itself and what stands before it there;
    /// one outside of all documents sees everything before it but their primers.
    Documents(Vec<Isolated>),
}

/// A document in a row, as its packet is built: behind a primer of its own that nobody else sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isolated {
    /// Where its primer begins, or, without one, the document.
    pub start: usize,
    /// Tokens of the primer. They take no positions of the row: they stand before the document's
    /// first, behind which `gap` positions are left out.
    pub primer: usize,
    /// Positions between the primer's last token and the document's first.
    pub gap: usize,
    /// Tokens of the document, soft ones included.
    pub tokens: usize,
}

impl Mask {
    fn documents(&self) -> &[Isolated] {
        match self {
            Self::Causal => &[],
            Self::Documents(documents) => documents,
        }
    }

    /// Positions of the `tokens` of a row, where they are not 0, 1, …; none is negative, and only their differences
    /// mean anything.
    ///
    /// # Errors
    /// A document outside of the row.
    pub(crate) fn positions(&self, tokens: usize) -> Result<Option<Vec<i64>>> {
        let documents = self.documents();
        if documents.iter().all(|document| document.primer == 0) {
            return Ok(None);
        }
        let mut positions = Vec::with_capacity(tokens);
        let mut next = 0;
        for document in documents {
            let range = document.range(tokens)?;
            let before = range.start.checked_sub(positions.len());
            let before = before.ok_or_else(|| document.misfit(tokens))?;
            positions.extend((next..).take(before));
            next += int(before);
            let first = next - int(document.gap) - int(document.primer);
            positions.extend((first..).take(document.primer));
            positions.extend((next..).take(document.tokens));
            next += int(document.tokens);
        }
        positions.extend((next..).take(tokens - positions.len()));
        let least = positions.iter().copied().min().unwrap_or(0).min(0);
        Ok(Some(positions.iter().map(|at| at - least).collect()))
    }
}

impl Isolated {
    /// Primer and document, in a row of so many tokens.
    fn range(&self, tokens: usize) -> Result<Range<usize>> {
        let end = self.primer.checked_add(self.tokens);
        let end = end.and_then(|own| self.start.checked_add(own));
        let end = end.filter(|end| *end <= tokens);
        Ok(self.start..end.ok_or_else(|| self.misfit(tokens))?)
    }

    fn misfit(&self, tokens: usize) -> Error {
        let Self {
            start,
            primer,
            tokens: own,
            ..
        } = self;
        Error::Invalid(format!(
            "a document of {own} tokens behind a primer of {primer} at {start} does not fit {tokens} tokens"
        ))
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

    /// True where a query (row) of `tokens` sees a key (column); `None` where plain causality
    /// says it all.
    pub(crate) fn visible(
        &self,
        tokens: usize,
        window: Option<usize>,
        device: Device,
    ) -> Result<Option<Tensor>> {
        let windowed = window.is_some_and(|window| tokens > window);
        if self.mask == Mask::Causal && !windowed {
            return Ok(None);
        }
        // Which document a token is of, 0 for none; and whether others see it.
        let (mut of, mut open) = (vec![0_i64; tokens], vec![1_i64; tokens]);
        for (number, document) in self.mask.documents().iter().enumerate() {
            let range = document.range(tokens)?;
            let primer = open.get_mut(range.start..range.start + document.primer);
            primer.unwrap_or_default().fill(0);
            of.get_mut(range).unwrap_or_default().fill(int(number) + 1);
        }
        let tensor = |numbers: &[i64]| Tensor::f_from_slice(numbers)?.f_to_device(device);
        let (of, open) = (tensor(&of)?, tensor(&open)?.f_eq(1)?);
        let order = Tensor::f_arange(int(tokens), (tch::Kind::Int64, device))?;
        let before = order.f_unsqueeze(1)?.f_ge_tensor(&order)?;
        let own = of.f_unsqueeze(1)?.f_eq_tensor(&of)?;
        let free = of.f_eq(0)?.f_unsqueeze(1)?.f_logical_and(&open)?;
        let mut visible = before.f_logical_and(&own.f_logical_or(&free)?)?;
        if let Some(window) = window {
            let position = match self.mask.positions(tokens)? {
                Some(positions) => tensor(&positions)?,
                None => order,
            };
            let back = position.f_unsqueeze(1)?.f_sub(&position)?;
            visible = visible.f_logical_and(&back.f_lt(int(window))?)?;
        }
        Ok(Some(visible))
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

    /// The layers that are edited, in order.
    pub fn layers(&self) -> impl Iterator<Item = usize> + '_ {
        self.matrices.keys().copied()
    }
}
