//! Adam (Kingma & Ba 2015) over one f32 matrix, whose state can be kept and taken up again.
//!
//! AdamW without weight decay is this. Owns the moments; the learning rate is its caller's.

use tch::{Kind, Tensor};

use crate::error::Result;
use crate::tensor::NoGrad;

const BETA_1: f64 = 0.9;
const BETA_2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// First and second moments of one parameter's gradients, in its shape, f32.
#[derive(Debug)]
pub(crate) struct Moments {
    pub(crate) first: Tensor,
    pub(crate) second: Tensor,
}

impl Moments {
    pub(crate) fn zeros(parameter: &Tensor) -> Result<Self> {
        let zeros = || Tensor::f_zeros(parameter.size(), (Kind::Float, parameter.device()));
        Ok(Self {
            first: zeros()?,
            second: zeros()?,
        })
    }

    /// Update number `step`, from 1: moves `parameter` against `gradient` in place.
    pub(crate) fn update(
        &mut self,
        parameter: &mut Tensor,
        gradient: &Tensor,
        (step, rate): (u64, f64),
    ) -> Result<()> {
        let _guard = NoGrad::new();
        let old = self.first.f_mul_scalar(BETA_1)?;
        self.first = old.f_add(&gradient.f_mul_scalar(1.0 - BETA_1)?)?;
        let old = self.second.f_mul_scalar(BETA_2)?;
        self.second = old.f_add(&gradient.f_square()?.f_mul_scalar(1.0 - BETA_2)?)?;
        let step = step as f64;
        let first = self.first.f_div_scalar(1.0 - BETA_1.powf(step))?;
        let second = self.second.f_div_scalar(1.0 - BETA_2.powf(step))?;
        let change = first.f_div(&second.f_sqrt()?.f_add_scalar(EPSILON)?)?;
        let _same = parameter.f_sub_(&change.f_mul_scalar(rate)?)?;
        Ok(())
    }
}
