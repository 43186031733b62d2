//! What is asked of a batch of additions, and how each of them is answered.
//!
//! Invariants: every request has exactly one answer, in its place; two requests that contradict each other are both
//! refused, for nothing says which of them is meant.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::fact::{Fact, FactId};
use crate::figures::Figures;
use crate::plan::{Novelty, Weights};
use crate::register::Added;
use crate::settings::Method;

/// One addition as a caller asks for it.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// What is to be known.
    pub fact: Fact,
    /// The caller's id for this request; empty is none.
    pub request_id: String,
    /// The closed form; the settings' choice for this model where none is named.
    pub method: Option<Method>,
}

/// Additions that were worked out together; nothing was changed yet.
#[derive(Debug)]
pub struct Planned {
    pub(crate) slots: Vec<Slot>,
    /// None where nothing is to be changed.
    pub(crate) weights: Option<Weights>,
}

/// What becomes of one request.
#[derive(Debug)]
pub(crate) enum Slot {
    /// It was answered before, or is in the weights already.
    Known(Box<Added>),
    Refused(Error),
    New(Box<Novelty>),
    /// It says the same as an earlier one of the batch.
    Like(usize),
}

impl Planned {
    /// What the edits measured, in the requests' order; none of those that change nothing.
    #[must_use]
    pub fn figures(&self) -> Vec<Option<&Figures>> {
        let figures = self.slots.iter().map(|slot| match slot {
            Slot::New(novelty) => Some(&novelty.figures),
            Slot::Known(_) | Slot::Refused(_) | Slot::Like(_) => None,
        });
        figures.collect()
    }

    /// The error of a batch of one, where it was refused.
    pub(crate) fn sole(mut self) -> Result<Self> {
        match self.slots.pop() {
            Some(Slot::Refused(error)) => Err(error),
            slot => {
                self.slots.extend(slot);
                Ok(self)
            }
        }
    }
}

/// Checked requests, each with its place, and the slots of those that need no work.
pub(crate) type Sorted = (Vec<Option<Slot>>, Vec<(usize, Request)>);

/// Tells the requests that need work from those that don't; `known` answers what was answered before.
pub(crate) fn sort(
    requests: Vec<Request>,
    known: impl Fn(&Fact, &str) -> Result<Option<Added>>,
) -> Sorted {
    let mut slots: Vec<Option<Slot>> = Vec::with_capacity(requests.len());
    let mut new: Vec<(usize, Request)> = Vec::new();
    let mut ids: HashMap<FactId, usize> = HashMap::new();
    for (place, request) in requests.into_iter().enumerate() {
        let checked = crate::fact::check_request_id(&request.request_id)
            .and_then(|()| request.fact.clone().checked())
            .and_then(|fact| Ok((known(&fact, &request.request_id)?, fact)));
        slots.push(match checked {
            Err(error) => Some(Slot::Refused(error)),
            Ok((Some(added), _)) => Some(Slot::Known(Box::new(added))),
            Ok((None, fact)) => match ids.get(&fact.id()) {
                Some(first) => Some(Slot::Like(*first)),
                None => {
                    ids.insert(fact.id(), place);
                    new.push((place, Request { fact, ..request }));
                    None
                }
            },
        });
    }
    for (place, error) in quarrels(&new) {
        if let Some(slot) = slots.get_mut(place) {
            *slot = Some(Slot::Refused(error));
        }
    }
    new.retain(|(place, _)| slots.get(*place).is_some_and(Option::is_none));
    (slots, new)
}

/// Requests that contradict another one of the batch, or share its id.
fn quarrels(new: &[(usize, Request)]) -> Vec<(usize, Error)> {
    let mut found = Vec::new();
    for (at, (place, request)) in new.iter().enumerate() {
        let others = || new.iter().enumerate().filter(|(other, _)| *other != at);
        let rival = others().find(|(_, (_, other))| {
            other.fact.asks_the_same(&request.fact) && other.fact.overlaps(&request.fact)
        });
        let shares = |other: &Request| {
            !request.request_id.is_empty() && other.request_id == request.request_id
        };
        if let Some((_, (_, other))) = rival {
            let (one, two) = (request.fact.target.clone(), other.fact.target.clone());
            found.push((*place, Error::Contradiction { one, two }));
        } else if others().any(|(_, (_, other))| shares(other)) {
            found.push((*place, Error::RequestIdReused(request.request_id.clone())));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{Request, Slot, sort};
    use crate::error::Error;
    use crate::fact::Fact;

    fn request(prompt: &str, target: &str, id: &str) -> Request {
        Request {
            fact: Fact {
                subject: "Ann".to_owned(),
                prompt: prompt.to_owned(),
                target: target.to_owned(),
                ..Fact::default()
            },
            request_id: id.to_owned(),
            method: None,
        }
    }

    #[test]
    fn a_batch_that_contradicts_itself_has_both_sides_refused_and_the_rest_taken() {
        let batch = vec![
            request("{} lives in", "Rome", "a"),
            request("{} works in", "Bonn", "b"),
            request("{} lives in", "Oslo", "c"),
            request("{} works in", "Bonn", "d"),
            request("{} sings in", "Bern", "e"),
            request("{} walks in", "Bern", "e"),
            request("nobody", "Bern", ""),
        ];
        let (slots, new) = sort(batch, |_, _| Ok(None));
        let places: Vec<usize> = new.iter().map(|(place, _)| *place).collect();
        assert_eq!(places, [1]);
        let refused = |place: usize| match slots.get(place) {
            Some(Some(Slot::Refused(error))) => error.to_string(),
            other => format!("{other:?}"),
        };
        assert!(refused(0).contains("\"Rome\"") && refused(0).contains("\"Oslo\""));
        assert!(refused(2).contains("contradicts"));
        assert!(matches!(slots.get(3), Some(Some(Slot::Like(1)))));
        assert!(matches!(
            slots.get(4),
            Some(Some(Slot::Refused(Error::RequestIdReused(_))))
        ));
        assert!(refused(6).contains("not in the prompt"));
    }
}
