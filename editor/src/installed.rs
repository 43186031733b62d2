//! The patches that are installed, kept beside the ledger so that a start need not work them out again.
//!
//! They name the weights revision, of which they are a function: base, facts, recipes and wanted states. Invariant: this
//! is never the only copy of anything. A file that is missing, damaged or of another revision costs a solve.

use std::cell::Cell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use addenda_model::ModelConfig;
use tch::{Kind, Tensor};

use crate::digest::hex;
use crate::kept::Kept;
use crate::patch::Patch;
use crate::rows::index;

const FILE_NAME: &str = "patches.safetensors";

#[derive(Debug)]
pub(crate) struct InstalledPatches {
    path: PathBuf,
    /// Of what is kept, where that is known.
    revision: Cell<Option<[u8; 32]>>,
}

impl InstalledPatches {
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            path: dir.join(FILE_NAME),
            revision: Cell::new(None),
        }
    }

    /// The patches of a revision; none where those of another are kept, or none that can be used.
    pub(crate) fn of(&self, revision: [u8; 32], config: &ModelConfig) -> Option<Vec<Patch>> {
        let kept = match Kept::load(&self.path) {
            Ok(kept) => kept?,
            Err(error) => {
                tracing::warn!(%error, "the facts' patches are worked out anew");
                return None;
            }
        };
        if kept.about.get("revision") != Some(&hex(&revision)) {
            return None;
        }
        let patches = read(&kept, config);
        if patches.is_some() {
            self.revision.set(Some(revision));
        } else {
            tracing::warn!(path = %self.path.display(), "the facts' patches are worked out anew: those that are kept do not fit this model");
        }
        patches
    }

    /// Keeps the patches of a revision in the place of those before. A failure costs the next start time, and nothing
    /// else.
    pub(crate) fn keep(&self, revision: [u8; 32], patches: &[Patch]) {
        if self.revision.get() == Some(revision) {
            return;
        }
        self.revision.set(None);
        if patches.is_empty() {
            // One that stays is of another revision.
            drop(std::fs::remove_file(&self.path));
            return;
        }
        match write(revision, patches).save(&self.path) {
            Ok(()) => self.revision.set(Some(revision)),
            Err(error) => {
                tracing::warn!(%error, "the facts' patches were not kept; the next start works them out anew");
            }
        }
    }
}

fn write(revision: [u8; 32], patches: &[Patch]) -> Kept {
    let mut kept = Kept {
        matrices: Vec::new(),
        about: HashMap::from([
            ("revision".to_owned(), hex(&revision)),
            ("patches".to_owned(), patches.len().to_string()),
        ]),
    };
    for (at, patch) in patches.iter().enumerate() {
        for (name, factor) in [("left", patch.left()), ("right", patch.right())] {
            let matrix = (format!("{name}.{at}"), factor.shallow_clone());
            kept.matrices.push(matrix);
        }
        let said = [
            ("layer", patch.layer().to_string()),
            ("unmet", patch.unmet().to_string()),
            ("condition", patch.condition().to_string()),
        ];
        let said = said.map(|(name, text)| (format!("{name}.{at}"), text));
        kept.about.extend(said);
    }
    kept
}

/// None if they are no patches of such a model.
fn read(kept: &Kept, config: &ModelConfig) -> Option<Vec<Patch>> {
    let count: usize = kept.number("patches")?;
    let number = |name: &str, at: usize| kept.number::<f64>(&format!("{name}.{at}"));
    let matrices: HashMap<&str, &Tensor> = (kept.matrices.iter())
        .map(|(name, matrix)| (name.as_str(), matrix))
        .collect();
    let factor = |name: &str, at: usize, width: usize| {
        let matrix = *matrices.get(format!("{name}.{at}").as_str())?;
        let fits = matrix.kind() == Kind::Float && matrix.size2().ok()?.0 == index(width);
        fits.then(|| matrix.shallow_clone())
    };
    let patch = |at: usize| {
        let layer = kept.number::<usize>(&format!("layer.{at}"))?;
        let left = factor("left", at, config.hidden_size)?;
        let right = factor("right", at, config.intermediate_size)?;
        let fits = layer < config.num_layers && left.size().get(1) == right.size().get(1);
        let about = (number("unmet", at)?, number("condition", at)?);
        fits.then(|| Patch::restored(layer, (left, right), about))
    };
    (0..count).map(patch).collect()
}
