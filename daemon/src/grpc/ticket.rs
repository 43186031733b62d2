//! From a gRPC request to the engine's ticket: its deadline, its cancellation, its span.
//!
//! Owns the reading of `grpc-timeout`. Invariant: while a [`Leave`] lives its request is wanted;
//! when it is dropped, for whatever reason, the engine learns of it at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tracing::info_span;

use crate::engine::command::{Ticket, Waiting};
use crate::engine::queue::Queue;
use crate::error::{Error, Result};

/// A deadline is kept this much early, so that the answer says so before the transport gives up.
const EARLY: Duration = Duration::from_millis(20);

/// Cancels its request when dropped.
pub(crate) struct Leave {
    cancel: CancellationToken,
    queue: Arc<Queue<Waiting>>,
}

impl Leave {
    /// Tells the engine that its client has read: a paused sequence may go on.
    pub(crate) fn has_read(&self) {
        self.queue.ring();
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.cancel.cancel();
        self.queue.ring();
    }
}

/// A ticket for a request that came now.
///
/// # Errors
/// Its deadline has passed already, or its `grpc-timeout` cannot be read.
pub(crate) fn ticket(
    method: &'static str,
    metadata: &MetadataMap,
    queue: &Arc<Queue<Waiting>>,
) -> Result<(Ticket, Leave)> {
    let received = Instant::now();
    let timeout = timeout(metadata)?;
    let ticket = Ticket {
        received,
        deadline: timeout.and_then(|timeout| received.checked_add(timeout)),
        cancel: CancellationToken::new(),
        patient: false,
        span: info_span!("request", method),
    };
    ticket.check()?;
    let leave = Leave {
        cancel: ticket.cancel.clone(),
        queue: Arc::clone(queue),
    };
    Ok((ticket, leave))
}

fn timeout(metadata: &MetadataMap) -> Result<Option<Duration>> {
    let Some(value) = metadata.get("grpc-timeout") else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default();
    let parsed = parse(text).ok_or_else(|| {
        let reason = format!("is {text:?}, which is no gRPC timeout such as \"10S\"");
        Error::invalid("grpc-timeout", reason)
    })?;
    Ok(Some(parsed - EARLY.min(parsed / 10)))
}

/// "10S" and the like: at most 8 digits and a unit.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::parse;
    use std::time::Duration;

    #[test]
    fn timeouts_are_read_as_the_grpc_specification_writes_them() {
        assert_eq!(parse("10S"), Some(Duration::from_secs(10)));
        assert_eq!(parse("250m"), Some(Duration::from_millis(250)));
        assert_eq!(
            parse("99999999H"),
            Some(Duration::from_secs(99_999_999 * 3600))
        );
        for wrong in ["", "S", "10", "1.5S", "-1S", "123456789S", "10s", "é"] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }
}
