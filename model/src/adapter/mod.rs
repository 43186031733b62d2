//! Adapters: trained soft tokens before and after each packet's document.
//!
//! Owns [`Adapter`], the pair of *header* and *trailer* in input-embedding space, and how a
//! document is wrapped in it. [`Lesson`] and [`Trainer`] are how it comes about, by
//! self-distillation (KV Packet, arXiv 2604.13226): the model's own answer under full attention is
//! the teacher, the same model under the packets' block mask the student. Never changes a model;
//! never touches a file.
//!
//! Invariants: soft tokens are f32 and finite; an adapter names the base weights it belongs to.

mod adam;
mod file;
mod lesson;
mod state;
mod student;
mod trainer;

pub use file::{Description, MAX_FILE_BYTES, MAX_SOFT_TOKENS, is_name};
pub use lesson::{Lesson, Taught, teach};
pub use student::{Measured, Primer, Student};
pub use trainer::{Schedule, Trainer};

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::tensor::{NoGrad, ids as id_tensor, int, to_bytes};
use crate::transformer::Transformer;

/// A header and a trailer for one base model.
#[derive(Debug)]
pub struct Adapter {
    /// f32 `[H, d]` on the CPU, scaled as [`Transformer::embed`] scales.
    header: Tensor,
    /// f32 `[T, d]`, likewise.
    trailer: Tensor,
    /// Fingerprint of the base weights.
    base: [u8; 32],
    name: String,
    /// How it was trained: JSON.
    training: String,
}

impl Clone for Adapter {
    fn clone(&self) -> Self {
        Self {
            header: self.header.copy(),
            trailer: self.trailer.copy(),
            base: self.base,
            name: self.name.clone(),
            training: self.training.clone(),
        }
    }
}

impl Adapter {
    /// From soft tokens `[H, d]` and `[T, d]`, which are copied to f32 on the CPU.
    ///
    /// # Errors
    /// Too few or too many tokens, two widths, or a value that is not finite.
    pub fn new(
        header: &Tensor,
        trailer: &Tensor,
        base: [u8; 32],
        name: String,
        training: String,
    ) -> Result<Self> {
        let _guard = NoGrad::new();
        let own = |soft: &Tensor| -> Result<Tensor> {
            let (tokens, _) = soft.size2()?;
            if !(1..=int(MAX_SOFT_TOKENS)).contains(&tokens) {
                return Err(Error::Invalid(format!(
                    "an adapter has 1 to {MAX_SOFT_TOKENS} soft tokens on each side, not {tokens}"
                )));
            }
            let soft = soft.f_detach()?.f_to_device(Device::Cpu)?;
            Ok(soft.f_to_kind(Kind::Float)?.f_contiguous()?.copy())
        };
        let adapter = Self {
            header: own(header)?,
            trailer: own(trailer)?,
            base,
            name,
            training,
        };
        if adapter.header.size2()?.1 != adapter.trailer.size2()?.1 {
            return Err(Error::Invalid(
                "an adapter's header and trailer must be of one width".to_owned(),
            ));
        }
        for soft in [&adapter.header, &adapter.trailer] {
            if soft.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
                return Err(Error::Invalid(
                    "an adapter's soft tokens must be finite numbers".to_owned(),
                ));
            }
        }
        Ok(adapter)
    }

    /// Untrained: the input embeddings of tokens that say nothing new, such as those that stand around documents anyway.
    /// A student begins closer to its teacher with these than with noise (see ARCHITECTURE.md).
    ///
    /// # Errors
    /// Too few or too many tokens, an unknown id, or libtorch's.
    pub fn of_tokens(
        model: &Transformer,
        (header, trailer): (&[u32], &[u32]),
        base: [u8; 32],
        name: String,
    ) -> Result<Self> {
        let _guard = NoGrad::new();
        let soft = |ids: &[u32]| -> Result<Tensor> {
            model.check_ids(ids)?;
            model.embed(&id_tensor(ids, model.device())?)
        };
        let training = String::from("{}");
        Self::new(&soft(header)?, &soft(trailer)?, base, name, training)
    }

    /// f32 `[H, d]`.
    pub fn header(&self) -> &Tensor {
        &self.header
    }

    /// f32 `[T, d]`.
    pub fn trailer(&self) -> &Tensor {
        &self.trailer
    }

    /// H: tokens before a document.
    #[must_use]
    pub fn header_tokens(&self) -> usize {
        rows(&self.header)
    }

    /// T: tokens after a document.
    #[must_use]
    pub fn trailer_tokens(&self) -> usize {
        rows(&self.trailer)
    }

    /// d: the width of the base model.
    #[must_use]
    pub fn width(&self) -> usize {
        let width = self.header.size().get(1).copied().unwrap_or(0);
        usize::try_from(width).unwrap_or(0)
    }

    /// Fingerprint of the base weights that it was trained for.
    #[must_use]
    pub fn base(&self) -> [u8; 32] {
        self.base
    }

    /// Its name, for people.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it was trained, as JSON.
    #[must_use]
    pub fn training(&self) -> &str {
        &self.training
    }

    /// The same soft tokens under another name and record.
    #[must_use]
    pub fn named(mut self, name: String, training: String) -> Self {
        self.name = name;
        self.training = training;
        self
    }

    /// BLAKE3 of the base's fingerprint, both lengths, and the soft tokens. Name and record don't count.
    ///
    /// # Errors
    /// libtorch's.
    pub fn digest(&self) -> Result<[u8; 32]> {
        let (header, trailer) = (to_bytes(&self.header)?, to_bytes(&self.trailer)?);
        let soft = [
            (self.header_tokens(), header.as_slice()),
            (self.trailer_tokens(), trailer.as_slice()),
        ];
        Ok(file::digest(&self.base, soft))
    }

    /// Tokens of a document of `tokens` tokens once it is wrapped.
    #[must_use]
    pub fn wrapped_tokens(&self, tokens: usize) -> usize {
        tokens.saturating_add(self.header_tokens() + self.trailer_tokens())
    }

    /// Input embeddings `[H + L + T, d]` of a document of L tokens, in the model's dtype, for
    /// [`Input::Embeddings`](crate::Input::Embeddings). No gradients.
    ///
    /// # Errors
    /// An adapter of another width, an unknown id, or libtorch's.
    pub fn wrap(&self, model: &Transformer, ids: &[u32]) -> Result<Tensor> {
        self.wrap_part(model, ids, 0..self.wrapped_tokens(ids.len()))
    }

    /// Rows `part` of [`Self::wrap`]'s, without making the others.
    ///
    /// # Errors
    /// As [`Self::wrap`], or a part that reaches beyond the end.
    pub fn wrap_part(
        &self,
        model: &Transformer,
        ids: &[u32],
        part: Range<usize>,
    ) -> Result<Tensor> {
        let _guard = NoGrad::new();
        self.check_width(model)?;
        let (header, all) = (self.header_tokens(), self.wrapped_tokens(ids.len()));
        if part.start >= part.end || part.end > all {
            return Err(Error::Invalid(format!(
                "tokens {part:?} of a wrapped document of {all} tokens"
            )));
        }
        // The part's share of each piece, counted from the piece's start.
        let within = |start: usize, tokens: usize| {
            let clamp = |at: usize| at.saturating_sub(start).min(tokens);
            clamp(part.start)..clamp(part.end)
        };
        let mut pieces = Vec::with_capacity(3);
        let soft = |soft: &Tensor, rows: Range<usize>| -> Result<Tensor> {
            let rows = soft.f_narrow(0, int(rows.start), int(rows.len()))?;
            Ok(rows.f_to_device(model.device())?.f_to_kind(model.kind())?)
        };
        pieces.push(soft(&self.header, within(0, header))?);
        let own = ids.get(within(header, ids.len())).unwrap_or_default();
        if !own.is_empty() {
            model.check_ids(own)?;
            pieces.push(model.embed(&id_tensor(own, model.device())?)?);
        }
        let trailer = within(header + ids.len(), self.trailer_tokens());
        pieces.push(soft(&self.trailer, trailer)?);
        Ok(Tensor::f_cat(&pieces, 0)?)
    }

    /// Fails unless the adapter is as wide as the model.
    pub(crate) fn check_width(&self, model: &Transformer) -> Result<()> {
        let (own, wanted) = (self.width(), model.config().hidden_size);
        if own == wanted {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "the adapter is for a model of width {own}, and this one's is {wanted}"
        )))
    }
}

fn rows(soft: &Tensor) -> usize {
    let rows = soft.size().first().copied().unwrap_or(0);
    usize::try_from(rows).unwrap_or(0)
}
