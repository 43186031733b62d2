//! A GGUF file opens to the model it was made of, whatever llama.cpp's converter
//! did to it, and a damaged or unfitting one is refused with a sentence.

use crate::gguf::{Gguf, Meta};
use crate::tiny;
use crate::weights::refusal;
use addenda_model::{
    Architecture, Input, ModelConfig, ModelFiles, RopeScaling, Tokenizer, Transformer, Weights,
};
use tch::{Device, Kind, Tensor};

fn logits(config: ModelConfig, weights: Weights) -> Tensor {
    let model = Transformer::load(config, weights, Device::Cpu, Kind::Float).unwrap();
    let mut kv = model.new_kv().unwrap();
    let hidden = model
        .forward(Input::Ids(&[1, 7, 33, 96, 4, 4, 50, 8, 21]), &mut kv)
        .unwrap();
    model.logits(&hidden).unwrap()
}

#[test]
fn a_gguf_file_gives_the_logits_of_the_same_tensors_in_memory() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tiny.gguf");
    for architecture in Architecture::ALL {
        let mut gguf = Gguf::tiny(architecture, 11);
        if architecture == Architecture::Gemma3 {
            gguf.set("gemma3.attention.sliding_window_pattern", Meta::Size(3));
            gguf.set("gemma3.rope.freq_base_swa", Meta::Number(1000.0));
        }
        gguf.write(&path);
        let files = ModelFiles::open(directory.path()).unwrap();
        let config = ModelConfig {
            eos: vec![2],
            ..tiny::config(architecture)
        };
        let config = ModelConfig {
            tied_embeddings: files.config.tied_embeddings,
            ..config
        };
        assert_eq!(files.config, config, "{architecture}");
        let _seeded = tiny::seeded(11);
        let expected = logits(
            config.clone(),
            Weights::from_tensors(tiny::tensors(&config)),
        );
        let found = logits(files.config, files.weights);
        let apart = (found - expected).abs().max().double_value(&[]);
        assert!(apart < 1e-4, "{architecture}: {apart}");
    }
}

#[test]
fn a_gguf_file_cut_short_anywhere_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tiny.gguf");
    let bytes = Gguf::tiny(Architecture::Llama, 5).bytes();
    let everywhere_in_the_head = (0..4000).step_by(7);
    let in_the_tensors = (4000..bytes.len()).step_by(bytes.len() / 40);
    for length in everywhere_in_the_head
        .chain(in_the_tensors)
        .chain([bytes.len() - 1])
    {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let error = refusal(&path);
        assert!(error.contains("tiny.gguf"), "{length}: {error}");
    }
}

#[test]
fn a_gguf_file_with_a_flipped_byte_never_panics() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tiny.gguf");
    let bytes = Gguf::tiny(Architecture::Llama, 5).bytes();
    for at in (0..5000).step_by(3) {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            std::fs::write(&path, &damaged).unwrap();
            if let Ok(files) = ModelFiles::open(&path) {
                let _ = Transformer::load(files.config, files.weights, Device::Cpu, Kind::Float);
            }
        }
    }
}

#[test]
fn what_a_gguf_file_asks_for_and_cannot_have_is_told_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tiny.gguf");
    let text = |value: &str| Meta::Text(value.to_owned());
    let cases = [
        ("general.architecture", text("mamba"), "mamba"),
        ("llama.expert_count", Meta::Size(8), "experts"),
        ("llama.rope.scaling.type", text("longrope"), "longrope"),
        (
            "llama.rope.dimension_count",
            Meta::Size(8),
            "rope.dimension_count",
        ),
        ("llama.block_count", Meta::Size(4_000_000_000), "num_layers"),
        ("llama.context_length", text("long"), "llama.context_length"),
        ("tokenizer.ggml.pre", text("invented"), "invented"),
        ("tokenizer.ggml.model", text("rwkv"), "rwkv"),
        (
            "tokenizer.ggml.merges",
            Meta::Texts(vec!["ab".to_owned()]),
            "merges",
        ),
        (
            "tokenizer.ggml.token_type",
            Meta::Kinds(vec![1]),
            "97 tokens",
        ),
        (
            "tokenizer.chat_template",
            text("{% if %}"),
            "does not compile",
        ),
    ];
    for (key, value, part) in cases {
        let mut gguf = Gguf::tiny(Architecture::Llama, 5);
        // A real architecture's keys are kept: only one thing is wrong at a time.
        gguf.set(key, value);
        gguf.write(&path);
        let error = refusal(&path);
        assert!(error.contains(part), "{key}: {error}");
    }
}

#[test]
fn a_gguf_file_carries_rope_scaling_as_factors_or_as_yarn() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tiny.gguf");
    let mut gguf = Gguf::tiny(Architecture::Llama, 5);
    let factors: Vec<f32> = (1_u8..=8).map(f32::from).collect();
    gguf.tensors
        .push(("rope_freqs.weight".to_owned(), Tensor::from_slice(&factors)));
    gguf.write(&path);
    let expected = RopeScaling::Factors((1_u8..=8).map(f64::from).collect());
    assert_eq!(
        ModelFiles::open(&path).unwrap().config.rope_scaling,
        expected
    );
    let mut gguf = Gguf::tiny(Architecture::Qwen2, 5);
    gguf.set("qwen2.rope.scaling.type", Meta::Text("yarn".to_owned()));
    gguf.set("qwen2.rope.scaling.factor", Meta::Number(4.0));
    gguf.set(
        "qwen2.rope.scaling.original_context_length",
        Meta::Size(128),
    );
    gguf.write(&path);
    let RopeScaling::Yarn {
        factor,
        original_context,
        attention_factor,
        ..
    } = ModelFiles::open(&path).unwrap().config.rope_scaling
    else {
        panic!("not yarn");
    };
    assert_eq!(
        (factor, original_context, attention_factor),
        (4.0, 128, None)
    );
}

#[test]
fn a_llama_2_tokenizer_puts_a_space_before_the_text_and_takes_it_away_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tiny.gguf");
    let mut gguf = Gguf::tiny(Architecture::Llama, 5);
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(["▁", "a", "b", "▁a", "ab", "▁ab"].map(str::to_owned));
    let mut scores = vec![0.0; 259];
    scores.extend([-10.0, -11.0, -12.0, -2.0, -1.0, -3.0]);
    let kinds = (0..tokens.len()).map(|id| {
        if id < 3 {
            3
        } else if id < 259 {
            6
        } else {
            1
        }
    });
    gguf.set("tokenizer.ggml.token_type", Meta::Kinds(kinds.collect()));
    gguf.set("tokenizer.ggml.model", Meta::Text("llama".to_owned()));
    gguf.set("tokenizer.ggml.scores", Meta::Scores(scores));
    gguf.set("tokenizer.ggml.tokens", Meta::Texts(tokens));
    gguf.set("tokenizer.ggml.add_bos_token", Meta::Flag(true));
    gguf.write(&path);
    let file = addenda_model::gguf::GgufFile::open(&path).unwrap();
    let tokenizer = Tokenizer::from_gguf(&file, &[2]).unwrap();
    let encoding = tokenizer.encode("ab é</s>").unwrap();
    // "ab" merges before "▁a", then "▁" and "ab" to "▁ab"; é falls back to bytes.
    assert_eq!(encoding.ids, [264, 259, 3 + 0xc3, 3 + 0xa9, 2]);
    assert_eq!(encoding.offsets[0], (0, 2));
    assert_eq!(tokenizer.decode(&encoding.ids).unwrap(), "ab é");
    assert_eq!(tokenizer.text_start(), Some(1));
    let mut stream = tokenizer.stream();
    let parts: Vec<String> = encoding
        .ids
        .iter()
        .map(|id| stream.push(*id).unwrap())
        .collect();
    assert_eq!(
        parts,
        [" ab", " ", "", "é", ""],
        "a stream continues a text"
    );
}
