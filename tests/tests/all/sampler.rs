//! Sampling settings do what their names say.

use addenda_model::{Sampler, SamplingParams};
use std::collections::BTreeMap;
use tch::Tensor;

fn draw(params: SamplingParams, logits: &[f32], times: usize) -> BTreeMap<u32, usize> {
    let logits = Tensor::from_slice(logits);
    let mut counts = BTreeMap::new();
    for seed in 0..times as u64 {
        let mut sampler = Sampler::new(SamplingParams { seed, ..params }).unwrap();
        *counts
            .entry(sampler.sample(&logits, 0).unwrap().id)
            .or_default() += 1;
    }
    counts
}

#[test]
fn greedy_takes_the_likeliest_and_the_lowest_id_among_equals() {
    let counts = draw(SamplingParams::default(), &[0.0, 3.0, 3.0, 1.0], 5);
    assert_eq!(counts, BTreeMap::from([(1, 5)]));
}

#[test]
fn a_draw_follows_the_probabilities() {
    let params = SamplingParams {
        temperature: 1.0,
        ..SamplingParams::default()
    };
    let logits = [0.5_f32.ln(), 0.3_f32.ln(), 0.2_f32.ln()];
    let counts = draw(params, &logits, 3000);
    for (id, share) in [(0, 0.5), (1, 0.3), (2, 0.2)] {
        let found = counts[&id] as f64 / 3000.0;
        assert!((found - share).abs() < 0.04, "{id}: {found}");
    }
}

#[test]
fn top_k_top_p_and_min_p_leave_out_the_unlikely() {
    let logits = [0.5_f32.ln(), 0.3_f32.ln(), 0.15_f32.ln(), 0.05_f32.ln()];
    let open = SamplingParams {
        temperature: 1.0,
        ..SamplingParams::default()
    };
    let cases = [
        (SamplingParams { top_k: 2, ..open }, 2),
        (
            SamplingParams {
                top_p: 0.75,
                ..open
            },
            2,
        ),
        (SamplingParams { top_p: 0.9, ..open }, 3),
        (SamplingParams { min_p: 0.2, ..open }, 3),
    ];
    for (params, kept) in cases {
        let ids: Vec<u32> = draw(params, &logits, 400).into_keys().collect();
        assert_eq!(ids, (0..kept).collect::<Vec<u32>>(), "{params:?}");
    }
}

#[test]
fn the_repetition_penalty_turns_away_from_what_was_seen_but_not_from_its_report() {
    let params = SamplingParams {
        repetition_penalty: 1.5,
        ..SamplingParams::default()
    };
    let mut sampler = Sampler::new(params).unwrap();
    sampler.observe(&[1]);
    let sampled = sampler
        .sample(&Tensor::from_slice(&[1.9_f32, 2.0, -1.0]), 2)
        .unwrap();
    assert_eq!(sampled.id, 0);
    assert_eq!(
        sampled.top.iter().map(|top| top.0).collect::<Vec<u32>>(),
        [1, 0]
    );
    let total = 1.9_f32.exp() + 2.0_f32.exp() + (-1.0_f32).exp();
    assert!((sampled.logprob - (1.9 - total.ln())).abs() < 1e-5);
}

#[test]
fn a_setting_out_of_range_is_refused_by_name() {
    let params = SamplingParams {
        top_p: 1.5,
        ..SamplingParams::default()
    };
    let error = Sampler::new(params).err().unwrap().to_string();
    assert!(error.contains("top_p is 1.5"), "{error}");
}
