//! From a request's prompt and documents to a context that the engine can compute.
//!
//! Owns the choice of the mode and the reason given for it. Never computes. Invariant: the token ids
//! do not depend on the mode.

use std::sync::Arc;

use addenda_model::ChatMessage;
use addenda_proto::addenda::v1::{
    Chat, Completion, Mode, generate_request, score_request, tokenize_request,
};

use crate::documents::blocking;
use crate::engine::command::{Form, Prompt, Segment, Ticket};
use crate::error::{Error, Result};
use crate::grpc::packets::adapter;
use crate::grpc::{Serving, check};
use crate::limits;
use crate::prompt::{self, Ask};

/// A request's words, checked.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) ask: Ask,
    pub(crate) documents: Vec<String>,
    pub(crate) mode: Mode,
    pub(crate) namespace: String,
}

/// A context, and how it came about.
pub(crate) struct Context {
    pub(crate) prompt: Prompt,
    /// Never unspecified or auto.
    pub(crate) mode: Mode,
    pub(crate) reason: String,
    /// Ids of the packets, in order.
    pub(crate) packets: Vec<String>,
    /// The adapter of those packets, as the wire shows it.
    pub(crate) adapter: String,
    /// Tokens of packets that had to be computed first.
    pub(crate) rebuilt: usize,
}

impl Asked {
    /// Checks documents, mode and namespace.
    ///
    /// # Errors
    /// A field out of its bounds.
    pub(crate) fn new(
        ask: Ask,
        documents: Vec<String>,
        mode: i32,
        namespace: &str,
    ) -> Result<Self> {
        check::count("documents", documents.len(), 0, limits::DOCUMENTS)?;
        for document in &documents {
            check::text("documents", document, limits::NAME_BYTES)?;
        }
        let mode = Mode::try_from(mode).map_err(|_| {
            Error::invalid(
                "mode",
                format!("is {mode}, which this daemon does not know"),
            )
        })?;
        if matches!(mode, Mode::Link | Mode::Blend | Mode::Preload) {
            return Err(Error::invalid(
                "mode",
                "is one that this daemon does not serve yet; `addenda model info` lists its modes",
            ));
        }
        Ok(Self {
            ask,
            documents,
            mode,
            namespace: check::namespace(namespace)?,
        })
    }

    /// Assembles the context under the present weights.
    ///
    /// # Errors
    /// An unknown document, a context that is too long, or the engine's where packets must be
    /// computed.
    pub(crate) async fn context(&self, serving: &Arc<Serving>, ticket: &Ticket) -> Result<Context> {
        let (mode, reason) = self.choose();
        if self.documents.is_empty() {
            let (serving, ask) = (Arc::clone(serving), self.ask.clone());
            let ids = blocking(move || {
                let ids = prompt::plain(&ask, &serving.tokenizer, serving.template())?;
                serving.check_room(ids.len())?;
                Ok(ids)
            })
            .await?;
            let segments = vec![Segment::Tokens(ids.clone())];
            let prompt = Prompt { segments, ids };
            return Ok(Context {
                prompt,
                mode,
                reason,
                packets: Vec::new(),
                adapter: String::new(),
                rebuilt: 0,
            });
        }
        let mut resolved = Vec::with_capacity(self.documents.len());
        for reference in &self.documents {
            let form = (mode == Mode::Packet).then_some(Form::Wrapped);
            let documents = &serving.documents;
            resolved.push(
                documents
                    .resolve(ticket, &self.namespace, reference, form)
                    .await?,
            );
        }
        let (around, ask) = (Arc::clone(serving), self.ask.clone());
        let framed =
            blocking(move || prompt::around_documents(&ask, &around.tokenizer, around.template()))
                .await?;
        let mut context = Context {
            prompt: Prompt {
                segments: Vec::new(),
                ids: Vec::new(),
            },
            mode,
            reason,
            packets: Vec::new(),
            adapter: String::new(),
            rebuilt: 0,
        };
        context.compute(&framed.before);
        for document in resolved {
            let Some((id, packet)) = document.packet else {
                context.compute(&document.ids);
                continue;
            };
            context.packets.push(id.to_string());
            context.adapter = adapter(packet.origin().adapter);
            context.rebuilt += if document.rebuilt { packet.tokens() } else { 0 };
            context.prompt.ids.extend(&document.ids);
            context.prompt.segments.push(Segment::Packet(packet));
        }
        context.compute(&framed.after);
        serving.check_room(context.prompt.tokens())?;
        Ok(context)
    }

    /// The mode that runs, and why where it is not the one asked for.
    fn choose(&self) -> (Mode, String) {
        match self.mode {
            Mode::Packet if self.documents.is_empty() => {
                (Mode::Full, "there are no documents".to_owned())
            }
            mode @ (Mode::Full | Mode::Packet | Mode::Link | Mode::Blend | Mode::Preload) => {
                (mode, String::new())
            }
            Mode::Auto | Mode::Unspecified if self.documents.is_empty() => {
                (Mode::Full, String::new())
            }
            Mode::Auto | Mode::Unspecified => (
                Mode::Full,
                "no packet mode has a certificate for this model yet".to_owned(),
            ),
        }
    }
}

impl Context {
    /// Appends tokens that are to be computed; neighbours become one run.
    fn compute(&mut self, ids: &[u32]) {
        self.prompt.ids.extend(ids);
        match self.prompt.segments.last_mut() {
            Some(Segment::Tokens(run)) => run.extend(ids),
            _ if ids.is_empty() => {}
            _ => self.prompt.segments.push(Segment::Tokens(ids.to_vec())),
        }
    }

    /// Tokens that came from packets which were there already.
    pub(crate) fn packet_tokens(&self) -> usize {
        self.prompt.packet_tokens().saturating_sub(self.rebuilt)
    }
}

/// A request's `prompt`.
pub(crate) enum PromptField {
    Chat(Chat),
    Completion(Completion),
}

impl From<generate_request::Prompt> for PromptField {
    fn from(prompt: generate_request::Prompt) -> Self {
        match prompt {
            generate_request::Prompt::Chat(chat) => Self::Chat(chat),
            generate_request::Prompt::Completion(completion) => Self::Completion(completion),
        }
    }
}

impl From<score_request::Prompt> for PromptField {
    fn from(prompt: score_request::Prompt) -> Self {
        match prompt {
            score_request::Prompt::Chat(chat) => Self::Chat(chat),
            score_request::Prompt::Completion(completion) => Self::Completion(completion),
        }
    }
}

impl From<tokenize_request::Prompt> for PromptField {
    fn from(prompt: tokenize_request::Prompt) -> Self {
        match prompt {
            tokenize_request::Prompt::Chat(chat) => Self::Chat(chat),
            tokenize_request::Prompt::Completion(completion) => Self::Completion(completion),
        }
    }
}

/// Checks a request's `prompt`.
///
/// # Errors
/// It is absent, empty or too long.
pub(crate) fn ask(prompt: Option<impl Into<PromptField>>) -> Result<Ask> {
    match prompt.map(Into::into) {
        None => Err(Error::invalid(
            "prompt",
            "is missing; give `chat` or `completion`",
        )),
        Some(PromptField::Completion(completion)) => {
            check::text("completion.text", &completion.text, limits::TEXT_BYTES)?;
            Ok(Ask::Completion(completion.text))
        }
        Some(PromptField::Chat(chat)) => {
            check::count("chat.messages", chat.messages.len(), 1, limits::TURNS)?;
            for message in &chat.messages {
                check::text("chat.messages.role", &message.role, limits::ROLE_BYTES)?;
                check::at_most_bytes(
                    "chat.messages.content",
                    &message.content,
                    limits::TEXT_BYTES,
                )?;
            }
            let messages = chat.messages.into_iter().map(|message| ChatMessage {
                role: message.role,
                content: message.content,
            });
            Ok(Ask::Chat(messages.collect()))
        }
    }
}
