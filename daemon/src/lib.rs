//! The daemon and the command line of Addenda.
//!
//! [`server::serve`] runs the daemon: one engine thread that owns libtorch, the packet store, and
//! the gRPC face over both. [`cli::main`] is the command line, which talks to it over gRPC.

pub mod adapters;
mod calendar;
mod certificates;
pub mod cli;
pub mod config;
mod digest;
mod documents;
mod ending;
mod engine;
pub mod error;
mod grpc;
mod http;
mod jobs;
mod limits;
mod memory;
mod metrics;
mod packets;
pub mod primer;
pub mod process;
mod prompt;
pub mod server;
mod shutdown;
mod split;
pub mod telemetry;
mod turns;
mod watchman;
