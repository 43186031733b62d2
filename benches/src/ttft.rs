//! Time to the first token: from packets against full prefill, as a client of the daemon sees it.
//!
//! Each pair of figures comes from a daemon that was started for it and has read no packet yet:
//! finding, verifying and mapping the packets, tokenising and the wire are all in the figure.

use std::time::Duration;

use addenda_model::ModelFiles;
use addenda_proto::addenda::v1::{
    Completion, GenerateRequest, Mode, PutDocumentRequest, generate_request::Prompt,
};
use serde_json::json;

use crate::daemon::Daemon;
use crate::error::{Error, Result};
use crate::prefill::median;
use crate::text;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A model's path or its name in the catalogue.
    #[arg(long, default_value = "smollm2-135m")]
    model: String,
    /// Number of documents.
    #[arg(long, default_value_t = 8)]
    packets: usize,
    /// Tokens of each.
    #[arg(long, default_value_t = 512)]
    packet_tokens: usize,
    /// Tokens of the question.
    #[arg(long, default_value_t = 32)]
    question_tokens: usize,
    /// Fresh daemons to measure; the median is shown. At least 5.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Leave out full prefill: only packets are measured.
    #[arg(long)]
    no_full: bool,
    /// Further flags of `addenda serve`, such as `--serve-flag=--dtype=f32`.
    #[arg(long)]
    serve_flag: Vec<String>,
    /// One line of JSON (there is no other form yet).
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<serde_json::Value> {
    crate::block_on(measure(arguments))
}

async fn measure(arguments: &Arguments) -> Result<serde_json::Value> {
    let folder = crate::temporary_folder()?;
    let path = crate::resolve(&arguments.model)?;
    let tokenizer = ModelFiles::open(&path)?.tokenizer;
    let question = text::prose(&tokenizer, arguments.question_tokens, 0)?;
    // One packet a document, however long.
    let mut flags = vec![format!(
        "--packet-tokens={}",
        arguments.packet_tokens.max(32)
    )];
    flags.extend(arguments.serve_flag.iter().cloned());
    let start = || Daemon::start(&arguments.model, folder.path(), &flags);

    let daemon = start().await?;
    // The daemon closes each document with an empty line: a token or two.
    let own_tokens = arguments.packet_tokens.saturating_sub(2).max(1);
    let mut names = Vec::new();
    let (mut loaded_bytes, mut packets) = (0, 0);
    for index in 0..arguments.packets {
        let name = format!("document-{index}");
        let request = PutDocumentRequest {
            name: name.clone(),
            text: text::prose(&tokenizer, own_tokens, 1 + index as u64)?,
            ..PutDocumentRequest::default()
        };
        let put = daemon.packets().put_document(request).await?.into_inner();
        packets += put.packets.len();
        loaded_bytes += put.packets.iter().map(|packet| packet.bytes).sum::<u64>();
        names.push(name);
        eprint!("\rdocuments {}/{}", index + 1, arguments.packets);
    }
    eprintln!();
    drop(daemon);

    let mut packet = Vec::new();
    let mut full = Vec::new();
    let mut seen = (0, 0);
    for run in 0..arguments.runs.max(5) {
        let daemon = start().await?;
        let ask = |mode: Mode| GenerateRequest {
            prompt: Some(Prompt::Completion(Completion {
                text: question.clone(),
            })),
            documents: names.clone(),
            mode: mode.into(),
            max_tokens: 1,
            ..GenerateRequest::default()
        };
        let from_packets = daemon.generate(ask(Mode::Packet)).await?;
        if from_packets.summary.mode() != Mode::Packet {
            return Err(Error::Daemon("the daemon did not use packets".to_owned()));
        }
        packet.push(milliseconds(from_packets.ttft));
        seen = (
            from_packets.summary.packet_tokens,
            from_packets.summary.computed_tokens,
        );
        if !arguments.no_full {
            full.push(milliseconds(daemon.generate(ask(Mode::Full)).await?.ttft));
        }
        eprint!("\rdaemons {}/{}", run + 1, arguments.runs.max(5));
    }
    eprintln!();
    let packet_ms = median(packet.iter().copied());
    let full_ms = (!arguments.no_full).then(|| median(full.iter().copied()));
    Ok(json!({
        "model": arguments.model, "packets": packets,
        "packet_tokens": arguments.packet_tokens, "question_tokens": arguments.question_tokens,
        "full_ms": full_ms, "packet_ms": packet_ms, "ratio": full_ms.map(|full| full / packet_ms),
        "loaded_bytes": loaded_bytes, "runs": packet.len(),
        "tokens_from_packets": seen.0, "tokens_computed": seen.1,
        "all_packet_ms": packet, "all_full_ms": full,
    }))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
