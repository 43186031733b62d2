//! The answers to one request, side by side.
//!
//! Owns their streams, each of which is one `Generate`. Dropped, all of them end.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use addenda_proto::addenda::v1::generate_response::Event;
use addenda_proto::addenda::v1::generation_server::Generation;
use addenda_proto::addenda::v1::{Summary, Token};
use tokio_stream::{Stream, StreamExt, StreamMap};
use tonic::{Request, Status};

use crate::grpc::Daemon;
use crate::grpc::generation::{GenerationService, Tokens};
use crate::http::ask::Asked;
use crate::http::error::Refused;

/// The answers while they are made.
pub(crate) struct Choices {
    streams: StreamMap<usize, Tokens>,
}

/// One answer, whole.
#[derive(Debug, Default)]
pub(crate) struct Whole {
    pub(crate) tokens: Vec<Token>,
    pub(crate) summary: Summary,
}

impl Choices {
    /// Begins all answers; what fails before a first token fails here.
    ///
    /// # Errors
    /// The first answer's that can't begin.
    pub(crate) async fn begin(daemon: &Arc<Daemon>, asked: &Asked) -> Result<Self, Refused> {
        let service = GenerationService(Arc::clone(daemon));
        let mut streams = StreamMap::new();
        for (index, request) in asked.requests.iter().enumerate() {
            let begun = service.generate(Request::new(request.clone())).await?;
            streams.insert(index, begun.into_inner());
        }
        Ok(Self { streams })
    }

    /// Waits for all of them.
    ///
    /// # Errors
    /// The first answer's that fails.
    pub(crate) async fn collect(mut self) -> Result<Vec<Whole>, Refused> {
        let mut answers: Vec<Whole> = (0..self.streams.len()).map(|_| Whole::default()).collect();
        while let Some((index, event)) = self.next().await {
            let event = event?;
            if let Some(answer) = answers.get_mut(index) {
                match event {
                    Event::Token(token) => answer.tokens.push(token),
                    Event::Summary(summary) => answer.summary = summary,
                }
            }
        }
        Ok(answers)
    }
}

impl Stream for Choices {
    type Item = (usize, Result<Event, Status>);

    fn poll_next(mut self: Pin<&mut Self>, polling: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.streams).poll_next(polling).map(|next| {
            next.map(|(index, response)| {
                let event = response.and_then(|response| {
                    let nothing = || Status::internal("an event without content");
                    response.event.ok_or_else(nothing)
                });
                (index, event)
            })
        })
    }
}
