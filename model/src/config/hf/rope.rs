//! The rotary settings of a `config.json`, in their old spelling and the new.

use super::{Defaults, Fields};
use crate::config::{Architecture, RopeScaling, config};
use crate::error::Result;

/// The rotary settings, which newer files hold in `rope_parameters` and older
/// ones beside each other.
pub(super) struct Rope {
    pub(super) theta: f64,
    pub(super) local_theta: Option<f64>,
    pub(super) scaling: RopeScaling,
}

impl Rope {
    pub(super) fn read(
        architecture: Architecture,
        fields: &Fields<'_>,
        defaults: &Defaults,
    ) -> Result<Self> {
        let context = fields
            .size("max_position_embeddings")?
            .unwrap_or(defaults.context);
        let parameters = fields.object("rope_parameters")?;
        let by_layer_type = match &parameters {
            Some(parameters) => parameters.object("full_attention")?.is_some(),
            None => false,
        };
        let (global, local) = match &parameters {
            Some(parameters) if by_layer_type => (
                parameters.object("full_attention")?,
                parameters.object("sliding_attention")?,
            ),
            Some(_) => (fields.object("rope_parameters")?, None),
            None => (fields.object("rope_scaling")?, None),
        };
        let theta_of = |section: &Option<Fields<'_>>| match section {
            Some(section) => section.number("rope_theta"),
            None => Ok(None),
        };
        let theta = match theta_of(&global)? {
            Some(theta) => theta,
            None => fields.number("rope_theta")?.unwrap_or(defaults.rope_theta),
        };
        let local_theta = if architecture == Architecture::Gemma3 {
            let named = match theta_of(&local)? {
                Some(theta) => Some(theta),
                None => fields.number("rope_local_base_freq")?,
            };
            Some(named.unwrap_or(10_000.0))
        } else {
            None
        };
        let scaling = match &global {
            Some(section) => scaling(section, context)?,
            None => RopeScaling::None,
        };
        Ok(Self {
            theta,
            local_theta,
            scaling,
        })
    }
}

fn scaling(section: &Fields<'_>, context: usize) -> Result<RopeScaling> {
    let kind = section
        .text("rope_type")?
        .or(section.text("type")?)
        .unwrap_or("default");
    let need = |name: &str| {
        section
            .number(name)?
            .ok_or_else(|| config(format!("rope scaling `{kind}` lacks `{name}`")))
    };
    let original_context = || -> Result<usize> {
        Ok(section
            .size("original_max_position_embeddings")?
            .unwrap_or(context))
    };
    match kind {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear {
            factor: need("factor")?,
        }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: need("factor")?,
            low_freq_factor: need("low_freq_factor")?,
            high_freq_factor: need("high_freq_factor")?,
            original_context: original_context()?,
        }),
        "yarn" => {
            for name in ["mscale", "mscale_all_dim"] {
                if section.get(name).is_some() {
                    return Err(config(format!(
                        "rope scaling `yarn` with `{name}` is not supported"
                    )));
                }
            }
            Ok(RopeScaling::Yarn {
                factor: need("factor")?,
                original_context: original_context()?,
                beta_fast: section.number("beta_fast")?.unwrap_or(32.0),
                beta_slow: section.number("beta_slow")?.unwrap_or(1.0),
                attention_factor: section.number("attention_factor")?,
            })
        }
        other => Err(config(format!(
            "rope scaling `{other}` is not supported; supported are linear, llama3 and yarn"
        ))),
    }
}
