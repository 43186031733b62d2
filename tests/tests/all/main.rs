//! Everything that needs a model or a daemon, in one binary: each test binary links libtorch.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod catalogue;
mod sampler;
mod setup;
mod tiny;
mod transformer;
