//! Any history of operations, restarts and crashes included, against a plain map.

use std::collections::BTreeMap;

use addenda_cache::{PacketId, Store, StoreOptions};
use proptest::prelude::{Strategy, any, prop_oneof, proptest};
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
    Bind {
        namespace: usize,
        document: u8,
        number: u32,
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
}

fn operations() -> impl Strategy<Value = Operation> {
    let (namespace, document, number) = (0..2usize, 0..3u8, 0..6u32);
    prop_oneof![
        8 => (namespace.clone(), proptest::option::of(document.clone()), number.clone(), 1..9_000usize)
            .prop_map(|(namespace, document, number, size)| Operation::Put { namespace, document, number, size }),
        2 => (namespace.clone(), document.clone(), number.clone())
            .prop_map(|(namespace, document, number)| Operation::Bind { namespace, document, number }),
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
    ]
}

/// What the store should hold.
#[derive(Debug, Default)]
struct Model {
    /// By namespace and number.
    packets: BTreeMap<(usize, u32), Held>,
    /// By namespace and name: the text's number, and the packets that stand for it.
    documents: BTreeMap<(usize, u8), (u32, Vec<u32>)>,
}

#[derive(Debug)]
struct Held {
    id: PacketId,
    sample: Sample,
    pinned: bool,
}

impl Model {
    fn bind(&mut self, namespace: usize, document: u8, source: u32, number: u32) {
        let entry = self.documents.remove(&(namespace, document));
        let mut numbers = Vec::new();
        match entry {
            Some((old, held)) if old == source => numbers = held,
            Some((_, held)) => {
                for other in held.into_iter().filter(|other| *other != number) {
                    let needed = self.needed(namespace, other);
                    let place = (namespace, other);
                    if !needed && self.packets.get(&place).is_some_and(|held| !held.pinned) {
                        self.packets.remove(&place);
                    }
                }
            }
            None => {}
        }
        if !numbers.contains(&number) {
            numbers.push(number);
        }
        self.documents
            .insert((namespace, document), (source, numbers));
    }

    fn needed(&self, namespace: usize, number: u32) -> bool {
        self.documents
            .iter()
            .any(|(place, (_, numbers))| place.0 == namespace && numbers.contains(&number))
    }

    fn delete(&mut self, namespace: usize, number: u32) {
        self.packets.remove(&(namespace, number));
        for (place, (_, numbers)) in &mut self.documents {
            if place.0 == namespace {
                numbers.retain(|other| *other != number);
            }
        }
        self.documents.retain(|_, (_, numbers)| !numbers.is_empty());
    }

    fn delete_document(&mut self, namespace: usize, document: u8) {
        let Some((_, numbers)) = self.documents.remove(&(namespace, document)) else {
            return;
        };
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
            let documents: Vec<(String, Vec<PacketId>)> = store
                .documents(namespace, None, 100)
                .unwrap()
                .into_iter()
                .map(|document| (document.name, document.ids))
                .collect();
            let expected: Vec<(String, Vec<PacketId>)> = self
                .documents
                .iter()
                .filter(|(place, _)| place.0 == at)
                .map(|(place, (_, numbers))| {
                    let ids = numbers.iter().map(|number| self.packets[&(at, *number)].id);
                    (place.1.to_string(), ids.collect())
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
}

impl Run {
    fn options() -> StoreOptions {
        StoreOptions {
            extent_bytes: 30_000,
            ..options()
        }
    }

    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Some(Store::open(directory.path(), Self::options()).unwrap());
        Self {
            directory,
            store,
            model: Model::default(),
        }
    }

    fn open(&mut self) {
        self.store = Some(Store::open(self.directory.path(), Self::options()).unwrap());
    }

    fn id(&self, namespace: usize, number: u32) -> Option<PacketId> {
        self.model
            .packets
            .get(&(namespace, number))
            .map(|held| held.id)
    }

    fn step(&mut self, operation: &Operation) {
        match *operation {
            Operation::Reopen => {
                self.store = None;
                self.open();
            }
            Operation::Rebuild => {
                self.store = None;
                let store = Store::rebuild(self.directory.path(), Self::options(), &mut |_| {});
                self.store = Some(store.unwrap());
            }
            Operation::Crash => {
                let image = copy(self.directory.path());
                self.store = None;
                self.directory = image;
                self.open();
            }
            Operation::LoseIndex => {
                self.store = None;
                std::fs::remove_dir_all(self.directory.path().join("index")).unwrap();
                self.open();
            }
            _ => self.change(operation),
        }
        self.model.compare(self.store.as_ref().unwrap());
    }

    fn change(&mut self, operation: &Operation) {
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
                let id = sample.put(store);
                let held = Held {
                    id,
                    sample,
                    pinned: false,
                };
                self.model
                    .packets
                    .entry((namespace, number))
                    .or_insert(held);
                if let Some(document) = document {
                    self.model.bind(namespace, document, number, number);
                }
            }
            Operation::Bind {
                namespace,
                document,
                number,
            } => {
                let Some(id) = self.id(namespace, number) else {
                    return;
                };
                // Sources 0 and 1 only, so that packets share one.
                let source = Sample::new(number % 2, 1).header.source;
                store
                    .bind(NAMESPACES[namespace], &document.to_string(), &source, &id)
                    .unwrap();
                self.model.bind(namespace, document, number % 2, number);
            }
            Operation::Delete { namespace, number } => {
                let Some(id) = self.id(namespace, number) else {
                    return;
                };
                assert_eq!(store.delete(&id).unwrap().packets, 1);
                self.model.delete(namespace, number);
            }
            Operation::DeleteDocument {
                namespace,
                document,
            } => {
                store
                    .delete_document(NAMESPACES[namespace], &document.to_string())
                    .unwrap();
                self.model.delete_document(namespace, document);
            }
            Operation::Pin {
                namespace,
                number,
                pinned,
            } => {
                let Some(id) = self.id(namespace, number) else {
                    return;
                };
                let manifest = if pinned {
                    store.pin(&id)
                } else {
                    store.unpin(&id)
                };
                assert_eq!(manifest.unwrap().pinned, pinned);
                self.model
                    .packets
                    .get_mut(&(namespace, number))
                    .unwrap()
                    .pinned = pinned;
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(proptest::test_runner::Config {
        cases: 40,
        failure_persistence: None,
        ..proptest::test_runner::Config::default()
    })]

    #[test]
    fn any_history_leaves_what_a_plain_map_would_hold(
        history in proptest::collection::vec(operations(), 1..30),
    ) {
        let mut run = Run::new();
        for operation in &history {
            run.step(operation);
        }
    }
}
