//! From a request's words to token ids: the chat template, and where the documents stand in it.
//!
//! Owns the layout of a context. Never computes. Invariant: for the same request the token ids are
//! the same whether the documents come from packets or are computed, so that modes can be compared.
//!
//! Documents stand at the beginning of the first user turn, behind one sentence that says what they
//! are; in raw text they stand right after the start token. Each document's tokens are its own
//! text's, closed by an empty line, so that its packet does not depend on its neighbours. A long
//! one is tokenised part by part, in every mode.

use addenda_model::{ChatMessage, ChatTemplate, Tokenizer};

use crate::error::{Error, Result};
use crate::primer::Primer;
use crate::split::{Tokens, split};

/// What stands before the documents of a chat.
const INTRODUCTION: &str = "Answer with the help of these documents.\n\n";

/// What an adapter's bridge says before it is trained.
const BRIDGE: &str = "Answer the question from the documents above.\n\n";

/// Documents that a primer ends with, one a paragraph.
pub(crate) const PRIMER_DOCUMENTS: &str = include_str!("../data/primer.txt");
/// A primer's documents may take one part in so many of a context.
const PRIMER_SHARE: usize = 8;

/// What a caller asks.
#[derive(Debug, Clone)]
pub(crate) enum Ask {
    Chat(Vec<ChatMessage>),
    Completion(String),
}

/// The token ids around the documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Framed {
    /// Before the documents; empty where there are none.
    pub(crate) before: Vec<u32>,
    pub(crate) after: Vec<u32>,
}

/// Token ids of a request without documents.
///
/// # Errors
/// The template's, or a chat where there is no template.
pub(crate) fn plain(
    ask: &Ask,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
) -> Result<Vec<u32>> {
    match ask {
        Ask::Chat(messages) => {
            let text = needed(template)?.render(messages, true)?;
            Ok(tokenizer.encode(&text)?.ids)
        }
        Ask::Completion(text) => {
            let mut ids = Vec::from_iter(tokenizer.text_start());
            ids.extend(tokenizer.encode(text)?.ids);
            Ok(ids)
        }
    }
}

/// Token ids before and after the documents of a request.
///
/// # Errors
/// The template's, a chat where there is no template, or one without a user's turn.
pub(crate) fn around_documents(
    ask: &Ask,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
) -> Result<Framed> {
    let messages = match ask {
        Ask::Completion(text) => {
            return Ok(Framed {
                before: Vec::from_iter(tokenizer.text_start()),
                after: tokenizer.encode(text)?.ids,
            });
        }
        Ask::Chat(messages) => messages,
    };
    let marker = marker(messages);
    let mut messages = messages.clone();
    let first = messages.iter_mut().find(|message| message.role == "user");
    let Some(first) = first else {
        let reason = "has no turn of role \"user\" that the documents could stand in";
        return Err(Error::invalid("chat.messages", reason));
    };
    first.content = format!("{INTRODUCTION}{marker}{}", first.content);
    let text = needed(template)?.render(&messages, true)?;
    let Some((before, after)) = text.split_once(&marker) else {
        return Err(Error::Precondition {
            field: "chat template",
            reason: "leaves out the user's words; send a completion instead".to_owned(),
        });
    };
    Ok(Framed {
        before: tokenizer.encode(before)?.ids,
        after: tokenizer.encode(after)?.ids,
    })
}

impl Ask {
    /// A single question: a user's turn, or, for a model without a chat template, a text to go on with.
    pub(crate) fn question(text: &str, template: Option<&ChatTemplate>) -> Self {
        match template {
            Some(_) => Self::Chat(vec![ChatMessage {
                role: "user".to_owned(),
                content: text.to_owned(),
            }]),
            None => Self::Completion(format!("Question: {text}\nAnswer:")),
        }
    }
}

/// What stands before the documents of requests that say nothing before them themselves: of a text, and then of a
/// chat of a question alone, where the model's template makes one.
///
/// # Errors
/// The tokenizer's.
pub(crate) fn beginnings(
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
) -> Result<Vec<Vec<u32>>> {
    let before =
        |ask: &Ask| -> Result<_> { Ok(around_documents(ask, tokenizer, template)?.before) };
    let mut beginnings = vec![before(&Ask::Completion(String::new()))?];
    if template.is_some() {
        // A template that leaves out the user's words has none: its chats can't ask about documents.
        beginnings.extend(before(&Ask::question("", template)).ok());
    }
    Ok(beginnings)
}

/// What packets are computed behind: the last of the [`beginnings`], and `texts`, a document a paragraph, as many of
/// them as fit into their share of a context of so many tokens.
///
/// # Errors
/// The tokenizer's.
pub(crate) fn primer(
    beginnings: &[Vec<u32>],
    texts: &str,
    tokenizer: &Tokenizer,
    context: usize,
) -> Result<Primer> {
    let before = beginnings.last().cloned().unwrap_or_default();
    let mut documents = Vec::new();
    let mut tokens = before.len();
    for text in paragraphs(texts) {
        let ids = document(text, tokenizer, context)?.concat();
        tokens += ids.len();
        if tokens > context / PRIMER_SHARE {
            break;
        }
        documents.push(ids);
    }
    Ok(Primer::new(before, &documents))
}

/// What a bridge of so many tokens begins as: the first tokens of a sentence that stands behind documents, over and over.
///
/// # Errors
/// The tokenizer's.
pub(crate) fn bridge(tokenizer: &Tokenizer, tokens: usize) -> Result<Vec<u32>> {
    let ids = tokenizer.encode(BRIDGE)?.ids;
    Ok(ids.iter().copied().cycle().take(tokens).collect())
}

/// What lies between the empty lines of a text.
pub(crate) fn paragraphs(text: &str) -> impl Iterator<Item = &str> {
    text.split("\n\n").filter(|text| !text.trim().is_empty())
}

/// Tokens of a packet at most. Beside the longest one the primer has its share of the context, and soft tokens, a
/// question and an answer have as much again.
pub(crate) const fn longest_packet(context: usize) -> usize {
    context - 2 * (context / PRIMER_SHARE)
}

/// Token ids of one document, the same wherever it stands: of its parts, in order, of `most` tokens
/// at most each. Spaces around the text are left out, and an empty line closes it.
///
/// # Errors
/// A document that has no tokens, or the tokenizer's.
pub(crate) fn document(text: &str, tokenizer: &Tokenizer, most: usize) -> Result<Vec<Vec<u32>>> {
    let text = text.trim();
    if text.is_empty() {
        return Err(Error::invalid("text", "is empty; a packet needs some text"));
    }
    let closed = format!("{text}\n\n");
    split(&closed, most, |part| as_plain_text(part, tokenizer))
}

/// Token ids of a text that comes from who knows where: a control token spelled out in it, such as
/// the end of a turn, stays the characters that it is spelled with.
fn as_plain_text(text: &str, tokenizer: &Tokenizer) -> Result<Tokens> {
    let encoding = tokenizer.encode(text)?;
    let mut tokens = Tokens {
        ids: encoding.ids,
        starts: encoding.offsets.iter().map(|(start, _)| *start).collect(),
    };
    // Parted after its first character, the spelling is no token any more.
    let places = tokens.ids.iter().zip(&tokens.starts);
    let control = places.filter(|(id, _)| tokenizer.is_special(**id));
    let parted = control.filter_map(|(_, start)| {
        let length = text.get(*start..)?.chars().next()?.len_utf8();
        Some(start + length).filter(|place| *place < text.len())
    });
    let mut places: Vec<usize> = parted.collect();
    if places.is_empty() {
        return Ok(tokens);
    }
    places.push(text.len());
    tokens = Tokens::default();
    let mut at = 0;
    for end in places {
        let piece = as_plain_text(text.get(at..end).unwrap_or_default(), tokenizer)?;
        tokens.ids.extend(piece.ids);
        tokens
            .starts
            .extend(piece.starts.iter().map(|start| at + start));
        at = end;
    }
    Ok(tokens)
}

fn needed(template: Option<&ChatTemplate>) -> Result<&ChatTemplate> {
    template.ok_or_else(|| Error::Precondition {
        field: "chat template",
        reason: "is missing from this model; send a completion instead of a chat".to_owned(),
    })
}

/// A string that stands in none of the messages.
fn marker(messages: &[ChatMessage]) -> String {
    let taken = |marker: &String| {
        let mut messages = messages.iter();
        messages.any(|message| message.content.contains(marker.as_str()))
    };
    let mut number = 0_u64;
    loop {
        let marker = format!("<addenda documents {number}>");
        if !taken(&marker) {
            return marker;
        }
        number += 1;
    }
}
