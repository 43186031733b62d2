//! A linear map with an optional bias: `x · Wᵀ + b`.

use crate::decode::{Copy, Map, Packed, Packing, lies_on_four_bits, packed, rows_of};
use crate::error::Result;
use crate::tensor::in_kind;
use crate::weights::Weights;
use tch::{Device, Kind, Tensor};

pub(crate) struct Linear {
    /// `[out, in]`.
    weight: Tensor,
    /// `[out]`.
    bias: Option<Tensor>,
    /// The same numbers, for decode steps; empty where there is none.
    bias_numbers: Vec<f32>,
    /// The weight once more, for decode steps.
    packed: Option<Packed>,
}

impl Linear {
    /// Takes `{name}.weight` of `shape` [out, in] and, where the model has one, `{name}.bias`.
    pub(crate) fn take(
        weights: &mut Weights,
        name: &str,
        shape: &[i64; 2],
        has_bias: bool,
    ) -> Result<Self> {
        let weight = weights.take(&format!("{name}.weight"), shape)?;
        let bias = match has_bias {
            true => Some(weights.take(&format!("{name}.bias"), &[shape[0]])?),
            false => None,
        };
        Self::of(weight, bias)
    }

    /// One map that gives the outputs of all `parts`, in order, for one input.
    pub(crate) fn stack(parts: &[Self]) -> Result<Self> {
        let weights: Vec<&Tensor> = parts.iter().map(|part| &part.weight).collect();
        let biases: Vec<&Tensor> = parts.iter().filter_map(|part| part.bias.as_ref()).collect();
        let bias = match biases.is_empty() {
            true => None,
            false => Some(Tensor::f_cat(&biases, 0)?),
        };
        Self::of(Tensor::f_cat(&weights, 0)?, bias)
    }

    fn of(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        let bias_numbers = match &bias {
            Some(bias) => Vec::try_from(bias.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?)?,
            None => Vec::new(),
        };
        Ok(Self {
            weight,
            bias,
            bias_numbers,
            packed: None,
        })
    }

    pub(crate) fn to(&self, device: Device, kind: Kind) -> Result<Self> {
        let place = |t: &Tensor| t.f_to_device(device)?.f_to_kind(kind);
        let bias = self.bias.as_ref().map(place).transpose()?;
        Self::of(place(&self.weight)?, bias)
    }

    /// Keeps the weight packed as well, or not any more; bytes that it takes.
    pub(crate) fn pack(&mut self, packing: Option<Packing>) -> Result<usize> {
        self.packed = packed(&self.weight, packing)?;
        Ok(self.packed.as_ref().map_or(0, Packed::bytes))
    }

    /// See [`lies_on_four_bits`].
    pub(crate) fn lies_on_four_bits(&self) -> Result<bool> {
        lies_on_four_bits(&self.weight)
    }

    /// As decode steps read it.
    pub(crate) fn for_decode(&self, copy: Copy) -> Result<Map<'_>> {
        let rows = match &self.packed {
            Some(packed) if copy == Copy::Packed => packed.rows(),
            _ => rows_of(&self.weight)?,
        };
        let outputs = usize::try_from(self.weight.size2()?.0).unwrap_or(0);
        Ok(Map {
            rows,
            bias: &self.bias_numbers,
            outputs,
        })
    }

    /// The same in another dtype; what is in it already is shared.
    pub(crate) fn in_kind(&self, kind: Kind) -> Result<Self> {
        let bias = self.bias.as_ref().map(|bias| in_kind(bias, kind));
        Self::of(in_kind(&self.weight, kind)?, bias.transpose()?)
    }

    /// `x [.., in]` to `[.., out]`, in the dtype of `x`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let weight = in_kind(&self.weight, x.kind())?;
        let bias = self.bias.as_ref().map(|bias| in_kind(bias, x.kind()));
        Ok(x.f_linear(&weight, bias.transpose()?.as_ref())?)
    }

    pub(crate) fn parameters(&self) -> usize {
        self.weight.numel() + self.bias.as_ref().map_or(0, Tensor::numel)
    }
}
