//! Adapters: what is trained for one base model so that packets are read as if they had been computed together.
//!
//! Owns [`Adapter`], which is one of two things. *Soft tokens*, a header and a trailer in input-embedding space, stand
//! around each document and are computed into its packet (KV Packet, arXiv 2604.13226). A *bridge* (prefix tuning, Li and
//! Liang 2021, arXiv 2101.00190) is keys and values of every layer which stand once between the last packet and what is
//! asked: packets do not depend on it, so a new one makes none of them anew. [`Lesson`] and [`Trainer`] are how
//! either comes about, by self-distillation: the model's own answer under full attention is the teacher, the same model
//! over packets the student. Never changes a model; never touches a file.
//!
//! Invariants: what is trained is f32 and finite; an adapter names the base weights it belongs to.

mod adam;
mod behind;
mod bridge;
mod file;
mod lesson;
mod state;
mod student;
mod trainer;

pub use behind::Desk;
pub(crate) use bridge::{planes, shape as bridge_shape};
pub use file::{Description, MAX_FILE_BYTES, MAX_SOFT_TOKENS, is_name};
pub use lesson::{Lesson, Taught, teach};
pub use student::{Measured, Primer, Student};
pub use trainer::{Schedule, Trainer};

use std::convert::Infallible;
use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::packet::PacketShape;
use crate::tensor::{NoGrad, ids as id_tensor, int, to_bytes};
use crate::transformer::Transformer;

/// What an adapter puts into a context.
#[derive(Debug)]
pub(crate) enum Parts {
    /// `[H, d]` before and `[T, d]` behind each document, scaled as [`Transformer::embed`] scales.
    Soft { header: Tensor, trailer: Tensor },
    /// `[layers, 2, kv_heads, P, head_dim]`: of each layer keys, then values, as a packet has them.
    Bridge(Tensor),
}

/// Soft tokens or a bridge for one base model.
#[derive(Debug)]
pub struct Adapter {
    /// f32 on the CPU.
    parts: Parts,
    /// Fingerprint of the base weights.
    base: [u8; 32],
    name: String,
    /// How it was trained: JSON.
    training: String,
}

impl Clone for Adapter {
    fn clone(&self) -> Self {
        Self {
            parts: self.parts.copy(),
            base: self.base,
            name: self.name.clone(),
            training: self.training.clone(),
        }
    }
}

impl Parts {
    /// Each tensor with its name in files.
    pub(crate) fn named(&self) -> Vec<(&'static str, &Tensor)> {
        match self {
            Self::Soft { header, trailer } => vec![("header", header), ("trailer", trailer)],
            Self::Bridge(bridge) => vec![("bridge", bridge)],
        }
    }

    /// Each tensor, in the same order, to be changed in place.
    pub(crate) fn all_mut(&mut self) -> Vec<&mut Tensor> {
        match self {
            Self::Soft { header, trailer } => vec![header, trailer],
            Self::Bridge(bridge) => vec![bridge],
        }
    }

    /// The same parts with what `of` makes of each tensor and its name.
    pub(crate) fn map<E>(
        &self,
        of: impl Fn(&str, &Tensor) -> std::result::Result<Tensor, E>,
    ) -> std::result::Result<Self, E> {
        Ok(match self {
            Self::Soft { header, trailer } => Self::Soft {
                header: of("header", header)?,
                trailer: of("trailer", trailer)?,
            },
            Self::Bridge(bridge) => Self::Bridge(of("bridge", bridge)?),
        })
    }

    fn copy(&self) -> Self {
        let Ok(copy) = self.map(|_, part| Ok::<_, Infallible>(part.copy()));
        copy
    }

    /// Tokens of one of the tensors.
    fn tokens(&self, part: &Tensor) -> Result<usize> {
        match self {
            Self::Soft { .. } => Ok(usize::try_from(part.size2()?.0).unwrap_or(0)),
            Self::Bridge(_) => Ok(bridge::shape(part)?.tokens),
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
        let parts = Parts::Soft {
            header: header.shallow_clone(),
            trailer: trailer.shallow_clone(),
        };
        Self::of(&parts, base, name, training)
    }

    /// From parts of any float dtype on any device, which are copied to f32 on the CPU.
    ///
    /// # Errors
    /// Too few or too many tokens, two widths, or a value that is not finite.
    pub(crate) fn of(
        parts: &Parts,
        base: [u8; 32],
        name: String,
        training: String,
    ) -> Result<Self> {
        let _guard = NoGrad::new();
        let parts = parts.map(|_, part| -> Result<_> {
            let part = part.f_detach()?.f_to_device(Device::Cpu)?;
            Ok(part.f_to_kind(Kind::Float)?.f_contiguous()?.copy())
        })?;
        let adapter = Self {
            parts,
            base,
            name,
            training,
        };
        for (part, tensor) in adapter.parts.named() {
            let tokens = adapter.parts.tokens(tensor)?;
            if !(1..=MAX_SOFT_TOKENS).contains(&tokens) {
                return Err(Error::Invalid(format!(
                    "an adapter's {part} has 1 to {MAX_SOFT_TOKENS} tokens, not {tokens}"
                )));
            }
            if tensor.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
                return Err(Error::Invalid(format!(
                    "an adapter's {part} must be finite numbers"
                )));
            }
        }
        if let Parts::Soft { header, trailer } = &adapter.parts
            && header.size2()?.1 != trailer.size2()?.1
        {
            return Err(Error::Invalid(
                "an adapter's header and trailer must be of one width".to_owned(),
            ));
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

    /// What it puts into a context.
    pub(crate) fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Header and trailer, f32 `[H, d]` and `[T, d]`; `None` of a bridge.
    pub fn soft(&self) -> Option<(&Tensor, &Tensor)> {
        match &self.parts {
            Parts::Soft { header, trailer } => Some((header, trailer)),
            Parts::Bridge(_) => None,
        }
    }

    /// H: tokens before a document.
    #[must_use]
    pub fn header_tokens(&self) -> usize {
        self.soft().map_or(0, |(header, _)| self.tokens(header))
    }

    /// T: tokens after a document.
    #[must_use]
    pub fn trailer_tokens(&self) -> usize {
        self.soft().map_or(0, |(_, trailer)| self.tokens(trailer))
    }

    /// P: tokens between the documents and what is asked.
    #[must_use]
    pub fn bridge_tokens(&self) -> usize {
        match &self.parts {
            Parts::Soft { .. } => 0,
            Parts::Bridge(bridge) => self.tokens(bridge),
        }
    }

    /// Tokens of one of its parts, whose shape was checked when it was made.
    fn tokens(&self, part: &Tensor) -> usize {
        self.parts.tokens(part).unwrap_or(0)
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

    /// The same under another name and record.
    #[must_use]
    pub fn named(mut self, name: String, training: String) -> Self {
        self.name = name;
        self.training = training;
        self
    }

    /// BLAKE3 of the base's fingerprint and of each part's tokens and numbers. Name and record don't count.
    ///
    /// # Errors
    /// libtorch's.
    pub fn digest(&self) -> Result<[u8; 32]> {
        let mut parts = Vec::with_capacity(2);
        for (_, tensor) in self.parts.named() {
            parts.push((self.tokens(tensor), to_bytes(tensor)?));
        }
        let parts: Vec<(usize, &[u8])> = parts.iter().map(|(n, bytes)| (*n, &bytes[..])).collect();
        Ok(file::digest(&self.base, &parts))
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
        self.check_fits(model)?;
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
        if let Some((tensor, _)) = self.soft() {
            pieces.push(soft(tensor, within(0, header))?);
        }
        let own = ids.get(within(header, ids.len())).unwrap_or_default();
        if !own.is_empty() {
            model.check_ids(own)?;
            pieces.push(model.embed(&id_tensor(own, model.device())?)?);
        }
        if let Some((_, tensor)) = self.soft() {
            let rows = within(header + ids.len(), self.trailer_tokens());
            pieces.push(soft(tensor, rows)?);
        }
        Ok(Tensor::f_cat(&pieces, 0)?)
    }

    /// Fails unless the adapter's parts fit the model.
    ///
    /// # Errors
    /// They are another model's.
    pub fn check_fits(&self, model: &Transformer) -> Result<()> {
        let config = model.config();
        let (own, wanted) = match &self.parts {
            Parts::Soft { header, .. } => {
                let width = |width: i64| format!("width {width}");
                (width(header.size2()?.1), width(int(config.hidden_size)))
            }
            Parts::Bridge(bridge) => {
                let shape = bridge::shape(bridge)?;
                let wanted = PacketShape::of(config, shape.kind, shape.tokens);
                (format!("{shape:?}"), format!("{wanted:?}"))
            }
        };
        if own == wanted {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "the adapter is for a model of {own}, and this one's is {wanted}"
        )))
    }
}
