//! One opened GGUF file: its metadata with typed access, and its tensors.
//!
//! Owns the memory map and the wording of what is wrong with a file. It knows
//! neither what a tensor means nor how a model is laid out: `config/gguf.rs`,
//! `weights/gguf.rs` and `tokenizer/gguf.rs` do. Lengths, offsets and counts
//! are checked against the file when it is opened, so a truncated file never
//! gets further. The file must not be changed while it is open.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anamnesis::{
    F32Out, GgufMetadataArray, GgufMetadataValue, GgufTensorInfo, GgufType, ParsedGguf,
};
use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::weights::tensor_from_bytes;

/// A GGUF file whose structure has been read and checked.
pub struct GgufFile {
    path: PathBuf,
    parsed: ParsedGguf,
    tensors: HashMap<String, usize>,
}

impl GgufFile {
    /// Opens and maps a file, and reads its metadata and its list of tensors.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Gguf`] if it is truncated
    /// or malformed.
    pub fn open(path: &Path) -> Result<Self> {
        let parsed = anamnesis::parse_gguf(path).map_err(|source| match source {
            anamnesis::AnamnesisError::Io(source) => Error::Io {
                path: path.to_owned(),
                source,
            },
            source => Error::Gguf {
                path: path.to_owned(),
                source,
            },
        })?;
        let tensors = parsed
            .tensor_info()
            .iter()
            .enumerate()
            .map(|(index, info)| (info.name.clone(), index))
            .collect();
        Ok(Self {
            path: path.to_owned(),
            parsed,
            tensors,
        })
    }

    /// Where the file lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of a tensor in row-major order, if the file has it.
    pub(crate) fn tensor_shape(&self, name: &str) -> Option<Vec<i64>> {
        let shape = &self.info(name)?.shape;
        Some(
            shape
                .iter()
                .rev()
                .map(|side| i64::try_from(*side).unwrap_or(i64::MAX))
                .collect(),
        )
    }

    fn info(&self, name: &str) -> Option<&GgufTensorInfo> {
        self.parsed.tensor_info().get(*self.tensors.get(name)?)
    }

    /// Reads a tensor to the CPU: f32, f16, bf16 and f64 as they are stored,
    /// block-quantised types as f32. `None` if the file does not have it.
    pub(crate) fn read_tensor(&self, name: &str) -> Result<Option<Tensor>> {
        let (Some(info), Some(shape)) = (self.info(name), self.tensor_shape(name)) else {
            return Ok(None);
        };
        let kind = match info.dtype {
            GgufType::F32 => Kind::Float,
            GgufType::F16 => Kind::Half,
            GgufType::BF16 => Kind::BFloat16,
            GgufType::F64 => Kind::Double,
            GgufType::I8 | GgufType::I16 | GgufType::I32 | GgufType::I64 => {
                return Err(Error::UnsupportedDtype {
                    name: name.to_owned(),
                    file: self.path.display().to_string(),
                    found: info.dtype.to_string(),
                    advice: "weights must be floating point or block-quantised",
                });
            }
            _ => {
                let values =
                    self.parsed
                        .dequantize_tensor_as::<F32Out>(info)
                        .map_err(|source| Error::Gguf {
                            path: self.path.clone(),
                            source,
                        })?;
                return tensor_from_bytes(name, &values, &shape, Kind::Float).map(Some);
            }
        };
        let stored = self.parsed.tensors().find(|tensor| tensor.name == name);
        stored
            .map(|tensor| tensor_from_bytes(name, &tensor.data, &shape, kind))
            .transpose()
    }

    /// The GGUF name of the architecture.
    pub(crate) fn architecture(&self) -> Result<&str> {
        self.need_text("general.architecture")
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.value(key) {
            None => Ok(None),
            Some(GgufMetadataValue::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "a text")),
        }
    }

    pub(crate) fn need_text(&self, key: &str) -> Result<&str> {
        self.text(key)?.ok_or_else(|| self.missing(key))
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.value(key) {
            None => Ok(None),
            Some(GgufMetadataValue::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    pub(crate) fn size(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        whole(value)
            .and_then(|number| usize::try_from(number).ok())
            .map(Some)
            .ok_or_else(|| self.wrong(key, "a whole number"))
    }

    pub(crate) fn need_size(&self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| self.missing(key))
    }

    /// A token id; an id that does not fit is treated as absent, because
    /// converters write `u32::MAX` for "none".
    pub(crate) fn token(&self, key: &str) -> Result<Option<u32>> {
        Ok(self
            .size(key)?
            .and_then(|id| u32::try_from(id).ok())
            .filter(|id| *id != u32::MAX))
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.value(key) {
            None => Ok(None),
            Some(GgufMetadataValue::F32(number)) => Ok(Some(shortest(*number))),
            Some(GgufMetadataValue::F64(number)) => Ok(Some(*number)),
            Some(value) => match whole(value).and_then(|number| u32::try_from(number).ok()) {
                Some(number) => Ok(Some(f64::from(number))),
                None => Err(self.wrong(key, "a number")),
            },
        }
    }

    pub(crate) fn texts(&self, key: &str) -> Result<Option<&[String]>> {
        match self.array(key)? {
            None => Ok(None),
            Some(GgufMetadataArray::String(texts)) => Ok(Some(texts)),
            Some(_) => Err(self.wrong(key, "a list of texts")),
        }
    }

    pub(crate) fn numbers(&self, key: &str) -> Result<Option<&[f32]>> {
        match self.array(key)? {
            None => Ok(None),
            Some(GgufMetadataArray::F32(numbers)) => Ok(Some(numbers)),
            Some(_) => Err(self.wrong(key, "a list of numbers")),
        }
    }

    pub(crate) fn flags(&self, key: &str) -> Result<Option<&[bool]>> {
        match self.array(key)? {
            None => Ok(None),
            Some(GgufMetadataArray::Bool(flags)) => Ok(Some(flags)),
            Some(_) => Err(self.wrong(key, "a list of true and false")),
        }
    }

    pub(crate) fn wholes(&self, key: &str) -> Result<Option<Vec<i64>>> {
        match self.array(key)? {
            None => Ok(None),
            Some(GgufMetadataArray::I32(list)) => {
                Ok(Some(list.iter().map(|number| i64::from(*number)).collect()))
            }
            Some(GgufMetadataArray::U32(list)) => {
                Ok(Some(list.iter().map(|number| i64::from(*number)).collect()))
            }
            Some(GgufMetadataArray::I64(list)) => Ok(Some(list.clone())),
            Some(_) => Err(self.wrong(key, "a list of whole numbers")),
        }
    }

    /// Whether a key holds a list.
    pub(crate) fn is_list(&self, key: &str) -> bool {
        matches!(self.value(key), Some(GgufMetadataValue::Array(_)))
    }

    fn array(&self, key: &str) -> Result<Option<&GgufMetadataArray>> {
        match self.value(key) {
            None => Ok(None),
            Some(GgufMetadataValue::Array(array)) => Ok(Some(array)),
            Some(_) => Err(self.wrong(key, "a list")),
        }
    }

    fn value(&self, key: &str) -> Option<&GgufMetadataValue> {
        self.parsed.metadata().get(key)
    }

    fn missing(&self, key: &str) -> Error {
        Error::Config {
            reason: format!("{} lacks the metadata `{key}`", self.path.display()),
        }
    }

    fn wrong(&self, key: &str, kind: &str) -> Error {
        Error::Config {
            reason: format!(
                "the metadata `{key}` of {} must be {kind}",
                self.path.display()
            ),
        }
    }
}

fn whole(value: &GgufMetadataValue) -> Option<u64> {
    match value {
        GgufMetadataValue::U8(number) => Some(u64::from(*number)),
        GgufMetadataValue::U16(number) => Some(u64::from(*number)),
        GgufMetadataValue::U32(number) => Some(u64::from(*number)),
        GgufMetadataValue::U64(number) => Some(*number),
        GgufMetadataValue::I8(number) => u64::try_from(*number).ok(),
        GgufMetadataValue::I16(number) => u64::try_from(*number).ok(),
        GgufMetadataValue::I32(number) => u64::try_from(*number).ok(),
        GgufMetadataValue::I64(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}

/// The f64 that the f32 was written for: a converter stores `1e-5` as the f32
/// nearest to it, and Transformers computes with the decimal.
fn shortest(number: f32) -> f64 {
    number
        .to_string()
        .parse()
        .unwrap_or_else(|_| f64::from(number))
}
