//! The user's own documents: some of them together, and a question that can be put about any text.
//! There is no label: the teacher's own answer is the target.

use super::{Dice, Sample, Split, Suite};

/// Makes questions about texts.
#[derive(Debug, Clone, Copy)]
pub struct Documents<'a> {
    /// The texts, dealt out among the splits where there are eight or more; else all are everybody's.
    pub texts: &'a [&'a str],
    /// Documents of a sample, 1 to 16.
    pub documents: usize,
}

impl Documents<'_> {
    /// One sample. Empty where there are no texts.
    #[must_use]
    pub fn sample(&self, split: Split, seed: u64) -> Sample {
        super::first(Suite::Documents, self.samples(split, seed, 1))
    }

    /// Several about the same documents; the first is [`Self::sample`]'s.
    #[must_use]
    pub fn samples(&self, split: Split, seed: u64, count: usize) -> Vec<Sample> {
        let mut dice = Dice::new(Suite::Documents, split, seed);
        let texts = if self.texts.len() < 8 {
            self.texts.to_vec()
        } else {
            split.share(self.texts)
        };
        let documents = dice.several(&texts, self.documents.clamp(1, 16));
        let documents: Vec<String> = documents
            .iter()
            .map(|text| text.trim().to_owned())
            .collect();
        let ask = |_| {
            let right = dice.number(0, documents.len().saturating_sub(1));
            let text = documents.get(right).map_or("", String::as_str);
            let question = question(&mut dice, text);
            Sample {
                suite: Suite::Documents,
                documents: documents.clone(),
                question,
                answer: None,
            }
        };
        (0..count).map(ask).collect()
    }
}

/// A question about a sentence of the text, or about the whole.
fn question(dice: &mut Dice, text: &str) -> String {
    let sentences: Vec<&str> = text
        .split_inclusive(['.', '!', '?', '\n'])
        .map(str::trim)
        .filter(|sentence| sentence.split_whitespace().count() >= 5)
        .collect();
    let sentence = dice.pick(&sentences);
    let words: Vec<&str> = sentence.split_whitespace().collect();
    let half = words.get(..words.len().div_ceil(2)).unwrap_or_default();
    let half = half.join(" ");
    let title: Vec<&str> = text.split_whitespace().take(8).collect();
    let title = title.join(" ");
    match dice.number(0, 3) {
        0 => format!("Complete this sentence as it stands in the documents: \"{half}\""),
        1 => format!("What do the documents say about this: \"{half}\"? Answer in one sentence."),
        2 => format!("Sum up in one sentence the document that begins with \"{title}\"."),
        _ => format!(
            "Is this what the documents say: \"{sentence}\"? Say what they say about it, shortly."
        ),
    }
}
