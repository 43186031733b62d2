//! Keys and present states of facts: the down-projection's input at one layer, and the state that is to become z,
//! both at the subject's last token of the bare prompt, under the edits made so far.
//!
//! The bare prompt's key alone is used: averaging it with those of other contexts measured worse.

use addenda_model::tensor::NoGrad;
use addenda_model::{Action, Overlay, Pass, Site, Tap, Transformer};
use tch::Tensor;

use crate::entry::Edit;
use crate::error::{Error, Result};
use crate::pace::{Pace, Phase, Progress};
use crate::rows::{doubles, index, padded};
use crate::settings::Place;

/// Rows of one forward.
const ROWS: usize = 32;

/// What stands at the subjects' last tokens; f64 on the CPU.
#[derive(Debug)]
pub(crate) struct Standing {
    /// `[f, m]`.
    pub(crate) keys: Tensor,
    /// `[d, m]`.
    pub(crate) states: Tensor,
}

/// Measures keys at `layer` and states at the recipe's place, for edits in their order.
pub(crate) fn measure(
    model: &Transformer,
    overlay: &Overlay,
    edits: &[&Edit],
    layer: usize,
    pace: &mut Pace<'_>,
) -> Result<Standing> {
    let (mut keys, mut states) = (Vec::new(), Vec::new());
    for (number, chunk) in edits.chunks(ROWS).enumerate() {
        pace(Progress {
            phase: Phase::Keys,
            done: (number * ROWS) as u64,
            total: edits.len() as u64,
        })?;
        let _no_grad = NoGrad::new();
        let Some(first) = chunk.first() else { continue };
        let last = first.recipe.solve.last_layer();
        let site = state_site(first.recipe.solve.place);
        let rows: Vec<&[u32]> = chunk
            .iter()
            .map(|edit| edit.prompt_ids.as_slice())
            .collect();
        let at: Vec<(i64, i64)> = chunk
            .iter()
            .enumerate()
            .map(|(row, edit)| (index(row), index(edit.subject_at)))
            .collect();
        let taps = [
            Tap {
                layer,
                site: Site::MlpKey,
                at: at.clone(),
                action: Action::Read,
            },
            Tap {
                layer: last,
                site,
                at,
                action: Action::Read,
            },
        ];
        let mut pass = Pass::new().under(overlay).with_taps(&taps);
        drop(model.forward_to(last, &padded(&rows, model)?, &mut pass)?);
        let mut reads = pass.reads.into_iter().flatten();
        for side in [&mut keys, &mut states] {
            let read = reads
                .next()
                .ok_or_else(|| Error::Unsupported("a tap gave nothing".to_owned()))?;
            side.push(doubles(&read).map_err(Error::torch("reading keys"))?);
        }
    }
    let columns = |parts: &[Tensor]| {
        Tensor::f_cat(parts, 0)
            .and_then(|t| t.f_tr())
            .and_then(|t| t.f_contiguous())
    };
    Ok(Standing {
        keys: columns(&keys).map_err(Error::torch("joining keys"))?,
        states: columns(&states).map_err(Error::torch("joining states"))?,
    })
}

/// The tap that reads what z replaces.
pub(crate) fn state_site(place: Place) -> Site {
    match place {
        Place::Residual => Site::Residual,
        Place::MlpOut => Site::MlpOut,
    }
}
