//! Tensors from a GGUF file, brought back to Hugging Face's names and layout.
//!
//! llama.cpp's converter renames every tensor, reorders the rows of Llama's
//! query and key projections for its own way of rotating, and adds 1 to
//! Gemma's norm weights. This file undoes the three. The permutation is
//! `LlamaModel.permute` of llama.cpp's `convert_hf_to_gguf.py`, inverted.

use std::collections::{BTreeSet, HashMap};

use tch::Tensor;

use crate::config::{Architecture, ModelConfig};
use crate::error::{Error, Result};
use crate::gguf::GgufFile;

/// The tensors of a GGUF file under Hugging Face names.
pub(super) struct GgufTensors {
    file: GgufFile,
    /// Hugging Face name → name in the file.
    places: HashMap<String, String>,
    heads: i64,
    kv_heads: i64,
    permuted: bool,
    norms_plus_one: bool,
}

impl GgufTensors {
    pub(super) fn new(file: GgufFile, config: &ModelConfig) -> Self {
        let gemma = config.architecture == Architecture::Gemma3;
        let places = file
            .tensor_names()
            .filter_map(|stored| Some((hugging_face_name(stored, gemma)?, stored.to_owned())))
            .collect();
        let count = |heads: usize| i64::try_from(heads).unwrap_or(i64::MAX);
        Self {
            file,
            places,
            heads: count(config.num_heads),
            kv_heads: count(config.num_kv_heads),
            permuted: matches!(
                config.architecture,
                Architecture::Llama | Architecture::Mistral
            ),
            norms_plus_one: gemma,
        }
    }

    pub(super) fn names(&self) -> BTreeSet<String> {
        self.places.keys().cloned().collect()
    }

    pub(super) fn shape(&self, name: &str) -> Option<Vec<i64>> {
        self.file.tensor_shape(self.places.get(name)?)
    }

    pub(super) fn location(&self) -> String {
        self.file.path().display().to_string()
    }

    pub(super) fn read(&self, name: &str) -> Result<Option<Tensor>> {
        let Some(stored) = self.places.get(name) else {
            return Ok(None);
        };
        let Some(tensor) = self.file.read_tensor(stored)? else {
            return Ok(None);
        };
        let restored = if self.permuted && name.contains(".self_attn.q_proj.") {
            restore_rotation_order(&tensor, self.heads)
        } else if self.permuted && name.contains(".self_attn.k_proj.") {
            restore_rotation_order(&tensor, self.kv_heads)
        } else if self.norms_plus_one && name.ends_with("norm.weight") {
            tensor.f_sub_scalar(1.0)
        } else {
            Ok(tensor)
        };
        restored.map(Some).map_err(|source| Error::Libtorch {
            what: format!("restoring the layout of the tensor `{name}`"),
            source,
        })
    }
}

/// Undoes llama.cpp's permutation of the rows of a query or key projection,
/// `[heads · head_dim, ..]`: rows that it interleaved for rotation in
/// neighbouring pairs return to the two halves that Hugging Face rotates.
fn restore_rotation_order(
    tensor: &Tensor,
    heads: i64,
) -> std::result::Result<Tensor, tch::TchError> {
    let shape = tensor.size();
    let rows = shape.first().copied().unwrap_or(0);
    let mut split = vec![heads, rows / heads / 2, 2];
    split.extend(shape.iter().skip(1));
    tensor
        .f_reshape(&split)?
        .f_transpose(1, 2)?
        .f_contiguous()?
        .f_reshape(&shape)
}

/// `None` for a tensor that is no weight of the transformer.
fn hugging_face_name(stored: &str, gemma: bool) -> Option<String> {
    match stored {
        "token_embd.weight" => return Some("model.embed_tokens.weight".to_owned()),
        "output_norm.weight" => return Some("model.norm.weight".to_owned()),
        "output.weight" => return Some("lm_head.weight".to_owned()),
        // Read by `config/gguf.rs`.
        "rope_freqs.weight" => return None,
        _ => {}
    }
    let named = || {
        let (layer, rest) = stored.strip_prefix("blk.")?.split_once('.')?;
        let (part, kind) = rest.rsplit_once('.')?;
        let part = match part {
            "attn_q" => "self_attn.q_proj",
            "attn_k" => "self_attn.k_proj",
            "attn_v" => "self_attn.v_proj",
            "attn_output" => "self_attn.o_proj",
            "attn_q_norm" => "self_attn.q_norm",
            "attn_k_norm" => "self_attn.k_norm",
            "attn_norm" => "input_layernorm",
            "ffn_norm" if gemma => "pre_feedforward_layernorm",
            "ffn_norm" => "post_attention_layernorm",
            "post_attention_norm" => "post_attention_layernorm",
            "post_ffw_norm" => "post_feedforward_layernorm",
            "ffn_gate" => "mlp.gate_proj",
            "ffn_up" => "mlp.up_proj",
            "ffn_down" => "mlp.down_proj",
            _ => return None,
        };
        Some(format!("model.layers.{layer}.{part}.{kind}"))
    };
    // An unknown tensor keeps its name, so that `unused` shows it.
    Some(named().unwrap_or_else(|| stored.to_owned()))
}
