//! Token rows as one right-padded batch. Causal masking makes what stands behind a row's end harmless.

use addenda_model::Transformer;
use tch::{Kind, Tensor};

use crate::error::{Error, Result};

/// i64 `[B, S]` on the model's device, S the longest row; padded with 0.
pub(crate) fn padded<R: AsRef<[u32]>>(rows: &[R], model: &Transformer) -> Result<Tensor> {
    let width = rows.iter().map(|row| row.as_ref().len()).max().unwrap_or(0);
    let mut flat = Vec::with_capacity(rows.len() * width);
    for row in rows {
        let row = row.as_ref();
        flat.extend(row.iter().map(|id| i64::from(*id)));
        flat.resize(flat.len() + width - row.len(), 0);
    }
    let action = "batching token rows";
    Tensor::f_from_slice(&flat)
        .and_then(|ids| ids.f_reshape([index(rows.len()), index(width)]))
        .and_then(|ids| ids.f_to_device(model.device()))
        .map_err(Error::torch(action))
}

/// The rows `[positions, d]` of hidden states `[B, S, d]` at (row, token) places.
pub(crate) fn pick(
    hidden: &Tensor,
    places: &[(i64, i64)],
) -> std::result::Result<Tensor, tch::TchError> {
    let (_, s, d) = hidden.size3()?;
    let flat: Vec<i64> = places.iter().map(|(row, token)| row * s + token).collect();
    let index = Tensor::f_from_slice(&flat)?.f_to_device(hidden.device())?;
    hidden.f_reshape([-1, d])?.f_index_select(0, &index)
}

/// Token and row counts are far below 2⁶³.
pub(crate) fn index(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A CPU copy of `tensor`'s numbers in f32, row-major.
pub(crate) fn floats(tensor: &Tensor) -> std::result::Result<Vec<f32>, tch::TchError> {
    Vec::<f32>::try_from(
        tensor
            .f_to_kind(Kind::Float)?
            .f_contiguous()?
            .f_view([-1])?,
    )
}

/// An f64 copy on the CPU, where solves are made.
pub(crate) fn doubles(tensor: &Tensor) -> std::result::Result<Tensor, tch::TchError> {
    tensor
        .f_to_device(tch::Device::Cpu)?
        .f_to_kind(Kind::Double)
}
