//! From defaults, file, environment and flags to one checked [`Config`].
//!
//! Owns the order of the sources and the record of which one gave each value. The process's
//! environment is read in [`Inputs::from_process`] only, so everything else can be tested.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::check::{Merged, Values};
use super::keys::{FILE_VARIABLE, KEYS, Key, KeyKind, VARIABLE_PREFIX, close_matches};
use super::{Config, ConfigError, Result};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Built in.
    Default,
    /// Worked out from another setting.
    Derived(&'static str),
    /// A configuration file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// A command-line flag.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Derived(key) => write!(f, "derived from {key}"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(variable) => write!(f, "environment {variable}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// One setting's value and its source, as `config print` shows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The setting's name.
    pub key: &'static str,
    /// Its value, in the text form that every source accepts.
    pub value: String,
    /// Where the value came from.
    pub source: Source,
}

/// A checked configuration with its history.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Every setting in the order of [`KEYS`].
    pub settings: Vec<Setting>,
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    /// What is allowed but should be known.
    pub warnings: Vec<String>,
}

/// What a configuration is made from.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    /// The file that the caller named; it must exist.
    pub file: Option<PathBuf>,
    /// Files that are read if they exist; the first that does counts.
    pub usual_files: Vec<PathBuf>,
    /// The environment: `ADDENDA_*`, `HOME` and `XDG_*` are looked at.
    pub environment: BTreeMap<String, String>,
    /// Settings from the command line, by name.
    pub flags: Vec<(&'static str, String)>,
}

impl Inputs {
    /// Reads this process's environment and the usual places of the file:
    /// `$XDG_CONFIG_HOME/addenda/addenda.toml`, then `/etc/addenda/addenda.toml`.
    ///
    /// # Errors
    /// When an `ADDENDA_*` variable is not UTF-8.
    pub fn from_process(file: Option<PathBuf>, flags: Vec<(&'static str, String)>) -> Result<Self> {
        let mut environment = BTreeMap::new();
        for (name, value) in std::env::vars_os() {
            let Some(name) = name.to_str() else { continue };
            match value.into_string() {
                Ok(value) => {
                    environment.insert(name.to_owned(), value);
                }
                Err(_) if name.starts_with(VARIABLE_PREFIX) => {
                    return Err(ConfigError::NotUtf8 {
                        variable: name.to_owned(),
                    });
                }
                Err(_) => {}
            }
        }
        let user = user_dir(&environment, "XDG_CONFIG_HOME", ".config");
        let usual = user.into_iter().chain([PathBuf::from("/etc")]);
        Ok(Self {
            file,
            usual_files: usual.map(|dir| dir.join("addenda/addenda.toml")).collect(),
            environment,
            flags,
        })
    }
}

/// `$XDG_…/` or `$HOME/…`, if either is an absolute path.
fn user_dir(environment: &BTreeMap<String, String>, xdg: &str, below: &str) -> Option<PathBuf> {
    let absolute = |name: &str| {
        let path = PathBuf::from(environment.get(name)?);
        path.is_absolute().then_some(path)
    };
    absolute(xdg).or_else(|| Some(absolute("HOME")?.join(below)))
}

/// Merges and checks.
///
/// # Errors
/// The first thing that is wrong, with its setting, value and source.
pub fn load(inputs: &Inputs) -> Result<Loaded> {
    let file = choose_file(inputs);
    let mut values: Values = KEYS
        .iter()
        .filter_map(|key| Some((key.name, (key.default?.to_owned(), Source::Default))))
        .collect();
    if let Some(file) = &file {
        values.extend(read_file(file)?);
    }
    values.extend(read_environment(&inputs.environment)?);
    for (name, value) in &inputs.flags {
        let flag = Key::find(name).map_or_else(|| (*name).to_owned(), Key::flag);
        values.insert(name, (value.clone(), Source::Flag(flag)));
    }
    for (name, xdg, below) in [
        ("data_dir", "XDG_DATA_HOME", ".local/share"),
        ("cache_dir", "XDG_CACHE_HOME", ".cache"),
    ] {
        if let (None, Some(dir)) = (values.get(name), user_dir(&inputs.environment, xdg, below)) {
            let dir = dir.join("addenda");
            values.insert(name, (dir.display().to_string(), Source::Default));
        }
    }
    let merged = Merged {
        values,
        home: inputs.environment.get("HOME").cloned(),
    };
    merged.check(file)
}

fn choose_file(inputs: &Inputs) -> Option<PathBuf> {
    let named = inputs.environment.get(FILE_VARIABLE).map(PathBuf::from);
    let usual = || {
        inputs
            .usual_files
            .iter()
            .find(|path| path.exists())
            .cloned()
    };
    inputs.file.clone().or(named).or_else(usual)
}

fn read_file(file: &Path) -> Result<Values> {
    let text = std::fs::read_to_string(file).map_err(|source| ConfigError::Unreadable {
        file: file.to_owned(),
        source,
    })?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let message = error.to_string().trim_end().to_owned();
        let file = file.to_owned();
        ConfigError::NotToml { file, message }
    })?;
    let source = Source::File(file.to_owned());
    let mut values = Values::new();
    for (name, value) in table {
        let key = Key::find(&name).ok_or_else(|| ConfigError::UnknownKey {
            close: close_matches(&name, KEYS.iter().map(|key| key.name))
                .into_iter()
                .map(|close| format!("`{close}`"))
                .collect(),
            key: name.clone(),
            file: file.to_owned(),
        })?;
        let text = toml_text(key, &value).map_err(|reason| ConfigError::Invalid {
            key: key.name,
            value: value.to_string(),
            source_name: source.to_string(),
            reason,
        })?;
        let text = match file.parent() {
            Some(dir) if begins_at_file(key, &text) => dir.join(text).display().to_string(),
            _ => text,
        };
        values.insert(key.name, (text, source.clone()));
    }
    Ok(values)
}

/// Whether a value of a file is a path that is meant from that file's directory.
fn begins_at_file(key: &Key, text: &str) -> bool {
    let dotted = text.starts_with("./") || text.starts_with("../");
    match key.kind {
        KeyKind::Path => {
            !text.is_empty() && !text.starts_with('~') && Path::new(text).is_relative()
        }
        _ => key.name == "model" && dotted,
    }
}

fn toml_text(key: &Key, value: &toml::Value) -> std::result::Result<String, String> {
    match (key.kind, value) {
        (KeyKind::Text | KeyKind::Path | KeyKind::Bytes, toml::Value::String(text)) => {
            Ok(text.clone())
        }
        (KeyKind::Number | KeyKind::Bytes, toml::Value::Integer(number)) => Ok(number.to_string()),
        (KeyKind::Switch, toml::Value::Boolean(switch)) => Ok(switch.to_string()),
        (KeyKind::Text | KeyKind::Path, _) => Err("must be a string in quotes".to_owned()),
        (KeyKind::Number, _) => Err("must be a whole number without quotes".to_owned()),
        (KeyKind::Bytes, _) => {
            Err("must be a whole number of bytes or a string such as \"10 GiB\"".to_owned())
        }
        (KeyKind::Switch, _) => Err("must be true or false, without quotes".to_owned()),
    }
}

fn read_environment(environment: &BTreeMap<String, String>) -> Result<Values> {
    let mut values = Values::new();
    for (variable, value) in environment {
        let Some(rest) = variable.strip_prefix(VARIABLE_PREFIX) else {
            continue;
        };
        if variable == FILE_VARIABLE {
            continue;
        }
        if let Some(key) = KEYS.iter().find(|key| key.variable() == *variable) {
            let source = Source::Environment(variable.clone());
            values.insert(key.name, (value.clone(), source));
            continue;
        }
        // Others may put variables with this prefix here (Kubernetes does, for a service of this
        // name), so only what looks like a slip of the pen is refused.
        let close: Vec<String> = close_matches(rest, KEYS.iter().map(|key| key.name))
            .into_iter()
            .filter_map(Key::find)
            .map(Key::variable)
            .collect();
        if !close.is_empty() {
            let variable = variable.clone();
            return Err(ConfigError::UnknownVariable { variable, close });
        }
    }
    Ok(values)
}
