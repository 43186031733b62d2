//! `addenda serve`: the daemon, in this process.
//!
//! Owns the one line that says where it is: on standard output, once requests are answered. The
//! log goes to standard error.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::console::Console;
use super::error::{Error, Result};
use super::settings::ServerArgs;
use crate::config::Loaded;

/// Serve a model until SIGINT or SIGTERM.
///
/// Once requests are answered, one line on standard output says where; with --json it is
/// {"event":"ready","endpoint":"http://…","pid":…}. The log goes to standard error.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    settings: ServerArgs,
}

impl ServeArgs {
    pub(crate) fn flags(&self) -> Vec<(&'static str, String)> {
        self.settings.flags()
    }

    pub(crate) fn run(&self, loaded: &Loaded, console: &mut Console) -> Result<ExitCode> {
        let config = loaded.config.clone();
        crate::telemetry::init(&config.log)?;
        crate::process::start_over_prepared();
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(Error::Runtime)?;
        let json = console.json();
        let ready = |address| announce(address, json);
        runtime.block_on(crate::server::serve(config, ready))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn announce(address: SocketAddr, json: bool) {
    let endpoint = format!("http://{address}");
    let line = if json {
        json!({ "event": "ready", "endpoint": endpoint, "pid": std::process::id() }).to_string()
    } else {
        format!("ready at {endpoint}")
    };
    // Whoever does not listen any more does not want to know; the log says it as well.
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
