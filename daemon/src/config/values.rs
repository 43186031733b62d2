//! The small types of settings: device, number format, bytes.
//!
//! Owns their text forms, both ways. Never asks the machine what it has.

use std::fmt;
use std::str::FromStr;

/// Which device computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// CUDA where libtorch has it and a device is there, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of that number.
    Cuda(usize),
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            other => other
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| "must be auto, cpu, cuda or cuda:N".to_owned()),
        }
    }
}

/// The number format of weights and packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DtypeChoice {
    /// The daemon chooses by device and processor.
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
}

impl fmt::Display for DtypeChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

impl FromStr for DtypeChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err("must be auto, f32 or bf16".to_owned()),
        }
    }
}

/// What decode steps read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightsChoice {
    /// The daemon chooses by device and dtype, and says why.
    Auto,
    /// The weights themselves, as 32-bit floats.
    F32,
    /// The weights themselves, as bfloat16.
    Bf16,
    /// A second copy of them in 8 bits.
    Int8,
    /// A second copy of them in 4 bits.
    Int4,
}

impl fmt::Display for WeightsChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        })
    }
}

impl FromStr for WeightsChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "int8" => Ok(Self::Int8),
            "int4" => Ok(Self::Int4),
            _ => Err("must be auto, f32, bf16, int8 or int4".to_owned()),
        }
    }
}

/// Where something comes from that ships with the program and that a file may stand in for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileChoice {
    /// From the program.
    Shipped,
    /// From a file of the same form.
    File(std::path::PathBuf),
}

impl fmt::Display for FileChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shipped => f.write_str("shipped"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

impl FromStr for FileChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("must be shipped or a file".to_owned()),
            "shipped" => Ok(Self::Shipped),
            path => Ok(Self::File(path.into())),
        }
    }
}

/// The adapter that a daemon begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdapterChoice {
    /// The one that was activated last, or else the one that ships for the model, or else none.
    Auto,
    /// None.
    None,
    /// The one of this id or name.
    Named(String),
}

impl fmt::Display for AdapterChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::None => "none",
            Self::Named(name) => name,
        })
    }
}

impl FromStr for AdapterChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            name if addenda_model::adapter::is_name(name) => Ok(Self::Named(name.to_owned())),
            _ => Err("must be auto, none, or an adapter's id or name".to_owned()),
        }
    }
}

/// Units of bytes, largest first. Powers of 1024 and of 1000 both have their own names.
const UNITS: &[(&str, u64)] = &[
    ("tib", 1 << 40),
    ("gib", 1 << 30),
    ("mib", 1 << 20),
    ("kib", 1 << 10),
    ("tb", 1_000_000_000_000),
    ("gb", 1_000_000_000),
    ("mb", 1_000_000),
    ("kb", 1_000),
    ("b", 1),
];

/// Bytes from `1048576`, `"10 GiB"` or `"1.5GB"`.
///
/// # Errors
/// A sentence that names the accepted forms.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || "must be a number of bytes, such as 1048576 or \"10 GiB\"".to_owned();
    let lower = text.trim().to_lowercase();
    if let Ok(bytes) = lower.parse::<u64>() {
        return Ok(bytes);
    }
    let (number, factor) = UNITS
        .iter()
        .find_map(|(unit, factor)| Some((lower.strip_suffix(unit)?.trim(), *factor)))
        .ok_or_else(wrong)?;
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(wrong);
    }
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let bytes = number * factor as f64;
    if !bytes.is_finite() || bytes < 0.0 || bytes >= u64::MAX as f64 {
        return Err(wrong());
    }
    Ok(bytes as u64)
}

/// Bytes for people: `0 B`, `1.5 MiB`, `64 GiB`.
#[must_use]
pub fn format_bytes(bytes: u64) -> String {
    let unit = UNITS
        .iter()
        .take(4)
        .zip(["TiB", "GiB", "MiB", "KiB"])
        .find(|((_, factor), _)| bytes >= *factor);
    match unit {
        None => format!("{bytes} B"),
        Some(((_, factor), name)) if bytes.is_multiple_of(*factor) => {
            format!("{} {name}", bytes / factor)
        }
        Some(((_, factor), name)) => format!("{:.1} {name}", bytes as f64 / *factor as f64),
    }
}
