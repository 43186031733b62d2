//! Blending (CacheBlend, Yao et al. 2024): documents from packets, but for the tokens whose KV
//! deviates most from what full prefill would give, which are computed.
//!
//! Layer 0 runs on all tokens of the documents, and so do keys and values of layer 1. There each
//! token is scored by ‖ΔK‖² + ‖ΔV‖² against its packet; from layer 1 on only the share of the highest
//! scores is computed, and in layers from 2 on the others' KV is the packets', turned to its place.
//! What comes of it is the sequence's own, for no packet is ever written to.
//!
//! Owns how far a blending has come. Invariants: a step computes about as much as a chunk of
//! prefill; until the last step is done the context is as before. With a share of 1 the context is
//! that of full prefill.

use crate::error::{Error, Result};
use crate::kv::SequenceKv;
use crate::layers::attention::Run;
use crate::packet::PacketKv;
use crate::tensor::{NoGrad, ids as id_tensor, int};
use crate::transformer::Transformer;
use std::ops::Range;
use std::rc::Rc;
use tch::{Kind, Tensor};

/// The layer whose keys and values say which tokens deviate.
const SCORED: usize = 1;

/// Documents on their way into a context.
pub struct Blending {
    documents: Vec<Document>,
    /// Of all documents, in order.
    ids: Vec<u32>,
    /// How many of them are computed.
    computed: usize,
    /// Position of the first token, once it is known.
    at: Option<usize>,
    /// Positions of the tokens that are computed, once they are known.
    chosen: Vec<i64>,
    stage: Stage,
    /// Tokens of this stage that are done.
    done: usize,
    /// What this stage gave for them.
    rows: Vec<Tensor>,
}

struct Document {
    packet: Rc<PacketKv>,
    /// Its tokens among those of all documents.
    tokens: Range<usize>,
}

enum Stage {
    /// Layer 0, on all tokens.
    First,
    /// Keys and values of layer 1, from the stream `[N, d]`.
    Score(Tensor),
    /// A layer from 1 on, on the chosen tokens, from their stream `[n, d]`.
    Chosen(usize, Tensor),
    Done,
}

impl Blending {
    /// Documents with the token ids that their packets were made of, in the order in which they are
    /// to stand; `share` of their tokens, from 0 to 1, is computed.
    ///
    /// # Errors
    /// A share out of its bounds, or a packet that has other tokens than its document: soft ones.
    pub fn new(documents: Vec<(Vec<u32>, Rc<PacketKv>)>, share: f64) -> Result<Self> {
        let mut ids = Vec::new();
        let mut parts = Vec::with_capacity(documents.len());
        for (own, packet) in documents {
            let tokens = packet.shape().tokens;
            if own.len() != tokens {
                return Err(Error::Invalid(format!(
                    "a packet of {tokens} tokens can't be blended with a document of {}; blend packets without soft \
                     tokens",
                    own.len()
                )));
            }
            let start = ids.len();
            ids.extend(own);
            parts.push(Document {
                packet,
                tokens: start..ids.len(),
            });
        }
        Ok(Self {
            computed: Self::computed(ids.len(), share)?,
            documents: parts,
            ids,
            at: None,
            chosen: Vec::new(),
            stage: Stage::First,
            done: 0,
            rows: Vec::new(),
        })
    }

    /// How many of `tokens` are computed where the share is `share`.
    ///
    /// # Errors
    /// A share that is not between 0 and 1.
    pub fn computed(tokens: usize, share: f64) -> Result<usize> {
        if !(0.0..=1.0).contains(&share) {
            return Err(Error::Invalid(format!(
                "a share of {share} can't be computed; give one from 0 to 1"
            )));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and a number of tokens"
        )]
        let computed = (tokens as f64 * share).round() as usize;
        Ok(computed.min(tokens))
    }

    /// Positions of the tokens that are computed in all layers; none before they are chosen.
    #[must_use]
    pub fn chosen(&self) -> &[i64] {
        &self.chosen
    }

    /// Goes on, computing about as much as a prefill of `chunk` tokens does; true once the
    /// documents are in the context. The context must not change between two steps.
    ///
    /// # Errors
    /// A packet of another model, a context grown too long or changed meanwhile, a model of fewer
    /// than 2 layers, or libtorch's.
    pub fn step(&mut self, model: &Transformer, kv: &mut SequenceKv, chunk: usize) -> Result<bool> {
        let _guard = NoGrad::new();
        let at = self.begin(model, kv)?;
        let chunk = chunk.max(1);
        let mut budget = chunk.saturating_mul(model.blocks.len());
        while budget > 0 {
            let spent = match &self.stage {
                Stage::First => self.first(model, kv, at, chunk)?,
                Stage::Score(x) => {
                    let x = x.shallow_clone();
                    self.score(model, kv, (&x, at), chunk)?
                }
                Stage::Chosen(layer, _) if *layer == model.blocks.len() => {
                    self.stage = Stage::Done;
                    kv.advance(self.ids.len());
                    break;
                }
                Stage::Chosen(layer, x) => {
                    let (layer, x) = (*layer, x.shallow_clone());
                    self.deepen(model, kv, (layer, &x, at), chunk)?
                }
                Stage::Done => break,
            };
            budget = budget.saturating_sub(spent.max(1));
        }
        Ok(matches!(self.stage, Stage::Done))
    }

    /// Position of the first token, all checks passed.
    fn begin(&mut self, model: &Transformer, kv: &mut SequenceKv) -> Result<usize> {
        if let Some(at) = self.at {
            if kv.len() != at && !matches!(self.stage, Stage::Done) {
                return Err(Error::Invalid(
                    "the context has changed while documents were blended into it".to_owned(),
                ));
            }
            return Ok(at);
        }
        if model.blocks.len() <= SCORED {
            return Err(Error::Invalid(format!(
                "blending needs a model of more than {SCORED} layers"
            )));
        }
        for document in &self.documents {
            let shape = document.packet.shape();
            kv.check_packet(shape, &(0..shape.tokens))?;
        }
        model.check_ids(&self.ids)?;
        kv.make_room(self.ids.len())?;
        self.at = Some(kv.len());
        if self.ids.is_empty() {
            self.stage = Stage::Done;
        }
        Ok(kv.len())
    }

    /// Layer 0 on the next tokens.
    fn first(
        &mut self,
        model: &Transformer,
        kv: &mut SequenceKv,
        at: usize,
        chunk: usize,
    ) -> Result<usize> {
        let run = self.done..(self.done + chunk).min(self.ids.len());
        let ids = self.ids.get(run.clone()).unwrap_or_default();
        let x = model.for_run(&model.embed(&id_tensor(ids, model.device)?)?)?;
        let block = model.block(0)?;
        let angles = model
            .rope(block)
            .run(at + run.start, run.len(), &kv.anchors())?;
        let mut runs = [Run {
            tokens: run.len(),
            angles: &angles,
            kv: kv.layer(0, run.start)?,
        }];
        self.rows.push(block.forward(&x, &mut runs)?);
        self.done = run.end;
        if self.done == self.ids.len() {
            self.stage = Stage::Score(self.collect()?);
        }
        Ok(run.len())
    }

    /// Keys and values of layer 1 of the next tokens, and how far they are from the packets'.
    fn score(
        &mut self,
        model: &Transformer,
        kv: &mut SequenceKv,
        (x, at): (&Tensor, usize),
        chunk: usize,
    ) -> Result<usize> {
        let run = self.done..(self.done + chunk).min(self.ids.len());
        let rows = model.for_run(&x.f_narrow(0, int(run.start), int(run.len()))?)?;
        let block = model.block(SCORED)?;
        let angles = model.rope(block).run(at + run.start, run.len(), &[])?;
        let (keys, values) = block.keys_values(&rows, &angles)?;
        let mut deviation = Vec::new();
        for document in &self.documents {
            let part = overlap(&document.tokens, &run);
            if part.is_empty() {
                continue;
            }
            let (old_keys, old_values) = document.placed(model, SCORED, &part, at)?;
            let (from, count) = (int(part.start - run.start), int(part.len()));
            let apart = |new: &Tensor, old: &Tensor| -> Result<Tensor> {
                let new = new.f_narrow(1, from, count)?.f_to_kind(Kind::Float)?;
                let apart = new.f_sub(old)?.f_square()?;
                Ok(apart.f_sum_dim_intlist([0, 2].as_slice(), false, Kind::Float)?)
            };
            let apart = apart(&keys, &old_keys)?.f_add(&apart(&values, &old_values)?)?;
            deviation.push(apart);
        }
        let mut layer = kv.layer(SCORED, run.start)?;
        layer.append(&keys, &values)?;
        self.rows.push(Tensor::f_cat(&deviation, 0)?);
        self.done = run.end;
        if self.done == self.ids.len() {
            let scores = self.collect()?;
            let (_, chosen) = scores.f_topk(int(self.computed), 0, true, false)?;
            let (chosen, _) = chosen.f_sort(0, false)?;
            self.chosen = Vec::try_from(chosen.f_add_scalar(int(at))?)?;
            self.stage = Stage::Chosen(SCORED, x.f_index_select(0, &chosen)?);
        }
        Ok(run.len())
    }

    /// The next of the chosen tokens in their layer.
    fn deepen(
        &mut self,
        model: &Transformer,
        kv: &mut SequenceKv,
        (index, x, at): (usize, &Tensor, usize),
        chunk: usize,
    ) -> Result<usize> {
        if self.done == 0 && index > SCORED {
            self.lay(model, kv, index, at)?;
        }
        let run = self.done..(self.done + chunk).min(self.chosen.len());
        let places = self.chosen.get(run.clone()).unwrap_or_default();
        if places.is_empty() {
            self.stage = Stage::Chosen(index + 1, x.shallow_clone());
            return Ok(0);
        }
        let block = model.block(index)?;
        let angles = model.rope(block).scattered(places, &kv.anchors())?;
        let rows = model.for_run(&x.f_narrow(0, int(run.start), int(run.len()))?)?;
        let layer = kv.layer(index, 0)?;
        let rows = block.forward_scattered(&rows, &angles, &layer, (places, self.ids.len()))?;
        self.rows.push(rows);
        self.done = run.end;
        if self.done == self.chosen.len() {
            self.stage = Stage::Chosen(index + 1, self.collect()?);
        }
        Ok(run.len())
    }

    /// Lays the packets' KV of one layer behind the tail, each at its place.
    fn lay(&self, model: &Transformer, kv: &mut SequenceKv, index: usize, at: usize) -> Result<()> {
        for document in &self.documents {
            let start = document.tokens.start;
            let (keys, values) = document.placed(model, index, &document.tokens, at)?;
            let mut layer = kv.layer(index, start)?;
            layer.append(&keys, &values)?;
        }
        Ok(())
    }

    /// What the stage gave for all its tokens; the next one begins with none.
    fn collect(&mut self) -> Result<Tensor> {
        self.done = 0;
        Ok(Tensor::f_cat(&std::mem::take(&mut self.rows), 0)?)
    }
}

impl Document {
    /// Keys and values of some `tokens` (counted over all documents) of one layer at their places;
    /// the first document's first token stands at position `at`.
    fn placed(
        &self,
        model: &Transformer,
        layer: usize,
        tokens: &Range<usize>,
        at: usize,
    ) -> Result<(Tensor, Tensor)> {
        let start = self.tokens.start;
        let own = tokens.start - start..tokens.end - start;
        model.placed(&self.packet, layer, own, at + start)
    }
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}
