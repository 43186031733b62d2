//! What a fact asks of each edited layer: its key there, and its share of what is missing of z.
//!
//! A key is the down-projection's input at the subject's last token. The fact goes up through the layers alone, on the
//! base weights, and each edited layer adds its share of what then is missing wholly, before the next one's key is read.
//! So keys and shares are constants of the fact: they are measured once, and a solve for any set of facts is linear
//! algebra. (Meng et al. 2023 measure the keys of a batch under the layers solved before. Among many facts that costs a
//! forward over all of them for each that comes or goes.)
//!
//! A fact's key is half the bare prompt's own and half the mean of those in its contexts (Meng et al. 2023), where the
//! recipe takes keys from contexts. The bare prompt's alone misses what the subject looks like in the middle of a text:
//! often its first word is another token there, without the blank. What stands behind the subject changes nothing before
//! it, so prompts end there; what they begin with alike, a context, is computed once for many. Invariant: the columns are
//! in the edits' order.

mod store;

use std::ops::RangeInclusive;
use std::rc::Rc;

use addenda_model::tensor::NoGrad;
use addenda_model::{Action, Overlay, Pass, Site, Tap, Transformer};
use tch::{Kind, Tensor};

use crate::entry::Edit;
use crate::error::{Error, Result};
use crate::pace::{Pace, Phase, Progress};
use crate::rows::{doubles, index, padded};
use crate::settings::{Place, SolveSettings};
pub(crate) use store::AscentStore;

type Torch<T> = std::result::Result<T, tch::TchError>;

/// Tokens of one forward, about.
const TOKENS: usize = 512;
const ACTION: &str = "reading keys";

/// What one fact asks of the edited layers, one row each from the lowest up.
#[derive(Debug)]
pub(crate) struct Ascent {
    /// f32 `[L, f]`.
    pub(crate) keys: Tensor,
    /// f32 `[L, d]`.
    pub(crate) shares: Tensor,
}

impl Ascent {
    /// The keys, f64 `[f, m]`, and shares, f64 `[d, m]`, of facts at one of their layers, counted from the lowest.
    pub(crate) fn columns(ascents: &[Rc<Self>], layer: usize) -> Torch<(Tensor, Tensor)> {
        let of = |rows: fn(&Self) -> &Tensor| {
            let at_layer = ascents.iter().map(|own| rows(own).f_get(index(layer)));
            let columns = Tensor::f_stack(&at_layer.collect::<Torch<Vec<_>>>()?, 1)?;
            columns.f_to_kind(Kind::Double)?.f_contiguous()
        };
        Ok((of(|own| &own.keys)?, of(|own| &own.shares)?))
    }
}

/// The share of a fact's key that is the bare prompt's own, where it has contexts.
const BARE: f64 = 0.5;

/// The ascents of edits of one recipe, on the base of `model`.
pub(crate) fn ascents(
    model: &Transformer,
    edits: &[&Edit],
    solve: &SolveSettings,
    pace: &mut Pace<'_>,
) -> Result<Vec<Ascent>> {
    let _no_grad = NoGrad::new();
    let mut climb = Climb::begin(model, edits, solve, pace)?;
    let wanted = wanted(edits).map_err(Error::torch(ACTION))?;
    let (mut keys, mut shares) = (Vec::new(), Vec::new());
    for (done, layer) in solve.layers.iter().enumerate() {
        let standing = climb.measure(*layer, pace)?;
        let share = (&wanted - standing.states) / (solve.layers.len() - done) as f64;
        if let Some(next) = solve.layers.get(done + 1) {
            climb.rise(*layer, *next, &share)?;
        }
        keys.push(standing.keys);
        shares.push(share);
    }
    // [L, width, m] to one [L, width] a fact.
    let of_facts = |layers: &[Tensor]| -> Torch<Vec<Tensor>> {
        let all = Tensor::f_stack(layers, 0)?.f_to_kind(Kind::Float)?;
        let all = all.f_unbind(2)?;
        all.iter().map(Tensor::f_contiguous).collect()
    };
    let keys = of_facts(&keys).map_err(Error::torch(ACTION))?;
    let shares = of_facts(&shares).map_err(Error::torch(ACTION))?;
    let pairs = keys.into_iter().zip(shares);
    Ok(pairs
        .map(|(keys, shares)| Ascent { keys, shares })
        .collect())
}

/// Z, f64 `[d, m]`.
fn wanted(edits: &[&Edit]) -> Torch<Tensor> {
    let flat: Vec<f32> = (edits.iter())
        .flat_map(|edit| edit.z.iter().copied())
        .collect();
    Tensor::f_from_slice(&flat)?
        .f_reshape([index(edits.len()), -1])?
        .f_tr()?
        .f_to_kind(Kind::Double)?
        .f_contiguous()
}

/// What stands at the subjects' last tokens; f64 on the CPU.
struct Standing {
    /// `[f, m]`.
    keys: Tensor,
    /// `[d, m]`, in the bare prompts.
    states: Tensor,
}

/// Prompts of about one length, on their way up through the edited layers.
struct Part {
    /// Places in the rows' order: the bare prompts of all edits, then their contexts, edit by edit.
    places: Vec<usize>,
    /// Bare prompts go up to the last edited layer, for their states; contexts give a key and go no further.
    bare: bool,
    /// (row, token) of the subjects' last tokens, counted behind what the rows have in common.
    at: Vec<(i64, i64)>,
    stream: Stream,
}

/// The residual stream as it enters the layer whose turn is next, or leaves it.
struct Stream {
    /// Of the tokens that all rows begin with, `[1, P, d]`; none where there are none.
    common: Option<Tensor>,
    /// Of what stands behind them, `[B, S, d]`.
    rows: Tensor,
}

/// Edits of one recipe, on their way up.
struct Climb<'a> {
    model: &'a Transformer,
    base: Overlay,
    last: usize,
    site: Site,
    parts: Vec<Part>,
    facts: usize,
    /// Contexts of each edit.
    contexts: usize,
}

impl<'a> Climb<'a> {
    /// Brings the prompts to where they enter the first edited layer.
    fn begin(
        model: &'a Transformer,
        edits: &[&Edit],
        solve: &SolveSettings,
        pace: &mut Pace<'_>,
    ) -> Result<Self> {
        let (first, base) = (
            solve.layers.first().copied().unwrap_or_default(),
            Overlay::base(),
        );
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
        let mut parts = Vec::new();
        let (mut done, total) = (0, groups.iter().map(Vec::len).sum::<usize>() as u64);
        for rows in &mut groups {
            rows.sort_by_key(|(_, ids)| ids.len());
            let mut rest = rows.as_slice();
            while let Some((_, shortest)) = rest.first() {
                pace(Progress {
                    phase: Phase::Keys,
                    done,
                    total,
                })?;
                let count = (TOKENS / shortest.len().max(1)).clamp(1, rest.len());
                let (own, others) = rest.split_at(count);
                (rest, done) = (others, done + count as u64);
                parts.push(Part::begin(model, &base, own, (edits.len(), first))?);
            }
        }
        Ok(Self {
            model,
            base,
            last: solve.last_layer(),
            site: state_site(solve.place),
            parts,
            facts: edits.len(),
            contexts,
        })
    }

    /// Goes through `layer`, whose turn it is: keys there, and present states.
    fn measure(&mut self, layer: usize, pace: &mut Pace<'_>) -> Result<Standing> {
        let (mut keys, mut states, mut order) = (Vec::new(), Vec::new(), Vec::new());
        for part in &mut self.parts {
            pace(Progress {
                phase: Phase::Keys,
                done: order.len() as u64,
                total: (self.facts * (1 + self.contexts)) as u64,
            })?;
            let read = |layer, site| Tap {
                layer,
                site,
                at: part.at.clone(),
                action: Action::Read,
            };
            let taps = [read(layer, Site::MlpKey), read(self.last, self.site)];
            let here = part.bare && layer == self.last;
            let mut pass =
                Pass::new()
                    .under(&self.base)
                    .with_taps(if here { &taps } else { &taps[..1] });
            part.stream = part.stream.through(self.model, layer..=layer, &mut pass)?;
            keys.push(doubles(pass.read(0)?).map_err(Error::torch(ACTION))?);
            if here {
                states.push(doubles(pass.read(1)?).map_err(Error::torch(ACTION))?);
            } else if part.bare {
                let mut pass = Pass::new().under(&self.base).with_taps(&taps[1..]);
                let above = layer + 1..=self.last;
                drop(part.stream.through(self.model, above, &mut pass)?);
                states.push(doubles(pass.read(0)?).map_err(Error::torch(ACTION))?);
            }
            order.extend(part.places.iter().map(|place| index(*place)));
        }
        let bare = order.get(..self.facts).unwrap_or(&order);
        let states = columns(&states, bare).map_err(Error::torch(ACTION))?;
        let keys = columns(&keys, &order).map_err(Error::torch(ACTION))?;
        let keys = mixed(&keys, self.facts, self.contexts).map_err(Error::torch(ACTION))?;
        Ok(Standing { keys, states })
    }

    /// Adds to each fact's subject what `from` is to bring, f64 `[d, m]`, and goes on to where `to` is entered.
    fn rise(&mut self, from: usize, to: usize, brought: &Tensor) -> Result<()> {
        for part in &mut self.parts {
            let (facts, contexts) = (self.facts, self.contexts.max(1));
            let fact = |place: &usize| match place.checked_sub(facts) {
                None => index(*place),
                Some(of_contexts) => index(of_contexts / contexts),
            };
            let facts: Vec<i64> = part.places.iter().map(fact).collect();
            let add = || part.stream.added(&part.at, &facts, brought);
            part.stream.rows = add().map_err(Error::torch(ACTION))?;
            if to > from + 1 {
                let mut pass = Pass::new().under(&self.base);
                part.stream = part
                    .stream
                    .through(self.model, from + 1..=to - 1, &mut pass)?;
            }
        }
        Ok(())
    }
}

impl Part {
    fn begin(
        model: &Transformer,
        base: &Overlay,
        own: &[(usize, &[u32])],
        (facts, first): (usize, usize),
    ) -> Result<Self> {
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
            stream = stream.through(model, 0..=below, &mut Pass::new().under(base))?;
        }
        let last = |(row, ids): (usize, &&[u32])| (index(row), index(ids.len().saturating_sub(1)));
        Ok(Self {
            places: own.iter().map(|(place, _)| *place).collect(),
            bare: own.iter().all(|(place, _)| *place < facts),
            at: rows.iter().enumerate().map(last).collect(),
            stream,
        })
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

    /// The rows with columns of `brought`, f64 `[d, m]`, added at (row, token): of each, the column named.
    fn added(&self, at: &[(i64, i64)], columns: &[i64], brought: &Tensor) -> Torch<Tensor> {
        let (rows, tokens, width) = self.rows.size3()?;
        let flat: Vec<i64> = at.iter().map(|(row, token)| row * tokens + token).collect();
        let to_device = |ids: &[i64]| Tensor::f_from_slice(ids)?.f_to_device(self.rows.device());
        let more = brought
            .f_to_device(self.rows.device())?
            .f_to_kind(self.rows.kind())?
            .f_index_select(1, &to_device(columns)?)?
            .f_tr()?;
        self.rows
            .f_reshape([-1, width])?
            .f_index_add(0, &to_device(&flat)?, &more)?
            .f_reshape([rows, tokens, width])
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
fn mixed(keys: &Tensor, facts: usize, contexts: usize) -> Torch<Tensor> {
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
fn columns(parts: &[Tensor], order: &[i64]) -> Torch<Tensor> {
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
