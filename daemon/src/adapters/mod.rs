//! Adapters: trained soft tokens around each packet's document, from their training to their use.

pub mod samples;
