//! Causal tracing as a job, and its result, which is kept in the cache directory under the base weights' fingerprint.

use std::path::PathBuf;
use std::sync::Arc;

use addenda_editor::{Located, ROLES, Tracing};
use addenda_proto::addenda::v1 as wire;

use crate::documents::blocking;
use crate::engine::command::{Command, Edit, Ticket, View};
use crate::error::{Error, Result};
use crate::grpc::knowledge::stated;
use crate::grpc::{Daemon, jobs};
use crate::limits;

/// Draws of noise and suggested layers where the caller does not say.
const DRAWS: u32 = 4;
const LAYERS: u32 = 5;

fn file(daemon: &Daemon) -> Result<PathBuf> {
    let name = format!("{}.json", daemon.serving()?.loaded.fingerprint);
    Ok(daemon.config.cache_dir.join("located").join(name))
}

/// Begins the job. It outlives its request.
pub(crate) fn begin(
    daemon: &Arc<Daemon>,
    mut ticket: Ticket,
    request: wire::LocateRequest,
) -> Result<wire::JobRecord> {
    let (count, most) = (request.facts.len(), limits::TRACED_FACTS);
    if count == 0 || count > most {
        return Err(Error::invalid(
            "facts",
            format!("are {count}; 1 to {most} are traced"),
        ));
    }
    if request.draws > limits::TRACED_DRAWS {
        let reason = format!("is {}; {} at most", request.draws, limits::TRACED_DRAWS);
        return Err(Error::invalid("draws", reason));
    }
    let depth = u32::try_from(daemon.serving()?.loaded.config.num_layers).unwrap_or(u32::MAX);
    let or = |asked: u32, default: u32| match asked {
        0 => default.max(1) as usize,
        asked => asked.min(depth) as usize,
    };
    let tracing = Tracing {
        draws: or(request.draws, DRAWS).min(limits::TRACED_DRAWS as usize),
        window: or(request.window, depth / 5),
        layers: or(request.layers, LAYERS),
        seed: 1,
    };
    let path = file(daemon)?;
    ticket.cancel = daemon.stop.child_token();
    ticket.deadline = None;
    ticket.patient = true;
    let job = daemon.jobs.begin("locate", "steps", ticket.cancel.clone());
    let record = jobs::record(&job.state());
    let (job, engine) = (Arc::new(job), daemon.engine.clone());
    let facts = request.facts.into_iter().map(stated).collect();
    tokio::spawn(async move {
        let working = Arc::clone(&job);
        let locate = |reply| {
            Command::Edit(Box::new(Edit::Locate {
                facts,
                tracing,
                job: working,
                reply,
            }))
        };
        let result = match engine.ask(&ticket, locate).await {
            Ok(located) => blocking(move || keep(&path, &located)).await,
            Err(error) => Err(error),
        };
        // The engine has let go of it before its answer.
        if let Some(job) = Arc::into_inner(job) {
            job.end(&result);
        }
    });
    Ok(record)
}

/// Written beside and renamed, so that no half of it is ever read.
fn keep(path: &std::path::Path, located: &Located) -> Result<()> {
    let io = |source| Error::Io {
        path: path.to_owned(),
        source,
    };
    let text = serde_json::to_vec_pretty(located).map_err(|error| io(error.into()))?;
    std::fs::create_dir_all(path.parent().unwrap_or(path)).map_err(io)?;
    let partial = path.with_extension(format!("partial-{}", std::process::id()));
    std::fs::write(&partial, text).map_err(io)?;
    std::fs::rename(&partial, path).map_err(io)
}

/// What was found when the model was last traced.
pub(crate) async fn kept(daemon: &Daemon, ticket: &Ticket) -> Result<wire::Location> {
    let (path, base) = (file(daemon)?, daemon.serving()?.loaded.fingerprint);
    let look = |view: View<'_>| Ok(view.editor.settings().solve.layers.clone());
    let edited = daemon.engine.consult(ticket, look).await?;
    let read = move || match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice::<Located>(&text).map_err(|error| Error::Io {
            path,
            source: error.into(),
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Error::NotFound {
            what: "location",
            id: base.to_string(),
            hint: "`addenda model locate --known FILE` traces the model",
        }),
        Err(source) => Err(Error::Io { path, source }),
    };
    let located = blocking(read).await?;
    Ok(location(&located, base.to_string(), &edited))
}

fn location(located: &Located, base: String, edited: &[usize]) -> wire::Location {
    let small = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let effects = located.maps.iter().flat_map(|(restored, map)| {
        map.iter().enumerate().flat_map(move |(layer, row)| {
            let present = row
                .iter()
                .zip(ROLES)
                .filter_map(|(effect, token)| Some(((*effect)?, token)));
            present.map(move |(effect, token)| wire::Effect {
                restored: restored.to_string(),
                layer: small(layer),
                token: token.to_owned(),
                effect,
            })
        })
    });
    wire::Location {
        base,
        asked: small(located.asked),
        traced: small(located.traced),
        clean: located.clean,
        noisy: located.noisy,
        draws: small(located.tracing.draws),
        window: small(located.tracing.window),
        effects: effects.collect(),
        suggested: located
            .suggested
            .iter()
            .map(|layer| small(*layer))
            .collect(),
        edited: edited.iter().map(|layer| small(*layer)).collect(),
    }
}
