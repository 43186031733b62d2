//! A process that puts packets and facts into one data directory and is killed at a random instant loses nothing that
//! it acknowledged, and a fact that it was writing is wholly in or wholly out.
//!
//! The test runs its own binary as the process to kill. The child says what it is about to do to a fact and every
//! acknowledged change, each on a line of its own; what stood in the pipe when it died was said.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use addenda_cache::{Effort, KeyFields, PacketHeader, PacketId, PacketKey, Store, StoreOptions};
use addenda_editor::{Disk, Editor, FactRecord, FactState, Fault, Faults, IoPoint};
use addenda_model::Transformer;
use proptest::prelude::Rng;

use crate::editor::{asked, assert_near, fact, go_on, lenient, options, tiny_model, tokenizer};

/// Rounds in an ordinary run of the tests, and in `make crash`.
const ROUNDS: u32 = 30;
const NIGHTLY_ROUNDS: u32 = 300;
/// Subjects of facts; a new fact about one takes the older one's place.
const SUBJECTS: [&str; 4] = ["Ann", "Bob", "Cy", "Dee"];
/// Where the child finds its directory and its first number. An argument would be taken for a test's name.
const DIRECTORY: &str = "DIRECTORY_CRASH_TEST_DIRECTORY";
const FIRST: &str = "DIRECTORY_CRASH_TEST_FIRST";

/// A packet whose number decides everything about it.
struct Sample {
    header: PacketHeader,
    token_ids: Vec<u32>,
    body: Vec<u8>,
}

fn sample(number: u32) -> Sample {
    let token_ids: Vec<u32> = (0..number % 97 + 1).map(|at| at ^ number).collect();
    let key = PacketKey::derive(&KeyFields {
        revision: &[7; 32],
        tokenizer: &[8; 32],
        adapter: &[0; 32],
        primer: &[0; 32],
        token_ids: &token_ids,
        dtype: "bf16",
        rope: "default theta=10000",
        namespace: "default",
    });
    let header = PacketHeader {
        key,
        namespace: "default".to_owned(),
        document: String::new(),
        source: *blake3::hash(&number.to_le_bytes()).as_bytes(),
        revision: [7; 32],
        tokenizer: [8; 32],
        adapter: [0; 32],
        primer: [0; 32],
        tokens: u32::try_from(token_ids.len()).unwrap(),
        dtype: "bf16".to_owned(),
        rope: "default theta=10000".to_owned(),
        layers: 2,
        kv_heads: 1,
        head_dim: 16,
        created_at_ms: 1_700_000_000_000 + u64::from(number),
    };
    let mut body = vec![0; (number as usize * 7919) % 60_000 + 1];
    let mut bytes = blake3::Hasher::new();
    bytes
        .update(&number.to_le_bytes())
        .finalize_xof()
        .fill(&mut body);
    Sample {
        header,
        token_ids,
        body,
    }
}

/// A data directory in use: packets and facts.
struct Opened {
    store: Store,
    model: Transformer,
    editor: Editor,
}

impl Opened {
    fn new(directory: &Path) -> Self {
        Self::on(directory, Disk::default())
    }

    /// With the ledger on a disk of its own kind.
    fn on(directory: &Path, disk: Disk) -> Self {
        let small = StoreOptions {
            free_floor: 0,
            index_cache_bytes: 1 << 20,
            extent_bytes: 1 << 19,
            ..StoreOptions::default()
        };
        let store = Store::open(directory, small).unwrap();
        let mut model = tiny_model();
        let mut settings = lenient(&model);
        // What z is does not matter here, only that there is one.
        settings.value.steps = 2;
        let mut options = options(directory, settings);
        options.snapshot_every = 5;
        options.disk = disk;
        let editor = Editor::open(options, &mut model, &tokenizer(), &mut go_on).unwrap();
        Self {
            store,
            model,
            editor,
        }
    }

    fn add(&mut self, subject: &str, target: &str) {
        let request = asked(fact(subject, "{} is", target), "");
        let added = self
            .editor
            .add(&mut self.model, &tokenizer(), request, &mut go_on);
        assert_eq!(added.unwrap().record.state, FactState::Active);
    }

    fn about(&self, subject: &str) -> Option<&FactRecord> {
        let mut active = self.editor.list(false, 0);
        active.find(|record| record.fact.subject == subject)
    }
}

#[test]
#[ignore = "the process that the crash test kills; alone it does nothing"]
fn child() {
    let (Ok(directory), Ok(first)) = (std::env::var(DIRECTORY), std::env::var(FIRST)) else {
        return;
    };
    // A slow disk, so that many die while a frame is written.
    let faults = Arc::new(Faults::default());
    let slow = Fault::Slow(Duration::from_millis(10));
    faults.arm(IoPoint::Sync, 0, slow, u64::MAX);
    let mut opened = Opened::on(Path::new(&directory), Disk::with(faults));
    let mut out = std::io::stdout();
    let mut say = |what: &str, number: u32, subject: &str| {
        // One write, so that the parent sees all of a line or nothing of it; a line end first, because the test
        // harness leaves one open.
        let line = format!("\nsaid {what} {number} {subject}\n");
        out.write_all(line.as_bytes()).unwrap();
        out.flush().unwrap();
    };
    let first: u32 = first.parse().unwrap();
    for number in first..first + 10_000 {
        let Sample {
            header,
            token_ids,
            body,
        } = sample(number);
        let id = opened.store.put(&header, &token_ids, &[&body]).unwrap().id;
        say("put", number, "");
        match number % 5 {
            1 => {
                opened.store.pin(&id).unwrap();
                say("pinned", number, "");
            }
            2 => {
                say("deleting", number, "");
                opened.store.delete(&id).unwrap();
                say("deleted", number, "");
            }
            _ => {}
        }
        let subject = SUBJECTS[number as usize % SUBJECTS.len()];
        let about = opened.about(subject).map(|record| record.id);
        if let Some(id) = about.filter(|_| number % 3 == 0) {
            say("retiring", number, subject);
            let Opened { editor, model, .. } = &mut opened;
            editor.retire(model, &tokenizer(), id, &mut go_on).unwrap();
            say("retired", number, subject);
        } else {
            say("adding", number, subject);
            opened.add(subject, &target(number));
            say("added", number, subject);
        }
        if number % 7 == 0 {
            let go_on = &mut |_: &_| ControlFlow::Continue(());
            opened.store.compact(Effort::Thorough, go_on).unwrap();
            say("compacted", number, "");
        }
    }
}

fn target(number: u32) -> String {
    format!("v{number}")
}

/// What the children so far have said.
#[derive(Debug, Default)]
struct Said {
    put: BTreeSet<u32>,
    pinned: BTreeSet<u32>,
    deleting: BTreeSet<u32>,
    deleted: BTreeSet<u32>,
    compacted: u32,
    retired: u32,
    /// Targets of all facts that were added.
    added: BTreeSet<u32>,
    /// The target of the active fact about each subject.
    active: BTreeMap<String, u32>,
    /// What a child was doing to a subject's fact: the number that it was adding, or none where it was retiring it.
    doing: Option<(String, Option<u32>)>,
    /// Changes that were durable when a child died, which it had not said.
    unsaid: u32,
}

impl Said {
    fn hear(&mut self, line: &str) -> bool {
        let Some(line) = line.strip_prefix("said ") else {
            return false;
        };
        let mut words = line.split(' ');
        let mut word = || words.next().unwrap_or_default();
        let (what, number, subject) = (word(), word().parse().unwrap(), word().to_owned());
        match what {
            "put" => drop(self.put.insert(number)),
            "pinned" => drop(self.pinned.insert(number)),
            "deleting" => drop(self.deleting.insert(number)),
            "deleted" => drop(self.deleted.insert(number)),
            "compacted" => self.compacted += 1,
            "adding" => self.doing = Some((subject, Some(number))),
            "retiring" => self.doing = Some((subject, None)),
            "added" => {
                self.added.insert(number);
                self.active.insert(subject, number);
                self.doing = None;
            }
            "retired" => {
                self.retired += 1;
                self.active.remove(&subject);
                self.doing = None;
            }
            other => panic!("the child said {other}"),
        }
        true
    }

    /// Compares facts, and takes over what became of the one that a child died over.
    fn compare_facts(&mut self, opened: &Opened) {
        let facts: BTreeMap<String, u32> = opened
            .editor
            .list(false, 0)
            .map(|record| (record.fact.subject.clone(), number_of(record)))
            .collect();
        assert_eq!(facts.len(), opened.editor.active(), "one fact a subject");
        if let Some((subject, after)) = self.doing.take() {
            let (found, before) = (facts.get(&subject), self.active.get(&subject));
            assert!(
                found == before || found == after.as_ref(),
                "{subject}: {found:?} is neither {before:?} nor {after:?}"
            );
            self.unsaid += u32::from(found != before);
            if let (Some(number), true) = (after, found == after.as_ref()) {
                self.added.insert(number);
            }
            match found.copied() {
                Some(number) => drop(self.active.insert(subject, number)),
                None => drop(self.active.remove(&subject)),
            }
        }
        assert_eq!(facts, self.active);
        let told: BTreeSet<u32> = opened.editor.list(true, 0).map(number_of).collect();
        assert_eq!(told, self.added, "facts that ended are told of too");
        let last = opened.editor.events(0).last();
        let revision = last.map_or(opened.editor.revision(), |event| event.revision);
        assert_eq!(opened.editor.revision(), revision);
    }

    fn compare_packets(&self, store: &Store) {
        assert_eq!(store.recovery().damaged, []);
        for number in &self.put {
            let sample = sample(*number);
            let found = store.lookup(&sample.header.key).unwrap();
            if self.deleted.contains(number) {
                assert_eq!(found, None, "packet {number} was deleted");
            } else if !self.deleting.contains(number) {
                let found = found.unwrap_or_else(|| panic!("packet {number} is lost"));
                assert!(found.pinned || !self.pinned.contains(number));
                assert_eq!(store.read(&found.id).unwrap().as_ref(), sample.body);
            }
        }
        let mut after: Option<PacketId> = None;
        loop {
            let page = store.list("default", after.as_ref(), 256).unwrap();
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            page.iter()
                .for_each(|one| drop(store.read(&one.id).unwrap()));
        }
    }
}

fn number_of(record: &FactRecord) -> u32 {
    record.fact.target.trim()[1..].parse().unwrap()
}

/// Starts a child and kills it at a random moment.
fn round(directory: &Path, first: u32, said: &mut Said) {
    let mut rng = proptest::test_runner::TestRng::from_seed(
        proptest::test_runner::RngAlgorithm::ChaCha,
        blake3::hash(&first.to_le_bytes()).as_bytes(),
    );
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "directory_crash::child",
            "--exact",
            "--ignored",
            "--nocapture",
        ])
        .env(DIRECTORY, directory)
        .env(FIRST, first.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let patience = rng.next_u32() % 24 + 1;
    let pause = Duration::from_micros(u64::from(rng.next_u32() % 40_000));
    let (mut heard, mut killed) = (0, false);
    for line in lines.map_while(Result::ok) {
        heard += u32::from(said.hear(&line));
        if heard >= patience && !killed {
            // Not to wait for anything: to die at another point of the work every time.
            std::thread::sleep(pause);
            child.kill().unwrap();
            killed = true;
        }
    }
    child.wait().unwrap();
    assert!(killed, "the child ended by itself");
}

fn rounds(rounds: u32) {
    let directory = tempfile::tempdir().unwrap();
    let mut said = Said::default();
    let mut torn = 0;
    drop(Opened::new(directory.path()));
    for _ in 0..rounds {
        // What a child was putting when it died has a number that nobody acknowledged.
        let first = said.put.last().map_or(0, |last| last + 2);
        round(directory.path(), first, &mut said);
        let opened = Opened::new(directory.path());
        torn += u32::from(opened.editor.opening().torn_bytes > 0);
        said.compare_packets(&opened.store);
        said.compare_facts(&opened);
    }
    println!(
        "{rounds} kills: {} packets put, {} facts added, {} retired, {} compactions; {} died over a durable frame, {torn} left a torn one",
        said.put.len(),
        said.added.len(),
        said.retired,
        said.compacted,
        said.unsaid
    );
    // Enough kills meet each moment of a frame's writing.
    assert!(rounds < NIGHTLY_ROUNDS || said.unsaid > 0);
    assert!(said.put.len() > rounds as usize && said.added.len() > rounds as usize / 2);
    // The weights are those of the facts that are active, whatever happened on the way to them.
    let opened = Opened::new(directory.path());
    let fresh = tempfile::tempdir().unwrap();
    let mut fresh = Opened::new(fresh.path());
    for (subject, number) in &said.active {
        fresh.add(subject, &target(*number));
    }
    let deltas = |opened: &Opened| {
        let patches = opened.editor.patches().iter();
        patches
            .map(|patch| patch.delta().unwrap())
            .collect::<Vec<_>>()
    };
    assert_near(&deltas(&opened), &deltas(&fresh));
    assert_eq!(opened.editor.revision(), fresh.editor.revision());
}

#[test]
fn a_killed_process_loses_no_packet_and_no_fact_that_it_acknowledged() {
    rounds(ROUNDS);
}

#[test]
#[ignore = "takes many minutes: `make crash`"]
fn three_hundred_kills_lose_no_packet_and_no_fact() {
    rounds(NIGHTLY_ROUNDS);
}
