//! A training's state as bytes, at the border of an update.
//!
//! Owns the format. What is in it: each tensor that learns under its name, its moments, the best state, and the count of
//! updates. What is not: lessons and their order, which their caller makes again.

use std::collections::HashMap;

use tch::Tensor;

use super::adam::Moments;
use super::{Adapter, Schedule, Trainer, file};
use crate::error::{Error, Result};
use crate::transformer::Transformer;

const FORMAT: &str = "addenda adapter training v1";

impl Trainer {
    /// Its state, with `notes` of the caller's.
    ///
    /// # Errors
    /// Lessons wait for an update, or libtorch's.
    pub fn to_bytes(&self, notes: &str) -> Result<Vec<u8>> {
        if self.gathered() > 0 {
            return Err(Error::Invalid(
                "a training is kept at the border of an update only".to_owned(),
            ));
        }
        let mut tensors: Vec<(String, Tensor)> = Vec::with_capacity(8);
        let best = self.best.as_ref().map(|(best, _)| best.named());
        let parameters = self.parameters.named().into_iter().zip(&self.moments);
        for (place, ((name, parameter), moments)) in parameters.enumerate() {
            tensors.push((name.to_owned(), parameter.f_detach()?));
            tensors.push((format!("{name}.first"), moments.first.shallow_clone()));
            tensors.push((format!("{name}.second"), moments.second.shallow_clone()));
            if let Some((_, kept)) = best.as_ref().and_then(|best| best.get(place)) {
                tensors.push((format!("{name}.best"), kept.shallow_clone()));
            }
        }
        let mut metadata = HashMap::from([
            ("format".to_owned(), FORMAT.to_owned()),
            ("base".to_owned(), file::hex(&self.origin.base())),
            ("updates".to_owned(), self.updates.to_string()),
            ("notes".to_owned(), notes.to_owned()),
        ]);
        if let Some((_, kl)) = &self.best {
            metadata.insert("best".to_owned(), kl.to_string());
        }
        let tensors: Vec<(&str, &Tensor)> = tensors
            .iter()
            .map(|(name, tensor)| (&name[..], tensor))
            .collect();
        file::write(&tensors, metadata)
    }

    /// A training that goes on where [`Self::to_bytes`] was called, and the notes. `origin` gives
    /// base and name.
    ///
    /// # Errors
    /// Bytes that are damaged, or of another base model or shape.
    pub fn from_bytes(
        bytes: &[u8],
        origin: Adapter,
        schedule: Schedule,
        model: &Transformer,
    ) -> Result<(Self, String)> {
        let (tensors, metadata) = file::read(bytes)?;
        let text = |key: &str| metadata.get(key).map_or("", String::as_str);
        if text("format") != FORMAT || file::unhex(text("base")) != Some(origin.base()) {
            return Err(Error::Invalid(
                "this is no training of this base model".to_owned(),
            ));
        }
        let mut trainer = Self::new(origin, schedule, model)?;
        let take = |name: &str, like: &Tensor| -> Result<Tensor> {
            let tensor = file::trained(&tensors, name)?;
            if tensor.size() != like.size() {
                return Err(Error::Invalid(format!(
                    "{name} of this training has another shape"
                )));
            }
            Ok(tensor.f_to_device(model.device())?)
        };
        let named = trainer.parameters.named();
        let moments = named.iter().map(|(name, like)| {
            Ok(Moments {
                first: take(&format!("{name}.first"), like)?,
                second: take(&format!("{name}.second"), like)?,
            })
        });
        let moments = moments.collect::<Result<_>>()?;
        let whole = |end: &str| {
            let parts = &trainer.parameters;
            parts.map(|name, like| take(&format!("{name}{end}"), like))
        };
        let parameters = whole("")?.map(|_, part| part.f_set_requires_grad(true))?;
        let kl = text("best").parse::<f64>().ok();
        let best = kl.map(|kl| Ok::<_, Error>((whole(".best")?, kl)));
        let best = best.transpose()?;
        let updates = text("updates").parse::<u64>();
        let updates =
            updates.map_err(|_| Error::Invalid("this training is incomplete".to_owned()))?;
        trainer.parameters = parameters;
        trainer.moments = moments;
        trainer.updates = updates;
        trainer.best = best;
        Ok((trainer, text("notes").to_owned()))
    }
}
