//! The daemon that is measured: a real child process of the `addenda` beside this program, on a free
//! loopback port, with settings of its own.
//!
//! Owns the child: it never outlives this value. Its log goes beside its data.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use addenda_proto::addenda::v1::adapters_client::AdaptersClient;
use addenda_proto::addenda::v1::generate_response::Event;
use addenda_proto::addenda::v1::generation_client::GenerationClient;
use addenda_proto::addenda::v1::jobs_client::JobsClient;
use addenda_proto::addenda::v1::knowledge_client::KnowledgeClient;
use addenda_proto::addenda::v1::packets_client::PacketsClient;
use addenda_proto::addenda::v1::{GenerateRequest, Summary};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::transport::{Channel, Endpoint};

use crate::error::{Error, Result, io};

/// A running daemon and a connection to it.
pub(crate) struct Daemon {
    child: Child,
    channel: Channel,
    /// Host and port.
    address: String,
}

/// What came back for one request.
#[derive(Debug)]
pub(crate) struct Answer {
    /// From sending the request to the first token's arrival here.
    pub(crate) ttft: Duration,
    pub(crate) summary: Summary,
}

/// A child that is ended when nobody holds it any more.
struct Reaped(Option<Child>);

impl Drop for Reaped {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            end(child);
        }
    }
}

/// Ends a child at once; that it has ended already is no failure.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

impl Daemon {
    /// Starts a daemon with its data under `directory`, with `flags` of `addenda serve` besides, and
    /// waits until it is ready.
    pub(crate) async fn start(model: &str, directory: &Path, flags: &[String]) -> Result<Self> {
        let log = directory.join("daemon.log");
        let mut reaped = Reaped(Some(spawn(model, directory, flags, &log)?));
        let out = reaped.0.as_mut().and_then(|child| child.stdout.take());
        let silent = || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let last = text.lines().last().unwrap_or("nothing in its log");
            Error::Daemon(format!("the daemon did not become ready: {last}"))
        };
        let mut line = String::new();
        let out = out.ok_or_else(silent)?;
        BufReader::new(out.take(4096))
            .read_line(&mut line)
            .map_err(|_| silent())?;
        let event: serde_json::Value = serde_json::from_str(&line).map_err(|_| silent())?;
        let endpoint = event.get("endpoint").and_then(serde_json::Value::as_str);
        let endpoint = endpoint.ok_or_else(silent)?.to_owned();
        let address = endpoint.trim_start_matches("http://").to_owned();
        let channel = Endpoint::from_shared(endpoint)?
            .tcp_nodelay(true)
            .connect()
            .await?;
        let child = reaped.0.take().ok_or_else(silent)?;
        Ok(Self {
            child,
            channel,
            address,
        })
    }

    /// Of the process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Host and port.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn knowledge(&self) -> KnowledgeClient<Channel> {
        KnowledgeClient::new(self.channel.clone())
    }

    pub(crate) fn adapters(&self) -> AdaptersClient<Channel> {
        AdaptersClient::new(self.channel.clone()).max_encoding_message_size(16 << 20)
    }

    pub(crate) fn jobs(&self) -> JobsClient<Channel> {
        JobsClient::new(self.channel.clone())
    }

    pub(crate) fn packets(&self) -> PacketsClient<Channel> {
        PacketsClient::new(self.channel.clone()).max_encoding_message_size(16 << 20)
    }

    pub(crate) fn generation(&self) -> GenerationClient<Channel> {
        GenerationClient::new(self.channel.clone())
    }

    /// Its page of metrics.
    pub(crate) async fn metrics(&self) -> Result<String> {
        let address = self.address();
        let mut stream = tokio::net::TcpStream::connect(address)
            .await
            .map_err(io(address))?;
        let request =
            format!("GET /metrics HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream
            .write_all(request.as_bytes())
            .await
            .map_err(io(address))?;
        let mut page = String::new();
        stream
            .read_to_string(&mut page)
            .await
            .map_err(io(address))?;
        Ok(page)
    }

    /// Generates to the end, and times the first token as its client sees it.
    pub(crate) async fn generate(&self, request: GenerateRequest) -> Result<Answer> {
        let sent = Instant::now();
        let mut first = None;
        let summary = listen(self.generation(), request, || {
            first.get_or_insert_with(|| sent.elapsed());
        })
        .await?;
        let ttft = first.unwrap_or_else(|| sent.elapsed());
        Ok(Answer { ttft, summary })
    }
}

/// Generates to the end; `heard` is called at each token's arrival.
pub(crate) async fn listen(
    mut client: GenerationClient<Channel>,
    request: GenerateRequest,
    mut heard: impl FnMut(),
) -> Result<Summary> {
    let mut stream = client.generate(request).await?.into_inner();
    while let Some(response) = stream.message().await? {
        match response.event {
            Some(Event::Token(_)) => heard(),
            Some(Event::Summary(summary)) => return Ok(summary),
            None => {}
        }
    }
    Err(Error::Daemon(
        "an answer ended without a summary".to_owned(),
    ))
}

impl Drop for Daemon {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn spawn(model: &str, directory: &Path, flags: &[String], log: &Path) -> Result<Child> {
    let own = std::env::current_exe().map_err(io("this program"))?;
    let program = own.with_file_name("addenda");
    let settings = directory.join("addenda.toml");
    let shown = |path: &Path| path.display().to_string();
    // An empty file of its own keeps the user's settings out.
    std::fs::write(&settings, "").map_err(io(&shown(&settings)))?;
    let log = File::options()
        .create(true)
        .append(true)
        .open(log)
        .map_err(io(&shown(log)))?;
    Command::new(&program)
        .args(["--json", "serve", "--listen", "127.0.0.1:0"])
        .args(["--model", model, "--log", "info"])
        .arg("--config")
        .arg(settings)
        .arg("--data-dir")
        .arg(directory.join("data"))
        .args(flags)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(io(&format!(
            "{} (build it with `cargo build --release --workspace --bins`)",
            program.display()
        )))
}
