//! The memory of contexts: blocks that others share, what cutting back and branching leave, and what is counted.

use crate::tiny;
use crate::transformer::{furthest, ids, serve, serve_by_kernels, study};
use addenda_model::{Architecture, Mask, PacketKv, SequenceKv, Transformer};
use std::rc::Rc;
use tch::{Kind, Tensor};

/// Models with and without windows, of contexts of several blocks.
fn models() -> Vec<(String, Transformer)> {
    let models = Architecture::ALL.iter().map(|&architecture| {
        let mut config = tiny::config(architecture);
        config.context = 8 * SequenceKv::BLOCK;
        config.sliding_window = config.sliding_window.map(|_| 300);
        let model = tiny::model(config, 21, Kind::Float);
        (architecture.to_string(), model)
    });
    models.collect()
}

fn packet(model: &Transformer, tokens: usize) -> Rc<PacketKv> {
    let mut alone = model.new_kv().unwrap();
    let _ = serve(model, &ids(tokens, 77), &mut alone);
    Rc::new(model.packet(alone).unwrap())
}

/// A context of the tokens in runs of so many, by libtorch and our kernels in turn.
fn in_runs(model: &Transformer, ids: &[u32], kv: &mut SequenceKv, run: usize) -> Tensor {
    let runs = ids.chunks(run).enumerate();
    let runs = runs.map(|(index, run)| match index % 2 {
        0 => serve_by_kernels(model, run, kv),
        _ => serve(model, run, kv),
    });
    Tensor::cat(&runs.collect::<Vec<_>>(), 0)
}

/// Logits behind a context that goes on by a few tokens.
fn goes_on(model: &Transformer, kv: &mut SequenceKv) -> Tensor {
    in_runs(model, &ids(40, 5), kv, 13)
}

#[test]
fn a_context_of_several_blocks_says_what_one_pass_over_all_of_it_says() {
    let ids = ids(3 * SequenceKv::BLOCK + 70, 1);
    for (name, model) in models() {
        let expected = study(&model, &ids, Mask::Causal);
        // Runs that end on borders of blocks, before them, and several blocks long.
        for run in [64, 100, 255, 256, 300, 700] {
            let mut kv = model.new_kv().unwrap();
            let apart = furthest(&in_runs(&model, &ids, &mut kv, run), &expected);
            assert!(apart < 1e-3, "{name}, runs of {run}: {apart}");
            assert_eq!((kv.len(), kv.own_tokens()), (ids.len(), ids.len()));
        }
    }
}

#[test]
fn blocks_on_both_sides_of_a_packet_are_read_where_they_stand() {
    for (name, model) in models() {
        let packet = packet(&model, 30);
        let context = |run: usize| {
            let mut kv = model.new_kv().unwrap();
            let _ = in_runs(&model, &ids(200, 2), &mut kv, run);
            kv.attach(Rc::clone(&packet)).unwrap();
            let _ = in_runs(&model, &ids(400, 3), &mut kv, run);
            goes_on(&model, &mut kv)
        };
        // One run a side seals nothing before it is read.
        let apart = furthest(&context(50), &context(400));
        assert!(apart < 1e-3, "{name}: {apart}");
    }
}

#[test]
fn a_context_that_begins_with_anothers_blocks_goes_on_as_if_it_had_computed_them() {
    for (name, model) in models() {
        let all = ids(600, 4);
        let mut first = model.new_kv().unwrap();
        let _ = in_runs(&model, &all, &mut first, 90);
        let blocks = first.leading(580).unwrap();
        assert_eq!(blocks.len(), 3);
        let alone = |tokens: usize| {
            let mut kv = model.new_kv().unwrap();
            let _ = in_runs(&model, &all[..tokens], &mut kv, 90);
            goes_on(&model, &mut kv)
        };
        for tokens in [580, 530, 512, 300, 256, 255, 1] {
            let mut second = model.new_kv().unwrap();
            let before = model.kv_bytes();
            second.begin_with(&blocks, tokens).unwrap();
            let copied = model.kv_bytes() - before;
            assert!(
                copied <= SequenceKv::BLOCK * model.kv_token_bytes(),
                "{name}"
            );
            assert_eq!(second.len(), tokens);
            let apart = furthest(&goes_on(&model, &mut second), &alone(tokens));
            assert!(apart < 1e-4, "{name}, {tokens} tokens: {apart}");
        }
        // Whoever shares them is not disturbed.
        let apart = furthest(&goes_on(&model, &mut first), &alone(600));
        assert!(apart < 1e-4, "{name}: {apart}");
        let mut third = model.new_kv().unwrap();
        assert!(third.begin_with(&blocks, 581).is_err());
        let turned = [Rc::clone(&blocks[2]), Rc::clone(&blocks[0])];
        assert!(
            third.begin_with(&turned, 300).is_err(),
            "{name}: a part as a whole"
        );
        assert!(first.begin_with(&blocks, 100).is_err(), "{name}: not empty");
    }
}

#[test]
fn a_context_that_is_cut_back_into_a_block_goes_on_from_there() {
    let model = tiny::model(tiny::config(Architecture::Llama), 22, Kind::Float);
    let all = ids(460, 6);
    for len in [459, 300, 256, 255, 100, 0] {
        let mut kv = model.new_kv().unwrap();
        let _ = in_runs(&model, &all, &mut kv, 64);
        let mut branch = kv.branch().unwrap();
        kv.truncate(len).unwrap();
        assert_eq!((kv.len(), kv.own_tokens()), (len, len));
        let mut alone = model.new_kv().unwrap();
        if len > 0 {
            let _ = in_runs(&model, &all[..len], &mut alone, 64);
        }
        let apart = furthest(&goes_on(&model, &mut kv), &goes_on(&model, &mut alone));
        assert!(apart < 1e-4, "cut at {len}: {apart}");
        branch.truncate(460).unwrap();
    }
}

#[test]
fn what_contexts_hold_is_counted_once_and_given_back() {
    let mut config = tiny::config(Architecture::Qwen3);
    config.context = 1200;
    let model = tiny::model(config, 23, Kind::BFloat16);
    let (block, token) = (SequenceKv::BLOCK, model.kv_token_bytes());
    assert_eq!(model.kv_bytes(), 0);
    let mut trunk = model.new_kv().unwrap();
    // What it says it needs is enough, at every length.
    for id in ids(2 * block + 10, 7) {
        let (before, needed) = (model.kv_bytes(), trunk.growth(1));
        let _ = serve_by_kernels(&model, &[id], &mut trunk);
        assert!(model.kv_bytes() <= before + needed);
        assert_eq!(model.kv_bytes(), trunk.bytes());
    }
    assert!(
        model.kv_bytes() < (2 * block + block / 2) * token,
        "no doubling of what is long"
    );
    let mut others = model.new_kv().unwrap();
    for run in [1, 300, 64, 256, 10, 100, 290] {
        let (before, needed) = (model.kv_bytes(), others.growth(run));
        let _ = serve(&model, &ids(run, 9), &mut others);
        assert!(model.kv_bytes() <= before + needed, "a run of {run}");
    }
    drop(others);
    let branches: Vec<_> = (0..4).map(|_| trunk.branch().unwrap()).collect();
    let tails: usize = branches.iter().map(SequenceKv::tail_bytes).sum();
    assert_eq!(model.kv_bytes(), trunk.bytes() + tails);
    let blocks = trunk.leading(2 * block).unwrap();
    drop((trunk, branches));
    assert_eq!(model.kv_bytes(), 2 * block * token);
    drop(blocks);
    assert_eq!(model.kv_bytes(), 0);
    // A packet in the making is nobody's context.
    let mut alone = model.isolated_kv().unwrap();
    let _ = serve(&model, &ids(20, 8), &mut alone);
    assert_eq!(model.kv_bytes(), 0);
}
