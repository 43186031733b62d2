//! Attention over one part of the context, and the exact merge of several parts.
//!
//! Softmax over a context that is cut into parts is the average of the softmaxes over the
//! parts, weighted by the exponentials of their log-sum-exps (as FlashAttention, Dao 2023, and
//! Ring Attention, Liu et al. 2023, merge their blocks):
//! `o = Σ oᵢ · exp(lseᵢ) / Σ exp(lseⱼ)`. So a packet can be read where it lies, uncopied.

mod kernel;

use crate::error::Result;
use crate::tensor::int;
pub(crate) use kernel::Attended;
use kernel::{UNSEEN, attend};
use tch::{Device, Kind, Tensor};

/// Keys and values `[kv_heads, n, head_dim]` that lie together.
pub(crate) struct Part {
    pub(crate) keys: Tensor,
    pub(crate) values: Tensor,
    /// Position of the first key in the sequence. Only windows look at it.
    pub(crate) at: usize,
}

/// Where queries stand in the sequence, in ascending order.
#[derive(Clone, Copy)]
pub(crate) enum Stand<'a> {
    /// So many, one after the other, the first at position `at`.
    Run { at: usize, tokens: usize },
    /// At these positions.
    Scattered(&'a [i64]),
}

impl Stand<'_> {
    /// Position of the first query.
    pub(crate) fn first(&self) -> usize {
        match self {
            Self::Run { at, .. } => *at,
            Self::Scattered(positions) => position(positions.first()),
        }
    }

    /// The position behind the last query.
    pub(crate) fn end(&self) -> usize {
        match self {
            Self::Run { at, tokens } => at + tokens,
            Self::Scattered(positions) => position(positions.last()) + 1,
        }
    }

    /// i64 `[T]`.
    fn positions(&self, device: Device) -> Result<Tensor> {
        Ok(match self {
            Self::Run { .. } => {
                let options = (Kind::Int64, device);
                Tensor::f_arange_start(int(self.first()), int(self.end()), options)?
            }
            Self::Scattered(positions) => Tensor::f_from_slice(positions)?.f_to_device(device)?,
        })
    }
}

fn position(position: Option<&i64>) -> usize {
    position.map_or(0, |&position| usize::try_from(position).unwrap_or(0))
}

impl Part {
    /// Every query `q [heads, T, head_dim]` sees every key. The queries that share a key-value
    /// head are folded into one long query, so that keys and values are read once.
    pub(crate) fn attend_all(&self, q: &Tensor, scale: f64) -> Result<Attended> {
        let (heads, tokens, head_dim) = q.size3()?;
        let kv_heads = self.keys.size3()?.0;
        let folded = q.f_reshape([kv_heads, heads / kv_heads * tokens, head_dim])?;
        let Attended {
            output,
            log_sum_exp,
        } = attend(&folded, &self.keys, &self.values, None, false, scale)?;
        Ok(Attended {
            output: output.f_reshape([heads, tokens, head_dim])?,
            log_sum_exp: log_sum_exp.f_reshape([heads, tokens])?,
        })
    }

    /// Queries behind all of the keys see those that are less than `window` positions back.
    pub(crate) fn attend_window(
        &self,
        q: &Tensor,
        scale: f64,
        stand: Stand<'_>,
        window: usize,
    ) -> Result<Attended> {
        let seen = self.within(stand, window)?;
        if stand.end() <= seen.at + window {
            return seen.attend_all(q, scale);
        }
        seen.attend_masked(q, scale, stand, Some(window))
    }

    /// Queries that stand among the keys see those up to their own position, within the window.
    pub(crate) fn attend_among(
        &self,
        q: &Tensor,
        scale: f64,
        stand: Stand<'_>,
        window: Option<usize>,
    ) -> Result<Attended> {
        match window {
            None => self.attend_masked(q, scale, stand, None),
            Some(size) => self
                .within(stand, size)?
                .attend_masked(q, scale, stand, window),
        }
    }

    /// Without the keys that none of the queries sees through the window.
    fn within(&self, stand: Stand<'_>, window: usize) -> Result<Self> {
        let keys = usize::try_from(self.keys.size3()?.1).unwrap_or(0);
        let first = (stand.first() + 1)
            .saturating_sub(window + self.at)
            .min(keys);
        Ok(Self {
            keys: self.keys.f_narrow(1, int(first), int(keys - first))?,
            values: self.values.f_narrow(1, int(first), int(keys - first))?,
            at: self.at + first,
        })
    }

    fn attend_masked(
        &self,
        q: &Tensor,
        scale: f64,
        stand: Stand<'_>,
        window: Option<usize>,
    ) -> Result<Attended> {
        let mask = self.mask(stand, window, q)?;
        let seen = self.expand(q)?;
        attend(q, &seen.keys, &seen.values, Some(&mask), false, scale)
    }

    /// The queries of these very keys: each sees itself and those before it, within the window.
    pub(crate) fn attend_own(
        &self,
        q: &Tensor,
        scale: f64,
        window: Option<usize>,
    ) -> Result<Attended> {
        let tokens = usize::try_from(q.size3()?.1).unwrap_or(0);
        if window.is_none_or(|window| tokens <= window) {
            let own = self.expand(q)?;
            return attend(q, &own.keys, &own.values, None, true, scale);
        }
        let stand = Stand::Run {
            at: self.at,
            tokens,
        };
        self.attend_masked(q, scale, stand, window)
    }

    /// Keys and values repeated, so that every query head of `q` has its own.
    fn expand(&self, q: &Tensor) -> Result<Self> {
        let groups = q.size3()?.0 / self.keys.size3()?.0;
        let repeat = |t: &Tensor| t.f_repeat_interleave_self_int(groups, 0, None);
        Ok(Self {
            keys: repeat(&self.keys)?,
            values: repeat(&self.values)?,
            at: self.at,
        })
    }

    /// What is added to the scores `[T, n]`.
    fn mask(&self, stand: Stand<'_>, window: Option<usize>, q: &Tensor) -> Result<Tensor> {
        let options = (Kind::Int64, q.device());
        let queries = stand.positions(q.device())?;
        let end = int(self.at) + self.keys.size3()?.1;
        let keys = Tensor::f_arange_start(int(self.at), end, options)?;
        let back = queries.f_unsqueeze(1)?.f_sub(&keys)?;
        let mut unseen = back.f_lt(0)?;
        if let Some(window) = window {
            unseen = unseen.f_logical_or(&back.f_ge(int(window))?)?;
        }
        let mask = Tensor::f_zeros(unseen.size(), (q.kind(), q.device()))?;
        Ok(mask.f_masked_fill(&unseen, UNSEEN)?)
    }
}

/// The parts' outputs as if they had been one context: `[heads, T, head_dim]`, f32 where there
/// were several.
pub(crate) fn merge(mut parts: Vec<Attended>) -> Result<Tensor> {
    if parts.len() == 1
        && let Some(only) = parts.pop()
    {
        return Ok(only.output);
    }
    let outputs: Vec<&Tensor> = parts.iter().map(|part| &part.output).collect();
    let sums: Vec<&Tensor> = parts.iter().map(|part| &part.log_sum_exp).collect();
    let weights = Tensor::f_stack(&sums, 0)?
        .f_softmax(0, Kind::Float)?
        .f_unsqueeze(-1)?;
    let weighted = Tensor::f_stack(&outputs, 0)?.f_mul(&weights)?;
    Ok(weighted.f_sum_dim_intlist(0, false, Kind::Float)?)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed libtorch call fails the test")]
    use super::{Part, Stand, merge};
    use tch::{Device, Kind, Tensor};

    fn random(shape: [i64; 3]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    #[test]
    fn parts_merge_to_what_the_whole_gives() {
        let (q, k, v) = (random([6, 5, 16]), random([2, 40, 16]), random([2, 40, 16]));
        let part = |start: i64, len: i64| Part {
            keys: k.narrow(1, start, len),
            values: v.narrow(1, start, len),
            at: 0,
        };
        let whole = part(0, 40).attend_all(&q, 0.3).unwrap();
        let parts = [(0, 3), (3, 17), (20, 20)];
        let parts = parts.map(|(start, len)| part(start, len).attend_all(&q, 0.3).unwrap());
        let merged = merge(parts.into_iter().collect()).unwrap();
        assert!((merged - whole.output).abs().max().double_value(&[]) < 1e-5);
    }

    #[test]
    fn scattered_queries_get_what_they_get_in_a_run() {
        let (q, k, v) = (random([4, 9, 16]), random([2, 9, 16]), random([2, 9, 16]));
        let part = Part {
            keys: k,
            values: v,
            at: 20,
        };
        let chosen = [20_i64, 23, 24, 28];
        let places = Tensor::from_slice(&chosen) - 20;
        for window in [None, Some(3)] {
            let whole = part.attend_own(&q, 0.3, window).unwrap();
            let some = q.index_select(1, &places);
            let stand = Stand::Scattered(&chosen);
            let some = part.attend_among(&some, 0.3, stand, window).unwrap();
            let expected = whole.output.index_select(1, &places);
            let apart = (some.output - expected).abs().max().double_value(&[]);
            assert!(apart < 1e-5, "{window:?}: {apart}");
        }
    }

    #[test]
    fn a_part_outside_the_window_has_no_weight() {
        let (q, k, v) = (random([2, 4, 16]), random([2, 8, 16]), random([2, 8, 16]));
        // Queries at 10..14 with a window of 4 see keys from 7 on: only the first sees key 7.
        let far = Part {
            keys: k,
            values: v,
            at: 0,
        }
        .attend_window(&q, 0.3, Stand::Run { at: 10, tokens: 4 }, 4)
        .unwrap();
        let own = Part {
            keys: random([2, 4, 16]),
            values: random([2, 4, 16]),
            at: 10,
        };
        let own = own.attend_own(&q, 0.3, Some(4)).unwrap();
        let alone = own.output.shallow_clone();
        let merged = merge(vec![far, own]).unwrap();
        let change = (merged - alone).abs().amax([0, 2], false);
        assert!(change.double_value(&[0]) > 1e-3);
        assert!(change.narrow(0, 1, 3).max().double_value(&[]) < 1e-6);
    }
}
