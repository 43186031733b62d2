//! Any history of operations, restarts, crashes and failures of the disk included, against a plain map.
//!
//! What the model says of failures: an operation that met one and gave an error did not happen, neither now nor after
//! any restart, for what was written of it is cut away; one that gave none happened as if there had been no failure.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use addenda_cache::{Disk, Effort, Fault, Faults, IoPoint, PacketId, Result, Store, StoreOptions};
use proptest::prelude::{Strategy, any, prop_oneof};
use proptest::test_runner::{Config, TestRunner};
use tempfile::TempDir;

use crate::sample::{Sample, copy, options};

const NAMESPACES: [&str; 2] = ["default", "ward-3"];

#[derive(Debug, Clone)]
enum Operation {
    Put {
        namespace: usize,
        document: Option<u8>,
        number: u32,
        size: usize,
    },
    /// Puts a packet that was made for a document without binding it.
    Stage {
        namespace: usize,
        document: u8,
        number: u32,
    },
    Bind {
        namespace: usize,
        document: u8,
        source: u32,
        parts: Vec<u32>,
    },
    Delete {
        namespace: usize,
        number: u32,
    },
    DeleteDocument {
        namespace: usize,
        document: u8,
    },
    Pin {
        namespace: usize,
        number: u32,
        pinned: bool,
    },
    Reopen,
    Rebuild,
    /// The process is killed: what sled had not written is lost.
    Crash,
    LoseIndex,
    Compact,
    /// An operation on a disk of which one operation, the one behind the next few of its kind, fails; so may as many
    /// more as come at once.
    Failing {
        point: IoPoint,
        after: u64,
        fault: Fault,
        times: u64,
        operation: Box<Operation>,
    },
}

fn operations() -> impl Strategy<Value = Operation> {
    // Most operations write and sync; what comes once in a while is tried as often as it comes.
    let often = [IoPoint::Write, IoPoint::Sync].repeat(5);
    let points = proptest::sample::select([often, IoPoint::ALL.to_vec()].concat());
    let faults = proptest::sample::select(&[Fault::Full, Fault::Broken, Fault::Short][..]);
    let failing = (points, 0..3u64, faults, 1..3u64, sound_operations());
    prop_oneof![
        2 => sound_operations(),
        1 => failing.prop_map(|(point, after, fault, times, operation)| Operation::Failing {
            point,
            after,
            fault,
            times,
            operation: Box::new(operation),
        }),
    ]
}

fn sound_operations() -> impl Strategy<Value = Operation> {
    let (namespace, document, number) = (0..2usize, 0..3u8, 0..6u32);
    prop_oneof![
        8 => (namespace.clone(), proptest::option::of(document.clone()), number.clone(), 1..9_000usize)
            .prop_map(|(namespace, document, number, size)| Operation::Put { namespace, document, number, size }),
        3 => (namespace.clone(), document.clone(), number.clone())
            .prop_map(|(namespace, document, number)| Operation::Stage { namespace, document, number }),
        4 => (namespace.clone(), document.clone(), 0..2u32, proptest::collection::vec(number.clone(), 1..4))
            .prop_map(|(namespace, document, source, parts)| Operation::Bind { namespace, document, source, parts }),
        3 => (namespace.clone(), number.clone())
            .prop_map(|(namespace, number)| Operation::Delete { namespace, number }),
        2 => (namespace.clone(), document)
            .prop_map(|(namespace, document)| Operation::DeleteDocument { namespace, document }),
        3 => (namespace, number, any::<bool>())
            .prop_map(|(namespace, number, pinned)| Operation::Pin { namespace, number, pinned }),
        2 => proptest::strategy::Just(Operation::Reopen),
        1 => proptest::strategy::Just(Operation::Rebuild),
        2 => proptest::strategy::Just(Operation::Crash),
        1 => proptest::strategy::Just(Operation::LoseIndex),
        3 => proptest::strategy::Just(Operation::Compact),
    ]
}

/// The packets of a text's parts; none where one is gone.
type Parts = Vec<Option<u32>>;

/// What the store should hold.
#[derive(Debug, Default)]
struct Model {
    /// By namespace and number.
    packets: BTreeMap<(usize, u32), Held>,
    /// By namespace and name: the text's number, and the editions that stand for it.
    documents: BTreeMap<(usize, u8), (u32, Vec<Parts>)>,
}

#[derive(Debug)]
struct Held {
    id: PacketId,
    sample: Sample,
    pinned: bool,
}

impl Model {
    fn bind(&mut self, namespace: usize, document: u8, source: u32, parts: &[u32]) {
        let place = (namespace, document);
        let new: Parts = parts.iter().copied().map(Some).collect();
        let old = self.documents.get(&place).cloned();
        let (old_source, old_editions) = old.unwrap_or((source, Vec::new()));
        let mut gone = self.made_for(namespace, document);
        gone.extend(old_editions.iter().flatten().filter_map(|part| *part));
        let mut editions = Vec::new();
        if old_source == source {
            if old_editions.contains(&new) {
                return;
            }
            let within = |old: &Parts| {
                let same = |(old, new): (&Option<u32>, &Option<u32>)| old.is_none() || old == new;
                old.len() == new.len() && old.iter().zip(&new).all(same)
            };
            editions = old_editions;
            editions.retain(|old| !within(old));
        }
        editions.push(new);
        gone.retain(|number| !editions.iter().flatten().any(|part| *part == Some(*number)));
        self.documents.insert(place, (source, editions));
        for number in gone {
            let held = self.packets.get(&(namespace, number));
            if !self.needed(namespace, number) && held.is_some_and(|held| !held.pinned) {
                self.packets.remove(&(namespace, number));
            }
        }
    }

    /// Packets that were first put for this document.
    fn made_for(&self, namespace: usize, document: u8) -> BTreeSet<u32> {
        let name = document.to_string();
        let packets = self.packets.iter();
        packets
            .filter(|(place, held)| place.0 == namespace && held.sample.header.document == name)
            .map(|(place, _)| place.1)
            .collect()
    }

    fn needed(&self, namespace: usize, number: u32) -> bool {
        let mut documents = self.documents.iter();
        documents.any(|(place, (_, editions))| {
            let mut parts = editions.iter().flatten();
            place.0 == namespace && parts.any(|part| *part == Some(number))
        })
    }

    fn delete(&mut self, namespace: usize, number: u32) {
        self.packets.remove(&(namespace, number));
        for (place, (_, editions)) in &mut self.documents {
            if place.0 == namespace {
                for part in editions.iter_mut().flatten() {
                    *part = part.filter(|other| *other != number);
                }
                editions.retain(|edition| edition.iter().any(Option::is_some));
            }
        }
        self.documents
            .retain(|_, (_, editions)| !editions.is_empty());
    }

    fn delete_document(&mut self, namespace: usize, document: u8) {
        let mut numbers = self.made_for(namespace, document);
        let forgotten = self.documents.remove(&(namespace, document));
        let editions = forgotten.map(|(_, editions)| editions).unwrap_or_default();
        numbers.extend(editions.iter().flatten().filter_map(|part| *part));
        for number in numbers {
            if !self.needed(namespace, number) {
                self.packets.remove(&(namespace, number));
            }
        }
    }

    /// Compares everything that the store can be asked.
    fn compare(&self, store: &Store) {
        for (at, namespace) in NAMESPACES.iter().enumerate() {
            let listed: BTreeMap<PacketId, bool> = store
                .list(namespace, None, 100)
                .unwrap()
                .into_iter()
                .map(|manifest| (manifest.id, manifest.pinned))
                .collect();
            let held = self.packets.iter().filter(|(place, _)| place.0 == at);
            let expected: BTreeMap<PacketId, bool> =
                held.map(|(_, held)| (held.id, held.pinned)).collect();
            assert_eq!(listed, expected);
            let documents: Vec<(String, Vec<Vec<Option<PacketId>>>)> = store
                .documents(namespace, None, 100)
                .unwrap()
                .into_iter()
                .map(|document| {
                    let editions = document.editions.into_iter();
                    (
                        document.name,
                        editions.map(|edition| edition.parts).collect(),
                    )
                })
                .collect();
            let id = |number: u32| self.packets[&(at, number)].id;
            let expected: Vec<(String, Vec<Vec<Option<PacketId>>>)> = self
                .documents
                .iter()
                .filter(|(place, _)| place.0 == at)
                .map(|(place, (_, editions))| {
                    let parts = |parts: &Parts| parts.iter().map(|part| part.map(id)).collect();
                    (place.1.to_string(), editions.iter().map(parts).collect())
                })
                .collect();
            assert_eq!(documents, expected);
            for number in 0..6 {
                match self.packets.get(&(at, number)) {
                    Some(held) => held.sample.assert_in(store),
                    None => Sample::of(namespace, "", number, 1).assert_missing(store),
                }
            }
        }
        assert_eq!(store.stats().unwrap().packets, self.packets.len() as u64);
    }
}

struct Run {
    directory: TempDir,
    store: Option<Store>,
    model: Model,
    faults: Arc<Faults>,
    /// Operations that gave an error, and failures that the disk had.
    failed: u64,
    struck: u64,
}

impl Run {
    fn options() -> StoreOptions {
        StoreOptions {
            extent_bytes: 30_000,
            ..options()
        }
    }

    fn new() -> Self {
        let mut run = Self {
            directory: tempfile::tempdir().unwrap(),
            store: None,
            model: Model::default(),
            faults: Arc::default(),
            failed: 0,
            struck: 0,
        };
        run.open().unwrap();
        run
    }

    fn open(&mut self) -> Result<()> {
        self.store = None;
        let disk = Disk::with(Arc::clone(&self.faults));
        self.store = Some(Store::open_on(
            self.directory.path(),
            Self::options(),
            disk,
        )?);
        Ok(())
    }

    fn id(&self, namespace: usize, number: u32) -> Option<PacketId> {
        self.model
            .packets
            .get(&(namespace, number))
            .map(|held| held.id)
    }

    fn step(&mut self, operation: &Operation) {
        if let Operation::Failing {
            point,
            after,
            fault,
            times,
            operation,
        } = operation
        {
            self.faults.arm(*point, *after, *fault, *times);
            let done = self.perform(operation);
            let struck = self.faults.disarm();
            self.struck += struck;
            if let Err(error) = done {
                assert!(struck > 0, "{error}");
                self.failed += 1;
                if self.store.is_none() {
                    self.open().unwrap();
                }
            }
        } else {
            self.perform(operation).unwrap();
        }
        self.model.compare(self.store.as_ref().unwrap());
    }

    fn perform(&mut self, operation: &Operation) -> Result<()> {
        match *operation {
            Operation::Reopen => self.open(),
            Operation::Rebuild => {
                self.store = None;
                drop(Store::rebuild(
                    self.directory.path(),
                    Self::options(),
                    &mut |_| {},
                )?);
                self.open()
            }
            Operation::Crash => {
                let image = copy(self.directory.path());
                self.store = None;
                self.directory = image;
                self.open()
            }
            Operation::LoseIndex => {
                self.store = None;
                std::fs::remove_dir_all(self.directory.path().join("index")).unwrap();
                self.open()
            }
            Operation::Compact => {
                let store = self.store.as_ref().unwrap();
                let report = store.compact(Effort::Thorough, &mut |_| ControlFlow::Continue(()))?;
                assert!(report.complete && report.waiting == 0);
                Ok(())
            }
            _ => self.change(operation),
        }
    }

    /// The store first; the model only where it gave no error.
    fn change(&mut self, operation: &Operation) -> Result<()> {
        let store = self.store.as_ref().unwrap();
        match *operation {
            Operation::Put {
                namespace,
                document,
                number,
                size,
            } => {
                let name = document
                    .map(|document| document.to_string())
                    .unwrap_or_default();
                let sample = Sample::of(NAMESPACES[namespace], &name, number, size);
                let id = sample.try_put(store)?;
                self.hold(namespace, number, id, sample);
                if let Some(document) = document {
                    self.model.bind(namespace, document, number, &[number]);
                }
            }
            Operation::Stage {
                namespace,
                document,
                number,
            } => {
                let name = document.to_string();
                let sample = Sample::of(NAMESPACES[namespace], &name, number, 3_000);
                let staged = store.stage(&sample.header, &sample.token_ids, &[&sample.body])?;
                self.hold(namespace, number, staged.id, sample);
            }
            Operation::Bind {
                namespace,
                document,
                source,
                ref parts,
            } => {
                let ids = parts.iter().map(|number| self.id(namespace, *number));
                let Some(ids) = ids.collect::<Option<Vec<_>>>() else {
                    return Ok(());
                };
                // Sources 0 and 1 only, so that packets share one.
                let digest = Sample::new(source, 1).header.source;
                let name = document.to_string();
                store.bind(NAMESPACES[namespace], &name, &digest, &ids)?;
                self.model.bind(namespace, document, source, parts);
            }
            Operation::Delete { namespace, number } => {
                let Some(id) = self.id(namespace, number) else {
                    return Ok(());
                };
                assert_eq!(store.delete(&id)?.packets, 1);
                self.model.delete(namespace, number);
            }
            Operation::DeleteDocument {
                namespace,
                document,
            } => {
                store.delete_document(NAMESPACES[namespace], &document.to_string())?;
                self.model.delete_document(namespace, document);
            }
            Operation::Pin {
                namespace,
                number,
                pinned,
            } => {
                let Some(id) = self.id(namespace, number) else {
                    return Ok(());
                };
                let manifest = if pinned {
                    store.pin(&id)?
                } else {
                    store.unpin(&id)?
                };
                assert_eq!(manifest.pinned, pinned);
                let held = self.model.packets.get_mut(&(namespace, number));
                held.unwrap().pinned = pinned;
            }
            _ => {}
        }
        Ok(())
    }

    fn hold(&mut self, namespace: usize, number: u32, id: PacketId, sample: Sample) {
        let held = Held {
            id,
            sample,
            pinned: false,
        };
        let place = self.model.packets.entry((namespace, number));
        place.or_insert(held);
    }
}

#[test]
fn any_history_leaves_what_a_plain_map_would_hold() {
    let mut runner = TestRunner::new(Config {
        cases: 60,
        failure_persistence: None,
        ..Config::default()
    });
    let (struck, failed) = (Cell::new(0), Cell::new(0));
    let histories = proptest::collection::vec(operations(), 1..30);
    let outcome = runner.run(&histories, |history| {
        let mut run = Run::new();
        for operation in &history {
            run.step(operation);
        }
        struck.set(struck.get() + run.struck);
        failed.set(failed.get() + run.failed);
        Ok(())
    });
    outcome.unwrap();
    println!(
        "the disk failed {} times, {} operations did",
        struck.get(),
        failed.get()
    );
    assert!(failed.get() > 10, "{} of {}", failed.get(), struck.get());
}
