//! Where a warm-up's documents come from: files, folders, lines of JSON.
//!
//! Owns which files are documents and what they are called. Never sends anything.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::{Path, PathBuf};

use addenda_proto::addenda::v1::PutDocumentRequest;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

use crate::cli::error::{Error, Result};

/// Documents that are read ahead of the daemon; the wire's own flow control does the rest.
const READ_AHEAD: usize = 2;

/// One file with documents in it.
pub(crate) enum Source {
    /// A text, and its document's name.
    Text { path: PathBuf, name: String },
    /// A document on each line, as JSON.
    Lines(PathBuf),
}

/// A line of JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(default)]
    name: String,
    text: String,
}

/// All documents' files, those of a folder in the order of their names, and how many documents.
///
/// # Errors
/// A path that cannot be read.
pub(crate) fn sources(paths: &[PathBuf], extensions: &[String]) -> Result<(Vec<Source>, usize)> {
    let (mut sources, mut total) = (Vec::new(), 0);
    for path in paths {
        let failed = |source| Error::File {
            path: path.clone(),
            source,
        };
        if std::fs::metadata(path).map_err(failed)?.is_dir() {
            for file in files(path, extensions)? {
                let name = name_of(file.strip_prefix(path).unwrap_or(&file));
                total += 1;
                sources.push(Source::Text { path: file, name });
            }
        } else if path.extension().is_some_and(|ending| ending == "jsonl") {
            let lines = BufReader::new(File::open(path).map_err(failed)?).split(b'\n');
            for line in lines {
                total += usize::from(!line.map_err(failed)?.trim_ascii().is_empty());
            }
            sources.push(Source::Lines(path.clone()));
        } else {
            let name = name_of(Path::new(path.file_name().unwrap_or_default()));
            total += 1;
            sources.push(Source::Text {
                path: path.clone(),
                name,
            });
        }
    }
    Ok((sources, total))
}

fn name_of(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "/")
}

/// All files of a folder and below, in the order of their names.
fn files(folder: &Path, extensions: &[String]) -> Result<Vec<PathBuf>> {
    let wanted = |path: &Path| {
        let ending = path.extension().unwrap_or_default();
        let mut wanted = extensions.iter();
        extensions.is_empty()
            || wanted.any(|wanted| ending.eq_ignore_ascii_case(wanted.trim_start_matches('.')))
    };
    let mut found = Vec::new();
    let mut dirs = vec![folder.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        let failed = |source| Error::File {
            path: dir.clone(),
            source,
        };
        for entry in std::fs::read_dir(&dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let kind = entry.file_type().map_err(failed)?;
            let path = entry.path();
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            if kind.is_dir() {
                dirs.push(path);
            } else if kind.is_file() && wanted(&path) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Reads the documents on a thread of their own, a few ahead; it returns a line for each that cannot
/// be read.
pub(crate) fn read_all(
    sources: Vec<Source>,
    namespace: String,
) -> (ReceiverStream<PutDocumentRequest>, JoinHandle<Vec<String>>) {
    let (documents, stream) = mpsc::channel(READ_AHEAD);
    let reader = tokio::task::spawn_blocking(move || {
        let mut reader = Reader {
            documents,
            namespace,
            left_out: Vec::new(),
        };
        for source in sources {
            let goes_on = match source {
                Source::Text { path, name } => match std::fs::read_to_string(&path) {
                    Ok(text) => reader.send(name, text),
                    Err(error) => reader.leave_out(&path.display().to_string(), &error),
                },
                Source::Lines(path) => reader.lines(&path),
            };
            if !goes_on {
                break;
            }
        }
        reader.left_out
    });
    (ReceiverStream::new(stream), reader)
}

struct Reader {
    documents: mpsc::Sender<PutDocumentRequest>,
    namespace: String,
    left_out: Vec<String>,
}

/// What the methods return: false where nobody takes documents any more.
impl Reader {
    fn send(&self, name: String, text: String) -> bool {
        let request = PutDocumentRequest {
            name,
            text,
            namespace: self.namespace.clone(),
        };
        self.documents.blocking_send(request).is_ok()
    }

    fn leave_out(&mut self, place: &str, error: &std::io::Error) -> bool {
        let why = match error.kind() {
            ErrorKind::InvalidData => "it is not UTF-8 text".to_owned(),
            _ => error.to_string(),
        };
        self.left_out.push(format!("{place}: left out: {why}"));
        true
    }

    fn lines(&mut self, path: &Path) -> bool {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) => return self.leave_out(&path.display().to_string(), &error),
        };
        for (number, line) in (1_u64..).zip(BufReader::new(file).split(b'\n')) {
            let place = format!("{}:{number}", path.display());
            let line = match line {
                Ok(line) => line,
                Err(error) => return self.leave_out(&place, &error),
            };
            if line.trim_ascii().is_empty() {
                continue;
            }
            match serde_json::from_slice::<Line>(&line) {
                Ok(Line { name, text }) => {
                    if !self.send(name, text) {
                        return false;
                    }
                }
                Err(error) => self.left_out.push(format!("{place}: left out: {error}")),
            }
        }
        true
    }
}
