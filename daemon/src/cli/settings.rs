//! Settings as flags.
//!
//! Owns the names and help of flags that override the configuration; their checks are in
//! [`crate::config`], where every source passes.

use std::path::PathBuf;

use clap::Args;

/// Flags of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct GlobalArgs {
    /// Configuration file (TOML) [default: ~/.config/addenda/addenda.toml or
    /// /etc/addenda/addenda.toml, if there]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        help_heading = "Global options"
    )]
    pub(crate) config: Option<PathBuf>,
    /// Where the daemon is [default: the address of the setting `listen`]
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT",
        help_heading = "Global options"
    )]
    connect: Option<String>,
    /// Models and whatever can be made again [default: ~/.cache/addenda]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        help_heading = "Global options"
    )]
    cache_dir: Option<String>,
    /// Print results as JSON, one object a line
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) json: bool,
}

impl GlobalArgs {
    /// The settings that were given.
    pub(crate) fn flags(&self) -> Vec<(&'static str, String)> {
        given([("connect", &self.connect), ("cache_dir", &self.cache_dir)])
    }
}

/// Flags of commands that use the daemon's own settings: `serve`, `config print`, `doctor`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Settings")]
pub(crate) struct ServerArgs {
    /// Catalogue name, Hugging Face directory or .gguf file [default: smollm2-135m]
    #[arg(long, value_name = "NAME|PATH")]
    model: Option<String>,
    /// Facts and packets; back this up [default: ~/.local/share/addenda]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Address of the daemon; port 0 takes a free one [default: 127.0.0.1:7411]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// Let other machines reach `listen`; there is no TLS yet [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    allow_remote: Option<String>,
    /// auto, cpu, cuda or cuda:N [default: auto]
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// auto, f32 or bf16 [default: auto]
    #[arg(long, value_name = "DTYPE")]
    dtype: Option<String>,
    /// What answers are decoded with: auto, f32, bf16, int8 or int4 [default: auto]
    #[arg(long, value_name = "FORMAT")]
    weights: Option<String>,
    /// Computing threads; 0 takes one a core [default: 0]
    #[arg(long, value_name = "N")]
    threads: Option<String>,
    /// Requests that may wait for the engine [default: 64]
    #[arg(long, value_name = "N")]
    queue: Option<String>,
    /// Tokens of an answer where the request does not say [default: 256]
    #[arg(long, value_name = "N")]
    max_tokens: Option<String>,
    /// Tokens that one prefill step computes [default: 512]
    #[arg(long, value_name = "N")]
    prefill_chunk: Option<String>,
    /// auto (the last activated, or what ships), none, or an adapter's id or name [default: auto]
    #[arg(long, value_name = "ADAPTER")]
    adapter: Option<String>,
    /// How facts are written and verified: shipped, or a file like editor/src/settings.toml [default: shipped]
    #[arg(long, value_name = "FILE")]
    edit_settings: Option<String>,
    /// Documents that packets are computed behind: shipped, or a text file of some like yours, one a paragraph [default: shipped]
    #[arg(long, value_name = "FILE")]
    primer: Option<String>,
    /// Tokens of a packet at most; a longer document is split [default: 512]
    #[arg(long, value_name = "N")]
    packet_tokens: Option<String>,
    /// How packets are kept: none, int8 (half of bf16's bytes) or int4 (a third) [default: none]
    #[arg(long, value_name = "CODEC")]
    packet_codec: Option<String>,
    /// Disk space for packets; 0 sets no limit [default: 64 GiB]
    #[arg(long, value_name = "BYTES")]
    max_store_bytes: Option<String>,
    /// Disk space for the packets of one namespace; 0 sets no limit [default: 0]
    #[arg(long, value_name = "BYTES")]
    max_namespace_bytes: Option<String>,
    /// Free disk space below which nothing is written [default: 1 GiB]
    #[arg(long, value_name = "BYTES")]
    min_free_bytes: Option<String>,
    /// Memory for packets that are kept mapped beside those in use [default: 2 GiB]
    #[arg(long, value_name = "BYTES")]
    max_mapped_bytes: Option<String>,
    /// Memory for the contexts of running requests, kept beginnings included [default: 4 GiB]
    #[arg(long, value_name = "BYTES")]
    max_kv_bytes: Option<String>,
    /// Of it, at most, for beginnings of contexts that are kept for the next request [default: 512 MiB]
    #[arg(long, value_name = "BYTES")]
    max_prefix_bytes: Option<String>,
    /// How fast stored packets are read once a day to find what decays on disk; 0 never [default: 4 MiB]
    #[arg(long, value_name = "BYTES")]
    scrub_bytes_per_second: Option<String>,
    /// What is logged: error, warn, info, debug, or directives [default: info]
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

impl ServerArgs {
    /// The settings that were given.
    pub(crate) fn flags(&self) -> Vec<(&'static str, String)> {
        given([
            ("model", &self.model),
            ("data_dir", &self.data_dir),
            ("listen", &self.listen),
            ("allow_remote", &self.allow_remote),
            ("device", &self.device),
            ("dtype", &self.dtype),
            ("weights", &self.weights),
            ("threads", &self.threads),
            ("queue", &self.queue),
            ("max_tokens", &self.max_tokens),
            ("prefill_chunk", &self.prefill_chunk),
            ("adapter", &self.adapter),
            ("edit_settings", &self.edit_settings),
            ("primer", &self.primer),
            ("packet_tokens", &self.packet_tokens),
            ("packet_codec", &self.packet_codec),
            ("max_store_bytes", &self.max_store_bytes),
            ("max_namespace_bytes", &self.max_namespace_bytes),
            ("min_free_bytes", &self.min_free_bytes),
            ("max_mapped_bytes", &self.max_mapped_bytes),
            ("max_kv_bytes", &self.max_kv_bytes),
            ("max_prefix_bytes", &self.max_prefix_bytes),
            ("scrub_bytes_per_second", &self.scrub_bytes_per_second),
            ("log", &self.log),
        ])
    }
}

fn given<const N: usize>(
    flags: [(&'static str, &Option<String>); N],
) -> Vec<(&'static str, String)> {
    flags
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.clone()?)))
        .collect()
}
