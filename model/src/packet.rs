//! A packet: the stored KV of one document, immutable, shared by all sequences that read it.
//!
//! Owns the meaning of a packet's bytes. Keys lie as if the packet began at position 0; where it
//! stands in a sequence is known to the sequence alone (see [`SequenceKv`](crate::SequenceKv)).
//! Nothing here knows where the bytes come from.

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::tensor::{borrow_bytes, element_size, int, load, to_bytes};
use tch::{Device, Kind, Tensor};

/// What a packet's bytes mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketShape {
    /// Layers of the model.
    pub layers: usize,
    /// Key-value heads of a layer.
    pub kv_heads: usize,
    /// Tokens, soft ones included.
    pub tokens: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// The dtype of every element.
    pub kind: Kind,
}

impl PacketShape {
    /// The shape of so many tokens' KV in a model of `config` that computes in `kind`.
    #[must_use]
    pub fn of(config: &ModelConfig, kind: Kind, tokens: usize) -> Self {
        Self {
            layers: config.num_layers,
            kv_heads: config.num_kv_heads,
            tokens,
            head_dim: config.head_dim,
            kind,
        }
    }

    /// Fails unless this is `here`, the shape of as many tokens in the model that is to read it.
    pub(crate) fn check_readable(self, here: Self) -> Result<()> {
        if self == here {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "a packet of {self:?} can't be read by a model of {here:?}"
        )))
    }

    /// Bytes of the keys of one layer; the values take as many.
    ///
    /// # Errors
    /// The dtype can't be stored, or the product overflows.
    fn plane_bytes(&self) -> Result<usize> {
        [
            self.kv_heads,
            self.tokens,
            self.head_dim,
            element_size(self.kind)?,
        ]
        .into_iter()
        .try_fold(1_usize, usize::checked_mul)
        .ok_or_else(|| Error::Invalid(format!("{self:?} is too large")))
    }

    /// Bytes of the whole packet.
    ///
    /// # Errors
    /// The dtype can't be stored, or the product overflows.
    pub fn bytes(&self) -> Result<usize> {
        (2 * self.layers)
            .checked_mul(self.plane_bytes()?)
            .ok_or_else(|| Error::Invalid(format!("{self:?} is too large")))
    }
}

/// Keys and values `[kv_heads, tokens, head_dim]` of one layer.
pub(crate) struct Plane {
    pub(crate) keys: Tensor,
    pub(crate) values: Tensor,
}

/// The stored KV of one document, built in isolation at positions 0, 1, …; shared as an `Rc`
/// by all sequences that read it, and never written.
pub struct PacketKv {
    shape: PacketShape,
    layers: Vec<Plane>,
    /// What the tensors lie in, where they don't own their memory. Declared after them: they
    /// are dropped first.
    owner: Option<Box<dyn AsRef<[u8]>>>,
}

impl PacketKv {
    /// A packet of `layers` of `shape`, in memory that they own.
    pub(crate) fn new(shape: PacketShape, layers: Vec<Plane>) -> Self {
        Self {
            shape,
            layers,
            owner: None,
        }
    }

    /// What its bytes mean.
    #[must_use]
    pub fn shape(&self) -> PacketShape {
        self.shape
    }

    /// Whether its memory belongs to somebody else (a memory map).
    #[must_use]
    pub fn is_borrowed(&self) -> bool {
        self.owner.is_some()
    }

    /// Keys and values of one layer.
    pub(crate) fn plane(&self, layer: usize) -> Result<&Plane> {
        let layers = self.layers.len();
        self.layers
            .get(layer)
            .ok_or_else(|| Error::Invalid(format!("layer {layer} of a packet of {layers} layers")))
    }

    /// For each layer its keys and then its values, each `[kv_heads, tokens, head_dim]`,
    /// row-major, little-endian.
    ///
    /// # Errors
    /// libtorch's.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(self.shape.bytes()?);
        for layer in &self.layers {
            bytes.extend(to_bytes(&layer.keys)?);
            bytes.extend(to_bytes(&layer.values)?);
        }
        Ok(bytes)
    }

    /// A packet over `owner`'s bytes, as [`Self::to_bytes`] wrote them. On the CPU they are not
    /// copied, and `owner` lives as long as the packet does; its bytes must not change or move.
    ///
    /// # Errors
    /// There are more or fewer bytes than `shape` says.
    pub fn from_owner(
        owner: Box<dyn AsRef<[u8]>>,
        shape: PacketShape,
        device: Device,
    ) -> Result<Self> {
        let bytes = (*owner).as_ref();
        let plane = shape.plane_bytes()?;
        if bytes.len() != shape.bytes()? {
            return Err(Error::Invalid(format!(
                "a packet of {shape:?} takes {} bytes, not {}",
                shape.bytes()?,
                bytes.len()
            )));
        }
        let dims = [int(shape.kv_heads), int(shape.tokens), int(shape.head_dim)];
        let mut planes = bytes.chunks_exact(plane.max(1));
        let mut next = || -> Result<Tensor> {
            let bytes = planes.next().unwrap_or_default();
            // SAFETY: the tensor is stored beside `owner` and dropped before it; `owner` is
            // boxed, so that its bytes stay where they are, and nothing writes to packets.
            load(&unsafe { borrow_bytes(bytes, &dims, shape.kind)? }, device)
        };
        let layers = (0..shape.layers)
            .map(|_| {
                Ok(Plane {
                    keys: next()?,
                    values: next()?,
                })
            })
            .collect::<Result<_>>()?;
        let owner = (device == Device::Cpu).then_some(owner);
        Ok(Self {
            shape,
            layers,
            owner,
        })
    }
}
