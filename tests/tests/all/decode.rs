//! Decode steps: many sequences together give what each gives alone, also from packed weights.

use crate::tiny;
use crate::transformer::{furthest, ids, serve, serve_by_kernels, study, variants};
use addenda_model::{Architecture, Mask, Packing, SequenceKv, Transformer};
use std::collections::BTreeMap;
use std::rc::Rc;
use tch::{Kind, Tensor};

/// Contexts of several lengths: own tokens, then a packet in the middle of some, then own tokens.
pub(crate) fn contexts(model: &Transformer) -> Vec<SequenceKv> {
    let mut alone = model.new_kv().unwrap();
    let _ = serve(model, &ids(21, 9), &mut alone);
    let packet = Rc::new(model.packet(alone).unwrap());
    let lengths = [(3, true), (30, false), (7, true), (1, false), (12, true)];
    let contexts = lengths
        .iter()
        .zip(0..)
        .map(|(&(tokens, with_packet), salt)| {
            let mut kv = model.new_kv().unwrap();
            let _ = serve(model, &ids(tokens, salt), &mut kv);
            if with_packet {
                kv.attach(Rc::clone(&packet)).unwrap();
                let _ = serve(model, &ids(4, salt + 50), &mut kv);
            }
            kv
        });
    contexts.collect()
}

/// Logits `[steps, sequences, V]` of a few tokens behind each of `contexts`, computed together.
fn decoded(model: &Transformer, contexts: &mut [SequenceKv]) -> Tensor {
    let steps = (0..4_u32).map(|step| {
        let ids: Vec<u32> = (0..contexts.len() as u32).map(|i| 7 * step + i).collect();
        let mut kvs: Vec<&mut SequenceKv> = contexts.iter_mut().collect();
        let hidden = model.decode(&ids, &mut kvs).unwrap();
        model.decode_logits(&hidden).unwrap()
    });
    Tensor::stack(&steps.collect::<Vec<_>>(), 0)
}

/// The same with every sequence by itself.
fn decoded_alone(model: &Transformer, contexts: &mut [SequenceKv]) -> Tensor {
    let each = contexts.iter_mut().enumerate().map(|(index, kv)| {
        let steps = (0..4_u32).map(|step| {
            let hidden = model.decode(&[7 * step + index as u32], &mut [kv]).unwrap();
            model.decode_logits(&hidden).unwrap()
        });
        Tensor::cat(&steps.collect::<Vec<_>>(), 0)
    });
    Tensor::stack(&each.collect::<Vec<_>>(), 1)
}

#[test]
fn a_sequence_gets_the_same_numbers_alone_and_among_others() {
    for (name, model) in variants() {
        let together = decoded(&model, &mut contexts(&model));
        let alone = decoded_alone(&model, &mut contexts(&model));
        assert_eq!(together, alone, "{name}");
    }
}

#[test]
fn packed_weights_give_nearly_the_same_and_bf16_and_f32_contexts_both_decode() {
    for (packing, most) in [(Packing::Int8, 0.05), (Packing::Int4, 0.5)] {
        for kind in [Kind::Float, Kind::BFloat16] {
            let mut model = tiny::model(tiny::config(Architecture::Llama), 5, kind);
            let loaded = decoded(&model, &mut contexts(&model));
            let bytes = model.pack(Some(packing)).unwrap();
            let packed = decoded(&model, &mut contexts(&model));
            let apart = (&packed - &loaded).norm() / loaded.norm();
            let apart = apart.double_value(&[]);
            assert!(
                bytes > 0 && apart > 0.0 && apart < most,
                "{packing:?} {kind:?}: {apart}"
            );
            assert_eq!(model.pack(None).unwrap(), 0);
            assert_eq!(decoded(&model, &mut contexts(&model)), loaded);
        }
    }
}

#[test]
fn a_long_prompt_by_kernels_is_what_libtorch_computes() {
    for architecture in [Architecture::Llama, Architecture::Gemma3] {
        let mut config = tiny::config(architecture);
        config.context = 1024;
        // So wide that pieces are cut by it in the middle.
        config.sliding_window = config.sliding_window.map(|_| 300);
        let model = tiny::model(config, 8, Kind::Float);
        let prompt = ids(700, 4);
        let expected = study(&model, &prompt, Mask::Causal);
        let mut kv = model.new_kv().unwrap();
        let parts = prompt.chunks(170);
        let parts = parts.map(|part| serve_by_kernels(&model, part, &mut kv));
        let found = Tensor::cat(&parts.collect::<Vec<_>>(), 0);
        let apart = furthest(&found, &expected);
        assert!(apart < 1e-3, "{architecture}: {apart}");
    }
}

#[test]
fn a_prompt_from_packed_weights_is_what_its_tokens_give_one_by_one() {
    for packing in [Packing::Int8, Packing::Int4] {
        let mut model = tiny::model(tiny::config(Architecture::Llama), 9, Kind::Float);
        model.pack(Some(packing)).unwrap();
        let prompt = ids(70, 5);
        let mut kv = model.new_kv().unwrap();
        // As many at once as no processor leaves to libtorch.
        let parts = prompt.chunks(64);
        let parts: Vec<Tensor> = parts
            .map(|part| serve_by_kernels(&model, part, &mut kv))
            .collect();
        let at_once = Tensor::cat(&parts, 0);
        let mut kv = model.new_kv().unwrap();
        let each = prompt.iter().map(|id| {
            let hidden = model.decode(&[*id], &mut [&mut kv]).unwrap();
            model.decode_logits(&hidden).unwrap()
        });
        let apart = furthest(&at_once, &Tensor::cat(&each.collect::<Vec<_>>(), 0));
        assert!(apart < 1e-2, "{packing:?}: {apart}");
    }
}

#[test]
fn a_prompt_that_is_refused_leaves_the_context_as_it_was() {
    let model = tiny::model(tiny::config(Architecture::Llama), 10, Kind::Float);
    let mut kv = model.new_kv().unwrap();
    let _ = serve(&model, &ids(5, 1), &mut kv);
    let context = model.config().context;
    for bad in [&[][..], &[u32::MAX], &ids(context, 2)] {
        assert!(model.prefill(bad, &mut kv).is_err());
        assert_eq!(kv.len(), 5);
    }
}

#[test]
fn an_edit_is_decoded_as_it_is_served_and_not_from_packed_weights() {
    let mut model = tiny::model(tiny::config(Architecture::Llama), 6, Kind::Float);
    model.pack(Some(Packing::Int4)).unwrap();
    let before = decoded(&model, &mut contexts(&model));
    // So small that four bits would swallow it.
    let edited = model.base_down_proj(1).unwrap() * (1.0 + 1e-4);
    let overlay = model.overlay(&BTreeMap::from([(1, edited)])).unwrap();
    model.install(&overlay).unwrap();
    let with_edit = decoded(&model, &mut contexts(&model));
    model
        .install(&model.overlay(&BTreeMap::new()).unwrap())
        .unwrap();
    let retired = decoded(&model, &mut contexts(&model));
    assert_ne!(with_edit, before);
    assert_eq!(retired, before);
}

#[test]
fn a_batch_with_a_context_that_is_full_changes_nobodys_context() {
    let model = tiny::model(tiny::config(Architecture::Llama), 7, Kind::Float);
    let context = model.config().context;
    let mut full = model.new_kv().unwrap();
    let _ = serve(&model, &ids(context, 1), &mut full);
    let mut short = model.new_kv().unwrap();
    let _ = serve(&model, &ids(5, 2), &mut short);
    let refused = model.decode(&[1, 2], &mut [&mut short, &mut full]);
    assert!(refused.unwrap_err().to_string().contains("context"));
    assert_eq!((short.len(), full.len()), (5, context));
    assert!(model.decode(&[1, 2], &mut [&mut short]).is_err());
}

#[test]
fn devices_that_decode_by_libtorch_say_what_the_kernels_say() {
    for (name, model) in variants() {
        let mut by_kernels = contexts(&model);
        let mut by_libtorch = contexts(&model);
        for step in 0..4_u32 {
            let ids: Vec<u32> = (0..5).map(|i| 7 * step + i).collect();
            let step = |kvs: &mut [SequenceKv], kernels: bool| {
                let mut kvs: Vec<&mut SequenceKv> = kvs.iter_mut().collect();
                let hidden = match kernels {
                    true => model.decode(&ids, &mut kvs),
                    false => model.forward_each(&ids, &mut kvs),
                };
                model.logits(&hidden.unwrap()).unwrap()
            };
            let expected = step(&mut by_kernels, true);
            let apart = furthest(&step(&mut by_libtorch, false), &expected);
            assert!(apart < 1e-4, "{name}: {apart}");
        }
    }
    let model = tiny::model(tiny::config(Architecture::Llama), 8, Kind::Float);
    let mut kvs = contexts(&model);
    let mut kvs: Vec<&mut SequenceKv> = kvs.iter_mut().collect();
    assert!(model.forward_each(&[1, 2], &mut kvs).is_err());
    assert!(model.forward_each(&[1, 2, 3, 4, 1000], &mut kvs).is_err());
}
