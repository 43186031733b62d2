//! Warm: a stream of documents in, progress out.
//!
//! Owns the order of the reports: that of the documents, each durable before it is reported. Several
//! documents are in work at once, so that tokenising, computing, hashing and the disk overlap; texts
//! of one name follow each other. Nothing is remembered between two warm-ups: whatever is durable is
//! found by its key, so one that was broken off is simply sent again, and no more than
//! [`limits::WARM_DOCUMENTS`] documents are computed twice. A document that is refused does not end the
//! stream; a full store or a stopping daemon does, for every following one would fail as well.

use std::collections::VecDeque;
use std::sync::Arc;

use addenda_proto::addenda::v1::warm_progress::Result as Outcome;
use addenda_proto::addenda::v1::{PutDocumentRequest, WarmProgress};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use crate::documents::Stored;
use crate::engine::command::Ticket;
use crate::error::{Error, Result};
use crate::grpc::Serving;
use crate::grpc::packets::{check_document, records};
use crate::grpc::status::{code, status};
use crate::grpc::ticket::Leave;
use crate::jobs::JobHandle;
use crate::limits;

/// Reports that may wait for the client; then warming waits too.
const REPORTS: usize = 16;

/// Starts warming; its reports come out of the stream.
pub(crate) fn start(
    (serving, stop): (Arc<Serving>, CancellationToken),
    ticket: Ticket,
    leave: Leave,
    job: JobHandle,
    documents: Streaming<PutDocumentRequest>,
) -> ReceiverStream<std::result::Result<WarmProgress, Status>> {
    let (reports, stream) = mpsc::channel(REPORTS);
    tokio::spawn(async move {
        let warm = Warm {
            serving,
            stop,
            ticket,
            job: &job,
            reports: &reports,
            running: VecDeque::new(),
            so_far: WarmProgress::default(),
        };
        let result = warm.run(documents).await;
        if let Err(error) = &result {
            drop(reports.send(Err(status(error))).await);
        }
        job.end(&result);
        // Whatever still runs is cancelled with it.
        drop(leave);
    });
    ReceiverStream::new(stream)
}

struct Warm<'a> {
    serving: Arc<Serving>,
    stop: CancellationToken,
    ticket: Ticket,
    job: &'a JobHandle,
    reports: &'a mpsc::Sender<std::result::Result<WarmProgress, Status>>,
    /// Documents in work, in the order in which they came.
    running: VecDeque<Running>,
    so_far: WarmProgress,
}

/// A document in work.
struct Running {
    name: String,
    bytes: usize,
    task: JoinHandle<Result<Stored>>,
}

/// What comes next.
enum Next {
    Document(Option<std::result::Result<PutDocumentRequest, Status>>),
    Done(Result<Stored>),
}

impl Warm<'_> {
    async fn run(mut self, mut documents: Streaming<PutDocumentRequest>) -> Result<()> {
        let mut more = true;
        while more || !self.running.is_empty() {
            match self.next(&mut documents, more).await? {
                Next::Done(stored) => self.report(stored).await?,
                Next::Document(None) => more = false,
                // The client's stream broke; there is nobody to tell.
                Next::Document(Some(Err(_))) => return Err(Error::Cancelled),
                Next::Document(Some(Ok(request))) => self.take(request).await?,
            }
        }
        Ok(())
    }

    /// The oldest document's end, or a new document where there is room for it.
    async fn next(
        &mut self,
        documents: &mut Streaming<PutDocumentRequest>,
        more: bool,
    ) -> Result<Next> {
        let bytes: usize = self.running.iter().map(|running| running.bytes).sum();
        let full = self.running.len() >= limits::WARM_DOCUMENTS || bytes >= limits::WARM_BYTES;
        let oldest = async {
            match self.running.front_mut() {
                Some(oldest) => (&mut oldest.task).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Error::Stopping),
            () = self.ticket.cancel.cancelled() => Err(Error::Cancelled),
            () = self.reports.closed() => Err(Error::Cancelled),
            stored = oldest => {
                let message = |error: tokio::task::JoinError| Error::Panicked { message: error.to_string() };
                Ok(Next::Done(stored.unwrap_or_else(|error| Err(message(error)))))
            }
            next = documents.next(), if more && !full => Ok(Next::Document(next)),
        }
    }

    /// Begins with a document.
    async fn take(&mut self, request: PutDocumentRequest) -> Result<()> {
        let (name, bytes) = (request.name.clone(), request.text.len());
        let (serving, ticket) = (Arc::clone(&self.serving), self.ticket.clone());
        let task = match check_document(&request) {
            Err(error) => tokio::spawn(async { Err(error) }),
            Ok(namespace) => {
                let documents = &self.serving.documents;
                // Here and not in the task: texts of one name take their turns as they came.
                let named = tokio::select! {
                    named = documents.named(&namespace, &request.name, request.text) => named,
                    () = self.ticket.cancel.cancelled() => return Err(Error::Cancelled),
                };
                tokio::spawn(async move { serving.documents.put(&ticket, named).await })
            }
        };
        self.running.push_back(Running { name, bytes, task });
        Ok(())
    }

    /// Reports the oldest document.
    async fn report(&mut self, stored: Result<Stored>) -> Result<()> {
        let Some(Running { name, .. }) = self.running.pop_front() else {
            return Ok(());
        };
        self.so_far.received += 1;
        self.so_far.document = name;
        self.so_far.parts = 0;
        match stored {
            Ok(stored) => {
                if stored.created() {
                    self.so_far.created += 1;
                    self.so_far.tokens += stored.computed_tokens();
                } else {
                    self.so_far.found += 1;
                }
                let packets = records(&stored);
                self.so_far.parts = u32::try_from(packets.len()).unwrap_or(u32::MAX);
                self.so_far.result = packets.into_iter().next().map(Outcome::Packet);
            }
            Err(error) if is_of_one_document(&error) => {
                self.so_far.refused += 1;
                self.so_far.result = Some(Outcome::Refusal(error.to_string()));
            }
            Err(error) => return Err(error),
        }
        self.job
            .progress(&self.so_far.document, self.so_far.received, 0);
        let report = self.reports.send(Ok(self.so_far.clone())).await;
        report.map_err(|_| Error::Cancelled)
    }
}

/// Whether the next document may fare better.
fn is_of_one_document(error: &Error) -> bool {
    matches!(
        code(error),
        Code::InvalidArgument | Code::Internal | Code::DataLoss | Code::FailedPrecondition
    )
}
