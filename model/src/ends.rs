//! The ends of rows, run again and again behind beginnings that stay the same.
//!
//! What seeks a hidden state changes it at one token and looks at what follows: the tokens before
//! it give the same keys and values each time. [`Transformer::beginnings`] computes those once, and
//! [`Transformer::forward_ends`] runs only the rest. The rows are moved so that their ends begin at
//! one column; that changes nothing, since rotary scores depend on differences of positions, and
//! no token sees the columns before its row's first.
//!
//! Gives the same numbers as [`Transformer::forward_from`]. Causal masks only. Rows that all begin with the same tokens
//! need those once ([`Transformer::forward_behind`]).

use crate::error::{Error, Result};
use crate::layers::attention::{Before, Sight};
use crate::layers::stretches::visible;
use crate::taps::{Mask, Pass};
use crate::tensor::{NoGrad, int};
use crate::transformer::Transformer;
use std::ops::RangeInclusive;
use tch::{Kind, Tensor};

/// Rows that were begun: everything that does not change when their ends do.
#[derive(Debug)]
pub struct Beginnings {
    layer: usize,
    /// Of each layer above `layer`: keys and values of the P columns before the ends; none where
    /// every end is a whole row.
    before: Vec<Option<Before>>,
    /// `[B, 1, E, P + E]`, of layers that see everything and of windowed ones.
    visible: [Tensor; 2],
    /// `[B, E, d]`.
    ends: Tensor,
}

impl Beginnings {
    /// The residual stream of the ends as it left the layer, `[B, E, d]`: token e of a row's end
    /// is the row's token `from + e`. What stands behind a shorter row is of no consequence.
    pub fn ends(&self) -> &Tensor {
        &self.ends
    }

    /// Some of the rows, in this order; tokens that none of their ends has are left out.
    ///
    /// `tokens` is the longest end among them.
    ///
    /// # Errors
    /// A row that is not there, or libtorch's.
    pub fn keep(&self, rows: &[i64], tokens: usize) -> Result<Self> {
        let index = Tensor::f_from_slice(rows)?.f_to_device(self.ends.device())?;
        let before = self.before.iter().map(|before| {
            let before = before.as_ref().map(|before| before.of(&index));
            before.transpose()
        });
        let (_, all, _) = self.ends.size3()?;
        let tokens = int(tokens).min(all);
        let visible = |visible: &Tensor| -> Result<Tensor> {
            let columns = visible.size4()?.3 - all + tokens;
            let kept = visible.f_index_select(0, &index)?;
            Ok(kept.f_narrow(2, 0, tokens)?.f_narrow(3, 0, columns)?)
        };
        let [full, windowed] = &self.visible;
        Ok(Self {
            layer: self.layer,
            before: before.collect::<Result<_>>()?,
            visible: [visible(full)?, visible(windowed)?],
            ends: self
                .ends
                .f_index_select(0, &index)?
                .f_narrow(1, 0, tokens)?,
        })
    }
}

impl Transformer {
    /// Begins rows: runs the layers above `layer` on what stands before each row's end.
    ///
    /// `residual [B, S, d]` is the stream as it left `layer`, right-padded; `spans` holds for each
    /// row the token that its end begins with, and the row's length. No gradients, no taps.
    ///
    /// # Errors
    /// A span outside of the rows, a mask other than the causal one, or libtorch's.
    pub fn beginnings(
        &self,
        layer: usize,
        residual: &Tensor,
        spans: &[(usize, usize)],
        pass: &Pass<'_>,
    ) -> Result<Beginnings> {
        let _guard = NoGrad::new();
        self.check_layer(layer)?;
        let (rows, tokens, _) = residual.size3()?;
        let fits = |&(from, len): &(usize, usize)| from < len && int(len) <= tokens;
        if int(spans.len()) != rows || !spans.iter().all(fits) {
            return Err(Error::Invalid(format!(
                "the ends {spans:?} do not fit {rows} rows of {tokens} tokens"
            )));
        }
        if !matches!(pass.mask, Mask::Causal) {
            return Err(Error::Invalid(
                "rows can be begun under a causal mask only".to_owned(),
            ));
        }
        let start = spans.iter().map(|span| span.0).max().unwrap_or(0);
        let end = spans.iter().map(|span| span.1 - span.0).max().unwrap_or(0);
        Error::unless_within(start + end, self.config.context)?;
        let columns = start + end;
        let first: Vec<i64> = spans.iter().map(|span| int(start - span.0)).collect();
        let aligned = self.aligned(residual, &first, int(columns))?;
        let first = Tensor::f_from_slice(&first)?.f_to_device(self.device)?;
        let all = self.visible(&first, columns, None)?;
        let windowed = self.visible(&first, columns, self.config.sliding_window)?;
        let part = |visible: &Tensor, from: usize, count: usize, keys: usize| {
            let rows = visible.f_narrow(2, int(from), int(count))?;
            rows.f_narrow(3, 0, int(keys))
        };
        let early = [
            part(&all, 0, start, start)?,
            part(&windowed, 0, start, start)?,
        ];
        let mut begun = pass.of_weights();
        let mut x = aligned.f_narrow(1, 0, int(start))?;
        let mut before = Vec::new();
        for block in self.blocks.get(layer + 1..).unwrap_or_default() {
            if start == 0 {
                before.push(None);
                continue;
            }
            let sight = Sight::Rows {
                angles: &self.rope(block).angles(0, start)?,
                mask: Some(pick(&early, block.window())),
                before: None,
            };
            let (out, seen) = block.forward_batch(&x, sight, &mut begun)?;
            before.push(Some(seen));
            x = out;
        }
        Ok(Beginnings {
            layer,
            before,
            visible: [
                part(&all, start, end, start + end)?,
                part(&windowed, start, end, start + end)?,
            ],
            ends: aligned.f_narrow(1, int(start), int(end))?,
        })
    }

    /// The layers above, on the rows' ends: `ends [B, E, d]` in the place of
    /// [`Beginnings::ends`], to hidden states after the last norm, `[B, E, d]`. Taps count tokens
    /// from the ends' first. Differentiable in `ends`.
    ///
    /// # Errors
    /// `ends` has another shape, or libtorch's.
    pub fn forward_ends(
        &self,
        beginnings: &Beginnings,
        ends: &Tensor,
        pass: &mut Pass<'_>,
    ) -> Result<Tensor> {
        if ends.size() != beginnings.ends.size() {
            return Err(Error::Shape {
                what: "the ends of the rows".to_owned(),
                expected: beginnings.ends.size(),
                found: ends.size(),
            });
        }
        let mut x = ends.f_to_kind(self.kind)?;
        let tokens = usize::try_from(x.size3()?.1).unwrap_or(0);
        let blocks = self.blocks.get(beginnings.layer + 1..).unwrap_or_default();
        for (block, before) in blocks.iter().zip(&beginnings.before) {
            let at = before.as_ref().map_or(0, Before::tokens);
            let sight = Sight::Rows {
                angles: &self.rope(block).angles(at, tokens)?,
                mask: Some(pick(&beginnings.visible, block.window())),
                before: before.as_ref(),
            };
            (x, _) = block.forward_batch(&x, sight, pass)?;
        }
        self.norm.forward(&x)
    }

    /// Rows behind tokens that they all have in common, through the layers `layers`: the streams of the common tokens,
    /// `[1, P, d]`, and of the rows, `[B, S, d]`, as they leave the last of them. The rows stand from position P on; the
    /// common tokens, from 0 on, are computed once for all of them. Taps count the rows' own tokens. No gradients.
    ///
    /// # Errors
    /// There are no such layers, a tap outside of the rows, a mask other than the causal one, or libtorch's.
    pub fn forward_behind(
        &self,
        layers: RangeInclusive<usize>,
        common: &Tensor,
        rows: &Tensor,
        pass: &mut Pass<'_>,
    ) -> Result<(Tensor, Tensor)> {
        let _guard = NoGrad::new();
        self.check_layer(*layers.end())?;
        if !matches!(pass.mask, Mask::Causal) {
            return Err(Error::Invalid(
                "rows stand behind common tokens under a causal mask only".to_owned(),
            ));
        }
        let tokens =
            |t: &Tensor| -> Result<usize> { Ok(usize::try_from(t.size3()?.1).unwrap_or(0)) };
        let (start, count) = (tokens(common)?, tokens(rows)?);
        Error::unless_within(start + count, self.config.context)?;
        let ways = self.ways().map(|(rope, window)| -> Result<_> {
            let sight = |at, tokens| -> Result<_> {
                let mask = visible(at, tokens, window, self.device)?;
                Ok((rope.angles(at, tokens)?, mask))
            };
            Ok((sight(0, start)?, sight(start, count)?))
        });
        let [full, windowed] = ways;
        let (full, windowed) = (full?, windowed?);
        let mut shared = pass.of_weights();
        let mut common = common.f_to_kind(self.kind)?;
        let mut rows = rows.f_to_kind(self.kind)?;
        for block in self.blocks.get(layers).unwrap_or_default() {
            let (early, late) = block.window().map_or(&full, |_| &windowed);
            let sight = Sight::Rows {
                angles: &early.0,
                mask: Some(&early.1),
                before: None,
            };
            let (out, seen) = block.forward_batch(&common, sight, &mut shared)?;
            common = out;
            let sight = Sight::Rows {
                angles: &late.0,
                mask: Some(&late.1),
                before: Some(&seen.for_rows(rows.size3()?.0)?),
            };
            (rows, _) = block.forward_batch(&rows, sight, pass)?;
        }
        Ok((common, rows))
    }

    /// `residual [B, S, d]` moved so that row b's first token stands in column `first[b]`,
    /// `[B, columns, d]`. Columns without a token hold a copy of some other.
    fn aligned(&self, residual: &Tensor, first: &[i64], columns: i64) -> Result<Tensor> {
        let (rows, tokens, d) = residual.size3()?;
        let sources: Vec<i64> = (0..rows)
            .zip(first)
            .flat_map(|(row, first)| {
                (0..columns).map(move |at| row * tokens + (at - first).clamp(0, tokens - 1))
            })
            .collect();
        let sources = Tensor::f_from_slice(&sources)?.f_to_device(self.device)?;
        let flat = residual.f_to_kind(self.kind)?.f_reshape([-1, d])?;
        Ok(flat
            .f_index_select(0, &sources)?
            .f_reshape([rows, columns, d])?)
    }

    /// `[B, 1, columns, columns]`: true where a query sees a key. A column before a row's first
    /// token sees itself, so that nothing there is undefined.
    fn visible(&self, first: &Tensor, columns: usize, window: Option<usize>) -> Result<Tensor> {
        let causal = visible(0, columns, window, self.device)?;
        let column = Tensor::f_arange(int(columns), (Kind::Int64, self.device))?;
        let own = column.f_ge_tensor(&first.f_reshape([-1, 1, 1, 1])?)?;
        let seen = causal.f_logical_and(&own)?;
        let itself = column.f_unsqueeze(1)?.f_eq_tensor(&column)?;
        Ok(seen.f_logical_or(&itself)?)
    }
}

fn pick(masks: &[Tensor; 2], window: Option<usize>) -> &Tensor {
    let [all, windowed] = masks;
    if window.is_some() { windowed } else { all }
}
