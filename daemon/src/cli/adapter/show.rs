//! Adapters as people read them.

use addenda_proto::addenda::v1::AdapterRecord;

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
            format!("{}+{}", adapter.header_tokens, adapter.trailer_tokens),
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
            "soft tokens",
            format!("{} + {}", adapter.header_tokens, adapter.trailer_tokens),
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

/// After an activation; an empty record is none.
pub(crate) fn activated(adapter: &AdapterRecord, console: &mut Console) -> Result<()> {
    if console.json() {
        return console.message("AdapterRecord", adapter);
    }
    if adapter.id.is_empty() {
        return console.line("No adapter is active: documents become packets as they stand.");
    }
    console.line(&format!(
        "Documents are wrapped in {} ({}) from now on; packets of before are computed anew when asked for.",
        adapter.name,
        short(&adapter.id)
    ))
}
