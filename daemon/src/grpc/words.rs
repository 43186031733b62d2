//! A request's words: its `prompt`, a chat or a text, checked.

use addenda_model::ChatMessage;
use addenda_proto::addenda::v1::{
    Chat, Completion, generate_request, score_request, tokenize_request,
};

use crate::error::{Error, Result};
use crate::grpc::check;
use crate::limits;
use crate::prompt::Ask;

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
