//! The prompt pass of one sequence, a chunk at a time.
//!
//! Owns how far a prompt has come. Packets are attached whole and cost nothing; tokens are computed
//! in chunks, so that others get their turn, and so are the documents that are blended. Never samples.

use addenda_model::{Blending, SequenceKv, Transformer};
use tch::Tensor;

use crate::digest::Digest;
use crate::engine::command::{Blend, Prompt, Segment};
use crate::engine::prefix::{Prefixes, common};
use crate::error::{Error, Result};
use crate::packets::Shelf;

/// A prompt on its way into a context.
pub(crate) struct Prefill {
    prompt: Prompt,
    segment: usize,
    token: usize,
    /// The documents of this segment, if they are being blended.
    blending: Option<Blending>,
    /// Tokens whose KV was kept from an earlier request; none until that was looked for.
    reused: Option<usize>,
    /// Tokens of the answer that were computed before the context was given up.
    answered: Vec<u32>,
}

impl Prefill {
    pub(crate) fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            segment: 0,
            token: 0,
            blending: None,
            reused: None,
            answered: Vec::new(),
        }
    }

    pub(crate) fn prompt(&self) -> &Prompt {
        &self.prompt
    }

    pub(crate) fn prompt_mut(&mut self) -> &mut Prompt {
        &mut self.prompt
    }

    /// Tokens whose KV was kept from an earlier request.
    pub(crate) fn reused(&self) -> usize {
        self.reused.unwrap_or(0)
    }

    /// Tokens that it finds kept, beside those that are kept now, once `other` has computed its prompt into `kv`; 0
    /// where it has begun already, or the other has not.
    pub(crate) fn gains(
        &self,
        (other, kv): (&Self, &SequenceKv),
        prefixes: &Prefixes,
        revision: Digest,
    ) -> usize {
        let begun = (self.reused.is_some(), other.reused.is_some());
        let (prompt, theirs) = (&self.prompt, &other.prompt);
        let share = prompt.shares && theirs.shares && prompt.namespace == theirs.namespace;
        let segments = (prompt.segments.first(), theirs.segments.first());
        match (begun, share, segments) {
            ((false, true), true, (Some(Segment::Tokens(a)), Some(Segment::Tokens(b))))
                if prefixes.takes(b, kv) =>
            {
                common(a, b).saturating_sub(prefixes.kept(&prompt.namespace, revision, a))
            }
            _ => 0,
        }
    }

    /// Begins again, for an empty context, with the tokens `answered` behind the prompt.
    pub(crate) fn restart(&mut self, answered: &[u32]) {
        self.answered = answered.to_vec();
        self.segment = 0;
        self.token = 0;
        self.blending = None;
        self.reused = None;
    }

    /// Takes what is kept of the prompt's beginning into a context that is empty yet.
    ///
    /// # Errors
    /// The model's.
    pub(crate) fn begin(
        &mut self,
        prefixes: &mut Prefixes,
        revision: Digest,
        kv: &mut SequenceKv,
    ) -> Result<()> {
        if self.reused.is_some() {
            return Ok(());
        }
        self.reused = Some(0);
        let (Some(Segment::Tokens(ids)), true) = (self.prompt.segments.first(), self.prompt.shares)
        else {
            return Ok(());
        };
        let namespace = &self.prompt.namespace;
        // The prompt's last token is computed in any case: what follows it is wanted.
        let last = self.prompt.segments.len() == 1;
        let most = ids.len() - usize::from(last && !ids.is_empty());
        let ids = ids.get(..most).unwrap_or_default();
        let Some((blocks, tokens)) = prefixes.find(namespace, revision, (ids, !last)) else {
            return Ok(());
        };
        kv.begin_with(&blocks, tokens)?;
        self.token = tokens;
        self.reused = Some(tokens);
        Ok(())
    }

    /// Keeps the KV of the prompt's beginning, up to the first packet, for others; and that of the tokens
    /// `answered` behind it, where there is no packet: the next turn of a conversation begins with both.
    ///
    /// # Errors
    /// libtorch's.
    pub(crate) fn keep(
        &self,
        prefixes: &mut Prefixes,
        revision: Digest,
        (kv, answered): (&mut SequenceKv, &[u32]),
    ) -> Result<()> {
        let namespace = &self.prompt.namespace;
        match (&self.prompt.segments[..], self.prompt.shares) {
            ([Segment::Tokens(ids)], true) => {
                let mut ids = [&ids[..], answered].concat();
                ids.truncate(kv.len());
                prefixes.keep(namespace, revision, &ids, kv)
            }
            ([Segment::Tokens(ids), ..], true) => prefixes.keep(namespace, revision, ids, kv),
            _ => Ok(()),
        }
    }

    /// Tokens that it computes at its next step, at most, with such a `chunk`.
    pub(crate) fn next(&self, chunk: usize) -> usize {
        let left = |ids: &[u32]| ids.len().saturating_sub(self.token).min(chunk.max(1));
        let mut segments = self.prompt.segments.get(self.segment..).unwrap_or_default();
        while let [Segment::Packet(_) | Segment::Rest(..), behind @ ..] = segments {
            segments = behind;
        }
        match segments.first() {
            Some(Segment::Tokens(ids)) => left(ids),
            Some(blend) => blend.tokens(),
            None => left(&self.answered),
        }
    }

    /// Tokens that it computes in all.
    pub(crate) fn computed(&self) -> usize {
        self.prompt.own_tokens() + self.answered.len()
    }

    /// Attaches packets up to the next tokens and computes at most `chunk` of those, or as much of
    /// documents that are blended. Gives the hidden state `[d]` of the prompt's last token once that
    /// is computed.
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
        let segments = self.prompt.segments.len();
        let behind = usize::from(!self.answered.is_empty());
        while self.segment < segments + behind {
            let ids = match self.prompt.segments.get(self.segment) {
                None => self.answered.get(self.token..).unwrap_or_default(),
                Some(Segment::Tokens(ids)) => ids.get(self.token..).unwrap_or_default(),
                Some(Segment::Packet(packet)) => {
                    kv.attach(shelf.open(packet)?)?;
                    self.segment += 1;
                    continue;
                }
                Some(Segment::Rest(packet, from)) => {
                    kv.attach_part(shelf.open(packet)?, *from..packet.tokens())?;
                    self.segment += 1;
                    continue;
                }
                Some(Segment::Blend(blend)) => {
                    let blending = match &mut self.blending {
                        Some(blending) => blending,
                        none => none.insert(opened(blend, shelf)?),
                    };
                    if blending.step(model, kv, chunk)? {
                        self.blending = None;
                        self.segment += 1;
                    }
                    return Ok(None);
                }
            };
            if ids.is_empty() {
                self.segment += 1;
                self.token = 0;
                continue;
            }
            let run = ids.get(..chunk.max(1)).unwrap_or(ids);
            let hidden = model.prefill(run, kv)?;
            self.token += run.len();
            let last = run.len() == ids.len() && self.segment + 1 == segments + behind;
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

/// Documents to be blended, their packets open.
fn opened(blend: &Blend, shelf: &mut Shelf) -> Result<Blending> {
    let documents = blend.documents.iter();
    let documents = documents.map(|(ids, packet)| Ok((ids.clone(), shelf.open(packet)?)));
    let documents = documents.collect::<Result<_>>()?;
    Ok(Blending::new(documents, blend.share)?)
}
