//! Models out of repositories of the Hugging Face hub.
//!
//! Owns how a repository is named, which of its files make a model, and where they lie in the
//! cache. The transfer itself is the `hf-hub` crate's.
//!
//! Invariants: all files of a model are of one commit; no name that a hub gives leads out of
//! the model's own directory; `config.json` comes last, so that a directory which has one is
//! whole.

use std::fs;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::fetch::{FetchProgress, Fetcher, Progress, at, publish};
use super::{models_dir, sha256_file};
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
    id: String,
    revision: Option<String>,
    file: Option<String>,
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

    /// Fetches what makes a model of it into the cache; returns its directory or GGUF file.
    pub(super) fn fetch(
        &self,
        fetcher: &Fetcher,
        dir: &Path,
        progress: &mut Progress<'_>,
    ) -> Result<PathBuf> {
        let branch = self.revision.as_deref().unwrap_or("main");
        let info = self
            .api(fetcher, dir, branch)?
            .info()
            .map_err(|fault| self.explain(&fault, dir))?;
        let names = self.choose(
            info.siblings
                .iter()
                .map(|sibling| sibling.rfilename.as_str()),
        )?;
        if !is_plain(&info.sha) {
            return Err(self.fault(format!("the hub gave `{}` as its commit", info.sha)));
        }
        for name in &names {
            self.download(fetcher, &info.sha, name, dir, progress)?;
        }
        let destination = models_dir(&fetcher.cache_dir).join(self.folder());
        let config_last = |name: &&String| name.as_str() == "config.json";
        let (config, others): (Vec<&String>, Vec<&String>) = names.iter().partition(config_last);
        for name in others.into_iter().chain(config) {
            publish(&dir.join(&info.sha).join(name), &destination.join(name))?;
        }
        self.find(&fetcher.cache_dir)?
            .ok_or_else(|| self.fault("the hub's files make no model".to_owned()))
    }

    /// Fetches one file into `dir`, where its digest is still to be checked.
    pub(super) fn fetch_file(
        &self,
        fetcher: &Fetcher,
        name: &str,
        dir: &Path,
        progress: &mut Progress<'_>,
    ) -> Result<PathBuf> {
        let revision = self.revision.as_deref().unwrap_or("main");
        self.download(fetcher, revision, name, dir, progress)
    }

    /// Which of a repository's files make a model.
    fn choose<'a>(&self, names: impl Iterator<Item = &'a str>) -> Result<Vec<String>> {
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

    /// Downloads one file of one revision into `dir/REVISION/NAME`.
    fn download(
        &self,
        fetcher: &Fetcher,
        revision: &str,
        name: &str,
        dir: &Path,
        progress: &mut Progress<'_>,
    ) -> Result<PathBuf> {
        let place = dir.join(revision.replace('/', "--"));
        let path = place.join(name);
        if path.is_file() {
            return Ok(path);
        }
        fs::create_dir_all(&place).map_err(at(&place))?;
        let api = self.api(fetcher, dir, revision)?;
        let mut transfer = || {
            api.download_with_progress(
                name,
                Report {
                    progress,
                    what: name,
                    done: 0,
                    total: 0,
                },
            )
        };
        let pointer = transfer().or_else(|fault| {
            if !is_stale_part(&fault) {
                return Err(self.explain(&fault, dir));
            }
            let parts = hub_cache(dir);
            fs::remove_dir_all(&parts).map_err(at(&parts))?;
            transfer().map_err(|fault| self.explain(&fault, dir))
        })?;
        let blob = pointer.canonicalize().map_err(at(&pointer))?;
        self.check_blob(&blob, name, progress)?;
        fs::rename(&blob, &path).map_err(at(&path))?;
        // It led to the blob, and would be in the way of another download.
        fs::remove_file(&pointer).map_err(at(&pointer))?;
        Ok(path)
    }

    /// The hub names a large file by its SHA-256, which is worth a check.
    fn check_blob(&self, blob: &Path, name: &str, progress: &mut Progress<'_>) -> Result<()> {
        let expected = match blob.file_name().and_then(|name| name.to_str()) {
            Some(etag) if etag.len() == 64 && etag.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                etag.to_ascii_lowercase()
            }
            _ => return Ok(()),
        };
        let total = fs::metadata(blob).map_err(at(blob))?.len();
        let found = sha256_file(blob, &mut |done| {
            progress(FetchProgress::Checking { done, total });
        })?;
        if found == expected {
            return Ok(());
        }
        fs::remove_file(blob).map_err(at(blob))?;
        Err(Error::WrongDigest {
            what: format!("{name} of {}", self.id),
            path: blob.to_owned(),
            expected,
            found,
        })
    }

    fn api(&self, fetcher: &Fetcher, dir: &Path, revision: &str) -> Result<ApiRepo> {
        let mut builder = ApiBuilder::from_cache(Cache::new(hub_cache(dir)))
            .with_progress(false)
            .with_token(fetcher.hub_token.clone());
        if let Some(endpoint) = &fetcher.hub_endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
        }
        let api = builder.build().map_err(|fault| self.explain(&fault, dir))?;
        let repo = Repo::with_revision(self.id.clone(), RepoType::Model, revision.to_owned());
        Ok(api.repo(repo))
    }

    /// What the hub's refusal means, and what to do.
    fn explain(&self, fault: &ApiError, dir: &Path) -> Error {
        let text = fault.to_string();
        if let ApiError::IoError(source) = fault {
            let full = at(dir)(std::io::Error::new(source.kind(), text.clone()));
            if matches!(full, Error::NoSpace { .. }) {
                return full;
            }
        }
        let status = |code: &str| text.contains(&format!("status code {code}"));
        self.fault(if status("401") || status("403") || status("404") {
            "the hub shows no such repository, revision or file: check the name, accept the \
             model's terms on the hub if it asks for that, and set a token if it is not open \
             to all"
                .to_owned()
        } else if matches!(
            fault,
            ApiError::RequestError(_) | ApiError::TooManyRetries(_)
        ) {
            // Its last words are the cause; before them stand addresses.
            let cause = text.rsplit(": ").next().unwrap_or_default();
            format!(
                "the Hugging Face hub can't be reached: check the network and the proxy settings \
                 ({cause})"
            )
        } else {
            format!("the transfer from the hub failed; run the same command again ({text})")
        })
    }

    fn several<'a>(&self, files: impl Iterator<Item = &'a str>) -> Error {
        let files: Vec<String> = files.map(|file| format!("{}/{file}", self.id)).collect();
        self.fault(format!(
            "there are several GGUF files: name one of {}",
            files.join(", ")
        ))
    }

    fn fault(&self, reason: String) -> Error {
        Error::Fetch {
            what: self.id.clone(),
            reason,
        }
    }
}

/// Where `hf-hub` keeps what it transfers, until it is moved to its place.
fn hub_cache(dir: &Path) -> PathBuf {
    dir.join("hub")
}

/// Whether a transfer failed because the part on the disk is already as long as the file, or
/// longer: it can't be gone on with.
fn is_stale_part(fault: &ApiError) -> bool {
    matches!(fault, ApiError::InvalidResume) || fault.to_string().contains("status code 416")
}

/// One segment of a path that stays where it is put.
fn is_plain(segment: &str) -> bool {
    !segment.is_empty()
        && !segment.starts_with('.')
        && segment
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte))
}

/// Hands `hf-hub`'s counts on as ours.
struct Report<'a, 'p> {
    progress: &'a mut Progress<'p>,
    what: &'a str,
    done: u64,
    total: u64,
}

impl hf_hub::api::Progress for Report<'_, '_> {
    fn init(&mut self, size: usize, _filename: &str) {
        self.done = 0;
        self.total = size as u64;
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        (self.progress)(FetchProgress::Fetching {
            what: self.what,
            done: self.done,
            total: self.total,
        });
    }

    fn finish(&mut self) {}
}
