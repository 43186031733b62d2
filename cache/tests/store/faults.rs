//! A disk that fails, at every point at which it can: the operation fails, nothing half-written shows, reads go on.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use addenda_cache::{Disk, Effort, Error, Fault, Faults, IoPoint, Store, StoreOptions};

use crate::sample::{Sample, options};

fn small() -> StoreOptions {
    StoreOptions {
        extent_bytes: 60_000,
        ..options()
    }
}

fn failing(directory: &Path) -> (Store, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    let disk = Disk::with(Arc::clone(&faults));
    (Store::open_on(directory, small(), disk).unwrap(), faults)
}

/// A packet of a document, or of none; every fourth text replaces an earlier one.
fn sample(number: u32) -> Sample {
    let document = match number % 3 {
        0 => String::new(),
        _ => format!("document {}", number % 5),
    };
    Sample::of(
        "default",
        &document,
        number,
        3_000 + 1_700 * (number as usize % 11),
    )
}

/// What was acknowledged.
#[derive(Default)]
struct Known {
    put: BTreeMap<u32, Sample>,
}

impl Known {
    /// Puts, deletes, reads, compacts; gives the first error.
    fn work(&mut self, store: &Store, numbers: std::ops::Range<u32>) -> Option<Error> {
        let mut first = None;
        for number in numbers {
            let sample = sample(number);
            match sample.try_put(store) {
                Ok(_) => {
                    let document = &sample.header.document;
                    let replaced = |old: &Sample| &old.header.document == document;
                    if !document.is_empty() {
                        self.put.retain(|_, old| !replaced(old));
                    }
                    self.put.insert(number, sample);
                }
                Err(error) => drop(first.get_or_insert(error)),
            }
            if number % 6 == 3 {
                let gone = number - 3;
                let found = store.lookup(&self::sample(gone).header.key).unwrap();
                match found.map(|found| store.delete(&found.id)) {
                    Some(Err(error)) => drop(first.get_or_insert(error)),
                    _ => drop(self.put.remove(&gone)),
                }
            }
            if number % 9 == 8 {
                let compacted = store.compact(Effort::Thorough, &mut |_| ControlFlow::Continue(()));
                if let Err(error) = compacted {
                    first.get_or_insert(error);
                }
            }
        }
        first
    }

    fn assert_in(&self, store: &Store) {
        for sample in self.put.values() {
            sample.assert_in(store);
        }
        for manifest in store.list("default", None, 1_000).unwrap() {
            store.read(&manifest.id).unwrap();
        }
    }
}

#[test]
fn a_fault_at_any_operation_on_any_file_costs_that_operation_and_nothing_else() {
    let mut struck = BTreeMap::new();
    for point in IoPoint::ALL {
        let faults: &[Fault] = match point {
            IoPoint::Write => &[Fault::Full, Fault::Broken, Fault::Short],
            _ => &[Fault::Broken],
        };
        for &fault in faults {
            for after in [0, 1, 4, 13] {
                let directory = tempfile::tempdir().unwrap();
                let mut known = Known::default();
                let (store, faults) = failing(directory.path());
                assert!(known.work(&store, 0..9).is_none());
                faults.arm(point, after, fault, 2);
                let error = known.work(&store, 9..27);
                let met = faults.disarm();
                *struck.entry(point).or_insert(0) += met;
                let case = format!("{fault:?} at {point:?} behind {after}: {error:?}");
                if let Some(error) = &error {
                    let told = match error {
                        Error::DiskFull { free, .. } => *free > 0,
                        Error::Io { .. } => true,
                        _ => false,
                    };
                    assert!(told && met > 0, "{case}");
                }
                known.assert_in(&store);
                assert!(known.work(&store, 27..36).is_none(), "{case}");
                known.assert_in(&store);
                drop(store);
                let store = Store::open(directory.path(), small()).unwrap();
                assert_eq!(store.recovery().damaged, [], "{case}");
                known.assert_in(&store);
                drop(store);
                let store = Store::rebuild(directory.path(), small(), &mut |_| {}).unwrap();
                known.assert_in(&store);
            }
        }
    }
    // What is cut is what another fault left.
    for point in IoPoint::ALL
        .into_iter()
        .filter(|point| *point != IoPoint::Cut)
    {
        assert!(struck[&point] > 0, "no operation met a fault at {point:?}");
    }
}

#[test]
fn an_extent_whose_sync_failed_is_never_written_again() {
    let directory = tempfile::tempdir().unwrap();
    let (store, faults) = failing(directory.path());
    let first = sample(1);
    first.put(&store);
    faults.arm(IoPoint::Sync, 0, Fault::Broken, 1);
    let refused = sample(3).try_put(&store).unwrap_err();
    assert!(refused.to_string().contains("sync"), "{refused}");
    faults.disarm();
    let extent = directory.path().join("extents/0000000001.extent");
    let length = std::fs::metadata(&extent).unwrap().len();
    let written = std::fs::metadata(&extent).unwrap().modified().unwrap();
    for number in 4..20 {
        Sample::new(number, 5_000).put(&store);
    }
    let metadata = std::fs::metadata(&extent).unwrap();
    assert_eq!(
        (metadata.len(), metadata.modified().unwrap()),
        (length, written)
    );
    first.assert_in(&store);
    sample(3).assert_missing(&store);
}

#[test]
fn a_slow_disk_holds_up_its_writer_and_no_reader_of_what_is_mapped() {
    let directory = tempfile::tempdir().unwrap();
    let (store, faults) = failing(directory.path());
    let first = sample(1);
    let id = first.put(&store);
    drop(store.read(&id).unwrap());
    let slow = Duration::from_millis(600);
    faults.arm(IoPoint::Sync, 0, Fault::Slow(slow), 1);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let start = Instant::now();
            sample(3).put(&store);
            start.elapsed()
        });
        let mut longest = Duration::ZERO;
        while !writer.is_finished() {
            let start = Instant::now();
            first.assert_in(&store);
            longest = longest.max(start.elapsed());
        }
        assert!(writer.join().unwrap() >= slow);
        assert!(longest < slow / 2, "a reader waited {longest:?}");
    });
}

/// A file system of 24 MiB of its own, where this machine lets us make one.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=24m", "tmpfs"]);
        let mounted = mount.arg(folder.path()).output();
        let mounted = mounted.is_ok_and(|output| output.status.success());
        mounted.then_some(Self(folder))
    }
}

impl Mounted {
    fn grow(&self) {
        let mut mount = Command::new("mount");
        mount.args(["-o", "remount,size=64m"]).arg(self.0.path());
        assert!(mount.status().unwrap().success());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}

#[test]
fn on_a_file_system_that_is_really_full_puts_are_refused_and_reads_go_on() {
    let Some(mounted) = Mounted::new() else {
        println!("this machine lets nobody mount: not tried");
        return;
    };
    let directory = mounted.0.path().join("data");
    let store = Store::open(&directory, small()).unwrap();
    let mut put: Vec<(Sample, _)> = Vec::new();
    let mut refused = 0;
    for number in 0..200 {
        let sample = Sample::new(number, 500_000);
        match sample.try_put(&store) {
            Ok(id) => put.push((sample, id)),
            Err(Error::DiskFloor { .. }) => refused += 1,
            Err(error) => panic!("{error}"),
        }
        if refused > 3 {
            break;
        }
    }
    assert!(refused > 3 && put.len() > 10, "{refused} of {}", put.len());
    // What packets leave free for the index, somebody else takes.
    let mut filler = std::fs::File::create(mounted.0.path().join("filler")).unwrap();
    while filler.write_all(&[1; 4096]).is_ok() {}
    assert!(Sample::new(201, 500_000).try_put(&store).is_err());
    put.iter().for_each(|(sample, _)| sample.assert_in(&store));
    mounted.grow();
    let (gone, id) = put.remove(3);
    assert_eq!(store.delete(&id).unwrap().packets, 1);
    let late = Sample::new(900, 500_000);
    late.put(&store);
    drop(store);
    let store = Store::open(&directory, small()).unwrap();
    assert_eq!(store.recovery().damaged, []);
    put.iter().for_each(|(sample, _)| sample.assert_in(&store));
    late.assert_in(&store);
    gone.assert_missing(&store);
}
