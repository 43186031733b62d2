//! What the engine can be asked to do, and the ticket that each request carries.
//!
//! Owns the messages between the gRPC side and the engine's thread. Every command has a channel
//! for its answer; a command that is refused still answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use addenda_cache::PacketId;
use addenda_editor::{
    Added, Editor, Fact, FactId, FactRecord, Figures, Located, Method, Request, Tracing,
};
use addenda_model::{Adapter, BeamParams, Blending, Codec, SamplingParams, Transformer};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::Span;

use crate::adapters::training::{Course, Note};
use crate::digest::Digest;
use crate::ending::Ending;
use crate::error::{Error, Result};
use crate::jobs::JobHandle;
use crate::packets::PacketSource;

/// The conditions under which a request is served.
#[derive(Debug, Clone)]
pub(crate) struct Ticket {
    pub(crate) received: Instant,
    pub(crate) deadline: Option<Instant>,
    pub(crate) cancel: CancellationToken,
    /// Whether it waits for a place in a full queue rather than be refused: background work.
    pub(crate) patient: bool,
    pub(crate) span: Span,
}

impl Ticket {
    /// Whether the request is still wanted.
    pub(crate) fn check(&self) -> Result<()> {
        if self.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        if self
            .deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
        {
            return Err(Error::Deadline);
        }
        Ok(())
    }
}

/// One request at the engine's door.
pub(crate) struct Waiting {
    pub(crate) ticket: Ticket,
    pub(crate) command: Command,
}

/// What the engine can be asked to do.
pub(crate) enum Command {
    /// Generate one answer.
    Generate(Box<Generate>),
    /// Score given continuations.
    Score(Box<Score>),
    /// Answer greedily, or follow an answer, and give the whole distribution of each of its tokens.
    Trace(Box<Trace>),
    /// Compute one document's KV in isolation.
    Build(Box<Build>),
    /// Change or measure the weights.
    Edit(Box<Edit>),
    /// Wear another adapter, or train one.
    Adapt(Box<Adapt>),
    /// Look something up; takes no time to speak of.
    Consult(Consult),
    /// Let go of what was computed of texts that are no more; takes no time to speak of.
    Forget(Forget),
}

/// Texts that were deleted or replaced: nothing that was computed of them is to stay in memory.
pub(crate) struct Forget {
    pub(crate) namespace: String,
    /// Token ids of each part.
    pub(crate) texts: Vec<Vec<u32>>,
    pub(crate) packets: Vec<PacketId>,
    pub(crate) reply: oneshot::Sender<Result<()>>,
}

impl Forget {
    /// Whether one of the texts stands in these tokens of the namespace.
    pub(crate) fn is_in(&self, namespace: &str, ids: &[u32]) -> bool {
        let stands = |text: &Vec<u32>| {
            let mut windows = ids.windows(text.len().max(1));
            windows.any(|part| part == text)
        };
        namespace == self.namespace && self.texts.iter().any(stands)
    }
}

/// A part of a context, in order.
#[derive(Debug, Clone)]
pub(crate) enum Segment {
    /// Tokens to be computed.
    Tokens(Vec<u32>),
    /// KV that is there already.
    Packet(PacketSource),
    /// The same of the packet's tokens from this one on; those before it have been computed.
    Rest(PacketSource, usize),
    /// Documents whose KV is there, but for the tokens that deviate most.
    Blend(Blend),
}

/// Documents of whose tokens a share is computed.
#[derive(Debug, Clone)]
pub(crate) struct Blend {
    /// Each with its token ids, in order; the packets are without soft tokens.
    pub(crate) documents: Vec<(Vec<u32>, PacketSource)>,
    /// From 0 to 1.
    pub(crate) share: f64,
}

impl Segment {
    pub(crate) fn tokens(&self) -> usize {
        match self {
            Self::Tokens(ids) => ids.len(),
            Self::Packet(packet) => packet.tokens(),
            Self::Rest(packet, from) => packet.tokens().saturating_sub(*from),
            Self::Blend(blend) => blend.documents.iter().map(|(ids, _)| ids.len()).sum(),
        }
    }

    /// Tokens whose KV is read from packets.
    pub(crate) fn packet_tokens(&self) -> usize {
        match self {
            Self::Tokens(_) => 0,
            Self::Packet(_) | Self::Rest(..) => self.tokens(),
            Self::Blend(blend) => {
                let computed = Blending::computed(self.tokens(), blend.share);
                self.tokens() - computed.unwrap_or(0)
            }
        }
    }

    /// The packets that it reads.
    pub(crate) fn packets(&self) -> Vec<&PacketSource> {
        match self {
            Self::Tokens(_) => Vec::new(),
            Self::Packet(packet) | Self::Rest(packet, _) => vec![packet],
            Self::Blend(blend) => blend.documents.iter().map(|(_, packet)| packet).collect(),
        }
    }
}

/// A context: at least one token to compute at its end.
#[derive(Debug, Clone)]
pub(crate) struct Prompt {
    pub(crate) segments: Vec<Segment>,
    /// All token ids, those of packets included, in order.
    pub(crate) ids: Vec<u32>,
    /// Whose it is.
    pub(crate) namespace: String,
    /// Whether the KV of its beginning is kept for others of the namespace, and taken from them; if not,
    /// everything is computed, and nothing is kept.
    pub(crate) shares: bool,
}

impl Prompt {
    /// Keeps nothing of it for others where a text that is no more stands in it.
    pub(crate) fn forget(&mut self, forget: &Forget) {
        self.shares &= !forget.is_in(&self.namespace, &self.ids);
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Tokens of the context, soft ones included.
    pub(crate) fn tokens(&self) -> usize {
        self.segments.iter().map(Segment::tokens).sum()
    }

    /// Tokens whose KV is the context's own, computed or copied.
    pub(crate) fn own_tokens(&self) -> usize {
        let own = |segment: &Segment| match segment {
            Segment::Tokens(_) | Segment::Blend(_) => segment.tokens(),
            Segment::Packet(_) | Segment::Rest(..) => 0,
        };
        self.segments.iter().map(own).sum()
    }

    /// Tokens that come from packets.
    pub(crate) fn packet_tokens(&self) -> usize {
        self.segments.iter().map(Segment::packet_tokens).sum()
    }
}

/// A request to generate.
pub(crate) struct Generate {
    pub(crate) prompt: Prompt,
    pub(crate) sampling: SamplingParams,
    pub(crate) max_tokens: usize,
    pub(crate) stop: Vec<String>,
    /// How many alternatives to report with each token.
    pub(crate) top: usize,
    /// Several continuations are followed, instead of sampling one.
    pub(crate) beams: Option<BeamParams>,
    pub(crate) events: mpsc::Sender<Result<Event>>,
}

/// What comes out of a generating sequence.
#[derive(Debug)]
pub(crate) enum Event {
    /// A token, with the text that became certain with it.
    Token(Emitted),
    /// The end. Nothing follows.
    Finished(Finished),
}

/// One generated token.
#[derive(Debug)]
pub(crate) struct Emitted {
    pub(crate) id: u32,
    pub(crate) text: String,
    pub(crate) logprob: f32,
    /// Id, text alone, log-probability.
    pub(crate) top: Vec<(u32, String, f32)>,
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish {
    End,
    Length,
    Stop,
}

/// How an answer was made.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) finish: Finish,
    pub(crate) generated: usize,
    /// Tokens of the prompt whose KV was kept from an earlier request.
    pub(crate) prefix_tokens: usize,
    pub(crate) ttft: Duration,
    pub(crate) total: Duration,
    pub(crate) under: Under,
}

/// The weights that answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Under {
    pub(crate) revision: Digest,
    /// The active adapter; zeros for none.
    pub(crate) adapter: Digest,
    /// The same where it is one that wraps documents, on which packets depend; zeros for none, and for a bridge.
    pub(crate) wrapping: Digest,
    pub(crate) active_facts: usize,
    /// Whether they changed after the first token.
    pub(crate) changed: bool,
}

impl Under {
    /// What a packet of this form is made with now.
    pub(crate) fn origin(&self, form: Form) -> Origin {
        let adapter = match form {
            Form::Wrapped => self.wrapping,
            Form::Plain | Form::Joint => NO_ADAPTER,
        };
        Origin {
            revision: self.revision,
            adapter,
        }
    }
}

/// The adapter of packets that have no soft tokens.
pub(crate) const NO_ADAPTER: Digest = Digest([0; 32]);

/// What a packet's tokens stand in while they are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Behind the primer, a document between the active adapter's header and trailer; as it stands where none is
    /// active.
    Wrapped,
    /// Behind the primer, a document as it stands.
    Plain,
    /// Behind nothing: the beginning of a context, all of it.
    Joint,
}

/// What a packet is made with, apart from its tokens and what never changes while a daemon runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) revision: Digest,
    /// [`NO_ADAPTER`] for none.
    pub(crate) adapter: Digest,
}

/// A request to score.
pub(crate) struct Score {
    pub(crate) prompt: Prompt,
    pub(crate) continuations: Vec<Vec<u32>>,
    pub(crate) reply: oneshot::Sender<Result<Scored>>,
}

/// Scores in the order of the continuations.
#[derive(Debug)]
pub(crate) struct Scored {
    pub(crate) scores: Vec<ScoredContinuation>,
    pub(crate) under: Under,
}

/// One continuation's score.
#[derive(Debug)]
pub(crate) struct ScoredContinuation {
    pub(crate) ids: Vec<u32>,
    pub(crate) logprobs: Vec<f32>,
    pub(crate) greedy: bool,
}

/// A request to know what the model makes of each token of an answer.
pub(crate) struct Trace {
    pub(crate) prompt: Prompt,
    pub(crate) follow: Follow,
    pub(crate) reply: oneshot::Sender<Result<Traced>>,
}

/// Which answer is traced.
#[derive(Debug, Clone)]
pub(crate) enum Follow {
    /// The likeliest token each time, up to and with the one that ends the answer, at most so many.
    Greedy(usize, Ending),
    /// These tokens; at least one.
    Given(Vec<u32>),
}

/// An answer, and the distribution that each of its tokens came from.
#[derive(Debug)]
pub(crate) struct Traced {
    pub(crate) ids: Vec<u32>,
    /// Natural logarithms of the probabilities of the whole vocabulary, for each token.
    pub(crate) logprobs: Vec<Vec<f32>>,
    /// When the first token was known.
    pub(crate) first_at: Instant,
}

/// A request to compute one document's KV.
pub(crate) struct Build {
    pub(crate) ids: Vec<u32>,
    pub(crate) form: Form,
    /// How its bytes are made.
    pub(crate) codec: Codec,
    pub(crate) reply: oneshot::Sender<Result<Built>>,
}

/// A document's KV as bytes, and what it was computed with.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) bytes: Vec<u8>,
    /// Soft ones included.
    pub(crate) tokens: usize,
    pub(crate) origin: Origin,
}

/// A request that changes or measures the weights.
pub(crate) enum Edit {
    /// Add facts together; the answers are in the requests' order.
    Add {
        requests: Vec<Request>,
        job: JobHandle,
        reply: oneshot::Sender<Result<Vec<Result<Added>>>>,
    },
    /// Add the facts of a patch file; the answers are in its order.
    Import {
        file: Vec<u8>,
        job: JobHandle,
        reply: oneshot::Sender<Result<Vec<Result<Added>>>>,
    },
    /// Measure ahead what a method needs; the answer is of how many layers.
    Prepare {
        method: Option<Method>,
        job: Arc<JobHandle>,
        reply: oneshot::Sender<Result<usize>>,
    },
    /// Find the layers that carry these facts.
    Locate {
        facts: Vec<Fact>,
        tracing: Tracing,
        job: Arc<JobHandle>,
        reply: oneshot::Sender<Result<Located>>,
    },
    /// Retire a fact.
    Retire {
        id: FactId,
        reply: oneshot::Sender<Result<(FactRecord, Digest)>>,
    },
    /// Let come and go the facts whose dates say so; the answer is how many.
    Turn {
        reply: oneshot::Sender<Result<usize>>,
    },
    /// Measure an active fact again.
    Check {
        id: FactId,
        reply: oneshot::Sender<Result<(FactRecord, Figures)>>,
    },
}

/// A request about adapters.
pub(crate) enum Adapt {
    /// Wrap documents in the adapter of this file from now on, or in none.
    Wear {
        file: Option<Vec<u8>>,
        reply: oneshot::Sender<Result<()>>,
    },
    /// Train one beside everything else.
    Train {
        course: Box<Course>,
        /// What is to be kept and told; an error or [`Note::Done`] comes last.
        notes: mpsc::Sender<Result<Note>>,
    },
}

/// What a consultation sees.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) model: &'a Transformer,
    pub(crate) editor: &'a Editor,
    /// The adapter that documents are wrapped in.
    pub(crate) adapter: Option<&'a Adapter>,
}

/// A look at the engine's state, or the reason why there will be none.
pub(crate) type Consult = Box<dyn FnOnce(Result<View<'_>>) + Send>;

impl Command {
    /// Answers with an error instead of doing it.
    pub(crate) fn refuse(self, error: Error) {
        match self {
            Self::Generate(generate) => {
                // The channel is new, so there is room; if not, its client is gone.
                drop(generate.events.try_send(Err(error)));
            }
            Self::Score(score) => drop(score.reply.send(Err(error))),
            Self::Trace(trace) => drop(trace.reply.send(Err(error))),
            Self::Build(build) => drop(build.reply.send(Err(error))),
            Self::Edit(edit) => edit.refuse(error),
            Self::Adapt(adapt) => adapt.refuse(error),
            Self::Consult(consult) => consult(Err(error)),
            Self::Forget(forget) => drop(forget.reply.send(Err(error))),
        }
    }

    /// The prompt of a request that becomes a sequence.
    pub(crate) fn prompt(&self) -> Option<&Prompt> {
        match self {
            Self::Generate(generate) => Some(&generate.prompt),
            Self::Score(score) => Some(&score.prompt),
            Self::Trace(trace) => Some(&trace.prompt),
            _ => None,
        }
    }

    /// The same, to be changed.
    pub(crate) fn prompt_mut(&mut self) -> Option<&mut Prompt> {
        match self {
            Self::Generate(generate) => Some(&mut generate.prompt),
            Self::Score(score) => Some(&mut score.prompt),
            Self::Trace(trace) => Some(&mut trace.prompt),
            _ => None,
        }
    }
}

impl Adapt {
    /// Answers with an error instead of doing it.
    pub(crate) fn refuse(self, error: Error) {
        match self {
            Self::Wear { reply, .. } => drop(reply.send(Err(error))),
            // The channel is new, so there is room.
            Self::Train { notes, .. } => drop(notes.try_send(Err(error))),
        }
    }
}

impl Edit {
    /// Answers with an error instead of doing it.
    pub(crate) fn refuse(self, error: Error) {
        match self {
            Self::Add { job, reply, .. } | Self::Import { job, reply, .. } => {
                let result = Err(error);
                job.end(&result);
                drop(reply.send(result));
            }
            Self::Retire { reply, .. } => drop(reply.send(Err(error))),
            Self::Locate { reply, .. } => drop(reply.send(Err(error))),
            Self::Turn { reply } | Self::Prepare { reply, .. } => drop(reply.send(Err(error))),
            Self::Check { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}
