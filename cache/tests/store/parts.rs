//! Documents of several parts: bound at one stroke, replaced at one stroke, erased with all that was made for them.

use addenda_cache::{Edition, Error, PacketId, Store};

use crate::sample::{Sample, open};

const OLD: [u8; 32] = [1; 32];
const NEW: [u8; 32] = [2; 32];

fn part(number: u32) -> Sample {
    Sample::of("default", "handbook", number, 5_000)
}

fn bind(store: &Store, source: &[u8; 32], ids: &[PacketId]) {
    store.bind("default", "handbook", source, ids).unwrap();
}

fn editions(store: &Store) -> Vec<Edition> {
    let document = store.document("default", "handbook").unwrap();
    document
        .map(|document| document.editions)
        .unwrap_or_default()
}

#[test]
fn the_old_text_stands_until_all_of_the_new_one_is_bound() {
    let directory = tempfile::tempdir().unwrap();
    {
        let store = open(directory.path());
        let old = [1, 2, 3].map(|number| part(number).stage(&store));
        assert_eq!(editions(&store), []);
        bind(&store, &OLD, &old);
        part(4).stage(&store);
        assert_eq!(editions(&store)[0].whole().unwrap(), old);
    }
    // Broken off and begun again.
    let store = open(directory.path());
    let [second, third, fourth] = [2, 3, 4].map(|number| part(number).stage(&store));
    assert!(editions(&store)[0].whole().is_some());
    bind(&store, &NEW, &[fourth, third, second]);
    assert_eq!(
        editions(&store)[0].whole().unwrap(),
        [fourth, third, second]
    );
    part(1).assert_missing(&store);
    assert_eq!(store.place(&fourth).unwrap(), (0, 3));
    assert_eq!(store.place(&second).unwrap(), (2, 3));
}

#[test]
fn what_was_staged_and_never_bound_goes_with_the_next_text_or_with_the_document() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let first = part(1).stage(&store);
    part(2).stage(&store);
    bind(&store, &OLD, &[first]);
    part(2).assert_missing(&store);
    part(3).stage(&store);
    assert_eq!(
        store
            .delete_document("default", "handbook")
            .unwrap()
            .packets,
        2
    );
    assert_eq!(store.stats().unwrap().packets, 0);
    // Also where no text of it was ever complete.
    part(4).stage(&store);
    assert_eq!(
        store
            .delete_document("default", "handbook")
            .unwrap()
            .packets,
        1
    );
    part(4).assert_missing(&store);
}

#[test]
fn a_lost_part_leaves_a_hole_that_the_same_part_fills() {
    let directory = tempfile::tempdir().unwrap();
    let ids = {
        let store = open(directory.path());
        let ids = [1, 2, 3].map(|number| part(number).stage(&store));
        bind(&store, &OLD, &ids);
        store.delete(&ids[1]).unwrap();
        ids
    };
    let store = Store::rebuild(directory.path(), crate::sample::options(), &mut |_| {}).unwrap();
    let holed = &editions(&store)[0];
    assert_eq!(holed.parts, [Some(ids[0]), None, Some(ids[2])]);
    assert_eq!(holed.whole(), None);
    let refused = store.bind("default", "handbook", &OLD, &ids).unwrap_err();
    assert!(matches!(refused, Error::NotFound { .. }), "{refused}");
    assert_eq!(part(2).stage(&store), ids[1]);
    bind(&store, &OLD, &ids);
    assert_eq!(
        editions(&store),
        [Edition {
            parts: ids.map(Some).to_vec()
        }]
    );
}

#[test]
fn other_revisions_of_the_same_text_join_and_a_packet_can_be_part_of_both() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let [first, second, third] = [1, 2, 3].map(|number| part(number).stage(&store));
    bind(&store, &OLD, &[first, second]);
    third_joins(&store, [first, second, third]);
    store.delete(&second).unwrap();
    assert_eq!(editions(&store)[1].whole().unwrap(), [first, third]);
}

fn third_joins(store: &Store, [first, second, third]: [PacketId; 3]) {
    // Staged for it and not among its parts: gone with the first binding.
    part(3).assert_missing(store);
    assert_eq!(part(3).stage(store), third);
    bind(store, &OLD, &[first, third]);
    let all = editions(store);
    assert_eq!(all[0].whole().unwrap(), [first, second]);
    assert_eq!(all[1].whole().unwrap(), [first, third]);
}

#[test]
fn an_index_that_another_version_made_is_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let ids = {
        let store = open(directory.path());
        let ids = [1, 2].map(|number| part(number).stage(&store));
        bind(&store, &OLD, &ids);
        ids
    };
    let index = sled::open(directory.path().join("index")).unwrap();
    index.insert(b"v", &[1, 0]).unwrap();
    drop(index);
    let store = open(directory.path());
    let why = store.recovery().rebuilt.as_deref();
    assert_eq!(why, Some("another version of Addenda made it"));
    assert_eq!(editions(&store)[0].whole().unwrap(), ids);
}
