//! Matrices in f64 or f32 on disk, as safetensors files with a digest over names, shapes and numbers.
//!
//! A file is never seen half written, and one that does not match its digest is never read. What a file is for, and
//! under which address it lies, is its owner's business.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tch::{Kind, Tensor};

use crate::digest::{Canonical, hex};
use crate::error::{Error, Result};
use crate::moment::write_durably;
use crate::rows::{doubles, floats, index};

/// Matrices by name, and what is said about them.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) matrices: Vec<(String, Tensor)>,
    pub(crate) about: HashMap<String, String>,
}

impl Kept {
    /// Writes them; durable when this returns.
    pub(crate) fn save(mut self, path: &Path) -> Result<()> {
        let damaged = |error: &dyn std::fmt::Display| Error::DamagedMoment {
            path: path.to_path_buf(),
            problem: error.to_string(),
        };
        let mut tensors = Vec::new();
        for (name, matrix) in &self.matrices {
            let (dtype, bytes) = numbers(matrix).map_err(Error::torch("reading a matrix"))?;
            let shape = matrix.size();
            let shape = shape.iter().map(|size| usize::try_from(*size).unwrap_or(0));
            tensors.push((name.as_str(), dtype, shape.collect::<Vec<_>>(), bytes));
        }
        tensors.sort_by(|one, other| one.0.cmp(other.0));
        let parts = tensors
            .iter()
            .map(|(name, _, shape, bytes)| (*name, shape.as_slice(), &**bytes));
        let digest = digest(&self.about, parts);
        self.about.insert("digest".to_owned(), hex(&digest));
        let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
            let view = TensorView::new(*dtype, shape.clone(), bytes);
            Ok((*name, view.map_err(|error| damaged(&error))?))
        });
        let views: Vec<(&str, TensorView<'_>)> = views.collect::<Result<_>>()?;
        let bytes = safetensors::serialize(views, Some(self.about.clone()));
        let bytes = bytes.map_err(|error| damaged(&error))?;
        let dir = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(dir).map_err(Error::io("make the folder", dir))?;
        write_durably(dir, path, &bytes).map_err(Error::io("write the matrices", path))
    }

    /// Reads them; none if there is no such file.
    pub(crate) fn load(path: &Path) -> Result<Option<Self>> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read the matrices", path)(error)),
        };
        let kept = Self::parse(&bytes);
        kept.map(Some).map_err(|problem| Error::DamagedMoment {
            path: path.to_path_buf(),
            problem,
        })
    }

    fn parse(bytes: &[u8]) -> std::result::Result<Self, String> {
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
        let mut about = header.metadata().clone().ok_or("it has no metadata")?;
        let named = about.remove("digest").ok_or("its metadata lack a digest")?;
        let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
        let mut views: Vec<(&str, TensorView<'_>)> = file.iter().collect();
        views.sort_by_key(|(name, _)| *name);
        let parts = views
            .iter()
            .map(|(name, view)| (*name, view.shape(), view.data()));
        if named != hex(&digest(&about, parts)) {
            return Err("its digest does not match".to_owned());
        }
        let matrices = views.iter().map(|(name, view)| {
            let kind = match view.dtype() {
                Dtype::F64 => Kind::Double,
                Dtype::F32 => Kind::Float,
                other => return Err(format!("{name} is {other:?} instead of F64 or F32")),
            };
            let shape: Vec<i64> = view.shape().iter().map(|size| index(*size)).collect();
            let tensor = Tensor::f_from_data_size(view.data(), &shape, kind);
            Ok((
                (*name).to_owned(),
                tensor.map_err(|error| error.to_string())?,
            ))
        });
        Ok(Self {
            matrices: matrices.collect::<std::result::Result<_, _>>()?,
            about,
        })
    }

    /// A number that is said about them.
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.about.get(name)?.parse().ok()
    }
}

/// Row-major; what is not f32 as f64.
fn numbers(matrix: &Tensor) -> std::result::Result<(Dtype, Vec<u8>), tch::TchError> {
    Ok(match matrix.kind() {
        Kind::Float => {
            let numbers = floats(matrix)?;
            let bytes = numbers.iter().flat_map(|n| n.to_le_bytes());
            (Dtype::F32, bytes.collect())
        }
        _ => {
            let flat = doubles(matrix)?.f_contiguous()?.f_view([-1])?;
            let numbers = Vec::<f64>::try_from(flat)?;
            let bytes = numbers.iter().flat_map(|n| n.to_le_bytes());
            (Dtype::F64, bytes.collect())
        }
    })
}

fn digest<'a>(
    about: &HashMap<String, String>,
    parts: impl Iterator<Item = (&'a str, &'a [usize], &'a [u8])>,
) -> [u8; 32] {
    let mut canonical = Canonical::new("addenda 2026-01 kept matrices");
    let mut said: Vec<_> = about.iter().collect();
    said.sort();
    for (name, text) in said {
        canonical.text(name).text(text);
    }
    for (name, shape, bytes) in parts {
        canonical.text(name);
        for size in shape {
            canonical.number(*size as u64);
        }
        canonical.bytes(bytes);
    }
    canonical.finish()
}
