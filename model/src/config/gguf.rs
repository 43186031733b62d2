//! GGUF metadata → [`ModelConfig`].
//!
//! The keys are those that llama.cpp's converter writes. GGUF has no name for
//! Mistral: it is the architecture `llama` with a sliding window. Gemma 3's
//! layer pattern, local rotary base and attention scale stand in no key of
//! older files, and are then those of the published models.

use super::{Activation, Architecture, ModelConfig, RopeScaling, config, unsupported_architecture};
use crate::error::Result;
use crate::gguf::GgufFile;

/// Tokens that end an answer wherever they are in the vocabulary, because
/// older files name only one end token.
const KNOWN_ENDS: [&str; 4] = ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>"];

/// The number of layers of Gemma 3 27B, the only size whose attention is
/// scaled by `hidden_size / num_heads` rather than by `head_dim`.
const GEMMA3_27B_LAYERS: usize = 62;

impl ModelConfig {
    /// Reads the metadata of a GGUF file.
    ///
    /// # Errors
    /// [`crate::error::Error::UnsupportedArchitecture`] for another
    /// architecture; [`crate::error::Error::Config`] for metadata that is
    /// missing, of the wrong type, or asks for what is not computed here.
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        let name = file.architecture()?;
        let architecture = match name {
            "llama" if sliding_window(file, name)?.is_some() => Architecture::Mistral,
            "llama" => Architecture::Llama,
            "qwen2" => Architecture::Qwen2,
            "qwen3" => Architecture::Qwen3,
            "gemma3" => Architecture::Gemma3,
            other => return Err(unsupported_architecture(other)),
        };
        let keys = Keys { file, name };
        refuse_what_is_not_computed(&keys)?;
        let model = read(architecture, &keys)?;
        model.validate()?;
        Ok(model)
    }
}

fn sliding_window(file: &GgufFile, name: &str) -> Result<Option<usize>> {
    Ok(file
        .size(&format!("{name}.attention.sliding_window"))?
        .filter(|window| *window > 0))
}

fn refuse_what_is_not_computed(keys: &Keys<'_>) -> Result<()> {
    if keys.size("expert_count")?.unwrap_or(0) > 0 {
        return Err(config("a mixture of experts is not supported".to_owned()));
    }
    for cap in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if keys.number(cap)?.unwrap_or(0.0) != 0.0 {
            return Err(config(format!(
                "`{}.{cap}` is set, which is not supported",
                keys.name
            )));
        }
    }
    for bias in ["blk.0.attn_output.bias", "blk.0.ffn_down.bias"] {
        if keys.file.tensor_shape(bias).is_some() {
            return Err(config(format!("the bias `{bias}` is not supported")));
        }
    }
    Ok(())
}

fn read(architecture: Architecture, keys: &Keys<'_>) -> Result<ModelConfig> {
    let file = keys.file;
    let gemma = architecture == Architecture::Gemma3;
    let hidden_size = keys.need("embedding_length")?;
    let num_layers = keys.need("block_count")?;
    let num_heads = keys.need("attention.head_count")?.max(1);
    let head_dim = keys
        .size("attention.key_length")?
        .unwrap_or(hidden_size / num_heads);
    check_head(keys, head_dim)?;
    let sliding_window = sliding_window(file, keys.name)?;
    let scaled_by = if gemma && num_layers == GEMMA3_27B_LAYERS {
        hidden_size / num_heads
    } else {
        head_dim
    };
    let local_theta = keys.number("rope.freq_base_swa")?.unwrap_or(10_000.0);
    let default_theta = if gemma { 1_000_000.0 } else { 10_000.0 };
    Ok(ModelConfig {
        architecture,
        vocab_size: vocab_size(file)?,
        hidden_size,
        intermediate_size: keys.need("feed_forward_length")?,
        num_layers,
        num_heads,
        num_kv_heads: keys.size("attention.head_count_kv")?.unwrap_or(num_heads),
        head_dim,
        norm_eps: keys
            .number("attention.layer_norm_rms_epsilon")?
            .ok_or_else(|| config("the RMS norm's epsilon is missing".to_owned()))?,
        context: keys.need("context_length")?,
        tied_embeddings: file.tensor_shape("output.weight").is_none(),
        rope_theta: keys.number("rope.freq_base")?.unwrap_or(default_theta),
        rope_scaling: scaling(keys)?,
        rope_local_theta: gemma.then_some(local_theta),
        sliding_window,
        sliding_layers: sliding_layers(architecture, keys, sliding_window, num_layers)?,
        qkv_bias: file.tensor_shape("blk.0.attn_q.bias").is_some(),
        qk_norm: matches!(architecture, Architecture::Qwen3 | Architecture::Gemma3),
        post_norms: gemma,
        norm_plus_one: gemma,
        activation: if gemma {
            Activation::GeluTanh
        } else {
            Activation::Silu
        },
        attention_scale: (scaled_by as f64).powf(-0.5),
        embedding_scale: if gemma {
            (hidden_size as f64).sqrt()
        } else {
            1.0
        },
        bos: file.token("tokenizer.ggml.bos_token_id")?,
        eos: ends(file)?,
    })
}

fn check_head(keys: &Keys<'_>, head_dim: usize) -> Result<()> {
    for key in ["attention.value_length", "rope.dimension_count"] {
        if let Some(value) = keys.size(key)?
            && value != head_dim
        {
            return Err(config(format!(
                "`{}.{key}` is {value}, which is not supported: it must equal the head width of \
                 {head_dim}",
                keys.name
            )));
        }
    }
    Ok(())
}

/// The rows of the embedding matrix: what the logits will have, whatever the
/// metadata says.
fn vocab_size(file: &GgufFile) -> Result<usize> {
    let shape = file.tensor_shape("token_embd.weight");
    shape
        .as_deref()
        .and_then(|shape| shape.first().copied())
        .and_then(|rows| usize::try_from(rows).ok())
        .ok_or_else(|| config("the tensor `token_embd.weight` is missing".to_owned()))
}

fn sliding_layers(
    architecture: Architecture,
    keys: &Keys<'_>,
    window: Option<usize>,
    num_layers: usize,
) -> Result<Vec<bool>> {
    let layers = num_layers.min(super::MAX_LAYERS);
    if window.is_none() {
        return Ok(vec![false; layers]);
    }
    let key = format!("{}.attention.sliding_window_pattern", keys.name);
    if keys.file.is_list(&key) {
        return Ok(keys.file.flags(&key)?.unwrap_or_default().to_vec());
    }
    let period = match keys.file.size(&key)? {
        Some(period) => period,
        None if architecture == Architecture::Gemma3 => 6,
        None => 0,
    };
    // A period of n makes every n-th layer global; 0 makes none global.
    Ok((1..=layers)
        .map(|layer| period == 0 || !layer.is_multiple_of(period))
        .collect())
}

fn scaling(keys: &Keys<'_>) -> Result<RopeScaling> {
    if let Some(factors) = keys.file.read_tensor("rope_freqs.weight")? {
        let factors = Vec::<f64>::try_from(factors.to_kind(tch::Kind::Double).flatten(0, -1))
            .map_err(|source| crate::error::Error::Libtorch {
                what: "reading the rope factors".to_owned(),
                source,
            })?;
        return Ok(RopeScaling::Factors(factors));
    }
    let factor = keys.number("rope.scaling.factor")?;
    let kind = keys.text("rope.scaling.type")?;
    match (kind, factor) {
        (None, None) | (Some("none"), _) => {
            // The spelling of files from before the key `rope.scaling.type`.
            Ok(match keys.number("rope.scale_linear")? {
                Some(factor) if factor != 1.0 => RopeScaling::Linear { factor },
                _ => RopeScaling::None,
            })
        }
        (Some("linear") | None, Some(factor)) => Ok(RopeScaling::Linear { factor }),
        (Some("yarn"), Some(factor)) => Ok(RopeScaling::Yarn {
            factor,
            original_context: keys
                .size("rope.scaling.original_context_length")?
                .unwrap_or(keys.need("context_length")?),
            beta_fast: keys.number("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
            beta_slow: keys.number("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
            attention_factor: keys
                .number("rope.scaling.attn_factor")?
                .map(|multiplier| multiplier * (1.0 + 0.1 * factor.ln())),
        }),
        (Some("linear" | "yarn"), None) => Err(config(format!(
            "`{}.rope.scaling.factor` is missing",
            keys.name
        ))),
        (Some(other), _) => Err(config(format!(
            "rope scaling `{other}` is not supported; supported are linear, llama3 and yarn"
        ))),
    }
}

fn ends(file: &GgufFile) -> Result<Vec<u32>> {
    let mut ends = Vec::new();
    for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        ends.extend(file.token(&format!("tokenizer.ggml.{key}"))?);
    }
    let tokens = file.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
    for (id, token) in (0u32..).zip(tokens) {
        if KNOWN_ENDS.contains(&token.as_str()) {
            ends.push(id);
        }
    }
    ends.sort_unstable();
    ends.dedup();
    Ok(ends)
}

/// The metadata of one architecture: keys without their prefix.
struct Keys<'a> {
    file: &'a GgufFile,
    name: &'a str,
}

impl Keys<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    fn size(&self, key: &str) -> Result<Option<usize>> {
        self.file.size(&self.key(key))
    }

    fn need(&self, key: &str) -> Result<usize> {
        self.file.need_size(&self.key(key))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.file.number(&self.key(key))
    }

    fn text(&self, key: &str) -> Result<Option<&str>> {
        self.file.text(&self.key(key))
    }
}
