//! How packets and the store's figures look.

use addenda_proto::addenda::v1::{PacketRecord, PutDocumentResponse, StatsResponse};

use crate::cli::console::Console;
use crate::cli::error::Result;
use crate::cli::table::{fields, table};
use crate::cli::text::{ago, grouped, short, utc};
use crate::config::format_bytes;

pub(crate) fn list(packets: &[PacketRecord], console: &mut Console) -> Result<()> {
    if console.json() {
        return console.messages("PacketRecord", packets);
    }
    if packets.is_empty() {
        return console.line("No packets.");
    }
    let mut rows = table(&[
        "Packet", "Document", ">Tokens", ">Size", "Dtype", "Pinned", "Used",
    ]);
    for packet in packets {
        rows.add_row([
            short(&packet.id).to_owned(),
            packet.document.clone(),
            grouped(packet.tokens.into()),
            format_bytes(packet.bytes),
            packet.dtype.clone(),
            if packet.pinned { "yes" } else { "" }.to_owned(),
            ago(packet.last_used_at_ms),
        ]);
    }
    console.rows(rows)
}

pub(crate) fn one(packet: &PacketRecord, console: &mut Console) -> Result<()> {
    if console.json() {
        return console.message("PacketRecord", packet);
    }
    console.line(&fields(&[
        ("packet", packet.id.clone()),
        ("document", packet.document.clone()),
        ("namespace", packet.namespace.clone()),
        ("tokens", grouped(packet.tokens.into())),
        ("size", format_bytes(packet.bytes)),
        ("dtype", packet.dtype.clone()),
        (
            "pinned",
            if packet.pinned { "yes" } else { "no" }.to_owned(),
        ),
        ("made", utc(packet.created_at_ms)),
        ("last used", utc(packet.last_used_at_ms)),
        ("key", packet.key.clone()),
        ("revision", packet.revision.clone()),
        ("source", packet.source.clone()),
    ]))
}

pub(crate) fn put(answer: &PutDocumentResponse, console: &mut Console) -> Result<()> {
    if console.json() {
        return console.message("PutDocumentResponse", answer);
    }
    let packet = answer.packet.clone().unwrap_or_default();
    let done = if answer.created {
        "made"
    } else {
        "there already:"
    };
    console.line(&format!(
        "{done} {}  {}  {} tokens, {}, {:.2} s",
        short(&packet.id),
        packet.document,
        grouped(packet.tokens.into()),
        format_bytes(packet.bytes),
        answer.seconds
    ))
}

pub(crate) fn stats(stats: &StatsResponse, console: &mut Console) -> Result<()> {
    if console.json() {
        return console.message("StatsResponse", stats);
    }
    let asked = stats.hits + stats.misses;
    let share = if asked == 0 {
        "none asked for yet".to_owned()
    } else {
        format!("{:.0} % found", 100.0 * stats.hits as f64 / asked as f64)
    };
    console.line(&fields(&[
        ("packets", grouped(stats.packets)),
        ("of earlier revisions", grouped(stats.stale_packets)),
        ("live", format_bytes(stats.live_bytes)),
        ("on disk", format_bytes(stats.disk_bytes)),
        ("mapped", format_bytes(stats.mapped_bytes)),
        (
            "hits, misses",
            format!(
                "{}, {} ({share})",
                grouped(stats.hits),
                grouped(stats.misses)
            ),
        ),
        ("running jobs", grouped(stats.running_jobs.len() as u64)),
    ]))
}
