//! A model's tensors, by their Hugging Face names, whatever file they lie in.
//!
//! Owns [`Weights`]: a source of tensors on the CPU in Hugging Face's
//! conventions, from which the transformer takes each tensor once, stating its
//! shape. Files are memory-mapped and a tensor is read when it is taken, so
//! that a model is never in memory twice. It never converts a dtype except
//! from GGUF's block-quantised types, which come as f32, and never moves a
//! tensor to another device.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use tch::{Kind, Tensor};

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::gguf::GgufFile;

mod gguf;
mod safetensors;

pub(crate) use safetensors::files as safetensors_files;

/// Tensors to be taken one by one.
pub struct Weights {
    source: Source,
    left: BTreeSet<String>,
}

enum Source {
    Memory(HashMap<String, Tensor>),
    Safetensors(safetensors::Shards),
    Gguf(gguf::GgufTensors),
}

impl Weights {
    /// Tensors that are in memory already, under Hugging Face names.
    #[must_use]
    pub fn from_tensors(tensors: HashMap<String, Tensor>) -> Self {
        Self {
            left: tensors.keys().cloned().collect(),
            source: Source::Memory(tensors),
        }
    }

    /// Maps the safetensors files of a Hugging Face directory:
    /// `model.safetensors`, or the shards of `model.safetensors.index.json`.
    ///
    /// # Errors
    /// A file is missing, truncated or malformed.
    pub fn from_safetensors(directory: &Path) -> Result<Self> {
        let shards = safetensors::Shards::open(directory)?;
        Ok(Self {
            left: shards.names(),
            source: Source::Safetensors(shards),
        })
    }

    /// The tensors of an opened GGUF file, for the model that its metadata
    /// describes.
    #[must_use]
    pub fn from_gguf(file: GgufFile, config: &ModelConfig) -> Self {
        let tensors = gguf::GgufTensors::new(file, config);
        Self {
            left: tensors.names(),
            source: Source::Gguf(tensors),
        }
    }

    /// Takes a tensor out: on the CPU, in the dtype it is stored in (f32 for
    /// block-quantised GGUF types), contiguous.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] if there is none or it was taken before;
    /// [`Error::Shape`] if it has another shape; [`Error::UnsupportedDtype`].
    pub fn take(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let found = self
            .shape(name)
            .filter(|_| self.left.contains(name))
            .ok_or_else(|| Error::MissingTensor {
                name: name.to_owned(),
                file: self.location(name),
            })?;
        if found != shape {
            return Err(Error::Shape {
                what: format!("the tensor `{name}` of {}", self.location(name)),
                expected: shape.to_vec(),
                found,
            });
        }
        let tensor = match &mut self.source {
            Source::Memory(tensors) => tensors.remove(name),
            Source::Safetensors(shards) => shards.read(name)?,
            Source::Gguf(tensors) => tensors.read(name)?,
        };
        self.left.remove(name);
        tensor.ok_or_else(|| Error::MissingTensor {
            name: name.to_owned(),
            file: self.location(name),
        })
    }

    /// Whether a tensor is there and has not been taken.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.left.contains(name)
    }

    /// The names that have not been taken.
    #[must_use]
    pub fn unused(&self) -> Vec<&str> {
        self.left.iter().map(String::as_str).collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<i64>> {
        match &self.source {
            Source::Memory(tensors) => tensors.get(name).map(Tensor::size),
            Source::Safetensors(shards) => shards.shape(name),
            Source::Gguf(tensors) => tensors.shape(name),
        }
    }

    /// Where a tensor lies or would lie, for messages.
    fn location(&self, name: &str) -> String {
        match &self.source {
            Source::Memory(_) => "the tensors in memory".to_owned(),
            Source::Safetensors(shards) => shards.location(name),
            Source::Gguf(tensors) => tensors.location(),
        }
    }
}

/// Copies little-endian bytes into a tensor, after checking that there are
/// exactly as many as the shape needs: libtorch does not check.
pub(crate) fn tensor_from_bytes(
    name: &str,
    bytes: &[u8],
    shape: &[i64],
    kind: Kind,
) -> Result<Tensor> {
    let elements = shape.iter().try_fold(1usize, |product, side| {
        product.checked_mul(usize::try_from(*side).ok()?)
    });
    let needed = elements.and_then(|elements| elements.checked_mul(kind.elt_size_in_bytes()));
    if needed != Some(bytes.len()) {
        return Err(Error::Invalid(format!(
            "the tensor `{name}` of shape {shape:?} is stored in {} bytes, which is not what its \
             shape needs; fetch or copy the model again",
            bytes.len()
        )));
    }
    Tensor::f_from_data_size(bytes, shape, kind).map_err(|source| Error::Libtorch {
        what: format!("reading the tensor `{name}`"),
        source,
    })
}
