//! An answer with the whole distribution of each of its tokens: what modes are compared by.
//!
//! Owns the distributions so far. Invariant: a given answer is followed whatever the model would have
//! said itself, so that two contexts can be asked about the same tokens.

use std::time::Instant;

use addenda_model::{SequenceKv, Tokenizer, Transformer};
use tch::{Device, Kind, Tensor};
use tokio::sync::oneshot;

use crate::engine::command::{Follow, Prompt, Trace, Traced};
use crate::error::Result;

/// What traces, once its prompt is in the context.
pub(crate) struct Tracing {
    follow: Follow,
    ids: Vec<u32>,
    logprobs: Vec<Vec<f32>>,
    first_at: Option<Instant>,
    reply: oneshot::Sender<Result<Traced>>,
}

impl Tracing {
    pub(crate) fn new(request: Trace) -> (Prompt, Self) {
        let tracing = Self {
            follow: request.follow,
            ids: Vec::new(),
            logprobs: Vec::new(),
            first_at: None,
            reply: request.reply,
        };
        (request.prompt, tracing)
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.first_at.is_some()
    }

    /// Forgets everything: the weights changed, or its context is given up.
    pub(crate) fn restart(&mut self) {
        self.ids.clear();
        self.logprobs.clear();
        self.first_at = None;
    }

    /// Tokens that its context grows by at most.
    pub(crate) fn growth(&self) -> usize {
        match &self.follow {
            Follow::Greedy(most, _) => *most,
            Follow::Given(ids) => ids.len(),
        }
    }

    /// Takes the prompt's last hidden state `[d]`, from which the first token comes; true when that
    /// was all.
    ///
    /// # Errors
    /// libtorch's.
    pub(crate) fn begin(
        &mut self,
        model: &Transformer,
        tokenizer: &Tokenizer,
        hidden: &Tensor,
    ) -> Result<bool> {
        self.take(&model.decode_logits(&hidden.f_unsqueeze(0)?)?)?;
        self.first_at = Some(Instant::now());
        Ok(self.is_done(tokenizer))
    }

    /// Computes the next token, or all of a given answer's at once; true when that was all.
    ///
    /// # Errors
    /// The model's.
    pub(crate) fn step(
        &mut self,
        model: &Transformer,
        tokenizer: &Tokenizer,
        kv: &mut SequenceKv,
    ) -> Result<bool> {
        let next: Vec<u32> = match &self.follow {
            Follow::Greedy(..) => self.ids.last().copied().into_iter().collect(),
            Follow::Given(ids) => {
                let end = ids.len().saturating_sub(1);
                ids.get(self.ids.len() - 1..end)
                    .unwrap_or_default()
                    .to_vec()
            }
        };
        let hidden = match next[..] {
            [id] => model.decode(&[id], &mut [kv])?,
            _ => model.prefill(&next, kv)?,
        };
        let logits = model.decode_logits(&hidden)?;
        self.take(&logits)?;
        Ok(self.is_done(tokenizer))
    }

    /// Takes the tokens that `logits` `[T, V]` stand for.
    fn take(&mut self, logits: &Tensor) -> Result<()> {
        let rows = logits.f_log_softmax(-1, Kind::Float)?;
        let likeliest = rows.f_argmax(-1, false)?.f_to_device(Device::Cpu)?;
        let likeliest = Vec::<i64>::try_from(&likeliest)?;
        let rows = rows.f_to_device(Device::Cpu)?;
        for (row, likeliest) in (0..).zip(likeliest) {
            let id = match &self.follow {
                Follow::Greedy(..) => u32::try_from(likeliest).ok(),
                Follow::Given(ids) => ids.get(self.ids.len()).copied(),
            };
            let Some(id) = id else {
                return Ok(());
            };
            self.ids.push(id);
            self.logprobs
                .push(Vec::<f32>::try_from(&rows.f_select(0, row)?)?);
        }
        Ok(())
    }

    fn is_done(&self, tokenizer: &Tokenizer) -> bool {
        match &self.follow {
            Follow::Greedy(most, ending) => {
                self.ids.len() >= *most || ending.is_met(&self.ids, tokenizer)
            }
            Follow::Given(ids) => self.ids.len() >= ids.len(),
        }
    }

    /// Sends the answer.
    pub(crate) fn end(self, result: Result<()>) {
        let first_at = self.first_at.unwrap_or_else(Instant::now);
        let traced = result.map(|()| Traced {
            ids: self.ids,
            logprobs: self.logprobs,
            first_at,
        });
        drop(self.reply.send(traced));
    }
}
