//! Requests as OpenAI's clients write them, and what they become.
//!
//! Owns the fields. One that is unknown is refused by serde, one that is known and can't be done is
//! refused here; those that change nothing about an answer (`user`, `metadata`, …) are read past.

use addenda_proto::addenda::v1::generate_request::Prompt;
use addenda_proto::addenda::v1::{Chat, ChatMessage, Completion, GenerateRequest, Mode, Sampling};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::http::error::Refused;
use crate::http::render::Form;

/// Answers to one request, at most.
const MOST_CHOICES: u32 = 16;

/// What is asked for, whatever the endpoint.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) model: String,
    /// One for each answer.
    pub(crate) requests: Vec<GenerateRequest>,
    pub(crate) stream: bool,
    /// Whether a stream ends with a word about its tokens.
    pub(crate) usage: bool,
    pub(crate) logprobs: bool,
}

/// The fields of both endpoints.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    model: String,
    messages: Option<Vec<Message>>,
    prompt: Option<OneOrMore>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    n: Option<u32>,
    #[serde(default)]
    stream: bool,
    stream_options: Option<StreamOptions>,
    stop: Option<OneOrMore>,
    seed: Option<i64>,
    logprobs: Option<Logprobs>,
    top_logprobs: Option<u32>,
    /// Documents and how they are read; ours.
    addenda: Option<Extra>,

    // What is known and can't be done.
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    best_of: Option<u32>,
    echo: Option<bool>,
    suffix: Option<Value>,
    logit_bias: Option<Value>,
    response_format: Option<Value>,
    tools: Option<Value>,
    tool_choice: Option<Value>,
    functions: Option<Value>,

    // What changes nothing about an answer.
    #[serde(rename = "user")]
    _user: Option<IgnoredAny>,
    #[serde(rename = "metadata")]
    _metadata: Option<IgnoredAny>,
    #[serde(rename = "store")]
    _store: Option<IgnoredAny>,
    #[serde(rename = "service_tier")]
    _service_tier: Option<IgnoredAny>,
    #[serde(rename = "parallel_tool_calls")]
    _parallel_tool_calls: Option<IgnoredAny>,
}

/// A turn.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    role: String,
    content: Content,
    #[serde(rename = "name")]
    _name: Option<IgnoredAny>,
    #[serde(rename = "refusal")]
    _refusal: Option<IgnoredAny>,
}

/// A turn's words: a text, or parts of one.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    text: String,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

/// `true` in a chat, a number in a completion.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Logprobs {
    Wanted(bool),
    Top(u32),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
    #[serde(rename = "include_obfuscation")]
    _include_obfuscation: Option<IgnoredAny>,
}

/// What OpenAI's interface has no words for; the fields are `GenerateRequest`'s.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Extra {
    documents: Vec<String>,
    mode: String,
    namespace: String,
    min_agreement: f32,
    link_tokens: Option<u32>,
    blend_share: Option<f32>,
    top_k: u32,
    min_p: f32,
    repetition_penalty: f32,
    num_beams: u32,
    length_penalty: Option<f32>,
}

impl Request {
    /// Checks what is OpenAI's; the rest is checked where every request is.
    ///
    /// # Errors
    /// A field that can't be done, or one of the other endpoint.
    pub(crate) fn asked(self, form: Form) -> Result<Asked, Refused> {
        self.refuse_what_cannot_be_done()?;
        let logprobs = self.top_logprobs(form)?;
        let extra = self.addenda.unwrap_or_default();
        let prompts = match form {
            Form::Chat => vec![chat(self.messages, self.prompt.is_some())?],
            Form::Completion => texts(self.prompt, self.messages.is_some())?,
        };
        let n = self.n.unwrap_or(1);
        let choices = n.saturating_mul(u32::try_from(prompts.len()).unwrap_or(u32::MAX));
        if n == 0 || choices > MOST_CHOICES {
            return Err(Refused::field(
                "n",
                format!("asks for {choices} answers; 1 to {MOST_CHOICES} can be had at once"),
            ));
        }
        // Beams draw nothing.
        let temperature = if extra.num_beams > 1 { 0.0 } else { 1.0 };
        let temperature = self.temperature.unwrap_or(temperature);
        let mode = mode(&extra.mode)?;
        let request = |prompt: &Prompt, index: u32| GenerateRequest {
            prompt: Some(prompt.clone()),
            documents: extra.documents.clone(),
            mode: mode.into(),
            sampling: Some(Sampling {
                temperature,
                top_k: extra.top_k,
                top_p: self.top_p.unwrap_or(1.0),
                min_p: extra.min_p,
                repetition_penalty: extra.repetition_penalty,
                // Answers to one request differ, and yet come again with the same seed.
                seed: self
                    .seed
                    .map(|seed| seed.cast_unsigned().wrapping_add(index.into())),
            }),
            max_tokens: self.max_completion_tokens.or(self.max_tokens).unwrap_or(0),
            stop: self.stop.as_ref().map_or_else(Vec::new, OneOrMore::list),
            top_logprobs: logprobs.unwrap_or(0),
            namespace: extra.namespace.clone(),
            min_agreement: extra.min_agreement,
            link_tokens: extra.link_tokens,
            blend_share: extra.blend_share,
            num_beams: extra.num_beams,
            length_penalty: extra.length_penalty,
        };
        let each = prompts
            .iter()
            .flat_map(|prompt| (0..n).map(move |index| (prompt, index)));
        let requests = each.map(|(prompt, index)| request(prompt, index));
        Ok(Asked {
            requests: requests.collect(),
            model: self.model,
            stream: self.stream,
            usage: self.stream_options.is_some_and(|wish| wish.include_usage),
            logprobs: logprobs.is_some(),
        })
    }

    fn refuse_what_cannot_be_done(&self) -> Result<(), Refused> {
        let is_set = |value: &Option<Value>| {
            value.as_ref().is_some_and(|value| {
                !matches!(value, Value::Null | Value::Bool(false)) && !is_empty(value)
            })
        };
        let text_only = Some("text");
        let format = self.response_format.as_ref();
        let format = format.map(|format| format.get("type").and_then(Value::as_str));
        let no_tools = self.tool_choice.as_ref().and_then(Value::as_str) == Some("none");
        let refused = [
            (
                "frequency_penalty",
                self.frequency_penalty.is_some_and(|penalty| penalty != 0.0),
            ),
            (
                "presence_penalty",
                self.presence_penalty.is_some_and(|penalty| penalty != 0.0),
            ),
            ("best_of", self.best_of.is_some_and(|best| best > 1)),
            ("echo", self.echo == Some(true)),
            ("suffix", is_set(&self.suffix)),
            ("logit_bias", is_set(&self.logit_bias)),
            (
                "response_format",
                format.is_some_and(|format| format != text_only),
            ),
            ("tools", is_set(&self.tools)),
            ("tool_choice", is_set(&self.tool_choice) && !no_tools),
            ("functions", is_set(&self.functions)),
        ];
        match refused.iter().find(|(_, refused)| *refused) {
            Some((name, _)) => Err(Refused::field(name, "is not supported by this daemon")),
            None => Ok(()),
        }
    }

    /// How many alternatives each token is to have; `None` is without log-probabilities.
    fn top_logprobs(&self, form: Form) -> Result<Option<u32>, Refused> {
        match (form, &self.logprobs, self.top_logprobs) {
            (_, None | Some(Logprobs::Wanted(false)), None) => Ok(None),
            // The token itself is the first alternative, where there is one.
            (Form::Chat, Some(Logprobs::Wanted(true)), top) => Ok(Some(top.unwrap_or(0).max(1))),
            (Form::Completion, Some(Logprobs::Top(top)), None) => Ok(Some((*top).max(1))),
            (Form::Chat, ..) => Err(Refused::field(
                "logprobs",
                "has to be true where top_logprobs is given, and is no number in a chat",
            )),
            (Form::Completion, ..) => Err(Refused::field(
                "logprobs",
                "is a number in a completion, which has no top_logprobs",
            )),
        }
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

impl OneOrMore {
    fn list(&self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text.clone()],
            Self::More(texts) => texts.clone(),
        }
    }
}

fn chat(messages: Option<Vec<Message>>, has_prompt: bool) -> Result<Prompt, Refused> {
    if has_prompt {
        return Err(Refused::field(
            "prompt",
            "is for /v1/completions; a chat has messages",
        ));
    }
    let messages = messages.ok_or_else(|| Refused::field("messages", "is missing"))?;
    let turns = messages.into_iter().map(|message| {
        let content = match message.content {
            Content::Text(text) => text,
            Content::Parts(parts) => {
                if let Some(other) = parts.iter().find(|part| part.kind != "text") {
                    let reason =
                        format!("has a part of type \"{}\"; only text is read", other.kind);
                    return Err(Refused::field("messages", reason));
                }
                parts.into_iter().map(|part| part.text).collect()
            }
        };
        // The newer name of the same role.
        let role = match message.role.as_str() {
            "developer" => "system".to_owned(),
            _ => message.role,
        };
        Ok(ChatMessage { role, content })
    });
    Ok(Prompt::Chat(Chat {
        messages: turns.collect::<Result<_, _>>()?,
    }))
}

fn texts(prompt: Option<OneOrMore>, has_messages: bool) -> Result<Vec<Prompt>, Refused> {
    if has_messages {
        let reason = "is for /v1/chat/completions; a completion has a prompt";
        return Err(Refused::field("messages", reason));
    }
    let prompt = prompt.ok_or_else(|| Refused::field("prompt", "is missing"))?;
    let texts = prompt.list().into_iter();
    Ok(texts
        .map(|text| Prompt::Completion(Completion { text }))
        .collect())
}

fn mode(name: &str) -> Result<Mode, Refused> {
    if name.is_empty() {
        return Ok(Mode::Auto);
    }
    let wire = format!("MODE_{}", name.to_uppercase());
    match Mode::from_str_name(&wire) {
        Some(mode) if mode != Mode::Unspecified => Ok(mode),
        _ => Err(Refused::field(
            "addenda.mode",
            format!(
                "is \"{name}\"; known are {}",
                crate::grpc::mode::NAMES.join(", ")
            ),
        )),
    }
}
