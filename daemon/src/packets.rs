//! The way between tensors and bytes: KV from the engine into the store, and bodies of the
//! store back to the engine as KV that nobody copied.
//!
//! Owns what a packet's key is made of here. Never computes KV and never decides which packet a
//! request needs. Invariant: KV is handed to the engine only under the weights revision, tokenizer,
//! dtype, shape and RoPE settings that it was made with.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use addenda_cache::{Body, KeyFields, Manifest, PacketHeader, PacketId, PacketKey, Put, Store};
use addenda_model::{Codec, ModelConfig, PacketKv, PacketShape, RopeScaling};
use tch::Device;

use crate::digest::Digest;
use crate::engine::command::{Built, NO_ADAPTER, Origin};
use crate::engine::load::Loaded;
use crate::error::{Error, Result};
use crate::jobs::now_ms;
use crate::primer::Primer;

/// A packet on its way to the engine: verified bytes and what they mean.
#[derive(Debug, Clone)]
pub(crate) struct PacketSource {
    id: PacketId,
    origin: Origin,
    shape: PacketShape,
    codec: Codec,
    body: Bytes,
}

/// Where a packet's bytes lie.
#[derive(Clone)]
enum Bytes {
    /// In the store.
    Stored(Body),
    /// In memory: of an adapter.
    Held(Arc<[u8]>),
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Stored(body) => body.as_ref(),
            Self::Held(bytes) => bytes,
        }
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Bytes").field(&self.as_ref().len()).finish()
    }
}

impl PacketSource {
    /// An adapter's bridge, under the weights of a revision; its id is the adapter's digest.
    ///
    /// # Errors
    /// libtorch's.
    pub(crate) fn of_bridge(bridge: &PacketKv, origin: Origin) -> Result<Self> {
        Ok(Self {
            id: PacketId::from_bytes(origin.adapter.0),
            origin,
            shape: bridge.shape(),
            codec: Codec::None,
            body: Bytes::Held(bridge.to_bytes()?.into()),
        })
    }

    /// The same to be read under the weights of another revision.
    pub(crate) fn under(mut self, revision: Digest) -> Self {
        self.origin.revision = revision;
        self
    }

    pub(crate) fn tokens(&self) -> usize {
        self.shape.tokens
    }

    pub(crate) fn origin(&self) -> Origin {
        self.origin
    }
}

/// What distinguishes this model's packets from all others.
#[derive(Debug, Clone)]
struct Identity {
    tokenizer: [u8; 32],
    /// What packets are computed behind.
    primer: [u8; 32],
    rope: String,
    shape: PacketShape,
    /// How packets are kept from now on.
    codec: Codec,
}

/// The part of a key in which a packet differs from the one that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Differs {
    Revision,
    Adapter,
    Codec,
    Rope,
    Primer,
    Tokenizer,
}

/// Why a packet does not serve.
#[derive(Debug, Clone)]
pub(crate) struct Stale {
    pub(crate) differs: Differs,
    pub(crate) reason: String,
}

/// A document's KV that is to be kept.
pub(crate) struct Keep<'a> {
    pub(crate) namespace: &'a str,
    /// The document's name; may be empty.
    pub(crate) document: &'a str,
    /// BLAKE3 of its text.
    pub(crate) source: [u8; 32],
    pub(crate) ids: &'a [u32],
    /// Whether it is all of its document, so that the document's name stands for it from now on.
    pub(crate) alone: bool,
}

/// The store as this model sees it. Its methods touch the disk: call them where that may block.
#[derive(Clone)]
pub(crate) struct Packets {
    store: Arc<Store>,
    identity: Identity,
}

impl Packets {
    pub(crate) fn new(store: Arc<Store>, loaded: &Loaded, codec: Codec) -> Self {
        let config = &loaded.config;
        let shape = PacketShape::of(config, loaded.kind, 0);
        let identity = Identity {
            tokenizer: loaded.tokenizer.fingerprint(),
            primer: loaded.primer.digest().0,
            rope: rope(config),
            shape,
            codec,
        };
        Self { store, identity }
    }

    /// The same for packets of whole beginnings: computed behind nothing, and kept as they were computed.
    pub(crate) fn joint(&self) -> Self {
        let mut packets = self.clone();
        packets.identity.codec = Codec::None;
        packets.identity.primer = Primer::default().digest().0;
        packets
    }

    /// How the bytes of new packets are to be made.
    pub(crate) fn codec(&self) -> Codec {
        self.identity.codec
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The key of a packet of these tokens and this origin, whether there is one or not.
    pub(crate) fn key(&self, namespace: &str, ids: &[u32], origin: Origin) -> PacketKey {
        PacketKey::derive(&KeyFields {
            revision: &origin.revision.0,
            tokenizer: &self.identity.tokenizer,
            adapter: &origin.adapter.0,
            primer: &self.identity.primer,
            token_ids: ids,
            dtype: self.dtype(),
            rope: &self.identity.rope,
            namespace,
        })
    }

    /// Stores a document's KV; durable when this returns.
    ///
    /// # Errors
    /// The store's: a full disk or budget.
    pub(crate) fn keep(&self, keep: &Keep<'_>, built: &Built) -> Result<Put> {
        let count = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let shape = self.identity.shape;
        let header = PacketHeader {
            key: self.key(keep.namespace, keep.ids, built.origin),
            namespace: keep.namespace.to_owned(),
            document: keep.document.to_owned(),
            source: keep.source,
            revision: built.origin.revision.0,
            tokenizer: self.identity.tokenizer,
            adapter: built.origin.adapter.0,
            primer: self.identity.primer,
            tokens: count(built.tokens),
            dtype: self.dtype().to_owned(),
            rope: self.identity.rope.clone(),
            layers: count(shape.layers),
            kv_heads: count(shape.kv_heads),
            head_dim: count(shape.head_dim),
            created_at_ms: now_ms(),
        };
        let put = if keep.alone {
            self.store.put(&header, keep.ids, &[&built.bytes])
        } else {
            self.store.stage(&header, keep.ids, &[&built.bytes])
        };
        Ok(put?)
    }

    /// Opens a packet for the engine; its bytes are verified if they were not yet.
    ///
    /// # Errors
    /// Damaged bytes, or a packet of another model.
    pub(crate) fn open(&self, manifest: &Manifest) -> Result<PacketSource> {
        self.check(manifest)?;
        let (id, dtype) = (manifest.id, &manifest.header.dtype);
        let codec = Codec::of_dtype(dtype, self.identity.shape.kind);
        let codec = codec.ok_or_else(|| Error::Precondition {
            field: "dtype",
            reason: format!(
                "of packet {id} is {dtype}, which this model does not read; put the document again"
            ),
        })?;
        Ok(PacketSource {
            id: manifest.id,
            origin: Origin {
                revision: Digest(manifest.header.revision),
                adapter: Digest(manifest.header.adapter),
            },
            shape: PacketShape {
                tokens: manifest.header.tokens as usize,
                ..self.identity.shape
            },
            codec,
            body: Bytes::Stored(self.store.read(&manifest.id)?),
        })
    }

    /// Whether a packet's tokens mean the same here, whatever it was computed with.
    ///
    /// # Errors
    /// It is of another tokenizer.
    pub(crate) fn check(&self, manifest: &Manifest) -> Result<()> {
        if manifest.header.tokenizer == self.identity.tokenizer {
            return Ok(());
        }
        let id = manifest.id;
        let reason = format!("of packet {id} is not this model's; put the document again");
        Err(Error::Precondition {
            field: "tokenizer",
            reason,
        })
    }

    /// Why a packet does not serve where one of `origin` is wanted; none if it does.
    pub(crate) fn stale(&self, manifest: &Manifest, origin: Origin) -> Option<Stale> {
        let header = &manifest.header;
        let stale = |differs, reason| Some(Stale { differs, reason });
        if header.revision != origin.revision.0 {
            let (made, now) = (Digest(header.revision), origin.revision);
            let reason = format!("made under weights revision {made}, now {now}");
            return stale(Differs::Revision, reason);
        }
        if header.adapter != origin.adapter.0 {
            let name = |digest: Digest| match digest == NO_ADAPTER {
                true => "no adapter".to_owned(),
                false => format!("adapter {digest}"),
            };
            let (made, now) = (Digest(header.adapter), origin.adapter);
            let reason = format!("made with {}, now {}", name(made), name(now));
            return stale(Differs::Adapter, reason);
        }
        if header.dtype != self.dtype() {
            let reason = format!("made as {}, now {}", header.dtype, self.dtype());
            return stale(Differs::Codec, reason);
        }
        if header.rope != self.identity.rope {
            return stale(Differs::Rope, "made with other RoPE settings".to_owned());
        }
        if header.primer != self.identity.primer {
            let reason = "computed behind other tokens, or behind none".to_owned();
            return stale(Differs::Primer, reason);
        }
        if header.tokenizer != self.identity.tokenizer {
            return stale(Differs::Tokenizer, "made with another tokenizer".to_owned());
        }
        None
    }

    /// Digest of what packets are computed behind; zeros for nothing.
    pub(crate) fn primer(&self) -> Digest {
        Digest(self.identity.primer)
    }

    /// The RoPE settings as keys and headers spell them.
    pub(crate) fn rope(&self) -> &str {
        &self.identity.rope
    }

    /// What packets are stored as.
    pub(crate) fn dtype(&self) -> &'static str {
        self.identity.codec.dtype(self.identity.shape.kind)
    }
}

/// RoPE settings in one canonical spelling.
fn rope(config: &ModelConfig) -> String {
    let scaling = match &config.rope_scaling {
        RopeScaling::None => "none".to_owned(),
        other => format!("{other:?}"),
    };
    let local = config.rope_local_theta;
    format!(
        "theta={:?} local={local:?} scaling={scaling}",
        config.rope_theta
    )
}

/// The engine's packets: each is opened once and shared by all sequences that read it.
///
/// Owns nothing but references: a packet that was deleted from the store stays readable for those
/// that read it. What nobody has read for longest is let go once `budget` bytes are open.
pub(crate) struct Shelf {
    device: Device,
    budget: u64,
    open: HashMap<PacketId, Opened>,
    bytes: u64,
    clock: u64,
}

struct Opened {
    packet: Rc<PacketKv>,
    bytes: u64,
    used: u64,
}

impl Shelf {
    pub(crate) fn new(device: Device, budget: u64) -> Self {
        Self {
            device,
            budget,
            open: HashMap::new(),
            bytes: 0,
            clock: 0,
        }
    }

    /// The packet as KV, shared. On the CPU its tensors lie over the store's memory map; a coded
    /// packet is decoded into memory of its own, once for as long as it is open.
    ///
    /// # Errors
    /// A body whose length is not what its header says, or libtorch's.
    pub(crate) fn open(&mut self, source: &PacketSource) -> Result<Rc<PacketKv>> {
        self.clock += 1;
        if let Some(opened) = self.open.get_mut(&source.id) {
            opened.used = self.clock;
            return Ok(Rc::clone(&opened.packet));
        }
        let bytes = source.shape.bytes()? as u64;
        self.make_room(bytes);
        let packet = Rc::new(match source.codec {
            Codec::None => {
                let owner = Box::new(source.body.clone());
                PacketKv::from_owner(owner, source.shape, self.device)?
            }
            codec => codec.decode(source.body.as_ref(), source.shape, self.device)?,
        });
        self.bytes += bytes;
        let opened = Opened {
            packet: Rc::clone(&packet),
            bytes,
            used: self.clock,
        };
        self.open.insert(source.id, opened);
        Ok(packet)
    }

    /// Closes packets; who reads one still holds it.
    pub(crate) fn forget(&mut self, ids: &[PacketId]) {
        for id in ids {
            if let Some(opened) = self.open.remove(id) {
                self.bytes -= opened.bytes;
            }
        }
    }

    fn make_room(&mut self, bytes: u64) {
        while self.bytes.saturating_add(bytes) > self.budget {
            let oldest = self.open.iter().min_by_key(|(_, opened)| opened.used);
            let Some(id) = oldest.map(|(id, _)| *id) else {
                return;
            };
            if let Some(opened) = self.open.remove(&id) {
                self.bytes -= opened.bytes;
            }
        }
    }
}
