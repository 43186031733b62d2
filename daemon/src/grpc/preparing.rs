//! Measuring ahead what edits need of the model, as a job.

use std::sync::Arc;

use addenda_editor::Method;
use addenda_proto::addenda::v1 as wire;

use crate::engine::command::{Command, Edit, Ticket};
use crate::error::{Error, Result};
use crate::grpc::{Daemon, jobs};

/// A method by its name on the wire; none is the daemon's choice.
pub(crate) fn method(name: &str) -> Result<Option<Method>> {
    match name {
        "" | "auto" => Ok(None),
        name => {
            let method = name.parse().map(Some);
            method
                .map_err(|_| Error::invalid("method", "is none of auto, memit, rome and alphaedit"))
        }
    }
}

/// Those that are to be prepared.
pub(crate) fn methods(name: &str) -> Result<Vec<Option<Method>>> {
    match name {
        "all" => Ok([Method::Memit, Method::Rome, Method::AlphaEdit]
            .map(Some)
            .into()),
        name => Ok(vec![method(name)?]),
    }
}

/// Begins the job. It outlives its request: it ends when it is cancelled, or the daemon stops.
pub(crate) fn begin(
    daemon: &Arc<Daemon>,
    mut ticket: Ticket,
    methods: Vec<Option<Method>>,
) -> wire::JobRecord {
    ticket.cancel = daemon.stop.child_token();
    ticket.deadline = None;
    ticket.patient = true;
    let job = daemon.jobs.begin("prepare", "steps", ticket.cancel.clone());
    let record = jobs::record(&job.state());
    let (job, engine) = (Arc::new(job), daemon.engine.clone());
    tokio::spawn(async move {
        let mut result = Ok(());
        for method in methods {
            let working = Arc::clone(&job);
            let prepare = |reply| {
                Command::Edit(Box::new(Edit::Prepare {
                    method,
                    job: working,
                    reply,
                }))
            };
            match engine.ask(&ticket, prepare).await {
                Ok(layers) => tracing::info!(?method, layers, "prepared for edits"),
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        // The engine has let go of it with its answer.
        if let Some(job) = Arc::into_inner(job) {
            job.end(&result);
        }
    });
    record
}
