//! The transformer agrees with itself: however a context is cut up, however its parts are
//! stored and placed, whichever of the two forward passes computes it.

use crate::tiny;
use addenda_model::{
    Action, Architecture, Documents, Input, Isolated, Mask, PacketKv, Pass, RopeScaling,
    SequenceKv, Site, Tap, Transformer,
};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

const TOLERANCE: f64 = 1e-4;

pub(crate) fn ids(count: usize, salt: usize) -> Vec<u32> {
    (0..count)
        .map(|i| ((i * i * 7 + i * 13 + salt * 31 + 5) % 97) as u32)
        .collect()
}

fn batch(ids: &[u32]) -> Tensor {
    let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    Tensor::from_slice(&ids).unsqueeze(0)
}

pub(crate) fn furthest(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

pub(crate) fn serve(model: &Transformer, ids: &[u32], kv: &mut SequenceKv) -> Tensor {
    model
        .logits(&model.forward(Input::Ids(ids), kv).unwrap())
        .unwrap()
}

/// The same by the kernels that serve prompts.
pub(crate) fn serve_by_kernels(model: &Transformer, ids: &[u32], kv: &mut SequenceKv) -> Tensor {
    let hidden = model.prefill(ids, kv).unwrap();
    model.decode_logits(&hidden).unwrap()
}

/// A way to compute a prompt.
type Way = fn(&Transformer, &[u32], &mut SequenceKv) -> Tensor;

const WAYS: [Way; 2] = [serve, serve_by_kernels];

pub(crate) fn study(model: &Transformer, ids: &[u32], mask: Mask) -> Tensor {
    let mut pass = Pass::new().with_mask(mask);
    let hidden = model.forward_batch(&batch(ids), &mut pass).unwrap();
    model.logits(&hidden).unwrap().squeeze_dim(0)
}

pub(crate) fn variants() -> Vec<(String, Transformer)> {
    let mut variants = Vec::new();
    for architecture in Architecture::ALL {
        let config = tiny::config(architecture);
        variants.push((
            architecture.to_string(),
            tiny::model(config, 11, Kind::Float),
        ));
    }
    let scalings = [
        RopeScaling::Linear { factor: 4.0 },
        RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 64,
        },
        RopeScaling::Yarn {
            factor: 4.0,
            original_context: 64,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: None,
        },
    ];
    for scaling in scalings {
        let name = format!("llama with {scaling:?}");
        let mut config = tiny::config(Architecture::Llama);
        config.rope_scaling = scaling;
        variants.push((name, tiny::model(config, 12, Kind::Float)));
    }
    variants
}

#[test]
fn prefill_at_once_in_chunks_and_token_by_token_agree() {
    for (name, model) in variants() {
        let prompt = ids(40, 1);
        let whole = study(&model, &prompt, Mask::Causal);
        let chunks = [40, 16, 7, 1].into_iter();
        for (chunk, serve) in chunks.flat_map(|chunk| WAYS.map(|way| (chunk, way))) {
            let mut kv = model.new_kv().unwrap();
            let parts: Vec<Tensor> = prompt
                .chunks(chunk)
                .map(|part| serve(&model, part, &mut kv))
                .collect();
            let difference = furthest(&Tensor::cat(&parts, 0), &whole);
            assert!(
                difference < TOLERANCE,
                "{name} in chunks of {chunk}: {difference}"
            );
            assert_eq!(kv.len(), 40);
        }
    }
}

/// Logits of long prompts before and behind a packet, `[T, vocab]`, in f32.
fn long_prompts(model: &Transformer, chunk: usize) -> Tensor {
    let mut alone = model.new_kv().unwrap();
    let _ = serve(model, &ids(30, 2), &mut alone);
    let packet = Rc::new(model.packet(alone).unwrap());
    let mut kv = model.new_kv().unwrap();
    let mut parts = Vec::new();
    for (tokens, salt) in [(90, 3), (140, 4)] {
        for part in ids(tokens, salt).chunks(chunk) {
            parts.push(serve(model, part, &mut kv));
        }
        kv.attach(Rc::clone(&packet)).unwrap();
    }
    Tensor::cat(&parts, 0)
}

#[test]
fn a_long_prompt_in_bf16_gets_nearly_what_it_gets_in_f32() {
    for architecture in Architecture::ALL {
        let half = tiny::model(tiny::config(architecture), 11, Kind::BFloat16);
        let whole = long_prompts(&half.base_in_kind(Kind::Float).unwrap(), 64);
        let largest = whole.abs().max().double_value(&[]);
        for chunk in [64, 140] {
            let apart = furthest(&long_prompts(&half, chunk), &whole) / largest;
            // Rounding makes up to .08 of random weights, also by libtorch alone; a token in a wrong place makes 1.
            assert!(apart < 0.15, "{architecture} in chunks of {chunk}: {apart}");
        }
    }
}

/// Preamble, three documents, question: from packets in the given order, each computed behind one token less of a
/// primer of so many, and by one forward over the same tokens under the packets' mask; the question computed one of two ways.
fn packets_against_mask(
    model: &Transformer,
    (order, primer): ([usize; 3], usize),
    (chunk, ask): (usize, Way),
) -> f64 {
    let documents = [ids(9, 2), ids(23, 3), ids(14, 4)];
    let (preamble, question) = (ids(5, 5), ids(12, 6));
    let primer = (primer > 0).then(|| {
        let mut first = model.new_kv().unwrap();
        let _ = serve(model, &ids(primer, 8), &mut first);
        Rc::new(model.packet(first).unwrap())
    });
    let mut kv = model.new_kv().unwrap();
    let _ = serve(model, &preamble, &mut kv);
    let (mut tokens, mut each) = (preamble.clone(), Vec::new());
    for document in order.map(|index| &documents[index]) {
        let mut alone = model.new_kv().unwrap();
        let mut primed = 0;
        if let Some(primer) = &primer {
            primed = primer.shape().tokens - each.len();
            alone.attach_part(Rc::clone(primer), 0..primed).unwrap();
        }
        for part in document.chunks(8) {
            let _ = serve(model, part, &mut alone);
        }
        let packet = model.packet(alone).unwrap();
        let (shape, bytes) = (packet.shape(), packet.to_bytes().unwrap());
        let packet = PacketKv::from_owner(Box::new(bytes), shape, Device::Cpu).unwrap();
        kv.attach(Rc::new(packet)).unwrap();
        each.push(Isolated {
            tokens: tokens.len()..tokens.len() + document.len(),
            primed,
        });
        tokens.extend(document);
    }
    let parts: Vec<Tensor> = question
        .chunks(chunk)
        .map(|part| ask(model, part, &mut kv))
        .collect();
    let start = tokens.len() as i64;
    tokens.extend(&question);
    let mask = Mask::Documents(Documents { each, primer });
    let expected = study(model, &tokens, mask).narrow(0, start, 12);
    furthest(&Tensor::cat(&parts, 0), &expected)
}

#[test]
fn a_packet_at_any_offset_and_in_any_order_equals_a_forward_under_the_block_mask() {
    for (name, model) in variants() {
        let orders = [[0, 1, 2], [2, 0, 1], [1, 2, 0]];
        let made = orders
            .into_iter()
            .flat_map(|order| [0, 5, 19].map(|primer| (order, primer)));
        for made in made {
            for (chunk, ask) in [12, 5, 1]
                .into_iter()
                .flat_map(|c| WAYS.map(|way| (c, way)))
            {
                let difference = packets_against_mask(&model, made, (chunk, ask));
                assert!(
                    difference < 1e-3,
                    "{name}, order and primer {made:?}: {difference}"
                );
            }
        }
    }
}

#[test]
fn a_packet_is_what_was_computed_behind_the_packets_a_context_begins_with() {
    let model = tiny::model(tiny::config(Architecture::Llama), 3, Kind::Float);
    let computed = |count, seed| {
        let mut kv = model.new_kv().unwrap();
        let _ = serve(&model, &ids(count, seed), &mut kv);
        kv
    };
    let primer = Rc::new(model.packet(computed(4, 1)).unwrap());
    let mut kv = model.new_kv().unwrap();
    kv.attach(Rc::clone(&primer)).unwrap();
    let _ = serve(&model, &ids(6, 2), &mut kv);
    assert_eq!(model.packet(kv).unwrap().shape().tokens, 6);
    let mut among = computed(3, 3);
    among.attach(Rc::clone(&primer)).unwrap();
    let _ = serve(&model, &ids(2, 4), &mut among);
    let error = model
        .packet(among)
        .map(|packet| packet.shape())
        .unwrap_err();
    assert!(error.to_string().contains("computed together"), "{error}");
    let mut nothing = model.new_kv().unwrap();
    nothing.attach(primer).unwrap();
    assert!(model.packet(nothing).is_err());
}

#[test]
fn a_document_that_does_not_fit_its_row_or_its_primer_is_refused() {
    let model = tiny::model(tiny::config(Architecture::Llama), 3, Kind::Float);
    let tokens = batch(&ids(10, 1));
    let refused = |each: &[(Range<usize>, usize)], primer: Option<Rc<PacketKv>>| {
        let isolated = |(tokens, primed): &(Range<usize>, usize)| Isolated {
            tokens: tokens.clone(),
            primed: *primed,
        };
        let each = each.iter().map(isolated).collect();
        let mask = Mask::Documents(Documents { each, primer });
        let mut pass = Pass::new().with_mask(mask);
        let error = model.forward_batch(&tokens, &mut pass).unwrap_err();
        error.to_string()
    };
    for second in [8..11, 8..8, usize::MAX - 1..usize::MAX, 4..6] {
        let error = refused(&[(2..5, 0), (second, 0)], None);
        assert!(error.contains("fit"), "{error}");
    }
    let primer = |model: &Transformer, tokens: usize| {
        let mut kv = model.new_kv().unwrap();
        let _ = serve(model, &ids(tokens, 2), &mut kv);
        Some(Rc::new(model.packet(kv).unwrap()))
    };
    let other = tiny::model(tiny::config(Architecture::Llama), 3, Kind::BFloat16);
    let error = refused(&[(2..5, 4)], primer(&other, 4));
    assert!(error.contains("can't be read"), "{error}");
    let error = refused(&[(2..5, 4)], primer(&model, 3));
    assert!(error.contains("that has 3"), "{error}");
    let long = model.config().context - 2;
    let error = refused(&[(2..5, long)], primer(&model, long));
    assert!(error.contains("context"), "{error}");
}

#[test]
fn a_packet_is_read_by_two_sequences_at_once_and_stays_as_it_was() {
    let model = tiny::model(tiny::config(Architecture::Llama), 3, Kind::BFloat16);
    let mut alone = model.new_kv().unwrap();
    let _ = serve(&model, &ids(20, 1), &mut alone);
    let packet = Rc::new(model.packet(alone).unwrap());
    let before = packet.to_bytes().unwrap();
    let mut first = model.new_kv().unwrap();
    let mut second = model.new_kv().unwrap();
    let _ = serve(&model, &ids(9, 2), &mut second);
    for kv in [&mut first, &mut second] {
        kv.attach(Rc::clone(&packet)).unwrap();
        let _ = serve(&model, &ids(4, 3), kv);
    }
    assert_eq!(packet.to_bytes().unwrap(), before);
    assert_eq!((first.len(), first.own_tokens()), (24, 4));
    assert_eq!((second.len(), second.own_tokens()), (33, 13));
}

#[test]
fn a_context_cut_back_goes_on_as_if_nothing_had_followed() {
    let model = tiny::model(tiny::config(Architecture::Gemma3), 4, Kind::Float);
    let mut kv = model.new_kv().unwrap();
    let _ = serve(&model, &ids(12, 1), &mut kv);
    let expected = serve(&model, &ids(6, 2), &mut kv);
    kv.truncate(12).unwrap();
    let _ = serve(&model, &ids(30, 3), &mut kv);
    kv.truncate(12).unwrap();
    assert!(furthest(&serve(&model, &ids(6, 2), &mut kv), &expected) < 1e-6);
    assert!(kv.truncate(19).is_err());
}

#[test]
fn a_context_longer_than_the_models_is_refused_and_left_as_it_was() {
    let model = tiny::model(tiny::config(Architecture::Llama), 5, Kind::Float);
    let mut kv = model.new_kv().unwrap();
    let _ = serve(&model, &ids(500, 1), &mut kv);
    let error = model.forward(Input::Ids(&ids(13, 2)), &mut kv).unwrap_err();
    assert!(error.to_string().contains("513 tokens"), "{error}");
    assert_eq!(kv.len(), 500);
    assert!(model.forward(Input::Ids(&[97]), &mut kv).is_err());
    assert!(model.forward(Input::Ids(&[]), &mut kv).is_err());
}

#[test]
fn a_packet_of_another_model_is_refused() {
    let model = tiny::model(tiny::config(Architecture::Llama), 5, Kind::Float);
    let other = tiny::model(tiny::config(Architecture::Llama), 5, Kind::BFloat16);
    let mut alone = other.new_kv().unwrap();
    let _ = serve(&other, &ids(4, 1), &mut alone);
    let packet = Rc::new(model.packet(alone).unwrap());
    assert!(model.new_kv().unwrap().attach(Rc::clone(&packet)).is_err());
    let mut short = packet.to_bytes().unwrap();
    short.pop();
    assert!(PacketKv::from_owner(Box::new(short), packet.shape(), Device::Cpu).is_err());
}

#[test]
fn a_tap_reads_what_another_tap_put_in_and_gradients_flow_into_it() {
    let model = tiny::model(tiny::config(Architecture::Gemma3), 6, Kind::Float);
    let tokens = batch(&ids(10, 1));
    let options = (Kind::Float, Device::Cpu);
    let delta = {
        let _seeded = tiny::seeded(7);
        Tensor::randn([1, 32], options).set_requires_grad(true)
    };
    let taps = [
        Tap {
            layer: 1,
            site: Site::Residual,
            at: vec![(0, 4)],
            action: Action::Read,
        },
        Tap {
            layer: 1,
            site: Site::Residual,
            at: vec![(0, 4)],
            action: Action::Add(delta.shallow_clone()),
        },
        Tap {
            layer: 1,
            site: Site::Residual,
            at: vec![(0, 4), (0, 3)],
            action: Action::Read,
        },
    ];
    let mut pass = Pass::new().with_taps(&taps);
    let hidden = model.forward_batch(&tokens, &mut pass).unwrap();
    let (before, after) = (pass.read(0).unwrap(), pass.read(2).unwrap());
    assert!(furthest(&(before + &delta), &after.narrow(0, 0, 1)) < 1e-6);
    let plain = model.forward_batch(&tokens, &mut Pass::new()).unwrap();
    let change = (&hidden - &plain).abs().amax([0, 2], false);
    assert_eq!(
        change.narrow(0, 0, 4).max().double_value(&[]),
        0.0,
        "earlier tokens changed"
    );
    assert!(change.double_value(&[4]) > 1e-3);
    hidden.sum(Kind::Float).backward();
    assert!(delta.grad().abs().max().double_value(&[]) > 0.0);
}

#[test]
fn the_first_and_the_last_layers_make_the_whole() {
    let model = tiny::model(tiny::config(Architecture::Gemma3), 7, Kind::Float);
    let tokens = batch(&ids(20, 1));
    let whole = model.forward_batch(&tokens, &mut Pass::new()).unwrap();
    for layer in 0..4 {
        let residual = model.forward_to(layer, &tokens, &mut Pass::new()).unwrap();
        let rest = model
            .forward_from(layer, &residual, &mut Pass::new())
            .unwrap();
        assert!(furthest(&rest, &whole) < 1e-6);
    }
    assert!(model.forward_to(4, &tokens, &mut Pass::new()).is_err());
}

#[test]
fn an_overlay_is_served_only_once_installed_and_the_base_comes_back_bit_for_bit() {
    let mut model = tiny::model(tiny::config(Architecture::Qwen3), 8, Kind::BFloat16);
    let prompt = ids(8, 1);
    let base = study(&model, &prompt, Mask::Causal);
    let edited = model.base_down_proj(2).unwrap() * 1.5;
    let overlay = model.overlay(&BTreeMap::from([(2, edited)])).unwrap();
    let under = model
        .forward_batch(&batch(&prompt), &mut Pass::new().under(&overlay))
        .unwrap();
    let under = model.logits(&under).unwrap().squeeze_dim(0);
    assert!(furthest(&study(&model, &prompt, Mask::Causal), &base) == 0.0);
    assert!(furthest(&under, &base) > 1e-2);
    model.install(&overlay).unwrap();
    assert!(furthest(&study(&model, &prompt, Mask::Causal), &under) == 0.0);
    model.install(&addenda_model::Overlay::base()).unwrap();
    assert!(furthest(&study(&model, &prompt, Mask::Causal), &base) == 0.0);
    let wrong = Tensor::zeros([3, 3], (Kind::Float, Device::Cpu));
    assert!(model.overlay(&BTreeMap::from([(2, wrong)])).is_err());
}

#[test]
fn rows_that_are_begun_once_end_as_if_they_had_run_whole() {
    for (name, model) in variants() {
        let rows = [ids(23, 1), ids(9, 2), ids(14, 3)];
        let width = 23;
        let flat: Vec<i64> = rows
            .iter()
            .flat_map(|row| (0..width).map(|at| i64::from(row.get(at).copied().unwrap_or(0))))
            .collect();
        let batch = Tensor::from_slice(&flat).view([3, width as i64]);
        let residual = model.forward_to(1, &batch, &mut Pass::new()).unwrap();
        let whole = model.forward_from(1, &residual, &mut Pass::new()).unwrap();
        for spans in [[(17, 23), (0, 9), (11, 14)], [(0, 23), (0, 9), (0, 14)]] {
            let begun = model
                .beginnings(1, &residual, &spans, &Pass::new())
                .unwrap();
            let ends = model
                .forward_ends(&begun, begun.ends(), &mut Pass::new())
                .unwrap();
            for (row, (from, len)) in (0..).zip(spans) {
                let (from, count) = (from as i64, (len - from) as i64);
                let expected = whole.get(row).narrow(0, from, count);
                let apart = furthest(&ends.get(row).narrow(0, 0, count), &expected);
                assert!(apart <= TOLERANCE, "{name}, row {row}: {apart:e}");
            }
        }
    }
}

#[test]
fn rows_behind_common_tokens_are_what_they_are_with_them_in_front() {
    for (name, model) in variants() {
        let row = |salt| [ids(13, 1), ids(20, salt)].concat();
        let whole = Tensor::cat(&[2, 3, 4].map(|salt| batch(&row(salt))), 0);
        let stream = model.embed(&whole).unwrap();
        let whole = model
            .forward_between(0, 2, &stream, &mut Pass::new())
            .unwrap();
        let (common, rows) = model
            .forward_behind(
                0..=2,
                &stream.narrow(0, 0, 1).narrow(1, 0, 13),
                &stream.narrow(1, 13, 20),
                &mut Pass::new(),
            )
            .unwrap();
        let apart = furthest(&rows, &whole.narrow(1, 13, 20));
        assert!(apart <= TOLERANCE, "{name}: {apart:e}");
        let apart = furthest(&common, &whole.narrow(0, 2, 1).narrow(1, 0, 13));
        assert!(apart <= TOLERANCE, "{name}: {apart:e}");
    }
}
