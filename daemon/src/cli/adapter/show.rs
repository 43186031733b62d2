//! Adapters as people read them.

use addenda_proto::addenda::v1::{AdapterRecord, CertificateRecord};

use crate::cli::ask::mode_name;
use crate::cli::console::Console;
use crate::cli::error::Result;
use crate::cli::table::{fields, table};
use crate::cli::text::{ago, grouped, short, utc};

pub(crate) fn list(adapters: &[AdapterRecord], console: &mut Console) -> Result<()> {
    if console.json() {
        return console.messages("AdapterRecord", adapters);
    }
    if adapters.is_empty() {
        return console.line("No adapters. `addenda adapter train` makes one.");
    }
    let mut rows = table(&[
        "Adapter",
        "Name",
        "Active",
        ">Tokens",
        ">KL without",
        ">KL with",
        ">Samples",
        "Made",
    ]);
    for adapter in adapters {
        rows.add_row([
            short(&adapter.id).to_owned(),
            adapter.name.clone(),
            if adapter.active { "yes" } else { "no" }.to_owned(),
            tokens(adapter, "+"),
            format!("{:.3}", adapter.kl_before),
            format!("{:.3}", adapter.kl_after),
            grouped(adapter.samples),
            ago(adapter.created_at_ms),
        ]);
    }
    console.rows(rows)
}

pub(crate) fn one(adapter: &AdapterRecord, console: &mut Console) -> Result<()> {
    if console.json() {
        return console.message("AdapterRecord", adapter);
    }
    let rows = [
        ("adapter", adapter.id.clone()),
        ("name", adapter.name.clone()),
        (
            "active",
            if adapter.active { "yes" } else { "no" }.to_owned(),
        ),
        (
            match adapter.bridge_tokens {
                0 => "soft tokens",
                _ => "bridge tokens",
            },
            tokens(adapter, " + "),
        ),
        ("base model", adapter.base_fingerprint.clone()),
        (
            "mean KL",
            format!(
                "{:.4} nats without, {:.4} with",
                adapter.kl_before, adapter.kl_after
            ),
        ),
        (
            "training",
            format!(
                "{} samples studied, {} updates",
                grouped(adapter.samples),
                adapter.updates
            ),
        ),
        ("made", utc(adapter.created_at_ms)),
    ];
    console.line(&fields(&rows))
}

/// A bridge's, or those before and behind a document.
fn tokens(adapter: &AdapterRecord, plus: &str) -> String {
    match adapter.bridge_tokens {
        0 => format!("{}{plus}{}", adapter.header_tokens, adapter.trailer_tokens),
        tokens => tokens.to_string(),
    }
}

/// After an activation; an empty record is none.
pub(crate) fn activated(adapter: &AdapterRecord, console: &mut Console) -> Result<()> {
    if console.json() {
        return console.message("AdapterRecord", adapter);
    }
    if adapter.id.is_empty() {
        return console.line("No adapter is active: documents become packets as they stand, and nothing stands behind them.");
    }
    let (name, id) = (&adapter.name, short(&adapter.id));
    console.line(&match adapter.bridge_tokens {
        0 => format!(
            "Documents are wrapped in {name} ({id}) from now on; packets of before are computed anew when asked for."
        ),
        _ => format!("{name} ({id}) stands behind packets from now on; the packets stay as they are."),
    })
}

pub(crate) fn certificates(records: &[CertificateRecord], console: &mut Console) -> Result<()> {
    if console.json() {
        return console.messages("CertificateRecord", records);
    }
    if records.is_empty() {
        return console.line("No valid certificates. `addenda adapter certify` measures.");
    }
    let mut rows = table(&[
        "Certificate",
        "Mode",
        ">Agreement",
        ">at least",
        ">Mean KL",
        ">F1 (full)",
        ">First token (full)",
        ">Samples",
        "Valid",
    ]);
    for record in records {
        let share = record.agreement.unwrap_or_default();
        let f1 = record.f1.zip(record.f1_full);
        rows.add_row([
            short(&record.id).to_owned(),
            mode_name(record.mode()).to_owned(),
            format!("{:.3}", share.value),
            format!("{:.3}", share.low),
            format!("{:.4}", record.mean_kl),
            f1.map(|(f1, full)| format!("{f1:.3} ({full:.3})"))
                .unwrap_or_default(),
            format!("{:.0} ms ({:.0})", record.ttft_ms, record.ttft_full_ms),
            grouped(record.samples.into()),
            match record.valid {
                true => "yes".to_owned(),
                false => format!("no: {}", record.void_reason),
            },
        ]);
    }
    console.rows(rows)
}
