//! The store stays within its limits, evicts what is used least, and spares what is pinned or read.

use addenda_cache::{Error, Gone, Miss, Store, StoreOptions};

use crate::sample::{Sample, options};

const BODY: usize = 100_000;

fn limited() -> StoreOptions {
    StoreOptions {
        max_bytes: Some(1 << 20),
        ..options()
    }
}

#[test]
fn the_least_recently_used_packets_make_room() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), limited()).unwrap();
    let samples: Vec<Sample> = (0..40).map(|number| Sample::new(number, BODY)).collect();
    let favourite = samples[0].put(&store);
    for sample in &samples[1..] {
        sample.put(&store);
        assert!(store.touch(&favourite), "what is used all the time stays");
        let stats = store.stats().unwrap();
        assert!(stats.disk_bytes <= 1 << 20, "{} bytes", stats.disk_bytes);
    }
    samples[0].assert_in(&store);
    samples[1].assert_missing(&store);
    samples[39].assert_in(&store);
    assert_eq!(
        store.why_missing(&samples[1].header.key).unwrap(),
        Some(Miss::Gone(Gone::Evicted))
    );
    assert!(store.stats().unwrap().evicted >= 25);
    let allocated = store.stats().unwrap().disk_bytes;
    drop(store);
    let store = Store::open(directory.path(), limited()).unwrap();
    let measured = store.stats().unwrap().disk_bytes;
    assert!(
        measured.abs_diff(allocated) < 65_536,
        "{measured} is on disk, {allocated} was counted"
    );
}

#[test]
fn the_order_of_uses_survives_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let samples: Vec<Sample> = (0..9).map(|number| Sample::new(number, BODY)).collect();
    {
        let store = Store::open(directory.path(), limited()).unwrap();
        let ids: Vec<_> = samples.iter().map(|sample| sample.put(&store)).collect();
        // Times are kept in milliseconds: the next use must be later than the puts.
        let put = store.get(&ids[8]).unwrap().unwrap().last_used_at_ms;
        while store.get(&ids[0]).unwrap().unwrap().last_used_at_ms <= put {
            store.touch(&ids[0]);
        }
    }
    let store = Store::open(directory.path(), limited()).unwrap();
    for number in 20..23 {
        Sample::new(number, BODY).put(&store);
    }
    samples[0].assert_in(&store);
    samples[1].assert_missing(&store);
}

#[test]
fn where_all_is_pinned_a_put_is_refused_with_the_figures_and_reads_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), limited()).unwrap();
    let mut pinned = Vec::new();
    let refused = loop {
        let sample = Sample::new(u32::try_from(pinned.len()).unwrap(), BODY);
        match sample.try_put(&store) {
            Ok(id) => {
                store.pin(&id).unwrap();
                pinned.push((id, sample));
            }
            Err(error) => break error,
        }
    };
    let Error::Budget {
        needed,
        used,
        limit,
        evictable,
    } = refused
    else {
        panic!("not refused by the budget: {refused}")
    };
    assert!(needed >= BODY as u64 && limit == 1 << 20 && used + needed > limit && evictable == 0);
    assert!(refused.to_string().contains(&limit.to_string()));
    pinned
        .iter()
        .for_each(|(_, sample)| sample.assert_in(&store));
    // One unpinned, one evicted.
    store.unpin(&pinned[3].0).unwrap();
    Sample::new(1_000, BODY).put(&store);
    pinned[3].1.assert_missing(&store);
    pinned[4].1.assert_in(&store);
}

#[test]
fn a_packet_that_is_being_read_is_not_evicted() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), limited()).unwrap();
    let read = Sample::new(0, BODY);
    let id = read.put(&store);
    let body = store.read(&id).unwrap();
    for number in 1..30 {
        Sample::new(number, BODY).put(&store);
    }
    read.assert_in(&store);
    assert_eq!(body.as_ref(), read.body.as_slice());
}

#[test]
fn a_packet_larger_than_the_budget_evicts_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), limited()).unwrap();
    let small = Sample::new(1, BODY);
    small.put(&store);
    let refused = Sample::new(2, 2 << 20).try_put(&store).unwrap_err();
    assert!(matches!(refused, Error::Budget { .. }), "{refused}");
    small.assert_in(&store);
    assert_eq!(store.stats().unwrap().evicted, 0);
}

#[test]
fn the_floor_of_free_disk_is_kept_with_the_figures() {
    let directory = tempfile::tempdir().unwrap();
    let floor = 1 << 62;
    let sample = Sample::new(1, BODY);
    sample.put(&Store::open(directory.path(), options()).unwrap());
    let full = StoreOptions {
        free_floor: floor,
        ..options()
    };
    let store = Store::open(directory.path(), full).unwrap();
    let refused = Sample::new(2, BODY).try_put(&store).unwrap_err();
    let Error::DiskFloor {
        needed,
        free,
        floor: kept,
    } = refused
    else {
        panic!("not refused by the floor: {refused}")
    };
    assert!(needed >= BODY as u64 && free < floor && kept == floor);
    sample.assert_in(&store);
    // Deleting must always be possible, or nobody could make room.
    let id = store.lookup(&sample.header.key).unwrap().unwrap().id;
    assert_eq!(store.delete(&id).unwrap().packets, 1);
}

#[test]
fn deleting_gives_the_bytes_back_to_the_file_system() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), options()).unwrap();
    let ids: Vec<_> = (0..20)
        .map(|number| Sample::new(number, 1 << 20).put(&store))
        .collect();
    assert!(store.stats().unwrap().disk_bytes > 20 << 20);
    for id in &ids {
        store.delete(id).unwrap();
    }
    let stats = store.stats().unwrap();
    assert_eq!((stats.packets, stats.live_bytes), (0, 0));
    assert!(
        stats.disk_bytes < 1 << 20,
        "{} bytes are left",
        stats.disk_bytes
    );
}

#[test]
fn a_namespace_over_its_quota_evicts_its_own_and_is_refused_where_that_is_pinned() {
    let directory = tempfile::tempdir().unwrap();
    let quota = StoreOptions {
        max_namespace_bytes: Some(350_000),
        ..options()
    };
    let store = Store::open(directory.path(), quota).unwrap();
    let of = |namespace: &str, number| Sample::of(namespace, "", number, BODY);
    let theirs: Vec<Sample> = (0..3).map(|number| of("ward-3", number)).collect();
    for sample in &theirs {
        sample.put(&store);
    }
    let ours: Vec<Sample> = (0..5).map(|number| of("default", number)).collect();
    let ids: Vec<_> = ours.iter().map(|sample| sample.put(&store)).collect();
    theirs.iter().for_each(|sample| sample.assert_in(&store));
    ours[1].assert_missing(&store);
    ours[2].assert_in(&store);
    ids[2..].iter().for_each(|id| drop(store.pin(id).unwrap()));
    let refused = of("default", 9).try_put(&store).unwrap_err();
    let Error::Quota {
        namespace,
        used,
        limit: 350_000,
        evictable: 0,
        ..
    } = &refused
    else {
        panic!("{refused}")
    };
    assert!(namespace == "default" && *used > 300_000);
    ours[2].assert_in(&store);
    theirs[0].assert_in(&store);
}

#[test]
fn a_tenant_that_fills_the_store_evicts_nobody_elses_packets() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), limited()).unwrap();
    let theirs: Vec<Sample> = (0..4)
        .map(|number| Sample::of("ward-3", "", number, BODY))
        .collect();
    for sample in &theirs {
        sample.put(&store);
    }
    for number in 0..30 {
        Sample::new(number, BODY).put(&store);
    }
    theirs.iter().for_each(|sample| sample.assert_in(&store));
    assert!(store.stats().unwrap().evicted > 20);
}

#[test]
fn readers_never_see_wrong_bytes_while_packets_come_and_go() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), limited()).unwrap();
    let samples: Vec<Sample> = (0..24).map(|number| Sample::new(number, BODY)).collect();
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (store, samples) = (&store, &samples);
            scope.spawn(move || {
                for turn in 0..60 {
                    samples[(turn * 7 + thread) % samples.len()].put(store);
                }
            });
            scope.spawn(move || {
                let mut read = 0;
                for turn in 0..2_000 {
                    let sample = &samples[(turn * 5 + thread) % samples.len()];
                    let Some(found) = store.lookup(&sample.header.key).unwrap() else {
                        continue;
                    };
                    match store.read(&found.id) {
                        Ok(body) => assert_eq!(body.as_ref(), sample.body.as_slice()),
                        Err(Error::NotFound { .. }) => continue,
                        Err(error) => panic!("{error}"),
                    }
                    read += 1;
                }
                read
            });
        }
    });
    assert!(store.stats().unwrap().evicted > 0);
}
