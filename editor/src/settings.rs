//! The hyper-parameters of an edit, per model family, from `settings.toml`.
//!
//! Owns no state. Invariant: [`Settings::for_model`] gives settings that [`Settings::check`] accepts.

use addenda_model::ModelConfig;
use serde::{Deserialize, Serialize};

use crate::digest::Canonical;
use crate::error::{Error, Result};

const SHIPPED: &str = include_str!("settings.toml");

/// So many facts are solved with λ itself; `lambda_growth` says what more of them make of it.
const CROWD: usize = 100;

/// The most that `lambda_growth` may be, in thousandths.
pub(crate) const MAX_LAMBDA_GROWTH: u32 = 2000;

/// The closed form that writes facts into weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Method {
    /// Meng et al. 2023: several layers, many facts at once; the second moment weighs against what is wanted.
    Memit,
    /// Meng et al. 2022: one layer, and each fact's value reached exactly.
    Rome,
    /// Fang et al. 2025: several layers, changes only where ordinary text hardly looks.
    AlphaEdit,
}

impl std::str::FromStr for Method {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let methods = [Self::Memit, Self::Rome, Self::AlphaEdit];
        let found = methods
            .into_iter()
            .find(|method| method.to_string() == name);
        found.ok_or_else(|| Error::BadSetting {
            setting: "method".to_owned(),
            problem: format!("is {name:?}; use \"memit\", \"rome\" or \"alphaedit\""),
        })
    }
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Memit => "memit",
            Self::Rome => "rome",
            Self::AlphaEdit => "alphaedit",
        })
    }
}

/// Where the wanted state is sought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// The residual stream as it leaves the last edited layer.
    Residual,
    /// The down-projection's output, before the norm that follows it in Gemma; one layer only.
    MlpOut,
}

/// All that an edit can be tuned by.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The closed form that `auto` takes on this model.
    pub solve: SolveSettings,
    /// What the other closed forms take instead.
    pub other: OtherMethods,
    /// The search for the wanted state.
    pub value: ValueSettings,
    /// The second moment of the keys.
    pub moment: MomentSettings,
    /// What an edit must reach to be applied.
    pub bars: Bars,
    /// The family in `settings.toml` that the model belongs to; none if its layers come from its depth.
    pub family: Option<String>,
}

/// What the closed form depends on, besides keys and wanted states. Facts with equal ones are solved jointly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SolveSettings {
    /// The closed form.
    pub method: Method,
    /// Edited layers from 0, rising.
    pub layers: Vec<usize>,
    /// Where the wanted state is sought.
    pub place: Place,
    /// MEMIT: λ of `λC + K Kᵀ`, with C per token. AlphaEdit: the ridge, in units of E‖k‖². ROME: of no effect.
    #[serde(with = "exact")]
    pub lambda: f64,
    /// MEMIT: by which power of their number λ grows where more than 100 facts are solved jointly, in thousandths.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lambda_growth: u32,
    /// AlphaEdit: the share of C's trace, in thousandths, that the free directions may hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_energy: Option<u32>,
    /// Sampled contexts whose mean key is half of a fact's key.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub key_contexts: usize,
}

fn is_zero<N: PartialEq + From<u8>>(number: &N) -> bool {
    *number == N::from(0)
}

/// Where the methods differ; `settings.toml` says what each is.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "settings.toml explains each beside its value")]
pub struct OtherMethods {
    pub rome_layer: Option<usize>,
    pub lambda: f64,
    #[serde(default)]
    pub lambda_growth: u32,
    pub alphaedit_ridge: f64,
    pub alphaedit_free_energy: u32,
    #[serde(default)]
    pub key_contexts: usize,
}

/// The search for the wanted state; `settings.toml` says what each is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "settings.toml explains each beside its value")]
pub struct ValueSettings {
    pub steps: usize,
    pub learning_rate: f64,
    pub clamp: f64,
    pub decay: f64,
    pub kl: f64,
    pub margin: f64,
    pub contexts: usize,
    #[serde(default)]
    pub contexts_a_step: usize,
    pub context_tokens: usize,
    pub seed: u64,
}

/// How the second moment is measured; `settings.toml` says what each is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "settings.toml explains each beside its value")]
pub struct MomentSettings {
    pub tokens: usize,
    pub window: usize,
    pub batch: usize,
}

/// What an edit must reach to be applied; `settings.toml` says what each is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "settings.toml explains each beside its value")]
pub struct Bars {
    pub target_probability: f64,
    pub target_top1: bool,
    pub paraphrase: f64,
    pub locality: f64,
    pub perplexity: f64,
    pub perplexity_total: f64,
    #[serde(default)]
    pub chat_probability: f64,
    #[serde(default = "yes")]
    pub make_probes: bool,
    #[serde(default)]
    pub made_probes: bool,
}

fn yes() -> bool {
    true
}

impl Bars {
    /// The bars of a batch: each of its facts may raise the perplexity by as much as one alone.
    pub(crate) fn of_batch(&self, facts: usize) -> Self {
        Self {
            perplexity: self.perplexity * facts as f64,
            ..self.clone()
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    default: Default,
    #[serde(default)]
    family: Vec<Family>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Default {
    method: Method,
    methods: OtherMethods,
    value: ValueSettings,
    moment: MomentSettings,
    bars: Bars,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Family {
    name: String,
    architecture: String,
    hidden_size: usize,
    num_layers: usize,
    layers: Vec<usize>,
    method: Option<Method>,
    rome_layer: Option<usize>,
    lambda: Option<f64>,
    lambda_growth: Option<u32>,
    moment_tokens: Option<usize>,
}

impl Settings {
    /// The shipped settings for this model.
    pub fn for_model(config: &ModelConfig) -> Result<Self> {
        Self::from_toml(SHIPPED, config)
    }

    /// Settings from a file of the form of `settings.toml`.
    pub fn from_toml(text: &str, config: &ModelConfig) -> Result<Self> {
        let file: File = toml::from_str(text).map_err(|error| Error::BadSetting {
            setting: "file".to_owned(),
            problem: format!("is unreadable: {error}"),
        })?;
        let architecture = config.architecture.to_string();
        let family = file.family.into_iter().find(|family| {
            family.architecture == architecture
                && family.hidden_size == config.hidden_size
                && family.num_layers == config.num_layers
        });
        let mut other = file.default.methods;
        let mut method = file.default.method;
        let mut moment = file.default.moment;
        let (name, layers) = match family {
            Some(family) => {
                other.rome_layer = family.rome_layer.or(other.rome_layer);
                other.lambda = family.lambda.unwrap_or(other.lambda);
                other.lambda_growth = family.lambda_growth.unwrap_or(other.lambda_growth);
                method = family.method.unwrap_or(method);
                moment.tokens = family.moment_tokens.unwrap_or(moment.tokens);
                (Some(family.name), family.layers)
            }
            None => (
                None,
                layers_from_depth(config.num_layers, config.post_norms),
            ),
        };
        let several = SolveSettings {
            method: Method::Memit,
            layers,
            place: if config.post_norms {
                Place::MlpOut
            } else {
                Place::Residual
            },
            lambda: other.lambda,
            lambda_growth: other.lambda_growth,
            free_energy: None,
            key_contexts: other.key_contexts,
        };
        let mut settings = Self {
            solve: several,
            other,
            value: file.default.value,
            moment,
            bars: file.default.bars,
            family: name,
        };
        settings.solve = settings.solve_by(Some(method));
        settings.check(config)?;
        Ok(settings)
    }

    /// The closed form's settings for a method; those of `auto` where none is named.
    #[must_use]
    pub fn solve_by(&self, method: Option<Method>) -> SolveSettings {
        let mut solve = self.solve.clone();
        let Some(method) = method.filter(|method| *method != solve.method) else {
            return solve;
        };
        solve.method = method;
        (solve.lambda, solve.lambda_growth, solve.free_energy) = match method {
            Method::Memit => (self.other.lambda, self.other.lambda_growth, None),
            Method::Rome => (self.other.lambda, 0, None),
            Method::AlphaEdit => (
                self.other.alphaedit_ridge,
                0,
                Some(self.other.alphaedit_free_energy),
            ),
        };
        if method == Method::Rome {
            solve.layers = vec![self.other.rome_layer.unwrap_or(solve.last_layer())];
        }
        solve
    }

    /// Refuses what the arithmetic can't do on this model.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        let bad = |setting: &str, problem: String| {
            Err(Error::BadSetting {
                setting: setting.to_owned(),
                problem,
            })
        };
        let layers = &self.solve.layers;
        if layers.is_empty() || !layers.is_sorted_by(|a, b| a < b) {
            return bad(
                "layers",
                format!("are {layers:?}; name at least one, rising"),
            );
        }
        if let Some(layer) = layers.iter().find(|layer| **layer >= config.num_layers) {
            return bad(
                "layers",
                format!(
                    "name layer {layer}, and the model's last is {}",
                    config.num_layers - 1
                ),
            );
        }
        if config.post_norms
            && (layers.len() > 1 || layers == &[0] || self.solve.place != Place::MlpOut)
        {
            return bad(
                "layers",
                format!(
                    "are {layers:?}; this model has a norm behind its MLP, where what several layers add is no sum: name one layer, not 0"
                ),
            );
        }
        if self.solve.place == Place::MlpOut && layers.len() > 1 {
            return bad(
                "layers",
                "are several; the down-projection's output can be sought for one layer only"
                    .to_owned(),
            );
        }
        if self.solve.method == Method::Rome && layers.len() != 1 {
            return bad("layers", format!("are {layers:?}; ROME edits one layer"));
        }
        if self.solve.lambda_growth > MAX_LAMBDA_GROWTH {
            let problem = format!(
                "lets λ outgrow any number of facts; give thousandths, {MAX_LAMBDA_GROWTH} at most"
            );
            return bad("lambda_growth", problem);
        }
        if self.other.alphaedit_free_energy >= 1000 {
            let problem = "leaves nothing to protect; give thousandths of the whole, below 1000";
            return bad("alphaedit_free_energy", problem.to_owned());
        }
        let positive = [
            ("alphaedit_ridge", self.other.alphaedit_ridge),
            ("lambda", self.solve.lambda),
            ("value.learning_rate", self.value.learning_rate),
            ("value.clamp", self.value.clamp),
        ];
        if let Some((name, value)) = positive
            .into_iter()
            .find(|(_, value)| !(value.is_finite() && *value > 0.0))
        {
            return bad(name, format!("is {value}; it must be above 0"));
        }
        if self.value.steps == 0
            || self.value.steps > 1000
            || self.value.contexts > 64
            || self.value.context_tokens > 64
            || self.solve.key_contexts > self.value.contexts
        {
            return bad(
                "value",
                "needs 1 to 1000 steps, at most 64 contexts of 64 tokens, and as many as have keys"
                    .to_owned(),
            );
        }
        if self.moment.window < 2
            || self.moment.batch == 0
            || self.moment.tokens < self.moment.window
        {
            return bad(
                "moment",
                "needs a window of 2 tokens or more, a batch of 1 or more, and tokens for a window"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

/// Floats as the text that Rust parses back to the same bits: JSON numbers may come back one bit off, and λ is part
/// of what the weights are named by.
mod exact {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde hands out references"
    )]
    pub(super) fn serialize<S: Serializer>(number: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(number)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

impl SolveSettings {
    /// The last edited layer, where several layers' edits add up.
    pub(crate) fn last_layer(&self) -> usize {
        self.layers.last().copied().unwrap_or_default()
    }

    /// How many times λ holds back where so many facts are solved jointly.
    pub(crate) fn lambda_of_crowd(&self, facts: i64) -> f64 {
        let crowds = facts as f64 / CROWD as f64;
        crowds.max(1.0).powf(f64::from(self.lambda_growth) / 1000.0)
    }

    /// Facts are solved jointly where this is equal.
    pub(crate) fn digest(&self) -> [u8; 32] {
        let mut canonical = Canonical::new("addenda 2026-01 solve settings");
        canonical
            .text(&self.method.to_string())
            .number(self.layers.len() as u64);
        for layer in &self.layers {
            canonical.number(*layer as u64);
        }
        canonical
            .number(u64::from(self.place == Place::MlpOut))
            .float(self.lambda);
        if self.lambda_growth > 0 {
            canonical
                .text("lambda growth")
                .number(u64::from(self.lambda_growth));
        }
        if let Some(share) = self.free_energy {
            canonical.number(u64::from(share));
        }
        if self.key_contexts > 0 {
            canonical
                .text("key contexts")
                .number(self.key_contexts as u64);
        }
        canonical.finish()
    }
}

/// Five layers that end at about 27 % of the depth, where facts about a subject are carried in the models that
/// were traced (4 to 8 of 28 to 32); one layer at a sixth where a norm follows the MLP.
fn layers_from_depth(depth: usize, post_norms: bool) -> Vec<usize> {
    let top = depth.saturating_sub(1);
    if post_norms {
        return vec![depth.div_ceil(6).clamp(1, top.max(1))];
    }
    let last = ((depth * 27 + 50) / 100).clamp(1.min(top), top);
    (last.saturating_sub(4).max(1).min(last)..=last).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

    use super::{File, SHIPPED, SolveSettings, layers_from_depth};

    #[test]
    fn a_crowd_of_facts_has_a_larger_lambda_where_the_recipe_says_so() {
        let recipe = |rest: &str| -> SolveSettings {
            let text = r#""method":"memit","layers":[1],"place":"residual","lambda":"15""#;
            serde_json::from_str(&format!("{{{text}{rest}}}")).unwrap()
        };
        // Recipes of ledgers of before say nothing about it, and are the same as ever.
        let (plain, growing) = (recipe(""), recipe(r#","lambda_growth":300"#));
        assert_eq!(serde_json::to_string(&plain).unwrap().find("growth"), None);
        assert_ne!(plain.digest(), growing.digest());
        assert_eq!(plain.lambda_of_crowd(5000).to_bits(), 1.0_f64.to_bits());
        for (facts, times) in [(1, 1.0), (100, 1.0), (1000, 1.9953), (10_000, 3.9811)] {
            assert!((growing.lambda_of_crowd(facts) - times).abs() < 1e-4);
        }
    }

    #[test]
    fn small_models_measure_their_second_moment_on_more_text_than_the_default() {
        let file: File = toml::from_str(SHIPPED).unwrap();
        let default = file.default.moment.tokens;
        for small in ["SmolLM2 135M", "Gemma 3 270M"] {
            let family = file.family.iter().find(|family| family.name == small);
            assert!(family.and_then(|family| family.moment_tokens).unwrap() > default);
        }
    }

    #[test]
    fn an_unknown_model_gets_early_layers_of_its_depth() {
        assert_eq!(layers_from_depth(30, false), [4, 5, 6, 7, 8]);
        assert_eq!(layers_from_depth(80, false), [18, 19, 20, 21, 22]);
        assert_eq!(layers_from_depth(2, false), [1]);
        assert_eq!(layers_from_depth(1, false), [0]);
        assert_eq!(layers_from_depth(18, true), [3]);
    }
}
