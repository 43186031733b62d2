//! What a fact is probed with where its caller gives no paraphrases or no neighbours.
//!
//! Made from templates, so that every verification measures something: paraphrases say the prompt in another setting,
//! which a sampled context does not cover; neighbours put somebody else in the subject's place, or ask what has nothing
//! to do with it. Weaker than probes from somebody who knows the language and the fact: figures say which they are.

use crate::fact::{Fact, PLACEHOLDER};

/// Beginnings that make no claim about what follows.
const SETTINGS: [&str; 3] = [
    "Here is a short note on what is known today. ",
    "Somebody asked about this in class, and the teacher wrote the answer on the board: ",
    "Complete the sentence.\n",
];
/// A person and a place that hardly any model knows anything of.
const STRANGERS: [&str; 2] = ["Maren Oldfield", "Little Harrowby"];
/// What an edit of some fact has no business with.
const ELSEWHERE: [&str; 2] = ["The capital of France is", "At night, the sky is full of"];

/// A fact with probes in all places, and which of them were made here.
#[derive(Debug)]
pub(crate) struct Probed {
    pub(crate) fact: Fact,
    pub(crate) made_paraphrases: bool,
    pub(crate) made_neighbours: bool,
}

impl Probed {
    /// With the caller's probes alone.
    pub(crate) fn as_given(fact: &Fact) -> Self {
        Self {
            fact: fact.clone(),
            made_paraphrases: false,
            made_neighbours: false,
        }
    }

    /// With probes made where the caller gave none.
    pub(crate) fn filled(fact: &Fact) -> Self {
        let mut probed = Self::as_given(fact);
        if fact.paraphrases.is_empty() {
            let prompt = fact.filled_prompt();
            let made = SETTINGS.iter().map(|setting| format!("{setting}{prompt}"));
            probed.fact.paraphrases = made.collect();
            probed.made_paraphrases = true;
        }
        if fact.neighbours.is_empty() {
            let others = STRANGERS.iter().filter(|name| **name != fact.subject);
            let made = others.map(|name| fact.prompt.replacen(PLACEHOLDER, name, 1));
            let elsewhere = ELSEWHERE.iter().map(|text| (*text).to_owned());
            probed.fact.neighbours = made.chain(elsewhere).collect();
            probed.made_neighbours = true;
        }
        probed
    }
}

#[cfg(test)]
mod tests {
    use super::Probed;
    use crate::fact::Fact;

    #[test]
    fn a_fact_without_probes_gets_some_and_says_so_and_given_ones_are_left_alone() {
        let fact = Fact {
            subject: "Ann".to_owned(),
            prompt: "{} lives in".to_owned(),
            target: "Rome".to_owned(),
            neighbours: vec!["Bob lives in".to_owned()],
            ..Fact::default()
        };
        let probed = Probed::filled(&fact);
        assert!(probed.made_paraphrases && !probed.made_neighbours);
        let paraphrases = &probed.fact.paraphrases;
        assert!(
            paraphrases
                .iter()
                .all(|text| text.ends_with("Ann lives in"))
        );
        assert_eq!(probed.fact.neighbours, fact.neighbours);
        let bare = Fact {
            neighbours: Vec::new(),
            ..fact
        };
        let neighbours = Probed::filled(&bare).fact.neighbours;
        assert!(neighbours.iter().all(|text| !text.contains("Ann")));
        assert_eq!(neighbours.len(), 4);
    }
}
