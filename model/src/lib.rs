//! The transformer of Addenda on libtorch.
//!
//! Owns models: their files, their forward pass, their tokenizers. It knows
//! tensors; it knows neither the store of packets nor the wire.

pub mod adapter;
mod beams;
mod blend;
pub mod catalogue;
pub mod chat;
mod codec;
pub mod config;
mod decode;
mod ends;
pub mod error;
#[cfg(test)]
mod fuzz;
pub mod gguf;
mod kv;
mod layer_kv;
mod layers;
pub mod model_files;
mod packet;
mod place;
mod revision;
mod sampler;
mod study;
mod taps;
pub mod tensor;
pub mod tokenizer;
mod transformer;
pub mod weights;

pub use adapter::Adapter;
pub use beams::{BeamParams, BeamSearch};
pub use blend::Blending;
pub use chat::{ChatMessage, ChatTemplate};
pub use codec::Codec;
pub use config::{Activation, Architecture, ModelConfig, RopeScaling};
pub use decode::Packing;
pub use ends::Beginnings;
pub use error::{Error, Result};
pub use kv::{KvBlock, SequenceKv};
pub use model_files::ModelFiles;
pub use packet::{PacketKv, PacketShape};
pub use revision::revision;
pub use sampler::{Sampled, Sampler, SamplingParams};
pub use taps::{Action, Documents, Isolated, Mask, Overlay, Pass, Site, Tap};
pub use tokenizer::{Encoding, TextStream, Tokenizer};
pub use transformer::{Input, Transformer};
pub use weights::Weights;
