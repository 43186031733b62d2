//! The table of settings: names, meanings, defaults and shapes of value.
//!
//! Owns what a setting is called everywhere: `max_tokens` in the file is `ADDENDA_MAX_TOKENS` in
//! the environment and `--max-tokens` on the command line. Never reads a value.

/// The shape of a setting's value in a TOML file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// A string.
    Text,
    /// A string that names a file or directory; `~/` is the home directory, and in a file a
    /// relative path begins at that file's directory.
    Path,
    /// A whole number.
    Number,
    /// `true` or `false`.
    Switch,
    /// A whole number of bytes, or a string such as `"10 GiB"`.
    Bytes,
}

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Its name in the file and in `config print`.
    pub name: &'static str,
    /// The shape of its value.
    pub kind: KeyKind,
    /// Its default; `None` where it is worked out from the machine or from another setting.
    pub default: Option<&'static str>,
    /// One line for people.
    pub help: &'static str,
}

impl Key {
    /// `ADDENDA_MAX_TOKENS` for `max_tokens`.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.name.to_uppercase())
    }

    /// `--max-tokens` for `max_tokens`.
    #[must_use]
    pub fn flag(&self) -> String {
        format!("--{}", self.name.replace('_', "-"))
    }

    /// The setting of that name.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.name == name)
    }
}

/// What the environment variable of every setting begins with.
pub(crate) const VARIABLE_PREFIX: &str = "ADDENDA_";

/// The variable that names the configuration file; it is no setting itself.
pub(crate) const FILE_VARIABLE: &str = "ADDENDA_CONFIG";

const fn key(
    name: &'static str,
    kind: KeyKind,
    default: Option<&'static str>,
    help: &'static str,
) -> Key {
    Key {
        name,
        kind,
        default,
        help,
    }
}

/// Every setting, in the order in which `config print` shows them.
pub const KEYS: &[Key] = &[
    key(
        "model",
        KeyKind::Text,
        Some("smollm2-135m"),
        "catalogue name, Hugging Face directory or .gguf file",
    ),
    key(
        "data_dir",
        KeyKind::Path,
        None,
        "facts and packets; back this up",
    ),
    key(
        "cache_dir",
        KeyKind::Path,
        None,
        "models and whatever can be made again",
    ),
    key(
        "listen",
        KeyKind::Text,
        Some("127.0.0.1:7411"),
        "address of the daemon; port 0 takes a free one",
    ),
    key(
        "allow_remote",
        KeyKind::Switch,
        Some("false"),
        "let `listen` be reachable from other machines (no TLS yet)",
    ),
    key(
        "connect",
        KeyKind::Text,
        None,
        "where commands find the daemon; default: `listen`",
    ),
    key(
        "device",
        KeyKind::Text,
        Some("auto"),
        "auto, cpu, cuda or cuda:N",
    ),
    key("dtype", KeyKind::Text, Some("auto"), "auto, f32 or bf16"),
    key(
        "weights",
        KeyKind::Text,
        Some("auto"),
        "what answers are decoded with: auto, f32, bf16, int8 or int4",
    ),
    key(
        "threads",
        KeyKind::Number,
        Some("0"),
        "computing threads; 0 takes one a core",
    ),
    key(
        "queue",
        KeyKind::Number,
        Some("64"),
        "requests that may wait for the engine",
    ),
    key(
        "max_tokens",
        KeyKind::Number,
        Some("256"),
        "tokens of an answer where the request does not say",
    ),
    key(
        "prefill_chunk",
        KeyKind::Number,
        Some("512"),
        "tokens that one prefill step computes",
    ),
    key(
        "adapter",
        KeyKind::Text,
        Some("auto"),
        "auto (the last activated, or what ships), none, or an adapter's id or name",
    ),
    key(
        "edit_settings",
        KeyKind::Text,
        Some("shipped"),
        "how facts are written and verified: shipped, or a file like editor/src/settings.toml",
    ),
    key(
        "primer",
        KeyKind::Text,
        Some("shipped"),
        "documents that packets are computed behind: shipped, or a text file of some like yours, one a paragraph",
    ),
    key(
        "packet_tokens",
        KeyKind::Number,
        Some("512"),
        "tokens of a packet at most; a longer document is split",
    ),
    key(
        "packet_codec",
        KeyKind::Text,
        Some("none"),
        "how packets are kept: none, int8 (half of bf16's bytes) or int4 (a third)",
    ),
    key(
        "max_store_bytes",
        KeyKind::Bytes,
        Some("64 GiB"),
        "disk space for packets; 0 sets no limit",
    ),
    key(
        "max_namespace_bytes",
        KeyKind::Bytes,
        Some("0"),
        "disk space for the packets of one namespace; 0 sets no limit",
    ),
    key(
        "min_free_bytes",
        KeyKind::Bytes,
        Some("1 GiB"),
        "free disk space below which nothing is written",
    ),
    key(
        "max_mapped_bytes",
        KeyKind::Bytes,
        Some("2 GiB"),
        "memory for packets that are kept mapped beside those in use",
    ),
    key(
        "max_kv_bytes",
        KeyKind::Bytes,
        Some("4 GiB"),
        "memory for the contexts of running requests, kept beginnings included; packets are not counted",
    ),
    key(
        "max_prefix_bytes",
        KeyKind::Bytes,
        Some("512 MiB"),
        "of it, at most, for beginnings of contexts that are kept for the next request",
    ),
    key(
        "scrub_bytes_per_second",
        KeyKind::Bytes,
        Some("4 MiB"),
        "how fast stored packets are read once a day to find what decays on disk; 0 never",
    ),
    key(
        "log",
        KeyKind::Text,
        Some("info"),
        "what is logged: error, warn, info, debug, or directives such as info,addenda=debug",
    ),
];

/// Up to two of `names` that resemble `name`, best first.
pub(crate) fn close_matches<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let name = name.to_lowercase().replace('-', "_");
    let mut scored: Vec<(f64, &str)> = names
        .map(|candidate| {
            let contained =
                name.len() >= 3 && (candidate.contains(&name) || name.contains(candidate));
            let score = strsim::jaro_winkler(&name, candidate);
            (if contained { score.max(0.9) } else { score }, candidate)
        })
        .filter(|(score, _)| *score >= 0.84)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored.into_iter().take(2).map(|(_, name)| name).collect()
}
