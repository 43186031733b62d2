//! The adapters that ship with the program; the `.json` beside each file is the record of how it
//! was trained, and is in the file as well.

/// Files, each for one base model.
pub(crate) const SHIPPED: &[&[u8]] = &[include_bytes!("../../adapters/smollm2-135m.safetensors")];
