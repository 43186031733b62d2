//! A real daemon on a free loopback port, in this process, with SmolLM2-135M-Instruct in f32.
//!
//! Most tests share one; those that restart it, fill its queue or edit its weights start their own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{OnceLock, mpsc};
use std::thread::JoinHandle;

use addenda::config::{Config, Inputs};
use addenda::error::Result;
use addenda_proto::addenda::v1::adapters_client::AdaptersClient;
use addenda_proto::addenda::v1::admin_client::AdminClient;
use addenda_proto::addenda::v1::generate_response::Event;
use addenda_proto::addenda::v1::generation_client::GenerationClient;
use addenda_proto::addenda::v1::jobs_client::JobsClient;
use addenda_proto::addenda::v1::knowledge_client::KnowledgeClient;
use addenda_proto::addenda::v1::packets_client::PacketsClient;
use addenda_proto::addenda::v1::{
    Chat, ChatMessage, Completion, GenerateRequest, PutDocumentRequest, ScoreRequest, Summary,
    Token, generate_request, score_request,
};
use tokio::sync::oneshot;
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

/// A daemon that runs in a thread of its own.
pub(crate) struct Daemon {
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// Settings of a test's daemon.
pub(crate) fn config(data: &Path, more: &[(&'static str, &str)]) -> Config {
    let mut flags = vec![
        ("model", "smollm2-135m".to_owned()),
        ("data_dir", data.display().to_string()),
        ("listen", "127.0.0.1:0".to_owned()),
        ("device", "cpu".to_owned()),
        ("dtype", "f32".to_owned()),
        // What ships would make packets longer than their documents; adapters have tests of their own.
        ("adapter", "none".to_owned()),
        ("min_free_bytes", "1 MiB".to_owned()),
    ];
    flags.extend(more.iter().map(|(key, value)| (*key, (*value).to_owned())));
    let mut inputs = Inputs::from_process(None, flags).unwrap();
    inputs.usual_files.clear();
    addenda::config::load(&inputs).unwrap().config
}

impl Daemon {
    pub(crate) fn start(data: &Path, more: &[(&'static str, &str)]) -> Self {
        Self::try_start(config(data, more)).unwrap()
    }

    /// Starts a daemon, or gives the error that kept it from starting.
    pub(crate) fn try_start(config: Config) -> Result<Self> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (tell, told) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let end = async {
                drop(stopped.await);
            };
            let serving = addenda::server::serve_until(config, end, move |address| {
                tell.send(address).unwrap();
            });
            runtime.block_on(serving)
        });
        match told.recv() {
            Ok(address) => Ok(Self {
                address,
                stop: Some(stop),
                thread: Some(thread),
            }),
            Err(_) => Err(thread.join().unwrap().unwrap_err()),
        }
    }

    /// Stops it in an orderly way and waits for its end.
    pub(crate) fn stop(mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap().unwrap();
    }

    /// The same from a test that has connected: its connections, which end on the test's own thread,
    /// are not held up meanwhile.
    pub(crate) async fn stopped(self) {
        tokio::task::spawn_blocking(|| self.stop()).await.unwrap();
    }

    pub(crate) async fn connect(&self) -> Clients {
        self.connect_with_window(None).await
    }

    /// A client that takes so many bytes of each stream before it must have read some.
    pub(crate) async fn connect_with_window(&self, bytes: Option<u32>) -> Clients {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        let endpoint = endpoint.initial_stream_window_size(bytes);
        let channel = endpoint.connect().await.unwrap();
        Clients { channel }
    }
}

/// The daemon that tests share. Its data directory is made anew by each run of the tests.
pub(crate) fn shared() -> &'static Daemon {
    static SHARED: OnceLock<Daemon> = OnceLock::new();
    SHARED.get_or_init(|| {
        let data = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("shared-daemon");
        drop(std::fs::remove_dir_all(&data));
        Daemon::start(&data, &[])
    })
}

/// Clients over one connection.
pub(crate) struct Clients {
    pub(crate) channel: Channel,
}

impl Clients {
    pub(crate) fn adapters(&self) -> AdaptersClient<Channel> {
        AdaptersClient::new(self.channel.clone()).max_encoding_message_size(64 << 20)
    }

    pub(crate) fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel.clone())
    }

    pub(crate) fn generation(&self) -> GenerationClient<Channel> {
        GenerationClient::new(self.channel.clone())
    }

    pub(crate) fn jobs(&self) -> JobsClient<Channel> {
        JobsClient::new(self.channel.clone())
    }

    pub(crate) fn knowledge(&self) -> KnowledgeClient<Channel> {
        KnowledgeClient::new(self.channel.clone())
    }

    pub(crate) fn packets(&self) -> PacketsClient<Channel> {
        PacketsClient::new(self.channel.clone()).max_encoding_message_size(64 << 20)
    }

    /// Generates to the end.
    pub(crate) async fn answer(
        &self,
        request: GenerateRequest,
    ) -> std::result::Result<Answer, Status> {
        let stream = self.generation().generate(request).await?.into_inner();
        collect(stream).await
    }
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) tokens: Vec<Token>,
    pub(crate) summary: Summary,
}

/// Reads a stream to its end; there is exactly one summary and it comes last.
pub(crate) async fn collect(
    mut stream: Streaming<addenda_proto::addenda::v1::GenerateResponse>,
) -> std::result::Result<Answer, Status> {
    let mut tokens: Vec<Token> = Vec::new();
    let mut summary = None;
    while let Some(response) = stream.next().await {
        assert!(summary.is_none(), "something came after the summary");
        match response?.event.unwrap() {
            Event::Token(token) => tokens.push(token),
            Event::Summary(last) => summary = Some(last),
        }
    }
    Ok(Answer {
        text: tokens.iter().map(|token| token.text.as_str()).collect(),
        tokens,
        summary: summary.expect("the stream ended without a summary"),
    })
}

/// A greedy request to continue a text.
pub(crate) fn complete(text: &str, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        prompt: Some(generate_request::Prompt::Completion(Completion {
            text: text.to_owned(),
        })),
        max_tokens,
        ..GenerateRequest::default()
    }
}

/// A greedy request to answer a question.
pub(crate) fn ask(question: &str, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        prompt: Some(generate_request::Prompt::Chat(chat(question))),
        max_tokens,
        ..GenerateRequest::default()
    }
}

/// A conversation of one user's turn.
pub(crate) fn chat(question: &str) -> Chat {
    Chat {
        messages: vec![ChatMessage {
            role: "user".to_owned(),
            content: question.to_owned(),
        }],
    }
}

/// A document to be put.
pub(crate) fn document(namespace: &str, name: &str, text: &str) -> PutDocumentRequest {
    PutDocumentRequest {
        name: name.to_owned(),
        text: text.to_owned(),
        namespace: namespace.to_owned(),
    }
}

/// A request to score one continuation of a text.
pub(crate) fn score(prompt: &str, continuation: &str) -> ScoreRequest {
    ScoreRequest {
        prompt: Some(score_request::Prompt::Completion(Completion {
            text: prompt.to_owned(),
        })),
        continuations: vec![continuation.to_owned()],
        ..ScoreRequest::default()
    }
}
