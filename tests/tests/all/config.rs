//! Configurations are read as Transformers reads them, and what cannot be
//! computed is refused by name.

use addenda_model::{Activation, Architecture, ModelConfig, RopeScaling};
use serde_json::{Value, json};

fn base(class: &str) -> Value {
    json!({
        "architectures": [class], "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 100, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "bos_token_id": 1, "eos_token_id": [2, 3]
    })
}

fn with(class: &str, fields: &Value) -> addenda_model::Result<ModelConfig> {
    let mut config = base(class);
    let more = fields.as_object().unwrap().clone();
    config.as_object_mut().unwrap().extend(more);
    ModelConfig::from_hf_json(&config)
}

#[test]
fn llama_reads_with_its_defaults() {
    let config = with("LlamaForCausalLM", &json!({})).unwrap();
    assert_eq!(config.architecture, Architecture::Llama);
    assert_eq!((config.head_dim, config.context), (16, 4096));
    assert_eq!((config.bos, config.eos), (Some(1), vec![2, 3]));
    assert_eq!(config.rope_theta, 10_000.0);
    assert_eq!(config.attention_scale, 0.25);
    assert!(!config.tied_embeddings && !config.qkv_bias && !config.qk_norm);
    assert_eq!(config.sliding_layers, vec![false; 8]);
}

#[test]
fn rope_scalings_read_in_the_old_spelling_and_the_new() {
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 2048
    });
    let expected = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 2048,
    };
    let old = json!({ "rope_theta": 500_000.0, "rope_scaling": llama3 });
    let mut new = llama3;
    new["rope_theta"] = json!(500_000.0);
    for fields in [old, json!({ "rope_parameters": new })] {
        let config = with("LlamaForCausalLM", &fields).unwrap();
        assert_eq!(
            (config.rope_theta, &config.rope_scaling),
            (500_000.0, &expected)
        );
    }
    let yarn = json!({
        "rope_scaling": { "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024 }
    });
    let RopeScaling::Yarn {
        factor,
        original_context,
        beta_fast,
        beta_slow,
        attention_factor,
    } = with("Qwen2ForCausalLM", &yarn).unwrap().rope_scaling
    else {
        panic!("not yarn");
    };
    assert_eq!((factor, original_context), (4.0, 1024));
    assert_eq!((beta_fast, beta_slow, attention_factor), (32.0, 1.0, None));
    let linear = json!({ "rope_scaling": { "type": "linear", "factor": 2.0 } });
    assert_eq!(
        with("LlamaForCausalLM", &linear).unwrap().rope_scaling,
        RopeScaling::Linear { factor: 2.0 }
    );
}

#[test]
fn mistral_slides_unless_its_window_is_null() {
    let none = with("MistralForCausalLM", &json!({ "sliding_window": null })).unwrap();
    assert_eq!(
        (none.sliding_window, none.sliding_layers),
        (None, vec![false; 8])
    );
    let some = with("MistralForCausalLM", &json!({ "sliding_window": 128 })).unwrap();
    assert_eq!(
        (some.sliding_window, some.sliding_layers),
        (Some(128), vec![true; 8])
    );
}

#[test]
fn qwen_slides_only_where_it_is_told_to() {
    let off = json!({ "sliding_window": 128, "use_sliding_window": false });
    let config = with("Qwen2ForCausalLM", &off).unwrap();
    assert_eq!(config.sliding_window, None);
    assert!(config.qkv_bias && !config.qk_norm);
    let upper =
        json!({ "sliding_window": 128, "use_sliding_window": true, "max_window_layers": 6 });
    let config = with("Qwen2ForCausalLM", &upper).unwrap();
    assert_eq!(
        config
            .sliding_layers
            .iter()
            .filter(|slides| **slides)
            .count(),
        2
    );
    let typed = json!({
        "sliding_window": 128, "use_sliding_window": true,
        "layer_types": ["sliding_attention", "full_attention", "full_attention", "full_attention",
                        "full_attention", "full_attention", "full_attention", "full_attention"]
    });
    let config = with("Qwen3ForCausalLM", &typed).unwrap();
    assert!(config.sliding_layers[0] && !config.sliding_layers[1]);
    assert!(config.qk_norm && !config.qkv_bias);
    assert_eq!(
        config.head_dim, 128,
        "Qwen 3's default head is wider than its share"
    );
}

#[test]
fn gemma3_reads_from_its_text_half_with_the_defaults_that_its_files_leave_out() {
    let config = ModelConfig::from_hf_json(&json!({
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
        "eos_token_id": [1, 106],
        "text_config": {
            "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240,
            "num_hidden_layers": 34, "sliding_window": 1024,
            "rope_scaling": { "factor": 8.0, "rope_type": "linear" }
        }
    }))
    .unwrap();
    assert_eq!(
        (config.num_heads, config.num_kv_heads, config.head_dim),
        (8, 4, 256)
    );
    assert_eq!((config.vocab_size, config.context), (262_208, 131_072));
    assert_eq!(config.rope_scaling, RopeScaling::Linear { factor: 8.0 });
    assert_eq!(
        (config.rope_theta, config.rope_local_theta),
        (1e6, Some(1e4))
    );
    assert_eq!(config.activation, Activation::GeluTanh);
    assert_eq!(config.eos, [1, 106]);
    assert!(config.tied_embeddings && config.post_norms && config.norm_plus_one);
    let global: Vec<usize> = (0..34)
        .filter(|layer| !config.sliding_layers[*layer])
        .collect();
    assert_eq!(global, [5, 11, 17, 23, 29]);
    assert_eq!(config.attention_scale, 1.0 / 16.0);
    assert!((config.embedding_scale - 2560_f64.sqrt()).abs() < 1e-12);
}

#[test]
fn gemma3_reads_two_rotary_bases_from_rope_parameters() {
    let fields = json!({
        "rope_parameters": {
            "full_attention": { "rope_type": "linear", "factor": 4.0, "rope_theta": 2e6 },
            "sliding_attention": { "rope_type": "default", "rope_theta": 3e4 }
        }
    });
    let config = with("Gemma3ForCausalLM", &fields).unwrap();
    assert_eq!(
        (config.rope_theta, config.rope_local_theta),
        (2e6, Some(3e4))
    );
    assert_eq!(config.rope_scaling, RopeScaling::Linear { factor: 4.0 });
}

#[test]
fn an_unknown_architecture_is_named_with_those_that_are_known() {
    let error = with("MambaForCausalLM", &json!({}))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("MambaForCausalLM") && error.contains("qwen3"),
        "{error}"
    );
}

#[test]
fn what_is_not_computed_is_refused_by_name() {
    let cases = [
        (json!({ "attention_bias": true }), "attention_bias"),
        (json!({ "mlp_bias": true }), "mlp_bias"),
        (
            json!({ "final_logit_softcapping": 30.0 }),
            "final_logit_softcapping",
        ),
        (
            json!({ "rope_scaling": { "rope_type": "longrope" } }),
            "longrope",
        ),
        (json!({ "hidden_act": "relu" }), "relu"),
        (
            json!({ "partial_rotary_factor": 0.5 }),
            "partial_rotary_factor",
        ),
        (
            json!({ "quantization_config": { "quant_method": "gptq" } }),
            "quantization_config",
        ),
    ];
    for (fields, name) in cases {
        let error = with("LlamaForCausalLM", &fields).unwrap_err().to_string();
        assert!(error.contains(name), "{name}: {error}");
    }
}

#[test]
fn numbers_that_do_not_fit_are_refused_before_anything_is_allocated() {
    let cases = [
        (
            json!({ "num_hidden_layers": 1_000_000_000_000_u64 }),
            "num_layers",
        ),
        (json!({ "num_attention_heads": 0 }), "num_attention_heads"),
        (json!({ "num_key_value_heads": 3 }), "evenly"),
        (json!({ "head_dim": 15 }), "even"),
        (json!({ "vocab_size": -1 }), "vocab_size"),
        (json!({ "rms_norm_eps": "small" }), "rms_norm_eps"),
        (json!({ "eos_token_id": 100 }), "vocabulary"),
        (json!({ "hidden_size": null }), "hidden_size"),
    ];
    for (fields, name) in cases {
        let error = with("LlamaForCausalLM", &fields).unwrap_err().to_string();
        assert!(error.contains(name), "{name}: {error}");
    }
}
