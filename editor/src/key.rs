//! Keys and present states of facts: the down-projection's input at one layer, and the state that is to become z,
//! both at the subject's last token of the bare prompt, under the edits made so far.
//!
//! A fact's key is half the bare prompt's own and half the mean of those in its contexts (Meng et al. 2023), where the
//! recipe takes keys from contexts. The bare prompt's alone misses what the subject looks like in the middle of a text:
//! often its first word is another token there, without the blank. What stands behind the subject changes nothing before
//! it, so prompts end there; what they begin with alike, a context, is computed once for many; and what leaves the layers
//! below is kept, so that a layer's turn costs the edited layers only. Prompts of about one length go together, and
//! several such parts at once (`crew`). Invariant: the columns are in the edits' order.

use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};

use addenda_model::tensor::NoGrad;
use addenda_model::{Action, Overlay, Pass, Site, Tap, Transformer};
use tch::{Kind, Tensor};

use crate::crew::Crew;
use crate::entry::Edit;
use crate::error::{Error, Result};
use crate::pace::{Pace, Phase};
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
    /// `[d, m]`, in the bare prompts.
    pub(crate) states: Tensor,
}

/// The share of a fact's key that is the bare prompt's own, where it has contexts.
const BARE: f64 = 0.5;

/// Prompts of about one length, on their way up through the edited layers.
struct Part {
    /// Places in the rows' order: the bare prompts of all edits, then their contexts, edit by edit.
    edits: Vec<usize>,
    /// Bare prompts go up to the last edited layer, for their states; contexts give a key and go no further.
    bare: bool,
    /// (row, token) of the subjects' last tokens, counted behind what the rows have in common.
    at: Vec<(i64, i64)>,
    stream: Stream,
}

/// The residual stream as it enters the layer whose turn is next.
struct Stream {
    /// Of the tokens that all rows begin with, `[1, P, d]`; none where there are none.
    common: Option<Tensor>,
    /// Of what stands behind them, `[B, S, d]`.
    rows: Tensor,
}

/// The edits of one recipe, on their way up.
pub(crate) struct Climb {
    crew: Crew<View>,
    last: usize,
    site: Site,
    parts: Vec<Mutex<Part>>,
    facts: usize,
    /// Contexts of each edit.
    contexts: usize,
}

impl Climb {
    /// Brings the prompts to where they enter the first edited layer.
    pub(crate) fn begin(
        model: &Transformer,
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
        let contexts = edits.first().map_or(0, |edit| edit.context_ids.len());
        // The bare prompts, then those in the first context of each edit, in the second, and so on.
        let mut groups: Vec<Vec<(usize, &[u32])>> = vec![bare.enumerate().collect()];
        for context in 0..contexts {
            let own = edits.iter().enumerate().filter_map(|(edit, of)| {
                let ids = of.context_ids.get(context)?;
                Some((edits.len() + edit * contexts + context, ids.as_slice()))
            });
            groups.push(own.collect());
        }
        let mut parts: Vec<&[(usize, &[u32])]> = Vec::new();
        for rows in &mut groups {
            rows.sort_by_key(|(_, ids)| ids.len());
            let mut rest = rows.as_slice();
            while let Some((_, shortest)) = rest.first() {
                let count = (TOKENS / shortest.len().max(1)).clamp(1, rest.len());
                let (own, others) = rest.split_at(count);
                parts.push(own);
                rest = others;
            }
        }
        let mut crew = Crew::of(model, parts.len(), || {
            Ok(View {
                model: model.base_in_kind(model.kind())?,
                overlay: overlay.share(),
            })
        })?;
        let parts = crew.share(&parts, (Phase::Keys, 1), pace, |view, own, rest| {
            rest()?;
            let part = Part::begin(&view.model, &view.overlay, own, (edits.len(), first))?;
            Ok(Mutex::new(part))
        })?;
        Ok(Self {
            crew,
            last: solve.last_layer(),
            site: state_site(solve.place),
            parts,
            facts: edits.len(),
            contexts,
        })
    }

    /// Keys at `layer`, whose turn it is, and present states.
    pub(crate) fn measure(&mut self, layer: usize, pace: &mut Pace<'_>) -> Result<Standing> {
        let state = (self.last, self.site);
        let read = self
            .crew
            .share(&self.parts, (Phase::Keys, 1), pace, |view, part, rest| {
                rest()?;
                own(part).read(view, layer, state)
            })?;
        let (mut keys, mut states, mut order) = (Vec::new(), Vec::new(), Vec::new());
        for (places, of_part, in_bare) in read {
            order.extend(places);
            keys.push(of_part);
            states.extend(in_bare);
        }
        let bare = order.get(..self.facts).unwrap_or(&order);
        let states = columns(&states, bare).map_err(Error::torch(ACTION))?;
        let keys = columns(&keys, &order).map_err(Error::torch(ACTION))?;
        let keys = mixed(&keys, self.facts, self.contexts).map_err(Error::torch(ACTION))?;
        Ok(Standing { keys, states })
    }

    /// Goes through the layers `from .. to`, which are edited by now, and stays under this overlay.
    pub(crate) fn rise(
        &mut self,
        from: usize,
        to: usize,
        overlay: &Overlay,
        pace: &mut Pace<'_>,
    ) -> Result<()> {
        self.crew.each(|view| view.overlay = overlay.share());
        let layers = from..=to.saturating_sub(1);
        let risen = self
            .crew
            .share(&self.parts, (Phase::Keys, 1), pace, |view, part, rest| {
                rest()?;
                let _no_grad = NoGrad::new();
                let (mut part, mut pass) = (own(part), Pass::new().under(&view.overlay));
                part.stream = part
                    .stream
                    .through(&view.model, layers.clone(), &mut pass)?;
                Ok(())
            });
        risen.map(drop)
    }
}

/// A worker's handles on the weights that prompts are read under.
struct View {
    model: Transformer,
    overlay: Overlay,
}

/// No two workers have one part: what was poisoned is of a work that is given up.
fn own(part: &Mutex<Part>) -> MutexGuard<'_, Part> {
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Part {
    fn begin(
        model: &Transformer,
        overlay: &Overlay,
        own: &[(usize, &[u32])],
        (facts, first): (usize, usize),
    ) -> Result<Self> {
        let _no_grad = NoGrad::new();
        let rows: Vec<&[u32]> = own.iter().map(|(_, ids)| *ids).collect();
        let (common, rows) = parted(&rows);
        let common = match common {
            [] => None,
            ids => Some(model.embed(&padded(&[ids], model)?)?),
        };
        let mut stream = Stream {
            common,
            rows: model.embed(&padded(&rows, model)?)?,
        };
        if let Some(below) = first.checked_sub(1) {
            stream = stream.through(model, 0..=below, &mut Pass::new().under(overlay))?;
        }
        let last = |(row, ids): (usize, &&[u32])| (index(row), index(ids.len().saturating_sub(1)));
        Ok(Self {
            edits: own.iter().map(|(place, _)| *place).collect(),
            bare: own.iter().all(|(place, _)| *place < facts),
            at: rows.iter().enumerate().map(last).collect(),
            stream,
        })
    }

    /// Its places, and what stands there: f64 keys `[n, f]` at `layer`, whose turn it is, and of bare prompts f64 states
    /// `[n, d]` at the last edited one's site.
    fn read(
        &self,
        view: &View,
        layer: usize,
        (last, site): (usize, Site),
    ) -> Result<(Vec<i64>, Tensor, Option<Tensor>)> {
        let _no_grad = NoGrad::new();
        let read = |layer, site| Tap {
            layer,
            site,
            at: self.at.clone(),
            action: Action::Read,
        };
        let taps = [read(layer, Site::MlpKey), read(last, site)];
        let (taps, top) = match self.bare {
            true => (&taps[..], last),
            false => (&taps[..1], layer),
        };
        let mut pass = Pass::new().under(&view.overlay).with_taps(taps);
        drop(self.stream.through(&view.model, layer..=top, &mut pass)?);
        let numbers = |tap| doubles(pass.read(tap)?).map_err(Error::torch(ACTION));
        let states = self.bare.then(|| numbers(1)).transpose()?;
        let places = self.edits.iter().map(|edit| index(*edit)).collect();
        Ok((places, numbers(0)?, states))
    }
}

impl Stream {
    /// As it leaves the last of these layers.
    fn through(
        &self,
        model: &Transformer,
        layers: RangeInclusive<usize>,
        pass: &mut Pass<'_>,
    ) -> Result<Self> {
        let Some(common) = &self.common else {
            let (first, last) = (*layers.start(), *layers.end());
            let rows = model.forward_between(first, last, &self.rows, pass)?;
            return Ok(Self { common: None, rows });
        };
        let (common, rows) = model.forward_behind(layers, common, &self.rows, pass)?;
        let common = Some(common);
        Ok(Self { common, rows })
    }
}

/// What all rows begin with, and what stands behind it; at least one token of each.
fn parted<'a>(rows: &[&'a [u32]]) -> (&'a [u32], Vec<&'a [u32]>) {
    let Some(first) = rows.first() else {
        return (&[], Vec::new());
    };
    let alike = |row: &&[u32]| {
        let pairs = row.iter().zip(*first).take(row.len().saturating_sub(1));
        pairs.take_while(|(one, other)| one == other).count()
    };
    let common = rows.iter().map(alike).min().unwrap_or(0);
    let behind = rows.iter().filter_map(|row| row.get(common..));
    (first.get(..common).unwrap_or_default(), behind.collect())
}

/// From the keys of all rows, `[f, facts · (1 + contexts)]`, to those of the facts, `[f, facts]`.
fn mixed(
    keys: &Tensor,
    facts: usize,
    contexts: usize,
) -> std::result::Result<Tensor, tch::TchError> {
    let (facts, contexts) = (index(facts), index(contexts));
    let bare = keys.f_narrow(1, 0, facts)?;
    if contexts == 0 {
        return bare.f_contiguous();
    }
    let rows = keys.f_narrow(1, facts, facts * contexts)?;
    let of_facts = rows.f_reshape([-1, facts, contexts])?;
    let around = of_facts.f_mean_dim([2_i64].as_slice(), false, keys.kind())?;
    (bare * BARE + around * (1.0 - BARE)).f_contiguous()
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

    use tch::Tensor;

    use super::{mixed, parted};

    #[test]
    fn rows_are_parted_behind_what_all_of_them_begin_with_and_keep_a_token_each() {
        let (common, rows) = parted(&[&[1, 2, 3, 4], &[1, 2, 5], &[1, 2, 3]]);
        assert_eq!((common, rows), (&[1, 2][..], vec![&[3, 4][..], &[5], &[3]]));
        let (common, rows) = parted(&[&[1, 2], &[1, 2]]);
        assert_eq!((common, rows), (&[1][..], vec![&[2][..], &[2]]));
        assert_eq!(parted(&[&[1], &[2]]), (&[][..], vec![&[1][..], &[2]]));
    }

    #[test]
    fn a_facts_key_is_half_the_bare_prompts_and_half_the_mean_of_its_own_contexts() {
        // One coordinate; the bare keys of two facts, then two contexts of the first and two of the second.
        let keys = Tensor::from_slice(&[1.0_f64, 10.0, 2.0, 4.0, 20.0, 60.0]).reshape([1, 6]);
        let of_facts = Vec::<f64>::try_from(mixed(&keys, 2, 2).unwrap().reshape([-1])).unwrap();
        assert_eq!(of_facts, [2.0, 25.0]);
        let alone = mixed(&keys.narrow(1, 0, 2), 2, 0).unwrap();
        assert_eq!(
            Vec::<f64>::try_from(alone.reshape([-1])).unwrap(),
            [1.0, 10.0]
        );
    }
}
