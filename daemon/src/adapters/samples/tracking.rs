//! Variable tracking: a chain of assignments across documents; the question asks for all variables
//! that hold a value (RULER, Hsieh et al. 2024).

use super::filler::Filler;
use super::words::VARIABLES;
use super::{Dice, Sample, Split, Suite};

/// Makes chains of assignments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tracking {
    /// Documents, 1 to 16.
    pub documents: usize,
    /// Assignments from variable to variable behind the first one, 0 to 3.
    pub hops: usize,
    /// Sentences of prose in each document.
    pub sentences: usize,
}

impl Tracking {
    /// One sample: one chain that is asked for, and a second one beside it.
    #[must_use]
    pub fn sample(&self, split: Split, seed: u64) -> Sample {
        let mut dice = Dice::new(Suite::Tracking, split, seed);
        let length = self.hops.min(3) + 1;
        let names = dice.several(&split.share(VARIABLES), 2 * length);
        let (asked, other) = names.split_at(names.len().min(length));
        let value = dice.number(10_000, 99_999);
        let second = 10_000 + (value - 10_000 + dice.number(1, 80_000)) % 90_000;
        let count = self.documents.clamp(1, 16);
        let mut parts: Vec<Vec<String>> = vec![Vec::new(); count];
        for (chain, value) in [(asked, value), (other, second)] {
            // Assignments stand in the order of the documents.
            let mut places: Vec<usize> = chain.iter().map(|_| dice.number(0, count - 1)).collect();
            places.sort_unstable();
            let before = std::iter::once(None).chain(chain.iter().map(Some));
            for ((place, name), before) in places.into_iter().zip(chain).zip(before) {
                let held = before.map_or_else(|| value.to_string(), |name| format!("VAR {name}"));
                if let Some(part) = parts.get_mut(place) {
                    part.push(format!("VAR {name} = {held}."));
                }
            }
        }
        let documents = parts
            .into_iter()
            .map(|part| spread(&mut dice, split, part, self.sentences.min(200)))
            .collect();
        Sample {
            suite: Suite::Tracking,
            documents,
            question: format!(
                "Which variables are assigned the value {value} in the documents, directly or through \
                 another variable? Answer with their names only, separated by commas."
            ),
            answer: Some(asked.join(", ")),
        }
    }
}

/// Prose with the assignments between its sentences, in their order.
fn spread(dice: &mut Dice, split: Split, part: Vec<String>, sentences: usize) -> String {
    let filler = Filler::new(dice, split);
    let mut text: Vec<(usize, String)> = (0..sentences)
        .map(|at| (at, filler.sentence(dice)))
        .collect();
    let mut places: Vec<usize> = part.iter().map(|_| dice.number(0, sentences)).collect();
    places.sort_unstable();
    text.extend(places.into_iter().zip(part));
    // The sort is stable: what shares a place stays in its order.
    text.sort_by_key(|(place, _)| *place);
    let text: Vec<String> = text.into_iter().map(|(_, sentence)| sentence).collect();
    text.join(" ")
}
