//! Fuzz targets of the ledger (its chain of frames, and what a frame says), its snapshot, and patch files.
//!
//! Owns what each promises of any bytes at all: it never panics, holds little memory, and gives what was written or a
//! named error. Digests keep nearly all such bytes out, so they are made right first. `make fuzz` runs these for long.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic fails the test, which is what tests are for"
)]

use std::path::{Path, PathBuf};

use addenda_disk::Disk;
use addenda_fuzz::{target, within};
use addenda_model::{Activation, Architecture, ModelConfig, RopeScaling};

use crate::bundle::{self, Carried};
use crate::corpus::Corpus;
use crate::digest::Canonical;
use crate::entry::{Addition, Edit, Entry, Recipe, Retirement};
use crate::error::Error;
use crate::fact::{Fact, FactId};
use crate::figures::Figures;
use crate::ledger::{Ledger, inspect_ledger};
use crate::moment::MomentSpec;
use crate::register::Register;
use crate::settings::Settings;
use crate::snapshot::{self, Snapshot};

const HEAD: usize = 16;
const MARK: &[u8] = b"addenda-commit\r\n";
/// What little input can need; a length field could ask for far more.
const LITTLE: usize = 1 << 20;

#[test]
fn a_ledger_entry_is_refused_or_says_the_same_once_it_is_encoded_again() {
    target!("ledger_entry", 30_000, |bytes: &[u8]| {
        let Ok(entry) = within(LITTLE, || Entry::decode(bytes)) else {
            return;
        };
        // JSON has many spellings and a z may be no number, so bytes are compared once they are our own.
        let encoded = entry.encode().unwrap();
        let again = Entry::decode(&encoded).unwrap();
        assert_eq!(again.encode().unwrap(), encoded);
    });
}

/// One byte, whose lowest bit says whether the chain's digests are made right, and the ledger's file.
#[test]
fn a_ledger_of_any_bytes_gives_all_that_was_acknowledged_or_is_refused_and_left_alone() {
    let directory = folder();
    let path = directory.path().join("facts.ledger");
    target!("ledger", 10_000, |bytes: &[u8]| {
        let Some((flags, file)) = bytes.split_first() else {
            return;
        };
        let mut file = file.to_vec();
        if flags & 1 == 1 {
            seal(&mut file);
        }
        for entry in std::fs::read_dir(directory.path()).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
        std::fs::write(&path, &file).unwrap();
        let counted = within(LITTLE, || inspect_ledger(directory.path()));
        match within(LITTLE, || {
            Ledger::open(directory.path(), &Disk::default(), None)
        }) {
            Ok(opened) => {
                let torn = usize::try_from(opened.torn).unwrap();
                let lost = &file[file.len() - torn..];
                let acknowledged = lost.windows(MARK.len()).any(|window| window == MARK);
                assert!(!acknowledged, "what was acknowledged is cut off");
                // A file that ends in its own head has none to count.
                assert!(counted.is_err() || counted.unwrap() == opened.frames.len() as u64);
                let again = Ledger::open(directory.path(), &Disk::default(), None).unwrap();
                assert_eq!(again.torn, 0);
                let contents = |frames: Vec<crate::ledger::Frame>| {
                    let contents = frames.into_iter().map(|frame| frame.content);
                    contents.collect::<Vec<_>>()
                };
                assert_eq!(contents(again.frames), contents(opened.frames));
            }
            Err(Error::DamagedLedger { offset, .. }) => {
                assert!(counted.is_err() && offset <= file.len() as u64);
                assert_eq!(std::fs::read(&path).unwrap(), file);
            }
            Err(Error::NotALedger { .. }) => assert_eq!(std::fs::read(&path).unwrap(), file),
            Err(error) => panic!("{error}"),
        }
    });
}

/// One byte, whose lowest bit says whether the digest is made right, and a snapshot's file.
#[test]
fn a_snapshot_is_refused_or_says_the_same_once_it_is_written_again() {
    target!("snapshot", 10_000, |bytes: &[u8]| {
        let Some((flags, file)) = bytes.split_first() else {
            return;
        };
        let mut file = file.to_vec();
        if let (1, Some((head, body))) = (flags & 1, file.split_at_mut_checked(48)) {
            head[16..].copy_from_slice(&blake3::derive_key(snapshot::CONTEXT, body));
        }
        let Ok(found) = within(LITTLE, || Snapshot::decode(&file, [7; 32])) else {
            return;
        };
        let encoded = Snapshot::encode(found.place, &found.register).unwrap();
        let again = Snapshot::decode(&encoded, [7; 32]).unwrap();
        let twice = Snapshot::encode(again.place, &again.register).unwrap();
        assert_eq!(twice, encoded);
        assert_eq!(again.register.revision(), found.register.revision());
    });
}

/// One byte, whose lowest bit says whether the digest is made right, and a patch's file.
#[test]
fn a_patch_file_is_refused_or_carries_the_same_once_it_is_written_again() {
    target!("patch", 10_000, |bytes: &[u8]| {
        let Some((flags, file)) = bytes.split_first() else {
            return;
        };
        let mut file = file.to_vec();
        if flags & 1 == 1 {
            bundle::seal(&mut file);
        }
        let Ok((about, carried)) = within(LITTLE, || bundle::parse(&file)) else {
            return;
        };
        let encoded = bundle::encode((about.base, about.revision), &carried, Vec::new()).unwrap();
        let (again, twice) = bundle::parse(&encoded).unwrap();
        assert_eq!(again.facts, about.facts);
        let states = |carried: &[Carried]| -> Vec<u32> {
            let states = carried.iter().flat_map(|one| &one.edit.z);
            states.map(|value| value.to_bits()).collect()
        };
        assert_eq!(states(&twice), states(&carried));
    });
}

/// In memory where the machine has such a place: a sync is not what is tried here.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        return tempfile::tempdir_in(memory).unwrap();
    }
    tempfile::tempdir().unwrap()
}

/// Chains all that looks like a frame, from the file's head on.
fn seal(file: &mut [u8]) {
    let Some(head) = file.get(..HEAD) else { return };
    let mut before = Canonical::new("addenda 2026-01 ledger head")
        .bytes(head)
        .finish();
    let (mut at, mut sequence) = (HEAD, 1);
    while let Some(digest) = seal_one(&mut file[at..], sequence, &before) {
        let length = u32::from_le_bytes(*file[at + 4..].first_chunk().unwrap());
        at += 40 + usize::try_from(length).unwrap() + 32;
        at += if file[at..].starts_with(MARK) { 16 } else { 0 };
        (before, sequence) = (digest, sequence + 1);
    }
}

fn seal_one(bytes: &mut [u8], sequence: u64, before: &[u8; 32]) -> Option<[u8; 32]> {
    let length = bytes.strip_prefix(b"FRM1")?.first_chunk()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    bytes.get_mut(8..40)?.copy_from_slice(before);
    let content = bytes.get(40..)?.get(..length)?;
    let digest = Canonical::new("addenda 2026-01 ledger frame")
        .number(sequence)
        .bytes(before)
        .bytes(content)
        .finish();
    let place = bytes.get_mut(40 + length..)?.get_mut(..32)?;
    place.copy_from_slice(&digest);
    Some(digest)
}

#[test]
fn what_the_corpus_holds_gets_past_every_digest() {
    let directory = folder();
    let mut file = std::fs::read(corpus("ledger").join("three"))
        .unwrap()
        .split_off(1);
    let untouched = file.clone();
    seal(&mut file);
    assert_eq!(file, untouched);
    std::fs::write(directory.path().join("facts.ledger"), file).unwrap();
    assert_eq!(inspect_ledger(directory.path()).unwrap(), 3);
    let entry = std::fs::read(corpus("ledger_entry").join("added")).unwrap();
    Entry::decode(&entry).unwrap();
    let mut patch = std::fs::read(corpus("patch").join("two"))
        .unwrap()
        .split_off(1);
    assert_eq!(bundle::parse(&patch).unwrap().1.len(), 2);
    let untouched = patch.clone();
    let place = patch.windows(6).position(|part| part == b"digest").unwrap() + 9;
    patch[place..place + 64].fill(b'0');
    assert!(bundle::parse(&patch).is_err());
    bundle::seal(&mut patch).unwrap();
    assert_eq!(patch, untouched);
    let snapshot = std::fs::read(corpus("snapshot").join("three")).unwrap();
    let found = Snapshot::decode(&snapshot[1..], [7; 32]).unwrap();
    assert_eq!(found.place.frames, 3);
}

fn corpus(target: &str) -> PathBuf {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/__fuzz__");
    let folder = Path::new(folder).join(target).join("corpus");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn config() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Llama,
        vocab_size: 97,
        hidden_size: 8,
        intermediate_size: 8,
        num_layers: 4,
        num_heads: 1,
        num_kv_heads: 1,
        head_dim: 8,
        norm_eps: 1e-6,
        context: 512,
        tied_embeddings: false,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        rope_local_theta: None,
        sliding_window: None,
        sliding_layers: vec![false; 4],
        qkv_bias: false,
        qk_norm: false,
        post_norms: false,
        norm_plus_one: false,
        activation: Activation::Silu,
        attention_scale: 0.25,
        embedding_scale: 1.0,
        bos: Some(1),
        eos: vec![2],
    }
}

fn entries() -> [(&'static str, Entry); 3] {
    let fact = |target: &str| Fact {
        subject: "Ann".to_owned(),
        prompt: "{} lives in".to_owned(),
        target: target.to_owned(),
        paraphrases: vec!["Ann's home is".to_owned()],
        neighbours: Vec::new(),
        valid_from_ms: None,
        valid_until_ms: Some(1_900_000_000_000),
    };
    let settings = Settings::for_model(&config()).unwrap();
    let added = |target: &str, supersedes: Option<FactId>| {
        Entry::Added(Box::new(Addition {
            fact: fact(target),
            request_id: "a".to_owned(),
            at_ms: 1_700_000_000_000,
            supersedes,
            waits: false,
            seconds: 1.5,
            figures: Figures {
                target_probability: 0.9,
                target_probability_before: 0.01,
                target_is_top1: true,
                paraphrase: Some(1.0),
                locality: None,
                same_subject: None,
                perplexity_before: 20.0,
                perplexity_after: 20.1,
                perplexity_base: 20.0,
                made_paraphrases: false,
                made_neighbours: true,
                chat_probability: Some(0.5),
                chat_is_top1: Some(true),
            },
            edit: Edit {
                base: [7; 32],
                recipe: Recipe {
                    solve: settings.solve.clone(),
                    moment: MomentSpec::new(&Corpus::shipped(), &settings.moment),
                },
                prompt_ids: vec![0, 34, 79, 79],
                subject_at: 3,
                context_ids: vec![vec![5, 6]],
                value: settings.value.clone(),
                contexts: vec!["{}".to_owned()],
                steps: 20,
                delta_norm: 1.25,
                hidden_norm: 3.5,
                z: vec![0.5, -1.0, 2.0, 0.0, 1.5, -2.0, 0.25, 3.0],
            },
        }))
    };
    let first = fact("Rome").id();
    [
        ("added", added("Rome", None)),
        ("superseding", added("Oslo", Some(first))),
        (
            "retired",
            Entry::Retired(Retirement {
                fact_id: first,
                at_ms: 1_700_000_000_001,
                expired: false,
            }),
        ),
    ]
}

#[test]
#[ignore = "writes the corpus, which lies in git"]
fn the_corpus_is_what_the_encoders_write() {
    let directory = folder();
    let path = directory.path().join("facts.ledger");
    let mut ledger = Ledger::open(directory.path(), &Disk::default(), None)
        .unwrap()
        .ledger;
    let mut register = Register::new([7; 32]);
    for (name, entry) in entries() {
        let content = entry.encode().unwrap();
        std::fs::write(corpus("ledger_entry").join(name), &content).unwrap();
        let frame = ledger.append(&content).unwrap();
        if name != "retired" {
            register.apply(&frame, entry).unwrap();
        }
    }
    let sealed = |file: Vec<u8>| [vec![1], file].concat();
    let carried = entries().into_iter().filter_map(|(_, entry)| match entry {
        Entry::Added(added) => Some(Carried {
            fact: added.fact,
            edit: added.edit,
        }),
        _ => None,
    });
    let carried: Vec<Carried> = carried.collect();
    let patch = bundle::encode(([7; 32], [8; 32]), &carried, Vec::new()).unwrap();
    std::fs::write(corpus("patch").join("two"), sealed(patch)).unwrap();
    let snapshot = Snapshot::encode(ledger.end(), &register).unwrap();
    std::fs::write(corpus("snapshot").join("three"), sealed(snapshot)).unwrap();
    let file = std::fs::read(&path).unwrap();
    std::fs::write(corpus("ledger").join("three"), sealed(file)).unwrap();
    std::fs::remove_file(&path).unwrap();
    let mut ledger = Ledger::open(directory.path(), &Disk::default(), None)
        .unwrap()
        .ledger;
    for content in [&b"one"[..], b"", b"three"] {
        ledger.append(content).unwrap();
    }
    let mut file = std::fs::read(&path).unwrap();
    std::fs::write(corpus("ledger").join("short"), sealed(file.clone())).unwrap();
    file.truncate(file.len() - MARK.len());
    std::fs::write(corpus("ledger").join("unmarked"), sealed(file)).unwrap();
}
