//! From a set of edits to the weights' changes: the joint solve, layer by layer.
//!
//! Invariant: the patches are a function of the base weights and of the *set* of edits. Edits are taken in the order
//! of their facts' ids, whatever order they came in; each wanted state was sought on the base weights; and what is
//! still missing at a layer is measured under the layers solved before it.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use addenda_model::Transformer;
use tch::{Kind, Tensor};

use crate::corpus::Corpus;
use crate::desk::Desk;
use crate::entry::{Edit, Recipe};
use crate::error::{Error, Result};
use crate::fact::FactId;
use crate::key::Climb;
use crate::moment::{Moment, MomentSpec, MomentStore};
use crate::nullspace::Projection;
use crate::pace::{Pace, Phase, Progress};
use crate::patch::{Patch, overlay};
use crate::rows::index;
use crate::settings::{Method, MomentSettings};
use crate::{moment, solve};

/// Cholesky factors are kept in memory up to this size; larger ones are made again for each solve.
const FACTOR_BYTES: usize = 1 << 30;

/// Layer, moment's sample, bits of λ.
type FactorKey = (usize, [u8; 32], u64);

/// Makes factors of second moments, measuring those that are not there yet.
#[derive(Debug)]
pub(crate) struct Solver {
    store: MomentStore,
    corpus: Corpus,
    settings: MomentSettings,
    factors: RefCell<HashMap<FactorKey, Rc<solve::Factor>>>,
    /// By layer, moment's sample, and free share of the trace.
    projections: RefCell<HashMap<FactorKey, Rc<Projection>>>,
}

impl Solver {
    pub(crate) fn new(store: MomentStore, corpus: Corpus, settings: MomentSettings) -> Self {
        Self {
            store,
            corpus,
            settings,
            factors: RefCell::default(),
            projections: RefCell::default(),
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
        let (kind, spec) = (desk.model.kind(), &recipe.moment);
        // Facts keep the sample that they were solved with, also where the settings' or the shipped text is another now.
        let corpus = if spec.corpus == self.corpus.digest() {
            Some(self.corpus.clone())
        } else {
            Corpus::of_digest(&spec.corpus)
        };
        let corpus =
            corpus.ok_or_else(|| Error::MissingMoment(crate::digest::hex(&spec.corpus)))?;
        let settings = MomentSettings {
            tokens: spec.tokens,
            window: spec.window,
            // As many tokens at a time, whatever their windows.
            batch: (self.settings.batch * self.settings.window / spec.window.max(1)).max(1),
        };
        tracing::info!(layers = ?missing, tokens = spec.tokens, "measuring the second moment of the keys");
        let partial = (self.store).partial(kind, &missing, (spec, settings.batch));
        let sample = (&corpus, &settings);
        let reader = (desk.model, desk.tokenizer);
        for (layer, moment) in moment::measure(reader, sample, &missing, &partial, pace)? {
            self.store.save(kind, layer, spec, &moment)?;
        }
        // All that it could be gone on for is kept by now; one that stays costs disk and nothing else.
        drop(std::fs::remove_file(&partial));
        Ok(missing.len())
    }

    /// Makes and keeps the projections that a recipe needs, so that the first edit need not wait for them.
    pub(crate) fn project(
        &self,
        model: &Transformer,
        recipe: &Recipe,
        pace: &mut Pace<'_>,
    ) -> Result<()> {
        if recipe.solve.method != Method::AlphaEdit {
            return Ok(());
        }
        let layers = &recipe.solve.layers;
        for (done, layer) in layers.iter().enumerate() {
            pace(Progress {
                phase: Phase::Projection,
                done: done as u64,
                total: layers.len() as u64,
            })?;
            self.projection(model, recipe, *layer)?;
        }
        Ok(())
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
        let moment = self.moment(model, recipe, layer)?;
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

    fn moment(&self, model: &Transformer, recipe: &Recipe, layer: usize) -> Result<Moment> {
        let width = model.config().intermediate_size;
        let found = self
            .store
            .load(model.kind(), layer, &recipe.moment, width)?;
        found.ok_or_else(|| Error::MissingMoment(crate::digest::hex(&recipe.moment.corpus)))
    }

    /// P of a layer, from memory or made from the second moment.
    fn projection(
        &self,
        model: &Transformer,
        recipe: &Recipe,
        layer: usize,
    ) -> Result<Rc<Projection>> {
        let share = recipe.solve.free_energy.unwrap_or_default();
        let key = (layer, recipe.moment.digest(), u64::from(share));
        if let Some(projection) = self.projections.borrow().get(&key) {
            return Ok(Rc::clone(projection));
        }
        let path = (self.store).projection(model.kind(), layer, (&recipe.moment, share));
        let projection = match Projection::load(&path, model.config().intermediate_size)? {
            Some(projection) => Rc::new(projection),
            None => {
                let moment = self.moment(model, recipe, layer)?;
                let projection = Projection::of(&moment, f64::from(share) / 1000.0)?;
                projection.save(&path)?;
                Rc::new(projection)
            }
        };
        tracing::debug!(layer, protected = projection.rank(), "found the null space");
        let mut projections = self.projections.borrow_mut();
        let held: usize = projections.values().map(|p| p.bytes()).sum();
        if held + projection.bytes() <= FACTOR_BYTES {
            projections.insert(key, Rc::clone(&projection));
        }
        Ok(projection)
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
            self.climb(desk, recipe, group, &mut patches, (total, pace))?;
        }
        Ok(patches)
    }

    /// One recipe's patches, layer by layer: each takes its share of what is still missing under those before it.
    fn climb(
        &self,
        desk: Desk<'_>,
        recipe: &Recipe,
        group: &[&Edit],
        patches: &mut Vec<Patch>,
        (total, pace): (u64, &mut Pace<'_>),
    ) -> Result<()> {
        let (study, layers) = (desk.study, &recipe.solve.layers);
        let under = overlay(study, patches)?;
        let mut climb = Climb::begin(study, &under, group, &recipe.solve, pace)?;
        let wanted = wanted(group).map_err(Error::torch("comparing states"))?;
        for (done, layer) in layers.iter().enumerate() {
            pace(Progress {
                phase: Phase::Solve,
                done: patches.len() as u64,
                total,
            })?;
            let standing = climb.measure(*layer, pace)?;
            let share = 1.0 / (layers.len() - done) as f64;
            let missing = (&wanted - &standing.states) * share;
            let (solution, condition) =
                self.solve(desk.model, recipe, *layer, &standing.keys, &missing)?;
            tracing::debug!(
                layer,
                facts = group.len(),
                unmet = solution.unmet,
                condition,
                "solved"
            );
            patches.push(Patch::new(*layer, &solution, condition)?);
            if let Some(next) = layers.get(done + 1) {
                let under = overlay(study, patches)?;
                climb.rise(*layer, *next, &under, pace)?;
            }
        }
        Ok(())
    }

    /// The recipe's closed form at a layer, and the condition number of the worst system in it.
    fn solve(
        &self,
        model: &Transformer,
        recipe: &Recipe,
        layer: usize,
        keys: &Tensor,
        missing: &Tensor,
    ) -> Result<(solve::Solution, f64)> {
        let by_factor = |form: &dyn Fn(&solve::Factor) -> Result<solve::Solution>| {
            let factor = self.factor(model, recipe, layer)?;
            let solution = form(&factor)?;
            let condition = solution.condition.max(factor.condition);
            Ok((solution, condition))
        };
        match recipe.solve.method {
            Method::Memit => by_factor(&|factor| {
                let (_, facts) = keys.size2().map_err(Error::torch("counting facts"))?;
                let times = recipe.solve.lambda_of_crowd(facts);
                solve::memit(factor, times, keys, missing)
            }),
            Method::Rome => by_factor(&|factor| solve::rome(factor, keys, missing)),
            Method::AlphaEdit => {
                let projection = self.projection(model, recipe, layer)?;
                let ridge = recipe.solve.lambda;
                let solution = solve::alphaedit(&projection, ridge, keys, missing)?;
                let condition = solution.condition;
                Ok((solution, condition))
            }
        }
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
