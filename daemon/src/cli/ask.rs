//! `addenda ask`: a question, its answer as it comes, and how it was made.

use std::io::Read;
use std::process::ExitCode;

use addenda_proto::addenda::v1 as wire;
use clap::{Args, ValueEnum};
use serde_json::json;
use wire::generate_request::Prompt;
use wire::generate_response::Event;

use super::client::Client;
use super::console::Console;
use super::error::{Error, Result};
use super::json::Descriptors;
use super::text::{count, grouped, short};

/// Ask the model, with or without documents.
///
/// The answer goes to standard output as it comes; how it was made goes to standard error.
/// With --json: one object with `answer` and `summary`.
#[derive(Debug, Args)]
pub(crate) struct AskArgs {
    /// The question; `-` reads it from standard input
    #[arg(required = true, value_name = "TEXT")]
    text: Vec<String>,
    /// Answer from this document (its name or a packet's id); repeat for more, in order
    #[arg(long = "doc", value_name = "NAME")]
    documents: Vec<String>,
    /// How the documents are used
    #[arg(long, value_enum, default_value_t = ModeArg::Auto)]
    mode: ModeArg,
    /// With --mode link: tokens of each document that are computed [default: 32]
    #[arg(long, value_name = "K")]
    link_tokens: Option<u32>,
    /// With --mode blend: share of the documents' tokens that is computed, 0 to 1 [default: 0.15]
    #[arg(long, value_name = "R")]
    blend_share: Option<f32>,
    /// With --mode auto: the least certified agreement with full prefill, 0 to 1 [default: the daemon's]
    #[arg(
        long,
        value_name = "A",
        default_value_t = 0.0,
        hide_default_value = true
    )]
    min_agreement: f32,
    /// Continue the text as it stands instead of answering it as a chat turn
    #[arg(long)]
    raw: bool,
    /// A system message before the question
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// Whose documents are meant
    #[arg(long, value_name = "NAME", default_value = "default")]
    namespace: String,
    #[command(flatten)]
    sampling: SamplingArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling")]
struct SamplingArgs {
    /// Tokens of the answer at most [default: the daemon's]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    max_tokens: u32,
    /// End before this string; repeat for more
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// 0 takes the likeliest token each time; up to 2
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Only the K likeliest tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: u32,
    /// Only the likeliest tokens that together reach this probability; 0 keeps all
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    top_p: f32,
    /// Only tokens with at least this share of the likeliest one's probability; 0 keeps all
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// Make tokens that were there already less likely; 1 is none, up to 2
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// The same seed gives the same answer on the same machine
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Follow N continuations at once and take the likeliest as a whole; 16 at most
    #[arg(
        long = "beams",
        value_name = "N",
        default_value_t = 0,
        hide_default_value = true
    )]
    num_beams: u32,
    /// With --beams: how much longer continuations are preferred, 0 to 4 [default: 1]
    #[arg(long, value_name = "P")]
    length_penalty: Option<f32>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum ModeArg {
    /// The cheapest mode that is certified to agree with full prefill, else full
    Auto,
    /// Compute everything; exact
    Full,
    /// Take the documents from packets; approximate
    Packet,
    /// Take them from packets, but compute the first tokens of each; approximate
    Link,
    /// Take them from packets, but compute the tokens that deviate most; approximate
    Blend,
    /// Take them from one packet of all of them in this order, made at the first question; exact
    Preload,
}

impl ModeArg {
    pub(crate) fn wire(self) -> wire::Mode {
        match self {
            Self::Auto => wire::Mode::Auto,
            Self::Full => wire::Mode::Full,
            Self::Packet => wire::Mode::Packet,
            Self::Link => wire::Mode::Link,
            Self::Blend => wire::Mode::Blend,
            Self::Preload => wire::Mode::Preload,
        }
    }
}

impl AskArgs {
    pub(crate) async fn run(self, connect: &str, console: &mut Console) -> Result<ExitCode> {
        let client = Client::ready(connect, console).await?;
        let request = self.request()?;
        let json = console.json();
        let answered = generate(&client, request, |piece| {
            if json { Ok(()) } else { console.stream(piece) }
        })
        .await?;
        if json {
            let summary = Descriptors::load()?.value("Summary", &answered.summary)?;
            let object = json!({ "answer": answered.text, "summary": summary });
            console.line(&object.to_string())?;
        } else {
            console.line("")?;
            let how = console.dim(&how_made(&answered.summary));
            console.note(&how)?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn request(self) -> Result<wire::GenerateRequest> {
        let text = question(&self.text)?;
        let prompt = if self.raw {
            Prompt::Completion(wire::Completion { text })
        } else {
            let system = self.system.map(|content| turn("system", content));
            let messages = system.into_iter().chain([turn("user", text)]).collect();
            Prompt::Chat(wire::Chat { messages })
        };
        Ok(wire::GenerateRequest {
            prompt: Some(prompt),
            documents: self.documents,
            mode: self.mode.wire().into(),
            sampling: Some(wire::Sampling {
                temperature: self.sampling.temperature,
                top_k: self.sampling.top_k,
                top_p: self.sampling.top_p,
                min_p: self.sampling.min_p,
                repetition_penalty: self.sampling.repetition_penalty,
                seed: self.sampling.seed,
            }),
            max_tokens: self.sampling.max_tokens,
            stop: self.sampling.stop,
            namespace: self.namespace,
            link_tokens: self.link_tokens,
            blend_share: self.blend_share,
            min_agreement: self.min_agreement,
            num_beams: self.sampling.num_beams,
            length_penalty: self.sampling.length_penalty,
            ..wire::GenerateRequest::default()
        })
    }
}

/// One turn of a chat.
pub(crate) fn turn(role: &str, content: String) -> wire::ChatMessage {
    wire::ChatMessage {
        role: role.to_owned(),
        content,
    }
}

fn question(words: &[String]) -> Result<String> {
    let text = words.join(" ");
    if text != "-" {
        return Ok(text);
    }
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .map_err(|source| Error::File {
            path: "-".into(),
            source,
        })?;
    Ok(text.trim_end().to_owned())
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) text: String,
    pub(crate) summary: wire::Summary,
}

/// Sends one request and hands out the answer's text piece by piece.
///
/// # Errors
/// The daemon's status, or what `each` returned.
pub(crate) async fn generate(
    client: &Client,
    request: wire::GenerateRequest,
    mut each: impl FnMut(&str) -> Result<()>,
) -> Result<Answered> {
    let mut events = client.generation().generate(request).await?.into_inner();
    let mut text = String::new();
    let mut summary = None;
    while let Some(response) = events.message().await? {
        match response.event {
            Some(Event::Token(token)) => {
                text.push_str(&token.text);
                each(&token.text)?;
            }
            Some(Event::Summary(end)) => summary = Some(end),
            None => {}
        }
    }
    let summary = summary.ok_or(Error::Incomplete {
        what: "the answer's summary",
    })?;
    Ok(Answered { text, summary })
}

/// One line: how an answer was made.
pub(crate) fn how_made(summary: &wire::Summary) -> String {
    let mut parts = vec![
        mode_name(summary.mode()).to_owned(),
        if summary.exact {
            "exact"
        } else {
            "approximate"
        }
        .to_owned(),
        format!(
            "{} tokens from packets, {} computed, {} generated",
            grouped(summary.packet_tokens.into()),
            grouped(summary.computed_tokens.into()),
            grouped(summary.generated_tokens.into())
        ),
        match summary.prefix_tokens {
            0 => String::new(),
            kept => format!("{} kept from an earlier request", grouped(kept.into())),
        },
        format!("first token after {:.0} ms", summary.ttft_ms),
        format!("revision {}", short(&summary.revision)),
        count(summary.active_facts.into(), "fact"),
    ];
    match summary.finish_reason() {
        wire::FinishReason::Length => parts.push("cut at the token limit".to_owned()),
        wire::FinishReason::Stop => parts.push("ended by a stop string".to_owned()),
        wire::FinishReason::End | wire::FinishReason::Unspecified => {}
    }
    if !summary.mode_reason.is_empty() {
        parts.push(summary.mode_reason.clone());
    }
    parts.retain(|part| !part.is_empty());
    parts.join(" · ")
}

/// A mode's name as arguments spell it.
pub(crate) fn mode_name(mode: wire::Mode) -> &'static str {
    match mode {
        wire::Mode::Unspecified => "unknown",
        wire::Mode::Auto => "auto",
        wire::Mode::Full => "full",
        wire::Mode::Packet => "packet",
        wire::Mode::Link => "link",
        wire::Mode::Blend => "blend",
        wire::Mode::Preload => "preload",
    }
}
