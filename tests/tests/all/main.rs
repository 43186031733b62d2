//! Everything that needs a model or a daemon, in one binary: each test binary links libtorch.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod adapter;
mod adapters;
mod beams;
mod blocks;
mod catalogue;
mod certificates;
mod chat_template;
mod cli;
mod codec;
mod config;
mod daemon;
mod decode;
mod directory_crash;
mod documents;
mod editor;
mod editor_smollm2;
mod fact_dates;
mod fact_patches;
mod facts;
mod facts_served;
mod gguf;
mod gguf_files;
mod gone;
mod http;
mod logits_fixture;
mod memory;
mod models;
mod modes;
mod modes_served;
mod parts;
mod primers;
mod refusals;
mod sampler;
mod samples;
mod serving;
mod setup;
mod snapshot;
mod tiny;
mod tokenizer;
mod transformer;
mod upkeep;
mod warm_crash;
mod weights;
