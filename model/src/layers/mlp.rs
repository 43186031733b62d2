//! The gated MLP: `down_proj(act(gate_proj(x)) · up_proj(x))`.
//!
//! What enters `down_proj` is the *key* of locate-and-edit, and `down_proj` the matrix
//! that facts are written into. The base matrix is kept beside the served one for ever,
//! so that taking the last edit out restores it bit for bit.

use crate::config::{Activation, ModelConfig};
use crate::error::Result;
use crate::tensor::{in_kind, int};
use crate::weights::Weights;
use tch::{Device, Kind, Tensor};

pub(crate) struct Mlp {
    /// `[2 · d_ff, d]`: gate above up.
    gate_up: Tensor,
    /// `[d, d_ff]`, as served: base plus active edits.
    down: Tensor,
    /// `[d, d_ff]`, as loaded. Shares its storage with `down` while nothing is edited.
    base_down: Tensor,
    activation: Activation,
    width: i64,
}

impl Mlp {
    pub(crate) fn load(
        config: &ModelConfig,
        weights: &mut Weights,
        prefix: &str,
        device: Device,
        kind: Kind,
    ) -> Result<Self> {
        let (d, width) = (int(config.hidden_size), int(config.intermediate_size));
        let gate = weights.take(&format!("{prefix}.gate_proj.weight"), &[width, d])?;
        let up = weights.take(&format!("{prefix}.up_proj.weight"), &[width, d])?;
        let down = weights.take(&format!("{prefix}.down_proj.weight"), &[d, width])?;
        let gate_up = Tensor::f_cat(&[gate, up], 0)?
            .f_to_device(device)?
            .f_to_kind(kind)?;
        let base_down = down.f_to_device(device)?.f_to_kind(kind)?;
        Ok(Self {
            gate_up,
            down: base_down.shallow_clone(),
            base_down,
            activation: config.activation,
            width,
        })
    }

    /// The base in another dtype; what is in it already is shared.
    pub(crate) fn base_in_kind(&self, kind: Kind) -> Result<Self> {
        let base_down = in_kind(&self.base_down, kind)?;
        Ok(Self {
            gate_up: in_kind(&self.gate_up, kind)?,
            down: base_down.shallow_clone(),
            base_down,
            activation: self.activation,
            width: self.width,
        })
    }

    /// `x [.., d]` to the key `[.., d_ff]` that enters `down_proj`, in the dtype of `x`.
    pub(crate) fn key(&self, x: &Tensor) -> Result<Tensor> {
        let weight = in_kind(&self.gate_up, x.kind())?;
        let gate_up = x.f_linear::<&Tensor>(&weight, None)?;
        let gate = gate_up.f_narrow(-1, 0, self.width)?;
        let up = gate_up.f_narrow(-1, self.width, self.width)?;
        let gate = match self.activation {
            Activation::Silu => gate.f_silu()?,
            Activation::GeluTanh => gate.f_gelu("tanh")?,
        };
        Ok(gate.f_mul(&up)?)
    }

    /// The matrix that is served.
    pub(crate) fn down(&self) -> &Tensor {
        &self.down
    }

    /// The matrix as it was loaded.
    pub(crate) fn base_down(&self) -> &Tensor {
        &self.base_down
    }

    /// Serves `matrix [d, d_ff]` from now on, or the base where there is none.
    pub(crate) fn serve(&mut self, matrix: Option<&Tensor>) {
        self.down = matrix.unwrap_or(&self.base_down).shallow_clone();
    }

    pub(crate) fn parameters(&self) -> usize {
        self.gate_up.numel() + self.base_down.numel()
    }
}
