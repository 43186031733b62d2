//! The decoder-only transformer: embeddings, layers, a last norm, logits.
//!
//! Two ways through it. [`Transformer::forward`] serves: one sequence, its cache, shared
//! packets, no gradients. [`Transformer::forward_batch`] and its like study (`study.rs`). Both give
//! the same numbers.
//!
//! The weights never change but through [`Transformer::install`].

use crate::config::{ModelConfig, RopeScaling};
use crate::decode::{Copy, Packed, Packing, Rows, Team, Turn, packed, rows_of};
use crate::error::{Error, Result};
use crate::kv::{Held, SequenceKv};
use crate::layers::attention::Run;
use crate::layers::block::Block;
use crate::layers::norm::RmsNorm;
use crate::layers::rope::{Rope, RunAngles};
use crate::packet::PacketShape;
use crate::taps::Overlay;
use crate::tensor::{
    NoGrad, ids as id_tensor, in_kind, int, multiplies_f32_faster, multiplies_pairs_faster,
};
use crate::weights::Weights;
use std::cell::OnceCell;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// Where f32 is the faster dtype for large products, bf16 weights are widened a layer at a time for
/// runs of so many tokens: fewer do not win back what the widening costs.
const WIDEN_FROM: usize = 128;

/// What goes into the model at the next positions.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Token ids.
    Ids(&'a [u32]),
    /// Input embeddings `[T, d]`, scaled as [`Transformer::embed`] scales them: soft tokens.
    Embeddings(&'a Tensor),
}

/// A model, loaded.
pub struct Transformer {
    pub(crate) config: ModelConfig,
    /// `[vocab, d]`.
    embeddings: Tensor,
    pub(crate) blocks: Vec<Block>,
    pub(crate) norm: RmsNorm,
    /// `[vocab, d]`; the embeddings themselves where they are tied.
    output: Tensor,
    pub(crate) rope: Rope,
    /// Of windowed layers, where they turn by other angles.
    pub(crate) local_rope: Option<Rope>,
    pub(crate) device: Device,
    pub(crate) kind: Kind,
    /// Whether large products are faster in f32 than in bf16 here.
    pub(crate) f32_is_faster: bool,
    /// The output matrix once more, for decode steps.
    packed_output: Option<Packed>,
    /// The threads of decode steps, started at the first.
    pub(crate) team: OnceCell<Team>,
    held: Held,
}

impl Transformer {
    /// Builds the model from its weights, on `device`, to compute in `kind` (f32 or bf16).
    ///
    /// # Errors
    /// A tensor is missing or of another shape than `config` says, or libtorch's.
    pub fn load(
        config: ModelConfig,
        mut weights: Weights,
        device: Device,
        kind: Kind,
    ) -> Result<Self> {
        config.validate()?;
        let _guard = NoGrad::new();
        let (vocab, d) = (int(config.vocab_size), int(config.hidden_size));
        let place = |t: &Tensor| t.f_to_device(device)?.f_to_kind(kind);
        let embeddings = place(&weights.take("model.embed_tokens.weight", &[vocab, d])?)?;
        let output = if config.tied_embeddings {
            embeddings.shallow_clone()
        } else {
            place(&weights.take("lm_head.weight", &[vocab, d])?)?
        };
        let blocks = (0..config.num_layers)
            .map(|layer| Block::load(&config, &mut weights, layer, device, kind))
            .collect::<Result<_>>()?;
        let norm = weights
            .take("model.norm.weight", &[d])?
            .f_to_device(device)?;
        let norm = RmsNorm::new(&norm, config.norm_plus_one, config.norm_eps, kind)?;
        let rope = |theta, scaling| Rope::new(theta, scaling, config.head_dim, device);
        let local_rope = config
            .rope_local_theta
            .map(|theta| rope(theta, &RopeScaling::None))
            .transpose()?;
        let rope = rope(config.rope_theta, &config.rope_scaling)?;
        Ok(Self {
            config,
            embeddings,
            blocks,
            norm,
            output,
            rope,
            local_rope,
            device,
            kind,
            f32_is_faster: multiplies_f32_faster(device),
            packed_output: None,
            team: OnceCell::new(),
            held: Held::default(),
        })
    }

    /// The base model in another dtype, nothing edited. What is in it already is shared, the rest
    /// is copied: a copy of a bf16 model in f32 takes four bytes a weight.
    ///
    /// # Errors
    /// libtorch's.
    pub fn base_in_kind(&self, kind: Kind) -> Result<Self> {
        let _guard = NoGrad::new();
        let embeddings = in_kind(&self.embeddings, kind)?;
        let output = match self.config.tied_embeddings {
            true => embeddings.shallow_clone(),
            false => in_kind(&self.output, kind)?,
        };
        let blocks = self.blocks.iter().map(|block| block.base_in_kind(kind));
        let (config, device) = (self.config.clone(), self.device);
        let rope = |theta, scaling| Rope::new(theta, scaling, config.head_dim, device);
        let local_rope = (config.rope_local_theta)
            .map(|theta| rope(theta, &RopeScaling::None))
            .transpose()?;
        let rope = rope(config.rope_theta, &config.rope_scaling)?;
        Ok(Self {
            embeddings,
            blocks: blocks.collect::<Result<_>>()?,
            norm: self.norm.in_kind(kind)?,
            output,
            rope,
            local_rope,
            config,
            device,
            kind,
            f32_is_faster: self.f32_is_faster,
            packed_output: None,
            team: OnceCell::new(),
            held: Held::default(),
        })
    }

    /// Keeps the weights a second time, packed, and has [`Self::decode`] read those; `None` drops
    /// them. Returns the bytes that they take. Matrices that don't divide into groups stay as they
    /// are, and so do edited ones.
    ///
    /// # Errors
    /// The model is not on the CPU, or libtorch's.
    pub fn pack(&mut self, packing: Option<Packing>) -> Result<usize> {
        let _guard = NoGrad::new();
        if packing.is_some() && self.device != Device::Cpu {
            return Err(Error::Invalid(
                "weights are packed for the CPU only; leave `weights` at \"auto\" here".to_owned(),
            ));
        }
        // 4-bit GGUFs, such as the catalogue's of SmolLM2, keep the output matrix in 8 bits too.
        self.packed_output = packed(&self.output, packing.map(|_| Packing::Int8))?;
        let mut bytes = self.packed_output.as_ref().map_or(0, Packed::bytes);
        for block in &mut self.blocks {
            bytes += block.pack(packing)?;
        }
        Ok(bytes)
    }

    /// The packing that suits the weights: 4 bits where that changes no more than rounding to bf16, as with
    /// a GGUF's own of Q4_1, else 8.
    ///
    /// # Errors
    /// libtorch's.
    pub fn suitable_packing(&self) -> Result<Packing> {
        let _guard = NoGrad::new();
        for block in &self.blocks {
            if !block.mlp.lies_on_four_bits()? {
                return Ok(Packing::Int8);
            }
        }
        Ok(Packing::Int4)
    }

    /// Whether decode steps and short chunks of prompts read packed weights.
    #[must_use]
    pub fn is_packed(&self) -> bool {
        self.packed_output.is_some()
    }

    /// What the model is.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The dtype it computes in.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where it computes.
    #[must_use]
    pub fn device(&self) -> Device {
        self.device
    }

    /// Weights in all, norms not counted.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        let output = if self.config.tied_embeddings {
            0
        } else {
            self.output.numel()
        };
        let blocks: usize = self.blocks.iter().map(Block::parameters).sum();
        (self.embeddings.numel() + output + blocks) as u64
    }

    /// An empty context for this model.
    ///
    /// # Errors
    /// libtorch's.
    pub fn new_kv(&self) -> Result<SequenceKv> {
        SequenceKv::new(&self.config, (self.kind, self.device), &self.held)
    }

    /// The same for a context that is to become a packet: its memory is not among [`Self::kv_bytes`].
    ///
    /// # Errors
    /// libtorch's.
    pub fn isolated_kv(&self) -> Result<SequenceKv> {
        SequenceKv::new(&self.config, (self.kind, self.device), &Held::default())
    }

    /// Bytes of KV of one token.
    #[must_use]
    pub fn kv_token_bytes(&self) -> usize {
        let token = PacketShape::of(&self.config, self.kind, 1);
        token.bytes().unwrap_or(0)
    }

    /// Bytes of memory that all contexts of this model hold, with the blocks that they share; packets are not
    /// counted.
    #[must_use]
    pub fn kv_bytes(&self) -> usize {
        self.held.bytes()
    }

    /// Appends T tokens to one sequence, at positions `kv.len() ..`, and returns their hidden
    /// states after the last norm, `[T, d]`. No gradients. On an error the context is as before.
    ///
    /// # Errors
    /// An unknown id, no tokens, a context grown too long, or libtorch's.
    pub fn forward(&self, input: Input<'_>, kv: &mut SequenceKv) -> Result<Tensor> {
        let _guard = NoGrad::new();
        if let Input::Ids([id]) = input
            && self.device == Device::Cpu
        {
            self.check_ids(&[*id])?;
            return self.step(&[&[*id]], &mut [kv], Copy::Loaded);
        }
        let x = match input {
            Input::Ids(ids) => {
                self.check_ids(ids)?;
                self.embed(&id_tensor(ids, self.device)?)?
            }
            Input::Embeddings(embeddings) => embeddings.f_to_kind(self.kind)?,
        };
        let tokens = usize::try_from(x.size2()?.0).unwrap_or(0);
        if tokens == 0 {
            return Err(Error::Invalid("there are no tokens to compute".to_owned()));
        }
        kv.make_room(tokens)?;
        let on_cpu = self.device == Device::Cpu;
        match on_cpu && self.kind == Kind::BFloat16 && multiplies_pairs_faster() {
            true => self.through_both(&x, kv),
            false => self.through(&x, &mut [kv]),
        }
    }

    /// Appends one token to each of several sequences by libtorch, as devices other than the CPU decode, and
    /// returns their hidden states after the last norm, `[sequences, d]`. No gradients. On an error every context
    /// is as before.
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub fn forward_each(&self, ids: &[u32], kvs: &mut [&mut SequenceKv]) -> Result<Tensor> {
        let _guard = NoGrad::new();
        self.check_each(ids, kvs)?;
        for kv in &mut *kvs {
            kv.make_room(1)?;
        }
        let x = self.embed(&id_tensor(ids, self.device)?)?;
        self.through(&x, kvs)
    }

    /// Fails unless each of these tokens can follow on its sequence.
    pub(crate) fn check_each(&self, ids: &[u32], kvs: &[&mut SequenceKv]) -> Result<()> {
        if ids.is_empty() || ids.len() != kvs.len() {
            return Err(Error::Invalid(format!(
                "{} tokens for {} sequences",
                ids.len(),
                kvs.len()
            )));
        }
        self.check_ids(ids)?;
        kvs.iter().try_for_each(|kv| kv.check_room(1))
    }

    /// Embeddings `x [T, d]` of the next tokens, as many of each sequence, through all layers and the last norm.
    /// Room was made for them.
    fn through(&self, x: &Tensor, kvs: &mut [&mut SequenceKv]) -> Result<Tensor> {
        let tokens = usize::try_from(x.size2()?.0).unwrap_or(0) / kvs.len().max(1);
        let mut x = self.for_run(x)?;
        let all_angles = |rope: &Rope| -> Result<Vec<RunAngles>> {
            let each = kvs.iter();
            each.map(|kv| rope.run(kv.len(), tokens, &kv.anchors()))
                .collect()
        };
        let angles = all_angles(&self.rope)?;
        let local = self.local_rope.as_ref().map(all_angles).transpose()?;
        for (layer, block) in self.blocks.iter().enumerate() {
            let local = local.as_ref().filter(|_| block.window().is_some());
            let angles = local.unwrap_or(&angles);
            let runs = kvs.iter_mut().zip(angles).map(|(kv, angles)| {
                Ok(Run {
                    tokens,
                    angles,
                    kv: kv.layer(layer, 0)?,
                })
            });
            let mut runs = runs.collect::<Result<Vec<_>>>()?;
            x = block.forward(&x, &mut runs)?;
        }
        for kv in kvs {
            kv.advance(tokens);
        }
        in_kind(&self.norm.forward(&x)?, self.kind)
    }

    /// Hidden states after the last norm `[.., d]` to logits, f32 `[.., vocab]`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        if self.is_few(hidden) {
            return self.few_logits(hidden, Copy::Loaded);
        }
        Ok(hidden
            .f_linear::<&Tensor>(&self.output, None)?
            .f_to_kind(Kind::Float)?)
    }

    /// Ids `[..]` to input embeddings `[.., d]`, scaled where the model scales them.
    ///
    /// # Errors
    /// libtorch's.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        let x = Tensor::f_embedding(&self.embeddings, ids, -1, false, false)?;
        let scale = self.config.embedding_scale;
        #[expect(clippy::float_cmp, reason = "1 is the exact mark of no scaling")]
        let plain = scale == 1.0;
        Ok(if plain { x } else { x.f_mul_scalar(scale)? })
    }

    /// Whether a run of so many tokens is computed in f32, whatever the weights are kept in.
    pub(crate) fn widens(&self, tokens: usize) -> bool {
        self.f32_is_faster && tokens >= WIDEN_FROM
    }

    /// The output matrix as decode steps read it.
    pub(crate) fn output_rows(&self, copy: Copy) -> Result<Rows<'_>> {
        match &self.packed_output {
            Some(packed) if copy == Copy::Packed => Ok(packed.rows()),
            _ => rows_of(&self.output),
        }
    }

    /// Whether windowed layers turn by angles of their own.
    pub(crate) fn has_local_rope(&self) -> bool {
        self.local_rope.is_some()
    }

    /// The angles of some positions, and those of windowed layers where they are others.
    pub(crate) fn turns(&self, positions: &[usize]) -> (Vec<Turn>, Vec<Turn>) {
        let of = |rope: &Rope| -> Vec<Turn> {
            let turns = positions.iter().map(|&position| rope.turn_at(position));
            turns.collect()
        };
        let local = self.local_rope.as_ref().map(of);
        (of(&self.rope), local.unwrap_or_default())
    }

    /// The stored embedding matrix `[vocab, d]`, unscaled.
    pub fn embeddings(&self) -> &Tensor {
        &self.embeddings
    }

    /// The down-projection of `layer` before any edit, f32 `[d, d_ff]`.
    ///
    /// # Errors
    /// There is no such layer.
    pub fn base_down_proj(&self, layer: usize) -> Result<Tensor> {
        Ok(self.block(layer)?.mlp.base_down().f_to_kind(Kind::Float)?)
    }

    /// Edited down-projections `[d, d_ff]` (any float dtype), by layer, made ready to be served.
    ///
    /// # Errors
    /// There is no such layer, or a matrix of another shape.
    pub fn overlay(&self, edited: &BTreeMap<usize, Tensor>) -> Result<Overlay> {
        let mut matrices = BTreeMap::new();
        for (&layer, matrix) in edited {
            let base = self.block(layer)?.mlp.base_down();
            if matrix.size() != base.size() {
                return Err(Error::Shape {
                    what: format!("the edited down-projection of layer {layer}"),
                    expected: base.size(),
                    found: matrix.size(),
                });
            }
            let matrix = matrix
                .f_detach()?
                .f_to_device(self.device)?
                .f_to_kind(self.kind)?;
            matrices.insert(layer, matrix);
        }
        Ok(Overlay { matrices })
    }

    /// Serves `overlay` from now on: its layers edited, every other layer as it was loaded, bit
    /// for bit. Cannot fail half-way: matrices are swapped, not written.
    ///
    /// # Errors
    /// The overlay is of another model.
    pub fn install(&mut self, overlay: &Overlay) -> Result<()> {
        for (&layer, matrix) in &overlay.matrices {
            let base = self.block(layer)?.mlp.base_down();
            if matrix.size() != base.size() || matrix.kind() != self.kind {
                return Err(Error::Shape {
                    what: format!("the edited down-projection of layer {layer}"),
                    expected: base.size(),
                    found: matrix.size(),
                });
            }
        }
        for (layer, block) in self.blocks.iter_mut().enumerate() {
            block.mlp.serve(overlay.matrices.get(&layer));
        }
        Ok(())
    }

    /// The residual stream `x [.., T, d]` in the dtype that a run of T tokens is computed in.
    pub(crate) fn for_run(&self, x: &Tensor) -> Result<Tensor> {
        let tokens = x.size().into_iter().nth_back(1).unwrap_or(0);
        let tokens = usize::try_from(tokens).unwrap_or(0);
        let wide = self.widens(tokens);
        in_kind(x, if wide { Kind::Float } else { self.kind })
    }

    pub(crate) fn rope(&self, block: &Block) -> &Rope {
        let local = self.local_rope.as_ref();
        let local = local.filter(|_| block.window().is_some());
        local.unwrap_or(&self.rope)
    }

    pub(crate) fn block(&self, layer: usize) -> Result<&Block> {
        let layers = self.blocks.len();
        self.blocks.get(layer).ok_or_else(|| {
            Error::Invalid(format!(
                "there is no layer {layer}: the model has {layers}, from 0"
            ))
        })
    }

    pub(crate) fn check_layer(&self, layer: usize) -> Result<()> {
        self.block(layer).map(|_| ())
    }

    pub(crate) fn check_ids(&self, ids: &[u32]) -> Result<()> {
        let vocab = self.config.vocab_size;
        match ids.iter().find(|&&id| id as usize >= vocab) {
            None => Ok(()),
            Some(id) => Err(Error::Invalid(format!(
                "token id {id} is not in the vocabulary of {vocab} tokens"
            ))),
        }
    }
}
