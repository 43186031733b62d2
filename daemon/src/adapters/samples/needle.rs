//! Needle: numbers under names, hidden in prose (RULER, Hsieh et al. 2024).

use std::ops::RangeInclusive;

use super::filler::Filler;
use super::words::{ADJECTIVES, NOUNS};
use super::{Dice, Sample, Split, Suite};

/// Makes haystacks with needles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needle {
    /// Documents, 1 to 64.
    pub documents: usize,
    /// Names that have numbers, 1 to 10; each stands in a document of its own where there are enough.
    pub keys: usize,
    /// Numbers of each name, 1 to 4, side by side.
    pub values: usize,
    /// Names that are asked for, 1 to `keys`.
    pub queries: usize,
    /// Length of each document, by the `count` that [`Needle::sample`] is given.
    pub length: RangeInclusive<usize>,
}

impl Needle {
    /// One name of `keys`, one number each: the usual test.
    #[must_use]
    pub fn single(documents: usize, keys: usize, length: RangeInclusive<usize>) -> Self {
        Self {
            documents,
            keys,
            values: 1,
            queries: 1,
            length,
        }
    }

    /// One sample; `count` says how long a text is (in tokens, words, ..).
    #[must_use]
    pub fn sample(&self, split: Split, seed: u64, count: &dyn Fn(&str) -> usize) -> Sample {
        super::first(Suite::Needle, self.samples(split, (seed, 1), count))
    }

    /// As many as `most` in the same haystacks, each about names of its own; the first is [`Self::sample`]'s.
    #[must_use]
    pub fn samples(
        &self,
        split: Split,
        (seed, most): (u64, usize),
        count: &dyn Fn(&str) -> usize,
    ) -> Vec<Sample> {
        let mut dice = Dice::new(Suite::Needle, split, seed);
        let keys = self.keys.clamp(1, 10);
        let adjectives = dice.several(&split.share(ADJECTIVES), keys);
        let nouns = dice.several(&split.share(NOUNS), keys);
        let names = adjectives.iter().zip(&nouns);
        let names: Vec<String> = names.map(|(one, other)| format!("{one}-{other}")).collect();
        let numbers: Vec<Vec<String>> = names
            .iter()
            .map(|_| {
                let one = |dice: &mut Dice| dice.number(1_000_000, 9_999_999).to_string();
                (0..self.values.clamp(1, 4))
                    .map(|_| one(&mut dice))
                    .collect()
            })
            .collect();
        let count_documents = self.documents.clamp(1, 64);
        let mut places: Vec<usize> = (0..count_documents).collect();
        dice.shuffle(&mut places);
        let length = Length {
            bounds: &self.length,
            count,
        };
        let documents: Vec<String> = (0..count_documents)
            .map(|place| {
                let own = places.iter().cycle().zip(names.iter().zip(&numbers));
                let own = own.filter(|(at, _)| **at == place);
                let needles = own.flat_map(|(_, (name, numbers))| {
                    numbers.iter().map(move |number| needle(name, number))
                });
                haystack(&mut dice, split, &length, needles.collect())
            })
            .collect();
        let asked = self.queries.clamp(1, keys);
        let all: Vec<(&String, &Vec<String>)> = names.iter().zip(&numbers).collect();
        let of = |named: &[(&String, &Vec<String>)]| {
            let answer = named
                .iter()
                .flat_map(|(_, numbers)| numbers.iter().cloned());
            Sample {
                suite: Suite::Needle,
                documents: documents.clone(),
                question: question(named),
                answer: Some(answer.collect::<Vec<_>>().join(", ")),
            }
        };
        all.chunks_exact(asked).take(most).map(of).collect()
    }
}

/// How long a document is to be, and how that is measured.
struct Length<'a> {
    bounds: &'a RangeInclusive<usize>,
    count: &'a dyn Fn(&str) -> usize,
}

fn needle(name: &str, number: &str) -> String {
    format!("One of the special magic numbers for {name} is: {number}.")
}

fn question(named: &[(&String, &Vec<String>)]) -> String {
    let names: Vec<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
    let several = named.len() > 1 || named.iter().any(|(_, numbers)| numbers.len() > 1);
    let names = names.join(", ");
    if several {
        format!(
            "What are all the special magic numbers for {names} mentioned in the documents? \
             Answer with the numbers only, separated by commas."
        )
    } else {
        format!(
            "What is the special magic number for {names} mentioned in the documents? \
             Answer with the number only."
        )
    }
}

/// Prose of a random length within bounds, with the needles at random places between its sentences.
fn haystack(dice: &mut Dice, split: Split, length: &Length<'_>, needles: Vec<String>) -> String {
    let wanted = dice.number(*length.bounds.start(), *length.bounds.end());
    let filler = Filler::new(dice, split);
    let joined = |sentences: &[String]| sentences.join(" ");
    let mut sentences = needles;
    let mut fixed = sentences.len();
    let mut so_far = (length.count)(&joined(&sentences));
    loop {
        let sentence = filler.sentence(dice);
        let longer = so_far + (length.count)(&format!(" {sentence}"));
        if longer > wanted && so_far >= *length.bounds.start() || longer > *length.bounds.end() {
            break;
        }
        so_far = longer;
        sentences.push(sentence);
    }
    // Each needle moves to a random place; one behind another keeps clear of those before it.
    while fixed > 0 {
        fixed -= 1;
        let to = dice.number(fixed, sentences.len().saturating_sub(1));
        if let Some(part) = sentences.get_mut(fixed..=to) {
            part.rotate_left(1);
        }
    }
    joined(&sentences)
}
