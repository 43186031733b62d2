//! An adapter as a safetensors file: "header" and "trailer", or "bridge", f32, and what they belong to.
//!
//! Owns the format. Never opens a file: bytes come and go. Whatever the bytes say is checked
//! before a tensor is made of them.

use std::collections::HashMap;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use tch::{Kind, Tensor};

use super::{Adapter, Parts};
use crate::error::{Error, Result};
use crate::tensor::{from_bytes, to_bytes};

/// Soft tokens on each side, or a bridge's, at most.
pub const MAX_SOFT_TOKENS: usize = 64;
/// Bytes of an adapter's file at most.
pub const MAX_FILE_BYTES: usize = 8 << 20;

/// Domain of an adapter's digest.
const DIGEST_CONTEXT: &str = "addenda 2026-11 adapter v1";
/// What the metadata's "format" says of soft tokens.
const FORMAT: &str = "addenda adapter v3";
/// And of a bridge.
const BRIDGE_FORMAT: &str = "addenda adapter v4";
/// Trained for packets that were computed behind nothing, or behind no other documents, which are not made any more.
const BEFORE: [&str; 2] = ["addenda adapter v1", "addenda adapter v2"];
/// Longest name, bytes.
const NAME_BYTES: usize = 64;

impl Adapter {
    /// The file's bytes.
    ///
    /// # Errors
    /// libtorch's.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let format = match self.parts {
            Parts::Soft { .. } => FORMAT,
            Parts::Bridge(_) => BRIDGE_FORMAT,
        };
        let metadata = HashMap::from([
            ("format".to_owned(), format.to_owned()),
            ("base".to_owned(), hex(&self.base)),
            ("name".to_owned(), self.name.clone()),
            ("training".to_owned(), self.training.clone()),
        ]);
        write(&self.parts.named(), metadata)
    }

    /// Reads a file's bytes.
    ///
    /// # Errors
    /// As [`Description::read`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let described = Description::read(bytes)?;
        let (tensors, _) = read(bytes)?;
        let parts = match described.bridge_tokens {
            0 => Parts::Soft {
                header: trained(&tensors, "header")?,
                trailer: trained(&tensors, "trailer")?,
            },
            _ => Parts::Bridge(trained(&tensors, "bridge")?),
        };
        let Description {
            base,
            name,
            training,
            ..
        } = described;
        Self::of(&parts, base, name, training)
    }
}

/// What an adapter's file says of itself, without a tensor made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// [`Adapter::digest`].
    pub digest: [u8; 32],
    /// Fingerprint of the base weights.
    pub base: [u8; 32],
    /// For people.
    pub name: String,
    /// How it was trained: JSON.
    pub training: String,
    /// H; 0 of a bridge.
    pub header_tokens: usize,
    /// T; 0 of a bridge.
    pub trailer_tokens: usize,
    /// P; 0 of soft tokens.
    pub bridge_tokens: usize,
}

impl Description {
    /// Reads and checks a file's bytes.
    ///
    /// # Errors
    /// Too many bytes, another format, a name that is none, or parts that no model could take.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > MAX_FILE_BYTES {
            let found = bytes.len();
            return Err(refused(format!(
                "it has {found} bytes, {MAX_FILE_BYTES} at most"
            )));
        }
        let (tensors, metadata) = read(bytes)?;
        let is_bridge = match metadata.get("format").map(String::as_str) {
            Some(FORMAT) => false,
            Some(BRIDGE_FORMAT) => true,
            Some(format) if BEFORE.contains(&format) => {
                let why = "it was trained for packets as they were made before; train it again";
                return Err(refused(why.to_owned()));
            }
            _ => {
                return Err(refused(format!(
                    "its format is neither \"{FORMAT}\" nor \"{BRIDGE_FORMAT}\""
                )));
            }
        };
        let base = metadata.get("base").and_then(|text| unhex(text));
        let base = base.ok_or_else(|| refused("it does not name its base model".to_owned()))?;
        let text = |key: &str| metadata.get(key).cloned().unwrap_or_default();
        let name = text("name");
        if !is_name(&name) {
            return Err(refused(
                "its name is not 1 to 64 characters of [A-Za-z0-9._-]".to_owned(),
            ));
        }
        let (parts, [header_tokens, trailer_tokens, bridge_tokens]) = if is_bridge {
            let bridge = bridge(&tensors)?;
            (vec![bridge], [0, 0, bridge.0])
        } else {
            let [header, trailer] = [soft(&tensors, "header")?, soft(&tensors, "trailer")?];
            if header.1.len() * trailer.0 != trailer.1.len() * header.0 {
                return Err(refused("header and trailer differ in width".to_owned()));
            }
            (vec![header, trailer], [header.0, trailer.0, 0])
        };
        Ok(Self {
            digest: digest(&base, &parts),
            base,
            name,
            training: text("training"),
            header_tokens,
            trailer_tokens,
            bridge_tokens,
        })
    }
}

/// Tokens and bytes of a side's soft tokens.
fn soft<'a>(tensors: &SafeTensors<'a>, name: &str) -> Result<(usize, &'a [u8])> {
    let view = tensors.tensor(name).map_err(damaged)?;
    let (Dtype::F32, &[tokens, _]) = (view.dtype(), view.shape()) else {
        return Err(refused(format!("\"{name}\" is not f32 [tokens, width]")));
    };
    checked(name, tokens, view.data())
}

/// Tokens and bytes of a bridge.
fn bridge<'a>(tensors: &SafeTensors<'a>) -> Result<(usize, &'a [u8])> {
    let view = tensors.tensor("bridge").map_err(damaged)?;
    let (Dtype::F32, &[_, 2, _, tokens, _]) = (view.dtype(), view.shape()) else {
        let sides = "[layers, 2, kv_heads, tokens, head_dim]";
        return Err(refused(format!("\"bridge\" is not f32 {sides}")));
    };
    checked("bridge", tokens, view.data())
}

/// Tokens and bytes, unless they are too few or too many, or not numbers.
fn checked<'a>(name: &str, tokens: usize, bytes: &'a [u8]) -> Result<(usize, &'a [u8])> {
    if !(1..=MAX_SOFT_TOKENS).contains(&tokens) || bytes.is_empty() {
        let found = bytes.len();
        return Err(refused(format!(
            "\"{name}\" has {tokens} tokens in {found} bytes; 1 to {MAX_SOFT_TOKENS} tokens are taken"
        )));
    }
    let finite = |four: &[u8]| {
        let four = <[u8; 4]>::try_from(four).unwrap_or([0xff; 4]);
        f32::from_le_bytes(four).is_finite()
    };
    if !bytes.chunks(4).all(finite) {
        return Err(refused(format!(
            "\"{name}\" has values that are not finite"
        )));
    }
    Ok((tokens, bytes))
}

/// BLAKE3 of the base's fingerprint and, of each part, its tokens and its f32, little-endian. A bridge is one part, soft
/// tokens are two.
pub(crate) fn digest(base: &[u8; 32], parts: &[(usize, &[u8])]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(DIGEST_CONTEXT);
    hasher.update(base);
    for (tokens, bytes) in parts {
        hasher.update(&(*tokens as u64).to_le_bytes());
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    }
    *hasher.finalize().as_bytes()
}

/// Whether a text can be an adapter's name.
pub fn is_name(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=NAME_BYTES).contains(&name.len()) && name.bytes().all(legal)
}

/// Tensors and metadata as safetensors bytes.
pub(crate) fn write(
    tensors: &[(&str, &Tensor)],
    metadata: HashMap<String, String>,
) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let dtype = match tensor.kind() {
            Kind::Float => Dtype::F32,
            Kind::BFloat16 => Dtype::BF16,
            Kind::Int64 => Dtype::I64,
            other => return Err(refused(format!("{other:?} is not written"))),
        };
        let side = |side: i64| usize::try_from(side).unwrap_or(0);
        let shape: Vec<usize> = tensor.size().into_iter().map(side).collect();
        bytes.push((*name, dtype, shape, to_bytes(tensor)?));
    }
    let views = bytes
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            let view = TensorView::new(*dtype, shape.clone(), bytes).map_err(damaged)?;
            Ok((*name, view))
        })
        .collect::<Result<Vec<_>>>()?;
    safetensors::serialize(views, Some(metadata)).map_err(damaged)
}

/// The tensors and the metadata of safetensors bytes.
pub(crate) fn read(bytes: &[u8]) -> Result<(SafeTensors<'_>, HashMap<String, String>)> {
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
    let texts = metadata.metadata().clone().unwrap_or_default();
    let tensors = SafeTensors::deserialize(bytes).map_err(damaged)?;
    Ok((tensors, texts))
}

/// The f32 tensor of this name.
pub(crate) fn trained(tensors: &SafeTensors<'_>, name: &str) -> Result<Tensor> {
    let view = tensors.tensor(name).map_err(damaged)?;
    if view.dtype() != Dtype::F32 {
        return Err(refused(format!("\"{name}\" is not f32")));
    }
    tensor(&view, Kind::Float)
}

/// A view's bytes as a tensor of its own.
pub(crate) fn tensor(view: &TensorView<'_>, kind: Kind) -> Result<Tensor> {
    let side = |side: &usize| i64::try_from(*side).unwrap_or(i64::MAX);
    let shape: Vec<i64> = view.shape().iter().map(side).collect();
    from_bytes(view.data(), &shape, kind)
}

pub(crate) fn refused(reason: impl Into<String>) -> Error {
    Error::Invalid(format!(
        "this is no adapter that can be used: {}",
        reason.into()
    ))
}

#[expect(clippy::needless_pass_by_value, reason = "the shape of map_err")]
pub(crate) fn damaged(source: SafeTensorError) -> Error {
    refused(format!(
        "it is damaged or not a safetensors file ({source})"
    ))
}

pub(crate) fn hex(bytes: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*bytes).to_hex().to_string()
}

pub(crate) fn unhex(text: &str) -> Option<[u8; 32]> {
    Some(*blake3::Hash::from_hex(text).ok()?.as_bytes())
}
