//! The connection to the daemon.
//!
//! Owns how a command reaches it and how long it waits. Knows no command.

use std::future::Future;
use std::time::Duration;

use addenda_proto::addenda::v1 as wire;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::console::Console;
use super::error::{Error, Result};

/// How long a connection may take to come about. The daemon is near; answers may take long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest answer that is taken: a page of 1000 facts of 8 KiB each fits.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Clients of each service over one connection.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    channel: Channel,
}

impl Client {
    /// Connects to `endpoint`, `http://HOST:PORT`.
    ///
    /// # Errors
    /// [`Error::NoDaemon`] when nobody answers there.
    pub(crate) async fn connect(endpoint: &str) -> Result<Self> {
        let nobody = |_| Error::NoDaemon {
            endpoint: endpoint.to_owned(),
        };
        let channel = Endpoint::from_shared(endpoint.to_owned())
            .map_err(nobody)?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .connect()
            .await
            .map_err(nobody)?;
        Ok(Self { channel })
    }

    /// Connects to a daemon that takes work: one that still loads its model is waited for, and standard error says so.
    ///
    /// # Errors
    /// [`Error::NoDaemon`] when nobody answers there. A daemon that cannot start ends, and the command's own request
    /// says so.
    pub(crate) async fn ready(endpoint: &str, console: &mut Console) -> Result<Self> {
        let client = Self::connect(endpoint).await?;
        let request = HealthCheckRequest {
            service: wire::generation_server::SERVICE_NAME.to_owned(),
        };
        let Ok(states) = client.health().watch(request).await else {
            return Ok(client);
        };
        // One comes for every change.
        let mut states = states.into_inner();
        while let Ok(Some(state)) = states.message().await {
            if state.status() != ServingStatus::Unknown {
                break;
            }
            console.note("the daemon is starting; waiting until its model is loaded")?;
        }
        Ok(client)
    }

    pub(crate) fn generation(&self) -> wire::generation_client::GenerationClient<Channel> {
        wire::generation_client::GenerationClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub(crate) fn knowledge(&self) -> wire::knowledge_client::KnowledgeClient<Channel> {
        wire::knowledge_client::KnowledgeClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub(crate) fn packets(&self) -> wire::packets_client::PacketsClient<Channel> {
        wire::packets_client::PacketsClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub(crate) fn adapters(&self) -> wire::adapters_client::AdaptersClient<Channel> {
        wire::adapters_client::AdaptersClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_ANSWER_BYTES)
            .max_encoding_message_size(MAX_ANSWER_BYTES)
    }

    pub(crate) fn jobs(&self) -> wire::jobs_client::JobsClient<Channel> {
        wire::jobs_client::JobsClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub(crate) fn health(&self) -> HealthClient<Channel> {
        HealthClient::new(self.channel.clone())
    }

    pub(crate) fn admin(&self) -> wire::admin_client::AdminClient<Channel> {
        wire::admin_client::AdminClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_ANSWER_BYTES)
    }
}

/// Runs one command to its end on a runtime of its own.
pub(crate) fn block_on<T>(command: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Runtime)?
        .block_on(command)
}
