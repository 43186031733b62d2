//! Tensors from the safetensors files of a Hugging Face directory.
//!
//! Owns the memory maps of one file or of all shards. A shard's header is
//! checked against its length when it is opened, so no later read can leave
//! the file. The names of multimodal checkpoints are brought to those of the
//! text model, and the tensors of their other halves are left out.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use tch::{Kind, Tensor};

use super::tensor_from_bytes;
use crate::error::{Error, Result};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Every safetensors file of a directory.
pub(super) struct Shards {
    directory: PathBuf,
    shards: Vec<Shard>,
    /// Hugging Face name of the text model → shard and name in the shard.
    places: HashMap<String, (usize, String)>,
}

struct Shard {
    path: PathBuf,
    map: Mmap,
    metadata: Metadata,
    /// Where the tensors' bytes begin in the file.
    data_start: usize,
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

impl Shards {
    pub(super) fn open(directory: &Path) -> Result<Self> {
        let mut shards = Vec::new();
        let mut places = HashMap::new();
        for path in files(directory)? {
            let shard = Shard::open(&path)?;
            for stored in shard.metadata.offset_keys() {
                if let Some(name) = text_model_name(&stored) {
                    places.insert(name, (shards.len(), stored));
                }
            }
            shards.push(shard);
        }
        Ok(Self {
            directory: directory.to_owned(),
            shards,
            places,
        })
    }

    pub(super) fn names(&self) -> BTreeSet<String> {
        self.places.keys().cloned().collect()
    }

    pub(super) fn shape(&self, name: &str) -> Option<Vec<i64>> {
        let (shard, stored) = self.place(name)?;
        let info = shard.metadata.info(stored)?;
        Some(
            info.shape
                .iter()
                .map(|side| i64::try_from(*side).unwrap_or(i64::MAX))
                .collect(),
        )
    }

    pub(super) fn read(&self, name: &str) -> Result<Option<Tensor>> {
        let (Some((shard, stored)), Some(shape)) = (self.place(name), self.shape(name)) else {
            return Ok(None);
        };
        let Some(info) = shard.metadata.info(stored) else {
            return Ok(None);
        };
        let kind = match info.dtype {
            Dtype::F32 => Kind::Float,
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            Dtype::F64 => Kind::Double,
            other => {
                return Err(Error::UnsupportedDtype {
                    name: stored.to_owned(),
                    file: shard.path.display().to_string(),
                    found: format!("{other:?}"),
                    advice: "use a checkpoint in float32, float16 or bfloat16, or a GGUF file",
                });
            }
        };
        let (start, end) = info.data_offsets;
        let bytes = shard
            .map
            .get(shard.data_start + start..shard.data_start + end);
        tensor_from_bytes(stored, bytes.unwrap_or_default(), &shape, kind).map(Some)
    }

    pub(super) fn location(&self, name: &str) -> String {
        let path = self
            .place(name)
            .map_or(&self.directory, |(shard, _)| &shard.path);
        path.display().to_string()
    }

    fn place(&self, name: &str) -> Option<(&Shard, &str)> {
        let (shard, stored) = self.places.get(name)?;
        Some((self.shards.get(*shard)?, stored))
    }
}

impl Shard {
    fn open(path: &Path) -> Result<Self> {
        let io = |source| Error::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is only read. Model files are read-only artefacts; a
        // process that truncates one while it is being loaded is outside what
        // this crate promises to survive.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let (header, metadata) =
            SafeTensors::read_metadata(&map).map_err(|source| Error::Safetensors {
                path: path.to_owned(),
                source,
            })?;
        // The header's length stands in the file's first eight bytes.
        Ok(Self {
            path: path.to_owned(),
            map,
            metadata,
            data_start: header + 8,
        })
    }
}

/// The files to open, in a fixed order, each once.
pub(crate) fn files(directory: &Path) -> Result<BTreeSet<PathBuf>> {
    let index = directory.join(INDEX);
    if !index.exists() {
        let single = directory.join(SINGLE);
        if single.exists() {
            return Ok(BTreeSet::from([single]));
        }
        return Err(Error::NotAModel {
            path: directory.to_owned(),
            reason: format!("it holds neither {SINGLE} nor {INDEX}"),
        });
    }
    let text = std::fs::read_to_string(&index).map_err(|source| Error::Io {
        path: index.clone(),
        source,
    })?;
    let parsed: Index = serde_json::from_str(&text).map_err(|source| Error::Json {
        path: index.clone(),
        source,
    })?;
    parsed
        .weight_map
        .into_values()
        .map(|file| {
            // A name that climbs out of the directory is not a shard's name.
            if Path::new(&file).components().count() == 1 && !file.starts_with('.') {
                Ok(directory.join(file))
            } else {
                Err(Error::NotAModel {
                    path: index.clone(),
                    reason: format!("it names the shard `{file}`, which is no plain file name"),
                })
            }
        })
        .collect()
}

/// The name that a stored tensor has in the text model alone; `None` for the
/// halves that are not computed here.
fn text_model_name(stored: &str) -> Option<String> {
    const OTHER_HALVES: [&str; 4] = [
        "vision_tower.",
        "multi_modal_projector.",
        "model.vision_tower.",
        "model.multi_modal_projector.",
    ];
    if OTHER_HALVES.iter().any(|prefix| stored.starts_with(prefix))
        || stored.ends_with("rotary_emb.inv_freq")
    {
        return None;
    }
    if let Some(rest) = stored.strip_prefix("model.language_model.") {
        return Some(format!("model.{rest}"));
    }
    Some(
        stored
            .strip_prefix("language_model.")
            .unwrap_or(stored)
            .to_owned(),
    )
}
