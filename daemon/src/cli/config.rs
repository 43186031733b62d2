//! `addenda config`: what is set, and where each value came from.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;

use super::console::Console;
use super::error::Result;
use super::settings::ServerArgs;
use super::table::table;
use crate::config::{KEYS, Key, Loaded};

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Show every setting, its value and where it came from
    ///
    /// With --json: one object a line with `key`, `value`, `source` and `help`.
    Print {
        #[command(flatten)]
        settings: ServerArgs,
        /// Print a commented TOML file with these values instead
        #[arg(long, conflicts_with = "json")]
        toml: bool,
    },
}

impl ConfigCommand {
    pub(crate) fn flags(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Print { settings, .. } => settings.flags(),
        }
    }

    pub(crate) fn run(&self, loaded: &Loaded, console: &mut Console) -> Result<ExitCode> {
        let Self::Print { toml, .. } = self;
        if console.json() {
            print_json(loaded, console)?;
        } else if *toml {
            print_toml(loaded, console)?;
        } else {
            print_table(loaded, console)?;
        }
        for warning in &loaded.warnings {
            console.note(&format!("warning: {warning}"))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn help(key: &str) -> &'static str {
    Key::find(key).map_or("", |key| key.help)
}

fn print_json(loaded: &Loaded, console: &mut Console) -> Result<()> {
    for setting in &loaded.settings {
        let object = json!({
            "key": setting.key,
            "value": setting.value,
            "source": setting.source.to_string(),
            "help": help(setting.key),
        });
        console.line(&object.to_string())?;
    }
    Ok(())
}

fn print_table(loaded: &Loaded, console: &mut Console) -> Result<()> {
    let mut rows = table(&["Setting", "Value", "From", "What it is"]);
    for setting in &loaded.settings {
        rows.add_row([
            setting.key,
            &setting.value,
            &setting.source.to_string(),
            help(setting.key),
        ]);
    }
    console.rows(rows)?;
    match &loaded.file {
        Some(file) => console.line(&format!("File: {}", file.display())),
        None => console.line("File: none; `addenda config print --toml` writes one to begin with"),
    }
}

fn print_toml(loaded: &Loaded, console: &mut Console) -> Result<()> {
    use crate::config::{KeyKind, Source};
    for key in KEYS {
        let Some(setting) = loaded.settings.iter().find(|one| one.key == key.name) else {
            continue;
        };
        let value = match key.kind {
            KeyKind::Number | KeyKind::Switch => setting.value.clone(),
            _ => toml::Value::String(setting.value.clone()).to_string(),
        };
        // Defaults stay comments, so that a later version's better default is not held back.
        let comment = match setting.source {
            Source::Default | Source::Derived(_) => "# ",
            _ => "",
        };
        console.line(&format!(
            "# {}\n{comment}{} = {value}\n",
            key.help, key.name
        ))?;
    }
    Ok(())
}
