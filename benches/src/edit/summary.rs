//! From each record's marks before and after to the figures of the printed line.

use serde_json::{Map, Value, json};

use super::meter::{Marks, Score};
use super::records::Record;

/// Records are compared with themselves before any edit.
pub(crate) struct Summary<'a> {
    pub(crate) before: &'a [Marks],
    pub(crate) after: &'a [Marks],
}

impl Summary<'_> {
    pub(crate) fn into_map(self) -> Map<String, Value> {
        let pairs = || self.before.iter().zip(self.after);
        let new_wins = |[new, truth]: &[Score; 2]| new.nll < truth.nll;
        let truth_wins = |[new, truth]: &[Score; 2]| truth.nll < new.nll;
        let efficacy = share(pairs().map(|(_, now)| new_wins(&now.prompt)));
        let paraphrase = share(pairs().map(|(_, now)| new_wins(&now.paraphrase)));
        let locality = share(pairs().map(|(_, now)| truth_wins(&now.neighbour)));
        let lift = pairs()
            .filter(|(then, _)| !new_wins(&then.paraphrase))
            .map(|(_, now)| new_wins(&now.paraphrase));
        let kept = pairs()
            .filter(|(then, _)| truth_wins(&then.neighbour))
            .map(|(_, now)| truth_wins(&now.neighbour));
        let score = match (efficacy, paraphrase, locality) {
            (Some(e), Some(p), Some(l)) if e * p * l > 0.0 => {
                Some(3.0 / (1.0 / e + 1.0 / p + 1.0 / l))
            }
            (Some(_), Some(_), Some(_)) => Some(0.0),
            _ => None,
        };
        let same_argmax =
            pairs().map(|(then, now)| then.neighbour[1].first == now.neighbour[1].first);
        let probability = self
            .after
            .iter()
            .map(|now| (-now.prompt[0].nll).exp())
            .sum::<f64>();
        let line = json!({
            "efficacy": efficacy,
            "paraphrase": paraphrase,
            "paraphrase_lift": share(lift.collect::<Vec<_>>().into_iter()),
            "locality": locality,
            "locality_kept": share(kept.collect::<Vec<_>>().into_iter()),
            "score": score,
            "efficacy_top1": share(pairs().map(|(_, now)| now.prompt[0].top1)),
            "paraphrase_top1": share(pairs().map(|(_, now)| now.paraphrase[0].top1)),
            "locality_argmax_kept": share(same_argmax),
            "target_probability": probability / self.after.len() as f64,
        });
        match line {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }
}

/// One line of JSON for each record: who wins at each of its three prompts, before and after.
pub(crate) fn details(records: &[Record], before: &[Marks], after: &[Marks]) -> String {
    let ahead = |[new, truth]: &[Score; 2]| truth.nll - new.nll;
    let both = records.iter().zip(before.iter().zip(after));
    let lines = both.map(|(record, (then, now))| {
        let line = json!({
            "prompt": record.prompt, "target": record.target_new,
            "efficacy": [ahead(&then.prompt), ahead(&now.prompt)],
            "paraphrase": [ahead(&then.paraphrase), ahead(&now.paraphrase)],
            "locality": [-ahead(&then.neighbour), -ahead(&now.neighbour)],
        });
        format!("{line}\n")
    });
    lines.collect()
}

/// The share of hits; none of none.
pub(crate) fn share(hits: impl ExactSizeIterator<Item = bool>) -> Option<f64> {
    let all = hits.len();
    (all > 0).then(|| hits.filter(|hit| *hit).count() as f64 / all as f64)
}
