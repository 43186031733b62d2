//! Writes small GGUF files, as llama.cpp's converter lays a model out.

use crate::tiny;
use addenda_model::{Architecture, ModelConfig};
use std::path::Path;
use tch::{Kind, Tensor};

/// A metadata value.
pub(crate) enum Meta {
    Size(u32),
    Number(f32),
    Flag(bool),
    Text(String),
    Texts(Vec<String>),
    Kinds(Vec<i32>),
    Scores(Vec<f32>),
}

/// A file to be: metadata, and tensors in f32 under the names of the file.
pub(crate) struct Gguf {
    pub(crate) metadata: Vec<(String, Meta)>,
    pub(crate) tensors: Vec<(String, Tensor)>,
}

const ALIGNMENT: usize = 32;

impl Gguf {
    /// A tiny model with the tensors of [`tiny::tensors`] in llama.cpp's names
    /// and layout, and a byte-level tokenizer of the 97 tokens it needs.
    pub(crate) fn tiny(architecture: Architecture, seed: i64) -> Self {
        let config = tiny::config(architecture);
        let _seeded = tiny::seeded(seed);
        let mut tensors: Vec<(String, Tensor)> = tiny::tensors(&config)
            .into_iter()
            .map(|(name, tensor)| {
                let tensor = converted(&name, tensor, &config);
                (llama_cpp_name(&name, architecture), tensor)
            })
            .collect();
        tensors.sort_by(|left, right| left.0.cmp(&right.0));
        Self {
            metadata: metadata(&config),
            tensors,
        }
    }

    /// Replaces or adds a metadata value.
    pub(crate) fn set(&mut self, key: &str, value: Meta) {
        self.metadata.retain(|(name, _)| name != key);
        self.metadata.push((key.to_owned(), value));
    }

    pub(crate) fn write(&self, path: &Path) {
        std::fs::write(path, self.bytes()).unwrap();
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            text(&mut out, key);
            meta(&mut out, value);
        }
        let mut data = Vec::new();
        for (name, tensor) in &self.tensors {
            text(&mut out, name);
            let shape = tensor.size();
            out.extend((shape.len() as u32).to_le_bytes());
            shape
                .iter()
                .rev()
                .for_each(|side| out.extend((*side as u64).to_le_bytes()));
            out.extend(0_u32.to_le_bytes());
            data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
            out.extend((data.len() as u64).to_le_bytes());
            let values = Vec::<f32>::try_from(tensor.to_kind(Kind::Float).flatten(0, -1)).unwrap();
            data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        out.extend(data);
        out
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn meta(out: &mut Vec<u8>, value: &Meta) {
    let mut list = |kind: u32, length: usize| {
        out.extend(9_u32.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend((length as u64).to_le_bytes());
    };
    match value {
        Meta::Texts(texts) => {
            list(8, texts.len());
            texts.iter().for_each(|one| text(out, one));
        }
        Meta::Kinds(kinds) => {
            list(5, kinds.len());
            kinds.iter().for_each(|kind| out.extend(kind.to_le_bytes()));
        }
        Meta::Scores(scores) => {
            list(6, scores.len());
            scores
                .iter()
                .for_each(|score| out.extend(score.to_le_bytes()));
        }
        Meta::Size(size) => {
            out.extend(4_u32.to_le_bytes());
            out.extend(size.to_le_bytes());
        }
        Meta::Number(number) => {
            out.extend(6_u32.to_le_bytes());
            out.extend(number.to_le_bytes());
        }
        Meta::Flag(flag) => {
            out.extend(7_u32.to_le_bytes());
            out.push(u8::from(*flag));
        }
        Meta::Text(one) => {
            out.extend(8_u32.to_le_bytes());
            text(out, one);
        }
    }
}

fn metadata(config: &ModelConfig) -> Vec<(String, Meta)> {
    // GGUF knows Mistral as llama with a window.
    let name = match config.architecture {
        Architecture::Mistral => "llama",
        other => other.name(),
    };
    let size = |value: usize| Meta::Size(value as u32);
    let mut all = vec![
        (
            "general.architecture".to_owned(),
            Meta::Text(name.to_owned()),
        ),
        (format!("{name}.context_length"), size(config.context)),
        (format!("{name}.embedding_length"), size(config.hidden_size)),
        (format!("{name}.block_count"), size(config.num_layers)),
        (
            format!("{name}.feed_forward_length"),
            size(config.intermediate_size),
        ),
        (
            format!("{name}.attention.head_count"),
            size(config.num_heads),
        ),
        (
            format!("{name}.attention.head_count_kv"),
            size(config.num_kv_heads),
        ),
        (
            format!("{name}.attention.key_length"),
            size(config.head_dim),
        ),
        (
            format!("{name}.attention.layer_norm_rms_epsilon"),
            Meta::Number(config.norm_eps as f32),
        ),
        (
            format!("{name}.rope.freq_base"),
            Meta::Number(config.rope_theta as f32),
        ),
        (
            "tokenizer.ggml.model".to_owned(),
            Meta::Text("gpt2".to_owned()),
        ),
        (
            "tokenizer.ggml.pre".to_owned(),
            Meta::Text("gpt-2".to_owned()),
        ),
        ("tokenizer.ggml.bos_token_id".to_owned(), Meta::Size(1)),
        ("tokenizer.ggml.eos_token_id".to_owned(), Meta::Size(2)),
        (
            "tokenizer.ggml.tokens".to_owned(),
            Meta::Texts(tokens(config.vocab_size)),
        ),
        (
            "tokenizer.ggml.token_type".to_owned(),
            Meta::Kinds(kinds(config.vocab_size)),
        ),
        (
            "tokenizer.ggml.merges".to_owned(),
            Meta::Texts(vec!["a b".to_owned()]),
        ),
    ];
    if let Some(window) = config.sliding_window {
        all.push((format!("{name}.attention.sliding_window"), size(window)));
    }
    all
}

/// `<unk>`, `<s>`, `</s>`, printable ASCII from `!` on, and `ab` at the end.
fn tokens(count: usize) -> Vec<String> {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend(('!'..='~').take(count - 4).map(String::from));
    tokens.resize_with(count - 1, || "Ġ".to_owned());
    tokens.push("ab".to_owned());
    tokens
}

fn kinds(count: usize) -> Vec<i32> {
    (0..count).map(|id| if id < 3 { 3 } else { 1 }).collect()
}

/// What llama.cpp's converter does to a tensor.
fn converted(name: &str, tensor: Tensor, config: &ModelConfig) -> Tensor {
    let llama = matches!(
        config.architecture,
        Architecture::Llama | Architecture::Mistral
    );
    let heads = match name {
        _ if name.contains("q_proj") => Some(config.num_heads),
        _ if name.contains("k_proj") => Some(config.num_kv_heads),
        _ => None,
    };
    match heads {
        Some(heads) if llama => {
            let shape = tensor.size();
            let split = [heads as i64, 2, shape[0] / heads as i64 / 2, shape[1]];
            tensor
                .reshape(split)
                .transpose(1, 2)
                .contiguous()
                .reshape(shape)
        }
        _ if config.norm_plus_one && name.ends_with("norm.weight") => tensor + 1.0,
        _ => tensor,
    }
}

fn llama_cpp_name(name: &str, architecture: Architecture) -> String {
    let ffn_norm = if architecture == Architecture::Gemma3 {
        [
            ("post_attention_layernorm", "post_attention_norm"),
            ("pre_feedforward_layernorm", "ffn_norm"),
        ]
    } else {
        [("post_attention_layernorm", "ffn_norm"), ("", "")]
    };
    let mut name = name.replace("model.layers.", "blk.");
    for (from, to) in [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("input_layernorm", "attn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
        ffn_norm[0],
        ffn_norm[1],
    ] {
        if !from.is_empty() {
            name = name.replace(from, to);
        }
    }
    name
}
