//! The daemon: whether it answers, is healthy, and serves what is configured.

use std::time::Duration;

use addenda_proto::addenda::v1::{InfoRequest, InfoResponse};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;

use super::Report;
use crate::cli::client::{Client, block_on};
use crate::cli::error::Result;
use crate::cli::text::{count, short};
use crate::config::Config;

/// How long a healthy daemon may take to answer; its engine is not needed for that.
const PATIENCE: Duration = Duration::from_secs(10);

/// `owner` is the process that holds the data directory, if one does.
pub(super) fn look(config: &Config, owner: Option<&str>, report: &mut Report) -> Result<()> {
    block_on(async {
        let Ok(client) = Client::connect(&config.connect).await else {
            nobody(config, owner, report);
            return Ok(());
        };
        if tokio::time::timeout(PATIENCE, ask(&client, config, report))
            .await
            .is_err()
        {
            report.problem(
                "health",
                format!(
                    "{} accepted the connection, but does not answer",
                    config.connect
                ),
                "is it an Addenda daemon? If so, look at its log and restart it",
            );
        }
        Ok(())
    })
}

fn nobody(config: &Config, owner: Option<&str>, report: &mut Report) {
    let finding = format!("none answers at {}", config.connect);
    match owner {
        Some(owner) => report.problem(
            "reachable",
            format!("{finding}, but {owner} holds the data directory"),
            "it listens elsewhere (set connect or listen), is still starting, or hangs: look at its log",
        ),
        None => report.warning("reachable", finding, "start it with `addenda serve`"),
    }
}

async fn ask(client: &Client, config: &Config, report: &mut Report) {
    let request = HealthCheckRequest {
        service: String::new(),
    };
    match client.health().check(request).await {
        Ok(answer) if answer.get_ref().status() == ServingStatus::Serving => {
            report.ok("reachable", format!("{} is serving", config.connect));
        }
        Ok(_) => {
            return report.problem(
                "health",
                format!("{} answers, but is not serving", config.connect),
                "it is starting or stopping: try again shortly; if it stays so, its log says why",
            );
        }
        Err(status) => {
            return report.problem(
                "health",
                format!("{}: {}", config.connect, status.message()),
                "is it an Addenda daemon? If so, look at its log and restart it",
            );
        }
    }
    match client.admin().info(InfoRequest {}).await {
        Ok(info) => compare(info.get_ref(), config, report),
        Err(status) => report.problem("information", status.message(), "look at its log"),
    }
}

fn compare(info: &InfoResponse, config: &Config, report: &mut Report) {
    let serves = format!(
        "{} in {} on {}, {}, revision {}",
        info.model,
        info.dtype,
        info.device,
        count(info.active_facts.into(), "fact"),
        short(&info.revision)
    );
    if info.model == config.model {
        report.ok("serves", serves);
    } else {
        report.warning(
            "serves",
            format!("{serves}; configured is {}", config.model),
            "restart the daemon to take the configuration, or mend the configuration",
        );
    }
    let version = env!("CARGO_PKG_VERSION");
    if info.version == version {
        report.ok("version", version);
    } else {
        report.warning(
            "version",
            format!("the daemon is {}, this command is {version}", info.version),
            "restart the daemon after an update",
        );
    }
    if info.queue_capacity > 0 && info.queue_length >= info.queue_capacity {
        report.warning(
            "queue",
            format!("full: {} of {}", info.queue_length, info.queue_capacity),
            "requests are being refused: send fewer at a time, or raise queue",
        );
    }
}
