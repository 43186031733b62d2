//! What a ledger frame says, and its encoding: `version u16 · JSON length u32 · JSON · z as f32`, little-endian.
//!
//! Never touches files or weights. Invariant: an entry holds all that is needed to rebuild the weights without
//! optimising anew, so what is decoded is what was encoded, to the bit.

use serde::{Deserialize, Serialize};

use crate::digest::{Canonical, as_hex};
use crate::fact::{Fact, FactId};
use crate::figures::Figures;
use crate::moment::MomentSpec;
use crate::settings::{SolveSettings, ValueSettings};

const VERSION: u16 = 1;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Entry {
    Added(Box<Addition>),
    Retired(Retirement),
    Began(Beginning),
}

/// A fact came into the weights; where another one stood in its place, that one left in the same moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Addition {
    pub(crate) fact: Fact,
    pub(crate) request_id: String,
    pub(crate) at_ms: u64,
    pub(crate) supersedes: Option<FactId>,
    /// Its day is yet to come: an entry of its own says when it came into the weights.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) waits: bool,
    pub(crate) seconds: f64,
    pub(crate) figures: Figures,
    pub(crate) edit: Edit,
}

/// A fact whose day has come is in the weights; where another one stood in its place, that one left in the same
/// moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Beginning {
    pub(crate) fact_id: FactId,
    pub(crate) at_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) supersedes: Option<FactId>,
}

/// A fact left the weights, or will not come into them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Retirement {
    pub(crate) fact_id: FactId,
    pub(crate) at_ms: u64,
    /// By its own date, and not because somebody asked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) expired: bool,
}

/// All that the solve needs of one fact, and how it was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Edit {
    /// Fingerprint of the base weights that z was sought on.
    #[serde(with = "as_hex")]
    pub(crate) base: [u8; 32],
    pub(crate) recipe: Recipe,
    /// Token ids of the filled prompt with what starts a text, and the place of the subject's last token in them.
    pub(crate) prompt_ids: Vec<u32>,
    pub(crate) subject_at: usize,
    /// The prompt in contexts, each up to the subject's last token, where the recipe takes keys from those as well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) context_ids: Vec<Vec<u32>>,
    /// How z was sought: settings with their seed, the contexts that the seed gave, steps taken, ‖δ‖ and ‖h‖.
    pub(crate) value: ValueSettings,
    pub(crate) contexts: Vec<String>,
    pub(crate) steps: usize,
    pub(crate) delta_norm: f64,
    pub(crate) hidden_norm: f64,
    /// The wanted state at the recipe's place, as long as the residual stream is wide.
    #[serde(skip)]
    pub(crate) z: Vec<f32>,
}

/// Facts of one recipe are solved jointly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Recipe {
    pub(crate) solve: SolveSettings,
    pub(crate) moment: MomentSpec,
}

impl Recipe {
    pub(crate) fn digest(&self) -> [u8; 32] {
        let mut canonical = Canonical::new("addenda 2026-01 recipe");
        canonical
            .bytes(&self.solve.digest())
            .bytes(&self.moment.digest());
        canonical.finish()
    }
}

impl Edit {
    /// What this edit contributes to the weights: the patch's part of the weights revision.
    pub(crate) fn digest(&self, fact: FactId) -> [u8; 32] {
        let mut canonical = Canonical::new("addenda 2026-01 edit");
        canonical
            .bytes(&fact.0)
            .bytes(&self.base)
            .bytes(&self.recipe.digest());
        let ids: Vec<u8> = self
            .prompt_ids
            .iter()
            .flat_map(|id| id.to_le_bytes())
            .collect();
        canonical
            .bytes(&ids)
            .number(self.subject_at as u64)
            .bytes(&self.z_bytes());
        for ids in &self.context_ids {
            let ids: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
            canonical.bytes(&ids);
        }
        canonical.finish()
    }

    fn z_bytes(&self) -> Vec<u8> {
        self.z
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect()
    }
}

impl Entry {
    /// The frame's content.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, String> {
        let json = serde_json::to_vec(self).map_err(|error| error.to_string())?;
        let length = u32::try_from(json.len()).map_err(|error| error.to_string())?;
        let mut bytes = VERSION.to_le_bytes().to_vec();
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&json);
        if let Self::Added(addition) = self {
            bytes.extend_from_slice(&addition.edit.z_bytes());
        }
        Ok(bytes)
    }

    /// The reverse; the error is the rest of "it says what cannot be: …".
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let short = || "it ends too early".to_owned();
        let (version, rest) = bytes.split_first_chunk::<2>().ok_or_else(short)?;
        let version = u16::from_le_bytes(*version);
        if version != VERSION {
            return Err(format!(
                "its version is {version}, and this program knows {VERSION}"
            ));
        }
        let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
        let length =
            usize::try_from(u32::from_le_bytes(*length)).map_err(|error| error.to_string())?;
        let (json, z) = rest.split_at_checked(length).ok_or_else(short)?;
        let mut entry: Self = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let (chunks, []) = z.as_chunks::<4>() else {
            return Err("its z is cut".to_owned());
        };
        match &mut entry {
            Self::Added(addition) => {
                addition.edit.z = chunks
                    .iter()
                    .map(|bytes| f32::from_le_bytes(*bytes))
                    .collect();
            }
            Self::Retired(_) | Self::Began(_) if z.is_empty() => {}
            Self::Retired(_) | Self::Began(_) => {
                return Err("it has bytes behind its end".to_owned());
            }
        }
        Ok(entry)
    }
}
