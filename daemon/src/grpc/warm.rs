//! Warm: a stream of documents in, progress out.
//!
//! Owns the order: one document after the other, each durable before it is reported. A document
//! that is refused does not end the stream; a full store or a stopping daemon does, for every
//! following one would fail as well.

use std::sync::Arc;

use addenda_proto::addenda::v1::warm_progress::Result as Outcome;
use addenda_proto::addenda::v1::{PutDocumentRequest, WarmProgress};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use crate::engine::command::Ticket;
use crate::error::{Error, Result};
use crate::grpc::Serving;
use crate::grpc::packets::{check_document, record};
use crate::grpc::status::{code, status};
use crate::grpc::ticket::Leave;
use crate::jobs::JobHandle;

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
        let so_far = WarmProgress::default();
        let warm = Warm {
            serving,
            stop,
            ticket,
            job: &job,
            reports: &reports,
            so_far,
        };
        let result = warm.run(documents).await;
        if let Err(error) = &result {
            drop(reports.send(Err(status(error))).await);
        }
        job.end(&result);
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
    so_far: WarmProgress,
}

impl Warm<'_> {
    async fn run(mut self, mut documents: Streaming<PutDocumentRequest>) -> Result<()> {
        loop {
            let next = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Error::Stopping),
                next = documents.next() => next,
                () = self.ticket.cancel.cancelled() => return Err(Error::Cancelled),
                () = self.reports.closed() => return Err(Error::Cancelled),
            };
            match next {
                None => return Ok(()),
                // The client's stream broke; there is nobody to tell.
                Some(Err(_)) => return Err(Error::Cancelled),
                Some(Ok(request)) => self.put(request).await?,
            }
        }
    }

    async fn put(&mut self, request: PutDocumentRequest) -> Result<()> {
        self.so_far.received += 1;
        self.so_far.document.clone_from(&request.name);
        let put = async {
            let namespace = check_document(&request)?;
            let documents = &self.serving.documents;
            documents
                .put(&self.ticket, &namespace, &request.name, request.text)
                .await
        };
        match put.await {
            Ok(stored) => {
                if stored.created {
                    self.so_far.created += 1;
                    self.so_far.tokens += u64::from(stored.manifest.header.tokens);
                } else {
                    self.so_far.found += 1;
                }
                self.so_far.result = Some(Outcome::Packet(record(&stored.manifest)));
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
        Code::InvalidArgument | Code::Internal | Code::DataLoss
    )
}
