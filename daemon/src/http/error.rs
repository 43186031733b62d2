//! Refusals in the shape that OpenAI's clients turn into their exceptions.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tonic::{Code, Status};

/// A request that was not answered.
#[derive(Debug)]
pub(crate) struct Refused {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
}

impl Refused {
    /// A field that says what can't be done.
    pub(crate) fn field(param: &str, message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            kind: "invalid_request_error",
            code: None,
            param: Some(param.to_owned()),
            message: format!("{param} {}", message.into()),
        }
    }

    /// A body that is not the JSON of a request.
    pub(crate) fn body(error: &JsonRejection) -> Self {
        // The client knows no 422: what is wrong within the JSON is a bad request.
        let status = match error {
            JsonRejection::JsonDataError(_) => StatusCode::BAD_REQUEST,
            other => other.status(),
        };
        Self {
            status,
            kind: "invalid_request_error",
            code: None,
            param: None,
            message: error.body_text(),
        }
    }

    /// Another model than the one that is served.
    pub(crate) fn unknown_model(asked: &str, served: &str) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            kind: "invalid_request_error",
            code: Some("model_not_found"),
            param: Some("model".to_owned()),
            message: format!("the model \"{asked}\" is not served here; ask for \"{served}\""),
        }
    }

    /// As OpenAI's errors are written.
    pub(crate) fn json(&self) -> Value {
        json!({ "error": {
            "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
        }})
    }
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        let (http, kind, code) = match status.code() {
            Code::InvalidArgument | Code::OutOfRange => {
                (StatusCode::BAD_REQUEST, "invalid_request_error", None)
            }
            Code::FailedPrecondition => (
                StatusCode::BAD_REQUEST,
                "invalid_request_error",
                Some("failed_precondition"),
            ),
            Code::NotFound => (
                StatusCode::NOT_FOUND,
                "invalid_request_error",
                Some("not_found"),
            ),
            Code::ResourceExhausted => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                Some("resource_exhausted"),
            ),
            Code::Unavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "server_error",
                Some("unavailable"),
            ),
            Code::DeadlineExceeded => (
                StatusCode::GATEWAY_TIMEOUT,
                "server_error",
                Some("deadline_exceeded"),
            ),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "server_error", None),
        };
        Self {
            status: http,
            kind,
            code,
            param: None,
            message: status.message().to_owned(),
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.status, Json(self.json())).into_response()
    }
}
