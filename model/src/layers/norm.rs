//! RMSNorm (Zhang & Sennrich 2019): x / sqrt(mean(x²) + eps) · w.

use crate::decode::Norm;
use crate::error::Result;
use crate::tensor::in_kind;
use tch::{Device, Kind, Tensor};

/// A root-mean-square norm over the last axis.
pub(crate) struct RmsNorm {
    /// `[width]`, in the model's dtype; Gemma's 1 is added already.
    weight: Tensor,
    /// The same numbers, for decode steps.
    numbers: Vec<f32>,
    eps: f64,
}

impl RmsNorm {
    /// From a stored `weight [width]`; Gemma stores w where the norm multiplies by 1 + w.
    pub(crate) fn new(weight: &Tensor, plus_one: bool, eps: f64, kind: Kind) -> Result<Self> {
        let weight = weight.f_to_kind(Kind::Float)?;
        let weight = if plus_one {
            weight.f_add_scalar(1.0)?
        } else {
            weight
        };
        let weight = weight.f_to_kind(kind)?;
        let numbers = weight.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?;
        Ok(Self {
            weight,
            numbers: Vec::<f32>::try_from(numbers)?,
            eps,
        })
    }

    /// The same in another dtype; what is in it already is shared.
    pub(crate) fn in_kind(&self, kind: Kind) -> Result<Self> {
        Ok(Self {
            weight: in_kind(&self.weight, kind)?,
            numbers: self.numbers.clone(),
            eps: self.eps,
        })
    }

    /// As decode steps read it.
    pub(crate) fn for_decode(&self) -> Norm<'_> {
        Norm {
            weight: &self.numbers,
            eps: self.eps as f32,
        }
    }

    /// `x [.., width]` to the same shape and dtype; the mean is taken in f32.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let weight = in_kind(&self.weight, x.kind())?;
        Ok(x.f_rms_norm(weight.size(), Some(&weight), self.eps)?)
    }
}
