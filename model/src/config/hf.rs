//! Hugging Face `config.json` → [`ModelConfig`].
//!
//! Fields that a `config.json` leaves out take the default of the Transformers
//! class, because Transformers leaves out what equals it (Gemma 3's published
//! files name only five fields). A field that would change the forward pass in
//! a way that is not computed here is refused by name, never ignored.

use serde_json::{Map, Value};

use super::{Activation, Architecture, ModelConfig, config, unsupported_architecture};
use crate::error::Result;

mod fields;
mod rope;

use fields::Fields;
use rope::Rope;

/// What Transformers assumes for a field that `config.json` leaves out.
struct Defaults {
    vocab_size: usize,
    num_kv_heads: Option<usize>,
    head_dim: Option<usize>,
    num_heads: Option<usize>,
    context: usize,
    norm_eps: f64,
    rope_theta: f64,
    tied: bool,
}

fn defaults(architecture: Architecture) -> Defaults {
    let llama = Defaults {
        vocab_size: 32_000,
        num_kv_heads: None,
        head_dim: None,
        num_heads: None,
        context: 2048,
        norm_eps: 1e-6,
        rope_theta: 10_000.0,
        tied: false,
    };
    match architecture {
        Architecture::Llama => llama,
        Architecture::Mistral => Defaults {
            num_kv_heads: Some(8),
            context: 131_072,
            ..llama
        },
        Architecture::Qwen2 => Defaults {
            vocab_size: 151_936,
            num_kv_heads: Some(32),
            context: 32_768,
            ..llama
        },
        Architecture::Qwen3 => Defaults {
            vocab_size: 151_936,
            num_kv_heads: Some(32),
            head_dim: Some(128),
            context: 32_768,
            ..llama
        },
        Architecture::Gemma3 => Defaults {
            vocab_size: 262_208,
            num_kv_heads: Some(4),
            head_dim: Some(256),
            num_heads: Some(8),
            context: 131_072,
            norm_eps: 1e-6,
            rope_theta: 1_000_000.0,
            tied: true,
        },
    }
}

impl ModelConfig {
    /// Reads the content of a Hugging Face `config.json`.
    ///
    /// # Errors
    /// [`crate::error::Error::UnsupportedArchitecture`] for another
    /// architecture; [`crate::error::Error::Config`] for a field that is
    /// missing, of the wrong type, or asks for what is not computed here.
    pub fn from_hf_json(json: &Value) -> Result<Self> {
        let root = json
            .as_object()
            .ok_or_else(|| config("config.json holds no object".to_owned()))?;
        let architecture = architecture(root)?;
        let nested = root.get("text_config").and_then(Value::as_object);
        let fields = Fields(nested.unwrap_or(root));
        refuse_what_is_not_computed(&fields)?;
        let model = read(architecture, &fields, &Fields(root))?;
        model.validate()?;
        Ok(model)
    }
}

fn architecture(root: &Map<String, Value>) -> Result<Architecture> {
    let class = root
        .get("architectures")
        .and_then(Value::as_array)
        .and_then(|names| names.first())
        .and_then(Value::as_str);
    let model_type = root.get("model_type").and_then(Value::as_str);
    match (class, model_type) {
        (Some("LlamaForCausalLM"), _) | (None, Some("llama")) => Ok(Architecture::Llama),
        (Some("MistralForCausalLM"), _) | (None, Some("mistral")) => Ok(Architecture::Mistral),
        (Some("Qwen2ForCausalLM"), _) | (None, Some("qwen2")) => Ok(Architecture::Qwen2),
        (Some("Qwen3ForCausalLM"), _) | (None, Some("qwen3")) => Ok(Architecture::Qwen3),
        (
            Some("Gemma3ForCausalLM" | "Gemma3TextForCausalLM" | "Gemma3ForConditionalGeneration"),
            _,
        )
        | (None, Some("gemma3" | "gemma3_text")) => Ok(Architecture::Gemma3),
        (Some(name), _) | (None, Some(name)) => Err(unsupported_architecture(name)),
        (None, None) => Err(config(
            "config.json names neither `architectures` nor `model_type`".to_owned(),
        )),
    }
}

fn refuse_what_is_not_computed(fields: &Fields<'_>) -> Result<()> {
    for name in ["mlp_bias", "use_bidirectional_attention"] {
        if fields.flag(name)?.unwrap_or(false) {
            return Err(config(format!("`{name}` is true, which is not supported")));
        }
    }
    for name in [
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "quantization_config",
    ] {
        if fields.get(name).is_some() {
            return Err(config(format!("`{name}` is set, which is not supported")));
        }
    }
    if let Some(share) = fields.number("partial_rotary_factor")?
        && share != 1.0
    {
        return Err(config(format!(
            "`partial_rotary_factor` is {share}; only 1 is supported"
        )));
    }
    Ok(())
}

fn read(architecture: Architecture, fields: &Fields<'_>, root: &Fields<'_>) -> Result<ModelConfig> {
    let defaults = defaults(architecture);
    let gemma = architecture == Architecture::Gemma3;
    let hidden_size = fields.need("hidden_size")?;
    let num_layers = fields.need("num_hidden_layers")?;
    let num_heads = match fields.size("num_attention_heads")?.or(defaults.num_heads) {
        Some(0) => return Err(config("`num_attention_heads` is 0".to_owned())),
        Some(heads) => heads,
        None => fields.need("num_attention_heads")?,
    };
    let num_kv_heads = fields
        .size("num_key_value_heads")?
        .or(defaults.num_kv_heads)
        .unwrap_or(num_heads);
    let head_dim = fields
        .size("head_dim")?
        .or(defaults.head_dim)
        .unwrap_or(hidden_size / num_heads);
    let (sliding_window, sliding_layers) = sliding(architecture, fields, num_layers)?;
    let rope = Rope::read(architecture, fields, &defaults)?;
    let attention_bias = fields.flag("attention_bias")?.unwrap_or(false);
    if attention_bias {
        return Err(config(
            "`attention_bias` is true, which is not supported".to_owned(),
        ));
    }
    let scaled_by = match fields.number("query_pre_attn_scalar")? {
        Some(scalar) if gemma => scalar,
        None if gemma => 256.0,
        _ => head_dim as f64,
    };
    Ok(ModelConfig {
        architecture,
        vocab_size: fields.size("vocab_size")?.unwrap_or(defaults.vocab_size),
        hidden_size,
        intermediate_size: fields.need("intermediate_size")?,
        num_layers,
        num_heads,
        num_kv_heads,
        head_dim,
        norm_eps: fields.number("rms_norm_eps")?.unwrap_or(defaults.norm_eps),
        context: fields
            .size("max_position_embeddings")?
            .unwrap_or(defaults.context),
        tied_embeddings: match fields.flag("tie_word_embeddings")? {
            Some(tied) => tied,
            None => root.flag("tie_word_embeddings")?.unwrap_or(defaults.tied),
        },
        rope_theta: rope.theta,
        rope_scaling: rope.scaling,
        rope_local_theta: rope.local_theta,
        sliding_window,
        sliding_layers,
        qkv_bias: architecture == Architecture::Qwen2,
        qk_norm: matches!(architecture, Architecture::Qwen3 | Architecture::Gemma3),
        post_norms: gemma,
        norm_plus_one: gemma,
        activation: activation(architecture, fields)?,
        attention_scale: scaled_by.powf(-0.5),
        embedding_scale: if gemma {
            (hidden_size as f64).sqrt()
        } else {
            1.0
        },
        bos: tokens(fields, root, "bos_token_id")?.first().copied(),
        eos: tokens(fields, root, "eos_token_id")?,
    })
}

fn activation(architecture: Architecture, fields: &Fields<'_>) -> Result<Activation> {
    let name = fields
        .text("hidden_activation")?
        .or(fields.text("hidden_act")?);
    match name {
        None if architecture == Architecture::Gemma3 => Ok(Activation::GeluTanh),
        None | Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu_pytorch_tanh" | "gelu_new" | "gelu_fast") => Ok(Activation::GeluTanh),
        Some(other) => Err(config(format!(
            "the activation `{other}` is not supported; supported are silu and gelu_pytorch_tanh"
        ))),
    }
}

/// The window and which layers use it. `layer_types` rules where it is given.
fn sliding(
    architecture: Architecture,
    fields: &Fields<'_>,
    num_layers: usize,
) -> Result<(Option<usize>, Vec<bool>)> {
    let all = |value| vec![value; num_layers.min(super::MAX_LAYERS)];
    let window = match architecture {
        Architecture::Llama => None,
        // Left out means the class's window, null means none.
        Architecture::Mistral if fields.0.contains_key("sliding_window") => {
            fields.size("sliding_window")?
        }
        Architecture::Mistral => Some(4096),
        Architecture::Gemma3 => Some(fields.size("sliding_window")?.unwrap_or(4096)),
        Architecture::Qwen2 | Architecture::Qwen3 => {
            if fields.flag("use_sliding_window")?.unwrap_or(false) {
                Some(fields.size("sliding_window")?.unwrap_or(4096))
            } else {
                None
            }
        }
    };
    if window.is_none() {
        return Ok((None, all(false)));
    }
    let layers = if let Some(types) = fields.get("layer_types") {
        layer_types(types)?
    } else {
        match architecture {
            Architecture::Gemma3 => {
                let period = fields.size("sliding_window_pattern")?.unwrap_or(6).max(1);
                (1..=all(true).len())
                    .map(|layer| !layer.is_multiple_of(period))
                    .collect()
            }
            Architecture::Qwen2 | Architecture::Qwen3 => {
                let first = fields.size("max_window_layers")?.unwrap_or(28);
                (0..all(true).len()).map(|layer| layer >= first).collect()
            }
            _ => all(true),
        }
    };
    Ok((window, layers))
}

fn layer_types(types: &Value) -> Result<Vec<bool>> {
    let types = types
        .as_array()
        .ok_or_else(|| config("`layer_types` must be a list of names".to_owned()))?;
    types
        .iter()
        .map(|kind| match kind.as_str() {
            Some("full_attention") => Ok(false),
            Some("sliding_attention") => Ok(true),
            _ => Err(config(format!(
                "the layer type {kind} is not supported; supported are full_attention and \
                 sliding_attention"
            ))),
        })
        .collect()
}

/// A token id or a list of them, from the text section or from the root.
fn tokens(fields: &Fields<'_>, root: &Fields<'_>, name: &str) -> Result<Vec<u32>> {
    match fields.get(name).or_else(|| root.get(name)) {
        Some(value) => token_ids(value, name),
        None => Ok(Vec::new()),
    }
}

/// A token id or a list of token ids, as `config.json` and
/// `generation_config.json` write them.
pub(crate) fn token_ids(value: &Value, name: &str) -> Result<Vec<u32>> {
    let one = |value: &Value| {
        value
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .ok_or_else(|| {
                config(format!(
                    "`{name}` is {value}; it must be a token id or a list"
                ))
            })
    };
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(ids) => ids.iter().map(one).collect(),
        id => Ok(vec![one(id)?]),
    }
}
