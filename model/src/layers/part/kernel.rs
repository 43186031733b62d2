//! One softmax attention with its log-sum-exp, by the kernel that libtorch has for the device.

use std::sync::OnceLock;

use crate::error::Result;
use crate::tensor::in_kind;
use tch::{Device, Kind, Tensor};

/// A score this low takes no part. Finite, so that a query which sees nothing of a part gets a
/// weight of 0 in the merge and not a NaN.
pub(super) const UNSEEN: f64 = -1e30;
/// The fused kernel of GPUs wants each row of a mask to begin at a multiple of so many elements.
const MASK_ROW: i64 = 16;

/// What queries got from one part.
pub(crate) struct Attended {
    /// `[heads, T, head_dim]`.
    pub(super) output: Tensor,
    /// f32 `[heads, T]`, natural logarithm.
    pub(super) log_sum_exp: Tensor,
}

/// One attention.
#[derive(Clone, Copy)]
struct Asked<'a> {
    /// `[h, T, head_dim]`.
    q: &'a Tensor,
    /// `[h, n, head_dim]`, in the dtype of `q`, as `values`.
    keys: &'a Tensor,
    values: &'a Tensor,
    /// `[T, n]` in the dtype of `q`, added to the scores.
    mask: Option<&'a Tensor>,
    /// Only where n = T: hides what comes later.
    causal: bool,
    scale: f64,
}

/// One softmax attention in the dtype of `q`: `q [h, T, head_dim]`, `keys` and `values
/// [h, n, head_dim]`. `mask` is added to the scores; `causal` (only where n = T) hides what comes later.
pub(super) fn attend(
    q: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    mask: Option<&Tensor>,
    causal: bool,
    scale: f64,
) -> Result<Attended> {
    let (keys, values) = (&in_kind(keys, q.kind())?, &in_kind(values, q.kind())?);
    let asked = Asked {
        q,
        keys,
        values,
        mask,
        causal,
        scale,
    };
    match q.device() {
        Device::Cpu => asked.on_cpu(),
        Device::Cuda(_) if is_fused(q.device()) => asked.fused(),
        _ => asked.plainly(),
    }
}

impl Asked<'_> {
    fn on_cpu(self) -> Result<Attended> {
        let row = |t: &Tensor| t.f_unsqueeze(0);
        let (output, log_sum_exp) = Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu(
            &row(self.q)?,
            &row(self.keys)?,
            &row(self.values)?,
            0.0,
            self.causal,
            self.mask,
            self.scale,
        )?;
        Ok(Attended {
            output: output.f_squeeze_dim(0)?,
            log_sum_exp: log_sum_exp.f_squeeze_dim(0)?,
        })
    }

    /// By the memory-efficient kernel of GPUs (Rabe and Staats 2021), which never has all scores at once. Its
    /// log-sum-exps come in rows of a multiple of 32.
    fn fused(self) -> Result<Attended> {
        let (heads, tokens, _) = self.q.size3()?;
        let row = |t: &Tensor| t.f_unsqueeze(0);
        let mask = self.mask.map(|mask| -> Result<Tensor> {
            let (rows, n) = mask.size2()?;
            let padded = mask.f_constant_pad_nd([0, (MASK_ROW - n % MASK_ROW) % MASK_ROW])?;
            let mask = padded.f_narrow(1, 0, n)?;
            Ok(mask.f_expand([1, heads, rows, n], false)?)
        });
        let (output, log_sum_exp, _, _) =
            Tensor::f_internal_scaled_dot_product_efficient_attention(
                &row(self.q)?,
                &row(self.keys)?,
                &row(self.values)?,
                mask.transpose()?,
                true,
                0.0,
                self.causal,
                self.scale,
            )?;
        Ok(Attended {
            output: output.f_squeeze_dim(0)?,
            log_sum_exp: log_sum_exp.f_squeeze_dim(0)?.f_narrow(1, 0, tokens)?,
        })
    }

    /// By the definition.
    fn plainly(self) -> Result<Attended> {
        let scores = self
            .q
            .f_matmul(&self.keys.f_transpose(-1, -2)?)?
            .f_to_kind(Kind::Float)?;
        let mut scores = scores.f_mul_scalar(self.scale)?;
        if let Some(mask) = self.mask {
            scores = scores.f_add(mask)?;
        }
        if self.causal {
            let tokens = self.q.size3()?.1;
            scores = scores.f_masked_fill(&later(tokens, self.q.device())?, UNSEEN)?;
        }
        let weights = scores
            .f_softmax(-1, Kind::Float)?
            .f_to_kind(self.values.kind())?;
        Ok(Attended {
            output: weights.f_matmul(self.values)?,
            log_sum_exp: scores.f_logsumexp([-1], false)?,
        })
    }
}

/// Bool `[tokens, tokens]`: true where a key (column) comes after the query (row).
fn later(tokens: i64, device: Device) -> Result<Tensor> {
    Ok(Tensor::f_ones([tokens, tokens], (Kind::Bool, device))?.f_triu(1)?)
}

/// Whether a GPU's fused kernel gives what the definition gives. It is tried once a process; where it does not (a GPU
/// that it was not built for, another libtorch), attention is computed by the definition, which takes longer and more
/// memory, and the log says so.
fn is_fused(device: Device) -> bool {
    static FUSED: OnceLock<bool> = OnceLock::new();
    *FUSED.get_or_init(|| match farthest(device) {
        Ok(apart) if apart < 0.05 => true,
        Ok(apart) => {
            tracing::warn!(apart, "the GPU's fused attention is off; attention is computed without it");
            false
        }
        Err(error) => {
            tracing::warn!(%error, "the GPU has no fused attention; attention is computed without it");
            false
        }
    })
}

/// By how much the device's own kernel misses the definition at most, in bf16: plain, causal, and masked.
fn farthest(device: Device) -> Result<f64> {
    const TOKENS: i64 = 37;
    let options = (Kind::BFloat16, device);
    let random = || Tensor::f_randn([4, TOKENS, 64], options);
    let (q, keys, values) = (random()?, random()?, random()?);
    let mask = Tensor::f_zeros([TOKENS, TOKENS], options)?;
    let mask = mask.f_masked_fill(&later(TOKENS, device)?, UNSEEN)?;
    let mut farthest = 0.0_f64;
    for (mask, causal) in [(None, false), (None, true), (Some(&mask), false)] {
        let asked = Asked {
            q: &q,
            keys: &keys,
            values: &values,
            mask,
            causal,
            scale: 0.125,
        };
        let own = match device {
            Device::Cpu => asked.on_cpu()?,
            _ => asked.fused()?,
        };
        farthest = farthest.max(own.apart(&asked.plainly()?)?);
    }
    Ok(farthest)
}

impl Attended {
    /// The largest difference of a number in outputs or log-sum-exps.
    fn apart(&self, other: &Self) -> Result<f64> {
        let most = |a: &Tensor, b: &Tensor| -> Result<f64> {
            let apart = a
                .f_to_kind(Kind::Float)?
                .f_sub(&b.f_to_kind(Kind::Float)?)?;
            Ok(f64::try_from(apart.f_abs()?.f_max()?)?)
        };
        let outputs = most(&self.output, &other.output)?;
        Ok(outputs.max(most(&self.log_sum_exp, &other.log_sum_exp)?))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed libtorch call fails the test")]
    use super::{Asked, farthest};
    use tch::{Device, Kind, Tensor};

    #[test]
    fn the_kernel_and_the_definition_agree() {
        let random = || Tensor::randn([3, 7, 16], (Kind::Float, Device::Cpu));
        let (q, keys, values) = (random(), random(), random());
        for causal in [false, true] {
            let asked = Asked {
                q: &q,
                keys: &keys,
                values: &values,
                mask: None,
                causal,
                scale: 0.25,
            };
            let apart = asked.on_cpu().unwrap().apart(&asked.plainly().unwrap());
            assert!(apart.unwrap() < 1e-5);
        }
    }

    #[test]
    fn the_devices_kernel_gives_what_the_definition_gives() {
        // On a machine with a GPU it is the GPU's.
        let apart = farthest(Device::cuda_if_available()).unwrap();
        assert!(apart < 0.05, "{apart}");
    }
}
