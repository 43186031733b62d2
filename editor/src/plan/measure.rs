//! What an edit does: the figures of planned and of active facts, and the perplexities that they are held against.

use std::collections::BTreeSet;

use addenda_model::Overlay;

use super::{Draft, Planner};
use crate::desk::Desk;
use crate::error::{Error, Result};
use crate::evaluate::{After, Before, Meter, Under};
use crate::fact::{Fact, FactId};
use crate::figures::Figures;
use crate::pace::Pace;
use crate::questions::Questions;
use crate::register::Register;

/// Perplexities that are remembered.
const REMEMBERED: usize = 16;

/// Of the fixed text: under the base weights, before what is measured, and with it.
#[derive(Clone, Copy)]
struct Perplexities {
    base: f64,
    before: f64,
    after: f64,
}

impl Planner {
    pub(super) fn meter<'a>(&self, desk: Desk<'a>, under: Under<'a>) -> Meter<'a> {
        Meter {
            model: desk.model,
            tokenizer: desk.tokenizer,
            under,
        }
    }

    /// The figures of each draft under the weights that hold them all.
    pub(super) fn verify(
        &self,
        desk: Desk<'_>,
        register: &Register,
        drafts: &[Draft],
        overlay: &Overlay,
        pace: &mut Pace<'_>,
    ) -> Result<Vec<Figures>> {
        let edited = self.meter(desk, Under::Overlay(overlay));
        let questions: Vec<&Questions> = drafts.iter().map(|draft| &draft.questions).collect();
        let before: Vec<&Before> = drafts.iter().map(|draft| &draft.before).collect();
        let after = edited.after(&questions, &before)?;
        let served = self.meter(desk, Under::Served);
        let perplexities = Perplexities {
            base: self.base_perplexity(desk, pace)?,
            before: self.perplexity(served, register.revision(), pace)?,
            after: edited.perplexity(pace)?,
        };
        let superseded: Vec<FactId> = drafts.iter().filter_map(|draft| draft.supersedes).collect();
        let mut all = Vec::with_capacity(drafts.len());
        for (draft, after) in drafts.iter().zip(after) {
            let standing = register
                .active_facts()
                .filter(|(id, _)| !superseded.contains(id))
                .map(|(_, fact)| fact);
            let new = drafts.iter().filter(|other| other.id != draft.id);
            let others = standing.chain(new.map(|draft| &draft.request.fact));
            let fact = &draft.request.fact;
            let figures = self.figures(edited, fact, &after, others, perplexities)?;
            if !figures.is_finite() {
                return Err(Error::NotFinite("a figure of the edit"));
            }
            all.push(figures);
        }
        Ok(all)
    }

    /// Measures an active fact under the served weights, against the base weights.
    pub(crate) fn check(
        &self,
        desk: Desk<'_>,
        register: &Register,
        fact: &Fact,
        pace: &mut Pace<'_>,
    ) -> Result<Figures> {
        let questions = [&self.questions(desk, fact)?];
        let base = Overlay::base();
        let before = self.meter(desk, Under::Overlay(&base)).before(&questions)?;
        let served = self.meter(desk, Under::Served);
        let before: Vec<&Before> = before.iter().collect();
        let after = served.after(&questions, &before)?.pop();
        let after = after.ok_or(Error::NotFinite("a figure of the edit"))?;
        let others = register.active_facts().map(|(_, other)| other);
        let others = others.filter(|other| !other.asks_the_same(fact));
        let base = self.base_perplexity(desk, pace)?;
        let perplexities = Perplexities {
            base,
            before: base,
            after: self.perplexity(served, register.revision(), pace)?,
        };
        self.figures(served, fact, &after, others, perplexities)
    }

    /// From what was measured to what is told; `others` are facts that must hold beside this one.
    fn figures<'a>(
        &self,
        meter: Meter<'_>,
        fact: &Fact,
        after: &After,
        others: impl Iterator<Item = &'a Fact>,
        perplexities: Perplexities,
    ) -> Result<Figures> {
        let probed = self.probed(fact);
        let others: Vec<&Fact> = others
            .filter(|other| other.subject == fact.subject)
            .collect();
        Ok(Figures {
            target_probability: after.target.mean.exp(),
            target_probability_before: after.before,
            target_is_top1: after.target.top1,
            made_paraphrases: probed.made_paraphrases,
            made_neighbours: probed.made_neighbours,
            chat_probability: after.chat.map(|score| score.mean.exp()),
            chat_is_top1: after.chat.map(|score| score.top1),
            paraphrase: after.paraphrase,
            locality: after.locality,
            same_subject: meter.holding(&others)?,
            perplexity_base: perplexities.base,
            perplexity_before: perplexities.before,
            perplexity_after: perplexities.after,
        })
    }

    fn base_perplexity(&self, desk: Desk<'_>, pace: &mut Pace<'_>) -> Result<f64> {
        let base = Overlay::base();
        let revision = addenda_model::revision(&self.fingerprint, &BTreeSet::new());
        self.perplexity(self.meter(desk, Under::Overlay(&base)), revision, pace)
    }

    /// The perplexity of a revision, measured once.
    fn perplexity(&self, meter: Meter<'_>, revision: [u8; 32], pace: &mut Pace<'_>) -> Result<f64> {
        if let Some(known) = self.perplexities.borrow().get(&revision) {
            return Ok(*known);
        }
        let measured = meter.perplexity(pace)?;
        self.remember(revision, measured);
        Ok(measured)
    }

    /// The perplexity of a revision that was measured before it was one.
    pub(crate) fn remember(&self, revision: [u8; 32], perplexity: f64) {
        let mut perplexities = self.perplexities.borrow_mut();
        if perplexities.len() >= REMEMBERED {
            perplexities.clear();
        }
        perplexities.insert(revision, perplexity);
    }
}
