//! Small files that appear whole or not at all, and are read within bounds.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use addenda_model::adapter::MAX_FILE_BYTES;

use crate::error::{Error, Result};

/// Writes `bytes` to `path`: durable when this returns, and never half.
///
/// # Errors
/// The disk's.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |source| Error::Io {
        path: path.to_owned(),
        source,
    };
    let directory = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(directory).map_err(failed)?;
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    let directory = File::open(directory).map_err(failed)?;
    directory.sync_all().map_err(failed)
}

/// Reads a file of at most [`MAX_FILE_BYTES`].
///
/// # Errors
/// The disk's, or a larger file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let failed = |source| Error::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    let most = MAX_FILE_BYTES as u64;
    file.take(most + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > most {
        return Err(failed(std::io::Error::other(
            "it is larger than an adapter may be",
        )));
    }
    Ok(bytes)
}
