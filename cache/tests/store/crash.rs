//! A process that is killed while it writes loses nothing that it acknowledged and shows nothing half-written.
//!
//! The test runs its own binary as the process to kill. The child says every acknowledged change on its standard
//! output, each on a line of its own; what stood in the pipe when it died was acknowledged.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use addenda_cache::{Effort, Store};
use proptest::prelude::Rng;

use crate::sample::{Sample, options};

/// Rounds in an ordinary run of the tests, and in `make crash`.
const ROUNDS: u32 = 30;
const NIGHTLY_ROUNDS: u32 = 300;
/// Numbers that one child may use.
const NUMBERS: u32 = 100_000;
/// Where the child finds its directory and its first number. An argument would be taken for a test's name.
const DIRECTORY: &str = "ADDENDA_CRASH_TEST_DIRECTORY";
const FIRST: &str = "ADDENDA_CRASH_TEST_FIRST";

/// The packet of a number: sizes from a few bytes to more than an extent, documents that are often replaced.
fn sample(number: u32) -> Sample {
    let document = if number.is_multiple_of(4) {
        format!("document {}", number % 12)
    } else {
        String::new()
    };
    Sample::of(
        "default",
        &document,
        number,
        (number as usize * 7919) % 150_000 + 1,
    )
}

fn store(directory: &Path) -> Store {
    let small = addenda_cache::StoreOptions {
        extent_bytes: 1 << 20,
        ..options()
    };
    Store::open(directory, small).unwrap()
}

#[test]
#[ignore = "the process that the crash test kills; alone it does nothing"]
fn child() {
    let (Ok(directory), Ok(first)) = (std::env::var(DIRECTORY), std::env::var(FIRST)) else {
        return;
    };
    let store = store(Path::new(&directory));
    let mut out = std::io::stdout();
    let mut say = |what: &str, number: u32| {
        // One write, so that the parent sees all of a line or nothing of it; a line end first, because the test
        // harness leaves one open.
        out.write_all(format!("\nack {what} {number}\n").as_bytes())
            .unwrap();
        out.flush().unwrap();
    };
    let first: u32 = first.parse().unwrap();
    for number in first..first + NUMBERS {
        let id = sample(number).put(&store);
        say("put", number);
        match number % 6 {
            1 => {
                store.pin(&id).unwrap();
                say("pin", number);
            }
            2 => {
                say("deleting", number);
                store.delete(&id).unwrap();
                say("deleted", number);
            }
            _ => {}
        }
        if number.is_multiple_of(50) {
            store.checkpoint().unwrap();
        }
        if number.is_multiple_of(7) {
            store
                .compact(Effort::Thorough, &mut |_| ControlFlow::Continue(()))
                .unwrap();
            say("compacted", number);
        }
    }
}

/// What the children so far have said.
#[derive(Debug, Default)]
struct Said {
    put: BTreeSet<u32>,
    pinned: BTreeSet<u32>,
    deleting: BTreeSet<u32>,
    deleted: BTreeSet<u32>,
    compacted: BTreeSet<u32>,
    /// What a child was putting when it died: it may be there or not.
    unsaid: BTreeSet<u32>,
}

impl Said {
    fn hear(&mut self, line: &str) {
        let Some((what, number)) = line
            .strip_prefix("ack ")
            .and_then(|line| line.split_once(' '))
        else {
            return;
        };
        let Ok(number) = number.parse() else { return };
        match what {
            "put" => self.put.insert(number),
            "pin" => self.pinned.insert(number),
            "deleting" => self.deleting.insert(number),
            "deleted" => self.deleted.insert(number),
            "compacted" => self.compacted.insert(number),
            other => panic!("the child said {other}"),
        };
    }

    /// Whether a later text of the same document was put, or may have been when a child died.
    fn is_replaced(&self, number: u32) -> bool {
        let same_document = |later: &u32| (later - number).is_multiple_of(12);
        number.is_multiple_of(4)
            && (self.put.range(number + 1..).any(same_document)
                || self.unsaid.range(number + 1..).any(same_document))
    }
}

/// Starts a child, kills it at a random moment, and returns the number that it may have been putting.
fn round(directory: &Path, first: u32, said: &mut Said) -> u32 {
    let mut rng = proptest::test_runner::TestRng::from_seed(
        proptest::test_runner::RngAlgorithm::ChaCha,
        blake3::hash(&first.to_le_bytes()).as_bytes(),
    );
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["crash::child", "--exact", "--ignored", "--nocapture"])
        .env(DIRECTORY, directory)
        .env(FIRST, first.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let patience = rng.next_u32() % 60;
    let pause = Duration::from_micros(u64::from(rng.next_u32() % 4_000));
    let (mut heard, mut killed) = (0, false);
    for line in lines.map_while(Result::ok) {
        said.hear(&line);
        heard += u32::from(line.starts_with("ack "));
        if heard > patience && !killed {
            // Not to wait for anything: to die at another point of the next write every time.
            std::thread::sleep(pause);
            child.kill().unwrap();
            killed = true;
        }
    }
    child.wait().unwrap();
    assert!(killed, "the child ended by itself");
    said.put.last().map_or(first, |last| last + 1)
}

#[test]
fn a_killed_process_loses_nothing_acknowledged_and_shows_nothing_in_part() {
    rounds(ROUNDS);
}

#[test]
#[ignore = "takes minutes: `make crash`"]
fn three_hundred_kills_lose_nothing() {
    rounds(NIGHTLY_ROUNDS);
}

fn rounds(rounds: u32) {
    let directory = tempfile::tempdir().unwrap();
    let mut said = Said::default();
    let mut next = 0;
    for round_number in 0..rounds {
        let first = next;
        let unsaid = round(directory.path(), first, &mut said);
        said.unsaid.insert(unsaid);
        let store = store(directory.path());
        assert_eq!(store.recovery().damaged, [], "round {round_number}");
        for number in &said.put {
            if said.deleted.contains(number) {
                sample(*number).assert_missing(&store);
            } else if !said.deleting.contains(number) && !said.is_replaced(*number) {
                sample(*number).assert_in(&store);
            }
        }
        for manifest in store.list("default", None, 10_000).unwrap() {
            store.read(&manifest.id).unwrap();
        }
        for number in &said.pinned {
            if let Some(found) = store.lookup(&sample(*number).header.key).unwrap() {
                assert!(found.pinned, "packet {number} lost its pin");
            }
        }
        let report = store.verify(&mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!((report.damaged.len(), report.damaged_bytes), (0, 0));
        // The one that was being written when the child died is there whole, or not at all.
        let last = sample(unsaid);
        if store.lookup(&last.header.key).unwrap().is_some() {
            last.assert_in(&store);
        }
        next = unsaid + 1;
    }
    assert!(
        said.put.len() > rounds as usize && said.compacted.len() > rounds as usize / 2,
        "{} packets were put, {} compactions ended",
        said.put.len(),
        said.compacted.len()
    );
}
