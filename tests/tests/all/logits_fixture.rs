//! The forward pass agrees with Transformers', in f32, on real models.

use crate::models::{GEMMA3, SMOLLM2, open};
use addenda_model::{Input, Transformer};
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// How far a logit may lie from Transformers'.
const TOLERANCE: f64 = 2e-3;

fn agrees_with_transformers(name: &str) {
    let files = open(name);
    let model = Transformer::load(files.config, files.weights, Device::Cpu, Kind::Float).unwrap();
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/logits-{name}.safetensors"));
    let fixture: HashMap<String, Tensor> = Tensor::read_safetensors(path)
        .unwrap()
        .into_iter()
        .collect();
    for length in [5, 60, 700] {
        let part = |what: &str| &fixture[&format!("{length}.{what}")];
        let ids: Vec<u32> = Vec::<i64>::try_from(part("ids"))
            .unwrap()
            .into_iter()
            .map(|id| u32::try_from(id).unwrap())
            .collect();
        assert_eq!(ids.len(), length);
        let mut kv = model.new_kv().unwrap();
        let hidden = model.forward(Input::Ids(&ids), &mut kv).unwrap();
        let logits = model
            .logits(&hidden.index_select(0, part("positions")))
            .unwrap();
        let apart =
            |found: &Tensor, expected: &Tensor| (found - expected).abs().max().double_value(&[]);
        let top = apart(
            &logits.gather(1, part("top_ids"), false),
            part("top_values"),
        );
        let sample = apart(
            &logits.index_select(1, &fixture["sample_ids"]),
            part("sample_values"),
        );
        println!("{name}, {length} tokens: top {top:.1e}, sample {sample:.1e} apart");
        assert!(
            top <= TOLERANCE && sample <= TOLERANCE,
            "{name}, {length} tokens: {top}, {sample}"
        );
        for row in 0..logits.size()[0] {
            let found = ten(&logits.get(row).topk(10, -1, true, true).1);
            let expected = ten(&part("top_ids").get(row).narrow(0, 0, 10));
            assert_eq!(found, expected, "{name}, {length} tokens, position {row}");
        }
    }
}

fn ten(ids: &Tensor) -> BTreeSet<i64> {
    Vec::<i64>::try_from(ids).unwrap().into_iter().collect()
}

#[test]
fn logits_of_smollm2_are_those_of_transformers() {
    agrees_with_transformers(SMOLLM2);
}

#[test]
fn logits_of_gemma3_are_those_of_transformers_past_its_window_too() {
    agrees_with_transformers(GEMMA3);
}
