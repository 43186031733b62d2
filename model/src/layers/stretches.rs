//! What the tokens of a row with isolated documents in it attend to, a stretch of the row at a time.
//!
//! A **stretch** is a document, or what stands between two. A document stands behind the primer, as its packet was
//! computed: its queries and keys are turned to the positions that follow the primer's, and see the primer and
//! themselves. What stands between documents sees all that comes before it in the row, at the row's positions. No
//! score between two documents is ever computed.

use super::rope::{Angles, Rope};
use crate::error::Result;
use crate::taps::Documents;
use crate::tensor::int;
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// The stretches of a row, for the layers that turn by one RoPE and see equally far.
pub(crate) struct Stretches {
    /// Positions 0, 1, … of the row.
    pub(crate) row: Angles,
    pub(crate) each: Vec<Stretch>,
}

/// Tokens that see the same way.
pub(crate) struct Stretch {
    /// Where they are in the row.
    pub(crate) tokens: Range<usize>,
    /// Of a document: how many of the primer's tokens stand before it, and its positions behind those.
    pub(crate) alone: Option<(usize, Angles)>,
    /// `[n, before + n]`, true where a query (row) sees a key (column).
    pub(crate) visible: Tensor,
}

impl Stretches {
    /// Those of a row of `tokens` tokens.
    ///
    /// # Errors
    /// A document that does not fit the row, or libtorch's.
    pub(crate) fn new(
        (rope, window, device): (&Rope, Option<usize>, Device),
        documents: &Documents,
        tokens: usize,
    ) -> Result<Self> {
        let stretches = documents.stretches(tokens)?;
        let each = stretches.into_iter().map(|(tokens, primed)| {
            let count = tokens.len();
            let before = primed.unwrap_or(tokens.start);
            let alone =
                primed.map(|primed| -> Result<_> { Ok((primed, rope.angles(primed, count)?)) });
            Ok(Stretch {
                alone: alone.transpose()?,
                visible: visible(before, count, window, device)?,
                tokens,
            })
        });
        Ok(Self {
            row: rope.angles(0, tokens)?,
            each: each.collect::<Result<_>>()?,
        })
    }
}

/// `[count, before + count]`: each of `count` tokens sees itself and what comes before it, as far as the window goes.
pub(crate) fn visible(
    before: usize,
    count: usize,
    window: Option<usize>,
    device: Device,
) -> Result<Tensor> {
    let places =
        |from: usize, to: usize| Tensor::f_arange_start(int(from), int(to), (Kind::Int64, device));
    let queries = places(before, before + count)?.f_unsqueeze(1)?;
    let back = queries.f_sub(&places(0, before + count)?)?;
    let seen = back.f_ge(0)?;
    Ok(match window {
        None => seen,
        Some(window) => seen.f_logical_and(&back.f_lt(int(window))?)?,
    })
}
