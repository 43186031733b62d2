//! The model: whether its files are there, whole and supported.

use addenda_model::{ModelConfig, ModelFiles, catalogue};

use super::Report;
use crate::cli::text::grouped;
use crate::config::{Config, DtypeChoice, format_bytes};

pub(super) fn look(config: &Config, report: &mut Report) {
    let path = match catalogue::resolve(&config.model, &config.cache_dir) {
        Ok(path) => path,
        Err(error) => {
            let mend = if catalogue::catalogue()
                .iter()
                .any(|one| one.name == config.model)
            {
                format!("addenda model fetch {}", config.model)
            } else {
                "set model to a directory, a .gguf file or a name of `addenda model list`"
                    .to_owned()
            };
            return report.problem("files", error.to_string(), mend);
        }
    };
    let files = match ModelFiles::open(&path) {
        Ok(files) => files,
        Err(error) => {
            let mend =
                "fetch or copy it again; `addenda model list` shows models that are known to work";
            return report.problem("files", format!("{}: {error}", path.display()), mend);
        }
    };
    report.ok("files", path.display().to_string());
    let model = &files.config;
    report.ok(
        "configuration",
        format!(
            "{}, {} layers of {}, context of {} tokens",
            model.architecture,
            model.num_layers,
            grouped(model.hidden_size as u64),
            grouped(model.context as u64)
        ),
    );
    tokenizer(&files, report);
    match &files.chat_template {
        Some(_) => report.ok("chat template", "there"),
        None => report.warning(
            "chat template",
            "none: this is a base model",
            "use `addenda ask --raw`, or an instruction-tuned model for chats",
        ),
    }
    weights(config, model, report);
}

/// Encodes and decodes a sentence, which an unfit tokenizer does not survive.
fn tokenizer(files: &ModelFiles, report: &mut Report) {
    const PROBE: &str = "Naïve café, 42 °C.";
    let tokenizer = &files.tokenizer;
    let back = tokenizer
        .encode(PROBE)
        .and_then(|encoding| tokenizer.decode(&encoding.ids));
    match back {
        Ok(text) if text.trim() == PROBE => {
            let size = grouped(tokenizer.vocab_size() as u64);
            report.ok("tokenizer", format!("{size} tokens"));
        }
        Ok(text) => report.problem(
            "tokenizer",
            format!("it turns {PROBE:?} into {text:?}"),
            "the tokenizer's files do not fit this model: fetch it again",
        ),
        Err(error) => report.problem("tokenizer", error.to_string(), "fetch the model again"),
    }
}

fn weights(config: &Config, model: &ModelConfig, report: &mut Report) {
    let width = if config.dtype == DtypeChoice::Bf16 {
        2
    } else {
        4
    };
    let bytes = parameters(model).saturating_mul(width);
    let finding = format!("about {} of memory when loaded", format_bytes(bytes));
    match crate::memory::available() {
        Some(available) if bytes > available => report.problem(
            "memory",
            format!("{finding}, {} available", format_bytes(available)),
            "take a smaller model, dtype = \"bf16\", or a machine with more memory",
        ),
        _ => report.ok("memory", finding),
    }
}

/// Parameters from the configuration, norms and biases left out.
fn parameters(model: &ModelConfig) -> u64 {
    let of = |rows: usize, columns: usize| (rows as u64).saturating_mul(columns as u64);
    let heads = model.num_heads.saturating_mul(model.head_dim);
    let kv_heads = model.num_kv_heads.saturating_mul(model.head_dim);
    let attention = 2 * of(model.hidden_size, heads) + 2 * of(model.hidden_size, kv_heads);
    let mlp = 3 * of(model.hidden_size, model.intermediate_size);
    let embeddings = of(model.vocab_size, model.hidden_size);
    let tables = if model.tied_embeddings { 1 } else { 2 };
    tables * embeddings + (model.num_layers as u64) * (attention + mlp)
}
