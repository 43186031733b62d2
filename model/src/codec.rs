//! How the KV of a packet is stored: as it was computed, or in 8 or 4 bits a number.
//!
//! Owns the layout of coded bytes, both ways. Never decides which codec is used and never touches a
//! file. Invariants: no number is further from its original than half a step of its group (and the
//! rounding to the model's dtype); bytes that are not exactly as long as their shape says, or of
//! another layout, are refused; what can't be coded (a NaN, an infinity) is refused and not bent.
//!
//! Keys are coded per channel over groups of tokens and values per token over groups of channels,
//! as KIVI does (Liu et al. 2024, arXiv 2402.02750): outliers of keys sit in few channels. A group
//! has a centre c and a step s, bf16 both, and a code q from 0 to n = 2^bits − 1 stands for
//! `c + s · (q − n/2)`. The codes are made against c and s as they were rounded, and s is rounded
//! up, so that nothing is clipped.
//!
//! ```text
//! offset  bytes
//! 0       4   magic "AKVQ"
//! 4       2   version of this layout: 1
//! 6       2   bits of a code: 8 or 4
//! 8       4   tokens of a group of keys; the last group may have fewer
//! 12      4   channels of a group of values
//! 16          for each layer:
//!             steps, then centres, of the keys    bf16 [kv_heads, groups of tokens, head_dim]
//!             steps, then centres, of the values  bf16 [kv_heads, tokens, groups of channels]
//!             codes of the keys, then the values  [kv_heads, tokens, head_dim], a byte each; of
//!                                                 4 bits [kv_heads, tokens, head_dim / 2], a channel
//!                                                 in the low half of a byte, the one head_dim / 2
//!                                                 further on in the high half
//! ```
//! Integers and bf16 are little-endian, arrays row-major.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::packet::{PacketKv, PacketShape, Plane};
use crate::tensor::{from_bytes, int, kind_name, load, to_bytes};
use tch::{Device, Kind, Tensor};

const MAGIC: &[u8; 4] = b"AKVQ";
const VERSION: u16 = 1;
const HEADER: usize = 16;
/// A step times this, rounded to bf16, is no smaller than before: bf16 has 8 significant bits.
const ROUNDED_UP: f64 = 1.004;

/// How the numbers of a stored packet are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Codec {
    /// As they were computed.
    #[default]
    None,
    /// In 8 bits: 0.53 of bf16's bytes.
    Int8,
    /// In 4 bits: 0.31 of bf16's bytes.
    Int4,
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        })
    }
}

impl FromStr for Codec {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "int8" => Ok(Self::Int8),
            "int4" => Ok(Self::Int4),
            _ => Err("must be none, int8 or int4".to_owned()),
        }
    }
}

impl Codec {
    /// What a packet of a model that computes in `kind` says its elements are: "bf16", "int8".
    #[must_use]
    pub fn dtype(self, kind: Kind) -> &'static str {
        match self {
            Self::None => kind_name(kind),
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// The codec of a packet whose elements are `dtype`, for a model that computes in `kind`; none
    /// where such a model can't read it.
    #[must_use]
    pub fn of_dtype(dtype: &str, kind: Kind) -> Option<Self> {
        let codecs = [Self::None, Self::Int8, Self::Int4];
        codecs.into_iter().find(|codec| codec.dtype(kind) == dtype)
    }

    /// Bytes of a packet of `shape`.
    ///
    /// # Errors
    /// A shape that can't be stored.
    pub fn bytes(self, shape: PacketShape) -> Result<usize> {
        match self.layout(shape)? {
            None => shape.bytes(),
            Some(layout) => {
                let layers = shape.layers.saturating_mul(layout.layer_bytes());
                Ok(layers.saturating_add(HEADER))
            }
        }
    }

    /// A packet's bytes.
    ///
    /// # Errors
    /// Numbers that are not finite, a shape that can't be coded, or libtorch's.
    pub fn encode(self, packet: &PacketKv) -> Result<Vec<u8>> {
        let shape = packet.shape();
        let Some(layout) = self.layout(shape)? else {
            return packet.to_bytes();
        };
        let mut bytes = Vec::with_capacity(self.bytes(shape)?);
        bytes.extend(layout.header());
        for layer in 0..shape.layers {
            layout.encode(packet.plane(layer)?, &mut bytes)?;
        }
        Ok(bytes)
    }

    /// The packet of `shape` whose bytes these are, in memory of its own on `device`.
    ///
    /// # Errors
    /// There are more or fewer bytes than `shape` says, or they are of another layout.
    pub fn decode(self, bytes: &[u8], shape: PacketShape, device: Device) -> Result<PacketKv> {
        let Some(layout) = self.layout(shape)? else {
            return PacketKv::from_owner(Box::new(bytes.to_vec()), shape, device);
        };
        let wanted = self.bytes(shape)?;
        if bytes.len() != wanted {
            return Err(Error::Invalid(format!(
                "a packet of {shape:?} in {self} takes {wanted} bytes, not {}",
                bytes.len()
            )));
        }
        let (header, mut rest) = bytes.split_at(HEADER);
        if header != layout.header() {
            return Err(Error::Invalid(format!(
                "the packet says it is {self}, but its bytes are of another layout"
            )));
        }
        let layers = (0..shape.layers)
            .map(|_| layout.decode(&mut rest, (shape.kind, device)))
            .collect::<Result<_>>()?;
        Ok(PacketKv::new(shape, layers))
    }

    /// The layout of a coded packet; none for one that is stored as it was computed.
    fn layout(self, shape: PacketShape) -> Result<Option<Layout>> {
        let (bits, group) = match self {
            Self::None => return Ok(None),
            Self::Int8 => (8, 64),
            Self::Int4 => (4, 32),
        };
        let even = shape.head_dim.is_multiple_of(2) && shape.head_dim > 0;
        if !even || shape.tokens == 0 || shape.kv_heads == 0 {
            return Err(Error::Invalid(format!(
                "{shape:?} can't be kept as {self}: it needs tokens, and heads of an even size"
            )));
        }
        // Nothing that is computed of it below overflows by much where this does not.
        shape.bytes()?;
        let divides = |channels: &usize| shape.head_dim.is_multiple_of(*channels);
        Ok(Some(Layout {
            bits,
            key_group: group,
            value_group: (1..=group).rev().find(divides).unwrap_or(1),
            heads: shape.kv_heads,
            tokens: shape.tokens,
            head_dim: shape.head_dim,
        }))
    }
}

/// How the layers of a packet are coded.
struct Layout {
    bits: u16,
    /// Tokens of a group of keys.
    key_group: usize,
    /// Channels of a group of values; divides `head_dim`.
    value_group: usize,
    heads: usize,
    tokens: usize,
    head_dim: usize,
}

/// Neighbouring tokens whose groups are all of one size.
struct Run {
    start: i64,
    tokens: i64,
    first_group: i64,
    groups: i64,
}

impl Run {
    /// The run's tokens of `[kv_heads, tokens, head_dim]` as `[kv_heads, groups, tokens, head_dim]`.
    fn blocks(&self, of: &Tensor) -> Result<Tensor> {
        let own = of.f_narrow(1, self.start, self.tokens)?;
        Ok(own.f_unflatten(1, [self.groups, self.tokens / self.groups])?)
    }
}

impl Layout {
    fn header(&self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        let fields = MAGIC
            .iter()
            .copied()
            .chain(VERSION.to_le_bytes())
            .chain(self.bits.to_le_bytes())
            .chain(int(self.key_group).to_le_bytes().into_iter().take(4))
            .chain(int(self.value_group).to_le_bytes().into_iter().take(4));
        for (place, byte) in header.iter_mut().zip(fields) {
            *place = byte;
        }
        header
    }

    /// The highest code.
    fn levels(&self) -> f64 {
        f64::from((1_u32 << self.bits) - 1)
    }

    /// `[kv_heads, groups of tokens, head_dim]`
    fn key_groups(&self) -> [i64; 3] {
        let groups = self.tokens.div_ceil(self.key_group);
        [int(self.heads), int(groups), int(self.head_dim)]
    }

    /// `[kv_heads, tokens, groups of channels]`
    fn value_groups(&self) -> [i64; 3] {
        let groups = self.head_dim / self.value_group;
        [int(self.heads), int(self.tokens), int(groups)]
    }

    /// Shape of the bytes that hold a plane's codes.
    fn packed(&self) -> [i64; 3] {
        let channels = self.head_dim * usize::from(self.bits) / 8;
        [int(self.heads), int(self.tokens), int(channels)]
    }

    fn layer_bytes(&self) -> usize {
        let groups = elements(self.key_groups()).saturating_add(elements(self.value_groups()));
        let codes = elements(self.packed()).saturating_mul(2);
        // A step and a centre of two bytes each.
        groups.saturating_mul(4).saturating_add(codes)
    }

    /// The full groups of tokens, then the shorter one at the end.
    fn runs(&self) -> impl Iterator<Item = Run> + use<> {
        let (group, tokens) = (int(self.key_group), int(self.tokens));
        let groups = tokens / group;
        let full = Run {
            start: 0,
            tokens: groups * group,
            first_group: 0,
            groups,
        };
        let rest = Run {
            start: full.tokens,
            tokens: tokens - full.tokens,
            first_group: groups,
            groups: 1,
        };
        [full, rest].into_iter().filter(|run| run.tokens > 0)
    }

    fn encode(&self, plane: &Plane, bytes: &mut Vec<u8>) -> Result<()> {
        let (mut codes, mut steps, mut centres) = (Vec::new(), Vec::new(), Vec::new());
        for run in self.runs() {
            let coded = Coded::of(&run.blocks(&plane.keys)?, 2, self.levels())?;
            codes.push(coded.codes.f_flatten(1, 2)?);
            steps.push(coded.steps.f_squeeze_dim(2)?);
            centres.push(coded.centres.f_squeeze_dim(2)?);
        }
        let blocks = self.value_blocks(&plane.values)?;
        let values = Coded::of(&blocks, 3, self.levels())?;
        bytes.extend(to_bytes(&Tensor::f_cat(&steps, 1)?)?);
        bytes.extend(to_bytes(&Tensor::f_cat(&centres, 1)?)?);
        bytes.extend(to_bytes(&values.steps)?);
        bytes.extend(to_bytes(&values.centres)?);
        bytes.extend(to_bytes(&self.pack(&Tensor::f_cat(&codes, 1)?)?)?);
        bytes.extend(to_bytes(&self.pack(&values.codes.f_flatten(2, 3)?)?)?);
        Ok(())
    }

    /// Takes one layer off the front of `bytes`.
    fn decode(&self, bytes: &mut &[u8], (kind, device): (Kind, Device)) -> Result<Plane> {
        let mut next = |shape: [i64; 3], stored: Kind| -> Result<Tensor> {
            let length = elements(shape) * if stored == Kind::Uint8 { 1 } else { 2 };
            let cut = || Error::Invalid("a coded packet is cut short".to_owned());
            let (own, rest) = bytes.split_at_checked(length).ok_or_else(cut)?;
            *bytes = rest;
            load(&from_bytes(own, &shape, stored)?, device)
        };
        let mut scale = |shape| {
            let steps = next(shape, Kind::BFloat16)?.f_to_kind(Kind::Float)?;
            let centres = next(shape, Kind::BFloat16)?.f_to_kind(Kind::Float)?;
            Scale::new(steps, &centres, self.levels())
        };
        let (of_keys, of_values) = (scale(self.key_groups())?, scale(self.value_groups())?);
        let key_codes = self.unpack(&next(self.packed(), Kind::Uint8)?)?;
        let value_codes = self.unpack(&next(self.packed(), Kind::Uint8)?)?;
        let shape = [int(self.heads), int(self.tokens), int(self.head_dim)];
        let keys = Tensor::f_empty(shape, (kind, device))?;
        for run in self.runs() {
            let own = |t: &Tensor| t.f_narrow(1, run.first_group, run.groups)?.f_unsqueeze(2);
            let scale = of_keys.map(own)?;
            let blocks = scale.restore(&run.blocks(&key_codes)?)?;
            run.blocks(&keys)?.f_copy_(&blocks)?;
        }
        let values = Tensor::f_empty(shape, (kind, device))?;
        let scale = of_values.map(|t| t.f_unsqueeze(3))?;
        let blocks = scale.restore(&self.value_blocks(&value_codes)?)?;
        self.value_blocks(&values)?.f_copy_(&blocks)?;
        Ok(Plane { keys, values })
    }

    /// `[kv_heads, tokens, head_dim]` as `[kv_heads, tokens, groups, channels]`.
    fn value_blocks(&self, of: &Tensor) -> Result<Tensor> {
        let groups = self.head_dim / self.value_group;
        Ok(of.f_unflatten(2, [int(groups), int(self.value_group)])?)
    }

    fn pack(&self, codes: &Tensor) -> Result<Tensor> {
        if self.bits == 8 {
            return Ok(codes.shallow_clone());
        }
        let half = int(self.head_dim / 2);
        let high = codes.f_narrow(2, half, half)?;
        let high = high.f_bitwise_left_shift_tensor_scalar(4)?;
        Ok(codes.f_narrow(2, 0, half)?.f_bitwise_or_tensor(&high)?)
    }

    fn unpack(&self, packed: &Tensor) -> Result<Tensor> {
        if self.bits == 8 {
            return Ok(packed.shallow_clone());
        }
        let low = packed.f_bitwise_and(15)?;
        let high = packed.f_bitwise_right_shift_tensor_scalar(4)?;
        Ok(Tensor::f_cat(&[low, high], 2)?)
    }
}

/// Blocks of numbers in few bits each.
struct Coded {
    /// u8, of the blocks' shape.
    codes: Tensor,
    /// bf16, one a block.
    steps: Tensor,
    centres: Tensor,
}

impl Coded {
    /// Codes the numbers that lie together along dimension `along`.
    fn of(blocks: &Tensor, along: i64, levels: f64) -> Result<Self> {
        let blocks = blocks.f_to_kind(Kind::Float)?;
        let low = blocks.f_amin([along].as_slice(), true)?;
        let high = blocks.f_amax([along].as_slice(), true)?;
        let middle = low.f_add(&high)?.f_mul_scalar(0.5)?;
        let centres = middle.f_to_kind(Kind::BFloat16)?;
        let middle = centres.f_to_kind(Kind::Float)?;
        let reach = high.f_sub(&middle)?.f_maximum(&middle.f_sub(&low)?)?;
        let steps = reach
            .f_mul_scalar(2.0 * ROUNDED_UP / levels)?
            .f_to_kind(Kind::BFloat16)?;
        // A NaN or an infinity anywhere in a block shows in its step.
        if steps.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
            return Err(Error::Invalid(
                "numbers that are not finite can't be coded; compute the packet in f32, \
                 or keep packets uncoded"
                    .to_owned(),
            ));
        }
        let width = steps.f_to_kind(Kind::Float)?;
        let width = width.f_masked_fill(&width.f_eq(0.0)?, 1.0)?;
        let codes = blocks
            .f_sub(&middle)?
            .f_div_(&width)?
            .f_add_scalar_(levels / 2.0)?
            .f_round_()?
            .f_clamp_(0.0, levels)?
            .f_to_kind(Kind::Uint8)?;
        Ok(Self {
            codes,
            steps,
            centres,
        })
    }
}

/// What turns codes back into numbers, f32.
struct Scale {
    steps: Tensor,
    /// What code 0 stands for.
    lowest: Tensor,
}

impl Scale {
    fn new(steps: Tensor, centres: &Tensor, levels: f64) -> Result<Self> {
        let lowest = centres.f_sub(&steps.f_mul_scalar(levels / 2.0)?)?;
        Ok(Self { steps, lowest })
    }

    fn map(
        &self,
        view: impl Fn(&Tensor) -> std::result::Result<Tensor, tch::TchError>,
    ) -> Result<Self> {
        Ok(Self {
            steps: view(&self.steps)?,
            lowest: view(&self.lowest)?,
        })
    }

    fn restore(&self, codes: &Tensor) -> Result<Tensor> {
        let codes = codes.f_to_kind(Kind::Float)?;
        Ok(self.lowest.f_addcmul(&codes, &self.steps)?)
    }
}

fn elements(shape: [i64; 3]) -> usize {
    let sizes = shape.map(|size| usize::try_from(size).unwrap_or(usize::MAX));
    sizes.into_iter().fold(1, usize::saturating_mul)
}
