//! Facts carried from one ledger to another as a safetensors file: a patch with its identity.
//!
//! The file holds the changed matrices as low-rank factors, for whoever serves the same base by other means; and of each
//! fact all that the joint solve needs, so that taking a file in is adding its facts without seeking anything anew: they
//! are solved with the facts that are there, verified, and written to the ledger like any other. Invariants: a file names
//! its kind and the base that it was made on, and is refused for another; its digest covers every fact and every wanted
//! state.

use std::collections::HashMap;

use addenda_model::Transformer;
use addenda_model::tokenizer::Tokenizer;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::batch::{self, Planned, Request, Slot};
use crate::desk::Copies;
use crate::digest::{Canonical, from_hex, hex};
use crate::editor::Editor;
use crate::entry::Edit;
use crate::error::{Error, Result};
use crate::fact::{Fact, FactId};
use crate::pace::Pace;
use crate::rows::floats;
use crate::settings::MAX_LAMBDA_GROWTH;

const FORMAT: &str = "addenda patch 1";
const STATES: &str = "facts.wanted_states";

/// What a patch is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PatchKind {
    /// Facts, written by locate-and-edit.
    Facts,
}

impl std::fmt::Display for PatchKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Facts => "facts",
        })
    }
}

impl std::str::FromStr for PatchKind {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "facts" => Ok(Self::Facts),
            other => Err(format!(
                "it is of the kind {other:?}, and this program knows \"facts\""
            )),
        }
    }
}

/// What a patch file says of itself.
#[derive(Debug, Clone)]
pub struct PatchFile {
    /// What it is made of.
    pub kind: PatchKind,
    /// Fingerprint of the base weights that it belongs to.
    pub base: [u8; 32],
    /// The weights revision that base and patch together are.
    pub revision: [u8; 32],
    /// BLAKE3 of what it carries.
    pub digest: [u8; 32],
    /// Its facts, in the order of their ids.
    pub facts: Vec<Fact>,
    /// Tensors of changed matrices, by name and shape.
    pub matrices: Vec<(String, Vec<usize>)>,
}

/// A fact on its way, but for its wanted state.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Carried {
    pub(crate) fact: Fact,
    pub(crate) edit: Edit,
}

/// A tensor of f32: its name, shape and bytes.
type Factor = (String, Vec<usize>, Vec<u8>);

impl Editor {
    /// The active facts as a file; `matrices` says whether the changed matrices go with them.
    pub fn export(&self, matrices: bool) -> Result<Vec<u8>> {
        let mut carried = Vec::new();
        for (id, edit) in self.register.active() {
            let fact = self.get(*id)?.fact.clone();
            carried.push(Carried {
                fact,
                edit: edit.clone(),
            });
        }
        let mut factors = Vec::new();
        for (place, patch) in self.patches().iter().enumerate().filter(|_| matrices) {
            for (side, factor) in [("left", patch.left()), ("right", patch.right())] {
                let name = format!("{place}.layers.{}.down_proj.{side}", patch.layer());
                let numbers = floats(factor).map_err(Error::torch("reading a patch"))?;
                let bytes = numbers.iter().flat_map(|number| number.to_le_bytes());
                factors.push((name, shape(factor), bytes.collect()));
            }
        }
        let base = self.planner.fingerprint;
        encode((base, self.revision()), &carried, factors).map_err(unreadable)
    }

    /// Works out what the facts of a file are together with those that are active; changes nothing.
    ///
    /// One that is there already, or fails its bars here, is answered for itself. Facts with dates go by them.
    pub fn plan_import(
        &self,
        model: &Transformer,
        tokenizer: &Tokenizer,
        bytes: &[u8],
        pace: &mut Pace<'_>,
    ) -> Result<Planned> {
        let (file, carried) = read(bytes)?;
        if file.base != self.planner.fingerprint {
            return Err(Error::OtherBase {
                patch: hex(&file.base),
                model: hex(&self.planner.fingerprint),
            });
        }
        let width = model.config().hidden_size;
        let vocabulary = model.config().vocab_size;
        let layers = model.config().num_layers;
        let mut edits: HashMap<FactId, Edit> = HashMap::new();
        let mut requests = Vec::new();
        for Carried { fact, edit } in carried {
            fits(&edit, (width, vocabulary, layers)).map_err(unreadable)?;
            let method = Some(edit.recipe.solve.method);
            edits.insert(fact.clone().checked()?.id(), edit);
            requests.push(Request {
                fact,
                method,
                ..Request::default()
            });
        }
        let (mut slots, new) = batch::sort(requests, |fact, id| self.known(fact, id));
        let copies = Copies::to_solve(model)?;
        let desk = copies.desk(model, tokenizer);
        let with_edit = new.into_iter().filter_map(|(place, request)| {
            let edit = edits.remove(&request.fact.id())?;
            Some((place, request, edit))
        });
        let with_edit: Vec<_> = with_edit.collect();
        let head = self.ledger.head();
        let (answers, weights) =
            (self.planner).adopt(desk, &self.register, with_edit, head, pace)?;
        for (place, answer) in answers {
            if let Some(slot) = slots.get_mut(place) {
                *slot = Some(match answer {
                    Ok(novelty) => Slot::New(Box::new(novelty)),
                    Err(error) => Slot::Refused(error),
                });
            }
        }
        let cancelled = || Slot::Refused(Error::Cancelled);
        let slots = slots.into_iter().map(|slot| slot.unwrap_or_else(cancelled));
        Ok(Planned {
            slots: slots.collect(),
            weights,
        })
    }
}

/// What a patch file says of itself; verified, and without a model.
pub fn inspect_patch(bytes: &[u8]) -> Result<PatchFile> {
    Ok(read(bytes)?.0)
}

fn read(bytes: &[u8]) -> Result<(PatchFile, Vec<Carried>)> {
    parse(bytes).map_err(unreadable)
}

/// The file of these facts and matrices, made on `base` and giving `revision`.
pub(crate) fn encode(
    (base, revision): ([u8; 32], [u8; 32]),
    carried: &[Carried],
    factors: Vec<Factor>,
) -> std::result::Result<Vec<u8>, String> {
    let states = carried.iter().flat_map(|one| &one.edit.z);
    let states: Vec<u8> = states.flat_map(|value| value.to_le_bytes()).collect();
    let width = carried.first().map_or(0, |one| one.edit.z.len());
    let facts = serde_json::to_string(carried).map_err(|error| error.to_string())?;
    let about = HashMap::from([
        ("format".to_owned(), FORMAT.to_owned()),
        ("kind".to_owned(), PatchKind::Facts.to_string()),
        ("base".to_owned(), hex(&base)),
        ("revision".to_owned(), hex(&revision)),
        ("digest".to_owned(), hex(&digest(&facts, &states))),
        ("facts".to_owned(), facts),
    ]);
    let mut tensors = vec![(STATES.to_owned(), vec![carried.len(), width], states)];
    tensors.extend(factors);
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
        Ok((name.as_str(), view.map_err(|error| error.to_string())?))
    });
    let views: Vec<(&str, TensorView<'_>)> = views.collect::<std::result::Result<_, String>>()?;
    safetensors::serialize(views, Some(about)).map_err(|error| error.to_string())
}

/// Puts the right digest into a file that says another.
#[cfg(test)]
pub(crate) fn seal(bytes: &mut [u8]) -> Option<()> {
    let (_, header) = SafeTensors::read_metadata(bytes).ok()?;
    let about = header.metadata().as_ref()?;
    let said = about.get("digest").filter(|said| said.len() == 64)?;
    let file = SafeTensors::deserialize(bytes).ok()?;
    let right = hex(&digest(
        about.get("facts")?,
        file.tensor(STATES).ok()?.data(),
    ));
    let place = bytes.windows(64).position(|part| part == said.as_bytes())?;
    bytes
        .get_mut(place..place + 64)?
        .copy_from_slice(right.as_bytes());
    Some(())
}

pub(crate) fn parse(bytes: &[u8]) -> std::result::Result<(PatchFile, Vec<Carried>), String> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
    let about = header.metadata().as_ref().ok_or("it has no metadata")?;
    let field = |name: &str| about.get(name).ok_or(format!("its metadata lack {name:?}"));
    let id = |name: &str| {
        let found = from_hex(field(name)?);
        found.ok_or(format!("its {name} is not 64 hexadecimal digits"))
    };
    if field("format")? != FORMAT {
        return Err(format!("its format is {:?}", field("format")?));
    }
    let kind = field("kind")?.parse()?;
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    let states = file.tensor(STATES).map_err(|error| error.to_string())?;
    let facts = field("facts")?;
    if digest(facts, states.data()) != id("digest")? {
        return Err("its digest does not match".to_owned());
    }
    let mut carried: Vec<Carried> =
        serde_json::from_str(facts).map_err(|error| error.to_string())?;
    let &[count, width] = states.shape() else {
        return Err("its states are no matrix".to_owned());
    };
    if states.dtype() != Dtype::F32 || count != carried.len() {
        return Err(format!("it has {} facts and {count} states", carried.len()));
    }
    let (numbers, _) = states.data().as_chunks::<4>();
    let mut numbers = numbers.iter().map(|bytes| f32::from_le_bytes(*bytes));
    for one in &mut carried {
        one.edit.z = numbers.by_ref().take(width).collect();
    }
    let tensors = file.iter().filter(|(name, _)| *name != STATES);
    let mut matrices: Vec<(String, Vec<usize>)> = tensors
        .map(|(name, view)| (name.to_owned(), view.shape().to_vec()))
        .collect();
    matrices.sort();
    let about = PatchFile {
        kind,
        base: id("base")?,
        revision: id("revision")?,
        digest: id("digest")?,
        facts: carried.iter().map(|one| one.fact.clone()).collect(),
        matrices,
    };
    Ok((about, carried))
}

/// Whether a model of this width, vocabulary and depth can hold it.
fn fits(
    edit: &Edit,
    (width, vocabulary, layers): (usize, usize, usize),
) -> std::result::Result<(), String> {
    let known = |id: &u32| usize::try_from(*id).is_ok_and(|id| id < vocabulary);
    let mut ids = edit
        .prompt_ids
        .iter()
        .chain(edit.context_ids.iter().flatten());
    let solve = &edit.recipe.solve;
    let rising = solve.layers.is_sorted_by(|a, b| a < b);
    let sound = edit.z.len() == width
        && edit.z.iter().all(|value| value.is_finite())
        && edit.subject_at < edit.prompt_ids.len()
        && ids.all(known)
        && edit.context_ids.iter().all(|ids| !ids.is_empty())
        && edit.context_ids.len() == solve.key_contexts
        && !solve.layers.is_empty()
        && rising
        && solve.layers.iter().all(|layer| *layer < layers)
        && solve.lambda.is_finite()
        && solve.lambda > 0.0
        && solve.lambda_growth <= MAX_LAMBDA_GROWTH;
    match sound {
        true => Ok(()),
        false => Err("one of its facts does not fit this model".to_owned()),
    }
}

fn digest(facts: &str, states: &[u8]) -> [u8; 32] {
    let mut canonical = Canonical::new("addenda 2026-01 patch file");
    canonical.text(facts).bytes(states);
    canonical.finish()
}

fn shape(tensor: &Tensor) -> Vec<usize> {
    let sizes = tensor.size();
    let sizes = sizes.iter().map(|size| usize::try_from(*size).unwrap_or(0));
    sizes.collect()
}

fn unreadable(problem: String) -> Error {
    Error::BadPatch(problem)
}
