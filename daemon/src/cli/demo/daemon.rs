//! The demo's daemon: a real child process of the same executable, on a free loopback port.
//!
//! Owns the child: it never outlives this value. Its log goes to a file in the demo's directory,
//! which is shown when the daemon ends unasked.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::cli::client::Client;
use crate::cli::error::{Error, Result};
use crate::config::{Config, KEYS};

/// How long loading a small model may take on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(180);

/// How long an orderly end may take.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// A running daemon and a connection to it.
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
    pub(crate) client: Client,
    pub(crate) endpoint: String,
    /// From the start of the process to its first readiness.
    pub(crate) start_time: Duration,
}

/// A child process that is ended when nobody holds it any more.
struct Reaped(Option<Child>);

impl Reaped {
    fn keep(mut self) -> Option<Child> {
        self.0.take()
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            end(child);
        }
    }
}

/// Ends a child at once. That it has ended already is no failure.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

impl Daemon {
    /// Starts a daemon with its data under `directory` and waits until it answers.
    ///
    /// # Errors
    /// When it ends or stays silent instead; with the last lines of its log.
    pub(crate) async fn start(config: &Config, model: &str, directory: &Path) -> Result<Self> {
        let began = Instant::now();
        let log = directory.join("daemon.log");
        let mut child = command(config, model, directory, &log)?
            .spawn()
            .map_err(|error| failed("the daemon could not be started", &error.to_string()))?;
        let out = child.stdout.take();
        let child = Reaped(Some(child));
        let ready = tokio::task::spawn_blocking(move || out.and_then(endpoint));
        let endpoint = match tokio::time::timeout(START_LIMIT, ready).await {
            Ok(endpoint) => endpoint.ok().flatten(),
            Err(_) => None,
        };
        let silent = || failed("the daemon did not become ready", &tail(&log));
        let endpoint = endpoint.ok_or_else(silent)?;
        let client = Client::connect(&endpoint).await?;
        Ok(Self {
            child: child.keep().ok_or_else(silent)?,
            client,
            endpoint,
            start_time: began.elapsed(),
            log,
        })
    }

    /// Asks the daemon to end with SIGTERM and waits until it has.
    ///
    /// # Errors
    /// When it ends with a failure, or not in time.
    pub(crate) async fn stop(mut self) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM)
            .map_err(|error| failed("the daemon could not be told to stop", &error.to_string()))?;
        let deadline = Instant::now() + STOP_LIMIT;
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        loop {
            tick.tick().await;
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => {
                    let sentence = format!("the daemon ended with {status}");
                    return Err(failed(&sentence, &tail(&self.log)));
                }
                Ok(None) if Instant::now() < deadline => {}
                Ok(None) => return Err(failed("the daemon did not stop", &tail(&self.log))),
                Err(error) => return Err(failed("the daemon is lost", &error.to_string())),
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn command(config: &Config, model: &str, directory: &Path, log: &Path) -> Result<Command> {
    let in_the_way = |source| Error::File {
        path: log.to_owned(),
        source,
    };
    let executable = std::env::current_exe().map_err(Error::Runtime)?;
    // An empty file of its own keeps the user's settings out, but for the machine's.
    let settings = directory.join("addenda.toml");
    std::fs::write(&settings, "").map_err(in_the_way)?;
    let log = File::options()
        .create(true)
        .append(true)
        .open(log)
        .map_err(in_the_way)?;
    let mut command = Command::new(executable);
    for key in KEYS {
        command.env_remove(key.variable());
    }
    command
        .args(["--json", "serve", "--listen", "127.0.0.1:0"])
        .args(["--model", model, "--log", "info"])
        .arg("--config")
        .arg(settings)
        .arg("--cache-dir")
        .arg(&config.cache_dir)
        .arg("--data-dir")
        .arg(directory.join("data"))
        .args(["--device", &config.device.to_string()])
        .args(["--dtype", &config.dtype.to_string()])
        .args(["--weights", &config.weights.to_string()])
        .args(["--threads", &config.threads.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log);
    Ok(command)
}

/// The endpoint from the daemon's one line; none when its output ends before.
fn endpoint(out: ChildStdout) -> Option<String> {
    let mut line = String::new();
    BufReader::new(out.take(4096)).read_line(&mut line).ok()?;
    let event: Value = serde_json::from_str(&line).ok()?;
    Some(event.get("endpoint")?.as_str()?.to_owned())
}

fn failed(sentence: &str, details: &str) -> Error {
    Error::refused(
        format!("{sentence}: {details}"),
        "`addenda doctor` looks for the cause",
    )
}

/// The last lines of a log.
fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(12).collect();
    if lines.is_empty() {
        return "it logged nothing".to_owned();
    }
    let lines: Vec<&str> = lines.into_iter().rev().collect();
    format!("its log ends with\n{}", lines.join("\n"))
}
