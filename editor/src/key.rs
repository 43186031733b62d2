//! Keys and present states of facts: the down-projection's input at one layer, and the state that is to become z,
//! both at the subject's last token of the bare prompt, under the edits made so far.
//!
//! The bare prompt's key alone is used: averaging it with those of other contexts measured worse. What stands behind
//! the subject changes nothing before it, so prompts end there; and what leaves the layers below is kept, so that a
//! layer's turn costs the edited layers only. Invariant: the columns are in the edits' order.

use addenda_model::tensor::NoGrad;
use addenda_model::{Action, Overlay, Pass, Site, Tap, Transformer};
use tch::{Kind, Tensor};

use crate::entry::Edit;
use crate::error::{Error, Result};
use crate::pace::{Pace, Phase, Progress};
use crate::rows::{doubles, index, padded};
use crate::settings::{Place, SolveSettings};

/// Tokens of one forward, about.
const TOKENS: usize = 512;
const ACTION: &str = "reading keys";

/// What stands at the subjects' last tokens; f64 on the CPU.
#[derive(Debug)]
pub(crate) struct Standing {
    /// `[f, m]`.
    pub(crate) keys: Tensor,
    /// `[d, m]`.
    pub(crate) states: Tensor,
    /// `[f, m]`: the mean of each fact's keys in its contexts, where the recipe takes those as well.
    pub(crate) around: Option<Tensor>,
}

/// Prompts of about one length, on their way up through the edited layers.
struct Part {
    /// Places in the rows' order: the bare prompts of all edits, then their contexts, edit by edit.
    edits: Vec<usize>,
    /// (row, token) of the subjects' last tokens.
    at: Vec<(i64, i64)>,
    /// The residual stream as it enters the layer whose turn is next, `[B, S, d]`.
    stream: Tensor,
}

/// The edits of one recipe, on their way up.
pub(crate) struct Climb<'a> {
    model: &'a Transformer,
    last: usize,
    site: Site,
    parts: Vec<Part>,
    facts: usize,
    /// Contexts of each edit.
    contexts: usize,
}

impl<'a> Climb<'a> {
    /// Brings the prompts to where they enter the first edited layer.
    pub(crate) fn begin(
        model: &'a Transformer,
        overlay: &Overlay,
        edits: &[&Edit],
        solve: &SolveSettings,
        pace: &mut Pace<'_>,
    ) -> Result<Self> {
        let first = solve.layers.first().copied().unwrap_or_default();
        let bare = edits.iter().map(|edit| {
            let read = edit.prompt_ids.get(..=edit.subject_at);
            read.unwrap_or(&edit.prompt_ids)
        });
        let around = edits.iter().flat_map(|edit| &edit.context_ids);
        let mut order: Vec<(usize, &[u32])> =
            bare.chain(around.map(Vec::as_slice)).enumerate().collect();
        let contexts = (order.len() - edits.len()) / edits.len().max(1);
        order.sort_by_key(|(_, ids)| ids.len());
        let mut parts = Vec::new();
        let rows = order.len();
        let mut rest = order.as_slice();
        while let Some((_, shortest)) = rest.first() {
            pace(Progress {
                phase: Phase::Keys,
                done: (rows - rest.len()) as u64,
                total: rows as u64,
            })?;
            let count = (TOKENS / shortest.len().max(1)).clamp(1, rest.len());
            let (own, others) = rest.split_at(count);
            rest = others;
            parts.push(Part::begin(model, overlay, own, first)?);
        }
        Ok(Self {
            model,
            last: solve.last_layer(),
            site: state_site(solve.place),
            parts,
            facts: edits.len(),
            contexts,
        })
    }

    /// Keys at `layer`, whose turn it is, and present states.
    pub(crate) fn measure(
        &self,
        layer: usize,
        overlay: &Overlay,
        pace: &mut Pace<'_>,
    ) -> Result<Standing> {
        let _no_grad = NoGrad::new();
        let (mut keys, mut states, mut order) = (Vec::new(), Vec::new(), Vec::new());
        for part in &self.parts {
            pace(Progress {
                phase: Phase::Keys,
                done: order.len() as u64,
                total: self.facts as u64,
            })?;
            let read = |layer, site| Tap {
                layer,
                site,
                at: part.at.clone(),
                action: Action::Read,
            };
            let taps = [read(layer, Site::MlpKey), read(self.last, self.site)];
            let mut pass = Pass::new().under(overlay).with_taps(&taps);
            drop(
                self.model
                    .forward_between(layer, self.last, &part.stream, &mut pass)?,
            );
            keys.push(doubles(pass.read(0)?).map_err(Error::torch(ACTION))?);
            states.push(doubles(pass.read(1)?).map_err(Error::torch(ACTION))?);
            order.extend(part.edits.iter().map(|edit| index(*edit)));
        }
        let keys = columns(&keys, &order).map_err(Error::torch(ACTION))?;
        let states = columns(&states, &order).map_err(Error::torch(ACTION))?;
        self.standing(&keys, &states).map_err(Error::torch(ACTION))
    }

    fn standing(
        &self,
        keys: &Tensor,
        states: &Tensor,
    ) -> std::result::Result<Standing, tch::TchError> {
        let (facts, contexts) = (index(self.facts), index(self.contexts));
        let around = match self.contexts {
            0 => None,
            _ => {
                let rows = keys.f_narrow(1, facts, facts * contexts)?;
                let of_facts = rows.f_reshape([-1, facts, contexts])?;
                Some(of_facts.f_mean_dim([2_i64].as_slice(), false, Kind::Double)?)
            }
        };
        Ok(Standing {
            keys: keys.f_narrow(1, 0, facts)?.f_contiguous()?,
            states: states.f_narrow(1, 0, facts)?.f_contiguous()?,
            around,
        })
    }

    /// Goes through the layers `from .. to`, which are edited by now.
    pub(crate) fn rise(&mut self, from: usize, to: usize, overlay: &Overlay) -> Result<()> {
        let _no_grad = NoGrad::new();
        for part in &mut self.parts {
            let mut pass = Pass::new().under(overlay);
            part.stream =
                self.model
                    .forward_between(from, to.saturating_sub(1), &part.stream, &mut pass)?;
        }
        Ok(())
    }
}

impl Part {
    fn begin(
        model: &Transformer,
        overlay: &Overlay,
        own: &[(usize, &[u32])],
        first: usize,
    ) -> Result<Self> {
        let _no_grad = NoGrad::new();
        let rows: Vec<&[u32]> = own.iter().map(|(_, ids)| *ids).collect();
        let ids = padded(&rows, model)?;
        let last = |(row, ids): (usize, &&[u32])| (index(row), index(ids.len().saturating_sub(1)));
        let stream = match first.checked_sub(1) {
            Some(below) => model.forward_to(below, &ids, &mut Pass::new().under(overlay))?,
            None => model.embed(&ids)?,
        };
        Ok(Self {
            edits: own.iter().map(|(place, _)| *place).collect(),
            at: rows.iter().enumerate().map(last).collect(),
            stream,
        })
    }
}

/// Rows `[n, width]` in parts, to columns `[width, n]` in the edits' order.
fn columns(parts: &[Tensor], order: &[i64]) -> std::result::Result<Tensor, tch::TchError> {
    let rows = Tensor::f_cat(parts, 0)?;
    let order = Tensor::f_from_slice(order)?.f_to_kind(Kind::Int64)?;
    rows.f_index_select(0, &order.f_argsort(0, false)?)?
        .f_tr()?
        .f_contiguous()
}

/// The tap that reads what z replaces.
pub(crate) fn state_site(place: Place) -> Site {
    match place {
        Place::Residual => Site::Residual,
        Place::MlpOut => Site::MlpOut,
    }
}
