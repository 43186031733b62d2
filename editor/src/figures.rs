//! What was measured of an edit, and what is asked of it.

use serde::{Deserialize, Serialize};

use crate::settings::Bars;

/// What an edit's verification measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Probability of the target after the prompt: geometric mean over its tokens.
    pub target_probability: f64,
    /// The same under the weights served before.
    pub target_probability_before: f64,
    /// Every token of the target is the likeliest at its place.
    pub target_is_top1: bool,
    /// Share of paraphrases after which the target is likelier than the old answer; none without paraphrases.
    pub paraphrase: Option<f64>,
    /// Share of neighbours whose next token is what it was before; none without neighbours.
    pub locality: Option<f64>,
    /// The paraphrases were made from templates, for the caller gave none.
    #[serde(default)]
    pub made_paraphrases: bool,
    /// The neighbours were made from templates, for the caller gave none.
    #[serde(default)]
    pub made_neighbours: bool,
    /// Probability of the target where the assistant, asked to complete the prompt in a chat, has repeated it; none
    /// without a chat template.
    #[serde(default)]
    pub chat_probability: Option<f64>,
    /// Whether every token of the target is the likeliest there.
    #[serde(default)]
    pub chat_is_top1: Option<bool>,
    /// Share of the other active facts about the same subject whose target is still the likeliest; none without.
    pub same_subject: Option<f64>,
    /// Perplexity on the fixed text under the weights served before.
    pub perplexity_before: f64,
    /// The same under the new weights.
    pub perplexity_after: f64,
    /// The same under the base weights.
    pub perplexity_base: f64,
}

impl Figures {
    /// The bars that these figures fail, as sentences; none if all are met.
    pub(crate) fn failures(&self, bars: &Bars) -> Vec<String> {
        let mut failures = Vec::new();
        let percent = |share: f64| format!("{:.1} %", share * 100.0);
        if bars.target_top1 && !self.target_is_top1 {
            failures.push("the target did not become the likeliest answer".to_owned());
        }
        let held = |share: Option<f64>, made: bool| share.filter(|_| !made || bars.made_probes);
        let at_least = [
            (
                "the target's probability",
                Some(self.target_probability),
                bars.target_probability,
            ),
            (
                "the share of paraphrases that prefer the target",
                held(self.paraphrase, self.made_paraphrases),
                bars.paraphrase,
            ),
            (
                "the share of neighbours that kept their answer",
                held(self.locality, self.made_neighbours),
                bars.locality,
            ),
            (
                "the target's probability as an answer in the chat",
                self.chat_probability,
                bars.chat_probability,
            ),
            (
                "the share of other facts about this subject that still hold",
                self.same_subject,
                1.0,
            ),
        ];
        for (what, figure, bar) in at_least {
            if let Some(figure) = figure.filter(|figure| *figure < bar) {
                failures.push(format!(
                    "{what} is {}, and {} is asked for",
                    percent(figure),
                    percent(bar)
                ));
            }
        }
        let rises = [
            ("this edit", self.perplexity_before, bars.perplexity),
            (
                "all active edits together",
                self.perplexity_base,
                bars.perplexity_total,
            ),
        ];
        for (whose, from, bar) in rises {
            let rise = self.perplexity_after / from - 1.0;
            if rise > bar {
                failures.push(format!(
                    "the perplexity rose by {} through {whose}, and {} is allowed",
                    percent(rise),
                    percent(bar)
                ));
            }
        }
        failures
    }

    pub(crate) fn is_finite(&self) -> bool {
        [
            self.target_probability,
            self.target_probability_before,
            self.perplexity_before,
            self.perplexity_after,
            self.perplexity_base,
        ]
        .iter()
        .all(|figure| figure.is_finite())
    }
}

#[cfg(test)]
mod tests {
    use super::Figures;
    use crate::settings::Bars;

    #[test]
    fn each_failed_bar_is_named_with_its_figure() {
        let figures = Figures {
            target_probability: 0.25,
            target_probability_before: 0.01,
            target_is_top1: false,
            paraphrase: Some(0.0),
            locality: Some(0.0),
            made_paraphrases: true,
            made_neighbours: false,
            chat_probability: Some(0.125),
            chat_is_top1: Some(false),
            same_subject: None,
            perplexity_before: 10.0,
            perplexity_after: 10.3,
            perplexity_base: 10.0,
        };
        let bars = Bars {
            target_probability: 0.5,
            target_top1: true,
            paraphrase: 0.5,
            locality: 0.5,
            perplexity: 0.01,
            perplexity_total: 0.1,
            chat_probability: 0.25,
            make_probes: true,
            made_probes: false,
        };
        let failures = figures.failures(&bars).join("; ");
        assert!(
            failures.contains("probability is 25.0 %, and 50.0 % is asked for"),
            "{failures}"
        );
        assert!(
            failures.contains("neighbours that kept their answer is 0.0 %"),
            "{failures}"
        );
        assert!(
            failures.contains("rose by 3.0 % through this edit"),
            "{failures}"
        );
        assert!(failures.contains("in the chat is 12.5 %"), "{failures}");
        // Those were made from a template, which nobody asked to be held to the bars.
        assert!(!failures.contains("paraphrases"), "{failures}");
        assert!(!failures.contains("together"), "{failures}");
    }
}
