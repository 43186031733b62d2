//! One decode step of all sequences that have a next token, together.
//!
//! Owns the batch: whose tokens go into it, and whose share of the outcome is whose. A sequence that
//! can't go on ends alone: where the batch fails, each is computed by itself.

use addenda_model::{SequenceKv, Tokenizer, Transformer};
use tch::Tensor;

use crate::engine::scheduler::guard;
use crate::engine::sequence::{Outcome, Sequence};
use crate::error::{Error, Result};
use crate::limits;
use crate::metrics::Metrics;

/// How one sequence's step went: where it stands among the sequences, and an outcome if it was its last.
pub(crate) type Stepped = (usize, Result<Option<Outcome>>);

/// A token whose successor is wanted, and its context.
type Pending<'a> = (u32, &'a mut SequenceKv);

/// Computes the next token of those sequences at `places` that are in the middle of an answer; the
/// others' places come back in the second list.
pub(crate) fn step(
    sequences: &mut [Sequence],
    places: &[usize],
    (model, tokenizer, metrics): (&Transformer, &Tokenizer, &Metrics),
) -> (Vec<Stepped>, Vec<usize>) {
    let (mut owners, mut others) = (Vec::new(), Vec::new());
    let mut batch = Vec::new();
    for (place, sequence) in sequences.iter_mut().enumerate() {
        if !places.contains(&place) {
            continue;
        }
        let pending = sequence.pending();
        match pending.len() {
            0 => others.push(place),
            tokens => owners.push((place, tokens)),
        }
        batch.extend(pending);
    }
    let mut rows = Vec::with_capacity(batch.len());
    for batch in batch.chunks_mut(limits::DECODED_TOGETHER) {
        metrics.batch.observe(batch.len() as f64);
        rows.extend(computed(model, batch));
    }
    let mut rows = rows.into_iter();
    let stepped = owners.into_iter().map(|(place, tokens)| {
        let own: Vec<_> = rows.by_ref().take(tokens).collect();
        let result = guard(|| {
            let own = Tensor::f_stack(&own.into_iter().collect::<Result<Vec<_>>>()?, 0)?;
            let sequence = sequences.get_mut(place).ok_or(Error::EngineGone)?;
            let span = sequence.ticket.span.clone();
            let _span = span.enter();
            sequence.take(tokenizer, &own, metrics)
        });
        (place, result)
    });
    (stepped.collect(), others)
}

/// The logits `[V]` behind each token.
fn computed(model: &Transformer, batch: &mut [Pending<'_>]) -> Vec<Result<Tensor>> {
    let together = guard(|| logits(model, batch));
    let each = (0..).zip(batch).map(|(row, token)| {
        guard(|| match &together {
            Ok(logits) => Ok(logits.f_select(0, row)?),
            // Somebody's fault, maybe this one's.
            Err(_) => Ok(logits(model, std::slice::from_mut(token))?.f_select(0, 0)?),
        })
    });
    each.collect()
}

/// The logits behind the tokens, `[tokens, V]`.
fn logits(model: &Transformer, batch: &mut [Pending<'_>]) -> Result<Tensor> {
    let ids: Vec<u32> = batch.iter().map(|(id, _)| *id).collect();
    let mut kvs: Vec<&mut SequenceKv> = batch.iter_mut().map(|(_, kv)| &mut **kv).collect();
    let hidden = model.decode(&ids, &mut kvs)?;
    Ok(model.decode_logits(&hidden)?)
}
