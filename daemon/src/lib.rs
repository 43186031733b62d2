//! The daemon and the command line of Addenda.

pub mod cli;
pub mod config;
