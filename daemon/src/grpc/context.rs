//! From a request's prompt and documents to a context that the engine can compute.
//!
//! Owns how each mode assembles a context. Never computes. Invariant: the token ids do not depend on
//! the mode.

use std::sync::Arc;

use addenda_proto::addenda::v1::{MissedDocument, Mode};

use crate::documents::{Resolved, blocking};
use crate::engine::EngineState;
use crate::engine::command::{Blend, Form, Prompt, Segment, Ticket};
use crate::error::{Error, Result};
use crate::grpc::lookup::{missed, word};
use crate::grpc::mode::{Choice, Wanted, Way};
use crate::grpc::packets::shown;
use crate::grpc::{Serving, check};
use crate::limits;
use crate::packets::PacketSource;
use crate::prompt::{self, Ask};

/// Documents that are looked up at the same time.
const AT_A_TIME: usize = 8;

/// The agreement that `auto` wants to be certified where a request does not say.
const LEAST_AGREEMENT: f32 = 0.95;

/// A request's words, checked.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    ask: Ask,
    documents: Vec<String>,
    wanted: Wanted,
    namespace: String,
    /// Whether the KV of its beginning may come from an earlier request and serve later ones.
    shares: bool,
}

/// A context, and how it came about.
pub(crate) struct Context {
    pub(crate) prompt: Prompt,
    pub(crate) choice: Choice,
    /// Ids of the packets, in order.
    pub(crate) packets: Vec<String>,
    /// The adapter that wraps those packets or stands behind them, as the wire shows it.
    pub(crate) adapter: String,
    /// Tokens read from packets that had to be computed first.
    rebuilt: usize,
    /// Documents whose packets had to be computed, and why.
    pub(crate) missed: Vec<MissedDocument>,
}

impl Asked {
    /// Checks documents and namespace.
    ///
    /// # Errors
    /// A field out of its bounds.
    pub(crate) fn new(
        ask: Ask,
        documents: Vec<String>,
        wanted: Wanted,
        namespace: &str,
    ) -> Result<Self> {
        check::count("documents", documents.len(), 0, limits::DOCUMENTS)?;
        for document in &documents {
            check::text("documents", document, limits::NAME_BYTES)?;
        }
        Ok(Self {
            ask,
            documents,
            wanted,
            namespace: check::namespace(namespace)?,
            shares: true,
        })
    }

    /// The same for one way alone, to be measured: nothing of it comes from an earlier request.
    ///
    /// # Errors
    /// A field out of its bounds.
    pub(crate) fn in_way(
        ask: Ask,
        documents: Vec<String>,
        way: Way,
        namespace: &str,
    ) -> Result<Self> {
        let asked = Self::new(ask, documents, Wanted::only(way)?, namespace)?;
        Ok(Self {
            shares: false,
            ..asked
        })
    }

    /// Assembles the context under the present weights.
    ///
    /// # Errors
    /// An unknown document, a context that is too long, or the engine's where packets must be
    /// computed.
    pub(crate) async fn context(&self, serving: &Arc<Serving>, ticket: &Ticket) -> Result<Context> {
        let choice = self
            .wanted
            .choose(self.documents.len(), LEAST_AGREEMENT, |way| {
                serving.certified(way)
            });
        let mut context = Context::new(choice, (self.namespace.clone(), self.shares));
        if self.documents.is_empty() {
            let (words, ask) = (Arc::clone(serving), self.ask.clone());
            let ids =
                blocking(move || prompt::plain(&ask, &words.tokenizer, words.template())).await?;
            context.compute(&ids);
            serving.check_room(context.prompt.tokens())?;
            return Ok(context);
        }
        let way = context.choice.way;
        let resolved = self.resolved(serving, ticket, way.mode).await?;
        if matches!(way.mode, Mode::Packet | Mode::Link | Mode::Blend) {
            let metrics = serving.documents.engine.metrics();
            for document in &resolved {
                let missed = document.missed.as_ref();
                metrics.document(missed.map_or("hit", |missed| word(missed.stale.differs)));
            }
        }
        let (around, ask) = (Arc::clone(serving), self.ask.clone());
        let framed =
            blocking(move || prompt::around_documents(&ask, &around.tokenizer, around.template()))
                .await?;
        match way.mode {
            Mode::Preload => {
                let mut ids = framed.before;
                ids.extend(resolved.into_iter().flat_map(|part| part.ids));
                let documents = &serving.documents;
                let joint = documents.joint(ticket, &self.namespace, &ids).await?;
                context.read(&ids, joint, 0);
            }
            mode => {
                context.compute(&framed.before);
                if mode == Mode::Blend {
                    context.blend(resolved, way.blend_share());
                } else {
                    let computed = match mode {
                        Mode::Link => way.link_tokens(),
                        _ => 0,
                    };
                    for part in resolved {
                        context.place(part, computed);
                    }
                    if mode == Mode::Packet {
                        context.bridge(serving.documents.engine.state());
                    }
                }
            }
        }
        context.compute(&framed.after);
        serving.check_room(context.prompt.tokens())?;
        Ok(context)
    }

    /// The documents' parts, in order, with their packets where this mode reads them.
    async fn resolved(
        &self,
        serving: &Arc<Serving>,
        ticket: &Ticket,
        mode: Mode,
    ) -> Result<Vec<Resolved>> {
        let form = match mode {
            Mode::Packet => Some(Form::Wrapped),
            Mode::Link | Mode::Blend => Some(Form::Plain),
            _ => None,
        };
        let mut resolved = Vec::with_capacity(self.documents.len());
        // Several at a time, for each is hashed when it is first read.
        for references in self.documents.chunks(AT_A_TIME) {
            let tasks = references.iter().map(|reference| {
                let (documents, ticket) = (serving.documents.clone(), ticket.clone());
                let (namespace, reference) = (self.namespace.clone(), reference.clone());
                tokio::spawn(async move {
                    documents
                        .resolve(&ticket, &namespace, &reference, form)
                        .await
                })
            });
            let tasks: Vec<_> = tasks.collect();
            for task in tasks {
                resolved.extend(task.await.map_err(|error| Error::Panicked {
                    message: error.to_string(),
                })??);
            }
        }
        Ok(resolved)
    }
}

impl Context {
    fn new(choice: Choice, (namespace, shares): (String, bool)) -> Self {
        Self {
            prompt: Prompt {
                segments: Vec::new(),
                ids: Vec::new(),
                namespace,
                shares,
            },
            choice,
            packets: Vec::new(),
            adapter: String::new(),
            rebuilt: 0,
            missed: Vec::new(),
        }
    }

    /// Appends tokens that are to be computed; neighbours become one run.
    fn compute(&mut self, ids: &[u32]) {
        self.prompt.ids.extend(ids);
        match self.prompt.segments.last_mut() {
            Some(Segment::Tokens(run)) => run.extend(ids),
            _ if ids.is_empty() => {}
            _ => self.prompt.segments.push(Segment::Tokens(ids.to_vec())),
        }
    }

    /// Appends a document: its first `computed` tokens are computed, and the rest of its packet is
    /// read; all of it is computed where it has none.
    fn place(&mut self, document: Resolved, computed: usize) {
        self.missed.extend(document.missed.as_ref().map(missed));
        let Some((id, packet)) = document.packet else {
            return self.compute(&document.ids);
        };
        let head = computed.min(document.ids.len());
        let (first, rest) = document.ids.split_at_checked(head).unwrap_or_default();
        self.compute(first);
        if head == 0 || !rest.is_empty() {
            self.read(rest, (id, packet, document.rebuilt), head);
        }
    }

    /// Appends what a packet has from token `from` on.
    fn read(
        &mut self,
        ids: &[u32],
        (id, packet, rebuilt): (impl ToString, PacketSource, bool),
        from: usize,
    ) {
        self.packets.push(id.to_string());
        self.adapter = shown(packet.origin().adapter);
        if rebuilt {
            self.rebuilt += packet.tokens() - from;
        }
        self.prompt.ids.extend(ids);
        self.prompt.segments.push(match from {
            0 => Segment::Packet(packet),
            from => Segment::Rest(packet, from),
        });
    }

    /// Appends the active adapter's bridge, where it has one, behind packets.
    fn bridge(&mut self, state: EngineState) {
        if let Some(bridge) = state.bridge.filter(|_| !self.packets.is_empty()) {
            self.adapter = shown(bridge.origin().adapter);
            let bridge = bridge.under(state.under.revision);
            self.prompt.segments.push(Segment::Packet(bridge));
        }
    }

    /// Appends documents of whose tokens a share is computed.
    fn blend(&mut self, resolved: Vec<Resolved>, share: f64) {
        let mut documents = Vec::with_capacity(resolved.len());
        let mut made = 0;
        for document in resolved {
            self.prompt.ids.extend(&document.ids);
            self.missed.extend(document.missed.as_ref().map(missed));
            if let Some((id, packet)) = document.packet {
                self.packets.push(id.to_string());
                made += usize::from(document.rebuilt) * packet.tokens();
                documents.push((document.ids, packet));
            }
        }
        let segment = Segment::Blend(Blend { documents, share });
        self.rebuilt += made.min(segment.packet_tokens());
        self.prompt.segments.push(segment);
    }

    /// Tokens that came from packets which were there already.
    pub(crate) fn packet_tokens(&self) -> usize {
        self.prompt.packet_tokens().saturating_sub(self.rebuilt)
    }

    /// The mode that runs, never unspecified or auto.
    pub(crate) fn mode(&self) -> Mode {
        self.choice.way.mode
    }

    /// Whether it equals full prefill by construction.
    pub(crate) fn is_exact(&self) -> bool {
        match self.mode() {
            Mode::Full | Mode::Preload => true,
            _ => self.prompt.packet_tokens() == 0,
        }
    }
}
