//! The last step of loading: every value parsed, bounded and checked against the others.
//!
//! Owns what each setting accepts and the sentences that refuse the rest. Reads neither files nor
//! the environment.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::keys::{KEYS, Key};
use super::load::{Loaded, Setting, Source};
use super::{Config, ConfigError, DtypeChoice, Result, WeightsChoice, format_bytes, parse_bytes};

/// Text and source of each setting that has one.
pub(crate) type Values = BTreeMap<&'static str, (String, Source)>;

/// All values in text form, the last source of each having won.
pub(crate) struct Merged {
    pub(crate) values: Values,
    pub(crate) home: Option<String>,
}

impl Merged {
    /// Checks everything.
    ///
    /// # Errors
    /// The first value that is wrong.
    pub(crate) fn check(mut self, file: Option<PathBuf>) -> Result<Loaded> {
        let listen: SocketAddr = self.parse("listen", |text| {
            text.parse()
                .map_err(|_| "must be ADDRESS:PORT, such as 127.0.0.1:7411".to_owned())
        })?;
        if !self.values.contains_key("connect") {
            let derived = (reachable(listen).to_string(), Source::Derived("listen"));
            self.values.insert("connect", derived);
        }
        let config = Config {
            model: self.parse("model", not_empty)?,
            data_dir: self.path("data_dir")?,
            cache_dir: self.path("cache_dir")?,
            listen,
            allow_remote: self.parse("allow_remote", |text| {
                bool::from_str(text).map_err(|_| "must be true or false".to_owned())
            })?,
            connect: self.parse("connect", endpoint)?,
            device: self.parse("device", FromStr::from_str)?,
            dtype: self.dtype()?,
            weights: self.parse("weights", FromStr::from_str)?,
            threads: self.number("threads", 0, 1024)?,
            queue: self.number("queue", 1, 65_536)?,
            max_tokens: self.number("max_tokens", 1, 1 << 20)?,
            prefill_chunk: self.number("prefill_chunk", 1, 65_536)?,
            adapter: self.parse("adapter", FromStr::from_str)?,
            edit_settings: self.parse("edit_settings", FromStr::from_str)?,
            primer: self.parse("primer", FromStr::from_str)?,
            packet_tokens: self.number("packet_tokens", 32, 1 << 20)?,
            packet_codec: self.parse("packet_codec", FromStr::from_str)?,
            max_store_bytes: self.parse("max_store_bytes", parse_bytes)?,
            max_namespace_bytes: self.parse("max_namespace_bytes", parse_bytes)?,
            min_free_bytes: self.parse("min_free_bytes", parse_bytes)?,
            max_mapped_bytes: self.parse("max_mapped_bytes", parse_bytes)?,
            max_kv_bytes: self.parse("max_kv_bytes", parse_bytes)?,
            max_prefix_bytes: self.parse("max_prefix_bytes", parse_bytes)?,
            scrub_bytes_per_second: self.parse("scrub_bytes_per_second", parse_bytes)?,
            log: self.parse("log", |text| {
                tracing_subscriber::EnvFilter::try_new(text)
                    .map(|_| text.to_owned())
                    .map_err(|error| {
                        format!("is no log filter ({error}); try info or info,addenda=debug")
                    })
            })?,
        };
        let warnings = self.remote_warnings(&config)?;
        Ok(Loaded {
            settings: self.settings(&config),
            config,
            file,
            warnings,
        })
    }

    /// The dtype, which `weights` decides where it names one and `dtype` does not.
    fn dtype(&self) -> Result<DtypeChoice> {
        let own: DtypeChoice = self.parse("dtype", FromStr::from_str)?;
        let weights = match self.parse("weights", FromStr::from_str)? {
            WeightsChoice::F32 => DtypeChoice::F32,
            WeightsChoice::Bf16 => DtypeChoice::Bf16,
            WeightsChoice::Auto | WeightsChoice::Int8 | WeightsChoice::Int4 => return Ok(own),
        };
        if own != weights && own != DtypeChoice::Auto {
            let reason = format!("contradicts dtype = {own}; give one of the two");
            return Err(self.invalid("weights", reason));
        }
        Ok(weights)
    }

    fn remote_warnings(&self, config: &Config) -> Result<Vec<String>> {
        if config.listen.ip().is_loopback() {
            return Ok(Vec::new());
        }
        if !config.allow_remote {
            let reason = "other machines could reach this address, and there is neither TLS nor a password yet; \
                          use 127.0.0.1, or set allow_remote = true if the network around this machine is trusted";
            return Err(self.invalid("listen", reason.to_owned()));
        }
        Ok(vec![format!(
            "listening on {} without TLS or passwords: whoever reaches this address can read documents and change facts",
            config.listen
        )])
    }

    fn text(&self, key: &'static str) -> Result<&str> {
        let (text, _) = self.values.get(key).ok_or_else(|| ConfigError::NoHome {
            key,
            variable: Key::find(key).map_or_else(String::new, Key::variable),
        })?;
        Ok(text)
    }

    fn parse<T>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&str) -> std::result::Result<T, String>,
    ) -> Result<T> {
        let text = self.text(key)?;
        parse(text).map_err(|reason| self.invalid(key, reason))
    }

    fn number<T>(&self, key: &'static str, least: u64, most: u64) -> Result<T>
    where
        T: TryFrom<u64>,
    {
        self.parse(key, |text| {
            text.parse::<u64>()
                .ok()
                .filter(|number| (least..=most).contains(number))
                .and_then(|number| T::try_from(number).ok())
                .ok_or_else(|| format!("must be a whole number from {least} to {most}"))
        })
    }

    fn path(&self, key: &'static str) -> Result<PathBuf> {
        let home = self.home.as_deref();
        self.parse(key, |text| {
            let text = not_empty(text)?;
            match (text.strip_prefix("~/"), home) {
                (Some(rest), Some(home)) => Ok(Path::new(home).join(rest)),
                (Some(_), None) => Err("begins with ~/, but HOME is not set".to_owned()),
                (None, _) => Ok(PathBuf::from(text)),
            }
        })
    }

    fn invalid(&self, key: &'static str, reason: String) -> ConfigError {
        let (value, source) = match self.values.get(key) {
            Some((value, source)) => (value.clone(), source.to_string()),
            None => (String::new(), Source::Default.to_string()),
        };
        ConfigError::Invalid {
            key,
            value,
            source_name: source,
            reason,
        }
    }

    /// The values as they were understood, so that `~/` and `64GB` are seen resolved.
    fn settings(&self, config: &Config) -> Vec<Setting> {
        KEYS.iter()
            .filter_map(|key| {
                let (text, source) = self.values.get(key.name)?;
                let value = match key.name {
                    "data_dir" => config.data_dir.display().to_string(),
                    "cache_dir" => config.cache_dir.display().to_string(),
                    "connect" => config.connect.clone(),
                    "device" => config.device.to_string(),
                    "max_store_bytes" => format_exactly(config.max_store_bytes),
                    "max_namespace_bytes" => format_exactly(config.max_namespace_bytes),
                    "min_free_bytes" => format_exactly(config.min_free_bytes),
                    "max_mapped_bytes" => format_exactly(config.max_mapped_bytes),
                    "max_kv_bytes" => format_exactly(config.max_kv_bytes),
                    "max_prefix_bytes" => format_exactly(config.max_prefix_bytes),
                    "scrub_bytes_per_second" => format_exactly(config.scrub_bytes_per_second),
                    _ => text.clone(),
                };
                Some(Setting {
                    key: key.name,
                    value,
                    source: source.clone(),
                })
            })
            .collect()
    }
}

/// Bytes with a unit where that loses nothing, so that a printed value can be given back.
fn format_exactly(bytes: u64) -> String {
    let text = format_bytes(bytes);
    match parse_bytes(&text) {
        Ok(same) if same == bytes => text,
        _ => bytes.to_string(),
    }
}

fn not_empty(text: &str) -> std::result::Result<String, String> {
    if text.trim().is_empty() {
        return Err("must not be empty".to_owned());
    }
    Ok(text.to_owned())
}

/// The address under which this machine reaches a listener.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

fn endpoint(text: &str) -> std::result::Result<String, String> {
    if text.starts_with("https://") {
        return Err("there is no TLS yet; use http://HOST:PORT".to_owned());
    }
    let wrong = || "must be HOST:PORT or http://HOST:PORT, such as 127.0.0.1:7411".to_owned();
    let authority = text.strip_prefix("http://").unwrap_or(text);
    let authority = authority.trim_end_matches('/');
    let (host, port) = authority.rsplit_once(':').ok_or_else(wrong)?;
    port.parse::<u16>().map_err(|_| wrong())?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    if host.is_empty() || !host.chars().all(plain) {
        return Err(wrong());
    }
    Ok(format!("http://{authority}"))
}
