//! The ascents of the facts that are solved for, in memory and on disk.
//!
//! Invariant: nothing here is the only copy of anything. A file that is missing or damaged costs the time to measure
//! that fact again, and its digest is checked before it is used.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::rc::Rc;

use addenda_model::Transformer;
use tch::{Kind, Tensor};

use super::{Ascent, ascents};
use crate::digest::hex;
use crate::entry::Edit;
use crate::error::Result;
use crate::kept::Kept;
use crate::pace::Pace;
use crate::rows::index;
use crate::settings::SolveSettings;

const EXTENSION: &str = "safetensors";

/// Ascents by the digests of their edits.
#[derive(Debug)]
pub(crate) struct AscentStore {
    dir: PathBuf,
    known: RefCell<BTreeMap<[u8; 32], Rc<Ascent>>>,
}

impl AscentStore {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            known: RefCell::default(),
        }
    }

    /// The ascents of edits of one recipe, in their order; those that nobody measured yet are measured together.
    pub(crate) fn of(
        &self,
        model: &Transformer,
        edits: &[([u8; 32], &Edit)],
        solve: &SolveSettings,
        pace: &mut Pace<'_>,
    ) -> Result<Vec<Rc<Ascent>>> {
        let layers = index(solve.layers.len());
        let config = model.config();
        let shapes = [config.intermediate_size, config.hidden_size];
        let shapes = shapes.map(|width| vec![layers, index(width)]);
        let mut known = self.known.borrow_mut();
        let mut missing = Vec::new();
        for (digest, edit) in edits {
            if known.contains_key(digest) {
                continue;
            }
            match self.load(digest, &shapes) {
                Some(ascent) => drop(known.insert(*digest, Rc::new(ascent))),
                None => missing.push((*digest, *edit)),
            }
        }
        let unknown: Vec<&Edit> = missing.iter().map(|(_, edit)| *edit).collect();
        if !unknown.is_empty() {
            let measured = ascents(model, &unknown, solve, pace)?;
            for ((digest, _), ascent) in missing.into_iter().zip(measured) {
                self.save(&digest, &ascent);
                known.insert(digest, Rc::new(ascent));
            }
        }
        let found = edits.iter().filter_map(|(digest, _)| known.get(digest));
        Ok(found.map(Rc::clone).collect())
    }

    /// Forgets those of all other edits.
    pub(crate) fn keep_only(&self, edits: &BTreeSet<[u8; 32]>) {
        self.known
            .borrow_mut()
            .retain(|digest, _| edits.contains(digest));
        let names: BTreeSet<String> = edits.iter().map(|digest| file_name(digest)).collect();
        let Ok(files) = std::fs::read_dir(&self.dir) else {
            return;
        };
        for file in files.flatten() {
            let own = file.file_name().into_string();
            if own.is_ok_and(|own| own.ends_with(EXTENSION) && !names.contains(&own)) {
                // One that stays costs disk, and is tried again.
                drop(std::fs::remove_file(file.path()));
            }
        }
    }

    fn load(&self, digest: &[u8; 32], shapes: &[Vec<i64>; 2]) -> Option<Ascent> {
        let path = self.dir.join(file_name(digest));
        let kept = match Kept::load(&path) {
            Ok(kept) => kept?,
            Err(error) => {
                tracing::warn!(%error, "a fact's keys cannot be read; they are measured again");
                return None;
            }
        };
        let mut matrices: HashMap<String, Tensor> = kept.matrices.into_iter().collect();
        let [keys, shares] = ["keys", "shares"].map(|name| matrices.remove(name));
        let fits = |tensor: &Tensor, shape: &Vec<i64>| {
            tensor.size() == *shape && tensor.kind() == Kind::Float
        };
        let [of_keys, of_shares] = shapes;
        Some(Ascent {
            keys: keys.filter(|keys| fits(keys, of_keys))?,
            shares: shares.filter(|shares| fits(shares, of_shares))?,
        })
    }

    fn save(&self, digest: &[u8; 32], ascent: &Ascent) {
        let kept = Kept {
            matrices: vec![
                ("keys".to_owned(), ascent.keys.shallow_clone()),
                ("shares".to_owned(), ascent.shares.shallow_clone()),
            ],
            about: HashMap::new(),
        };
        if let Err(error) = kept.save(&self.dir.join(file_name(digest))) {
            tracing::warn!(%error, "a fact's keys were not kept; the next start measures them again");
        }
    }
}

fn file_name(digest: &[u8; 32]) -> String {
    format!("{}.{EXTENSION}", hex(digest))
}
