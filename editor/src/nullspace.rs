//! The null-space projection P of AlphaEdit: onto the directions of keys that ordinary text hardly uses.
//!
//! C = U Λ Uᵀ. P keeps the eigenvectors with the smallest eigenvalues, as many as together hold at most a given share of
//! the trace: a rule relative to C, since an absolute bound on eigenvalues (0.02 in the paper) means something else in
//! every layer. What is stored is the complement, which is small: P x = x − Q (Qᵀ x). Invariant: Qᵀ Q = I.

use std::collections::HashMap;
use std::path::Path;

use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::kept::Kept;
use crate::moment::Moment;
use crate::rows::index;

const ACTION: &str = "finding the null space of the second moment";

/// P of one layer.
#[derive(Debug)]
pub(crate) struct Projection {
    /// Q, the directions that are protected, f64 `[f, r]`.
    used: Tensor,
    /// trace(C): the mean square norm of a key.
    pub(crate) energy: f64,
}

impl Projection {
    /// The projection that leaves `share` of the trace free, 0 to 1.
    pub(crate) fn of(moment: &Moment, share: f64) -> Result<Self> {
        let parts = moment
            .c
            .f_to_kind(Kind::Double)
            .and_then(|c| c.f_linalg_eigh("L"))
            .map_err(Error::torch(ACTION))?;
        let (values, vectors) = parts;
        let rising = Vec::<f64>::try_from(&values).map_err(Error::torch(ACTION))?;
        let rising: Vec<f64> = rising.iter().map(|value| value.max(0.0)).collect();
        let energy: f64 = rising.iter().sum();
        if !energy.is_finite() || energy <= 0.0 {
            return Err(Error::NotFinite("the second moment"));
        }
        let mut held = 0.0;
        let free = rising.iter().take_while(|value| {
            held += **value;
            held <= share * energy
        });
        let free = free.count();
        let used = i64::try_from(rising.len() - free).unwrap_or(0);
        let first = i64::try_from(free).unwrap_or(0);
        Ok(Self {
            used: vectors
                .f_narrow(1, first, used)
                .and_then(|used| used.f_contiguous())
                .map_err(Error::torch(ACTION))?,
            energy,
        })
    }

    /// What was kept; none if it was never made.
    pub(crate) fn load(path: &Path, width: usize) -> Result<Option<Self>> {
        let Some(kept) = Kept::load(path)? else {
            return Ok(None);
        };
        let energy = kept.number("energy");
        let used = kept.matrices.into_iter().next().map(|(_, used)| used);
        match (used, energy) {
            (Some(used), Some(energy)) if used.size().first() == Some(&index(width)) => {
                Ok(Some(Self { used, energy }))
            }
            _ => Err(Error::DamagedMoment {
                path: path.to_path_buf(),
                problem: format!("it is no projection of {width} directions"),
            }),
        }
    }

    /// Keeps it: the eigenvectors of a wide layer take minutes to find.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let kept = Kept {
            matrices: vec![("protected".to_owned(), self.used.shallow_clone())],
            about: HashMap::from([("energy".to_owned(), self.energy.to_string())]),
        };
        kept.save(path)
    }

    /// P x, f64 `[f, m]`.
    pub(crate) fn project(&self, x: &Tensor) -> std::result::Result<Tensor, tch::TchError> {
        let inside = self.used.f_matmul(&self.used.f_tr()?.f_matmul(x)?)?;
        x.f_sub(&inside)
    }

    /// Directions that are protected.
    pub(crate) fn rank(&self) -> usize {
        let columns = self.used.size().get(1).copied().unwrap_or(0);
        usize::try_from(columns).unwrap_or(0)
    }

    /// Bytes that it holds in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.used.numel() * 8
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

    use super::Projection;
    use crate::moment::Moment;
    use tch::{Kind, Tensor};

    /// Keys that use two directions of eight much, and the others little.
    fn moment() -> Moment {
        tch::manual_seed(3);
        let k = Tensor::randn([500, 8], (Kind::Float, tch::Device::Cpu));
        let scale = Tensor::from_slice(&[9.0f32, 7.0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]);
        let k = k * scale;
        Moment {
            c: k.tr().matmul(&k) / 500.0,
            tokens: 500,
        }
    }

    #[test]
    fn what_text_uses_much_is_projected_away_whatever_the_scale() {
        for factor in [1e-6, 1.0, 1e6] {
            let mut moment = moment();
            moment.c *= factor;
            let p = Projection::of(&moment, 0.01).unwrap();
            assert_eq!(p.rank(), 2);
            let x = Tensor::eye(8, (Kind::Double, tch::Device::Cpu));
            let projected = p.project(&x).unwrap();
            let again = p.project(&projected).unwrap();
            assert!((&again - &projected).abs().max().double_value(&[]) < 1e-12);
            let kept = projected.diagonal(0, 0, 1);
            assert!(kept.narrow(0, 0, 2).max().double_value(&[]) < 1e-3);
            assert!(kept.narrow(0, 2, 6).min().double_value(&[]) > 0.99);
        }
    }
}
