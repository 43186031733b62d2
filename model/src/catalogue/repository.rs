//! Repositories of the Hugging Face hub: how they are named, which of their files make a model,
//! and where those lie in the cache.
//!
//! Never reaches the hub itself; that is `hub`'s.
//!
//! Invariant: no name, whether a person's or the hub's, leads out of the model's own directory.

use std::fs;
use std::path::{Path, PathBuf};

use super::models_dir;
use crate::error::{Error, Result};

/// The small files beside the weights. Only `config.json` must be there.
const SMALL_FILES: [&str; 14] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "model.safetensors.index.json",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
];

/// A repository of the hub as a person names it: `owner/name`, `owner/name@revision`,
/// `owner/name/file.gguf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Repository {
    pub(super) id: String,
    pub(super) revision: Option<String>,
    pub(super) file: Option<String>,
}

impl Repository {
    /// Reads a repository's name; `None` when it is not one, a path for instance.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let (name, revision) = match name.split_once('@') {
            Some((name, revision)) => (name, Some(revision)),
            None => (name, None),
        };
        let segments: Vec<&str> = name.split('/').collect();
        let is_gguf = |segment: &str| segment.ends_with(".gguf");
        let (owner, repository, file) = match *segments.as_slice() {
            [owner, repository] if !is_gguf(repository) => (owner, repository, None),
            [owner, repository, file] if is_gguf(file) => (owner, repository, Some(file)),
            _ => return None,
        };
        let plain = segments.iter().all(|segment| is_plain(segment))
            && revision.is_none_or(|revision| revision.split('/').all(is_plain));
        plain.then(|| Self {
            id: format!("{owner}/{repository}"),
            revision: revision.map(str::to_owned),
            file: file.map(str::to_owned),
        })
    }

    /// The one file of a repository that the catalogue names.
    pub(super) fn single_file(id: &str, revision: &str, file: &str) -> Result<Self> {
        Self::parse(&format!("{id}/{file}@{revision}")).ok_or_else(|| {
            Error::Invalid(format!(
                "the catalogue names `{file}` of `{id}`, which is no name of a GGUF file in a \
                 repository"
            ))
        })
    }

    /// The name of its directory in the cache.
    pub(super) fn folder(&self) -> String {
        let folder = self.id.replace('/', "--");
        match &self.revision {
            Some(revision) => format!("{folder}@{}", revision.replace('/', "--")),
            None => folder,
        }
    }

    /// What lies in the cache of it: its directory, or its GGUF file.
    pub(super) fn find(&self, cache_dir: &Path) -> Result<Option<PathBuf>> {
        let dir = models_dir(cache_dir).join(self.folder());
        if let Some(file) = &self.file {
            let path = dir.join(file);
            return Ok(path.is_file().then_some(path));
        }
        if dir.join("config.json").is_file() {
            return Ok(Some(dir));
        }
        let Ok(files) = fs::read_dir(&dir) else {
            return Ok(None);
        };
        let mut files: Vec<PathBuf> = files
            .filter_map(|file| Some(file.ok()?.path()))
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "gguf")
            })
            .collect();
        match files.len() {
            0 | 1 => Ok(files.pop()),
            _ => Err(self.several(files.iter().filter_map(|path| path.file_name()?.to_str()))),
        }
    }

    /// Which of a repository's files make a model.
    pub(super) fn choose<'a>(&self, names: impl Iterator<Item = &'a str>) -> Result<Vec<String>> {
        // Files in folders are other formats of the same model; and a name that is not plain
        // must not become a path here.
        let names: Vec<&str> = names.filter(|name| is_plain(name)).collect();
        if let Some(file) = &self.file {
            return if names.contains(&file.as_str()) {
                Ok(vec![file.clone()])
            } else {
                Err(self.fault(format!("the repository has no file {file}")))
            };
        }
        let ending = |ending: &str| -> Vec<&str> {
            let found = names.iter().filter(|name| name.ends_with(ending));
            found.copied().collect()
        };
        let mut weights = ending(".safetensors");
        if weights.iter().any(|name| name.starts_with("model")) {
            // Some repositories hold the same weights a second time under another name.
            weights.retain(|name| name.starts_with("model"));
        }
        let mut ggufs = ending(".gguf");
        if !weights.is_empty() && names.contains(&"config.json") {
            let small = names.iter().filter(|name| SMALL_FILES.contains(name));
            weights.extend(small);
            Ok(weights.into_iter().map(str::to_owned).collect())
        } else if ggufs.len() > 1 {
            ggufs.sort_unstable();
            Err(self.several(ggufs.into_iter()))
        } else if let Some(only) = ggufs.pop() {
            Ok(vec![only.to_owned()])
        } else {
            Err(self.fault(
                "the repository holds neither safetensors with a config.json nor a GGUF file"
                    .to_owned(),
            ))
        }
    }

    fn several<'a>(&self, files: impl Iterator<Item = &'a str>) -> Error {
        let files: Vec<String> = files.map(|file| format!("{}/{file}", self.id)).collect();
        self.fault(format!(
            "there are several GGUF files: name one of {}",
            files.join(", ")
        ))
    }

    pub(super) fn fault(&self, reason: String) -> Error {
        Error::Fetch {
            what: self.id.clone(),
            reason,
        }
    }
}

/// One segment of a path that stays where it is put.
pub(super) fn is_plain(segment: &str) -> bool {
    !segment.is_empty()
        && !segment.starts_with('.')
        && segment
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte))
}
