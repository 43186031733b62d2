//! The command line: `addenda serve`, and everything that talks to a running daemon.
//!
//! Owns the grammar of the commands and the words that people read. Reaches the daemon over gRPC
//! only and never opens its store; `doctor` looks at files and changes none, and `store rebuild` and
//! `store restore` work on a data directory that no daemon has.

mod adapter;
mod ask;
mod client;
mod config;
mod console;
mod demo;
mod doctor;
mod error;
mod fact;
mod ids;
mod job;
mod json;
mod model;
mod packet;
mod serve;
mod settings;
mod store;
mod table;
mod text;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use self::console::Console;
pub use self::error::{Error, Result};
use self::settings::GlobalArgs;
use crate::config::{Inputs, Loaded};

/// Keeps a language model up to date: documents become packets, facts become edits.
#[derive(Debug, Parser)]
#[command(
    name = "addenda",
    version,
    arg_required_else_help = true,
    max_term_width = 100
)]
#[command(
    after_help = "Settings: defaults < configuration file < ADDENDA_* variables < flags; \
                        `addenda config print` shows each value and where it came from."
)]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a model until SIGINT or SIGTERM.
    Serve(serve::ServeArgs),
    /// Ask the model, with or without documents; streams the answer.
    Ask(ask::AskArgs),
    /// Add, list and retire facts in the model's weights.
    #[command(subcommand)]
    Fact(fact::FactCommand),
    /// Turn documents into packets, and look after them.
    #[command(subcommand)]
    Packet(packet::PacketCommand),
    /// Train adapters, and choose which one packets are made with.
    #[command(subcommand)]
    Adapter(adapter::AdapterCommand),
    /// Verify, compact, copy and restore what is in the data directory.
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// See and stop long work.
    #[command(subcommand)]
    Job(job::JobCommand),
    /// See which model is served.
    #[command(subcommand)]
    Model(model::ModelCommand),
    /// Show the configuration.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Look for what keeps Addenda from working here, and say how to mend it.
    Doctor(doctor::DoctorArgs),
    /// Show what Addenda does, on a small real model.
    Demo(demo::DemoArgs),
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let mut console = Console::of_process();
    match run(std::env::args_os(), Inputs::from_process, &mut console) {
        Ok(code) => code,
        Err(error) => console.fail(&error),
    }
}

/// Runs one command.
///
/// `inputs` makes the sources of the configuration from the named file and the flags: the
/// process's own, or those of a test.
///
/// # Errors
/// What went wrong, as one sentence with a hint. Help and usage errors are printed and return
/// their exit code.
pub fn run(
    arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    inputs: impl FnOnce(
        Option<std::path::PathBuf>,
        Vec<(&'static str, String)>,
    ) -> crate::config::Result<Inputs>,
    console: &mut Console,
) -> Result<ExitCode> {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return console.usage(&error),
    };
    let mut flags = cli.global.flags();
    flags.extend(cli.command.flags());
    let inputs = inputs(cli.global.config.clone(), flags)?;
    console.set_plain(inputs.environment.contains_key("NO_COLOR"));
    console.set_json(cli.global.json);
    let loaded = crate::config::load(&inputs)?;
    cli.command.run(&loaded, console)
}

impl Command {
    fn flags(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Serve(args) => args.flags(),
            Self::Config(command) => command.flags(),
            Self::Store(command) => command.flags(),
            Self::Doctor(args) => args.flags(),
            _ => Vec::new(),
        }
    }

    fn run(self, loaded: &Loaded, console: &mut Console) -> Result<ExitCode> {
        let connect = &loaded.config.connect;
        match self {
            Self::Serve(args) => args.run(loaded, console),
            Self::Config(command) => command.run(loaded, console),
            Self::Doctor(args) => args.run(loaded, console),
            Self::Demo(args) => args.run(&loaded.config, console),
            Self::Model(command) => command.run(&loaded.config, console),
            Self::Store(command) => command.run(&loaded.config, console),
            Self::Ask(args) => client::block_on(args.run(connect, console)),
            Self::Fact(command) => client::block_on(command.run(connect, console)),
            Self::Packet(command) => client::block_on(command.run(connect, console)),
            Self::Adapter(command) => client::block_on(command.run(connect, console)),
            Self::Job(command) => client::block_on(command.run(connect, console)),
        }
    }
}
