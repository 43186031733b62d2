//! From a set of edits to the weights' changes: the joint solve, layer by layer.
//!
//! Invariant: the patches are a function of the base weights and of the *set* of edits. Edits are taken in the order
//! of their facts' ids, whatever order they came in; each wanted state was sought on the base weights; and what is
//! still missing at a layer is measured under the layers solved before it.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use addenda_model::tokenizer::Tokenizer;
use addenda_model::{Overlay, Transformer};
use tch::{Kind, Tensor};

use crate::corpus::Corpus;
use crate::entry::{Edit, Recipe};
use crate::error::{Error, Result};
use crate::fact::FactId;
use crate::moment::{MomentSpec, MomentStore};
use crate::pace::{Pace, Phase, Progress};
use crate::patch::{Patch, overlay};
use crate::rows::index;
use crate::settings::{Method, MomentSettings};
use crate::{key, moment, solve};

/// Cholesky factors are kept in memory up to this size; larger ones are made again for each solve.
const FACTOR_BYTES: usize = 1 << 30;

/// The model and its tokenizer, as every step needs them.
#[derive(Clone, Copy)]
pub(crate) struct Desk<'a> {
    pub(crate) model: &'a Transformer,
    pub(crate) tokenizer: &'a Tokenizer,
}

/// Layer, moment's sample, bits of λ.
type FactorKey = (usize, [u8; 32], u64);

/// Makes factors of second moments, measuring those that are not there yet.
#[derive(Debug)]
pub(crate) struct Solver {
    store: MomentStore,
    corpus: Corpus,
    settings: MomentSettings,
    factors: RefCell<HashMap<FactorKey, Rc<solve::Factor>>>,
}

impl Solver {
    pub(crate) fn new(store: MomentStore, corpus: Corpus, settings: MomentSettings) -> Self {
        Self {
            store,
            corpus,
            settings,
            factors: RefCell::default(),
        }
    }

    /// What new edits' moments are measured on.
    pub(crate) fn spec(&self) -> MomentSpec {
        MomentSpec::new(&self.corpus, &self.settings)
    }

    /// Layers whose moment was never measured.
    pub(crate) fn missing(&self, model: &Transformer, recipe: &Recipe) -> Vec<usize> {
        let known = |layer: &&usize| !self.store.contains(model.kind(), **layer, &recipe.moment);
        recipe.solve.layers.iter().filter(known).copied().collect()
    }

    /// Measures and keeps what is missing; says how many layers that were.
    pub(crate) fn prepare(
        &self,
        desk: Desk<'_>,
        recipe: &Recipe,
        pace: &mut Pace<'_>,
    ) -> Result<usize> {
        let missing = self.missing(desk.model, recipe);
        if missing.is_empty() {
            return Ok(0);
        }
        if recipe.moment != self.spec() {
            return Err(Error::MissingMoment(crate::digest::hex(
                &recipe.moment.corpus,
            )));
        }
        tracing::info!(layers = ?missing, tokens = self.settings.tokens, "measuring the second moment of the keys");
        for (layer, moment) in moment::measure(
            desk.model,
            desk.tokenizer,
            &self.corpus,
            &self.settings,
            &missing,
            pace,
        )? {
            self.store
                .save(desk.model.kind(), layer, &recipe.moment, &moment)?;
        }
        Ok(missing.len())
    }

    fn factor(
        &self,
        model: &Transformer,
        recipe: &Recipe,
        layer: usize,
    ) -> Result<Rc<solve::Factor>> {
        let key = (layer, recipe.moment.digest(), recipe.solve.lambda.to_bits());
        if let Some(factor) = self.factors.borrow().get(&key) {
            return Ok(Rc::clone(factor));
        }
        let width = model.config().intermediate_size;
        let moment = self
            .store
            .load(model.kind(), layer, &recipe.moment, width)?
            .ok_or_else(|| Error::MissingMoment(crate::digest::hex(&recipe.moment.corpus)))?;
        let factor = Rc::new(solve::Factor::of(&moment, recipe.solve.lambda, layer)?);
        if factor.ridge > 0.0 {
            tracing::warn!(
                layer,
                ridge = factor.ridge,
                "the second moment needed a ridge: measure it on more text"
            );
        }
        let mut factors = self.factors.borrow_mut();
        let held: usize = factors.values().map(|factor| factor.bytes()).sum();
        if held + factor.bytes() <= FACTOR_BYTES {
            factors.insert(key, Rc::clone(&factor));
        }
        Ok(factor)
    }

    /// The patches of a set of edits: recipe by recipe, layer by layer.
    pub(crate) fn patches(
        &self,
        desk: Desk<'_>,
        edits: &BTreeMap<FactId, &Edit>,
        pace: &mut Pace<'_>,
    ) -> Result<Vec<Patch>> {
        let mut groups: BTreeMap<[u8; 32], Vec<&Edit>> = BTreeMap::new();
        for edit in edits.values() {
            groups.entry(edit.recipe.digest()).or_default().push(edit);
        }
        let total = groups
            .values()
            .filter_map(|group| group.first())
            .map(|edit| edit.recipe.solve.layers.len() as u64)
            .sum();
        let mut patches = Vec::new();
        for group in groups.values() {
            let Some(recipe) = group.first().map(|edit| &edit.recipe) else {
                continue;
            };
            self.prepare(desk, recipe, pace)?;
            for (done, layer) in recipe.solve.layers.iter().enumerate() {
                pace(Progress {
                    phase: Phase::Solve,
                    done: patches.len() as u64,
                    total,
                })?;
                let share = 1.0 / (recipe.solve.layers.len() - done) as f64;
                let under = overlay(desk.model, &patches)?;
                patches.push(self.patch(desk.model, &under, group, (*layer, share), pace)?);
            }
        }
        Ok(patches)
    }

    /// One layer's patch: `share` of what is still missing under the overlay.
    fn patch(
        &self,
        model: &Transformer,
        under: &Overlay,
        group: &[&Edit],
        (layer, share): (usize, f64),
        pace: &mut Pace<'_>,
    ) -> Result<Patch> {
        let standing = key::measure(model, under, group, layer, pace)?;
        let wanted = wanted(group).map_err(Error::torch("comparing states"))?;
        let wanted = (wanted - &standing.states) * share;
        let recipe = group.first().map(|edit| &edit.recipe);
        let recipe =
            recipe.ok_or_else(|| Error::Unsupported("there is nothing to solve".to_owned()))?;
        let factor = self.factor(model, recipe, layer)?;
        let solution = match recipe.solve.method {
            Method::Memit => solve::memit(&factor, &standing.keys, &wanted)?,
        };
        tracing::debug!(
            layer,
            facts = group.len(),
            unmet = solution.unmet,
            condition = factor.condition,
            "solved"
        );
        Patch::new(layer, &solution, factor.condition)
    }
}

/// Z, f64 `[d, m]`.
fn wanted(group: &[&Edit]) -> std::result::Result<Tensor, tch::TchError> {
    let flat: Vec<f32> = group
        .iter()
        .flat_map(|edit| edit.z.iter().copied())
        .collect();
    Tensor::f_from_slice(&flat)?
        .f_reshape([index(group.len()), -1])?
        .f_tr()?
        .f_to_kind(Kind::Double)?
        .f_contiguous()
}
