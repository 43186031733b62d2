//! Upkeep of the store: verifying, compacting, copying; each a job with a stream of reports.
//!
//! Owns how such work runs beside serving: on a thread of its own, reporting at most a few times a second, ended by
//! its client's going, by its job's cancellation or with the daemon.

use std::fs::File;
use std::io::Read;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use addenda_cache::{BackupPart, CompactProgress, Effort, VerifyProgress};
use addenda_proto::addenda::v1 as wire;
use addenda_proto::addenda::v1::backup_chunk::Part;
use addenda_proto::addenda::v1::backup_manifest;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::error::{Error, Result};
use crate::grpc::Daemon;
use crate::grpc::status::status;
use crate::jobs::{JobHandle, now_ms};

/// Version of a backup's layout.
pub(crate) const BACKUP_VERSION: u32 = 1;
/// Folders of the data directory that are copied file by file; packets are copied by the store.
const FOLDERS: [&str; 3] = ["ledger", "adapters", "certificates"];
/// Bytes of a file that are sent at once.
const PIECE: usize = 1 << 20;
/// Reports that may wait for the client; then the work waits too.
const REPORTS: usize = 4;
/// Reports come no oftener than that.
const PAUSE: Duration = Duration::from_millis(100);

pub(crate) type Stream<T> = ReceiverStream<std::result::Result<T, Status>>;

/// The reporting side of a job that runs.
pub(crate) struct Reports<T> {
    channel: mpsc::Sender<std::result::Result<T, Status>>,
    job: JobHandle,
    cancelled: tokio_util::sync::CancellationToken,
    next: Instant,
}

impl<T> Reports<T> {
    /// Notes how far the work is; sends a report where one is due. A break: nobody wants more of it.
    fn progress(
        &mut self,
        (done, total): (u64, u64),
        report: impl FnOnce() -> T,
    ) -> ControlFlow<()> {
        self.job.progress("", done, total);
        if self.cancelled.is_cancelled() {
            return ControlFlow::Break(());
        }
        let now = Instant::now();
        if now < self.next {
            return ControlFlow::Continue(());
        }
        self.next = now + PAUSE;
        match self.send(report()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }

    /// Sends a report.
    ///
    /// # Errors
    /// The client is gone, or the job was cancelled.
    fn send(&self, report: T) -> Result<()> {
        if self.cancelled.is_cancelled() {
            return Err(Error::Cancelled);
        }
        self.channel
            .blocking_send(Ok(report))
            .map_err(|_| Error::Cancelled)
    }
}

/// Runs work on a thread of its own; its reports come out of the stream.
pub(crate) fn start<T: Send + 'static>(
    daemon: &Arc<Daemon>,
    kind: &'static str,
    work: impl FnOnce(&Daemon, &mut Reports<T>) -> Result<()> + Send + 'static,
) -> Stream<T> {
    let (channel, stream) = mpsc::channel(REPORTS);
    let cancelled = daemon.stop.child_token();
    let job = daemon.jobs.begin(kind, "bytes", cancelled.clone());
    let daemon = Arc::clone(daemon);
    tokio::task::spawn_blocking(move || {
        let mut reports = Reports {
            channel,
            job,
            cancelled,
            next: Instant::now(),
        };
        let result = work(&daemon, &mut reports);
        if let Err(error) = &result {
            // A client that is gone needs no status.
            drop(reports.channel.blocking_send(Err(status(error))));
        }
        reports.job.end(&result);
    });
    ReceiverStream::new(stream)
}

/// Verifies every packet.
///
/// # Errors
/// The store's.
pub(crate) fn verify(daemon: &Daemon, reports: &mut Reports<wire::VerifyProgress>) -> Result<()> {
    let mut last = VerifyProgress::default();
    let report = daemon.store.verify(&mut |progress| {
        last = *progress;
        reports.progress((progress.bytes, progress.bytes_total), || shown(progress))
    })?;
    if !report.complete {
        return Err(Error::Cancelled);
    }
    let damaged = report.damaged.into_iter();
    let damaged = damaged.map(|packet| wire::verify_report::Damaged {
        id: packet.id.to_string(),
        namespace: packet.namespace,
        document: packet.document,
        what: packet.what.to_owned(),
    });
    reports.send(wire::VerifyProgress {
        report: Some(wire::VerifyReport {
            damaged: damaged.collect(),
            damaged_bytes: report.damaged_bytes,
        }),
        ..shown(&last)
    })
}

fn shown(progress: &VerifyProgress) -> wire::VerifyProgress {
    wire::VerifyProgress {
        packets: progress.packets,
        packets_total: progress.packets_total,
        bytes: progress.bytes,
        bytes_total: progress.bytes_total,
        damaged: progress.damaged,
        report: None,
    }
}

/// Compacts the store.
///
/// # Errors
/// The store's.
pub(crate) fn compact(daemon: &Daemon, reports: &mut Reports<wire::CompactProgress>) -> Result<()> {
    let mut last = CompactProgress::default();
    let report = daemon.store.compact(Effort::Thorough, &mut |progress| {
        last = *progress;
        let report = || wire::CompactProgress {
            extents: progress.extents,
            extents_total: progress.extents_total,
            bytes: progress.bytes,
            bytes_total: progress.bytes_total,
            report: None,
        };
        reports.progress((progress.bytes, progress.bytes_total), report)
    })?;
    if !report.complete {
        return Err(Error::Cancelled);
    }
    reports.send(wire::CompactProgress {
        extents: last.extents_total,
        extents_total: last.extents_total,
        bytes: last.bytes_total,
        bytes_total: last.bytes_total,
        report: Some(wire::CompactReport {
            removed: report.removed,
            waiting: report.waiting,
            packets: report.packets,
            copied_bytes: report.copied_bytes,
            disk_bytes_before: report.disk_bytes_before,
            disk_bytes: report.disk_bytes,
        }),
    })
}

/// Copies packets, ledger, adapters and certificates.
///
/// # Errors
/// The store's, or a file that can't be read.
pub(crate) fn backup(daemon: &Daemon, reports: &mut Reports<wire::BackupChunk>) -> Result<()> {
    let folder = &daemon.config.data_dir;
    let state = daemon.engine.state();
    let mut files = Vec::new();
    for name in FOLDERS {
        files_of(&folder.join(name), &mut files)?;
    }
    let bytes: u64 = files.iter().map(|(_, bytes)| bytes).sum();
    let mut copy = Copy {
        reports,
        total: bytes + daemon.store.stats()?.live_bytes,
        done: 0,
        files: Vec::new(),
        hasher: blake3::Hasher::new(),
    };
    for (path, _) in files {
        copy.file(folder, &path)?;
    }
    let report = daemon.store.backup(&mut |part| match part {
        BackupPart::File(path) => copy.begin(path.to_owned()),
        BackupPart::Bytes(bytes) => copy.bytes(bytes),
    })?;
    copy.close();
    let manifest = wire::BackupManifest {
        version: BACKUP_VERSION,
        files: std::mem::take(&mut copy.files),
        packets: report.packets,
        documents: report.documents,
        facts: state.ledger,
        revision: state.under.revision.to_string(),
        made_at_ms: now_ms(),
        made_by: format!("addenda {}", env!("CARGO_PKG_VERSION")),
    };
    copy.send(Part::Manifest(manifest))
}

/// Files of a folder, one level deep, with their lengths; a missing folder has none.
fn files_of(folder: &Path, files: &mut Vec<(PathBuf, u64)>) -> Result<()> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| Error::Io { path, source }
    };
    if !folder.exists() {
        return Ok(());
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed(folder))? {
        let entry = entry.map_err(failed(folder))?;
        let metadata = entry.metadata().map_err(failed(&entry.path()))?;
        if metadata.is_file() {
            found.push((entry.path(), metadata.len()));
        }
    }
    found.sort();
    files.extend(found);
    Ok(())
}

/// A backup on its way to the client.
struct Copy<'a> {
    reports: &'a mut Reports<wire::BackupChunk>,
    total: u64,
    done: u64,
    files: Vec<backup_manifest::File>,
    /// Of the file that was begun last.
    hasher: blake3::Hasher,
}

impl Copy<'_> {
    /// Copies a file as long as it is now: what is appended meanwhile is no part of the copy.
    fn file(&mut self, folder: &Path, path: &Path) -> Result<()> {
        let failed = |source| Error::Io {
            path: path.to_path_buf(),
            source,
        };
        let inner = path.strip_prefix(folder).unwrap_or(path);
        let file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        self.begin(inner.to_string_lossy().replace('\\', "/"))?;
        let mut file = file.take(length);
        let mut piece = vec![0; PIECE];
        loop {
            let read = file.read(&mut piece).map_err(failed)?;
            if read == 0 {
                return Ok(());
            }
            self.bytes(piece.get(..read).unwrap_or_default())?;
        }
    }

    fn begin(&mut self, path: String) -> Result<()> {
        self.close();
        self.files.push(backup_manifest::File {
            path: path.clone(),
            bytes: 0,
            digest: String::new(),
        });
        self.send(Part::File(path))
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        if let Some(file) = self.files.last_mut() {
            file.bytes += bytes.len() as u64;
        }
        self.done += bytes.len() as u64;
        self.reports
            .job
            .progress("", self.done.min(self.total), self.total);
        self.send(Part::Data(bytes.to_vec()))
    }

    /// Notes the digest of the file that was begun last.
    fn close(&mut self) {
        if let Some(file) = self.files.last_mut() {
            file.digest = self.hasher.finalize().to_string();
        }
        self.hasher.reset();
    }

    fn send(&mut self, part: Part) -> Result<()> {
        self.reports.send(wire::BackupChunk {
            part: Some(part),
            bytes_total: self.total,
        })
    }
}
