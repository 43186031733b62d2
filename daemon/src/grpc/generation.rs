//! Generation: Generate, Score, Tokenize.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Polling, Poll, ready};

use addenda_model::{BeamParams, SamplingParams};
use addenda_proto::addenda::v1::generate_response::Event as WireEvent;
use addenda_proto::addenda::v1::generation_server::Generation;
use addenda_proto::addenda::v1::{
    FinishReason, GenerateRequest, GenerateResponse, Sampling, ScoreRequest, ScoreResponse,
    ScoredContinuation, Summary, Token, TokenLogprob, TokenizeRequest, TokenizeResponse,
};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use crate::documents::blocking;
use crate::engine::command::{Command, Event, Finish, Finished, Generate, Score, Ticket};
use crate::error::{Error, Result};
use crate::grpc::context::{Asked, Context};
use crate::grpc::mode::Wanted;
use crate::grpc::status::status;
use crate::grpc::ticket::Leave;
use crate::grpc::{Daemon, Serving, check, words};
use crate::limits;
use crate::prompt;

/// The service over the engine.
pub(crate) struct GenerationService(pub(crate) Arc<Daemon>);

type Answer<T> = std::result::Result<Response<T>, Status>;

#[tonic::async_trait]
impl Generation for GenerationService {
    type GenerateStream = Tokens;

    async fn generate(&self, request: Request<GenerateRequest>) -> Answer<Self::GenerateStream> {
        let (serving, ticket, leave) = self.0.admit("Generate", &request)?;
        let wish = Wish::new(request.into_inner(), &self.0);
        let wish = wish.map_err(|error| status(&error))?;
        let begun = self.begin(&serving, &ticket, &wish).await;
        let (first, events, context) = begun.map_err(|error| status(&error))?;
        Ok(Response::new(Tokens {
            first: Some(first),
            events,
            report: Report {
                context,
                seed: wish.sampling.seed,
                logprobs: wish.top > 0,
            },
            leave,
        }))
    }

    async fn score(&self, request: Request<ScoreRequest>) -> Answer<ScoreResponse> {
        let (serving, ticket, _leave) = self.0.admit("Score", &request)?;
        let score = self.scored(&serving, &ticket, request.into_inner());
        score
            .await
            .map(Response::new)
            .map_err(|error| status(&error))
    }

    async fn tokenize(&self, request: Request<TokenizeRequest>) -> Answer<TokenizeResponse> {
        let (serving, _, _leave) = self.0.admit("Tokenize", &request)?;
        let tokenize = blocking(move || {
            let ask = words::ask(request.into_inner().prompt)?;
            let ids = prompt::plain(&ask, &serving.tokenizer, serving.template())?;
            let pieces = ids.iter().map(|&id| serving.tokenizer.piece(id)).collect();
            Ok(TokenizeResponse { ids, pieces })
        });
        tokenize
            .await
            .map(Response::new)
            .map_err(|error| status(&error))
    }
}

type Begun = (Event, mpsc::Receiver<Result<Event>>, Context);

impl GenerationService {
    /// Waits for the first event, so that what fails before it fails as a plain status; begins
    /// again when the weights change under packets that nobody has read yet.
    async fn begin(&self, serving: &Arc<Serving>, ticket: &Ticket, wish: &Wish) -> Result<Begun> {
        let mut tries = 0;
        loop {
            tries += 1;
            let context = wish.asked.context(serving, ticket).await?;
            let room = serving.loaded.config.context - context.prompt.tokens();
            // One place more than events may wait: the last one is always kept free.
            let (events, mut receive) = mpsc::channel(limits::EVENTS + 1);
            let generate = Generate {
                prompt: context.prompt.clone(),
                sampling: wish.sampling,
                max_tokens: wish.max_tokens.min(room),
                stop: wish.stop.clone(),
                top: wish.top,
                beams: wish.beams,
                events,
            };
            self.0
                .engine
                .submit(ticket, Command::Generate(Box::new(generate)))
                .await?;
            match receive.recv().await {
                Some(Ok(event)) => return Ok((event, receive, context)),
                Some(Err(Error::Stale)) if tries < limits::STALE_RETRIES => {}
                Some(Err(error)) => return Err(error),
                None => return Err(Error::EngineGone),
            }
        }
    }

    async fn scored(
        &self,
        serving: &Arc<Serving>,
        ticket: &Ticket,
        request: ScoreRequest,
    ) -> Result<ScoreResponse> {
        let ask = words::ask(request.prompt)?;
        let wanted = Wanted::new(
            request.mode,
            request.link_tokens,
            request.blend_share,
            request.min_agreement,
        )?;
        let asked = Asked::new(ask, request.documents, wanted, &request.namespace)?;
        let texts = request.continuations;
        check::count("continuations", texts.len(), 1, limits::CONTINUATIONS)?;
        for text in &texts {
            check::text("continuations", text, limits::TEXT_BYTES)?;
        }
        let encoder = Arc::clone(serving);
        let continuations = blocking(move || {
            let encode = |text: &String| Ok(encoder.tokenizer.encode(text)?.ids);
            texts.iter().map(encode).collect::<Result<Vec<_>>>()
        });
        let continuations = continuations.await?;
        let longest = continuations.iter().map(Vec::len).max().unwrap_or(0);
        let mut tries = 0;
        let (scored, mode, exact) = loop {
            tries += 1;
            let context = asked.context(serving, ticket).await?;
            let (tokens, most) = (
                context.prompt.tokens() + longest,
                serving.loaded.config.context,
            );
            if tokens > most {
                return Err(addenda_model::Error::TooLong {
                    tokens,
                    context: most,
                }
                .into());
            }
            let (mode, exact) = (context.mode(), context.is_exact());
            let (prompt, continuations) = (context.prompt, continuations.clone());
            let score = |reply| {
                Command::Score(Box::new(Score {
                    prompt,
                    continuations,
                    reply,
                }))
            };
            match self.0.engine.ask(ticket, score).await {
                Err(Error::Stale) if tries < limits::STALE_RETRIES => {}
                result => break (result?, mode, exact),
            }
        };
        let scores = scored.scores.into_iter().map(|score| ScoredContinuation {
            ids: score.ids,
            logprobs: score.logprobs,
            greedy: score.greedy,
        });
        Ok(ScoreResponse {
            scores: scores.collect(),
            mode: mode.into(),
            exact,
            revision: scored.under.revision.to_string(),
        })
    }
}

/// A request to generate, checked.
struct Wish {
    asked: Asked,
    sampling: SamplingParams,
    max_tokens: usize,
    stop: Vec<String>,
    top: usize,
    beams: Option<BeamParams>,
}

impl Wish {
    fn new(request: GenerateRequest, daemon: &Daemon) -> Result<Self> {
        let max_tokens = match request.max_tokens {
            0 => daemon.config.max_tokens,
            tokens => tokens,
        };
        let sampling = sampling(request.sampling)?;
        let beams = beams(&request, sampling)?;
        let ask = words::ask(request.prompt)?;
        let wanted = Wanted::new(
            request.mode,
            request.link_tokens,
            request.blend_share,
            request.min_agreement,
        )?;
        let asked = Asked::new(ask, request.documents, wanted, &request.namespace)?;
        check::count("stop", request.stop.len(), 0, limits::STOPS)?;
        for stop in &request.stop {
            check::text("stop", stop, limits::STOP_BYTES)?;
        }
        if request.top_logprobs > limits::TOP_LOGPROBS {
            let reason = format!(
                "is {}; {} at most",
                request.top_logprobs,
                limits::TOP_LOGPROBS
            );
            return Err(Error::invalid("top_logprobs", reason));
        }
        Ok(Self {
            asked,
            beams,
            sampling,
            max_tokens: max_tokens as usize,
            stop: request.stop,
            top: request.top_logprobs as usize,
        })
    }
}

/// The beams that a request asks for.
fn beams(request: &GenerateRequest, sampling: SamplingParams) -> Result<Option<BeamParams>> {
    let penalty = request.length_penalty;
    if request.num_beams > limits::BEAMS {
        let reason = format!("is {}; {} at most", request.num_beams, limits::BEAMS);
        return Err(Error::invalid("num_beams", reason));
    }
    if request.num_beams < 2 {
        return match penalty {
            None => Ok(None),
            Some(_) => Err(Error::invalid(
                "length_penalty",
                "needs num_beams of 2 or more",
            )),
        };
    }
    if penalty.is_some_and(|penalty| !(0.0..=limits::LENGTH_PENALTY).contains(&penalty)) {
        let reason = format!("must be from 0 to {}", limits::LENGTH_PENALTY);
        return Err(Error::invalid("length_penalty", reason));
    }
    let plain = SamplingParams {
        seed: sampling.seed,
        ..SamplingParams::default()
    };
    if sampling != plain || request.top_logprobs > 0 {
        return Err(Error::invalid(
            "num_beams",
            "looks at probabilities alone: leave out temperature, top_k, top_p, min_p, \
             repetition_penalty and top_logprobs",
        ));
    }
    Ok(Some(BeamParams {
        beams: request.num_beams as usize,
        length_penalty: penalty.unwrap_or(1.0),
    }))
}

/// Sampling settings with the wire's defaults filled in.
fn sampling(wire: Option<Sampling>) -> Result<SamplingParams> {
    let wire = wire.unwrap_or_default();
    let one_if_zero = |value: f32| if value == 0.0 { 1.0 } else { value };
    let params = SamplingParams {
        temperature: wire.temperature,
        top_k: wire.top_k as usize,
        top_p: one_if_zero(wire.top_p),
        min_p: wire.min_p,
        repetition_penalty: one_if_zero(wire.repetition_penalty),
        seed: wire.seed.unwrap_or_else(drawn_seed),
    };
    params.validate()?;
    Ok(params)
}

/// A seed that nobody chose: the standard library's hasher keys are random.
pub(crate) fn drawn_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// The stream of one answer. Dropped, it ends its sequence.
pub(crate) struct Tokens {
    first: Option<Event>,
    events: mpsc::Receiver<Result<Event>>,
    report: Report,
    leave: Leave,
}

/// What the summary says beside what the engine reports.
struct Report {
    context: Context,
    seed: u64,
    logprobs: bool,
}

impl Stream for Tokens {
    type Item = std::result::Result<GenerateResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, polling: &mut Polling<'_>) -> Poll<Option<Self::Item>> {
        let event = match self.first.take() {
            Some(event) => Some(Ok(event)),
            None => ready!(self.events.poll_recv(polling)),
        };
        self.leave.has_read();
        Poll::Ready(event.map(|event| match event {
            Ok(event) => Ok(GenerateResponse {
                event: Some(self.report.event(event)),
            }),
            Err(error) => Err(status(&error)),
        }))
    }
}

impl Report {
    fn event(&self, event: Event) -> WireEvent {
        match event {
            Event::Token(token) => {
                let top = token.top.into_iter();
                WireEvent::Token(Token {
                    id: token.id,
                    text: token.text,
                    logprob: self.logprobs.then_some(token.logprob),
                    top: top
                        .map(|(id, text, logprob)| TokenLogprob { id, text, logprob })
                        .collect(),
                })
            }
            Event::Finished(finished) => WireEvent::Summary(self.summary(&finished)),
        }
    }

    fn summary(&self, finished: &Finished) -> Summary {
        let count = |tokens: usize| u32::try_from(tokens).unwrap_or(u32::MAX);
        let context = &self.context;
        let (tokens, from_packets) = (context.prompt.tokens(), context.packet_tokens());
        let reason = match finished.finish {
            Finish::End => FinishReason::End,
            Finish::Length => FinishReason::Length,
            Finish::Stop => FinishReason::Stop,
        };
        let kept = finished.prefix_tokens;
        let mut mode_reason = context.choice.reason.clone();
        if finished.under.changed {
            let and = if mode_reason.is_empty() { "" } else { "; " };
            mode_reason =
                format!("{mode_reason}{and}the weights changed while the answer was made");
        }
        Summary {
            finish_reason: reason.into(),
            mode: context.mode().into(),
            exact: context.is_exact() && !finished.under.changed,
            prompt_tokens: count(tokens),
            computed_tokens: count((tokens - from_packets).saturating_sub(kept)),
            packet_tokens: count(from_packets),
            generated_tokens: count(finished.generated),
            ttft_ms: finished.ttft.as_secs_f64() * 1e3,
            total_ms: finished.total.as_secs_f64() * 1e3,
            packets: context.packets.clone(),
            revision: finished.under.revision.to_string(),
            active_facts: count(finished.under.active_facts),
            seed: self.seed,
            mode_reason,
            adapter: context.adapter.clone(),
            certificate: context.choice.certificate.clone(),
            prefix_tokens: count(kept),
            missed: context.missed.clone(),
        }
    }
}
