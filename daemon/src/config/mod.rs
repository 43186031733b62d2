//! The one configuration of the daemon and its command line.
//!
//! Owns every setting: its name, default, check and meaning, and where its value came from
//! (defaults < TOML file < environment `ADDENDA_*` < flags). The environment is read here and
//! nowhere else. Never opens a model, a store or a socket.
//!
//! Invariant: a [`Config`] that exists has passed every check; nobody checks a setting again.

mod check;
mod keys;
mod load;
mod values;

pub use keys::{KEYS, Key, KeyKind};
pub use load::{Inputs, Loaded, Setting, Source, load};
pub use values::{
    AdapterChoice, DeviceChoice, DtypeChoice, FileChoice, WeightsChoice, format_bytes, parse_bytes,
};

use std::net::SocketAddr;
use std::path::PathBuf;

use addenda_cache::StoreOptions;
use addenda_model::Codec;

/// A result whose error is about the configuration.
pub type Result<T> = std::result::Result<T, ConfigError>;

/// Every setting, typed and checked. Made by [`load`] only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// A catalogue name, a Hugging Face directory or a `.gguf` file.
    pub model: String,
    /// Ledger, extents and index. One daemon at a time.
    pub data_dir: PathBuf,
    /// Models, libtorch and second moments: everything here can be made again.
    pub cache_dir: PathBuf,
    /// Where the daemon listens. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Whether `listen` may be an address that other machines reach. There is no TLS yet.
    pub allow_remote: bool,
    /// Where the command line finds the daemon, as `http://HOST:PORT`.
    pub connect: String,
    /// Which device computes.
    pub device: DeviceChoice,
    /// The number format of weights and packets.
    pub dtype: DtypeChoice,
    /// What decode steps read: the weights themselves, or a packed copy.
    pub weights: WeightsChoice,
    /// Threads that compute; 0 takes one a core. [`Config::thread_count`] resolves it.
    pub threads: usize,
    /// Commands that may wait for the engine; one more is refused with RESOURCE_EXHAUSTED.
    pub queue: usize,
    /// Tokens that an answer has at most where the request does not say.
    pub max_tokens: u32,
    /// Tokens that one prefill step computes, so that other sequences get their turn.
    pub prefill_chunk: usize,
    /// The adapter to begin with.
    pub adapter: AdapterChoice,
    /// How facts are written and verified: hyper-parameters and bars, in TOML.
    pub edit_settings: FileChoice,
    /// The documents that packets are computed behind, one a paragraph.
    pub primer: FileChoice,
    /// Tokens that a packet has at most; a longer document is split.
    pub packet_tokens: usize,
    /// How the numbers of new packets are kept.
    pub packet_codec: Codec,
    /// Bytes that packets may take on disk; 0 sets no limit.
    pub max_store_bytes: u64,
    /// Bytes that the packets of one namespace may take; 0 sets no limit.
    pub max_namespace_bytes: u64,
    /// Free bytes of the data directory's file system below which nothing is written.
    pub min_free_bytes: u64,
    /// Bytes of packets that the engine keeps mapped beside those in use.
    pub max_mapped_bytes: u64,
    /// Bytes of KV that running requests and kept beginnings have together at most.
    pub max_kv_bytes: u64,
    /// Bytes of KV that the engine keeps of the beginnings of contexts.
    pub max_prefix_bytes: u64,
    /// Bytes of stored packets that the scrub reads in a second; 0: there is no scrub.
    pub scrub_bytes_per_second: u64,
    /// What is logged, as `tracing` directives: `info`, `warn,addenda=debug`.
    pub log: String,
}

impl Config {
    /// The number of computing threads, with 0 resolved to the cores this process may use.
    #[must_use]
    pub fn thread_count(&self) -> usize {
        if self.threads > 0 {
            return self.threads;
        }
        std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
    }

    /// What the store is opened, or made anew, with.
    #[must_use]
    pub(crate) fn store_options(&self) -> StoreOptions {
        StoreOptions {
            max_bytes: (self.max_store_bytes > 0).then_some(self.max_store_bytes),
            max_namespace_bytes: (self.max_namespace_bytes > 0).then_some(self.max_namespace_bytes),
            free_floor: self.min_free_bytes,
            ..StoreOptions::default()
        }
    }
}

/// What can be wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A key of the file that no setting has.
    #[error("{file}: there is no setting `{key}`{close}", file = file.display(), close = did_you_mean(close))]
    UnknownKey {
        /// The key as it stands in the file.
        key: String,
        /// The file.
        file: PathBuf,
        /// Settings with similar names, best first.
        close: Vec<String>,
    },
    /// An environment variable that looks like a misspelt setting.
    #[error("the environment variable {variable} is no setting{close}; unset it if it is not meant for Addenda", close = did_you_mean(close))]
    UnknownVariable {
        /// The variable.
        variable: String,
        /// Variables with similar names, best first.
        close: Vec<String>,
    },
    /// A value that its setting does not take.
    #[error("{key} = {value} (from {source_name}): {reason}")]
    Invalid {
        /// The setting.
        key: &'static str,
        /// The value as given.
        value: String,
        /// Where it came from.
        source_name: String,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// The file cannot be read.
    #[error("cannot read the configuration file {file}: {source}", file = file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{file} is not valid TOML: {message}", file = file.display())]
    NotToml {
        /// The file.
        file: PathBuf,
        /// The parser's words, with line and column.
        message: String,
    },
    /// The environment has a setting whose value is not UTF-8.
    #[error("the environment variable {variable} is not valid UTF-8; set it again")]
    NotUtf8 {
        /// The variable.
        variable: String,
    },
    /// Neither HOME nor the XDG directories nor the setting is there.
    #[error(
        "{key} has no default here because HOME is not set: give it as {variable} or in the configuration file"
    )]
    NoHome {
        /// The setting.
        key: &'static str,
        /// Its environment variable.
        variable: String,
    },
}

fn did_you_mean(close: &[String]) -> String {
    if close.is_empty() {
        "; `addenda config print` lists all settings".to_owned()
    } else {
        format!("; did you mean {}?", close.join(" or "))
    }
}
