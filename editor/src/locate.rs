//! Locate: which layers carry facts, by causal tracing (Meng et al. 2022).
//!
//! The model reads a prompt whose answer it knows, once as it is and once with noise on the subject's embeddings, which
//! makes it forget. Then one clean state is put back at one token: the residual stream as it leaves a layer, or what MLP
//! or attention give over a window of layers. How much of the answer's probability comes back is the indirect effect of
//! that place. Always on the base weights; never changes them. Invariant: the same facts, seed and model give the same
//! effects.

mod scene;

use addenda_model::Transformer;
use addenda_model::tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};

use crate::editor::Editor;
use crate::error::{Error, Result};
use crate::fact::Fact;
use crate::pace::{Pace, Phase, Progress};
use scene::{Scene, noise_for};

/// What is put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Restored {
    /// The residual stream as it leaves one layer.
    Hidden,
    /// What the MLPs of a window of layers give.
    Mlp,
    /// What attention gives in a window of layers.
    Attention,
}

impl Restored {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Hidden, Self::Mlp, Self::Attention];
}

impl std::fmt::Display for Restored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Hidden => "hidden",
            Self::Mlp => "mlp",
            Self::Attention => "attention",
        })
    }
}

/// Where tokens stand in their prompt; traces of different prompts are averaged by this.
pub const ROLES: [&str; 5] = [
    "subject, first",
    "subject, middle",
    "subject, last",
    "behind it",
    "last of all",
];
/// The place in [`ROLES`] of the token that edits are made at.
const SUBJECT_LAST: usize = 2;

/// The effects of one layer, by role; none where no prompt has such a token.
pub type Effects = [Option<f64>; ROLES.len()];

/// How facts are traced.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Tracing {
    /// Draws of noise that probabilities are averaged over; the paper takes 10.
    pub draws: usize,
    /// Layers of MLP or attention outputs that are put back together; the paper takes 10 of 48.
    pub window: usize,
    /// Layers to suggest.
    pub layers: usize,
    /// Of the noise.
    pub seed: u64,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Located {
    /// How it was traced.
    pub tracing: Tracing,
    /// Standard deviation of the noise: three times that of the subjects' embeddings.
    pub noise: f64,
    /// Facts that were asked, and those of them that the model knows, which were traced.
    pub asked: usize,
    /// See above.
    pub traced: usize,
    /// Mean probability of the answers as they are, and with noise.
    pub clean: f64,
    /// See above.
    pub noisy: f64,
    /// What each place brings back on average, by layer.
    pub maps: Vec<(Restored, Vec<Effects>)>,
    /// Layers next to each other whose MLPs bring back most at the subject's last token.
    pub suggested: Vec<usize>,
}

/// One fact's trace.
pub(crate) struct Trace {
    clean: f64,
    noisy: f64,
    maps: Vec<Vec<Effects>>,
}

impl Editor {
    /// Traces those of the facts that the model knows, on the base weights.
    pub fn locate(
        &self,
        model: &Transformer,
        tokenizer: &Tokenizer,
        facts: &[Fact],
        tracing: Tracing,
        pace: &mut Pace<'_>,
    ) -> Result<Located> {
        let depth = model.config().num_layers;
        if facts.is_empty() || tracing.draws == 0 || tracing.window == 0 {
            return Err(Error::BadSetting {
                setting: "tracing".to_owned(),
                problem: "needs a fact, a draw of noise and a window of one layer, at least"
                    .to_owned(),
            });
        }
        let noise = noise_for(model, tokenizer, facts)?;
        let mut traces = Vec::new();
        for (place, fact) in facts.iter().enumerate() {
            let fact = fact.clone().checked()?;
            let Some(mut scene) = Scene::of(model, tokenizer, &fact)? else {
                continue;
            };
            scene.disturb(noise, tracing, place as u64)?;
            let mut maps = Vec::new();
            for (number, restored) in Restored::ALL.into_iter().enumerate() {
                let mut map = Vec::with_capacity(depth);
                for layer in 0..depth {
                    pace(Progress {
                        phase: Phase::Trace,
                        done: ((place * Restored::ALL.len() + number) * depth + layer) as u64,
                        total: (facts.len() * Restored::ALL.len() * depth) as u64,
                    })?;
                    map.push(scene.effects(restored, window(restored, layer, depth, tracing))?);
                }
                maps.push(map);
            }
            traces.push(Trace {
                clean: scene.clean,
                noisy: scene.noisy,
                maps,
            });
        }
        located(&traces, facts.len(), noise, tracing)
    }
}

/// The layers that are put back together around one.
fn window(
    restored: Restored,
    layer: usize,
    depth: usize,
    tracing: Tracing,
) -> std::ops::Range<usize> {
    match restored {
        Restored::Hidden => layer..layer + 1,
        Restored::Mlp | Restored::Attention => {
            let from = layer.saturating_sub(tracing.window / 2);
            from..(layer + tracing.window.div_ceil(2)).clamp(layer + 1, depth)
        }
    }
}

fn located(traces: &[Trace], asked: usize, noise: f64, tracing: Tracing) -> Result<Located> {
    if traces.is_empty() {
        return Err(Error::NothingKnown(asked));
    }
    let mean = |of: fn(&Trace) -> f64| traces.iter().map(of).sum::<f64>() / traces.len() as f64;
    let maps: Vec<(Restored, Vec<Effects>)> = Restored::ALL
        .into_iter()
        .enumerate()
        .map(|(place, restored)| {
            let of_kind = traces.iter().filter_map(|trace| trace.maps.get(place));
            (restored, average(&of_kind.collect::<Vec<_>>()))
        })
        .collect();
    let mlp = maps.iter().find(|(restored, _)| *restored == Restored::Mlp);
    let suggested = mlp.map_or_else(Vec::new, |(_, map)| suggest(map, tracing.layers));
    Ok(Located {
        tracing,
        noise,
        asked,
        traced: traces.len(),
        clean: mean(|trace| trace.clean),
        noisy: mean(|trace| trace.noisy),
        maps,
        suggested,
    })
}

/// The mean over traces, of those that have such a token.
fn average(maps: &[&Vec<Effects>]) -> Vec<Effects> {
    let depth = maps.iter().map(|map| map.len()).max().unwrap_or(0);
    let of_layer = |layer: usize| {
        std::array::from_fn(|role| {
            let effects = maps.iter().filter_map(|map| *map.get(layer)?.get(role)?);
            let found: Vec<f64> = effects.collect();
            (!found.is_empty()).then(|| found.iter().sum::<f64>() / found.len() as f64)
        })
    };
    (0..depth).map(of_layer).collect()
}

/// The `count` layers next to each other with the largest effects at the subject's last token.
fn suggest(map: &[Effects], count: usize) -> Vec<usize> {
    let count = count.clamp(1, map.len().max(1));
    let effect = |layer: &Effects| layer.get(SUBJECT_LAST).copied().flatten().unwrap_or(0.0);
    let windows = map.windows(count);
    let best = windows
        .map(|window| window.iter().map(effect).sum::<f64>())
        .enumerate()
        .max_by(|one, other| one.1.total_cmp(&other.1));
    best.map_or_else(Vec::new, |(from, _)| (from..from + count).collect())
}

#[cfg(test)]
mod tests {
    use super::{Restored, Tracing, average, suggest, window};

    #[test]
    fn the_layers_with_the_largest_effect_at_the_subject_are_suggested() {
        let effect = |at: f64| [Some(9.0), None, Some(at), Some(9.0), None];
        let effects = [0.1, 0.2, 0.9, 0.8, 0.1].map(effect);
        assert_eq!(suggest(&effects, 2), [2, 3]);
        assert_eq!(suggest(&effects, 9).len(), 5);
    }

    #[test]
    fn a_role_that_a_prompt_lacks_does_not_count_against_it() {
        let one = vec![[Some(1.0), None, Some(1.0), None, None]];
        let two = vec![[None, None, Some(3.0), None, Some(5.0)]];
        assert_eq!(
            average(&[&one, &two]),
            [[Some(1.0), None, Some(2.0), None, Some(5.0)]]
        );
    }

    #[test]
    fn windows_stay_inside_the_model() {
        let tracing = Tracing {
            draws: 1,
            window: 10,
            layers: 5,
            seed: 1,
        };
        assert_eq!(window(Restored::Mlp, 0, 30, tracing), 0..5);
        assert_eq!(window(Restored::Mlp, 15, 30, tracing), 10..20);
        assert_eq!(window(Restored::Attention, 29, 30, tracing), 24..30);
        assert_eq!(window(Restored::Hidden, 29, 30, tracing), 29..30);
    }
}
