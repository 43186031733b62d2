//! One answer, token by token: samples, turns tokens into text, looks for its end, reports. What beams have
//! found is reported the same way, when their search is over.
//!
//! Owns the sampler or the beams, and the text, of one generating sequence; never chooses when it runs. Invariant:
//! exactly one last event is sent, for which a place in the channel is kept from the beginning.

use std::time::{Duration, Instant};

use addenda_model::{Sampled, Sampler, SequenceKv, TextStream, Tokenizer};
use tch::Tensor;
use tokio::sync::mpsc::{OwnedPermit, Sender};

use crate::engine::beams::Beams;
use crate::engine::command::{Emitted, Event, Finish, Finished, Generate, Prompt, Ticket, Under};
use crate::engine::stops::Stops;
use crate::error::{Error, Result};

/// What generates, once its prompt is in the context.
pub(crate) struct Generating {
    sampler: Sampler,
    beams: Option<Beams>,
    /// None after the end.
    text: Option<TextStream>,
    stops: Stops,
    top: usize,
    max_tokens: usize,
    /// The tokens of the answer so far.
    said: Vec<u32>,
    last: Option<u32>,
    first_at: Option<Instant>,
    last_at: Option<Instant>,
    events: Sender<Result<Event>>,
    /// The place of the last event.
    farewell: OwnedPermit<Result<Event>>,
}

impl Generating {
    /// Takes a request apart into its prompt and what happens after it.
    ///
    /// # Errors
    /// Sampling settings out of range, or a client that is gone already; the error has been
    /// reported where there is somebody to report to.
    pub(crate) fn new(request: Generate, tokenizer: &Tokenizer) -> Result<(Prompt, Self)> {
        let events = request.events;
        let farewell = events
            .clone()
            .try_reserve_owned()
            .map_err(|_| Error::Cancelled)?;
        let beams = request
            .beams
            .map(|params| Beams::new(params, request.max_tokens, request.stop.clone()));
        let chosen = Sampler::new(request.sampling)
            .map_err(Error::from)
            .and_then(|sampler| Ok((sampler, beams.transpose()?)));
        let (mut sampler, beams) = match chosen {
            Ok(chosen) => chosen,
            Err(error) => {
                farewell.send(Err(error));
                return Err(Error::Cancelled);
            }
        };
        sampler.observe(&request.prompt.ids);
        let generating = Self {
            sampler,
            beams,
            text: Some(tokenizer.stream()),
            stops: Stops::new(request.stop),
            top: request.top,
            max_tokens: request.max_tokens,
            said: Vec::new(),
            last: None,
            first_at: None,
            last_at: None,
            events,
            farewell,
        };
        Ok((request.prompt, generating))
    }

    /// Whether the client reads fast enough for another token.
    pub(crate) fn has_room(&self) -> bool {
        self.events.capacity() > 0
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.last.is_some() || self.beams.as_ref().is_some_and(Beams::has_begun)
    }

    /// When the first token came.
    pub(crate) fn first_at(&self) -> Option<Instant> {
        self.first_at
    }

    /// Time since the last token; `None` before the first.
    pub(crate) fn since_last(&self) -> Option<Duration> {
        self.last_at.map(|last| last.elapsed())
    }

    /// Tokens so far.
    pub(crate) fn generated(&self) -> usize {
        self.said.len()
    }

    /// The tokens whose KV lies behind the prompt's in the sequence's own context, at most.
    pub(crate) fn computed(&self) -> &[u32] {
        match self.beams {
            Some(_) => &[],
            None => &self.said,
        }
    }

    /// Lets go of what was computed behind the prompt. Gives the tokens from which it goes on when they are in a
    /// context again, with whether there is anything to compute at all.
    ///
    /// # Errors
    /// The beams'.
    pub(crate) fn restart(&mut self) -> Result<(&[u32], bool)> {
        if let Some(beams) = &mut self.beams {
            beams.restart()?;
            return Ok((&[], !beams.has_begun()));
        }
        // The last one is what goes on.
        let before = self.said.len().saturating_sub(1);
        Ok((self.said.get(..before).unwrap_or_default(), true))
    }

    /// Bytes that its next step needs at most beside what is held, behind the prompt in `kv`.
    pub(crate) fn needs(&self, kv: &SequenceKv) -> usize {
        self.beams
            .as_ref()
            .map_or_else(|| kv.growth(1), Beams::needs)
    }

    /// Tokens that its context may still grow by, those of all beams together.
    pub(crate) fn growth(&self) -> usize {
        let each = self.max_tokens.saturating_sub(self.said.len());
        each.saturating_mul(self.beams.as_ref().map_or(1, Beams::width))
    }

    /// The tokens from which the next ones are computed, each with its context: `kv`, or those of beams.
    pub(crate) fn pending<'a>(
        &'a mut self,
        kv: &'a mut SequenceKv,
    ) -> Vec<(u32, &'a mut SequenceKv)> {
        match &mut self.beams {
            Some(beams) => beams.pending(),
            None => self.last.map(|id| (id, kv)).into_iter().collect(),
        }
    }

    /// Goes on behind the prompt in `kv`, whose last token gave `logits` `[V]`.
    ///
    /// # Errors
    /// The model's.
    pub(crate) fn begin(
        &mut self,
        tokenizer: &Tokenizer,
        logits: &Tensor,
        kv: &mut SequenceKv,
    ) -> Result<Option<Finish>> {
        match &mut self.beams {
            Some(beams) => beams.begin(tokenizer, logits, kv).map(|()| None),
            None => self.emit(tokenizer, logits),
        }
    }

    /// Goes on by the logits `[n, V]` behind the `n` tokens of [`Self::pending`].
    ///
    /// # Errors
    /// The model's.
    pub(crate) fn take(
        &mut self,
        tokenizer: &Tokenizer,
        logits: &Tensor,
    ) -> Result<Option<Finish>> {
        match &mut self.beams {
            Some(beams) => beams.step(tokenizer, logits).map(|()| None),
            None => self.emit(tokenizer, &logits.f_select(0, 0)?),
        }
    }

    /// Reports what beams have found, as much as the client has read room for.
    ///
    /// # Errors
    /// The tokenizer's.
    pub(crate) fn report(&mut self, tokenizer: &Tokenizer) -> Result<Option<Finish>> {
        while self.has_room() {
            let Some(found) = self.beams.as_mut().and_then(Beams::next_found) else {
                return Ok(Some(Finish::End));
            };
            let finish = self.say(tokenizer, &found)?;
            if finish.is_some() {
                return Ok(finish);
            }
        }
        Ok(None)
    }

    /// Chooses a token by `logits` `[V]` and reports it.
    fn emit(&mut self, tokenizer: &Tokenizer, logits: &Tensor) -> Result<Option<Finish>> {
        let sampled = self.sampler.sample(logits, self.top)?;
        self.say(tokenizer, &sampled)
    }

    /// Reports a token.
    fn say(&mut self, tokenizer: &Tokenizer, sampled: &Sampled) -> Result<Option<Finish>> {
        let now = Instant::now();
        self.first_at.get_or_insert(now);
        self.last_at = Some(now);
        self.last = Some(sampled.id);
        let mut finish = None;
        let mut text = String::new();
        if tokenizer.is_end(sampled.id) {
            finish = Some(Finish::End);
        } else {
            self.said.push(sampled.id);
            let piece = self
                .text
                .as_mut()
                .map(|text| text.push(sampled.id))
                .transpose()?;
            let (certain, stopped) = self.stops.push(&piece.unwrap_or_default());
            text = certain;
            if stopped {
                finish = Some(Finish::Stop);
            } else if self.said.len() >= self.max_tokens {
                finish = Some(Finish::Length);
            }
        }
        if matches!(finish, Some(Finish::End | Finish::Length)) {
            text.push_str(&self.flush());
        }
        // The end token itself is no text; it is reported only if it carries what was held back.
        if finish == Some(Finish::End) && text.is_empty() {
            return Ok(finish);
        }
        let alternatives = sampled.top.iter();
        let top = alternatives.map(|&(id, logprob)| (id, tokenizer.piece(id), logprob));
        let token = Emitted {
            id: sampled.id,
            text,
            logprob: sampled.logprob,
            top: top.collect(),
        };
        // The room was seen before the step and nobody else sends here; a closed channel is
        // noticed at the next look.
        drop(self.events.try_send(Ok(Event::Token(token))));
        Ok(finish)
    }

    /// The text that was held back for its end to be known.
    fn flush(&mut self) -> String {
        let last = self.text.take().map(TextStream::finish).unwrap_or_default();
        let (mut text, stopped) = self.stops.push(&last);
        if !stopped {
            text.push_str(&self.stops.rest());
        }
        text
    }

    /// Sends the last event.
    pub(crate) fn end(
        self,
        ticket: &Ticket,
        (under, prefix_tokens): (Under, usize),
        result: Result<Finish>,
    ) {
        let event = result.map(|finish| {
            let first_at = self.first_at.unwrap_or_else(Instant::now);
            Event::Finished(Finished {
                finish,
                generated: self.said.len(),
                prefix_tokens,
                ttft: first_at.duration_since(ticket.received),
                total: ticket.received.elapsed(),
                under,
            })
        });
        self.farewell.send(event);
    }
}
