//! How packets and the store's figures look.

use addenda_proto::addenda::v1::{PacketRecord, PutDocumentResponse, StatsResponse};

use crate::cli::console::Console;
use crate::cli::error::Result;
use crate::cli::table::{fields, table};
use crate::cli::text::{ago, count, grouped, short, utc};
use crate::config::format_bytes;

pub(crate) fn list(packets: &[PacketRecord], console: &mut Console) -> Result<()> {
    if console.json() {
        return console.messages("PacketRecord", packets);
    }
    if packets.is_empty() {
        return console.line("No packets.");
    }
    let mut rows = table(&[
        "Packet", "Document", "Part", ">Tokens", ">Size", "Dtype", "Pinned", "Used",
    ]);
    for packet in packets {
        rows.add_row([
            short(&packet.id).to_owned(),
            packet.document.clone(),
            part(packet),
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
        ("part", part(packet)),
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

/// "2/5" for the second of five parts; empty where the packet is all of its document.
fn part(packet: &PacketRecord) -> String {
    if packet.parts > 1 {
        format!("{}/{}", packet.part + 1, packet.parts)
    } else {
        String::new()
    }
}

pub(crate) fn put(answer: &PutDocumentResponse, console: &mut Console) -> Result<()> {
    if console.json() {
        return console.message("PutDocumentResponse", answer);
    }
    let packet = answer.packet.clone().unwrap_or_default();
    let parts = match answer.packets.len() {
        0 | 1 => String::new(),
        several => format!("{}, ", count(several as u64, "packet")),
    };
    let sum = |of: fn(&PacketRecord) -> u64| answer.packets.iter().map(of).sum();
    let done = if answer.created {
        "made"
    } else {
        "there already:"
    };
    console.line(&format!(
        "{done} {}  {}  {parts}{} tokens, {}, {:.2} s",
        short(&packet.id),
        packet.document,
        grouped(sum(|packet| packet.tokens.into())),
        format_bytes(sum(|packet| packet.bytes)),
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
