//! Beam search: contexts that branch, and the likeliest answer as a whole over gRPC.

use crate::daemon::{ask, complete, score, shared};
use crate::decode::contexts;
use crate::transformer::{furthest, ids, variants};
use addenda_model::{SequenceKv, Transformer};
use addenda_proto::addenda::v1::{FinishReason, GenerateRequest, Sampling};
use tch::Tensor;
use tonic::Code;

/// A context with a packet between tokens of its own.
fn context(model: &Transformer) -> SequenceKv {
    contexts(model).swap_remove(0)
}

/// Logits `[steps, V]` of some tokens behind a context.
fn behind(model: &Transformer, kv: &mut SequenceKv, salt: usize) -> Tensor {
    let steps = ids(6, salt).into_iter().map(|id| {
        let hidden = model.decode(&[id], &mut [kv]).unwrap();
        model.decode_logits(&hidden).unwrap()
    });
    Tensor::cat(&steps.collect::<Vec<_>>(), 0)
}

#[test]
fn a_branch_goes_on_as_if_it_had_read_the_prompt_itself() {
    for (name, model) in variants() {
        let mut trunk = context(&model);
        let mut alone = context(&model);
        let mut first = trunk.branch().unwrap();
        let beginning = furthest(
            &behind(&model, &mut first, 3),
            &behind(&model, &mut alone, 3),
        );
        let mut second = first.branch().unwrap();
        let again = |salt| {
            let mut alone = context(&model);
            let _ = behind(&model, &mut alone, 3);
            behind(&model, &mut alone, salt)
        };
        let apart = [
            beginning,
            furthest(&behind(&model, &mut first, 4), &again(4)),
            furthest(&behind(&model, &mut second, 5), &again(5)),
            furthest(
                &behind(&model, &mut trunk, 6),
                &behind(&model, &mut context(&model), 6),
            ),
        ];
        assert!(apart.iter().all(|apart| *apart < 1e-4), "{name}: {apart:?}");
    }
}

fn with_beams(request: GenerateRequest, num_beams: u32, penalty: Option<f32>) -> GenerateRequest {
    GenerateRequest {
        num_beams,
        length_penalty: penalty,
        ..request
    }
}

#[tokio::test]
async fn beams_find_an_answer_that_is_at_least_as_likely_as_the_greedy_one() {
    const PROMPT: &str = "The three things that every hospital needs are";
    let clients = shared().connect().await;
    let greedy = clients.answer(complete(PROMPT, 12)).await.unwrap();
    let one = with_beams(complete(PROMPT, 12), 1, None);
    assert_eq!(clients.answer(one).await.unwrap().text, greedy.text);
    let four = with_beams(complete(PROMPT, 12), 4, Some(0.0));
    let found = clients.answer(four.clone()).await.unwrap();
    assert_eq!(found.summary.generated_tokens as usize, found.tokens.len());
    assert_eq!(found.summary.finish_reason(), FinishReason::Length);
    let likely = |text: String| {
        let mut generation = clients.generation();
        async move {
            let scored = generation.score(score(PROMPT, &text)).await.unwrap();
            scored.into_inner().scores[0].logprobs.iter().sum::<f32>()
        }
    };
    let (by_beams, by_greed) = (likely(found.text.clone()).await, likely(greedy.text).await);
    assert!(by_beams >= by_greed - 1e-3, "{by_beams} {by_greed}");
    assert_eq!(clients.answer(four).await.unwrap().text, found.text);
}

#[tokio::test]
async fn a_beam_ends_before_a_stop_string_and_at_the_end_of_the_models_turn() {
    let clients = shared().connect().await;
    let question = with_beams(ask("What is the capital of France?", 40), 3, None);
    let whole = clients.answer(question.clone()).await.unwrap();
    assert_eq!(
        whole.summary.finish_reason(),
        FinishReason::End,
        "{}",
        whole.text
    );
    let stopped = GenerateRequest {
        stop: vec!["Paris".to_owned()],
        ..question
    };
    let stopped = clients.answer(stopped).await.unwrap();
    assert!(!stopped.text.contains("Paris"), "{}", stopped.text);
}

#[tokio::test]
async fn beams_beside_what_they_cannot_do_are_refused_by_name() {
    let clients = shared().connect().await;
    let plain = complete("Once", 4);
    let sampling = |sampling: Sampling| GenerateRequest {
        sampling: Some(sampling),
        ..with_beams(plain.clone(), 4, None)
    };
    let refused = [
        (with_beams(plain.clone(), 17, None), "num_beams"),
        (with_beams(plain.clone(), 1, Some(1.0)), "length_penalty"),
        (
            with_beams(plain.clone(), 2, Some(f32::NAN)),
            "length_penalty",
        ),
        (with_beams(plain.clone(), 2, Some(4.1)), "length_penalty"),
        (
            sampling(Sampling {
                temperature: 0.7,
                ..Sampling::default()
            }),
            "num_beams",
        ),
        (
            GenerateRequest {
                top_logprobs: 2,
                ..with_beams(plain.clone(), 2, None)
            },
            "num_beams",
        ),
    ];
    for (request, field) in refused {
        let status = clients.answer(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with(field), "{}", status.message());
    }
}
