//! The closed forms, in f64 on the CPU. Knows matrices only: no model, no facts.
//!
//! MEMIT (Meng et al. 2023): `ΔW = R Kᵀ (λC + K Kᵀ)⁻¹`, with K `[f, m]` the facts' keys, R `[d, m]` what is wanted of
//! each beyond what is there, C `[f, f]` the second moment per token. By Woodbury's identity with `Z' = (λC)⁻¹K`:
//! `ΔW = R Xᵀ`, `X = Z'(I + KᵀZ')⁻¹`, so one Cholesky factor of λC serves any number of facts.
//!
//! ROME (Meng et al. 2022) and AlphaEdit (Fang et al. 2025) are the same form with another spread of the keys and another
//! ridge; each is a function of the set of keys, in whatever order they came.

use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::moment::Moment;
use crate::nullspace::Projection;

/// The Cholesky factor of λC.
#[derive(Debug)]
pub(crate) struct Factor {
    /// f64 `[f, f]`, lower.
    lower: Tensor,
    /// Estimate from below of the condition number of λC: (largest/smallest pivot)².
    pub(crate) condition: f64,
    /// What had to be added to the diagonal, relative to its mean; 0 as a rule.
    pub(crate) ridge: f64,
}

/// Low-rank factors of ΔW, and how well the system behaved.
#[derive(Debug)]
pub(crate) struct Solution {
    /// R, f64 `[d, m]`.
    pub(crate) left: Tensor,
    /// X, f64 `[f, m]`.
    pub(crate) right: Tensor,
    /// ‖ΔW K − R‖ / ‖R‖: the share of what was wanted that λ kept back.
    pub(crate) unmet: f64,
    /// Estimate from below of the condition number of the facts' own system, m × m.
    pub(crate) condition: f64,
}

/// Ridges tried in turn, relative to the mean of C's diagonal: a text with fewer tokens than C has rows gives a C
/// without full rank.
const RIDGES: [f64; 5] = [0.0, 1e-10, 1e-8, 1e-6, 1e-4];

impl Factor {
    /// Factors λC of the layer.
    pub(crate) fn of(moment: &Moment, lambda: f64, layer: usize) -> Result<Self> {
        let action = "factoring the second moment";
        let scaled = (moment
            .c
            .f_to_kind(Kind::Double)
            .map_err(Error::torch(action))?)
            * lambda;
        let diagonal = scaled
            .f_diagonal(0, 0, 1)
            .and_then(|d| d.f_mean(Kind::Double))
            .map_err(Error::torch(action))?;
        let mean = f64::try_from(diagonal).map_err(Error::torch(action))?;
        if !mean.is_finite() {
            return Err(Error::NotFinite("the second moment"));
        }
        for ridge in RIDGES {
            if let Some((lower, condition)) =
                cholesky(&scaled, ridge * mean).map_err(Error::torch(action))?
            {
                return Ok(Self {
                    lower,
                    condition,
                    ridge,
                });
            }
        }
        let ridge = RIDGES.iter().copied().fold(0.0, f64::max);
        Err(Error::SingularMoment {
            layer,
            ridge,
            tokens: moment.tokens,
        })
    }

    /// Bytes that it holds in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.lower.numel() * 8
    }
}

/// The factor and its condition estimate; none if the matrix is not positive definite.
fn cholesky(
    matrix: &Tensor,
    shift: f64,
) -> std::result::Result<Option<(Tensor, f64)>, tch::TchError> {
    let shifted = if shift > 0.0 {
        let eye = Tensor::f_eye(matrix.size2()?.0, (Kind::Double, matrix.device()))?;
        matrix.f_add(&(eye * shift))?
    } else {
        matrix.shallow_clone()
    };
    let (lower, info) = shifted.f_linalg_cholesky_ex(false, false)?;
    if i64::try_from(info)? != 0 {
        return Ok(None);
    }
    let pivots = lower.f_diagonal(0, 0, 1)?;
    let (low, high) = (
        f64::try_from(pivots.f_min()?)?,
        f64::try_from(pivots.f_max()?)?,
    );
    let condition = (high / low).powi(2);
    // Past this, f64 has no digit left for the solution.
    Ok((condition.is_finite() && condition < 1e15).then_some((lower, condition)))
}

type Torch<T> = std::result::Result<T, tch::TchError>;
const ACTION: &str = "solving for the weights";

/// Added to a Gram matrix that has no ridge of its own, relative to the mean of its diagonal: facts that share one
/// key are then solved to their mean, and others are not moved by more than rounding.
const TIE: f64 = 1e-9;

/// MEMIT's update for all facts at once, with λ so many times that of the factor.
///
/// `keys` f64 `[f, m]`, `wanted` f64 `[d, m]`.
pub(crate) fn memit(
    factor: &Factor,
    times: f64,
    keys: &Tensor,
    wanted: &Tensor,
) -> Result<Solution> {
    let solve = || {
        let spread = keys.f_cholesky_solve(&factor.lower, false)? / times;
        reach(&spread, keys, wanted, |_| Ok(1.0))
    };
    checked(solve().map_err(Error::torch(ACTION))?)
}

/// ROME's update, for any number of facts: of all ΔW with `ΔW K = R`, the one that moves ordinary text's keys least,
/// `ΔW = R (Kᵀ C⁻¹ K)⁻¹ Kᵀ C⁻¹`. For one fact it is `r uᵀ / (kᵀu)` with `u = C⁻¹k`, one and the same key in all places.
pub(crate) fn rome(factor: &Factor, keys: &Tensor, wanted: &Tensor) -> Result<Solution> {
    let solve = || {
        let spread = keys.f_cholesky_solve(&factor.lower, false)?;
        reach(&spread, keys, wanted, tie)
    };
    checked(solve().map_err(Error::torch(ACTION))?)
}

/// AlphaEdit's update in its low-rank form, `ΔW = R (Kᵀ P K + L2·I)⁻¹ (P K)ᵀ`. All active facts are in K, those of
/// earlier batches as well: none of them needs a memory of keys, and one that is left out leaves no trace.
///
/// `ridge` is L2 in units of the mean square norm of a key.
pub(crate) fn alphaedit(
    projection: &Projection,
    ridge: f64,
    keys: &Tensor,
    wanted: &Tensor,
) -> Result<Solution> {
    let solve = || {
        let spread = projection.project(keys)?;
        reach(&spread, keys, wanted, |_| Ok(ridge * projection.energy))
    };
    checked(solve().map_err(Error::torch(ACTION))?)
}

fn tie(gram: &Tensor) -> Torch<f64> {
    let mean = gram.f_diagonal(0, 0, 1)?.f_mean(Kind::Double)?;
    Ok(f64::try_from(mean)? * TIE)
}

fn checked(solution: Solution) -> Result<Solution> {
    let finite = |tensor: &Tensor| {
        tensor
            .f_isfinite()
            .and_then(|t| t.f_all())
            .and_then(i64::try_from)
            .map_err(Error::torch(ACTION))
    };
    if finite(&solution.right)? == 0 || finite(&solution.left)? == 0 {
        return Err(Error::NotFinite("the weights' change"));
    }
    Ok(solution)
}

/// `X = S (KᵀS + ridge·I)⁻¹` with `spread` S f64 `[f, m]`; `ridge` is given the Gram matrix KᵀS.
fn reach(
    spread: &Tensor,
    keys: &Tensor,
    wanted: &Tensor,
    ridge: impl Fn(&Tensor) -> Torch<f64>,
) -> Torch<Solution> {
    let facts = keys.size2()?.1;
    let gram = keys.f_tr()?.f_matmul(spread)?;
    // Symmetric by construction; rounding is not.
    let gram = (&gram + gram.f_tr()?) * 0.5;
    let ridge = ridge(&gram)?;
    let gram = gram + Tensor::f_eye(facts, (Kind::Double, keys.device()))? * ridge;
    let (gram_lower, _) = gram.f_linalg_cholesky_ex(false, true)?;
    let right = spread
        .f_tr()?
        .f_cholesky_solve(&gram_lower, false)?
        .f_tr()?
        .f_contiguous()?;
    let reached = wanted.f_matmul(&right.f_tr()?.f_matmul(keys)?)?;
    let gap = f64::try_from((reached - wanted).f_norm()?)?;
    let size = f64::try_from(wanted.f_norm()?)?;
    let unmet = if size > 0.0 { gap / size } else { 0.0 };
    let pivots = gram_lower.f_diagonal(0, 0, 1)?;
    let (low, high) = (
        f64::try_from(pivots.f_min()?)?,
        f64::try_from(pivots.f_max()?)?,
    );
    Ok(Solution {
        left: wanted.f_contiguous()?,
        right,
        unmet,
        condition: (high / low).powi(2),
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

    use tch::{Kind, Tensor};

    use super::{Factor, alphaedit, memit, rome};
    use crate::error::Error;
    use crate::moment::Moment;
    use crate::nullspace::Projection;

    fn moment(rows: i64, samples: i64) -> Moment {
        tch::manual_seed(7);
        let k = Tensor::randn([samples, rows], (Kind::Float, tch::Device::Cpu));
        Moment {
            c: k.tr().matmul(&k) / samples as f64,
            tokens: samples as u64,
        }
    }

    fn random(rows: i64, columns: i64) -> Tensor {
        Tensor::randn([rows, columns], (Kind::Double, tch::Device::Cpu))
    }

    #[test]
    fn the_low_rank_form_equals_the_formula_with_the_full_inverse() {
        let moment = moment(24, 400);
        let (keys, wanted, lambda) = (random(24, 5), random(10, 5), 3.0);
        // λ, and half of λ twice over.
        let factor = Factor::of(&moment, lambda / 2.0, 0).unwrap();
        let solution = memit(&factor, 2.0, &keys, &wanted).unwrap();
        let full = moment.c.to_kind(Kind::Double) * lambda + keys.matmul(&keys.tr());
        let expected = wanted.matmul(&keys.tr()).matmul(&full.inverse());
        let got = solution.left.matmul(&solution.right.tr());
        let error = f64::try_from((&got - &expected).norm() / expected.norm()).unwrap();
        assert!(error < 1e-10, "{error}");
        let unmet = f64::try_from((got.matmul(&keys) - &wanted).norm() / wanted.norm()).unwrap();
        assert!((unmet - solution.unmet).abs() < 1e-10);
    }

    #[test]
    fn a_small_lambda_reaches_what_is_wanted_and_leaves_other_keys_nearly_alone() {
        let moment = moment(64, 2000);
        let (keys, wanted) = (random(64, 3) * 10.0, random(8, 3));
        let solution = memit(&Factor::of(&moment, 1e-3, 0).unwrap(), 1.0, &keys, &wanted).unwrap();
        assert!(solution.unmet < 1e-3, "{}", solution.unmet);
    }

    #[test]
    fn a_moment_of_too_little_text_gets_a_ridge_and_one_of_zeros_is_refused() {
        let thin = Factor::of(&moment(64, 20), 1.0, 3).unwrap();
        assert!(thin.ridge > 0.0);
        let zeros = Moment {
            c: Tensor::zeros([8, 8], (Kind::Float, tch::Device::Cpu)),
            tokens: 9,
        };
        assert!(matches!(
            Factor::of(&zeros, 1.0, 3).unwrap_err(),
            Error::SingularMoment {
                layer: 3,
                tokens: 9,
                ..
            }
        ));
        let broken = Moment {
            c: Tensor::full([8, 8], f64::NAN, (Kind::Float, tch::Device::Cpu)),
            tokens: 9,
        };
        assert!(matches!(
            Factor::of(&broken, 1.0, 3).unwrap_err(),
            Error::NotFinite(_)
        ));
    }

    #[test]
    fn one_fact_by_rome_is_the_papers_formula_and_is_reached_exactly() {
        let moment = moment(24, 400);
        let (key, wanted) = (random(24, 1), random(10, 1));
        let solution = rome(&Factor::of(&moment, 15.0, 0).unwrap(), &key, &wanted).unwrap();
        let u = moment.c.to_kind(Kind::Double).inverse().matmul(&key);
        let expected = wanted.matmul(&u.tr()) / key.tr().matmul(&u);
        let got = solution.left.matmul(&solution.right.tr());
        let error = f64::try_from((&got - &expected).norm() / expected.norm()).unwrap();
        assert!(error < 1e-6, "{error}");
        assert!(solution.unmet < 1e-6, "{}", solution.unmet);
    }

    #[test]
    fn alphaedit_changes_nothing_for_keys_in_the_protected_directions() {
        let moment = moment(24, 400);
        let projection = Projection::of(&moment, 0.3).unwrap();
        let (keys, wanted) = (random(24, 3), random(10, 3));
        let solution = alphaedit(&projection, 1e-6, &keys, &wanted).unwrap();
        let change = solution.left.matmul(&solution.right.tr());
        let other = random(24, 7);
        let protected = &other - projection.project(&other).unwrap();
        let moved = change.matmul(&protected).norm() / (change.norm() * protected.norm());
        assert!(f64::try_from(moved).unwrap() < 1e-10);
        assert!(solution.unmet < 1e-3, "{}", solution.unmet);
        // The formula of the paper, with its f × f system.
        let eye = Tensor::eye(24, (Kind::Double, tch::Device::Cpu));
        let p = projection.project(&eye).unwrap();
        let kk = keys.matmul(&keys.tr()).matmul(&p);
        let system = kk + eye * (1e-6 * projection.energy);
        let expected = wanted
            .matmul(&keys.tr())
            .matmul(&p)
            .matmul(&system.inverse());
        let error = f64::try_from((&change - &expected).norm() / expected.norm()).unwrap();
        assert!(error < 1e-6, "{error}");
    }

    #[test]
    fn two_facts_with_one_key_are_solved_to_their_mean_and_not_to_infinity() {
        let moment = moment(24, 400);
        let key = random(24, 1);
        let keys = Tensor::cat(&[&key, &key], 1);
        let wanted = random(6, 2);
        let solution = memit(&Factor::of(&moment, 1e-6, 0).unwrap(), 1.0, &keys, &wanted).unwrap();
        let got = solution.left.matmul(&solution.right.tr()).matmul(&key);
        let mean = wanted.mean_dim(Some([1].as_slice()), true, Kind::Double);
        assert!(f64::try_from((got - &mean).norm() / mean.norm()).unwrap() < 1e-3);
    }
}
