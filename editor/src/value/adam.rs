//! Adam (Kingma and Ba 2015) over the δ of several facts at once: one row each, with its own step size and bound.

use addenda_model::tensor::NoGrad;
use tch::{Kind, Tensor};

type Torch<T> = Result<T, tch::TchError>;

/// δ and its moments, f32 `[n, d]` each.
pub(super) struct Adam {
    pub(super) value: Tensor,
    first: Tensor,
    second: Tensor,
    steps: i32,
    /// ‖h‖ of each fact, f32 `[n, 1]`.
    hidden: Tensor,
    /// Step size in units of rms(h).
    rate: f64,
}

impl Adam {
    const DECAY: (f64, f64) = (0.9, 0.999);

    /// δ = 0 for the hidden states `[n, d]`.
    pub(super) fn new(states: &Tensor, rate: f64) -> Torch<Self> {
        let dim = [1_i64];
        Ok(Self {
            value: states.f_zeros_like()?,
            first: states.f_zeros_like()?,
            second: states.f_zeros_like()?,
            steps: 0,
            hidden: states.f_norm_scalaropt_dim(2.0, dim.as_slice(), true)?,
            rate: rate / (states.size2()?.1 as f64).sqrt(),
        })
    }

    fn sizes(&self) -> Torch<Tensor> {
        let dim = [1_i64];
        self.value.f_norm_scalaropt_dim(2.0, dim.as_slice(), true)
    }

    /// One step; `decay` is the weight of ‖δ‖/‖h‖², whose gradient at 0 is taken to be none.
    pub(super) fn descend(&mut self, gradient: &Tensor, decay: f64) -> Torch<()> {
        let _no_grad = NoGrad::new();
        let pull = (self.hidden.f_square()?
            * self.sizes()?.f_clamp_min(f64::from(f32::MIN_POSITIVE))?)
        .f_reciprocal()?
            * decay;
        let gradient = gradient.f_to_kind(Kind::Float)? + &self.value * pull;
        let (one, two) = Self::DECAY;
        self.steps += 1;
        self.first = &self.first * one + &gradient * (1.0 - one);
        self.second = &self.second * two + gradient.f_square()? * (1.0 - two);
        let first = &self.first / (1.0 - one.powi(self.steps));
        let second = &self.second / (1.0 - two.powi(self.steps));
        self.value = &self.value - first / (second.f_sqrt()? + 1e-8) * (&self.hidden * self.rate);
        Ok(())
    }

    /// Shortens each δ to `most` · ‖h‖.
    pub(super) fn clamp(&mut self, most: f64) -> Torch<()> {
        let sizes = self.sizes()?.f_clamp_min(f64::from(f32::MIN_POSITIVE))?;
        let scale = (&self.hidden * most / sizes).f_clamp_max(1.0)?;
        self.value = &self.value * scale;
        Ok(())
    }

    /// Goes on with these rows alone, i64 `[k]`.
    pub(super) fn keep(&mut self, rows: &Tensor) -> Torch<()> {
        for part in [
            &mut self.value,
            &mut self.first,
            &mut self.second,
            &mut self.hidden,
        ] {
            *part = part.f_index_select(0, rows)?;
        }
        Ok(())
    }
}
