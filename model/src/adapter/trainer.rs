//! Training: gradients of lessons gathered into updates of an adapter, and nothing else.
//!
//! Owns parameters and moments (f32, whatever the model computes in), the learning rate's fall to
//! 0, and the best state so far. Which lessons, in which order, and when to measure is its
//! caller's. The state at an update's border is all there is: kept and taken up again, training
//! goes on as if it had never stopped (see `adapter::state`).

use tch::{Kind, Tensor};

use super::adam::Moments;
use super::student::Student;
use super::{Adapter, Parts, Taught};
use crate::error::{Error, Result};
use crate::tensor::NoGrad;
use crate::transformer::Transformer;

/// Largest norm of one update's gradient; a longer one is cut to it.
const GRADIENT_NORM: f64 = 1.0;

/// How updates are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Updates in all.
    pub updates: u64,
    /// Learning rate of the first update; falls linearly to 0.
    pub learning_rate: f64,
}

/// An adapter that learns.
#[derive(Debug)]
pub struct Trainer {
    pub(crate) schedule: Schedule,
    /// What names, base and record come from.
    pub(crate) origin: Adapter,
    /// What learns, f32, on the model's device, with gradients.
    pub(crate) parameters: Parts,
    /// Of each of its tensors.
    pub(crate) moments: Vec<Moments>,
    /// Updates made.
    pub(crate) updates: u64,
    /// The parameters at the best validation, and its mean KL.
    pub(crate) best: Option<(Parts, f64)>,
    /// Lessons whose gradients wait for the next update.
    gathered: u64,
}

impl Trainer {
    /// Begins with `adapter` as it is.
    ///
    /// # Errors
    /// An adapter of another model, a schedule without updates, or libtorch's.
    pub fn new(adapter: Adapter, schedule: Schedule, model: &Transformer) -> Result<Self> {
        adapter.check_fits(model)?;
        let rate = schedule.learning_rate;
        if schedule.updates == 0 || !rate.is_finite() || rate <= 0.0 {
            return Err(Error::Invalid(
                "training needs updates and a learning rate above 0".to_owned(),
            ));
        }
        let parameters = adapter.parts().map(|_, part| -> Result<_> {
            let own = part.copy().f_to_device(model.device())?;
            Ok(own.f_set_requires_grad(true)?)
        })?;
        let named = parameters.named();
        let moments = named.iter().map(|(_, part)| Moments::zeros(part));
        let moments = moments.collect::<Result<_>>()?;
        Ok(Self {
            schedule,
            origin: adapter,
            parameters,
            moments,
            updates: 0,
            best: None,
            gathered: 0,
        })
    }

    /// Adds a lesson's gradient to the next update's; gives its loss, mean KL in nats.
    ///
    /// # Errors
    /// A loss that is not finite, a context that is too long, or libtorch's.
    pub fn study(&mut self, student: Student<'_>, taught: &Taught) -> Result<f64> {
        let parameters = &self.parameters;
        let loss = tch::with_grad(|| -> Result<f64> {
            let loss = taught.loss(student, parameters)?;
            let value = loss.f_double_value(&[])?;
            if value.is_finite() {
                loss.f_backward()?;
            }
            Ok(value)
        })?;
        if !loss.is_finite() {
            return Err(Error::Invalid(
                "the training's loss is not a finite number; lower the learning rate".to_owned(),
            ));
        }
        self.gathered += 1;
        Ok(loss)
    }

    /// Lessons studied since the last update.
    #[must_use]
    pub fn gathered(&self) -> u64 {
        self.gathered
    }

    /// Updates made so far.
    #[must_use]
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Updates in all.
    #[must_use]
    pub fn schedule(&self) -> Schedule {
        self.schedule
    }

    /// Moves the parameters by the mean gradient of the lessons studied since the last update.
    ///
    /// # Errors
    /// Nothing was studied, a gradient that is not finite, or libtorch's.
    pub fn update(&mut self) -> Result<()> {
        let _guard = NoGrad::new();
        if self.gathered == 0 {
            return Err(Error::Invalid("there is nothing to learn from".to_owned()));
        }
        let gradients = self.gradients()?;
        let left = 1.0 - self.updates as f64 / self.schedule.updates as f64;
        let rate = self.schedule.learning_rate * left.max(0.0);
        self.updates += 1;
        let step = (self.updates, rate);
        let both = self.parameters.all_mut().into_iter().zip(&mut self.moments);
        for ((parameter, moments), gradient) in both.zip(&gradients) {
            moments.update(parameter, gradient, step)?;
            parameter.zero_grad();
        }
        self.gathered = 0;
        Ok(())
    }

    /// The mean gradients, cut to [`GRADIENT_NORM`] together.
    fn gradients(&self) -> Result<Vec<Tensor>> {
        let mean = |(_, parameter): &(&str, &Tensor)| -> Result<Tensor> {
            Ok(parameter.f_grad()?.f_div_scalar(self.gathered as f64)?)
        };
        let means = self.parameters.named();
        let means = means.iter().map(mean).collect::<Result<Vec<_>>>()?;
        let mut square = 0.0;
        for mean in &means {
            square += mean.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?;
        }
        let norm = square.sqrt();
        if !norm.is_finite() {
            return Err(Error::Invalid(
                "the training's gradient is not finite; lower the learning rate".to_owned(),
            ));
        }
        let scale = (GRADIENT_NORM / norm.max(f64::MIN_POSITIVE)).min(1.0);
        let cut = means.iter().map(|mean| Ok(mean.f_mul_scalar(scale)?));
        cut.collect()
    }

    /// The adapter as it is now.
    ///
    /// # Errors
    /// libtorch's.
    pub fn adapter(&self) -> Result<Adapter> {
        self.with_parts(&self.parameters)
    }

    /// Notes what the adapter measured in validation; true if it is the best so far, which is kept.
    ///
    /// # Errors
    /// libtorch's.
    pub fn validated(&mut self, mean_kl: f64) -> Result<bool> {
        let better = self.best.as_ref().is_none_or(|(_, best)| mean_kl < *best);
        if better {
            let copy = self
                .parameters
                .map(|_, part| Ok::<_, Error>(part.f_detach()?.copy()))?;
            self.best = Some((copy, mean_kl));
        }
        Ok(better)
    }

    /// The best adapter in validation and its mean KL; the present one before any validation.
    ///
    /// # Errors
    /// libtorch's.
    pub fn best(&self) -> Result<(Adapter, Option<f64>)> {
        match &self.best {
            Some((parts, kl)) => Ok((self.with_parts(parts)?, Some(*kl))),
            None => Ok((self.adapter()?, None)),
        }
    }

    fn with_parts(&self, parts: &Parts) -> Result<Adapter> {
        let origin = &self.origin;
        Adapter::of(
            parts,
            origin.base,
            origin.name.clone(),
            origin.training.clone(),
        )
    }
}
