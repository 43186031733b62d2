//! The beams of one answer: their contexts, which share the prompt's, and what was found in the end.
//!
//! Which continuations are followed is `addenda_model::BeamSearch`'s to choose. A beam has its own tokens in
//! memory of its own: where one branches, these are copied, and everything before them is shared.

use std::collections::VecDeque;

use addenda_model::{BeamParams, BeamSearch, Error, Sampled, SequenceKv, Tokenizer};
use tch::Tensor;

use crate::error::Result;

/// A search, and after it what it found.
pub(crate) struct Beams {
    params: BeamParams,
    max_tokens: usize,
    /// None once it is over.
    search: Option<BeamSearch>,
    stops: Vec<String>,
    /// Of each live beam.
    contexts: Vec<SequenceKv>,
    found: VecDeque<Sampled>,
    begun: bool,
}

impl Beams {
    /// # Errors
    /// Settings out of range.
    pub(crate) fn new(params: BeamParams, max_tokens: usize, stops: Vec<String>) -> Result<Self> {
        Ok(Self {
            params,
            max_tokens,
            search: Some(BeamSearch::new(params, max_tokens)?),
            stops,
            contexts: Vec::new(),
            found: VecDeque::new(),
            begun: false,
        })
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.begun
    }

    /// Begins behind a prompt whose last token gave `logits` `[V]`.
    ///
    /// # Errors
    /// The model's.
    pub(crate) fn begin(
        &mut self,
        tokenizer: &Tokenizer,
        logits: &Tensor,
        prompt: &mut SequenceKv,
    ) -> Result<()> {
        self.begun = true;
        self.contexts = vec![prompt.branch()?];
        self.step(tokenizer, &logits.f_unsqueeze(0)?)
    }

    /// Goes on by the logits `[beams, V]` behind the last token of each.
    ///
    /// # Errors
    /// The model's.
    pub(crate) fn step(&mut self, tokenizer: &Tokenizer, logits: &Tensor) -> Result<()> {
        let Some(search) = &mut self.search else {
            return Ok(());
        };
        let stops = &self.stops;
        let parents = search.step(logits, |ids| {
            let ends = ids.last().is_some_and(|&id| tokenizer.is_end(id));
            if ends || stops.is_empty() {
                return Ok(ends);
            }
            let text = tokenizer.decode(ids)?;
            Ok(stops.iter().any(|stop| text.contains(stop.as_str())))
        })?;
        if parents.is_empty() {
            self.contexts.clear();
            self.found = self
                .search
                .take()
                .map(BeamSearch::best)
                .unwrap_or_default()
                .into();
            return Ok(());
        }
        let mut before: Vec<_> = self.contexts.drain(..).map(Some).collect();
        let mut rest = &parents[..];
        while let [parent, later @ ..] = rest {
            let lost = || Error::Invalid("a beam has no context".to_owned());
            let context = before.get_mut(*parent).ok_or_else(lost)?;
            self.contexts.push(match later.contains(parent) {
                true => context.as_mut().ok_or_else(lost)?.branch()?,
                false => context.take().ok_or_else(lost)?,
            });
            rest = later;
        }
        Ok(())
    }

    /// The last token of each beam and its context, to be computed.
    pub(crate) fn pending(&mut self) -> Vec<(u32, &mut SequenceKv)> {
        let last = self.search.as_ref().map(BeamSearch::last);
        let last = last.unwrap_or_default();
        last.into_iter().zip(&mut self.contexts).collect()
    }

    /// The next token of what was found.
    pub(crate) fn next_found(&mut self) -> Option<Sampled> {
        self.found.pop_front()
    }

    /// Lets go of its contexts: searches from the beginning, unless it is over. Nothing of it was reported yet, and
    /// it finds the same again.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.contexts.clear();
        if self.search.is_some() {
            self.search = Some(BeamSearch::new(self.params, self.max_tokens)?);
            self.begun = false;
        }
        Ok(())
    }

    /// Bytes that its next step needs at most, with the copies of contexts that branch.
    pub(crate) fn needs(&self) -> usize {
        let each = self.contexts.iter();
        each.map(|context| context.growth(1) + context.tail_bytes())
            .sum()
    }

    /// Contexts that it may have beside each other, each with a tail of its own.
    pub(crate) fn width(&self) -> usize {
        self.params.beams
    }
}
