//! How fast the store is beside plain files, on this machine, now.
//!
//! `cargo test --release -p addenda-cache figures -- --ignored --nocapture`

use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use addenda_cache::PacketId;

use crate::sample::{Sample, open};

const BODY: usize = 1 << 20;
const PACKETS: u32 = 128;
const SMALL_PACKETS: u32 = 20_000;

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed(), result)
}

#[test]
#[ignore = "prints figures and takes a minute"]
fn figures_beside_plain_files() {
    let directory = tempfile::tempdir().unwrap();
    let samples: Vec<Sample> = (0..PACKETS)
        .map(|number| Sample::new(number, BODY))
        .collect();
    let plain = |number: usize| directory.path().join(format!("plain-{number}"));
    let (plain_put, ()) = timed(|| {
        for (number, sample) in samples.iter().enumerate() {
            let mut file = File::create(plain(number)).unwrap();
            file.write_all(&sample.body).unwrap();
            file.sync_all().unwrap();
        }
    });
    let store = open(directory.path());
    let (put, ids): (_, Vec<PacketId>) =
        timed(|| samples.iter().map(|sample| sample.put(&store)).collect());
    drop(store);
    let (plain_read, _) = timed(|| {
        let mut buffer = Vec::new();
        for number in 0..samples.len() {
            buffer.clear();
            File::open(plain(number))
                .unwrap()
                .read_to_end(&mut buffer)
                .unwrap();
            black_box(&buffer);
        }
    });
    let store = open(directory.path());
    let (first_read, _) = timed(|| ids.iter().for_each(|id| drop(store.read(id).unwrap())));
    let (hit, _) = timed(|| {
        ids.iter()
            .for_each(|id| drop(black_box(store.read(id).unwrap())));
    });
    let ratio = |plain: Duration, ours: Duration| plain.as_secs_f64() / ours.as_secs_f64();
    println!("\nput_ratio {:.2}", ratio(plain_put, put));
    println!("first_read_ratio {:.2}", ratio(plain_read, first_read));
    println!("hit_us {:.1}", hit.as_secs_f64() * 1e6 / f64::from(PACKETS));
}

#[test]
#[ignore = "prints figures and takes a minute"]
fn figures_of_an_open_with_many_packets() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    // Many writers, as a warm-up has; each waits for its own packet to be durable.
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for number in (thread..SMALL_PACKETS).step_by(4) {
                    Sample::new(number, 256).put(store);
                }
            });
        }
    });
    drop(store);
    let (clean, store) = timed(|| open(directory.path()));
    assert_eq!(store.stats().unwrap().packets, u64::from(SMALL_PACKETS));
    drop(store);
    std::fs::remove_dir_all(directory.path().join("index")).unwrap();
    let (rebuilt, store) = timed(|| open(directory.path()));
    assert_eq!(store.stats().unwrap().packets, u64::from(SMALL_PACKETS));
    println!("\nopen_s {:.2}", clean.as_secs_f64());
    println!("rebuild_s {:.2}", rebuilt.as_secs_f64());
}

#[test]
#[ignore = "prints figures and takes a minute"]
fn figures_of_first_reads() {
    let directory = tempfile::tempdir().unwrap();
    // What 512 tokens of a model of 135 million parameters take in bf16.
    const LARGE: usize = 12 << 20;
    let ids: Vec<PacketId> = {
        let store = open(directory.path());
        let put = |number| Sample::new(number, LARGE).put(&store);
        (0..8).map(put).collect()
    };
    for _ in 0..3 {
        let store = open(directory.path());
        let (first_read, _) = timed(|| ids.iter().for_each(|id| drop(store.read(id).unwrap())));
        let bytes = ids.len() * LARGE;
        let rate = bytes as f64 / first_read.as_secs_f64() / 1e9;
        println!("first_read_gb_per_s {rate:.2}");
    }
}
