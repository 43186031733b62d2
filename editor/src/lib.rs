//! Locate-and-edit: facts in a model's weights.
//!
//! A [`Fact`] is turned into a wanted hidden state (`value`), all active facts' wanted states are solved jointly for
//! low-rank changes of a few down-projections (`joint`, `solve`), what that does is measured (`evaluate`), and only then
//! it is written to the ledger and installed ([`Editor`]). Knows neither the store of packets nor gRPC.

mod batch;
mod bundle;
mod calendar;
mod context;
mod corpus;
mod crew;
#[cfg(test)]
mod damage;
mod desk;
mod digest;
mod editor;
mod entry;
mod error;
mod evaluate;
mod fact;
mod figures;
#[cfg(test)]
mod fuzz;
mod installed;
mod joint;
mod kept;
mod key;
mod ledger;
mod locate;
mod moment;
mod nullspace;
mod pace;
mod patch;
mod plan;
mod probes;
mod questions;
mod register;
mod rows;
mod settings;
mod snapshot;
mod solve;
mod subject;
mod value;

pub use addenda_disk::{Disk, Fault, Faults, IoPoint};
pub use batch::{Planned, Request};
pub use bundle::{PatchFile, PatchKind, inspect_patch};
pub use calendar::{Clock, PlannedTurn};
pub use corpus::Corpus;
pub use editor::{Editor, EditorOptions, Opening, SNAPSHOT_EVERY};
pub use error::{Error, Result};
pub use fact::{Fact, FactId, MAX_BYTES, MAX_PROBES, MAX_REQUEST_ID, PLACEHOLDER};
pub use figures::Figures;
pub use ledger::inspect_ledger;
pub use locate::{Effects, Located, ROLES, Restored, Tracing};
pub use pace::{Pace, Phase, Progress};
pub use patch::Patch;
pub use plan::PlannedRetirement;
pub use register::{Action, Added, FactRecord, FactState, LedgerEvent};
pub use settings::{
    Bars, Method, MomentSettings, OtherMethods, Place, Settings, SolveSettings, ValueSettings,
};
