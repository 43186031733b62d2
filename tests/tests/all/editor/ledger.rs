//! What the ledger promises: restarts, other models, torn tails and damage, kills, and ledgers of older programs.

use super::{Bench, assert_near, fact, go_on, lenient, options, some_facts, tiny_model, tokenizer};
use addenda_editor::{Editor, Error, FactId, FactState, Phase, Progress};
use std::path::{Path, PathBuf};
use std::time::Duration;

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
    let (_, phases) = phases_of_a_start(dir.path());
    assert_eq!(phases, []);
}

/// An editor, and what it was busy with when it was opened.
fn phases_of_a_start(dir: &Path) -> (Bench, Vec<Phase>) {
    let mut phases = Vec::new();
    let (mut model, tokenizer) = (tiny_model(), tokenizer());
    let settings = lenient(&model);
    let mut pace = |progress: Progress| {
        phases.push(progress.phase);
        Ok(())
    };
    let editor = Editor::open(options(dir, settings), &mut model, &tokenizer, &mut pace);
    let bench = Bench {
        dir: dir.to_owned(),
        model,
        tokenizer,
        editor: editor.unwrap(),
    };
    (bench, phases)
}

#[test]
fn patches_that_were_lost_damaged_or_left_behind_are_worked_out_anew_without_optimising() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::open(dir.path());
    let path = dir.path().join("ledger/patches.safetensors");
    bench.add(some_facts().remove(0));
    let of_one = std::fs::read(&path).unwrap();
    bench.add(some_facts().remove(1));
    let (served, deltas) = (bench.served(), bench.deltas());
    drop(bench);
    let damaged = {
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        bytes
    };
    for instead in [None, Some(damaged), Some(of_one)] {
        match instead {
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let (bench, phases) = phases_of_a_start(dir.path());
        assert!(phases.contains(&Phase::Solve), "{phases:?}");
        assert!(!phases.contains(&Phase::Value), "{phases:?}");
        assert_near(&bench.deltas(), &deltas);
        drop(bench);
        // What was worked out is kept again, and serves the next start to the bit.
        let (bench, phases) = phases_of_a_start(dir.path());
        assert_eq!(phases, []);
        let apart = (bench.served() - &served).abs().max().double_value(&[]);
        assert!(apart <= 1e-5, "{apart:e}");
    }
    let (mut bench, _) = phases_of_a_start(dir.path());
    bench.retire_all(&some_facts()[..2]);
    assert!(!path.exists());
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
                "editor::ledger::child_that_edits_until_it_is_killed",
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
