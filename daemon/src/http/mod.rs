//! The same generation by OpenAI's HTTP interface, on the daemon's own port; and its metrics.
//!
//! Owns translation only: a request becomes a `GenerateRequest` and goes the way of gRPC, with its
//! checks, its bounds and its cancellation; the answer is written as OpenAI's clients read it. What
//! this daemon can't do is refused by name, never left out in silence.

mod ask;
mod choices;
mod error;
mod render;
mod stream;

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::documents::blocking;
use crate::grpc::Daemon;
use crate::http::ask::Request;
use crate::http::choices::Choices;
use crate::http::error::Refused;
use crate::http::render::{Form, Head};
use crate::limits;
use crate::metrics::Now;

/// What a handler answers.
type Answer = Result<Response, Refused>;

/// The routes under `/v1`.
pub(crate) fn router(daemon: Arc<Daemon>) -> Router {
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completion))
        .route("/metrics", get(metrics))
        .layer(DefaultBodyLimit::max(limits::MESSAGE_BYTES))
        .with_state(daemon)
}

async fn chat(
    State(daemon): State<Arc<Daemon>>,
    body: Result<Json<Request>, JsonRejection>,
) -> Answer {
    answer(daemon, body, Form::Chat).await
}

async fn completion(
    State(daemon): State<Arc<Daemon>>,
    body: Result<Json<Request>, JsonRejection>,
) -> Answer {
    answer(daemon, body, Form::Completion).await
}

async fn answer(
    daemon: Arc<Daemon>,
    body: Result<Json<Request>, JsonRejection>,
    form: Form,
) -> Answer {
    let Json(request) = body.map_err(|error| Refused::body(&error))?;
    let asked = request.asked(form)?;
    let name = &daemon.config.model;
    if asked.model != *name {
        return Err(Refused::unknown_model(&asked.model, name));
    }
    let head = Head::new(form, name.clone(), &asked);
    let choices = Choices::begin(&daemon, &asked).await?;
    if asked.stream {
        return Ok(stream::response(choices, head, asked.usage));
    }
    let answers = choices.collect().await?;
    Ok(Json(render::whole(&head, &answers)).into_response())
}

/// What the daemon counts of itself, for Prometheus.
async fn metrics(State(daemon): State<Arc<Daemon>>) -> impl IntoResponse {
    let store = Arc::clone(&daemon.store);
    // What the store can't say now is left out.
    let stats = blocking(move || Ok(store.stats()?)).await.ok();
    let now = Now {
        waiting: daemon.engine.queue().len(),
        under: daemon.engine.state().under,
        store: stats,
    };
    let text = daemon.engine.metrics().text(&now);
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(axum::http::header::CONTENT_TYPE, kind)], text)
}

async fn models(State(daemon): State<Arc<Daemon>>) -> Json<Value> {
    Json(json!({ "object": "list", "data": [one_model(&daemon)] }))
}

async fn model(State(daemon): State<Arc<Daemon>>, Path(id): Path<String>) -> Answer {
    if id != daemon.config.model {
        return Err(Refused::unknown_model(&id, &daemon.config.model));
    }
    Ok(Json(one_model(&daemon)).into_response())
}

fn one_model(daemon: &Daemon) -> Value {
    json!({
        "id": daemon.config.model, "object": "model", "owned_by": "addenda",
        "created": daemon.started_at_ms / 1000,
    })
}
