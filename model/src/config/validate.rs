//! Whether a configuration's numbers are in range and fit each other.

use super::{ModelConfig, RopeScaling, config};
use crate::error::Result;

/// Bounds far above every published model: a value beyond them is a damaged
/// file, and would otherwise become an allocation that kills the process.
pub(super) const MAX_LAYERS: usize = 1024;
const MAX_WIDTH: usize = 1 << 20;
const MAX_VOCAB: usize = 1 << 24;
const MAX_CONTEXT: usize = 1 << 28;

impl ModelConfig {
    /// Checks that the numbers are in range and fit each other.
    ///
    /// # Errors
    /// [`crate::Error::Config`] naming the first field that does not fit.
    pub fn validate(&self) -> Result<()> {
        self.validate_sizes()?;
        self.validate_layers()?;
        self.validate_numbers()
    }

    fn validate_sizes(&self) -> Result<()> {
        let bounded = [
            ("vocab_size", self.vocab_size, MAX_VOCAB),
            ("hidden_size", self.hidden_size, MAX_WIDTH),
            ("intermediate_size", self.intermediate_size, MAX_WIDTH),
            ("num_layers", self.num_layers, MAX_LAYERS),
            ("num_heads", self.num_heads, MAX_WIDTH),
            ("num_kv_heads", self.num_kv_heads, MAX_WIDTH),
            ("head_dim", self.head_dim, MAX_WIDTH),
            ("context", self.context, MAX_CONTEXT),
        ];
        for (name, value, most) in bounded {
            if value == 0 || value > most {
                return Err(config(format!(
                    "{name} is {value}; it must lie in 1..={most}"
                )));
            }
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            return Err(config(format!(
                "{} query heads cannot share {} key-value heads evenly",
                self.num_heads, self.num_kv_heads
            )));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(config(format!(
                "head_dim is {}; rotation needs it even",
                self.head_dim
            )));
        }
        Ok(())
    }

    fn validate_layers(&self) -> Result<()> {
        if self.sliding_layers.len() != self.num_layers {
            return Err(config(format!(
                "{} layer types are given for {} layers",
                self.sliding_layers.len(),
                self.num_layers
            )));
        }
        match self.sliding_window {
            Some(0) => Err(config(
                "sliding_window is 0; leave it out for none".to_owned(),
            )),
            None if self.sliding_layers.contains(&true) => Err(config(
                "some layers slide, but no sliding_window is given".to_owned(),
            )),
            _ => Ok(()),
        }
    }

    fn validate_numbers(&self) -> Result<()> {
        let positive = [
            ("norm_eps", self.norm_eps),
            ("rope_theta", self.rope_theta),
            ("rope_local_theta", self.rope_local_theta.unwrap_or(1.0)),
            ("attention_scale", self.attention_scale),
            ("embedding_scale", self.embedding_scale),
        ];
        for (name, value) in positive {
            if !value.is_finite() || value <= 0.0 {
                return Err(config(format!("{name} is {value}; it must be positive")));
            }
        }
        self.validate_rope_scaling()?;
        for id in self.bos.iter().chain(&self.eos) {
            if usize::try_from(*id).map_or(true, |id| id >= self.vocab_size) {
                return Err(config(format!(
                    "the special token {id} lies outside the vocabulary of {}",
                    self.vocab_size
                )));
            }
        }
        Ok(())
    }

    fn validate_rope_scaling(&self) -> Result<()> {
        let positive = |name: &str, values: &[f64]| {
            if values.iter().all(|value| value.is_finite() && *value > 0.0) {
                Ok(())
            } else {
                Err(config(format!(
                    "rope scaling: {name} must be positive, found {values:?}"
                )))
            }
        };
        match &self.rope_scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => positive("factor", &[*factor]),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => {
                positive(
                    "each factor",
                    &[*factor, *low_freq_factor, *high_freq_factor],
                )?;
                if *original_context == 0 || low_freq_factor >= high_freq_factor {
                    return Err(config(
                        "rope scaling llama3 needs an original context, and low_freq_factor \
                         below high_freq_factor"
                            .to_owned(),
                    ));
                }
                Ok(())
            }
            RopeScaling::Yarn {
                factor,
                original_context,
                beta_fast,
                beta_slow,
                attention_factor,
            } => {
                positive("each factor", &[*factor, *beta_fast, *beta_slow])?;
                positive("attention_factor", &[attention_factor.unwrap_or(1.0)])?;
                if *original_context == 0 {
                    return Err(config(
                        "rope scaling yarn needs an original context".to_owned(),
                    ));
                }
                Ok(())
            }
            RopeScaling::Factors(factors) => {
                positive("each factor", factors)?;
                if factors.len() != self.head_dim / 2 {
                    return Err(config(format!(
                        "{} rope factors are given for {} frequencies",
                        factors.len(),
                        self.head_dim / 2
                    )));
                }
                Ok(())
            }
        }
    }
}
