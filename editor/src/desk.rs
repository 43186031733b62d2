//! What facts are worked out on: the model as it is served, and copies of its base in other dtypes.

use addenda_model::Transformer;
use addenda_model::tensor::multiplies_bf16_faster;
use addenda_model::tokenizer::Tokenizer;
use tch::Kind;

use crate::error::Result;

/// Copies of the weights in f32 are made up to this size.
const COPY_BYTES: u64 = 4 << 30;

/// The models and the tokenizer, as every step needs them.
#[derive(Clone, Copy)]
pub(crate) struct Desk<'a> {
    /// As it is served: what edits are measured on.
    pub(crate) model: &'a Transformer,
    /// What edits are solved on: the base in f32 where there is memory for it, else the model itself.
    pub(crate) study: &'a Transformer,
    /// What wanted states are sought on: as `study`, or the base as it is served where that is multiplied faster.
    pub(crate) seek: &'a Transformer,
    pub(crate) tokenizer: &'a Tokenizer,
}

/// The base in other dtypes than it is served in; shared where the dtype is the same.
#[derive(Default)]
pub(crate) struct Copies {
    study: Option<Transformer>,
    seek: Option<Transformer>,
}

impl Copies {
    /// Those for solving edits whose wanted states are known: f32 where there is memory for it.
    ///
    /// # Errors
    /// libtorch's.
    pub(crate) fn to_solve(model: &Transformer) -> Result<Self> {
        let fits = model.parameters().saturating_mul(4) <= COPY_BYTES;
        let wide = fits && model.kind() != Kind::Float && !model.device().is_cuda();
        let study = wide.then(|| model.base_in_kind(Kind::Float));
        Ok(Self {
            study: study.transpose()?,
            seek: None,
        })
    }

    /// Those for new edits as well. Seeking wanted states takes most of an edit's time: it stays in bf16 where the model
    /// is served so and that is multiplied faster, for rounding leads a search elsewhere and not astray. A model in f32
    /// gives the same weights within f32's rounding, also for facts that came in other batches.
    ///
    /// # Errors
    /// libtorch's.
    pub(crate) fn to_seek(model: &Transformer) -> Result<Self> {
        let quick = model.kind() == Kind::BFloat16 && multiplies_bf16_faster(model.device());
        let base = quick.then(|| model.base_in_kind(model.kind()));
        Ok(Self {
            seek: base.transpose()?,
            ..Self::to_solve(model)?
        })
    }

    pub(crate) fn desk<'a>(&'a self, model: &'a Transformer, tokenizer: &'a Tokenizer) -> Desk<'a> {
        let study = self.study.as_ref().unwrap_or(model);
        Desk {
            model,
            study,
            seek: self.seek.as_ref().unwrap_or(study),
            tokenizer,
        }
    }
}
