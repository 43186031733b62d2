//! Prose: passages of encyclopaedic text, one of which is to be continued where it breaks off.
//! There is no label: the teacher's own continuation is the target.

use super::{Dice, Sample, Split, Suite};

/// Makes passages out of paragraphs.
#[derive(Debug, Clone, Copy)]
pub struct Prose<'a> {
    /// Paragraphs of text, dealt out among the splits.
    pub paragraphs: &'a [&'a str],
    /// Documents, 1 to 16.
    pub documents: usize,
}

impl Prose<'_> {
    /// One sample. Empty documents where there are too few paragraphs.
    #[must_use]
    pub fn sample(&self, split: Split, seed: u64) -> Sample {
        super::first(Suite::Prose, self.samples(split, seed, 1))
    }

    /// Several about the same documents; the first is [`Self::sample`]'s.
    #[must_use]
    pub fn samples(&self, split: Split, seed: u64, count: usize) -> Vec<Sample> {
        let mut dice = Dice::new(Suite::Prose, split, seed);
        let paragraphs = split.share(self.paragraphs);
        let documents = dice.several(&paragraphs, self.documents.clamp(1, 16));
        let documents: Vec<String> = documents
            .iter()
            .map(|text| text.trim().to_owned())
            .collect();
        let ask = |_| {
            let right = dice.number(0, documents.len().saturating_sub(1));
            let text = documents.get(right).map_or("", String::as_str);
            let words: Vec<&str> = text.split_whitespace().collect();
            // Eight words from somewhere in the first half.
            let from = dice.number(0, words.len().saturating_sub(8) / 2);
            let quoted = words.get(from..).unwrap_or_default();
            let quoted = quoted.get(..8).unwrap_or(quoted).join(" ");
            let question = match dice.number(0, 2) {
                0 => {
                    format!(
                        "One of the documents says: \"{quoted}\" How does it go on, word by word?"
                    )
                }
                1 => format!("Continue this passage as it stands in the documents: \"{quoted}\""),
                _ => format!(
                    "What do the documents say where it begins with \"{quoted}\"? Sum it up in one sentence."
                ),
            };
            Sample {
                suite: Suite::Prose,
                documents: documents.clone(),
                question,
                answer: None,
            }
        };
        (0..count).map(ask).collect()
    }
}
