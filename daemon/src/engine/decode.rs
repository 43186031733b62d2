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

/// Computes the next token of those sequences at `places` that are in the middle of an answer; the
/// others' places come back in the second list.
pub(crate) fn step(
    sequences: &mut [Sequence],
    places: &[usize],
    (model, tokenizer, metrics): (&Transformer, &Tokenizer, &Metrics),
) -> (Vec<Stepped>, Vec<usize>) {
    let mut others = Vec::new();
    let mut batch = Vec::new();
    for (place, sequence) in sequences.iter_mut().enumerate() {
        if !places.contains(&place) {
            continue;
        }
        match sequence.last_token() {
            Some(id) => batch.push((place, id, sequence)),
            None => others.push(place),
        }
    }
    let mut stepped = Vec::with_capacity(batch.len());
    for batch in batch.chunks_mut(limits::DECODED_TOGETHER) {
        let together = guard(|| logits(model, batch));
        metrics.batch.observe(batch.len() as f64);
        for (row, (place, id, sequence)) in (0..).zip(batch) {
            let span = sequence.ticket.span.clone();
            let _span = span.enter();
            let result = guard(|| {
                let row = match &together {
                    Ok(logits) => logits.f_select(0, row)?,
                    // Somebody's fault, maybe this one's.
                    Err(_) => alone(model, *id, sequence.kv())?,
                };
                sequence.take(tokenizer, &row, metrics)
            });
            stepped.push((*place, result));
        }
    }
    (stepped, others)
}

/// The logits behind each sequence's token, `[sequences, V]`.
fn logits(model: &Transformer, batch: &mut [(usize, u32, &mut Sequence)]) -> Result<Tensor> {
    let ids: Vec<u32> = batch.iter().map(|(_, id, _)| *id).collect();
    let mut kvs: Vec<&mut SequenceKv> = batch
        .iter_mut()
        .map(|(_, _, sequence)| sequence.kv())
        .collect();
    let hidden = model.decode(&ids, &mut kvs)?;
    Ok(model.decode_logits(&hidden)?)
}

fn alone(model: &Transformer, id: u32, kv: &mut SequenceKv) -> Result<Tensor> {
    let hidden = model.decode(&[id], &mut [kv])?;
    let logits = model.decode_logits(&hidden)?;
    logits.f_select(0, 0).map_err(Error::from)
}
