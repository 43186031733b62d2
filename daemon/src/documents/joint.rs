//! Joint packets (CAG, Chan et al. 2025): what stands before the documents and the documents, in this
//! order, prefilled together. Standing at the beginning of a context, such a packet is exact.
//!
//! Owns how they are found and made. A joint packet has no name: whoever asks for the same
//! tokens in the same namespace finds it by its key. Invariant: it is kept as it was computed, whatever
//! the codec of other packets.

use addenda_cache::{PacketId, token_bytes};
use addenda_model::Codec;

use super::{Documents, blocking};
use crate::engine::command::{Build, Command, Form, Ticket};
use crate::error::Result;
use crate::packets::{Keep, PacketSource};

/// Domain of the digest of a joint packet's tokens.
const SOURCE_CONTEXT: &str = "addenda 2026-11 joint source v1";

impl Documents {
    /// The packet of all these tokens under the present weights, and whether it had to be computed now.
    ///
    /// # Errors
    /// More tokens than the model's context, a full store, or the engine's.
    pub(crate) async fn joint(
        &self,
        ticket: &Ticket,
        namespace: &str,
        ids: &[u32],
    ) -> Result<(PacketId, PacketSource, bool)> {
        self.check_length(ids.len())?;
        let origin = self.engine.state().under.origin(Form::Joint);
        let (packets, ids, space) = (self.packets.joint(), ids.to_vec(), namespace.to_owned());
        let known = {
            let (packets, ids, space) = (packets.clone(), ids.clone(), space.clone());
            blocking(move || {
                let key = packets.key(&space, &ids, origin);
                let Some(manifest) = packets.store().lookup(&key)? else {
                    return Ok(None);
                };
                Ok(Some((manifest.id, packets.open(&manifest)?, false)))
            })
        };
        if let Some(known) = known.await? {
            return Ok(known);
        }
        let build = |reply| {
            Command::Build(Box::new(Build {
                ids: ids.clone(),
                form: Form::Joint,
                codec: Codec::None,
                reply,
            }))
        };
        let built = self.engine.ask(ticket, build).await?;
        blocking(move || {
            let keep = Keep {
                namespace: &space,
                document: "",
                source: blake3::derive_key(SOURCE_CONTEXT, &token_bytes(&ids)),
                ids: &ids,
                alone: false,
            };
            let put = packets.keep(&keep, &built)?;
            let manifest = packets.store().get(&put.id)?;
            let manifest = manifest.ok_or(addenda_cache::Error::NotFound { id: put.id })?;
            Ok((put.id, packets.open(&manifest)?, put.created))
        })
        .await
    }
}
