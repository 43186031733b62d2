//! What a model is: its architecture and every number that its forward pass
//! needs.
//!
//! Owns [`ModelConfig`], which `config/hf.rs` reads from a Hugging Face
//! `config.json` and `config/gguf.rs` from GGUF metadata. It reads no tensor
//! and knows nothing of libtorch. A configuration that [`ModelConfig::validate`]
//! accepts divides evenly and stays within sane bounds, so the layers built
//! from it need no checks of their own.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

mod gguf;
mod hf;
mod validate;

pub(crate) use hf::token_ids;
use validate::MAX_LAYERS;

/// The architectures that this crate computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Llama 2 and 3, SmolLM.
    Llama,
    /// Mistral 7B and its kin: Llama with an optional sliding window.
    Mistral,
    /// Qwen 2 and 2.5: Llama with biases on the query, key and value.
    Qwen2,
    /// Qwen 3: Llama with normalised queries and keys.
    Qwen3,
    /// Gemma 3, the text half.
    Gemma3,
}

impl Architecture {
    /// Every architecture, in the order in which messages list them.
    pub const ALL: [Self; 5] = [
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Qwen3,
        Self::Gemma3,
    ];

    /// The name used on the command line, in the catalogue and in GGUF.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma3 => "gemma3",
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Architecture {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|architecture| architecture.name() == name)
            .ok_or_else(|| unsupported_architecture(name))
    }
}

pub(crate) fn unsupported_architecture(found: &str) -> Error {
    let names: Vec<&str> = Architecture::ALL
        .into_iter()
        .map(Architecture::name)
        .collect();
    Error::UnsupportedArchitecture {
        found: found.to_owned(),
        supported: names.join(", "),
    }
}

/// How the rotary frequencies are stretched past the trained context.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, and a
    /// smooth passage between them.
    Llama3 {
        /// The divisor of the long wavelengths.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The context of the pre-training, in tokens.
        original_context: usize,
    },
    /// YaRN (Peng et al. 2023).
    Yarn {
        /// The divisor of the interpolated frequencies.
        factor: f64,
        /// The context of the pre-training, in tokens.
        original_context: usize,
        /// Rotations over the original context above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which a frequency is divided by `factor`.
        beta_slow: f64,
        /// What cosine and sine are multiplied by; `None` means
        /// `0.1 ln(factor) + 1`.
        attention_factor: Option<f64>,
    },
    /// One divisor for each of the `head_dim / 2` frequencies, as GGUF files
    /// carry them in the tensor `rope_freqs.weight`.
    Factors(Vec<f64>),
}

/// The activation between the gate and the product of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// The tanh approximation of GELU.
    GeluTanh,
}

/// Everything that the forward pass needs to know, beside the weights.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Which family of layers.
    pub architecture: Architecture,
    /// Rows of the embedding matrix.
    pub vocab_size: usize,
    /// Width of the residual stream (d).
    pub hidden_size: usize,
    /// Width of the MLP (d_ff).
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Epsilon of every RMS norm.
    pub norm_eps: f64,
    /// Longest sequence, in tokens.
    pub context: usize,
    /// Whether the output projection is the embedding matrix.
    pub tied_embeddings: bool,
    /// Base of the rotary frequencies (of the global layers, if there are two).
    pub rope_theta: f64,
    /// Stretching of the rotary frequencies; of the global layers only, if
    /// `rope_local_theta` is set.
    pub rope_scaling: RopeScaling,
    /// Base of the rotary frequencies of sliding layers, never stretched.
    pub rope_local_theta: Option<f64>,
    /// How many tokens a sliding layer looks back, itself included.
    pub sliding_window: Option<usize>,
    /// For each layer, whether it uses the sliding window.
    pub sliding_layers: Vec<bool>,
    /// Whether the query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Whether queries and keys are RMS-normalised per head before rotation.
    pub qk_norm: bool,
    /// Whether attention and MLP outputs are normalised before the residual
    /// addition (Gemma).
    pub post_norms: bool,
    /// Whether an RMS norm multiplies by `1 + weight` (Gemma).
    pub norm_plus_one: bool,
    /// The MLP's activation.
    pub activation: Activation,
    /// What the dot product of query and key is multiplied by.
    pub attention_scale: f64,
    /// What embeddings are multiplied by on their way in.
    pub embedding_scale: f64,
    /// The token that begins a text, if the files name one.
    pub bos: Option<u32>,
    /// The tokens that end an answer.
    pub eos: Vec<u32>,
}

pub(crate) fn config(reason: String) -> Error {
    Error::Config { reason }
}
