//! Weights come out the same whatever file they lie in, and a damaged or
//! unfitting file is refused with a sentence.

use crate::models::{GEMMA3, SMOLLM2, open, path};
use crate::tiny;
use crate::tokenizer::word_tokenizer;
use addenda_model::{Architecture, ChatMessage, ModelConfig, ModelFiles, Transformer, Weights};
use serde_json::json;
use std::collections::HashMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Writes a Hugging Face directory of a tiny Llama, its tensors in `shards` files.
pub(crate) fn write_directory(directory: &Path, shards: usize) -> HashMap<String, Tensor> {
    let config = ModelConfig {
        // As many as the tokenizer has.
        vocab_size: 6,
        ..tiny::config(Architecture::Llama)
    };
    let _seeded = tiny::seeded(3);
    let tensors = tiny::tensors(&config);
    let json = json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers, "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads, "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_eps, "max_position_embeddings": config.context,
        "bos_token_id": 2, "eos_token_id": 3
    });
    let write = |name: &str, text: String| std::fs::write(directory.join(name), text).unwrap();
    write("config.json", json.to_string());
    write(
        "generation_config.json",
        json!({ "eos_token_id": [3, 5] }).to_string(),
    );
    write(
        "tokenizer.json",
        String::from_utf8(word_tokenizer("ByteLevel")).unwrap(),
    );
    write(
        "tokenizer_config.json",
        json!({
            "add_bos_token": true, "bos_token": { "content": "<start>" }, "eos_token": "<end>",
            "chat_template": [
                { "name": "other", "template": "no" },
                { "name": "default", "template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}" }
            ]
        })
        .to_string(),
    );
    let mut names: Vec<&String> = tensors.keys().collect();
    names.sort();
    let mut map = serde_json::Map::new();
    for (index, part) in names.chunks(names.len().div_ceil(shards)).enumerate() {
        let file = if shards == 1 {
            "model.safetensors".to_owned()
        } else {
            format!("model-{index}-of-{shards}.safetensors")
        };
        let part: Vec<(&String, &Tensor)> =
            part.iter().map(|name| (*name, &tensors[*name])).collect();
        Tensor::write_safetensors(&part, directory.join(&file)).unwrap();
        map.extend(part.iter().map(|(name, _)| ((*name).clone(), json!(file))));
    }
    if shards > 1 {
        write(
            "model.safetensors.index.json",
            json!({ "weight_map": map }).to_string(),
        );
    }
    tensors
}

/// What a path is refused with.
pub(crate) fn refusal(path: &Path) -> String {
    match ModelFiles::open(path) {
        Ok(_) => panic!("{} opened", path.display()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_directory_opens_whole_and_in_shards_to_the_same_model() {
    let (whole, sharded) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let tensors = write_directory(whole.path(), 1);
    write_directory(sharded.path(), 3);
    for directory in [&whole, &sharded] {
        let mut files = ModelFiles::open(directory.path()).unwrap();
        assert_eq!(files.config.eos, [3, 5], "the ends of both configurations");
        assert_eq!(files.tokenizer.text_start(), Some(2));
        assert!(files.tokenizer.is_end(5));
        let message = ChatMessage {
            role: "user".to_owned(),
            content: "hi".to_owned(),
        };
        let text = files
            .chat_template
            .unwrap()
            .render(&[message], false)
            .unwrap();
        assert_eq!(text, "<start>hi<end>");
        for (name, tensor) in &tensors {
            assert_eq!(
                &files.weights.take(name, &tensor.size()).unwrap(),
                tensor,
                "{name}"
            );
        }
        assert!(files.weights.unused().is_empty());
    }
    let one = ModelFiles::open(whole.path()).unwrap().fingerprint;
    assert_eq!(one, ModelFiles::open(whole.path()).unwrap().fingerprint);
    assert_ne!(one, ModelFiles::open(sharded.path()).unwrap().fingerprint);
}

#[test]
fn a_wrong_shape_is_told_with_the_tensor_the_file_and_both_shapes() {
    let directory = tempfile::tempdir().unwrap();
    write_directory(directory.path(), 1);
    let mut weights = Weights::from_safetensors(directory.path()).unwrap();
    let error = weights
        .take("model.norm.weight", &[33])
        .unwrap_err()
        .to_string();
    for part in ["model.norm.weight", "model.safetensors", "[32]", "[33]"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(
        weights.take("model.norm.weight", &[32]).is_ok(),
        "it is still there"
    );
    assert!(
        weights.take("model.norm.weight", &[32]).is_err(),
        "it was taken"
    );
}

#[test]
fn a_missing_tensor_is_told_with_its_name_when_the_model_is_loaded() {
    let config = tiny::config(Architecture::Qwen2);
    let mut tensors = tiny::tensors(&config);
    tensors.remove("model.layers.2.self_attn.k_proj.bias");
    let weights = Weights::from_tensors(tensors);
    let error = Transformer::load(config, weights, Device::Cpu, Kind::Float)
        .err()
        .unwrap();
    assert!(
        error
            .to_string()
            .contains("model.layers.2.self_attn.k_proj.bias"),
        "{error}"
    );
}

#[test]
fn a_safetensors_file_cut_short_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    write_directory(directory.path(), 1);
    let path = directory.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    for length in [0, 4, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let error = refusal(directory.path());
        assert!(error.contains("model.safetensors"), "{length}: {error}");
    }
}

#[test]
fn an_index_that_names_a_file_elsewhere_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    write_directory(directory.path(), 2);
    let index = json!({ "weight_map": { "model.norm.weight": "../../etc/passwd" } });
    std::fs::write(
        directory.path().join("model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
    assert!(refusal(directory.path()).contains("../../etc/passwd"));
}

#[test]
fn a_path_that_holds_no_model_is_refused_with_what_was_looked_for() {
    let directory = tempfile::tempdir().unwrap();
    assert!(refusal(directory.path()).contains("config.json"));
    assert!(refusal(&directory.path().join("none.gguf")).contains("none.gguf"));
    let text = directory.path().join("notes.gguf");
    std::fs::write(&text, "these are notes").unwrap();
    assert!(refusal(&text).contains("notes.gguf"));
    std::fs::write(directory.path().join("config.json"), "{ nope").unwrap();
    assert!(refusal(directory.path()).contains("JSON"));
}

#[test]
fn the_real_files_hold_every_tensor_that_their_configuration_needs_and_no_other() {
    for name in [SMOLLM2, GEMMA3] {
        let mut files = open(name);
        let config = files.config.clone();
        assert!(config.tied_embeddings);
        assert_eq!(files.path, path(name));
        let size = |value: usize| i64::try_from(value).unwrap();
        let (d, wide, head) = (
            size(config.hidden_size),
            size(config.intermediate_size),
            size(config.head_dim),
        );
        let heads = [
            size(config.num_heads) * head,
            size(config.num_kv_heads) * head,
        ];
        let mut take = |name: String, shape: &[i64]| {
            let tensor = files.weights.take(&name, shape).unwrap();
            assert_eq!(tensor.kind(), Kind::Float);
            assert!(bool::try_from(tensor.isfinite().all()).unwrap(), "{name}");
        };
        take(
            "model.embed_tokens.weight".to_owned(),
            &[size(config.vocab_size), d],
        );
        take("model.norm.weight".to_owned(), &[d]);
        for layer in 0..config.num_layers {
            let mut part = |part: &str, shape: &[i64]| {
                take(format!("model.layers.{layer}.{part}.weight"), shape);
            };
            part("self_attn.q_proj", &[heads[0], d]);
            part("self_attn.k_proj", &[heads[1], d]);
            part("self_attn.v_proj", &[heads[1], d]);
            part("self_attn.o_proj", &[d, heads[0]]);
            part("mlp.gate_proj", &[wide, d]);
            part("mlp.up_proj", &[wide, d]);
            part("mlp.down_proj", &[d, wide]);
            part("input_layernorm", &[d]);
            part("post_attention_layernorm", &[d]);
            if config.qk_norm {
                part("self_attn.q_norm", &[head]);
                part("self_attn.k_norm", &[head]);
            }
            if config.post_norms {
                part("pre_feedforward_layernorm", &[d]);
                part("post_feedforward_layernorm", &[d]);
            }
        }
        assert!(
            files.weights.unused().is_empty(),
            "{:?}",
            files.weights.unused()
        );
    }
}
