//! Jobs: long work, seen from outside.

use std::sync::Arc;

use addenda_proto::addenda::v1::jobs_server::Jobs;
use addenda_proto::addenda::v1::{
    GetJobRequest, JobRecord, JobState, ListJobsRequest, ListJobsResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::grpc::Daemon;
use crate::grpc::status::status;
use crate::jobs::{Job, JobState as State};

/// The service over the registry of jobs.
pub(crate) struct JobsService(pub(crate) Arc<Daemon>);

#[tonic::async_trait]
impl Jobs for JobsService {
    type WatchStream = ReceiverStream<Result<JobRecord, Status>>;

    async fn get(&self, request: Request<GetJobRequest>) -> Result<Response<JobRecord>, Status> {
        let watch = self
            .0
            .jobs
            .watch(&request.get_ref().id)
            .map_err(|error| status(&error))?;
        let job = record(&watch.borrow());
        Ok(Response::new(job))
    }

    async fn list(
        &self,
        request: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        let jobs = self.0.jobs.list(request.get_ref().include_ended);
        let jobs = jobs.iter().map(record).collect();
        Ok(Response::new(ListJobsResponse { jobs }))
    }

    async fn watch(
        &self,
        request: Request<GetJobRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let mut watch = self
            .0
            .jobs
            .watch(&request.get_ref().id)
            .map_err(|error| status(&error))?;
        let stop = self.0.stop.clone();
        // One place: a slow watcher skips states, it never holds up the job.
        let (states, stream) = mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                let job = watch.borrow_and_update().clone();
                let ended = job.state != State::Running;
                if states.send(Ok(record(&job))).await.is_err() || ended {
                    return;
                }
                tokio::select! {
                    changed = watch.changed() => if changed.is_err() { return },
                    () = states.closed() => return,
                    () = stop.cancelled() => return,
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn cancel(&self, request: Request<GetJobRequest>) -> Result<Response<JobRecord>, Status> {
        let job = self
            .0
            .jobs
            .cancel(&request.get_ref().id)
            .map_err(|error| status(&error))?;
        self.0.engine.ring();
        Ok(Response::new(record(&job)))
    }
}

/// A job as the wire shows it.
pub(crate) fn record(job: &Job) -> JobRecord {
    let state = match job.state {
        State::Running => JobState::Running,
        State::Done => JobState::Done,
        State::Failed => JobState::Failed,
        State::Cancelled => JobState::Cancelled,
    };
    JobRecord {
        id: job.id.clone(),
        kind: job.kind.to_owned(),
        state: state.into(),
        phase: job.phase.clone(),
        done: job.done,
        total: job.total,
        unit: job.unit.to_owned(),
        started_at_ms: job.started_at_ms,
        ended_at_ms: job.ended_at_ms,
        error: job.error.clone(),
    }
}
