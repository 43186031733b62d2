//! From errors to gRPC statuses: the one place that decides what a client is told.
//!
//! Owns the table. What went wrong inside is told in one line and logged with its sources.

use std::error::Error as _;

use addenda_cache::Error as StoreError;
use addenda_editor::Error as EditorError;
use addenda_model::Error as ModelError;
use tonic::{Code, Status};

use crate::error::Error;

/// The status of an error; failures inside are logged here.
pub(crate) fn status(error: &Error) -> Status {
    let code = code(error);
    if matches!(code, Code::Internal | Code::DataLoss) {
        tracing::error!(error = %chain(error), "a request failed");
    }
    Status::new(code, first_line(&error.to_string()))
}

/// The code of an error.
pub(crate) fn code(error: &Error) -> Code {
    match error {
        Error::Invalid { .. } => Code::InvalidArgument,
        Error::NotFound { .. } => Code::NotFound,
        Error::Precondition { .. } | Error::Stale => Code::FailedPrecondition,
        Error::QueueFull { .. } | Error::TooMuchKv { .. } => Code::ResourceExhausted,
        Error::Cancelled => Code::Cancelled,
        Error::Deadline => Code::DeadlineExceeded,
        Error::Starting | Error::Stopping | Error::Poisoned { .. } | Error::EngineGone => {
            Code::Unavailable
        }
        Error::Model(error) => of_model(error),
        Error::Store(error) => of_store(error),
        Error::Editor(error) => of_editor(error),
        _ => Code::Internal,
    }
}

fn of_model(error: &ModelError) -> Code {
    match error {
        ModelError::TooLong { .. } | ModelError::Invalid(_) | ModelError::Template { .. } => {
            Code::InvalidArgument
        }
        _ => Code::Internal,
    }
}

fn of_store(error: &StoreError) -> Code {
    match error {
        StoreError::Invalid { .. } => Code::InvalidArgument,
        StoreError::NotFound { .. } => Code::NotFound,
        StoreError::Damaged { .. } => Code::DataLoss,
        StoreError::Budget { .. }
        | StoreError::Quota { .. }
        | StoreError::DiskFull { .. }
        | StoreError::DiskFloor { .. } => Code::ResourceExhausted,
        _ => Code::Internal,
    }
}

fn of_editor(error: &EditorError) -> Code {
    match error {
        EditorError::BadFact { .. }
        | EditorError::SubjectNotInPrompt { .. }
        | EditorError::Contradiction { .. }
        | EditorError::BadPatch(_)
        | EditorError::RequestIdReused(_) => Code::InvalidArgument,
        EditorError::UnknownFact(_) => Code::NotFound,
        EditorError::NotActive(_)
        | EditorError::NothingKnown(_)
        | EditorError::SaidAlready { .. }
        | EditorError::OtherDates(_)
        | EditorError::OtherBase { .. }
        | EditorError::Unsupported(_) => Code::FailedPrecondition,
        EditorError::BarsNotMet { .. } | EditorError::Stale => Code::Aborted,
        EditorError::Cancelled => Code::Cancelled,
        _ => Code::Internal,
    }
}

/// libtorch appends a C++ backtrace to its messages.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{code, status};
    use crate::error::Error;
    use tonic::Code;

    #[test]
    fn each_kind_of_trouble_has_its_code() {
        let table = [
            (Error::invalid("name", "is too long"), Code::InvalidArgument),
            (Error::QueueFull { capacity: 64 }, Code::ResourceExhausted),
            (Error::Deadline, Code::DeadlineExceeded),
            (Error::Starting, Code::Unavailable),
            (
                Error::Poisoned {
                    reason: String::new(),
                },
                Code::Unavailable,
            ),
        ];
        for (error, expected) in table {
            assert_eq!(code(&error), expected, "{error}");
        }
    }

    #[test]
    fn a_client_reads_one_line_and_no_backtrace() {
        let error = Error::from(tch::TchError::Torch("bad shape\nframe #0: at::_ops".into()));
        assert!(!status(&error).message().contains("frame"));
        assert!(status(&error).message().contains("bad shape"));
    }
}
