//! The prompt pass of one sequence, a chunk at a time.
//!
//! Owns how far a prompt has come. Packets are attached whole and cost nothing; tokens are computed
//! in chunks, so that others get their turn. Never samples.

use addenda_model::{Input, SequenceKv, Transformer};
use tch::Tensor;

use crate::engine::command::{Prompt, Segment};
use crate::error::{Error, Result};
use crate::packets::Shelf;

/// A prompt on its way into a context.
pub(crate) struct Prefill {
    prompt: Prompt,
    segment: usize,
    token: usize,
}

impl Prefill {
    pub(crate) fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            segment: 0,
            token: 0,
        }
    }

    pub(crate) fn prompt(&self) -> &Prompt {
        &self.prompt
    }

    /// Begins again, for an empty context.
    pub(crate) fn restart(&mut self) {
        self.segment = 0;
        self.token = 0;
    }

    /// Attaches packets up to the next tokens and computes at most `chunk` of those. Gives the
    /// hidden state `[d]` of the prompt's last token once that is computed.
    ///
    /// # Errors
    /// The model's, or a prompt that does not end in tokens.
    pub(crate) fn step(
        &mut self,
        model: &Transformer,
        shelf: &mut Shelf,
        kv: &mut SequenceKv,
        chunk: usize,
    ) -> Result<Option<Tensor>> {
        while let Some(segment) = self.prompt.segments.get(self.segment) {
            let ids = match segment {
                Segment::Packet(packet) => {
                    kv.attach(shelf.open(packet)?)?;
                    self.segment += 1;
                    continue;
                }
                Segment::Tokens(ids) => ids.get(self.token..).unwrap_or_default(),
            };
            if ids.is_empty() {
                self.segment += 1;
                self.token = 0;
                continue;
            }
            let run = ids.get(..chunk.max(1)).unwrap_or(ids);
            let hidden = model.forward(Input::Ids(run), kv)?;
            self.token += run.len();
            let last = run.len() == ids.len() && self.segment + 1 == self.prompt.segments.len();
            return Ok(if last {
                Some(hidden.f_select(0, -1)?)
            } else {
                None
            });
        }
        Err(Error::invalid(
            "prompt",
            "has no tokens of its own after the documents",
        ))
    }
}
