//! The transformer of Addenda on libtorch.
//!
//! Owns models: their files, their forward pass, their tokenizers. It knows
//! tensors; it knows neither the store of packets nor the wire.

pub mod config;
pub mod error;
pub mod gguf;
pub mod weights;
