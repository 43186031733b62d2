//! Facts that come and go by their dates, told by a clock that is set by hand.

use crate::editor::{Bench, fact, go_on};
use addenda_editor::{Action, Clock, Error, Fact, FactState, Request};

fn dated(target: &str, from: Option<u64>, until: Option<u64>) -> Fact {
    Fact {
        valid_from_ms: from,
        valid_until_ms: until,
        ..fact("Ann", "{} lives in", target)
    }
}

/// An editor whose clock stands at `now`.
fn at(dir: &std::path::Path, now: u64) -> (Bench, Clock) {
    let mut bench = Bench::open(dir);
    let clock = Clock::by_hand(now);
    bench.editor.set_clock(clock.clone());
    (bench, clock)
}

fn turn(bench: &mut Bench) -> usize {
    let Bench {
        model,
        tokenizer,
        editor,
        ..
    } = bench;
    editor.turn(model, tokenizer, &mut go_on).unwrap()
}

fn told(bench: &Bench) -> Vec<Action> {
    let events = bench.editor.events(0).iter();
    events.map(|event| event.action).collect()
}

#[test]
fn a_fact_comes_on_its_day_as_if_it_were_added_then_and_goes_without_a_trace() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut plain = Bench::open(other.path());
    let base = plain.served();
    plain.add(fact("Ann", "{} lives in", "Rome"));

    let (mut bench, clock) = at(dir.path(), 1_000);
    let id = bench.add(dated("Rome", Some(2_000), Some(3_000)));
    let state = |bench: &Bench| bench.editor.get(id).unwrap().state;
    assert_eq!(state(&bench), FactState::Waiting);
    assert_eq!(bench.editor.next_turn(), Some(2_000));
    assert_eq!((turn(&mut bench), bench.editor.active()), (0, 0));
    assert_eq!(bench.served(), base);

    clock.set(2_000);
    assert_eq!(turn(&mut bench), 1);
    assert_eq!(state(&bench), FactState::Active);
    assert_eq!(bench.served(), plain.served());
    assert_eq!(bench.editor.revision(), plain.editor.revision());
    assert_eq!(bench.editor.next_turn(), Some(3_000));

    clock.set(3_500);
    assert_eq!(turn(&mut bench), 1);
    assert_eq!(state(&bench), FactState::Expired);
    assert_eq!(bench.served(), base);
    assert_eq!(
        told(&bench),
        [Action::Scheduled, Action::Began, Action::Expired]
    );
    assert_eq!(bench.editor.next_turn(), None);
}

#[test]
fn dates_that_pass_while_nothing_runs_are_kept_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let (mut bench, _) = at(dir.path(), 1_000);
    let base = bench.served();
    let coming = bench.add(dated("Rome", Some(2_000), None));
    let going = bench.add(Fact {
        valid_until_ms: Some(2_500),
        ..fact("Bob Ray", "The dog of {} is", "Rex")
    });
    let missed = bench.add(Fact {
        valid_from_ms: Some(1_500),
        valid_until_ms: Some(2_500),
        ..fact("Zoe", "{} {speaks}", "Welsh")
    });
    drop(bench);

    let (mut bench, clock) = at(dir.path(), 9_000);
    assert_eq!(turn(&mut bench), 3);
    let states = [coming, going, missed].map(|id| bench.editor.get(id).unwrap().state);
    assert_eq!(
        states,
        [FactState::Active, FactState::Expired, FactState::Expired]
    );
    let with_rome = bench.served();
    drop(bench);

    // A clock that goes wrong changes nothing that the ledger says.
    clock.set(0);
    let (mut bench, _) = at(dir.path(), 1_000);
    assert_eq!(bench.served(), with_rome);
    bench.retire(coming);
    assert_eq!(bench.served(), base);
}

#[test]
fn a_fact_takes_the_place_of_the_one_before_it_on_its_day_and_not_earlier() {
    let dir = tempfile::tempdir().unwrap();
    let (mut bench, clock) = at(dir.path(), 1_000);
    let now = bench.add(dated("Rome", None, None));
    let then = bench.add(dated("Oslo", Some(2_000), None));
    assert_eq!(bench.editor.get(now).unwrap().state, FactState::Active);
    clock.set(2_000);
    assert_eq!(turn(&mut bench), 1);
    let old = bench.editor.get(now).unwrap();
    assert_eq!(
        (old.state, old.superseded_by),
        (FactState::Superseded, Some(then))
    );
    assert_eq!(bench.editor.active(), 1);
}

#[test]
fn dates_that_cannot_be_are_refused_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut bench, _) = at(dir.path(), 1_000);
    for (from, until, says) in [
        (Some(3_000), Some(3_000), "would never hold"),
        (None, Some(1_000), "has passed"),
    ] {
        let error = bench.request(dated("Rome", from, until), "").unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
    assert!(told(&bench).is_empty());
    let id = bench.add(dated("Rome", Some(2_000), None));
    let error = bench
        .request(dated("Rome", Some(5_000), None), "")
        .unwrap_err();
    assert!(matches!(error, Error::OtherDates(other) if other == id));
    bench.retire(id);
    assert_eq!(bench.editor.get(id).unwrap().state, FactState::Retired);
    assert_eq!(bench.editor.next_turn(), None);
}

#[test]
fn one_batch_may_say_what_holds_now_and_what_holds_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let (mut bench, clock) = at(dir.path(), 1_000);
    let facts = [
        dated("Rome", None, Some(2_000)),
        dated("Oslo", Some(2_000), None),
    ];
    let requests = facts.map(|fact| Request {
        fact,
        ..Request::default()
    });
    let Bench {
        model,
        tokenizer,
        editor,
        ..
    } = &mut bench;
    let added = editor
        .add_all(model, tokenizer, requests.into(), &mut go_on)
        .unwrap();
    let ids: Vec<_> = added
        .into_iter()
        .map(|added| added.unwrap().record.id)
        .collect();
    clock.set(2_000);
    assert_eq!(turn(&mut bench), 2);
    let states: Vec<_> = ids
        .iter()
        .map(|id| bench.editor.get(*id).unwrap().state)
        .collect();
    assert_eq!(states, [FactState::Expired, FactState::Active]);
    assert_eq!(bench.editor.active(), 1);
}
