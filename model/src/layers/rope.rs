//! Rotary position embedding (Su et al. 2021), in the half-split form: element i of a
//! head turns with element i + head_dim/2 by the angle `position · frequency[i]`.
//!
//! A rotation is linear in the position, so scores depend on the *difference* of positions
//! only. That is what lets a packet keep the keys it was built with, at positions from 0:
//! whoever reads it turns its own query to the position it has relative to the packet.
//!
//! Scalings change the frequencies, once, at loading: linear (Chen et al. 2023), llama3
//! (Meta 2024), YaRN (Peng et al. 2023), or factors given per frequency.

use crate::config::RopeScaling;
use crate::decode::Turn;
use crate::error::Result;
use crate::tensor::{in_kind, int};
use std::cell::RefCell;
use std::f64::consts::PI;
use tch::{Device, Kind, Tensor};

/// Cosines and sines of one RoPE base, made as far as positions were asked for.
pub(crate) struct Rope {
    /// Radians per position, `[head_dim / 2]`.
    frequencies: Vec<f64>,
    /// YaRN multiplies cosines and sines by this; 1 elsewhere.
    magnitude: f64,
    device: Device,
    table: RefCell<Table>,
}

struct Table {
    positions: usize,
    /// f32 `[positions, 1, head_dim]`, both halves alike.
    cos: Tensor,
    /// f32 `[positions, 1, head_dim]`, the first half negated.
    sin: Tensor,
}

/// Queries turned to packets in one step, at most: tokens times packets.
const JOINT_ROTATIONS: usize = 4096;

/// Cosines and sines of some positions, f32 `[.., T, 1, head_dim]` each, or whatever else fits what
/// they turn.
pub(crate) struct Angles {
    cos: Tensor,
    sin: Tensor,
}

/// The angles that one run of tokens needs, made once and used by every layer.
pub(crate) struct RunAngles {
    /// At the run's own positions in the sequence: `[T, 1, head_dim]`.
    pub(crate) here: Angles,
    /// At its positions relative to each packet, several packets at a time:
    /// `[packets, T, 1, head_dim]`.
    pub(crate) from_packets: Vec<Angles>,
    /// How many packets go together.
    pub(crate) packets_at_a_time: usize,
}

impl Rope {
    pub(crate) fn new(
        theta: f64,
        scaling: &RopeScaling,
        head_dim: usize,
        device: Device,
    ) -> Result<Self> {
        let plain: Vec<f64> = (0..head_dim / 2)
            .map(|i| theta.powf(-((2 * i) as f64) / head_dim as f64))
            .collect();
        let (frequencies, magnitude) = scale(plain, theta, scaling, head_dim);
        let empty = Tensor::f_empty([0, 1, int(head_dim)], (Kind::Float, device))?;
        let table = Table {
            positions: 0,
            cos: empty.shallow_clone(),
            sin: empty,
        };
        Ok(Self {
            frequencies,
            magnitude,
            device,
            table: RefCell::new(table),
        })
    }

    /// Cosines and sines of one position, as decode steps turn by them.
    pub(crate) fn turn_at(&self, position: usize) -> Turn {
        let angles = self.frequencies.iter().map(|f| f * position as f64);
        let (sin, cos) = angles
            .map(|angle| (angle.sin() * self.magnitude, angle.cos() * self.magnitude))
            .map(|(sin, cos)| (sin as f32, cos as f32))
            .unzip();
        Turn { cos, sin }
    }

    /// The angles of positions `start .. start + count`.
    pub(crate) fn angles(&self, start: usize, count: usize) -> Result<Angles> {
        self.reach(start + count)?;
        let table = self.table.borrow();
        Ok(Angles {
            cos: table.cos.f_narrow(0, int(start), int(count))?,
            sin: table.sin.f_narrow(0, int(start), int(count))?,
        })
    }

    /// The angles of those `positions`, none negative, one to a token.
    pub(crate) fn angles_at(&self, positions: &[i64]) -> Result<Angles> {
        self.gather(positions, &[int(positions.len()), 1, -1])
    }

    /// The angles of a run of `tokens` at positions `at ..`, in a context with packets whose
    /// token 0 would stand at `anchors`.
    pub(crate) fn run(&self, at: usize, tokens: usize, anchors: &[i64]) -> Result<RunAngles> {
        let here = self.angles(at, tokens)?;
        let positions: Vec<i64> = (at..at + tokens).map(int).collect();
        self.seen_from(here, &positions, anchors)
    }

    /// The angles at those `positions`, in a context with packets whose token 0 would stand at
    /// `anchors`.
    pub(crate) fn scattered(&self, positions: &[i64], anchors: &[i64]) -> Result<RunAngles> {
        let here = self.angles_at(positions)?;
        self.seen_from(here, positions, anchors)
    }

    /// The angles of `positions` together with those relative to each packet.
    fn seen_from(&self, here: Angles, positions: &[i64], anchors: &[i64]) -> Result<RunAngles> {
        let tokens = positions.len();
        let packets_at_a_time = (JOINT_ROTATIONS / tokens.max(1)).max(1);
        let from_packets = anchors
            .chunks(packets_at_a_time)
            .map(|anchors| {
                let relative = anchors
                    .iter()
                    .flat_map(|anchor| positions.iter().map(move |position| position - anchor));
                let relative: Vec<i64> = relative.collect();
                self.gather(&relative, &[int(anchors.len()), int(tokens), 1, -1])
            })
            .collect::<Result<_>>()?;
        Ok(RunAngles {
            here,
            from_packets,
            packets_at_a_time,
        })
    }

    /// The angles of scattered positions, none negative, in a tensor of `shape`.
    fn gather(&self, positions: &[i64], shape: &[i64]) -> Result<Angles> {
        let last = positions.iter().copied().max().unwrap_or(0);
        self.reach(usize::try_from(last).unwrap_or(0) + 1)?;
        let positions = Tensor::f_from_slice(positions)?.f_to_device(self.device)?;
        let table = self.table.borrow();
        let pick = |t: &Tensor| t.f_index_select(0, &positions)?.f_reshape(shape);
        Ok(Angles {
            cos: pick(&table.cos)?,
            sin: pick(&table.sin)?,
        })
    }

    /// The angle by which keys move `by` positions, `[head_dim]` for all alike. A rotation alone:
    /// what YaRN multiplies keys with is in them already.
    pub(crate) fn turn(&self, by: i64) -> Result<Angles> {
        let angles: Vec<f64> = self.frequencies.iter().map(|f| f * by as f64).collect();
        let angles = Tensor::f_from_slice(&angles)?.f_to_device(self.device)?;
        let sin = angles.f_sin()?;
        let halves = |first: &Tensor, second: &Tensor| -> Result<Tensor> {
            Ok(Tensor::f_cat(&[first, second], 0)?.f_to_kind(Kind::Float)?)
        };
        let cos = angles.f_cos()?;
        Ok(Angles {
            cos: halves(&cos, &cos)?,
            sin: halves(&sin.f_neg()?, &sin)?,
        })
    }

    /// Makes the table long enough for positions before `end`.
    fn reach(&self, end: usize) -> Result<()> {
        let mut table = self.table.borrow_mut();
        if end > table.positions {
            *table = self.build(end.next_power_of_two().max(1024))?;
        }
        Ok(())
    }

    /// Angles are formed in f64 and their cosines and sines kept in f32, so that far
    /// positions are as exact as near ones.
    fn build(&self, positions: usize) -> Result<Table> {
        let options = (Kind::Double, self.device);
        let frequencies = Tensor::f_from_slice(&self.frequencies)?.f_to_device(self.device)?;
        let angles = Tensor::f_arange(int(positions), options)?.f_outer(&frequencies)?;
        let cos = angles.f_cos()?.f_mul_scalar(self.magnitude)?;
        let sin = angles.f_sin()?.f_mul_scalar(self.magnitude)?;
        let cos = Tensor::f_cat(&[&cos, &cos], 1)?;
        let sin = Tensor::f_cat(&[&sin.f_neg()?, &sin], 1)?;
        Ok(Table {
            positions,
            cos: cos.f_to_kind(Kind::Float)?.f_unsqueeze(1)?,
            sin: sin.f_to_kind(Kind::Float)?.f_unsqueeze(1)?,
        })
    }
}

impl Angles {
    /// Turns `x [.., T, heads, head_dim]` by these angles, in f32, and gives it back in its dtype.
    pub(crate) fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        // Products of two dtypes are computed one by one; those of one dtype several at a time.
        let wide = in_kind(x, Kind::Float)?;
        let half = x.size().last().copied().unwrap_or(0) / 2;
        let halves = [wide.f_narrow(-1, half, half)?, wide.f_narrow(-1, 0, half)?];
        let swapped = Tensor::f_cat(&halves, -1)?;
        let rotated = wide.f_mul(&self.cos)?.f_addcmul_(&swapped, &self.sin)?;
        in_kind(&rotated, x.kind())
    }
}

/// The scaled frequencies and the magnitude that goes with them.
fn scale(plain: Vec<f64>, theta: f64, scaling: &RopeScaling, head_dim: usize) -> (Vec<f64>, f64) {
    match scaling {
        RopeScaling::None => (plain, 1.0),
        RopeScaling::Linear { factor } => (plain.into_iter().map(|f| f / factor).collect(), 1.0),
        RopeScaling::Factors(factors) => (
            plain
                .into_iter()
                .zip(factors)
                .map(|(f, factor)| f / factor)
                .collect(),
            1.0,
        ),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_context,
        } => {
            let turns = |f: f64| *original_context as f64 * f / (2.0 * PI);
            let llama3 = |f: f64| {
                let smooth = (turns(f) - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let smooth = smooth.clamp(0.0, 1.0);
                (1.0 - smooth) * f / factor + smooth * f
            };
            (plain.into_iter().map(llama3).collect(), 1.0)
        }
        RopeScaling::Yarn {
            factor,
            original_context,
            beta_fast,
            beta_slow,
            attention_factor,
        } => {
            // The pair of dimensions that makes `turns` turns over the original context.
            let dimension = |turns: f64| {
                let ratio = *original_context as f64 / (turns * 2.0 * PI);
                head_dim as f64 * ratio.ln() / (2.0 * theta.ln())
            };
            let last = head_dim as f64 - 1.0;
            let low = dimension(*beta_fast).floor().max(0.0);
            let high = dimension(*beta_slow).ceil().min(last);
            let width = if high > low { high - low } else { 0.001 };
            let frequencies = plain
                .into_iter()
                .enumerate()
                .map(|(i, f)| {
                    let ramp = ((i as f64 - low) / width).clamp(0.0, 1.0);
                    ramp * f / factor + (1.0 - ramp) * f
                })
                .collect();
            let magnitude = attention_factor.unwrap_or_else(|| {
                if *factor > 1.0 {
                    0.1 * factor.ln() + 1.0
                } else {
                    1.0
                }
            });
            (frequencies, magnitude)
        }
    }
}
