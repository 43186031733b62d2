//! The one file that knows libtorch's quirks: bytes to tensors and back, devices,
//! dtypes, threads, and the gradient mode.
//!
//! Never trusts a length: `Tensor::f_from_data_size` reads past a short slice, so every
//! way from bytes to a tensor goes through here and is checked first.

use crate::error::{Error, Result};
use half::bf16;
use std::sync::LazyLock;
use tch::{Device, Kind, Tensor};

/// Switches gradients off for this thread until it is dropped, also through a panic.
pub struct NoGrad(#[expect(dead_code, reason = "held for its Drop")] tch::NoGradGuard);

impl NoGrad {
    /// Switches gradients off now.
    #[must_use]
    pub fn new() -> Self {
        Self(tch::no_grad_guard())
    }
}

impl Default for NoGrad {
    fn default() -> Self {
        Self::new()
    }
}

/// Sets how many threads libtorch computes with on behalf of this thread, and of those that begin to compute later.
pub fn set_threads(threads: usize) {
    // libtorch gives a thread the number last set by any other when it first computes, also over one set before; asking
    // it counts as computing.
    let _ = tch::get_num_threads();
    tch::set_num_threads(i32::try_from(threads.max(1)).unwrap_or(i32::MAX));
}

/// How many threads libtorch computes with on behalf of this thread.
#[must_use]
pub fn threads() -> usize {
    usize::try_from(tch::get_num_threads()).map_or(1, |threads| threads.max(1))
}

/// Bytes that one element of `kind` takes.
///
/// # Errors
/// `kind` is none of the dtypes that Addenda computes or stores.
pub fn element_size(kind: Kind) -> Result<usize> {
    match kind {
        Kind::Uint8 | Kind::Int8 => Ok(1),
        Kind::BFloat16 | Kind::Half => Ok(2),
        Kind::Float | Kind::Int => Ok(4),
        Kind::Double | Kind::Int64 => Ok(8),
        other => Err(Error::Invalid(format!(
            "{other:?} is not a dtype that can be stored"
        ))),
    }
}

/// The short name of a dtype, as configuration, protocol and packets write it.
#[must_use]
pub fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Float => "f32",
        Kind::BFloat16 => "bf16",
        Kind::Half => "f16",
        Kind::Double => "f64",
        _ => "other",
    }
}

/// The dtype to compute in: "f32" or "bf16".
///
/// # Errors
/// Any other name.
pub fn parse_kind(name: &str) -> Result<Kind> {
    match name {
        "f32" => Ok(Kind::Float),
        "bf16" => Ok(Kind::BFloat16),
        other => Err(Error::Invalid(format!(
            "dtype \"{other}\" is not known: use \"f32\" or \"bf16\""
        ))),
    }
}

/// The device to compute on: "cpu", "cuda" or "cuda:N".
///
/// # Errors
/// Any other name, or a CUDA device that libtorch does not see.
pub fn parse_device(name: &str) -> Result<Device> {
    let unknown = || {
        Error::Invalid(format!(
            "device \"{name}\" is not known: use \"cpu\" or \"cuda:0\""
        ))
    };
    let index = match name {
        "cpu" => return Ok(Device::Cpu),
        "cuda" => 0,
        other => {
            let index = other.strip_prefix("cuda:").ok_or_else(unknown)?;
            index.parse::<usize>().map_err(|_| unknown())?
        }
    };
    let seen = tch::Cuda::device_count();
    if i64::try_from(index).unwrap_or(i64::MAX) >= seen {
        return Err(Error::Invalid(format!(
            "device \"{name}\" is not there: libtorch sees {seen} CUDA devices. \
             Use \"cpu\", or set LIBTORCH to a CUDA build of libtorch 2.11 and build again"
        )));
    }
    Ok(Device::Cuda(index))
}

/// The tensor on a device. To a GPU it goes through pinned memory and without waiting: while the copy is under way the
/// next bytes are read from the disk, and what the GPU was asked to compute goes on. The GPU itself keeps the order.
pub(crate) fn load(tensor: &Tensor, device: Device) -> Result<Tensor> {
    match device {
        Device::Cuda(_) => {
            let pinned = tensor.f_pin_memory(device)?;
            Ok(pinned.f_to_device_(device, tensor.kind(), true, false)?)
        }
        _ => Ok(tensor.f_to_device(device)?),
    }
}

/// A tensor's elements as little-endian bytes, row-major.
///
/// # Errors
/// libtorch's, or a dtype that is not stored.
pub fn to_bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let tensor = tensor.f_to_device(Device::Cpu)?.f_contiguous()?;
    let mut bytes = vec![0; tensor.numel() * element_size(tensor.kind())?];
    tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
    Ok(bytes)
}

/// A tensor that owns a copy of `bytes`: row-major, little-endian, of `shape` and `kind`.
///
/// # Errors
/// `bytes` is not as long as `shape` and `kind` say.
pub fn from_bytes(bytes: &[u8], shape: &[i64], kind: Kind) -> Result<Tensor> {
    check_length(bytes, shape, kind)?;
    Ok(Tensor::f_from_data_size(bytes, shape, kind)?)
}

/// A tensor over `bytes` themselves, which it neither copies nor owns.
///
/// # Errors
/// `bytes` is not as long as `shape` and `kind` say, or not aligned to `kind`.
///
/// # Safety
/// `bytes` must outlive the tensor and every view of it, and nobody may write through it.
pub(crate) unsafe fn borrow_bytes(bytes: &[u8], shape: &[i64], kind: Kind) -> Result<Tensor> {
    check_length(bytes, shape, kind)?;
    let size = element_size(kind)?;
    if !(bytes.as_ptr() as usize).is_multiple_of(size) {
        return Err(Error::Invalid(format!(
            "bytes of a {} tensor are not aligned to {size}",
            kind_name(kind)
        )));
    }
    let strides = row_major_strides(shape);
    // SAFETY: the length and alignment were checked; the caller vouches for the lifetime.
    let tensor = unsafe { Tensor::f_from_blob(bytes.as_ptr(), shape, &strides, kind, Device::Cpu) };
    Ok(tensor?)
}

/// What the elements of a tensor are in memory.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    /// The dtype of such a tensor.
    const KIND: Kind;
    /// As f32, exactly.
    fn widen(self) -> f32;
    /// The nearest number that there is.
    fn narrow(number: f32) -> Self;
}

impl Element for f32 {
    const KIND: Kind = Kind::Float;
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn narrow(number: f32) -> Self {
        number
    }
}

impl Element for bf16 {
    const KIND: Kind = Kind::BFloat16;
    #[inline(always)]
    fn widen(self) -> f32 {
        // The upper half of the f32. (`bf16::to_f32` looks for NaN, which costs vectors.)
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn narrow(number: f32) -> Self {
        // To the nearest, to the even one of two. (`bf16::from_f32` is the same with a branch for NaN.)
        let bits = number.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        let bits = if number.is_nan() {
            bits | 0x40_0000
        } else {
            rounded
        };
        Self::from_bits((bits >> 16) as u16)
    }
}

/// The elements of a row-major tensor on the CPU, where they lie.
///
/// # Errors
/// The tensor is of another dtype, elsewhere, or not row-major.
///
/// # Safety
/// Nobody may write to the tensor, or to another that shares its memory, while the slice lives.
pub(crate) unsafe fn elements<E: Element>(tensor: &Tensor) -> Result<&[E]> {
    check_plain(tensor, E::KIND)?;
    if tensor.numel() == 0 {
        return Ok(&[]);
    }
    // SAFETY: dtype, place and layout were checked; the tensor keeps its memory while it is borrowed.
    Ok(unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<E>(), tensor.numel()) })
}

/// The same, to be written.
///
/// # Errors
/// As [`elements`].
///
/// # Safety
/// Nobody else may read or write the memory while the slice lives, through whatever tensor.
pub(crate) unsafe fn elements_mut<E: Element>(tensor: &mut Tensor) -> Result<&mut [E]> {
    check_plain(tensor, E::KIND)?;
    if tensor.numel() == 0 {
        return Ok(&mut []);
    }
    // SAFETY: as above, and the caller vouches that nobody else uses the memory.
    Ok(unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<E>(), tensor.numel()) })
}

fn check_plain(tensor: &Tensor, kind: Kind) -> Result<()> {
    let plain = tensor.kind() == kind && tensor.device() == Device::Cpu && tensor.is_contiguous();
    if plain {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "a tensor {:?} of {} on {:?} can't be read as a row-major {} on the CPU",
        tensor.size(),
        kind_name(tensor.kind()),
        tensor.device(),
        kind_name(kind)
    )))
}

fn check_length(bytes: &[u8], shape: &[i64], kind: Kind) -> Result<()> {
    let elements = shape.iter().try_fold(1_usize, |product, &dim| {
        usize::try_from(dim)
            .ok()
            .and_then(|dim| product.checked_mul(dim))
    });
    let expected = elements.and_then(|n| n.checked_mul(element_size(kind).ok()?));
    if expected != Some(bytes.len()) {
        return Err(Error::Invalid(format!(
            "{} bytes can't be a {} tensor of shape {shape:?}",
            bytes.len(),
            kind_name(kind)
        )));
    }
    Ok(())
}

fn row_major_strides(shape: &[i64]) -> Vec<i64> {
    let mut stride = 1;
    let outward = shape.iter().rev().map(|dim| {
        let own = stride;
        stride *= dim;
        own
    });
    let mut strides: Vec<i64> = outward.collect();
    strides.reverse();
    strides
}

/// `tensor` in `kind`; itself where it is in it already.
pub(crate) fn in_kind(tensor: &Tensor, kind: Kind) -> Result<Tensor> {
    Ok(if tensor.kind() == kind {
        tensor.shallow_clone()
    } else {
        tensor.f_to_kind(kind)?
    })
}

/// Whether this machine multiplies large bf16 matrices slower than f32 ones of the same values.
///
/// True of x86-64 processors whose bf16 goes through AVX-512's dot product at half the rate of its
/// f32 units, and false where matrix units (AMX) or double-rate units (AMD) do it. Known from the
/// processor's features, so that a machine gives the same numbers at every start.
pub fn multiplies_f32_faster(device: Device) -> bool {
    let known = cfg!(target_arch = "x86_64");
    device == Device::Cpu && known && !UNITS.matrices && !UNITS.double_rate
}

/// Whether this processor's vectors multiply pairs of bf16 at twice the rate of f32, and it has no matrix units, which
/// would be faster still.
pub(crate) fn multiplies_pairs_faster() -> bool {
    UNITS.double_rate && !UNITS.matrices && cpu_has_bf16()
}

/// What a processor multiplies bf16 with.
#[derive(Default)]
struct Units {
    /// AMX for bf16, and the system lets us use it.
    matrices: bool,
    /// AMD's vectors.
    double_rate: bool,
}

/// This processor's. Kept, because asking takes long, in a virtual machine above all.
static UNITS: LazyLock<Units> = LazyLock::new(|| {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__cpuid, __cpuid_count};
        /// Leaf 7, EDX.
        const AMX_BF16: u32 = 1 << 22;
        let vendor = __cpuid(0);
        Units {
            matrices: vendor.eax >= 7 && __cpuid_count(7, 0).edx & AMX_BF16 != 0,
            double_rate: [vendor.ebx, vendor.edx, vendor.ecx]
                == [0x6874_7541, 0x6974_6e65, 0x444d_4163],
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    Units::default()
});

/// Whether this processor has instructions for bf16; elsewhere f32 is faster at any size.
#[must_use]
pub fn cpu_has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Whether this processor multiplies bf16 matrices of any size faster than f32 ones: one with instructions for bf16
/// that is not one of [`multiplies_f32_faster`]. Of a GPU nothing is said.
pub fn multiplies_bf16_faster(device: Device) -> bool {
    device == Device::Cpu && cpu_has_bf16() && !multiplies_f32_faster(device)
}

/// `value` as libtorch counts.
pub(crate) fn int(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Token ids as an i64 tensor of shape `[ids.len()]` on `device`.
///
/// # Errors
/// libtorch's.
pub fn ids(ids: &[u32], device: Device) -> Result<Tensor> {
    let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    Ok(Tensor::f_from_slice(&ids)?.f_to_device(device)?)
}

#[cfg(test)]
mod tests {
    use super::Element;
    use half::bf16;

    #[test]
    fn numbers_are_narrowed_as_the_library_for_halves_does() {
        let ends = [
            0.0,
            -0.0,
            f32::MAX,
            f32::MIN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            -f32::NAN,
        ];
        // Of every exponent, and halves between two, which go to the even one.
        let some = (0..=0xffff_u32).map(|upper| upper << 16);
        let bits = some.flat_map(|bits| {
            [
                bits,
                bits | 0x7fff,
                bits | 0x8000,
                bits | 0x8001,
                bits | 0x1234,
            ]
        });
        for number in bits.map(f32::from_bits).chain(ends) {
            let (found, right) = (<bf16 as Element>::narrow(number), bf16::from_f32(number));
            assert_eq!(found.to_bits(), right.to_bits(), "{number:e}");
        }
    }
}
