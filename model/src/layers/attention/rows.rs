//! Attention as it studies: many rows at once, without a cache, under any mask, differentiable.

use super::{Attention, Projected};
use crate::error::Result;
use crate::layers::rope::Angles;
use crate::layers::stretches::{Stretch, Stretches};
use crate::packet::Plane;
use crate::tensor::{in_kind, int};
use tch::{Kind, Tensor};

/// Keys (rotated) and values of the tokens that stand before those of a batch,
/// `[B, P, kv_heads, head_dim]` each.
#[derive(Debug)]
pub(crate) struct Before {
    keys: Tensor,
    values: Tensor,
}

impl Before {
    /// P.
    pub(crate) fn tokens(&self) -> usize {
        let tokens = self.keys.size().get(1).copied().unwrap_or(0);
        usize::try_from(tokens).unwrap_or(0)
    }

    /// Those of some rows, `rows` i64 `[n]`.
    pub(crate) fn of(&self, rows: &Tensor) -> Result<Self> {
        Ok(Self {
            keys: self.keys.f_index_select(0, rows)?,
            values: self.values.f_index_select(0, rows)?,
        })
    }

    /// Those of a packet's first tokens, as what stands before each of so many rows.
    pub(crate) fn of_plane(
        plane: &Plane,
        tokens: usize,
        (rows, kind): (i64, Kind),
    ) -> Result<Self> {
        let of = |t: &Tensor| -> Result<Tensor> {
            let t = in_kind(&t.f_narrow(1, 0, int(tokens))?.f_transpose(0, 1)?, kind)?;
            Ok(t.f_unsqueeze(0)?)
        };
        let one = Self {
            keys: of(&plane.keys)?,
            values: of(&plane.values)?,
        };
        one.for_rows(rows)
    }

    /// Those of one row, as what stands before each of so many.
    pub(crate) fn for_rows(&self, rows: i64) -> Result<Self> {
        Ok(Self {
            keys: self.keys.f_expand([rows, -1, -1, -1], false)?,
            values: self.values.f_expand([rows, -1, -1, -1], false)?,
        })
    }

    /// These behind others.
    pub(crate) fn behind(self, before: Option<&Self>) -> Result<Self> {
        let Some(before) = before else {
            return Ok(self);
        };
        Ok(Self {
            keys: Tensor::f_cat(&[&before.keys, &self.keys], 1)?,
            values: Tensor::f_cat(&[&before.values, &self.values], 1)?,
        })
    }

    /// Those of the first tokens.
    fn first(&self, tokens: i64) -> Result<Self> {
        Ok(Self {
            keys: self.keys.f_narrow(1, 0, tokens)?,
            values: self.values.f_narrow(1, 0, tokens)?,
        })
    }
}

/// What the tokens of a batch attend to, and the positions that they are turned to.
#[derive(Clone, Copy)]
pub(crate) enum Sight<'a> {
    /// Every row's tokens behind the P tokens of `before`, turned by `angles`. `mask [.., S, P + S]` is true where a
    /// query (row) sees a key (column); `None` is causal, and then there is nothing before. (A window is part of the
    /// mask.)
    Rows {
        angles: &'a Angles,
        mask: Option<&'a Tensor>,
        before: Option<&'a Before>,
    },
    /// Rows with isolated documents in them, which stand behind `primer`.
    Stretches {
        stretches: &'a Stretches,
        primer: Option<&'a Plane>,
    },
}

impl Attention {
    /// `x [B, S, d]` to the attention's output `[B, S, d]`, and the keys and values of all tokens before and in the
    /// rows. Differentiable in `x`.
    pub(crate) fn forward_batch(&self, x: &Tensor, sight: Sight<'_>) -> Result<(Tensor, Before)> {
        let (rows, tokens, _) = x.size3()?;
        let Projected { qk, v } = self.project(x)?;
        let angles = match sight {
            Sight::Rows { angles, .. } => angles,
            Sight::Stretches { stretches, .. } => &stretches.row,
        };
        let (q, own) = self.of_rows(&angles.rotate(&qk)?, &v)?;
        let (out, seen) = match sight {
            Sight::Rows { mask, before, .. } => {
                let seen = own.behind(before)?;
                (self.attend_rows(&q, &seen, mask)?, seen)
            }
            Sight::Stretches { stretches, primer } => {
                let all = stretches.each.iter();
                let all =
                    all.map(|stretch| self.attend_stretch((&q, &own), (&qk, &v), stretch, primer));
                let all = all.collect::<Result<Vec<_>>>()?;
                (Tensor::f_cat(&all, 2)?, own)
            }
        };
        let out = out.f_transpose(1, 2)?;
        let out = out.f_reshape([rows, tokens, self.heads * self.head_dim])?;
        Ok((self.output.forward(&out)?, seen))
    }

    /// Rotated queries and keys `[B, n, heads + kv_heads, head_dim]` apart, queries as `[B, heads, n, head_dim]`, and
    /// keys together with their values.
    fn of_rows(&self, rotated: &Tensor, v: &Tensor) -> Result<(Tensor, Before)> {
        let q = rotated.f_narrow(-2, 0, self.heads)?.f_transpose(1, 2)?;
        let own = Before {
            keys: rotated.f_narrow(-2, self.heads, self.kv_heads)?,
            values: v.shallow_clone(),
        };
        Ok((q, own))
    }

    /// What the queries of one stretch get, `[B, heads, n, head_dim]`: of a document from the primer and itself, else
    /// from the row up to there. `q` and `own` are the row's at its own positions, `qk` and `v` those before rotation.
    fn attend_stretch(
        &self,
        (q, own): (&Tensor, &Before),
        (qk, v): (&Tensor, &Tensor),
        stretch: &Stretch,
        primer: Option<&Plane>,
    ) -> Result<Tensor> {
        let (from, count) = (int(stretch.tokens.start), int(stretch.tokens.len()));
        let mask = Some(&stretch.visible);
        let Some((primed, angles)) = &stretch.alone else {
            let seen = own.first(int(stretch.tokens.end))?;
            return self.attend_rows(&q.f_narrow(2, from, count)?, &seen, mask);
        };
        let rotated = angles.rotate(&qk.f_narrow(1, from, count)?)?;
        let (q, own) = self.of_rows(&rotated, &v.f_narrow(1, from, count)?)?;
        let rows = q.size4()?.0;
        let primer = primer.map(|plane| Before::of_plane(plane, *primed, (rows, q.kind())));
        let seen = own.behind(primer.transpose()?.as_ref())?;
        self.attend_rows(&q, &seen, mask)
    }

    /// What queries `q [B, heads, n, head_dim]` get from `seen`, `[B, heads, n, head_dim]`; causal without a mask.
    fn attend_rows(&self, q: &Tensor, seen: &Before, mask: Option<&Tensor>) -> Result<Tensor> {
        let expand = |t: &Tensor| -> Result<Tensor> {
            let groups = self.heads / self.kv_heads;
            let expanded = t.f_repeat_interleave_self_int(groups, 2, None)?;
            Ok(expanded.f_transpose(1, 2)?)
        };
        let (k, v) = (expand(&seen.keys)?, expand(&seen.values)?);
        let causal = mask.is_none();
        Ok(Tensor::f_scaled_dot_product_attention(
            q, &k, &v, mask, 0.0, causal, self.scale, false,
        )?)
    }
}
