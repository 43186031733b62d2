//! Transfers from the Hugging Face hub.
//!
//! Owns what is asked of the `hf-hub` crate, which moves the bytes, and what its complaints mean.
//!
//! Invariants: all files of a model are of one commit; `config.json` is published last, so that a
//! directory which has one is whole.

use std::fs;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::fetch::{FetchProgress, Fetcher, Progress, at, publish};
use super::repository::{Repository, is_plain};
use super::{models_dir, sha256_file};
use crate::error::{Error, Result};

impl Repository {
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
