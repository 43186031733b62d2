//! How fast packets are put, read first, read again, and a store opened.

use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Instant;

use addenda_cache::{PacketId, Store, StoreOptions};
use addenda_model::PacketKv;
use tch::Device;

use super::packet::{MEBIBYTE, Sample};
use crate::error::{Result, io};
use crate::prefill::median;

/// Threads that put at once where many do, as a warm-up's documents are.
const WRITERS: u32 = 8;

/// Ratios are of times: 1 is as fast as plain files, less is slower.
pub(crate) struct Speed {
    pub(crate) put_ratio: f64,
    pub(crate) put_mib_per_s: f64,
    pub(crate) plain_put_mib_per_s: f64,
    /// Puts of many threads at once against those of one.
    pub(crate) put_many_ratio: f64,
    pub(crate) first_read_ratio: f64,
    pub(crate) first_read_mib_per_s: f64,
    pub(crate) plain_read_mib_per_s: f64,
    pub(crate) hit_us: f64,
}

/// Rates of bodies of 1 MiB beside plain files of the same bytes.
pub(crate) fn measure(folder: &Path, packets: u32) -> Result<Speed> {
    let data = folder.join("data");
    let plain = |number: u32| folder.join(format!("plain-{number}"));
    let samples: Vec<Sample> = (0..packets)
        .map(|number| Sample::new(number, "", 1 << 20))
        .collect();
    let (mut plain_put, mut put) = (0.0, 0.0);
    let mut ids = Vec::new();
    {
        let store = open_store(&data)?;
        for (number, sample) in (0..).zip(&samples) {
            plain_put += timed(|| write_plain(&plain(number), &sample.body))?;
            put += timed(|| {
                ids.push(sample.put(&store)?);
                Ok(())
            })?;
        }
    }
    let many = many(&folder.join("many"), packets)?;
    let (plain_read, first_read, hit_us) = read(&data, &plain, &samples, &ids)?;
    let rate = |seconds: f64| f64::from(packets) / seconds;
    Ok(Speed {
        put_ratio: plain_put / put,
        put_mib_per_s: rate(put),
        plain_put_mib_per_s: rate(plain_put),
        put_many_ratio: put / many,
        first_read_ratio: plain_read / first_read,
        first_read_mib_per_s: rate(first_read),
        plain_read_mib_per_s: rate(plain_read),
        hit_us,
    })
}

/// Seconds to read all files and, in turns with them, all packets of a store that was just opened;
/// both from the system's memory. Then microseconds from a key to a tensor over a mapped body.
fn read(
    data: &Path,
    plain: &dyn Fn(u32) -> std::path::PathBuf,
    samples: &[Sample],
    ids: &[PacketId],
) -> Result<(f64, f64, f64)> {
    let (mut plain_times, mut first_times, mut hits) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..5 {
        let store = open_store(data)?;
        let (mut files, mut packets) = (0.0, 0.0);
        for (number, id) in (0..).zip(ids) {
            files += timed(|| read_plain(&plain(number)))?;
            packets += timed(|| {
                black_box(store.read(id)?);
                Ok(())
            })?;
        }
        plain_times.push(files);
        first_times.push(packets);
        for sample in samples {
            let hit = timed(|| {
                if let Some(found) = store.lookup(&sample.header.key)? {
                    let body = Box::new(store.read(&found.id)?);
                    black_box(PacketKv::from_owner(body, MEBIBYTE, Device::Cpu)?);
                }
                Ok(())
            })?;
            hits.push(hit * 1e6);
        }
    }
    Ok((
        median(plain_times.into_iter()),
        median(first_times.into_iter()),
        median(hits.into_iter()),
    ))
}

/// Seconds for as many puts by several threads at once.
fn many(folder: &Path, packets: u32) -> Result<f64> {
    let store = open_store(folder)?;
    let each = packets / WRITERS;
    let samples: Vec<Sample> = (0..each * WRITERS)
        .map(|number| Sample::new(number, "", 1 << 20))
        .collect();
    let seconds = timed(|| {
        together(samples.chunks(each.max(1) as usize), |one| {
            one.put(&store).map(drop)
        })
    })?;
    Ok(seconds * f64::from(packets) / f64::from((each * WRITERS).max(1)))
}

/// Does `work` with each item, every share on a thread of its own.
fn together<'a, T: Sync + 'a>(
    shares: impl Iterator<Item = &'a [T]>,
    work: impl Fn(&T) -> Result<()> + Sync,
) -> Result<()> {
    let work = &work;
    std::thread::scope(|scope| {
        let writers: Vec<_> = shares
            .map(|mine| scope.spawn(move || mine.iter().try_for_each(work)))
            .collect();
        writers
            .into_iter()
            .try_for_each(|writer| match writer.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
    })
}

pub(crate) struct Opening {
    /// Seconds to open a store that was closed.
    pub(crate) seconds: f64,
    /// Seconds to open it as a killed process left it, its last records not in the index.
    pub(crate) after_kill_seconds: f64,
}

/// Seconds to open a store of so many packets of 4 KiB.
pub(crate) fn open(folder: &Path, packets: u32) -> Result<Opening> {
    let data = folder.join("data");
    {
        let store = open_store(&data)?;
        let numbers: Vec<u32> = (0..packets).collect();
        let put = |number: &u32| Sample::new(*number, "", 4096).put(&store).map(drop);
        let share = packets.div_ceil(WRITERS).max(1) as usize;
        together(numbers.chunks(share), put)?;
    }
    let opening = || timed(|| open_store(&data).map(drop));
    let mut times = Vec::new();
    for _ in 0..3 {
        times.push(opening()?);
    }
    let store = open_store(&data)?;
    for number in 0..500 {
        Sample::new(packets + number, "", 4096).put(&store)?;
    }
    let image = folder.join("killed");
    copy(&data, &image)?;
    let after_kill_seconds = timed(|| open_store(&image).map(drop))?;
    Ok(Opening {
        seconds: median(times.into_iter()),
        after_kill_seconds,
    })
}

/// A data directory's files as they are on disk now.
fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).map_err(io("a copy of the store"))?;
    for entry in std::fs::read_dir(from).map_err(io("the store"))? {
        let entry = entry.map_err(io("the store"))?;
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target).map_err(io("a copy of the store"))?;
        }
    }
    Ok(())
}

pub(crate) fn open_store(data: &Path) -> Result<Store> {
    Ok(Store::open(data, StoreOptions::default())?)
}

fn write_plain(path: &Path, body: &[u8]) -> Result<()> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(body)?;
        file.sync_all()
    };
    write().map_err(io("a plain file"))
}

fn read_plain(path: &Path) -> Result<()> {
    let read = || {
        let mut file = File::open(path)?;
        let mut bytes = Vec::with_capacity(1 << 20);
        file.read_to_end(&mut bytes)?;
        black_box(&bytes);
        Ok(())
    };
    read().map_err(io("a plain file"))
}

/// Seconds that some work took.
fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}
