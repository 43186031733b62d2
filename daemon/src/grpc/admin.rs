//! Admin: what this daemon is and holds, and the upkeep of its store.

use std::sync::Arc;

use addenda_model::PacketShape;
use addenda_model::tensor::kind_name;
use addenda_proto::addenda::v1::admin_server::Admin;
use addenda_proto::addenda::v1::{
    BackupChunk, BackupRequest, CompactProgress, CompactRequest, InfoRequest, InfoResponse,
    VerifyProgress, VerifyRequest,
};
use tch::Device;
use tonic::{Request, Response, Status};

use crate::digest::Digest;
use crate::documents::blocking;
use crate::grpc::status::status;
use crate::grpc::{Daemon, Serving, mode, upkeep};

/// The service over everything.
pub(crate) struct AdminService(pub(crate) Arc<Daemon>);

#[tonic::async_trait]
impl Admin for AdminService {
    type VerifyStream = upkeep::Stream<VerifyProgress>;
    type CompactStream = upkeep::Stream<CompactProgress>;
    type BackupStream = upkeep::Stream<BackupChunk>;

    async fn verify(
        &self,
        _: Request<VerifyRequest>,
    ) -> Result<Response<Self::VerifyStream>, Status> {
        let stream = upkeep::start(&self.0, "verify", upkeep::verify);
        Ok(Response::new(stream))
    }

    async fn compact(
        &self,
        _: Request<CompactRequest>,
    ) -> Result<Response<Self::CompactStream>, Status> {
        let stream = upkeep::start(&self.0, "compact", upkeep::compact);
        Ok(Response::new(stream))
    }

    async fn backup(
        &self,
        _: Request<BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        let stream = upkeep::start(&self.0, "backup", upkeep::backup);
        Ok(Response::new(stream))
    }

    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let daemon = Arc::clone(&self.0);
        let info = blocking(move || {
            let serving = daemon.serving()?;
            let packets = daemon.store.stats()?.packets;
            Ok(info(&daemon, serving, packets))
        });
        info.await
            .map(Response::new)
            .map_err(|error| status(&error))
    }
}

fn info(daemon: &Daemon, serving: &Serving, packets: u64) -> InfoResponse {
    let count = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    let (loaded, state) = (&serving.loaded, daemon.engine.state());
    let config = &loaded.config;
    let per_token = PacketShape::of(config, loaded.kind, 1).bytes().unwrap_or(0);
    InfoResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        model: daemon.config.model.clone(),
        model_path: loaded.model_path.display().to_string(),
        architecture: config.architecture.to_string(),
        parameters: loaded.parameters,
        layers: count(config.num_layers),
        hidden_size: count(config.hidden_size),
        vocab_size: count(config.vocab_size),
        context: count(config.context),
        dtype: kind_name(loaded.kind).to_owned(),
        device: device(loaded.device),
        weights: loaded.weights.clone(),
        base_fingerprint: loaded.fingerprint.to_string(),
        revision: state.under.revision.to_string(),
        active_facts: count(state.under.active_facts),
        packets,
        tokenizer: Digest(loaded.tokenizer.fingerprint()).to_string(),
        has_chat_template: loaded.chat_template.is_some(),
        modes: mode::NAMES.map(str::to_owned).to_vec(),
        started_at_ms: daemon.started_at_ms,
        data_dir: daemon.config.data_dir.display().to_string(),
        kv_bytes_per_token: per_token as u64,
        queue_capacity: count(daemon.engine.queue().capacity()),
        queue_length: count(daemon.engine.queue().len()),
    }
}

fn device(device: Device) -> String {
    match device {
        Device::Cpu => "cpu".to_owned(),
        Device::Cuda(index) => format!("cuda:{index}"),
        other => format!("{other:?}"),
    }
}
