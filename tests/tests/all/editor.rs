//! Facts in the weights of a tiny random model: what is promised about sets, restarts, refusals and crashes holds for
//! any weights, so it is tried on ones that cost nothing.

use crate::tiny;
use addenda_editor::{
    Action, Corpus, Disk, Editor, EditorOptions, Error, Fact, FactId, FactState, Method, Phase,
    Progress, Request, SNAPSHOT_EVERY, Settings,
};
use addenda_model::{Architecture, Input, Tokenizer, Transformer};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tch::{Kind, Tensor};

const FINGERPRINT: [u8; 32] = [7; 32];

/// A tokenizer of single characters, as wide as the tiny models' vocabulary: `<|endoftext|>`, blank, line end, ASCII.
pub(crate) fn tokenizer() -> Tokenizer {
    let mut vocabulary = serde_json::Map::new();
    let characters = ["<|endoftext|>", "Ġ", "Ċ"].map(str::to_owned).into_iter();
    let characters = characters.chain(('!'..='~').map(|c| c.to_string()));
    for (id, character) in characters.enumerate() {
        vocabulary.insert(character, id.into());
    }
    let json = serde_json::json!({
        "version": "1.0",
        "added_tokens": [{
            "id": 0, "content": "<|endoftext|>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true
        }],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    });
    Tokenizer::from_json(json.to_string().as_bytes(), None, &[0]).unwrap()
}

pub(crate) fn tiny_model() -> Transformer {
    tiny::model(tiny::config(Architecture::Llama), 5, Kind::Float)
}

/// Settings under which an edit of random weights passes: they have no facts that could be lost.
pub(crate) fn lenient(model: &Transformer) -> Settings {
    let mut settings = Settings::for_model(model.config()).unwrap();
    if !model.config().post_norms {
        settings.solve.layers = vec![1, 2];
    }
    settings.solve.lambda = 0.1;
    settings.value.contexts = 2;
    settings.solve.key_contexts = 2;
    settings.value.margin = 1.0;
    settings.moment.tokens = 2048;
    settings.moment.window = 64;
    settings.bars.target_probability = 0.0;
    settings.bars.target_top1 = false;
    settings.bars.paraphrase = 0.0;
    settings.bars.locality = 0.0;
    settings.bars.perplexity = f64::INFINITY;
    settings.bars.perplexity_total = f64::INFINITY;
    settings
}

pub(crate) fn options(dir: &Path, settings: Settings) -> EditorOptions {
    EditorOptions {
        ledger_dir: dir.join("ledger"),
        moment_dir: dir.join("moments"),
        fingerprint: FINGERPRINT,
        settings,
        corpus: Corpus::shipped(),
        snapshot_every: SNAPSHOT_EVERY,
        disk: Disk::default(),
    }
}

pub(crate) fn go_on(_: Progress) -> Result<(), Error> {
    Ok(())
}

pub(crate) fn fact(subject: &str, prompt: &str, target: &str) -> Fact {
    Fact {
        subject: subject.to_owned(),
        prompt: prompt.to_owned(),
        target: target.to_owned(),
        ..Fact::default()
    }
}

pub(crate) fn asked(fact: Fact, request_id: &str) -> Request {
    Request {
        fact,
        request_id: request_id.to_owned(),
        method: None,
    }
}

pub(crate) fn some_facts() -> Vec<Fact> {
    vec![
        fact("Ann", "{} lives in", "Rome"),
        fact("Bob Ray", "The dog of {} is", "Rex"),
        fact("Zoe", "{} {speaks}", "Welsh"),
    ]
}

/// An editor on a tiny model, in a folder that outlives it.
pub(crate) struct Bench {
    pub(crate) dir: PathBuf,
    pub(crate) model: Transformer,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) editor: Editor,
}

impl Bench {
    pub(crate) fn open(dir: &Path) -> Self {
        Self::of(dir, tiny_model(), lenient).unwrap()
    }

    pub(crate) fn of(
        dir: &Path,
        mut model: Transformer,
        settings: impl Fn(&Transformer) -> Settings,
    ) -> Result<Self, Error> {
        let (tokenizer, settings) = (tokenizer(), settings(&model));
        let editor = Editor::open(options(dir, settings), &mut model, &tokenizer, &mut go_on)?;
        Ok(Self {
            dir: dir.to_owned(),
            model,
            tokenizer,
            editor,
        })
    }

    pub(crate) fn add(&mut self, fact: Fact) -> FactId {
        self.request(fact, "").unwrap().record.id
    }

    /// All in one batch; an answer each.
    fn request_all(&mut self, requests: Vec<Request>) -> Vec<Result<addenda_editor::Added, Error>> {
        let (model, tokenizer) = (&mut self.model, &self.tokenizer);
        let answers = self.editor.add_all(model, tokenizer, requests, &mut go_on);
        answers.unwrap()
    }

    /// All in one batch, and all are taken.
    fn add_all(&mut self, facts: &[Fact]) {
        let requests = facts.iter().map(|fact| asked(fact.clone(), "")).collect();
        assert!(self.request_all(requests).iter().all(Result::is_ok));
    }

    /// All at one stroke.
    fn retire_all(&mut self, facts: &[Fact]) {
        let ids: Vec<FactId> = facts.iter().map(Fact::id).collect();
        let planned = self
            .editor
            .plan_retire(&self.model, &self.tokenizer, &ids, &mut go_on)
            .unwrap();
        self.editor.commit_retire(&mut self.model, planned).unwrap();
    }

    pub(crate) fn request(
        &mut self,
        fact: Fact,
        request_id: &str,
    ) -> Result<addenda_editor::Added, Error> {
        self.editor.add(
            &mut self.model,
            &self.tokenizer,
            asked(fact, request_id),
            &mut go_on,
        )
    }

    pub(crate) fn retire(&mut self, id: FactId) {
        self.editor
            .retire(&mut self.model, &self.tokenizer, id, &mut go_on)
            .unwrap();
    }

    /// Logits over a text of all sorts, as they are served.
    pub(crate) fn served(&self) -> Tensor {
        let ids: Vec<u32> = (0..60).map(|n| (n * 37 + 11) % 97).collect();
        let mut kv = self.model.new_kv().unwrap();
        self.model
            .logits(&self.model.forward(Input::Ids(&ids), &mut kv).unwrap())
            .unwrap()
    }

    fn ledger(&self) -> PathBuf {
        self.dir.join("ledger/facts.ledger")
    }

    /// What is added to the base, layer by layer.
    fn deltas(&self) -> Vec<Tensor> {
        self.editor
            .patches()
            .iter()
            .map(|patch| patch.delta().unwrap())
            .collect()
    }
}

pub(crate) fn assert_near(a: &[Tensor], b: &[Tensor]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        let apart = ((a - b).norm() / b.norm()).double_value(&[]);
        assert!(apart <= 1e-5, "{apart:e} apart");
    }
}

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
fn a_restart_brings_the_facts_and_the_same_weights_back_without_optimising() {
    let dir = tempfile::tempdir().unwrap();
    let (mut served, mut revision, mut record) = (None, [0; 32], None);
    for start in 0..2 {
        let mut bench = Bench::open(dir.path());
        if start == 0 {
            let ids: Vec<FactId> = some_facts()
                .into_iter()
                .map(|fact| bench.add(fact))
                .collect();
            bench.retire(ids[2]);
            served = Some(bench.served());
            revision = bench.editor.revision();
            record = Some(bench.editor.get(ids[0]).unwrap().clone());
        } else {
            assert_eq!(bench.editor.opening().active, 2);
            assert_eq!(bench.editor.revision(), revision);
            assert_eq!(
                bench.editor.get(record.as_ref().unwrap().id).unwrap(),
                record.as_ref().unwrap()
            );
            let apart = (bench.served() - served.take().unwrap())
                .abs()
                .max()
                .double_value(&[]);
            assert!(apart <= 1e-5, "{apart:e}");
        }
    }
    let mut phases = Vec::new();
    let mut model = tiny_model();
    let settings = lenient(&model);
    Editor::open(
        options(dir.path(), settings),
        &mut model,
        &tokenizer(),
        &mut |progress| {
            phases.push(progress.phase);
            Ok(())
        },
    )
    .unwrap();
    assert!(
        !phases.contains(&Phase::Value) && !phases.contains(&Phase::Moment),
        "{phases:?}"
    );
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

#[test]
fn a_ledger_of_another_model_is_refused_while_facts_are_active() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::open(dir.path());
    let id = bench.add(some_facts().remove(0));
    let mut other = options(dir.path(), lenient(&bench.model));
    other.fingerprint = [8; 32];
    let error =
        Editor::open(other.clone(), &mut tiny_model(), &tokenizer(), &mut go_on).unwrap_err();
    assert!(matches!(error, Error::OtherModel { .. }), "{error}");
    bench.retire(id);
    Editor::open(other, &mut tiny_model(), &tokenizer(), &mut go_on).unwrap();
}

#[test]
fn a_torn_ledger_tail_is_cut_and_a_flipped_byte_in_the_middle_stops_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::open(dir.path());
    bench.add(some_facts().remove(0));
    let (revision, path) = (bench.editor.revision(), bench.ledger());
    let one = std::fs::read(&path).unwrap();
    bench.add(some_facts().remove(1));
    let two = std::fs::read(&path).unwrap();
    drop(bench);

    std::fs::write(&path, &two[..two.len() - 40]).unwrap();
    let bench = Bench::open(dir.path());
    assert_eq!(
        bench.editor.opening().torn_bytes,
        (two.len() - 40 - one.len()) as u64
    );
    assert_eq!(bench.editor.revision(), revision);
    drop(bench);

    let mut flipped = two.clone();
    flipped[one.len() / 2] ^= 4;
    std::fs::write(&path, &flipped).unwrap();
    let Err(error) = Bench::of(dir.path(), tiny_model(), lenient) else {
        panic!("it started")
    };
    assert!(
        matches!(error, Error::DamagedLedger { frame: 1, .. }),
        "{error}"
    );
}

/// Run by the test below in a process of its own, which is killed.
#[test]
#[ignore = "a part of another test"]
fn child_that_edits_until_it_is_killed() {
    let Some(dir) = std::env::var_os("ADDENDA_TEST_EDITS_IN") else {
        return;
    };
    let mut bench = Bench::open(Path::new(&dir));
    println!("\nready");
    for round in 0_u64.. {
        let target = if round % 2 == 0 { "Rome" } else { "Oslo" };
        let id = bench.add(fact("Ann", "{} lives in", target));
        if round % 3 == 2 {
            bench.retire(id);
        }
        println!(
            "\nacknowledged {}",
            bench.editor.events(0).last().unwrap().sequence
        );
    }
}

#[test]
fn a_kill_at_any_moment_leaves_each_fact_wholly_in_or_wholly_out() {
    kill(4);
}

#[test]
#[ignore = "minutes; make crash"]
fn a_hundred_kills_leave_each_fact_wholly_in_or_wholly_out() {
    kill(100);
}

/// So many processes that add, supersede and retire are killed, each at another point; after each the ledger is whole
/// and the weights are what it says.
fn kill(rounds: u64) {
    use std::io::{BufRead, BufReader};
    let dir = tempfile::tempdir().unwrap();
    Bench::open(dir.path())
        .editor
        .prepare(&tiny_model(), &tokenizer(), None, &mut go_on)
        .unwrap();
    for round in 0..rounds {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "editor::child_that_edits_until_it_is_killed",
                "--ignored",
                "--nocapture",
            ])
            .env("ADDENDA_TEST_EDITS_IN", dir.path())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut acknowledged = 0;
        let mut after_ready = 0;
        for line in BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok)
        {
            if let Some(sequence) = line.strip_prefix("acknowledged ") {
                acknowledged = sequence.parse().unwrap();
            }
            if line == "ready" || acknowledged > 0 {
                after_ready += 1;
            }
            if after_ready > 2 * (round % 4) {
                // Not to wait for anything: to die at another point of its next edit every time.
                std::thread::sleep(Duration::from_micros(round * 7919 % 40_000));
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let bench = Bench::open(dir.path());
        let frames = bench.editor.opening().frames;
        assert!(
            frames >= acknowledged,
            "{acknowledged} acknowledged, {frames} there"
        );
        assert!(bench.editor.active() <= 1, "Ann lives in one place at most");
        let base = Bench::open(tempfile::tempdir().unwrap().path()).served();
        assert_eq!(
            bench.editor.active() == 0,
            bench.served() == base,
            "the weights say what the ledger says"
        );
    }
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/ledger-v1")
}

/// Made the fixture once; to be run again only for a new version, into a new folder.
#[test]
#[ignore = "writes the fixture of the test below"]
fn write_the_ledger_fixture() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::open(dir.path());
    let ids: Vec<FactId> = some_facts()
        .into_iter()
        .enumerate()
        .map(|(number, fact)| {
            let added = bench.request(fact, &format!("request-{number}"));
            added.unwrap().record.id
        })
        .collect();
    bench
        .request(fact("Ann", "{} lives in", "Oslo"), "")
        .unwrap();
    bench.retire(ids[2]);
    std::fs::create_dir_all(fixture()).unwrap();
    std::fs::copy(bench.ledger(), fixture().join("facts.ledger")).unwrap();
}

#[test]
fn a_ledger_that_an_older_program_wrote_is_still_read() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("ledger")).unwrap();
    std::fs::copy(
        fixture().join("facts.ledger"),
        dir.path().join("ledger/facts.ledger"),
    )
    .unwrap();
    let bench = Bench::open(dir.path());
    let told: Vec<_> = bench
        .editor
        .list(true, 0)
        .map(|record| (record.fact.target.as_str(), record.state))
        .collect();
    assert_eq!(
        told,
        [
            ("Rome", FactState::Superseded),
            ("Rex", FactState::Active),
            ("Welsh", FactState::Retired),
            ("Oslo", FactState::Active),
        ]
    );
    let revision = blake3::Hash::from_bytes(bench.editor.revision()).to_hex();
    assert_eq!(
        revision.as_str(),
        "2f2f48a96ec997fb799fa9def1324b43c12e6ba7b653d7e6ae4b9b468c4593dd",
        "packets made under these weights are still found"
    );
}
