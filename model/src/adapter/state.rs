//! A training's state as bytes, at the border of an update.
//!
//! Owns the format. What is in it: soft tokens, both moments, the best state, and the count of
//! updates. What is not: lessons and their order, which their caller makes again.

use std::collections::HashMap;

use tch::Tensor;

use super::adam::Moments;
use super::{Adapter, Schedule, Trainer, file};
use crate::error::{Error, Result};
use crate::transformer::Transformer;

const FORMAT: &str = "addenda adapter training v1";
/// Header and trailer, and of each: itself, its moments, its best.
const NAMES: [[&str; 4]; 2] = [
    ["header", "header.first", "header.second", "header.best"],
    ["trailer", "trailer.first", "trailer.second", "trailer.best"],
];

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
        let mut tensors: Vec<(&str, Tensor)> = Vec::with_capacity(8);
        for (side, names) in NAMES.iter().enumerate() {
            let (Some(parameter), Some(moments)) =
                (self.parameters.get(side), self.moments.get(side))
            else {
                continue;
            };
            let [own, first, second, best] = *names;
            tensors.push((own, parameter.f_detach()?));
            tensors.push((first, moments.first.shallow_clone()));
            tensors.push((second, moments.second.shallow_clone()));
            if let Some(kept) = self.best.as_ref().and_then(|(kept, _)| kept.get(side)) {
                tensors.push((best, kept.shallow_clone()));
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
        let tensors: Vec<(&str, &Tensor)> = tensors.iter().map(|(n, t)| (*n, t)).collect();
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
        let shape = |side: usize| trainer.parameters.get(side).map(Tensor::size);
        let shapes = [shape(0), shape(1)];
        let take = |name: &str, side: usize| -> Result<Tensor> {
            let tensor = file::soft(&tensors, name)?;
            if Some(tensor.size()) != shapes.get(side).cloned().flatten() {
                return Err(Error::Invalid(format!(
                    "{name} of this training has another shape"
                )));
            }
            Ok(tensor.f_to_device(model.device())?)
        };
        let (mut parameters, mut moments, mut best) = (Vec::new(), Vec::new(), Vec::new());
        let kl = text("best").parse::<f64>().ok();
        for (side, [own, first, second, kept]) in NAMES.iter().enumerate() {
            parameters.push(take(own, side)?.f_set_requires_grad(true)?);
            moments.push(Moments {
                first: take(first, side)?,
                second: take(second, side)?,
            });
            if kl.is_some() {
                best.push(take(kept, side)?);
            }
        }
        let updates = text("updates").parse::<u64>();
        let pair = <[Tensor; 2]>::try_from(parameters).ok();
        let (Ok(updates), Some(parameters), Ok(moments)) =
            (updates, pair, <[Moments; 2]>::try_from(moments))
        else {
            return Err(Error::Invalid("this training is incomplete".to_owned()));
        };
        trainer.parameters = parameters;
        trainer.moments = moments;
        trainer.updates = updates;
        trainer.best = <[Tensor; 2]>::try_from(best).ok().zip(kl);
        Ok((trainer, text("notes").to_owned()))
    }
}
