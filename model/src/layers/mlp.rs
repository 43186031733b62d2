//! The gated MLP: `down_proj(act(gate_proj(x)) · up_proj(x))`.
//!
//! What enters `down_proj` is the *key* of locate-and-edit, and `down_proj` the matrix
//! that facts are written into. The base matrix is kept beside the served one for ever,
//! so that taking the last edit out restores it bit for bit.

use super::linear::Linear;
use crate::config::{Activation, ModelConfig};
use crate::decode::{Copy, Map, Packed, Packing, lies_on_four_bits, packed, rows_of};
use crate::error::Result;
use crate::tensor::{in_kind, int};
use crate::weights::Weights;
use tch::{Device, Kind, Tensor};

pub(crate) struct Mlp {
    /// `[2 · d_ff, d]`: gate above up.
    gate_up: Linear,
    /// `[d, d_ff]`, as served: base plus active edits.
    down: Tensor,
    /// `[d, d_ff]`, as loaded. Shares its storage with `down` while nothing is edited.
    base_down: Tensor,
    /// `base_down` once more, for decode steps; not read while an edit is served.
    packed_down: Option<Packed>,
    edited: bool,
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
        let mut part = |name: &str| {
            let name = format!("{prefix}.{name}");
            Linear::take(weights, &name, &[width, d], false)
        };
        let gate_up = [part("gate_proj")?, part("up_proj")?];
        let gate_up = Linear::stack(&gate_up)?.to(device, kind)?;
        let down = weights.take(&format!("{prefix}.down_proj.weight"), &[d, width])?;
        let base_down = down.f_to_device(device)?.f_to_kind(kind)?;
        Ok(Self {
            gate_up,
            down: base_down.shallow_clone(),
            base_down,
            packed_down: None,
            edited: false,
            activation: config.activation,
            width,
        })
    }

    /// The base in another dtype; what is in it already is shared.
    pub(crate) fn base_in_kind(&self, kind: Kind) -> Result<Self> {
        let base_down = in_kind(&self.base_down, kind)?;
        Ok(Self {
            gate_up: self.gate_up.in_kind(kind)?,
            down: base_down.shallow_clone(),
            base_down,
            packed_down: None,
            edited: false,
            activation: self.activation,
            width: self.width,
        })
    }

    /// `x [.., d]` to the key `[.., d_ff]` that enters `down_proj`, in the dtype of `x`.
    pub(crate) fn key(&self, x: &Tensor) -> Result<Tensor> {
        let gate_up = self.gate_up.forward(x)?;
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
        self.edited = matrix.is_some();
    }

    /// Keeps the weights packed as well, or not any more; bytes that it takes.
    pub(crate) fn pack(&mut self, packing: Option<Packing>) -> Result<usize> {
        self.packed_down = packed(&self.base_down, packing)?;
        let down = self.packed_down.as_ref().map_or(0, Packed::bytes);
        Ok(down + self.gate_up.pack(packing)?)
    }

    /// See [`lies_on_four_bits`].
    pub(crate) fn lies_on_four_bits(&self) -> Result<bool> {
        Ok(lies_on_four_bits(&self.base_down)? && self.gate_up.lies_on_four_bits()?)
    }

    /// Gate and up, and down, as decode steps read them. An edited matrix is read as it is served:
    /// packing would swallow small edits.
    pub(crate) fn for_decode(&self, copy: Copy) -> Result<(Map<'_>, Map<'_>, Activation)> {
        let rows = match &self.packed_down {
            Some(packed) if copy == Copy::Packed && !self.edited => packed.rows(),
            _ => rows_of(&self.down)?,
        };
        let down = Map {
            rows,
            bias: &[],
            outputs: usize::try_from(self.down.size2()?.0).unwrap_or(0),
        };
        Ok((self.gate_up.for_decode(copy)?, down, self.activation))
    }

    pub(crate) fn parameters(&self) -> usize {
        self.gate_up.parameters() + self.base_down.numel()
    }
}
