//! Adapters: trained as a job, listed, activated, exported and imported.
//!
//! Owns the checks of what a training is asked for. The work is `crate::adapters`'; certificates
//! are `grpc/certificates.rs`.

use std::sync::Arc;

use addenda_model::adapter::{MAX_FILE_BYTES, MAX_SOFT_TOKENS, is_name};
use addenda_proto::addenda::v1 as wire;
use addenda_proto::addenda::v1::adapters_server::Adapters;
use tonic::{Request, Response, Status};

use crate::adapters::job;
use crate::adapters::library::Entry;
use crate::adapters::plan::Plan;
use crate::adapters::record::Record;
use crate::adapters::samples::Suite;
use crate::adapters::{self};
use crate::digest::Digest;
use crate::documents::blocking;
use crate::error::{Error, Result};
use crate::grpc::certificates;
use crate::grpc::jobs::record as job_record;
use crate::grpc::status::status;
use crate::grpc::{Daemon, Serving, check};
use crate::limits;

/// The service over the library of adapters.
pub(crate) struct AdaptersService(pub(crate) Arc<Daemon>);

type Answer<T> = std::result::Result<Response<T>, Status>;

#[tonic::async_trait]
impl Adapters for AdaptersService {
    async fn train(&self, request: Request<wire::TrainAdapterRequest>) -> Answer<wire::JobRecord> {
        let (serving, mut ticket, _leave) = self.0.admit("TrainAdapter", &request)?;
        let asked = asked(request.into_inner(), &self.0.config.model);
        let asked = asked.map_err(|error| status(&error))?;
        // The job outlives its request: it ends when it is cancelled, or the daemon stops.
        ticket.cancel = self.0.stop.child_token();
        ticket.deadline = None;
        ticket.patient = true;
        let job = self.0.jobs.begin("train", "lessons", ticket.cancel.clone());
        let record = job_record(&job.state());
        tokio::spawn(async move {
            let result = job::train(&serving, &ticket, asked, &job).await;
            job.end(&result);
        });
        Ok(Response::new(record))
    }

    async fn list(
        &self,
        _: Request<wire::ListAdaptersRequest>,
    ) -> Answer<wire::ListAdaptersResponse> {
        let serving = self.0.serving().map_err(|error| status(&error))?;
        let active = active(serving);
        let entries = serving.loaded.adapters.list();
        let adapters = entries.iter().map(|entry| record(entry, active));
        Ok(Response::new(wire::ListAdaptersResponse {
            adapters: adapters.collect(),
        }))
    }

    async fn activate(
        &self,
        request: Request<wire::ActivateAdapterRequest>,
    ) -> Answer<wire::AdapterRecord> {
        let (serving, ticket, _leave) = self.0.admit("ActivateAdapter", &request)?;
        let activate = async {
            let id = &request.get_ref().id;
            check::text("id", id, limits::NAME_BYTES)?;
            if id == "none" {
                adapters::activate(&serving, &ticket, None).await?;
                return Ok(wire::AdapterRecord::default());
            }
            let entry = serving.loaded.adapters.find(id)?;
            adapters::activate(&serving, &ticket, Some(&entry)).await?;
            Ok(record(&entry, entry.id))
        };
        let record = activate.await.map_err(|error: Error| status(&error))?;
        Ok(Response::new(record))
    }

    async fn certify(&self, request: Request<wire::CertifyRequest>) -> Answer<wire::JobRecord> {
        certificates::certify(&self.0, request).await
    }

    async fn list_certificates(
        &self,
        request: Request<wire::ListCertificatesRequest>,
    ) -> Answer<wire::ListCertificatesResponse> {
        certificates::list(&self.0, request).await
    }

    async fn export(
        &self,
        request: Request<wire::ExportAdapterRequest>,
    ) -> Answer<wire::ExportAdapterResponse> {
        let serving = Arc::clone(self.0.serving().map_err(|error| status(&error))?);
        let export = async {
            let id = request.into_inner().id;
            check::text("id", &id, limits::NAME_BYTES)?;
            blocking(move || {
                let library = &serving.loaded.adapters;
                library.bytes(&library.find(&id)?)
            })
            .await
        };
        let file = export.await.map_err(|error| status(&error))?;
        Ok(Response::new(wire::ExportAdapterResponse { file }))
    }

    async fn import(
        &self,
        request: Request<wire::ImportAdapterRequest>,
    ) -> Answer<wire::AdapterRecord> {
        let (serving, ticket, _leave) = self.0.admit("ImportAdapter", &request)?;
        let wire::ImportAdapterRequest { file, activate } = request.into_inner();
        let import = async {
            if file.len() > MAX_FILE_BYTES {
                let reason = format!(
                    "has {} bytes; {MAX_FILE_BYTES} at most are taken",
                    file.len()
                );
                return Err(Error::invalid("file", reason));
            }
            let library = Arc::clone(&serving.loaded.adapters);
            let entry = blocking(move || library.add(&file)).await?;
            if activate {
                adapters::activate(&serving, &ticket, Some(&entry)).await?;
            }
            Ok(entry)
        };
        let entry = import.await.map_err(|error: Error| status(&error))?;
        Ok(Response::new(record(&entry, active(&serving))))
    }
}

/// The adapter that is active now; zeros for none.
fn active(serving: &Serving) -> Digest {
    serving.documents.engine.state().under.adapter
}

/// An adapter as the wire shows it.
fn record(entry: &Entry, active: Digest) -> wire::AdapterRecord {
    let count = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    // Another program's record may say nothing of this.
    let trained: Option<Record> = serde_json::from_str(&entry.training).ok();
    let trained = trained.unwrap_or_default();
    wire::AdapterRecord {
        id: entry.id.to_string(),
        name: entry.name.clone(),
        header_tokens: count(entry.header_tokens),
        trailer_tokens: count(entry.trailer_tokens),
        bridge_tokens: count(entry.bridge_tokens),
        base_fingerprint: entry.base.to_string(),
        active: entry.id == active,
        created_at_ms: match trained.created_at_ms {
            0 => entry.created_at_ms,
            trained => trained,
        },
        kl_before: trained.kl_before,
        kl_after: trained.kl_after,
        samples: trained.studied,
        updates: u32::try_from(trained.updates).unwrap_or(u32::MAX),
        training: entry.training.clone(),
    }
}

/// A request to train, checked and completed.
///
/// # Errors
/// A field out of its bounds.
fn asked(request: wire::TrainAdapterRequest, model: &str) -> Result<job::Request> {
    let data = request.data.unwrap_or_default();
    let soft = request.header_tokens > 0 || request.trailer_tokens > 0;
    if soft && request.bridge_tokens > 0 {
        let reason = "is asked for beside soft tokens; an adapter has one or the other";
        return Err(Error::invalid("bridge_tokens", reason));
    }
    let defaults = Plan::defaults(soft);
    let or = |field, value: u32, default: usize, most: usize| match value as usize {
        0 => Ok(default),
        value if value <= most => Ok(value),
        value => Err(Error::invalid(
            field,
            format!("is {value}; {most} at most are taken"),
        )),
    };
    let most = MAX_SOFT_TOKENS;
    let samples = or("data.samples", data.samples, defaults.samples, 65_536)?;
    let plan = Plan {
        name: name(request.name, model)?,
        header_tokens: or(
            "header_tokens",
            request.header_tokens,
            defaults.header_tokens,
            most,
        )?,
        trailer_tokens: or(
            "trailer_tokens",
            request.trailer_tokens,
            defaults.trailer_tokens,
            most,
        )?,
        bridge_tokens: or(
            "bridge_tokens",
            request.bridge_tokens,
            defaults.bridge_tokens,
            most,
        )?,
        questions: or("data.questions", data.questions, defaults.questions, 16)?,
        suites: suites(data.suites)?,
        samples,
        validation: or(
            "data.validation",
            data.validation,
            defaults.validation,
            4096,
        )?,
        epochs: or("epochs", request.epochs, defaults.epochs, 20)?,
        batch: or("batch", request.batch, defaults.batch.min(samples), samples)?,
        learning_rate: rate(request.learning_rate, defaults.learning_rate)?,
        seed: request.seed,
        ..defaults
    };
    check::count("data.documents", data.documents.len(), 0, limits::QUERIES)?;
    for document in &data.documents {
        check::text("data.documents", document, limits::NAME_BYTES)?;
    }
    Ok(job::Request {
        plan,
        documents: data.documents,
        namespace: check::namespace(&data.namespace)?,
        activate: request.activate,
    })
}

/// The name that was asked for, or the model's with what a name cannot have left out.
fn name(asked: String, model: &str) -> Result<String> {
    if is_name(&asked) {
        return Ok(asked);
    }
    if !asked.is_empty() {
        return Err(Error::invalid(
            "name",
            "is not 1 to 64 characters of [A-Za-z0-9._-]",
        ));
    }
    let last = model.trim_end_matches('/').rsplit('/').next();
    let legal = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name: String = last
        .unwrap_or(model)
        .chars()
        .filter(legal)
        .take(64)
        .collect();
    Ok(if is_name(&name) {
        name
    } else {
        "adapter".to_owned()
    })
}

fn suites(asked: Vec<String>) -> Result<Vec<String>> {
    check::count("data.suites", asked.len(), 0, limits::SUITES)?;
    for suite in &asked {
        suite
            .parse::<Suite>()
            .map_err(|reason| Error::invalid("data.suites", format!("has {reason}")))?;
    }
    Ok(asked)
}

fn rate(asked: f32, default: f64) -> Result<f64> {
    if asked == 0.0 {
        return Ok(default);
    }
    if !(asked > 0.0 && asked <= 1.0) {
        return Err(Error::invalid(
            "learning_rate",
            format!("is {asked}, and must be above 0 and at most 1"),
        ));
    }
    // As it is written, not as the nearest f32.
    Ok(asked.to_string().parse().unwrap_or(f64::from(asked)))
}
