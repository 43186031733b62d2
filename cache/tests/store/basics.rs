//! Put, find, read, list, pin, delete, across restarts.

use addenda_cache::{Error, Gone, Miss, PacketId, Store};

use crate::sample::{Sample, open};

#[test]
fn a_packet_is_found_by_key_and_by_id_and_read_back_also_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let sample = Sample::new(1, 10_000);
    let id = {
        let store = open(directory.path());
        sample.assert_missing(&store);
        let id = sample.put(&store);
        sample.assert_in(&store);
        id
    };
    let store = open(directory.path());
    sample.assert_in(&store);
    assert_eq!(
        store.recovery().records,
        0,
        "a clean stop leaves nothing to replay"
    );
    let manifest = store.get(&id).unwrap().unwrap();
    assert_eq!(manifest.header, sample.header);
    let body = store.read(&id).unwrap();
    assert_eq!(
        body.as_ref().as_ptr() as usize % 64,
        0,
        "a tensor can lie there"
    );
}

#[test]
fn putting_the_same_key_again_writes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let sample = Sample::new(1, 5_000);
    let first = store
        .put(&sample.header, &sample.token_ids, &[&sample.body])
        .unwrap();
    let bytes = store.stats().unwrap().disk_bytes;
    let second = store
        .put(&sample.header, &sample.token_ids, &[&sample.body])
        .unwrap();
    assert!(first.created && !second.created);
    assert_eq!(first.id, second.id);
    assert_eq!(store.stats().unwrap().disk_bytes, bytes);
}

#[test]
fn a_changed_text_takes_the_place_of_its_documents_packets() {
    let directory = tempfile::tempdir().unwrap();
    let (old, new) = (
        Sample::of("default", "rules", 1, 9_000),
        Sample::of("default", "rules", 2, 9_000),
    );
    {
        let store = open(directory.path());
        old.put(&store);
        let id = new.put(&store);
        old.assert_missing(&store);
        let document = store.document("default", "rules").unwrap().unwrap();
        assert_eq!(document.ids().collect::<Vec<_>>(), [id]);
        assert_eq!(document.source, new.header.source);
    }
    let store = open(directory.path());
    old.assert_missing(&store);
    new.assert_in(&store);
    assert_eq!(
        store.why_missing(&old.header.key).unwrap(),
        Some(Miss::Gone(Gone::Replaced))
    );
}

#[test]
fn two_documents_of_one_text_share_a_packet_until_both_are_gone() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let (one, two) = (
        Sample::of("default", "a", 1, 9_000),
        Sample::of("default", "b", 1, 9_000),
    );
    assert_eq!(one.put(&store), two.put(&store));
    assert_eq!(store.stats().unwrap().packets, 1);
    assert_eq!(store.delete_document("default", "a").unwrap().packets, 0);
    assert_eq!(store.document("default", "a").unwrap(), None);
    two.assert_in(&store);
    assert_eq!(store.delete_document("default", "b").unwrap().packets, 1);
    two.assert_missing(&store);
}

#[test]
fn tenants_do_not_see_each_others_packets() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let (ours, theirs) = (
        Sample::of("ward-1", "a", 1, 100),
        Sample::of("ward-10", "a", 1, 100),
    );
    let id = ours.put(&store);
    theirs.assert_missing(&store);
    theirs.put(&store);
    assert_eq!(store.list("ward-1", None, 10).unwrap().len(), 1);
    assert_eq!(store.documents("ward-1", None, 10).unwrap().len(), 1);
    let refused = store.bind("ward-10", "b", &[0; 32], &[id]).unwrap_err();
    assert!(matches!(
        refused,
        Error::Invalid {
            field: "namespace",
            ..
        }
    ));
    store.delete_document("ward-1", "a").unwrap();
    theirs.assert_in(&store);
}

#[test]
fn a_list_goes_through_all_packets_page_by_page() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let mut ids: Vec<PacketId> = (0..25).map(|n| Sample::new(n, 64).put(&store)).collect();
    ids.sort();
    let mut found: Vec<PacketId> = Vec::new();
    loop {
        let page = store.list("default", found.last(), 7).unwrap();
        if page.is_empty() {
            break;
        }
        found.extend(page.iter().map(|manifest| manifest.id));
    }
    assert_eq!(found, ids);
}

#[test]
fn pins_and_deletions_survive_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let (pinned, deleted) = (Sample::new(1, 5_000), Sample::new(2, 5_000));
    let id = {
        let store = open(directory.path());
        let id = pinned.put(&store);
        assert!(store.pin(&id).unwrap().pinned);
        let gone = deleted.put(&store);
        assert_eq!(store.delete(&gone).unwrap().packets, 1);
        assert_eq!(store.delete(&gone).unwrap().packets, 0);
        id
    };
    let store = open(directory.path());
    assert!(store.get(&id).unwrap().unwrap().pinned);
    deleted.assert_missing(&store);
    assert_eq!(
        store.why_missing(&deleted.header.key).unwrap(),
        Some(Miss::Gone(Gone::Deleted))
    );
    assert!(!store.unpin(&id).unwrap().pinned);
}

#[test]
fn what_is_not_there_is_said_to_be_not_there() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let id = PacketId::from_bytes([3; 32]);
    assert!(matches!(store.read(&id), Err(Error::NotFound { .. })));
    assert!(matches!(store.pin(&id), Err(Error::NotFound { .. })));
    assert_eq!(store.get(&id).unwrap(), None);
    assert!(!store.touch(&id));
    let key = Sample::new(1, 1).header.key;
    assert_eq!(store.why_missing(&key).unwrap(), Some(Miss::NeverStored));
}

#[test]
fn a_put_out_of_bounds_is_refused_by_field_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let sample = Sample::new(1, 100);
    let field = |result: addenda_cache::Result<addenda_cache::Put>| match result {
        Err(Error::Invalid { field, .. }) => field,
        other => panic!("not refused: {other:?}"),
    };
    assert_eq!(
        field(store.put(&sample.header, &sample.token_ids, &[])),
        "body"
    );
    assert_eq!(
        field(store.put(&sample.header, &[], &[&sample.body])),
        "key"
    );
    let mut header = sample.header.clone();
    header.namespace = "no spaces".into();
    assert_eq!(
        field(store.put(&header, &sample.token_ids, &[&sample.body])),
        "namespace"
    );
    assert_eq!(store.stats().unwrap().packets, 0);
}

#[test]
fn a_packet_that_is_being_read_does_not_vanish_when_it_is_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let sample = Sample::new(1, 100_000);
    let id = sample.put(&store);
    let body = store.read(&id).unwrap();
    assert!(store.stats().unwrap().mapped_bytes >= 100_000);
    store.delete(&id).unwrap();
    sample.assert_missing(&store);
    // Others come and go, which gives dead bytes back.
    let other = Sample::new(2, 100_000);
    let other_id = other.put(&store);
    store.delete(&other_id).unwrap();
    assert_eq!(body.as_ref(), sample.body.as_slice());
    let before = store.stats().unwrap();
    drop(body);
    let third = Sample::new(3, 64).put(&store);
    store.delete(&third).unwrap();
    let after = store.stats().unwrap();
    assert_eq!(after.mapped_bytes, 0);
    assert!(
        after.disk_bytes < before.disk_bytes,
        "its bytes were given back at last"
    );
}

#[test]
fn a_second_opener_is_refused_with_the_owners_pid_and_host() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let refused = Store::open(directory.path(), crate::sample::options()).unwrap_err();
    let Error::Locked { pid, host, .. } = &refused else {
        panic!("not refused by the lock: {refused}")
    };
    assert_eq!(*pid, std::process::id().to_string());
    assert!(!host.is_empty() && host != "unknown");
    assert!(refused.to_string().contains(pid.as_str()));
    drop(store);
    open(directory.path());
}

#[test]
fn many_threads_put_and_read_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    std::thread::scope(|scope| {
        for thread in 0..8u32 {
            let store = &store;
            scope.spawn(move || {
                for number in 0..20 {
                    // Every number is put by two threads.
                    let sample = Sample::of("default", "", thread / 2 * 100 + number, 3_000);
                    sample.put(store);
                    sample.assert_in(store);
                }
            });
        }
    });
    assert_eq!(store.stats().unwrap().packets, 80);
    assert_eq!(store.list("default", None, 1_000).unwrap().len(), 80);
}
