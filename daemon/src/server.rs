//! The daemon from its start to its end.
//!
//! Owns the order: the data directory is locked first, then the address is taken, then the model is
//! loaded while the daemon already answers that it is starting; at the end nothing new is let in,
//! what runs may finish within a bound, and the store is closed last.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use addenda_cache::Store;
use addenda_proto::FILE_DESCRIPTOR_SET;
use addenda_proto::addenda::v1::adapters_server::AdaptersServer;
use addenda_proto::addenda::v1::admin_server::AdminServer;
use addenda_proto::addenda::v1::generation_server::GenerationServer;
use addenda_proto::addenda::v1::jobs_server::JobsServer;
use addenda_proto::addenda::v1::knowledge_server::KnowledgeServer;
use addenda_proto::addenda::v1::packets_server::PacketsServer;
use addenda_proto::addenda::v1::{
    adapters_server, generation_server, knowledge_server, packets_server,
};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::HealthReporter;

use crate::certificates::kept::Certificates;
use crate::config::Config;
use crate::documents::{Documents, blocking};
use crate::engine::load::{Loaded, Setup};
use crate::engine::{self, Started};
use crate::error::{Error, Result};
use crate::grpc::adapters::AdaptersService;
use crate::grpc::admin::AdminService;
use crate::grpc::generation::GenerationService;
use crate::grpc::jobs::JobsService;
use crate::grpc::knowledge::KnowledgeService;
use crate::grpc::packets::PacketsService;
use crate::grpc::{Daemon, Serving};
use crate::jobs::{Jobs, now_ms};
use crate::packets::Packets;
use crate::{calendar, http, limits, shutdown, watchman};

/// Serves until SIGINT or SIGTERM. `ready` is called once requests are answered, with the address.
///
/// # Errors
/// Whatever keeps the daemon from starting, as a sentence; afterwards only a broken listener.
pub async fn serve(config: Config, ready: impl FnOnce(SocketAddr)) -> Result<()> {
    let signals = CancellationToken::new();
    shutdown::on_signals(signals.clone())?;
    serve_until(config, signals.cancelled_owned(), ready).await
}

/// Serves until `end` is there. `ready` is called once requests are answered.
///
/// # Errors
/// As [`serve`].
pub async fn serve_until(
    config: Config,
    end: impl Future<Output = ()> + Send + 'static,
    ready: impl FnOnce(SocketAddr),
) -> Result<()> {
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        end.await;
        told.cancel();
    });
    let model_path = {
        let (model, cache) = (config.model.clone(), config.cache_dir.clone());
        blocking(move || Ok(addenda_model::catalogue::resolve(&model, &cache)?)).await?
    };
    let store = open_store(&config).await?;
    let certificates = {
        let data = config.data_dir.clone();
        blocking(move || Certificates::open(&data)).await?
    };
    let listener = TcpListener::bind(config.listen).await;
    let address = config.listen;
    let refused = |source| Error::Listen { address, source };
    let listener = listener.map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    let Started {
        engine,
        loaded,
        ended,
    } = engine::start(Setup {
        config: config.clone(),
        model_path,
    })?;
    let daemon = Arc::new(Daemon {
        config,
        engine,
        store,
        jobs: Jobs::default(),
        started_at_ms: now_ms(),
        stop: stop.clone(),
        serving: OnceLock::new(),
    });
    let (health, health_service) = tonic_health::server::health_reporter();
    tell(&health, ServingStatus::NotServing).await;
    // Clients tell a daemon that starts, and is worth waiting for, from one that is in need of help.
    health
        .set_service_status(generation_server::SERVICE_NAME, ServingStatus::Unknown)
        .await;
    let server = tokio::spawn(listen(Arc::clone(&daemon), health_service, listener)?);
    let started = tokio::select! {
        loaded = loaded => loaded.unwrap_or(Err(Error::EngineGone)),
        () = stop.cancelled() => Err(Error::Stopping),
    };
    let result = match started {
        Ok(loaded) => {
            daemon.open(loaded, certificates);
            tokio::spawn(calendar::keep(daemon.engine.clone(), stop.clone()));
            tell(&health, ServingStatus::Serving).await;
            tracing::info!(%address, "ready");
            ready(address);
            tokio::spawn(watchman::watch(Arc::clone(&daemon)));
            watch(&daemon, &health, &stop).await;
            Ok(())
        }
        Err(Error::Stopping) => Ok(()),
        Err(error) => Err(error),
    };
    stop.cancel();
    tell(&health, ServingStatus::NotServing).await;
    close(&daemon, server, ended).await;
    result
}

/// Opens the store, which locks the data directory for everything in it.
async fn open_store(config: &Config) -> Result<Arc<Store>> {
    let options = config.store_options();
    let directory = config.data_dir.clone();
    blocking(move || {
        let store = Store::open(&directory, options)?;
        let recovery = store.recovery();
        tracing::info!(
            directory = %directory.display(),
            records = recovery.records,
            cut_bytes = recovery.cut_bytes,
            "the store is open"
        );
        Ok(Arc::new(store))
    })
    .await
}

impl Daemon {
    /// Lets requests in.
    fn open(&self, loaded: Loaded, certificates: Certificates) {
        let tokenizer = Arc::clone(&loaded.tokenizer);
        let packets = Packets::new(Arc::clone(&self.store), &loaded, self.config.packet_codec);
        let documents = Documents::new(
            self.engine.clone(),
            packets,
            Arc::clone(&tokenizer),
            loaded.config.context,
            self.config.packet_tokens,
        );
        let serving = Serving {
            loaded,
            tokenizer,
            documents,
            certificates,
        };
        if self.serving.set(Arc::new(serving)).is_err() {
            tracing::warn!("the daemon was opened twice; the first opening holds");
        }
    }
}

/// Sets the health of the daemon and of each service that needs the engine.
async fn tell(health: &HealthReporter, status: ServingStatus) {
    health.set_service_status("", status).await;
    let engine = [
        adapters_server::SERVICE_NAME,
        generation_server::SERVICE_NAME,
        knowledge_server::SERVICE_NAME,
        packets_server::SERVICE_NAME,
    ];
    for service in engine {
        health.set_service_status(service, status).await;
    }
}

/// Waits for the end, and lets health tell when the engine may not be asked any more.
async fn watch(daemon: &Daemon, health: &HealthReporter, stop: &CancellationToken) {
    let mut state = daemon.engine.watch();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = state.changed() => if changed.is_err() { return },
        }
        let poisoned = matches!(
            state.borrow_and_update().health,
            engine::Health::Poisoned(_)
        );
        if poisoned {
            tell(health, ServingStatus::NotServing).await;
        }
    }
}

/// The server over one listener; ends once the daemon was told to stop and the last call is done.
fn listen(
    daemon: Arc<Daemon>,
    health: HealthServer<impl Health>,
    listener: TcpListener,
) -> Result<impl Future<Output = Result<()>>> {
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    // What older clients ask for.
    let older_reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .build_v1alpha()?;
    let most = limits::MESSAGE_BYTES;
    let stop = daemon.stop.clone();
    let packets = PacketsServer::new(PacketsService(Arc::clone(&daemon)));
    let generation = GenerationServer::new(GenerationService(Arc::clone(&daemon)));
    let adapters = AdaptersServer::new(AdaptersService(Arc::clone(&daemon)));
    let knowledge = KnowledgeServer::new(KnowledgeService(Arc::clone(&daemon)));
    let http = Routes::from(http::router(Arc::clone(&daemon)));
    let router = Server::builder()
        .accept_http1(true)
        .concurrency_limit_per_connection(limits::REQUESTS_PER_CONNECTION)
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(limits::KEEPALIVE))
        .http2_keepalive_timeout(Some(limits::KEEPALIVE))
        .add_routes(http)
        .add_service(health)
        .add_service(reflection)
        .add_service(older_reflection)
        .add_service(AdminServer::new(AdminService(Arc::clone(&daemon))))
        .add_service(JobsServer::new(JobsService(daemon)))
        .add_service(
            adapters
                .max_decoding_message_size(most)
                .max_encoding_message_size(most),
        )
        .add_service(
            knowledge
                .max_decoding_message_size(most)
                .max_encoding_message_size(most),
        )
        .add_service(
            generation
                .max_decoding_message_size(most)
                .max_encoding_message_size(most),
        )
        .add_service(
            packets
                .max_decoding_message_size(most)
                .max_encoding_message_size(most),
        );
    Ok(async move {
        let incoming = TcpListenerStream::new(listener);
        Ok(router
            .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
            .await?)
    })
}

/// Lets running requests finish within a bound, then ends them; the store is flushed when its last
/// owner lets go.
async fn close(daemon: &Daemon, mut server: JoinHandle<Result<()>>, ended: oneshot::Receiver<()>) {
    daemon.engine.close();
    let mut served = tokio::time::timeout(limits::DRAIN, &mut server).await;
    daemon.engine.abort();
    if served.is_err() {
        tracing::warn!("requests still run after {:?}; ending them", limits::DRAIN);
        served = tokio::time::timeout(limits::LAST_WORDS, &mut server).await;
    }
    match served {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => tracing::error!(%error, "the server failed"),
        Ok(Err(error)) => tracing::error!(%error, "the server's task failed"),
        Err(_) => server.abort(),
    }
    // Loading cannot be interrupted; then the process's end is the thread's end too.
    if tokio::time::timeout(limits::LAST_WORDS, ended)
        .await
        .is_err()
    {
        tracing::warn!("the engine is still busy; it ends with the process");
    }
    tracing::info!("ended");
}
