//! The demo's first and second part: documents become packets, and a question is answered three
//! ways.

use std::time::Instant;

use addenda_proto::addenda::v1 as wire;
use wire::generate_request::Prompt;

use super::Stage;
use super::documents::{ANSWER, DOCUMENTS, LEAST_TOKENS, QUESTION};
use crate::cli::ask::{Answered, generate, mode_name, turn};
use crate::cli::client::Client;
use crate::cli::error::Result;
use crate::cli::packet::send_documents;
use crate::cli::table::table;
use crate::cli::text::{first_line, grouped};
use crate::config::format_bytes;

/// Tokens of an answer at most; one sentence is enough.
const ANSWER_TOKENS: u32 = 32;

/// Warms the documents and shows their packets.
pub(crate) async fn warm(client: &Client, stage: &mut Stage<'_>) -> Result<()> {
    stage.heading("1  A folder of documents becomes packets")?;
    let requests = DOCUMENTS.map(|(name, text)| wire::PutDocumentRequest {
        name: name.to_owned(),
        text: text.to_owned(),
        namespace: String::new(),
    });
    let began = Instant::now();
    let documents = tokio_stream::iter(requests);
    let warmed = send_documents(client, documents, DOCUMENTS.len(), stage.console).await?;
    let seconds = began.elapsed().as_secs_f64();
    stage.full_bar("warming", DOCUMENTS.len(), "documents")?;
    let mut rows = table(&["Document", ">Text", ">Tokens", ">Packet"]);
    let (mut tokens, mut bytes) = (0, 0);
    for packet in &warmed.packets {
        let text = DOCUMENTS.iter().find(|(name, _)| *name == packet.document);
        rows.add_row([
            packet.document.clone(),
            format_bytes(text.map_or(0, |(_, text)| text.len() as u64)),
            grouped(packet.tokens.into()),
            format_bytes(packet.bytes),
        ]);
        tokens += u64::from(packet.tokens);
        bytes += packet.bytes;
    }
    stage.table(rows)?;
    stage.claim(
        format!(
            "{} documents, {} tokens, {} of packets, computed once in {seconds:.1} s",
            warmed.packets.len(),
            grouped(tokens),
            format_bytes(bytes)
        ),
        warmed.packets.len() == DOCUMENTS.len() && warmed.refused == 0 && tokens >= LEAST_TOKENS,
    )
}

/// Asks the question without documents, with full prefill and with packets.
pub(crate) async fn three_ways(client: &Client, stage: &mut Stage<'_>) -> Result<()> {
    stage.heading(&format!("2  One question, three ways: {QUESTION}"))?;
    let without = ask(client, false, wire::Mode::Full).await?;
    let full = ask(client, true, wire::Mode::Full).await?;
    let packet = ask(client, true, wire::Mode::Packet).await?;
    let mut rows = table(&[
        "",
        "Answer",
        "Right?",
        ">First token",
        ">Computed",
        ">From packets",
        "Exact?",
    ]);
    for (name, answered) in [
        ("no documents", &without),
        ("full prefill", &full),
        ("packets", &packet),
    ] {
        let summary = &answered.summary;
        rows.add_row([
            format!("{name}\n({})", mode_name(summary.mode())),
            first_line(answered.text.trim(), 200),
            if right(answered) { "yes" } else { "no" }.to_owned(),
            format!("{:.0} ms", summary.ttft_ms),
            grouped(summary.computed_tokens.into()),
            grouped(summary.packet_tokens.into()),
            if summary.exact { "yes" } else { "no" }.to_owned(),
        ]);
    }
    stage.table(rows)?;
    let trained = trained_tokens(client, packet.summary.packets.len()).await?;
    judge(stage, &without, &full, (&packet, trained))
}

fn judge(
    stage: &mut Stage<'_>,
    without: &Answered,
    full: &Answered,
    (packet, trained): (&Answered, u32),
) -> Result<()> {
    stage.claim("the model alone does not know the answer", !right(without))?;
    stage.claim(
        "full prefill computes every token and answers right",
        right(full) && full.summary.exact && full.summary.packet_tokens == 0,
    )?;
    let summary = &packet.summary;
    stage.claim(
        format!(
            "packets: the same {} tokens of context and {} trained ones, {} of all computed, first token {:.0} \
             times sooner",
            grouped(full.summary.prompt_tokens.into()),
            grouped(trained.into()),
            grouped(summary.computed_tokens.into()),
            full.summary.ttft_ms / summary.ttft_ms.max(0.001)
        ),
        summary.mode() == wire::Mode::Packet
            && !summary.exact
            && summary.prompt_tokens == full.summary.prompt_tokens + trained
            && u64::from(summary.packet_tokens) >= LEAST_TOKENS
            && summary.ttft_ms < full.summary.ttft_ms,
    )?;
    let honest = if right(packet) {
        "  Here packets give the right answer too. They stay an approximation: no document sees another."
    } else {
        "  Here packets alone do not give the right answer: each document was read alone, and this\n  \
         small model was not trained for that. `--mode full` is exact."
    };
    let honest = stage.console.dim(honest);
    stage.say(&honest)
}

/// Tokens that the active adapter adds to a context of so many packets: soft ones around each, and those of a bridge.
async fn trained_tokens(client: &Client, packets: usize) -> Result<u32> {
    let list = client.adapters().list(wire::ListAdaptersRequest {}).await?;
    let active = list
        .get_ref()
        .adapters
        .iter()
        .find(|adapter| adapter.active);
    let packets = u32::try_from(packets).unwrap_or(u32::MAX);
    Ok(active.map_or(0, |one| {
        let soft = packets.saturating_mul(one.header_tokens + one.trailer_tokens);
        soft.saturating_add(one.bridge_tokens)
    }))
}

async fn ask(client: &Client, with_documents: bool, mode: wire::Mode) -> Result<Answered> {
    let names = DOCUMENTS.iter().map(|(name, _)| (*name).to_owned());
    let request = wire::GenerateRequest {
        prompt: Some(Prompt::Chat(wire::Chat {
            messages: vec![turn("user", QUESTION.to_owned())],
        })),
        documents: names.filter(|_| with_documents).collect(),
        mode: mode.into(),
        max_tokens: ANSWER_TOKENS,
        stop: vec![".".to_owned()],
        ..wire::GenerateRequest::default()
    };
    generate(client, request, |_| Ok(())).await
}

fn right(answered: &Answered) -> bool {
    answered.text.contains(ANSWER)
}
