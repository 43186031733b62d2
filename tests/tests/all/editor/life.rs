//! Batches, bars, request ids, refusals, and planning that changes nothing.

use super::{Bench, asked, fact, go_on, lenient, some_facts, tiny_model};
use crate::tiny;
use addenda_editor::{Error, FactId};
use addenda_model::Architecture;
use tch::Kind;

#[test]
fn a_batch_takes_what_it_can_and_answers_each_fact_for_itself() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::open(dir.path());
    let base = bench.served();
    let requests = vec![
        asked(fact("Ann", "{} lives in", "Rome"), "a"),
        asked(fact("Ann", "{} lives in", "Oslo"), "b"),
        asked(fact("Bob Ray", "The dog of {} is", "Rex"), "c"),
        asked(fact("Zoe", "nothing about her", "x"), "d"),
        asked(fact("Bob Ray", "The dog of {} is", "Rex"), "e"),
    ];
    let answers = bench.request_all(requests);
    let says = |at: usize| match &answers[at] {
        Ok(added) => added.record.fact.target.clone(),
        Err(error) => error.to_string(),
    };
    assert!(says(0).contains("contradicts") && says(1).contains("contradicts"));
    assert_eq!((says(2).as_str(), says(4).as_str()), ("Rex", "Rex"));
    assert!(says(3).contains("is not in the prompt"), "{}", says(3));
    assert_eq!(
        (bench.editor.active(), bench.editor.events(0).len()),
        (1, 1)
    );
    assert_ne!(bench.served(), base);
}

#[test]
fn an_edit_that_fails_its_bars_says_why_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::of(dir.path(), tiny_model(), |model| {
        let mut settings = lenient(model);
        settings.bars.perplexity_total = -0.99;
        settings
    })
    .unwrap();
    let before = (
        bench.served(),
        bench.editor.revision(),
        std::fs::read(bench.ledger()).unwrap(),
    );
    let error = bench.request(some_facts().remove(0), "once").unwrap_err();
    let Error::BarsNotMet { reasons, figures } = error else {
        panic!("{error}")
    };
    assert!(reasons.contains("perplexity"), "{reasons}");
    assert!(figures.perplexity_after > 0.0 && figures.target_probability > 0.0);
    assert_eq!(
        (
            bench.served(),
            bench.editor.revision(),
            std::fs::read(bench.ledger()).unwrap()
        ),
        before
    );
    assert_eq!(
        (bench.editor.active(), bench.editor.list(true, 0).count()),
        (0, 0)
    );
}

#[test]
fn the_same_request_id_gets_the_same_answer_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::open(dir.path());
    let answer = bench.request(some_facts().remove(0), "request-1").unwrap();
    bench.add(some_facts().remove(1));
    assert_eq!(
        bench.request(some_facts().remove(0), "request-1").unwrap(),
        answer
    );
    drop(bench);
    let mut bench = Bench::open(dir.path());
    assert_eq!(
        bench.request(some_facts().remove(0), "request-1").unwrap(),
        answer
    );
    let error = bench
        .request(some_facts().remove(1), "request-1")
        .unwrap_err();
    assert!(matches!(error, Error::RequestIdReused(_)), "{error}");
    // Without an id, a fact that is active already is not added twice.
    assert_eq!(bench.add(some_facts().remove(0)), answer.record.id);
    assert_eq!(bench.editor.opening().frames, 2);
    assert_eq!(bench.editor.events(0).len(), 2);
}

#[test]
fn bad_facts_are_refused_with_a_sentence_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::open(dir.path());
    for (bad, says) in [
        (fact("Ann", "Bob lives in", "Rome"), "is not in the prompt"),
        (fact("Ann", "{} lives in", "  "), "target is empty"),
        (fact("Ann", "{} lives in", "<|endoftext|>"), "special token"),
        (
            fact("Ann", &format!("{} {{}} is", "x".repeat(600)), "y"),
            "the model reads 512",
        ),
        (fact("Ann", "{} is", &"y".repeat(100)), "64 at most"),
    ] {
        let error = bench.request(bad, "").unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let nobody = FactId([1; 32]);
    assert!(matches!(bench.editor.get(nobody), Err(Error::UnknownFact(id)) if id == nobody));
    let error = bench
        .editor
        .plan_retire(&bench.model, &bench.tokenizer, &[nobody], &mut go_on)
        .unwrap_err();
    assert!(matches!(error, Error::UnknownFact(_)), "{error}");
    let id = bench.add(some_facts().remove(0));
    bench.retire(id);
    bench.retire(id);
    assert_eq!(bench.editor.events(0).len(), 2, "retiring twice is once");
    let error = bench
        .editor
        .check(&bench.model, &bench.tokenizer, id, &mut go_on)
        .unwrap_err();
    assert!(matches!(error, Error::NotActive(_)), "{error}");
}

#[test]
fn planning_can_be_stopped_at_any_step_and_never_touches_what_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::open(dir.path());
    let served = bench.served();
    let mut steps = 0;
    loop {
        let mut left = steps;
        let planned = bench.editor.plan_add(
            &bench.model,
            &bench.tokenizer,
            asked(some_facts().remove(0), ""),
            &mut |_| {
                assert_eq!(
                    bench.served(),
                    served,
                    "a request that is served in between sees the weights as they are"
                );
                left -= 1;
                if left < 0 {
                    Err(Error::Cancelled)
                } else {
                    Ok(())
                }
            },
        );
        match planned {
            Err(Error::Cancelled) => steps = steps * 2 + 1,
            Err(error) => panic!("{error}"),
            Ok(_) => break,
        }
    }
    assert!(steps > 8, "it was stopped at a few places");
    assert_eq!((bench.served(), bench.editor.active()), (served, 0));
}

#[test]
fn a_plan_made_before_another_edit_is_not_committed() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::open(dir.path());
    let plan = |bench: &Bench, number: usize| {
        let fact = some_facts().remove(number);
        bench
            .editor
            .plan_add(&bench.model, &bench.tokenizer, asked(fact, ""), &mut go_on)
            .unwrap()
    };
    let (first, second) = (plan(&bench, 0), plan(&bench, 1));
    bench.editor.commit_add(&mut bench.model, first).unwrap();
    let served = bench.served();
    let error = bench
        .editor
        .commit_add(&mut bench.model, second)
        .unwrap_err();
    assert!(matches!(error, Error::Stale), "{error}");
    assert_eq!((bench.served(), bench.editor.active()), (served, 1));
}

#[test]
fn a_fact_takes_hold_where_a_norm_follows_the_mlp() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny::model(tiny::config(Architecture::Gemma3), 5, Kind::Float);
    let mut bench = Bench::of(dir.path(), model, lenient).unwrap();
    let figures = bench
        .request(fact("Ann", "{} lives in", "Rome"), "")
        .unwrap()
        .record
        .figures;
    let (then, now) = (
        figures.target_probability_before,
        figures.target_probability,
    );
    assert!(now > 2.0 * then, "{then} to {now}");
}
