//! Scores of given continuations: one forward pass each over the prompt's context.
//!
//! Owns the scores so far; never samples. Invariant: each continuation sees the prompt alone, for
//! the context is cut back after each.

use addenda_model::{SequenceKv, Transformer};
use tch::{Kind, Tensor};
use tokio::sync::oneshot;

use crate::engine::command::{Prompt, Score, Scored, ScoredContinuation, Under};
use crate::error::Result;

/// Logit rows that are held at once; a vocabulary of 262 144 makes 64 MiB of them.
const ROWS: i64 = 64;

/// What scores, once its prompt is in the context.
pub(crate) struct Scoring {
    continuations: Vec<Vec<u32>>,
    /// Hidden state `[d]` of the prompt's last token.
    hidden: Option<Tensor>,
    scores: Vec<ScoredContinuation>,
    reply: oneshot::Sender<Result<Scored>>,
}

impl Scoring {
    pub(crate) fn new(request: Score) -> (Prompt, Self) {
        let scoring = Self {
            continuations: request.continuations,
            hidden: None,
            scores: Vec::new(),
            reply: request.reply,
        };
        (request.prompt, scoring)
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.hidden.is_some()
    }

    /// Tokens that its context grows by at most.
    pub(crate) fn growth(&self) -> usize {
        let longest = self.continuations.iter().map(Vec::len).max();
        longest.unwrap_or(0)
    }

    /// Takes the prompt's last hidden state `[d]`.
    pub(crate) fn begin(&mut self, hidden: Tensor) {
        self.hidden = Some(hidden);
    }

    /// Forgets everything: the weights changed, or its context is given up.
    pub(crate) fn restart(&mut self) {
        self.hidden = None;
        self.scores.clear();
    }

    /// Scores the next continuation; true when there is none left.
    ///
    /// # Errors
    /// The model's.
    pub(crate) fn step(&mut self, model: &Transformer, kv: &mut SequenceKv) -> Result<bool> {
        if let (Some(hidden), Some(ids)) = (&self.hidden, self.continuations.get(self.scores.len()))
        {
            let score = score(model, kv, hidden, ids)?;
            self.scores.push(score);
        }
        Ok(self.scores.len() == self.continuations.len())
    }

    /// Sends the answer.
    pub(crate) fn end(self, under: Under, result: Result<()>) {
        let scores = self.scores;
        drop(self.reply.send(result.map(|()| Scored { scores, under })));
    }
}

/// log p(id_i | prompt, ids before i) for each i.
fn score(
    model: &Transformer,
    kv: &mut SequenceKv,
    prompt: &Tensor,
    ids: &[u32],
) -> Result<ScoredContinuation> {
    let start = kv.len();
    let before = ids.get(..ids.len().saturating_sub(1)).unwrap_or_default();
    let mut hidden = prompt.f_unsqueeze(0)?;
    if !before.is_empty() {
        let rest = model.prefill(before, kv);
        let cut = kv.truncate(start);
        hidden = Tensor::f_cat(&[hidden, rest?], 0)?;
        cut?;
    }
    let (logprobs, greedy) = of_rows(model, &hidden, ids)?;
    Ok(ScoredContinuation {
        ids: ids.to_vec(),
        logprobs,
        greedy,
    })
}

/// The log-probability of `ids[i]` in row i of `hidden` `[T, d]`, and whether each is the likeliest.
fn of_rows(model: &Transformer, hidden: &Tensor, ids: &[u32]) -> Result<(Vec<f32>, bool)> {
    let mut logprobs = Vec::with_capacity(ids.len());
    let mut greedy = true;
    let ids = addenda_model::tensor::ids(ids, model.device())?;
    let rows = hidden.f_split(ROWS, 0)?;
    let targets = ids.f_split(ROWS, 0)?;
    for (rows, targets) in rows.iter().zip(&targets) {
        let logits = model.decode_logits(rows)?;
        let (chosen, likeliest) = compare(&logits, targets)?;
        greedy &= likeliest;
        logprobs.extend(chosen);
    }
    Ok((logprobs, greedy))
}

/// From logits `[T, V]` and ids `[T]`.
fn compare(
    logits: &Tensor,
    targets: &Tensor,
) -> std::result::Result<(Vec<f32>, bool), tch::TchError> {
    let all = logits.f_log_softmax(-1, Kind::Float)?;
    let chosen = all
        .f_gather(-1, &targets.f_unsqueeze(-1)?, false)?
        .f_squeeze_dim(-1)?;
    let likeliest = all.f_argmax(-1, false)?.f_equal(targets)?;
    Ok((
        Vec::<f32>::try_from(chosen.f_to_device(tch::Device::Cpu)?)?,
        likeliest,
    ))
}
