//! A start from a snapshot of the ledger is the start from all its frames; one that can't be used costs time only.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use addenda_editor::{Disk, Editor, EditorOptions, Error, Fact, FactState, Fault, Faults, IoPoint};
use addenda_model::{Tokenizer, Transformer};

use crate::editor::{asked, fact, go_on, lenient, options, some_facts, tiny_model, tokenizer};

struct Bench {
    model: Transformer,
    tokenizer: Tokenizer,
    editor: Editor,
}

impl Bench {
    fn of(dir: &Path, change: impl Fn(&mut EditorOptions)) -> Result<Self, Error> {
        let (mut model, tokenizer) = (tiny_model(), tokenizer());
        let mut options = options(dir, lenient(&model));
        options.snapshot_every = 2;
        change(&mut options);
        let editor = Editor::open(options, &mut model, &tokenizer, &mut go_on)?;
        Ok(Self {
            model,
            tokenizer,
            editor,
        })
    }

    fn open(dir: &Path) -> Self {
        Self::of(dir, |_| {}).unwrap()
    }

    fn add(&mut self, fact: Fact, request_id: &str) -> Result<addenda_editor::Added, Error> {
        let request = asked(fact, request_id);
        self.editor
            .add(&mut self.model, &self.tokenizer, request, &mut go_on)
    }

    /// All that an editor says of itself.
    fn says(&mut self) -> String {
        let facts: Vec<_> = self.editor.list(true, 0).cloned().collect();
        let digests: Vec<[u8; 32]> = self
            .editor
            .patches()
            .iter()
            .map(|patch| patch.digest().unwrap())
            .collect();
        // A request that was answered is answered again.
        let again = self.add(some_facts().remove(0), "first").unwrap();
        let (revision, events) = (self.editor.revision(), self.editor.events(0));
        format!("{facts:?} {events:?} {revision:?} {digests:?} {again:?}")
    }
}

fn snapshot(dir: &Path) -> PathBuf {
    dir.join("ledger/facts.snapshot")
}

/// Five frames: added, added, superseding, added, retired.
fn some_history(dir: &Path) {
    let mut bench = Bench::open(dir);
    let [ann, bob, zoe] = some_facts().try_into().unwrap();
    bench.add(ann, "first").unwrap();
    bench.add(bob, "").unwrap();
    bench.add(fact("Ann", "{} lives in", "Oslo"), "").unwrap();
    let id = bench.add(zoe, "").unwrap().record.id;
    let Bench {
        model,
        tokenizer,
        editor,
    } = &mut bench;
    editor.retire(model, tokenizer, id, &mut go_on).unwrap();
}

#[test]
fn a_start_from_a_snapshot_is_the_start_from_all_frames() {
    let dir = tempfile::tempdir().unwrap();
    some_history(dir.path());
    let mut short = Bench::open(dir.path());
    let opening = short.editor.opening();
    assert_eq!((opening.frames, opening.snapshot), (5, 4));
    let short = short.says();
    std::fs::remove_file(snapshot(dir.path())).unwrap();
    let mut full = Bench::open(dir.path());
    assert_eq!(full.editor.opening().snapshot, 0);
    assert_eq!(full.says(), short);
}

#[test]
fn a_snapshot_that_is_damaged_newer_or_anothers_costs_a_full_replay_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    some_history(dir.path());
    let whole = std::fs::read(snapshot(dir.path())).unwrap();
    let ledger = std::fs::read(dir.path().join("ledger/facts.ledger")).unwrap();
    let expected = Bench::open(dir.path()).says();
    let mut spoilt: Vec<Vec<u8>> = (0..whole.len())
        .step_by(whole.len() / 12)
        .map(|at| {
            let mut bytes = whole.clone();
            bytes[at] ^= 8;
            bytes
        })
        .collect();
    spoilt.push(whole[..whole.len() - 1].to_vec());
    spoilt.push(Vec::new());
    for bytes in spoilt {
        std::fs::write(snapshot(dir.path()), bytes).unwrap();
        let mut bench = Bench::open(dir.path());
        assert_eq!(bench.editor.opening().snapshot, 0);
        assert_eq!(bench.says(), expected);
    }
    // Of another ledger, as after a backup that was restored beside it.
    let other = tempfile::tempdir().unwrap();
    Bench::open(other.path())
        .add(fact("Bob Ray", "The dog of {} is", "Max"), "")
        .unwrap();
    std::fs::copy(
        other.path().join("ledger/facts.ledger"),
        dir.path().join("ledger/facts.ledger"),
    )
    .unwrap();
    std::fs::write(snapshot(dir.path()), &whole).unwrap();
    let bench = Bench::open(dir.path());
    assert_eq!(
        (bench.editor.opening().snapshot, bench.editor.active()),
        (0, 1)
    );
    drop(bench);
    std::fs::write(dir.path().join("ledger/facts.ledger"), ledger).unwrap();
    assert_eq!(Bench::open(dir.path()).says(), expected);
}

#[test]
fn a_disk_that_fails_while_facts_come_leaves_exactly_the_acknowledged_ones() {
    let points = [
        IoPoint::Create,
        IoPoint::Write,
        IoPoint::Sync,
        IoPoint::SyncDirectory,
    ];
    for point in points {
        for after in [0, 1, 2, 3] {
            let dir = tempfile::tempdir().unwrap();
            let faults = Arc::new(Faults::default());
            let disk = Disk::with(Arc::clone(&faults));
            let mut bench = Bench::of(dir.path(), |options| options.disk = disk.clone()).unwrap();
            faults.arm(point, after, Fault::Broken, 1);
            let mut acknowledged = Vec::new();
            for fact in some_facts() {
                match bench.add(fact, "") {
                    Ok(added) => acknowledged.push(added.record.id),
                    Err(Error::Io { .. } | Error::LedgerStuck) => {}
                    Err(other) => panic!("{other}"),
                }
            }
            faults.disarm();
            let active = |bench: &Bench| -> Vec<_> {
                let facts = bench.editor.list(false, 0);
                facts.map(|record| record.id).collect()
            };
            assert_eq!(active(&bench), acknowledged, "{point:?} behind {after}");
            let revision = bench.editor.revision();
            drop(bench);
            let bench = Bench::open(dir.path());
            assert_eq!(active(&bench), acknowledged, "{point:?} behind {after}");
            assert_eq!(bench.editor.revision(), revision);
        }
    }
}

#[test]
fn a_fact_that_waits_for_its_day_waits_on_behind_a_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::open(dir.path());
    let later = Fact {
        valid_from_ms: Some(u64::MAX),
        ..fact("Zoe", "{} {speaks}", "Welsh")
    };
    let id = bench.add(later, "").unwrap().record.id;
    bench.add(some_facts().remove(0), "first").unwrap();
    assert!(snapshot(dir.path()).exists());
    let (said, revision) = (bench.says(), bench.editor.revision());
    drop(bench);
    let mut bench = Bench::open(dir.path());
    assert_eq!(bench.says(), said);
    assert_eq!(bench.editor.revision(), revision);
    assert_eq!(bench.editor.next_turn(), Some(u64::MAX));
    assert_eq!(bench.editor.get(id).unwrap().state, FactState::Waiting);
}
