//! Random models of every architecture, small enough to be made in a test.

use addenda_model::{Activation, Architecture, ModelConfig, RopeScaling, Transformer, Weights};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tch::{Device, Kind, Tensor};

/// The shape of a tiny model: 4 layers of width 32.
pub(crate) fn config(architecture: Architecture) -> ModelConfig {
    let gemma = architecture == Architecture::Gemma3;
    ModelConfig {
        architecture,
        vocab_size: 97,
        hidden_size: 32,
        intermediate_size: 48,
        num_layers: 4,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 16,
        norm_eps: 1e-6,
        context: 512,
        tied_embeddings: gemma,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        rope_local_theta: gemma.then_some(1_000.0),
        sliding_window: matches!(architecture, Architecture::Gemma3 | Architecture::Mistral)
            .then_some(7),
        sliding_layers: match architecture {
            Architecture::Gemma3 => vec![true, true, false, true],
            Architecture::Mistral => vec![true; 4],
            _ => vec![false; 4],
        },
        qkv_bias: architecture == Architecture::Qwen2,
        qk_norm: matches!(architecture, Architecture::Qwen3 | Architecture::Gemma3),
        post_norms: gemma,
        norm_plus_one: gemma,
        activation: if gemma {
            Activation::GeluTanh
        } else {
            Activation::Silu
        },
        attention_scale: 0.25,
        embedding_scale: if gemma { 32_f64.sqrt() } else { 1.0 },
        bos: Some(1),
        eos: vec![2],
    }
}

/// Seeds libtorch's generator and keeps it from other tests for as long as the guard lives: it belongs to the whole
/// process, and tests that draw at the same time would share one row of numbers.
pub(crate) fn seeded(seed: i64) -> MutexGuard<'static, ()> {
    static GENERATOR: Mutex<()> = Mutex::new(());
    let guard = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    tch::manual_seed(seed);
    guard
}

/// A model of `config` with normally distributed weights; the same seed gives the same model.
pub(crate) fn model(config: ModelConfig, seed: i64, kind: Kind) -> Transformer {
    let _seeded = seeded(seed);
    let weights = Weights::from_tensors(tensors(&config));
    Transformer::load(config, weights, Device::Cpu, kind).expect("a tiny model loads")
}

/// Every tensor of a model of `config`, under its Hugging Face name.
pub(crate) fn tensors(config: &ModelConfig) -> HashMap<String, Tensor> {
    let size = |value: usize| i64::try_from(value).expect("a small size");
    let (d, wide) = (size(config.hidden_size), size(config.intermediate_size));
    let (queries, keys) = (size(config.num_heads), size(config.num_kv_heads));
    let (head, vocab) = (size(config.head_dim), size(config.vocab_size));
    let random =
        |shape: &[i64], scale: f64| Tensor::randn(shape, (Kind::Float, Device::Cpu)) * scale;
    let norm = |width: i64| {
        let around = if config.norm_plus_one { 0.0 } else { 1.0 };
        random(&[width], 0.2) + around
    };
    let mut tensors = HashMap::from([
        (
            "model.embed_tokens.weight".to_owned(),
            random(&[vocab, d], 0.5),
        ),
        ("model.norm.weight".to_owned(), norm(d)),
    ]);
    if !config.tied_embeddings {
        tensors.insert("lm_head.weight".to_owned(), random(&[vocab, d], 0.3));
    }
    for layer in 0..config.num_layers {
        let mut put = |name: &str, tensor: Tensor| {
            tensors.insert(format!("model.layers.{layer}.{name}"), tensor);
        };
        for (name, heads) in [("q", queries), ("k", keys), ("v", keys)] {
            put(
                &format!("self_attn.{name}_proj.weight"),
                random(&[heads * head, d], 0.3),
            );
            if config.qkv_bias {
                put(
                    &format!("self_attn.{name}_proj.bias"),
                    random(&[heads * head], 0.3),
                );
            }
        }
        put("self_attn.o_proj.weight", random(&[d, queries * head], 0.2));
        if config.qk_norm {
            put("self_attn.q_norm.weight", norm(head));
            put("self_attn.k_norm.weight", norm(head));
        }
        put("mlp.gate_proj.weight", random(&[wide, d], 0.2));
        put("mlp.up_proj.weight", random(&[wide, d], 0.2));
        put("mlp.down_proj.weight", random(&[d, wide], 0.2));
        put("input_layernorm.weight", norm(d));
        put("post_attention_layernorm.weight", norm(d));
        if config.post_norms {
            put("pre_feedforward_layernorm.weight", norm(d));
            put("post_feedforward_layernorm.weight", norm(d));
        }
    }
    tensors
}
