//! Answers as server-sent events, token by token.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use addenda_proto::addenda::v1::Summary;
use addenda_proto::addenda::v1::generate_response::Event as Made;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use tokio_stream::Stream;
use tonic::Status;

use crate::http::choices::Choices;
use crate::http::error::Refused;
use crate::http::render::{self, Head};

/// The answers as they are made; their requests end when the client goes.
pub(crate) fn response(choices: Choices, head: Head, with_usage: bool) -> Response {
    let events = Events {
        choices,
        head,
        with_usage,
        begun: Vec::new(),
        summaries: Vec::new(),
        waiting: VecDeque::new(),
        ended: false,
    };
    Sse::new(events)
        .keep_alive(KeepAlive::default())
        .into_response()
}

/// The events of one response.
struct Events {
    choices: Choices,
    head: Head,
    with_usage: bool,
    /// Answers of which something was said.
    begun: Vec<usize>,
    summaries: Vec<Summary>,
    waiting: VecDeque<String>,
    /// Whether the last event is among those that wait, or was sent.
    ended: bool,
}

impl Events {
    fn take(&mut self, index: usize, event: Result<Made, Status>) {
        match event {
            Ok(Made::Token(token)) => {
                let is_first = !self.begun.contains(&index);
                if is_first {
                    self.begun.push(index);
                }
                self.say(&render::piece(&self.head, index, &token, is_first));
            }
            Ok(Made::Summary(summary)) => {
                self.say(&render::last_piece(&self.head, index, &summary));
                self.summaries.push(summary);
            }
            Err(status) => self.say(&Refused::from(status).json()),
        }
    }

    fn end(&mut self) {
        if self.with_usage {
            self.say(&render::usage_piece(&self.head, &self.summaries));
        }
        self.waiting.push_back("[DONE]".to_owned());
        self.ended = true;
    }

    fn say(&mut self, piece: &serde_json::Value) {
        self.waiting.push_back(piece.to_string());
    }
}

impl Stream for Events {
    type Item = Result<Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, polling: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(data) = self.waiting.pop_front() {
                return Poll::Ready(Some(Ok(Event::default().data(data))));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match ready!(Pin::new(&mut self.choices).poll_next(polling)) {
                Some((index, event)) => self.take(index, event),
                None => self.end(),
            }
        }
    }
}
