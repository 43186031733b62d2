//! Serving on the CPU, by kernels of our own: one token for each of several sequences, or a prompt.
//!
//! A decode step is some thousand small products over weights that are read once: libtorch's
//! dispatch of them takes longer than the memory does. So a step gathers slices of all that it
//! touches — weights, tails, packets — and computes them in one go: in f32, but for products with
//! packed weights, whose inputs are rounded (see `whole`), and some processors' attention (see `attend::pairs`).
//! A prompt's tokens are such a step too, of many tokens of one sequence; or libtorch multiplies and the kernels
//! attend. Other devices go through [`Transformer::forward`].
//!
//! Invariant: a sequence gets the same numbers alone and among others.

mod attend;
mod pack;
mod product;
mod rows;
mod step;
mod team;
mod whole;
mod wide;

use crate::error::{Error, Result};
use crate::kv::SequenceKv;
use crate::tensor::{NoGrad, elements, int, threads};
use crate::transformer::{Input, Transformer};
use half::bf16;
use std::ops::Range;
use tch::{Device, Kind, Tensor};

pub(crate) use pack::Packed;
pub use pack::Packing;
pub(crate) use rows::Rows;
pub(crate) use step::{Attention, Layer, Lie, Map, Memory, Norm, Run, Turn};
pub(crate) use team::Team;
pub(crate) use wide::Numbers;

/// Rows of logits that are computed as decode steps are; more are a matrix product.
const FEW: i64 = 16;
/// Tokens of a prompt that are computed in one step: more would not stay in a core's own cache.
const TOGETHER: usize = 64;
/// Tokens of a prompt that these kernels compute sooner than libtorch, if it has no matrix units.
const MANY: usize = 256;
/// What of the weights packing may change without a mark, root mean square: more than rounding to bf16 does, less
/// than 4 bits of weights that were never in 4 bits.
const LITTLE: f64 = 0.01;

/// The weights `[outputs, inputs]` of a map where libtorch keeps them, f32 or bf16 on the CPU.
///
/// # Errors
/// A tensor that is something else.
pub(crate) fn rows_of(weight: &Tensor) -> Result<Rows<'_>> {
    let inputs = usize::try_from(weight.size2()?.1).unwrap_or(0);
    // SAFETY: a model's weights are written by nobody while they are served; edits swap them.
    unsafe {
        match weight.kind() {
            Kind::Float => Ok(Rows::F32 {
                inputs,
                numbers: elements(weight)?,
            }),
            Kind::BFloat16 => Ok(Rows::Bf16 {
                inputs,
                numbers: elements(weight)?,
            }),
            other => Err(Error::Invalid(format!("{other:?} weights can't be served"))),
        }
    }
}

/// Packs `weight [outputs, inputs]`; `None` where its rows don't divide into groups, or nothing is
/// to be packed.
///
/// # Errors
/// libtorch's.
pub(crate) fn packed(weight: &Tensor, packing: Option<Packing>) -> Result<Option<Packed>> {
    let Some(packing) = packing else {
        return Ok(None);
    };
    let inputs = usize::try_from(weight.size2()?.1).unwrap_or(0);
    let weight = weight.f_to_kind(Kind::Float)?.f_contiguous()?;
    // SAFETY: as above.
    let numbers = unsafe { elements::<f32>(&weight)? };
    Ok(Packed::new(numbers, inputs, packing))
}

/// Whether rounding `weight [outputs, inputs]` to 4 bits changes about as little as rounding to bf16 does, as
/// it is with what a GGUF has in 4 bits already; looked at in its first rows.
///
/// # Errors
/// libtorch's.
pub(crate) fn lies_on_four_bits(weight: &Tensor) -> Result<bool> {
    let first = weight.f_narrow(0, 0, weight.size2()?.0.min(FEW))?;
    let inputs = usize::try_from(first.size2()?.1).unwrap_or(0);
    let first = first.f_to_kind(Kind::Float)?.f_contiguous()?;
    // SAFETY: as above.
    let numbers = unsafe { elements::<f32>(&first)? };
    let packed = Packed::new(numbers, inputs, Packing::Int4);
    Ok(packed.is_some_and(|packed| packed.loss(numbers) < LITTLE))
}

/// Which copy of the weights is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copy {
    /// As the model was loaded.
    Loaded,
    /// Packed, where there is such a copy.
    Packed,
}

impl Transformer {
    /// Appends one token to each of several sequences and returns their hidden states after the last
    /// norm, `[sequences, d]`. No gradients. On an error every context is as before.
    ///
    /// Reads the packed weights where there are any (see [`Self::pack`]).
    ///
    /// # Errors
    /// An unknown id, not one id a sequence, a context grown too long, or libtorch's.
    pub fn decode(&self, ids: &[u32], kvs: &mut [&mut SequenceKv]) -> Result<Tensor> {
        if self.device != Device::Cpu {
            return self.forward_each(ids, kvs);
        }
        let _guard = NoGrad::new();
        self.check_each(ids, kvs)?;
        let ids: Vec<&[u32]> = ids.chunks(1).collect();
        self.step(&ids, kvs, Copy::Packed)
    }

    /// Appends a prompt's tokens to one sequence and returns their hidden states after the last norm,
    /// `[T, d]`. No gradients. On an error the context is as before.
    ///
    /// Reads the packed weights where there are any, as [`Self::decode`] does; leaves what libtorch is faster
    /// with to [`Self::forward`].
    ///
    /// # Errors
    /// An unknown id, no tokens, a context grown too long, or libtorch's.
    pub fn prefill(&self, ids: &[u32], kv: &mut SequenceKv) -> Result<Tensor> {
        if ids.is_empty() || self.is_libtorchs(ids.len()) {
            return self.forward(Input::Ids(ids), kv);
        }
        let _guard = NoGrad::new();
        self.check_ids(ids)?;
        kv.check_room(ids.len())?;
        let before = kv.len();
        let steps = ids.chunks(TOGETHER);
        let steps = steps.map(|ids| self.step(&[ids], &mut [kv], Copy::Packed));
        match steps.collect::<Result<Vec<_>>>() {
            Ok(hidden) => Ok(Tensor::f_cat(&hidden, 0)?),
            Err(error) => {
                kv.truncate(before)?;
                Err(error)
            }
        }
    }

    /// Whether libtorch is faster with so many tokens of one sequence.
    fn is_libtorchs(&self, tokens: usize) -> bool {
        let most = match self.f32_is_faster {
            true => MANY,
            // Its products of bf16 run on matrix units, or at twice the rate of f32.
            false => TOGETHER,
        };
        self.device != Device::Cpu || tokens > most
    }

    /// Embeddings `x [T, d]` of the next tokens of one sequence through all layers and the last norm: products by
    /// libtorch, attention by the kernels. Room was made for them; on the CPU, in bf16.
    pub(crate) fn through_both(&self, x: &Tensor, kv: &mut SequenceKv) -> Result<Tensor> {
        let tokens = usize::try_from(x.size2()?.0).unwrap_or(0);
        let parts = (0..tokens).step_by(TOGETHER);
        let parts = parts.map(|from| from..tokens.min(from + TOGETHER));
        let runs: Vec<Run> = parts.map(|part| self.run_of(part, kv)).collect();
        let team = self.team()?;
        let mut x = x.shallow_clone();
        for (block, memory) in self.blocks.iter().zip(kv.memories::<bf16>()) {
            let mut memory = [memory?];
            let local = self.has_local_rope() && block.window().is_some();
            x = block.forward_with(&x, |attention, qkv| {
                let mut out = Vec::with_capacity(qkv.len());
                team.run(|crew| {
                    let parts = qkv.chunks(TOGETHER * attention.qkv.outputs);
                    for (run, qkv) in runs.iter().zip(parts) {
                        let (run, attention) = (std::slice::from_ref(run), (attention, local));
                        out.extend(step::attended(crew, attention, run, &mut memory, qkv));
                    }
                });
                out
            })?;
        }
        kv.advance(tokens);
        self.norm.forward(&x)
    }

    /// The step itself, on the CPU: appends its `ids` to each sequence.
    pub(crate) fn step(
        &self,
        ids: &[&[u32]],
        kvs: &mut [&mut SequenceKv],
        copy: Copy,
    ) -> Result<Tensor> {
        for (ids, kv) in ids.iter().zip(&mut *kvs) {
            kv.make_room(ids.len())?;
        }
        let hidden = match self.kind {
            Kind::Float => self.step_in::<f32>(ids, kvs, copy)?,
            Kind::BFloat16 => self.step_in::<bf16>(ids, kvs, copy)?,
            other => return Err(Error::Invalid(format!("{other:?} models can't decode"))),
        };
        for (ids, kv) in ids.iter().zip(kvs) {
            kv.advance(ids.len());
        }
        let shape = [-1, int(self.config.hidden_size)];
        let hidden = Tensor::f_from_slice(&hidden)?.f_reshape(shape)?;
        Ok(hidden.f_to_kind(self.kind)?)
    }

    fn step_in<E: Numbers>(
        &self,
        ids: &[&[u32]],
        kvs: &mut [&mut SequenceKv],
        copy: Copy,
    ) -> Result<Vec<f32>> {
        let mut x = self.embedded::<E>(&ids.concat())?;
        let layers: Vec<Layer<'_>> = self
            .blocks
            .iter()
            .map(|block| block.for_decode(copy, self.has_local_rope()))
            .collect::<Result<_>>()?;
        let runs = ids.iter().zip(&*kvs);
        let runs = runs.map(|(ids, kv)| self.run_of(0..ids.len(), kv));
        let runs: Vec<Run> = runs.collect();
        let mut memories: Vec<Vec<Memory<'_, E>>> = layers.iter().map(|_| Vec::new()).collect();
        for kv in kvs {
            for (layer, memory) in memories.iter_mut().zip(kv.memories::<E>()) {
                layer.push(memory?);
            }
        }
        let norm = self.norm.for_decode();
        Ok(self.team()?.run(|crew| {
            for (layer, memories) in layers.iter().zip(&mut memories) {
                step::layer(crew, layer, &runs, memories, &mut x);
            }
            step::normed(crew, &x, norm)
        }))
    }

    /// Input embeddings `[ids, d]`, scaled.
    fn embedded<E: Numbers>(&self, ids: &[u32]) -> Result<Vec<f32>> {
        // SAFETY: embeddings are written by nobody.
        let all = unsafe { elements::<E>(self.embeddings())? };
        let d = self.config.hidden_size;
        let scale = self.config.embedding_scale as f32;
        let rows = ids.iter().flat_map(|&id| {
            let start = id as usize * d;
            all.get(start..start + d).unwrap_or_default()
        });
        Ok(rows.map(|number| number.widen() * scale).collect())
    }

    /// Where those `next` tokens of `kv` stand, counted from its end.
    fn run_of(&self, next: Range<usize>, kv: &SequenceKv) -> Run {
        let anchors = kv.anchors();
        let position = kv.len() + next.start;
        let turns = (position..kv.len() + next.end).map(|position| {
            let from = |anchor: &i64| usize::try_from(int(position) - anchor).unwrap_or(0);
            let seen = std::iter::once(position).chain(anchors.iter().map(from));
            self.turns(&seen.collect::<Vec<_>>())
        });
        let (turns, local_turns) = turns.unzip();
        Run {
            position,
            row: kv.tail_rows() + next.start,
            lies: kv.lies_with(next.end),
            turns,
            local_turns,
        }
    }

    /// Hidden states `[.., d]` that [`Self::decode`] or [`Self::prefill`] gave to logits, f32 `[.., vocab]`; by
    /// packed weights where there are any.
    ///
    /// # Errors
    /// libtorch's.
    pub fn decode_logits(&self, hidden: &Tensor) -> Result<Tensor> {
        if self.is_packed() || self.is_few(hidden) {
            return self.few_logits(hidden, Copy::Packed);
        }
        self.logits(hidden)
    }

    /// Hidden states `[.., d]` to logits, f32 `[.., vocab]`, on the CPU: faster than libtorch for a few rows.
    pub(crate) fn few_logits(&self, hidden: &Tensor, copy: Copy) -> Result<Tensor> {
        let d = self.config.hidden_size;
        let x = hidden.f_to_kind(Kind::Float)?.f_reshape([-1])?;
        let x = Vec::<f32>::try_from(x)?;
        let map = Map {
            rows: self.output_rows(copy)?,
            bias: &[],
            outputs: self.config.vocab_size,
        };
        let logits = self.team()?.run(|crew| map.of(crew, &x, d));
        let mut shape = hidden.size();
        shape.pop();
        shape.push(int(self.config.vocab_size));
        Ok(Tensor::f_from_slice(&logits)?.f_reshape(shape)?)
    }

    /// Whether logits of `hidden [.., d]` are a few rows that nobody differentiates.
    pub(crate) fn is_few(&self, hidden: &Tensor) -> bool {
        let rows = int(hidden.numel()) / int(self.config.hidden_size.max(1));
        self.device == Device::Cpu && rows <= FEW && !hidden.requires_grad()
    }

    /// The threads that decode, as many as libtorch has.
    fn team(&self) -> Result<&Team> {
        if let Some(team) = self.team.get() {
            return Ok(team);
        }
        let team = Team::new(threads())?;
        Ok(self.team.get_or_init(|| team))
    }
}
