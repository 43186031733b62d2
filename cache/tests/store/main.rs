//! What the packet store promises, tested through its public face.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a panic fails the test, which is what tests are for"
)]

mod backup;
mod basics;
mod budget;
mod compact;
mod crash;
mod damage;
mod faults;
mod figures;
mod flips;
mod formats;
mod group;
mod model;
mod parts;
mod rebuild;
mod sample;
mod scrub;
