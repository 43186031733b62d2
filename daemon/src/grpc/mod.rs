//! The gRPC face: one file a service, over what they share.
//!
//! Owns the translation between wire and daemon, and every check of a request. Holds no tensor and
//! opens no file. Invariant: whatever a client sends, it gets a status and a sentence.

pub(crate) mod adapters;
pub(crate) mod admin;
pub(crate) mod certificates;
pub(crate) mod certify;
pub(crate) mod check;
pub(crate) mod context;
pub(crate) mod generation;
pub(crate) mod jobs;
pub(crate) mod knowledge;
pub(crate) mod locating;
mod lookup;
pub(crate) mod mode;
pub(crate) mod packets;
mod patches;
mod preparing;
pub(crate) mod status;
pub(crate) mod ticket;
pub(crate) mod upkeep;
pub(crate) mod warm;
pub(crate) mod words;

use std::sync::{Arc, OnceLock};

use addenda_cache::Store;
use addenda_model::{ChatTemplate, Tokenizer};
use addenda_proto::addenda::v1::Mode;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};

use crate::certificates::Basis;
use crate::certificates::kept::Certificates;
use crate::config::Config;
use crate::digest::Digest;
use crate::documents::Documents;
use crate::engine::Engine;
use crate::engine::command::{NO_ADAPTER, Ticket};
use crate::engine::load::Loaded;
use crate::error::{Error, Result};
use crate::grpc::mode::{Certified, Way};
use crate::grpc::ticket::Leave;
use crate::jobs::Jobs;

/// What all services share.
pub(crate) struct Daemon {
    pub(crate) config: Config,
    pub(crate) engine: Engine,
    pub(crate) store: Arc<Store>,
    pub(crate) jobs: Jobs,
    pub(crate) started_at_ms: u64,
    /// Cancelled when the daemon is told to stop.
    pub(crate) stop: CancellationToken,
    /// There once the model is loaded.
    pub(crate) serving: OnceLock<Arc<Serving>>,
}

/// What is there once the model is loaded.
pub(crate) struct Serving {
    pub(crate) loaded: Loaded,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) documents: Documents,
    pub(crate) certificates: Certificates,
}

impl Daemon {
    /// Everything that needs the model.
    ///
    /// # Errors
    /// The model is not loaded yet.
    pub(crate) fn serving(&self) -> Result<&Arc<Serving>> {
        self.serving.get().ok_or(Error::Starting)
    }

    /// What a request needs: the model and a ticket.
    ///
    /// # Errors
    /// The model is not loaded yet, or the request's deadline has passed.
    pub(crate) fn admit<T>(
        &self,
        method: &'static str,
        request: &Request<T>,
    ) -> std::result::Result<(Arc<Serving>, Ticket, Leave), Status> {
        let admit = || {
            let serving = Arc::clone(self.serving()?);
            let (ticket, leave) = ticket::ticket(method, request.metadata(), self.engine.queue())?;
            Ok((serving, ticket, leave))
        };
        admit().map_err(|error: Error| status::status(&error))
    }
}

impl Serving {
    pub(crate) fn template(&self) -> Option<&ChatTemplate> {
        self.loaded.chat_template.as_deref()
    }

    /// All that a measurement of `way` would depend on now.
    pub(crate) fn basis(&self, way: Way) -> Basis {
        let documents = &self.documents;
        let under = documents.engine.state().under;
        let adapter = match way.mode {
            Mode::Packet => under.adapter,
            _ => NO_ADAPTER,
        };
        let link = way.mode == Mode::Link;
        let blend = way.mode == Mode::Blend;
        Basis {
            mode: way.mode.into(),
            link_tokens: link.then(|| u32::try_from(way.link_tokens()).unwrap_or(u32::MAX)),
            blend_share: blend.then(|| way.share()),
            revision: under.revision.to_string(),
            adapter: packets::shown(adapter),
            tokenizer: Digest(self.tokenizer.fingerprint()).to_string(),
            codec: documents.packets.dtype().to_owned(),
            rope: documents.packets.rope().to_owned(),
            primer: packets::shown(documents.packets.primer()),
            format: addenda_cache::FORMAT,
        }
    }

    /// What is known of how well `way` agrees with full prefill, under all that is active now.
    pub(crate) fn certified(&self, way: Way) -> Option<Certified> {
        let certificate = self.certificates.find(&self.basis(way))?;
        Some(certificate.certified())
    }

    /// Fails unless a prompt leaves room for one token at least.
    pub(crate) fn check_room(&self, tokens: usize) -> Result<()> {
        let context = self.loaded.config.context;
        if tokens == 0 {
            return Err(Error::invalid("prompt", "has no tokens"));
        }
        if tokens >= context {
            return Err(addenda_model::Error::TooLong { tokens, context }.into());
        }
        Ok(())
    }
}
