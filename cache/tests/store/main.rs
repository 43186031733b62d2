//! What the packet store promises, tested through its public face.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic fails the test, which is what tests are for"
)]

mod basics;
mod sample;
