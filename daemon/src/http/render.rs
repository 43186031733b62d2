//! Answers as OpenAI's clients read them.
//!
//! Owns the JSON of whole answers and of pieces. How an answer was made (mode, exactness, tokens from
//! packets, facts) stands beside it in `addenda`, as in gRPC's summary.

use addenda_proto::addenda::v1::{FinishReason, Summary, Token};
use serde_json::{Value, json};

use crate::grpc::generation::drawn_seed;
use crate::http::ask::Asked;
use crate::http::choices::Whole;
use crate::jobs::now_ms;

/// Which endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Chat,
    Completion,
}

/// What stands on every answer and piece of one request.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) form: Form,
    id: String,
    created: u64,
    model: String,
    logprobs: bool,
}

impl Head {
    pub(crate) fn new(form: Form, model: String, asked: &Asked) -> Self {
        let prefix = match form {
            Form::Chat => "chatcmpl",
            Form::Completion => "cmpl",
        };
        Self {
            form,
            id: format!("{prefix}-{:016x}", drawn_seed()),
            created: now_ms() / 1000,
            model,
            logprobs: asked.logprobs,
        }
    }

    /// An object with these choices.
    fn object(&self, is_piece: bool, choices: &[Value]) -> Value {
        let object = match (self.form, is_piece) {
            (Form::Chat, false) => "chat.completion",
            (Form::Chat, true) => "chat.completion.chunk",
            (Form::Completion, _) => "text_completion",
        };
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model,
            "choices": choices,
        })
    }

    fn logprobs(&self, tokens: &[Token]) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        match self.form {
            Form::Chat => {
                let content: Vec<Value> = tokens.iter().map(chat_token).collect();
                json!({ "content": content, "refusal": null })
            }
            Form::Completion => completion_tokens(tokens),
        }
    }
}

/// All answers to a request that was not streamed.
pub(crate) fn whole(head: &Head, answers: &[Whole]) -> Value {
    let choices = answers.iter().enumerate().map(|(index, answer)| {
        let text: String = answer
            .tokens
            .iter()
            .map(|token| token.text.as_str())
            .collect();
        let logprobs = head.logprobs(&answer.tokens);
        let finish = finish_reason(&answer.summary);
        match head.form {
            Form::Chat => json!({
                "index": index, "finish_reason": finish, "logprobs": logprobs,
                "message": { "role": "assistant", "content": text, "refusal": null },
            }),
            Form::Completion => json!({
                "index": index, "finish_reason": finish, "logprobs": logprobs, "text": text,
            }),
        }
    });
    let summaries: Vec<&Summary> = answers.iter().map(|answer| &answer.summary).collect();
    let mut object = head.object(false, &choices.collect::<Vec<_>>());
    if let Some(fields) = object.as_object_mut() {
        fields.insert("usage".to_owned(), usage(&summaries));
        let made: Vec<Value> = summaries.iter().map(|summary| how(summary)).collect();
        fields.insert("addenda".to_owned(), json!(made));
    }
    object
}

/// One token of a stream.
pub(crate) fn piece(head: &Head, index: usize, token: &Token, is_first: bool) -> Value {
    let logprobs = head.logprobs(std::slice::from_ref(token));
    let choice = match head.form {
        Form::Chat => {
            let delta = if is_first {
                json!({ "role": "assistant", "content": token.text })
            } else {
                json!({ "content": token.text })
            };
            json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": null })
        }
        Form::Completion => json!({
            "index": index, "text": token.text, "logprobs": logprobs, "finish_reason": null,
        }),
    };
    head.object(true, &[choice])
}

/// The end of one answer in a stream.
pub(crate) fn last_piece(head: &Head, index: usize, summary: &Summary) -> Value {
    let finish = finish_reason(summary);
    let choice = match head.form {
        Form::Chat => json!({
            "index": index, "delta": {}, "logprobs": null, "finish_reason": finish,
        }),
        Form::Completion => json!({
            "index": index, "text": "", "logprobs": null, "finish_reason": finish,
        }),
    };
    let mut object = head.object(true, &[choice]);
    if let Some(fields) = object.as_object_mut() {
        fields.insert("addenda".to_owned(), json!([how(summary)]));
    }
    object
}

/// What a stream says of its tokens where that was asked for.
pub(crate) fn usage_piece(head: &Head, summaries: &[Summary]) -> Value {
    let mut object = head.object(true, &[]);
    if let Some(fields) = object.as_object_mut() {
        let summaries: Vec<&Summary> = summaries.iter().collect();
        fields.insert("usage".to_owned(), usage(&summaries));
    }
    object
}

/// Tokens of all answers; the prompt counts once. Cached are those that were not computed for it.
fn usage(summaries: &[&Summary]) -> Value {
    let prompt = summaries.first().map_or(0, |first| first.prompt_tokens);
    let cached = summaries
        .first()
        .map_or(0, |first| first.packet_tokens + first.prefix_tokens);
    let generated: u32 = summaries
        .iter()
        .map(|summary| summary.generated_tokens)
        .sum();
    json!({
        "prompt_tokens": prompt, "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": { "cached_tokens": cached.min(prompt) },
    })
}

/// How an answer was made.
fn how(summary: &Summary) -> Value {
    let mode = summary.mode().as_str_name();
    json!({
        "mode": mode.trim_start_matches("MODE_").to_lowercase(), "mode_reason": summary.mode_reason,
        "exact": summary.exact, "packet_tokens": summary.packet_tokens,
        "prefix_tokens": summary.prefix_tokens, "computed_tokens": summary.computed_tokens,
        "ttft_ms": summary.ttft_ms, "revision": summary.revision,
        "active_facts": summary.active_facts, "seed": summary.seed,
        "adapter": summary.adapter, "certificate": summary.certificate,
    })
}

fn finish_reason(summary: &Summary) -> &'static str {
    match summary.finish_reason() {
        FinishReason::Length => "length",
        _ => "stop",
    }
}

fn chat_token(token: &Token) -> Value {
    let one = |text: &str, logprob: f32| json!({ "token": text, "logprob": logprob, "bytes": text.as_bytes() });
    let top = token.top.iter().map(|top| one(&top.text, top.logprob));
    let mut value = one(&token.text, token.logprob.unwrap_or_default());
    if let Some(fields) = value.as_object_mut() {
        fields.insert("top_logprobs".to_owned(), json!(top.collect::<Vec<_>>()));
    }
    value
}

fn completion_tokens(tokens: &[Token]) -> Value {
    let mut offset = 0;
    let mut offsets = Vec::with_capacity(tokens.len());
    let mut tops = Vec::with_capacity(tokens.len());
    for token in tokens {
        offsets.push(offset);
        offset += token.text.chars().count();
        let top = token.top.iter();
        let top: serde_json::Map<String, Value> = top
            .map(|top| (top.text.clone(), json!(top.logprob)))
            .collect();
        tops.push(top);
    }
    let texts: Vec<&str> = tokens.iter().map(|token| token.text.as_str()).collect();
    let logprobs: Vec<Option<f32>> = tokens.iter().map(|token| token.logprob).collect();
    json!({
        "tokens": texts, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets,
    })
}
