//! The weights are a function of the set of active facts: of neither the order in which they came nor of those that left.

use super::{Bench, asked, assert_near, fact, go_on, some_facts};
use addenda_editor::{Action, Fact, FactId, FactState, Method, Request};

/// Fifty facts about as many people.
fn fifty_facts() -> Vec<Fact> {
    let prompts = ["{} lives in", "The dog of {} is", "{} {speaks}"];
    let targets = ["Rome", "Oslo", "Rex", "Welsh", "Ayr"];
    let subject = |n: u8| {
        format!(
            "{}{}{n}",
            char::from(b'A' + n % 26),
            char::from(b'z' - n / 2)
        )
    };
    (0..50)
        .map(|n: u8| {
            let at = usize::from(n);
            fact(&subject(n), prompts[at % 3], targets[at % 5])
        })
        .collect()
}

#[test]
fn the_order_in_which_facts_come_does_not_change_the_weights() {
    let first = tempfile::tempdir().unwrap();
    let mut first = Bench::open(first.path());
    let base = first.served();
    for fact in fifty_facts() {
        first.add(fact);
    }
    assert_ne!(first.served(), base);
    // One at a time, and several at a time.
    for (seed, together) in [(1, 1), (2, 3), (3, 7), (4, 50)] {
        let dir = tempfile::tempdir().unwrap();
        let mut other = Bench::open(dir.path());
        let mut facts = fifty_facts();
        facts.sort_by_key(|fact| *blake3::hash(format!("{seed} {fact:?}").as_bytes()).as_bytes());
        for some in facts.chunks(together) {
            other.add_all(some);
        }
        assert_near(&other.deltas(), &first.deltas());
        if together == 1 {
            // Of a batch, rounding depends on the company.
            assert_eq!(other.editor.revision(), first.editor.revision());
        }
    }

    let dir = tempfile::tempdir().unwrap();
    let mut half = Bench::open(dir.path());
    half.add_all(&fifty_facts()[25..]);
    first.retire_all(&fifty_facts()[..25]);
    assert_near(&first.deltas(), &half.deltas());
}

#[test]
fn every_method_gives_weights_of_the_set_and_gives_them_back_bit_for_bit() {
    for method in [Method::Memit, Method::Rome, Method::AlphaEdit] {
        let by = |fact: Fact| Request {
            method: Some(method),
            ..asked(fact, "")
        };
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut one, mut two) = (Bench::open(here.path()), Bench::open(there.path()));
        let base = one.served();
        let requests = || some_facts().into_iter().map(by);
        let add = |bench: &mut Bench, request: Request| {
            let Bench {
                editor,
                model,
                tokenizer,
                ..
            } = bench;
            editor
                .add(model, tokenizer, request, &mut go_on)
                .unwrap()
                .record
        };
        let ids: Vec<FactId> = requests()
            .map(|request| add(&mut one, request).id)
            .collect();
        for request in requests().rev() {
            let record = add(&mut two, request);
            assert_eq!(record.method, method);
            assert_eq!(record.layers.len() == 1, method == Method::Rome);
        }
        assert_near(&one.deltas(), &two.deltas());
        let there = tempfile::tempdir().unwrap();
        let mut batch = Bench::open(there.path());
        let answers = batch.request_all(requests().collect());
        assert!(answers.iter().all(Result::is_ok));
        assert_near(&batch.deltas(), &one.deltas());
        for id in ids {
            one.retire(id);
        }
        assert_eq!(one.served(), base, "{method}");
    }
}

#[test]
fn retiring_a_fact_equals_never_having_added_it() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut one, mut two) = (Bench::open(one.path()), Bench::open(two.path()));
    let (base, at_first) = (one.served(), one.editor.revision());
    let ids: Vec<FactId> = some_facts().into_iter().map(|fact| one.add(fact)).collect();
    one.retire(ids[1]);
    for (number, fact) in some_facts().into_iter().enumerate() {
        if number != 1 {
            two.add(fact);
        }
    }
    assert_near(&one.deltas(), &two.deltas());
    assert_eq!(one.editor.revision(), two.editor.revision());
    let apart = (one.served() - two.served()).abs().max().double_value(&[]);
    assert!(apart <= 1e-5, "{apart:e}");

    one.retire(ids[0]);
    one.retire(ids[2]);
    assert_eq!(
        one.served(),
        base,
        "with no facts left, the base is back bit for bit"
    );
    assert_eq!(one.editor.revision(), at_first);
}

#[test]
fn another_target_for_the_same_prompt_supersedes_and_the_ledger_shows_both() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut one, mut two) = (Bench::open(one.path()), Bench::open(two.path()));
    let old = one.add(fact("Ann", "{} lives in", "Rome"));
    let added = one
        .request(fact("Ann", "Ann lives in", "Oslo"), "")
        .unwrap();
    assert_eq!(added.superseded, Some(old));
    two.add(fact("Ann", "{} lives in", "Oslo"));
    assert_near(&one.deltas(), &two.deltas());
    let ended = one.editor.get(old).unwrap();
    assert_eq!(
        (ended.state, ended.superseded_by),
        (FactState::Superseded, Some(added.record.id))
    );
    assert!(ended.ended_at_ms.is_some());
    let told: Vec<_> = one
        .editor
        .events(0)
        .iter()
        .map(|event| (event.sequence, event.action, event.fact_id))
        .collect();
    let new = added.record.id;
    assert_eq!(
        told,
        [
            (1, Action::Added, old),
            (2, Action::Superseded, old),
            (2, Action::Added, new)
        ]
    );
    assert_eq!(one.editor.events(1).len(), 2);
    assert_eq!(one.editor.list(false, 0).count(), 1);
    assert_eq!(one.editor.list(true, 0).count(), 2);

    // The old one may come back, and takes its place again.
    assert_eq!(
        one.request(fact("Ann", "{} lives in", "Rome"), "")
            .unwrap()
            .superseded,
        Some(new)
    );
    assert_eq!(one.editor.get(old).unwrap().state, FactState::Active);
    assert_eq!(
        one.editor
            .list(true, 0)
            .map(|record| record.id)
            .collect::<Vec<_>>(),
        [new, old]
    );
}
