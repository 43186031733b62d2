//! Biography: invented people with six attributes, a document a person; the question asks one
//! attribute of one of them (KV Packet's suite of that name).

use super::words::{CITIES, EMPLOYERS, FIRST_NAMES, LAST_NAMES, MAJORS, MONTHS, UNIVERSITIES};
use super::{Dice, Sample, Split, Suite};

/// Makes biographies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Biography {
    /// People, and so documents; 1 to 12.
    pub documents: usize,
}

/// What is told of a person, in the order of [`ATTRIBUTES`].
struct Person {
    name: String,
    values: [String; 6],
}

/// One attribute: how it is asked, and at least five ways to tell it. `{n}` is the name, `{v}` the
/// value.
struct Attribute {
    questions: &'static [&'static str],
    sentences: &'static [&'static str],
}

const ATTRIBUTES: [Attribute; 6] = [
    Attribute {
        questions: &[
            "What is the birth date of {n}? Answer with the date only.",
            "When was {n} born? Give only the date.",
            "On which day was {n} born? Reply with the date and nothing else.",
        ],
        sentences: &[
            "{n} was born on {v}.",
            "{n} came into the world on {v}.",
            "The birth date of {n} is {v}.",
            "{n}'s birthday is {v}.",
            "On {v}, {n} was born.",
            "{n} celebrates the day of birth, {v}, every year.",
        ],
    },
    Attribute {
        questions: &[
            "In which city was {n} born? Answer with the city only.",
            "What is the birth place of {n}? Give only the name of the city.",
            "Where was {n} born? Reply with the city and nothing else.",
        ],
        sentences: &[
            "{n} was born in {v}.",
            "The birth place of {n} is {v}.",
            "{n} is a native of {v}.",
            "{v} is the city where {n} was born.",
            "{n} hails from {v} by birth.",
            "{n} first saw the light of day in {v}.",
        ],
    },
    Attribute {
        questions: &[
            "In which city does {n} live now? Answer with the city only.",
            "What is the current city of {n}? Give only the name of the city.",
            "Where does {n} live today? Reply with the city and nothing else.",
        ],
        sentences: &[
            "{n} currently lives in {v}.",
            "The current home of {n} is in {v}.",
            "{n} now resides in {v}.",
            "These days {n} lives in {v}.",
            "{n} has settled in {v} and lives there now.",
            "At present {n} makes a home in {v}.",
        ],
    },
    Attribute {
        questions: &[
            "Which university did {n} attend? Answer with its name only.",
            "Where did {n} study? Give only the name of the university.",
            "What is the university of {n}? Reply with its name and nothing else.",
        ],
        sentences: &[
            "{n} studied at {v}.",
            "{n} graduated from {v}.",
            "{n} received a degree from {v}.",
            "{n} was a student of {v}.",
            "The university that {n} attended is {v}.",
            "{n} spent the years of study at {v}.",
        ],
    },
    Attribute {
        questions: &[
            "What did {n} study? Answer with the subject only.",
            "What was the major of {n}? Give only the subject.",
            "In which subject did {n} take a degree? Reply with the subject and nothing else.",
        ],
        sentences: &[
            "{n} majored in {v}.",
            "The major of {n} was {v}.",
            "{n} took a degree in {v}.",
            "The subject that {n} studied was {v}.",
            "{n} chose {v} as a major.",
            "{n} specialized in {v}.",
        ],
    },
    Attribute {
        questions: &[
            "For which company does {n} work? Answer with its name only.",
            "Who employs {n}? Give only the name of the employer.",
            "What is the employer of {n}? Reply with its name and nothing else.",
        ],
        sentences: &[
            "{n} works for {v}.",
            "The employer of {n} is {v}.",
            "{n} is employed by {v}.",
            "{n} has a job at {v}.",
            "{n} earns a living at {v}.",
            "{n} is on the staff of {v}.",
        ],
    },
];

impl Biography {
    /// One sample.
    #[must_use]
    pub fn sample(&self, split: Split, seed: u64) -> Sample {
        super::first(Suite::Biography, self.samples(split, seed, 1))
    }

    /// Several about the same people; the first is [`Self::sample`]'s, and none is asked twice.
    #[must_use]
    pub fn samples(&self, split: Split, seed: u64, count: usize) -> Vec<Sample> {
        let mut dice = Dice::new(Suite::Biography, split, seed);
        let people = people(&mut dice, split, self.documents.clamp(1, 12));
        let right = dice.number(0, people.len() - 1);
        let asked = dice.number(0, ATTRIBUTES.len() - 1);
        let documents: Vec<String> = people
            .iter()
            .map(|person| {
                let told = ATTRIBUTES.iter().zip(&person.values);
                let mut sentences: Vec<String> = told
                    .map(|(attribute, value)| {
                        fill(dice.pick(attribute.sentences), &person.name, value)
                    })
                    .collect();
                dice.shuffle(&mut sentences);
                sentences.join(" ")
            })
            .collect();
        let every =
            (0..people.len()).flat_map(|one| (0..ATTRIBUTES.len()).map(move |at| (one, at)));
        let mut others: Vec<_> = every.filter(|&pair| pair != (right, asked)).collect();
        let ask = |(right, asked): (usize, usize), dice: &mut Dice| {
            let person = people.get(right);
            let questions = ATTRIBUTES.get(asked).map_or(&[][..], |one| one.questions);
            let name = person.map_or("", |person| &person.name);
            Sample {
                suite: Suite::Biography,
                documents: documents.clone(),
                question: fill(dice.pick(questions), name, ""),
                answer: person.and_then(|person| person.values.get(asked).cloned()),
            }
        };
        let mut samples = vec![ask((right, asked), &mut dice)];
        dice.shuffle(&mut others);
        let more = others.into_iter().take(count.saturating_sub(1));
        samples.extend(more.map(|pair| ask(pair, &mut dice)));
        samples
    }
}

/// People with different first and last names.
fn people(dice: &mut Dice, split: Split, count: usize) -> Vec<Person> {
    let first = dice.several(&split.share(FIRST_NAMES), count);
    let last = dice.several(&split.share(LAST_NAMES), count);
    let cities = split.share(CITIES);
    let names = first.into_iter().zip(last);
    names
        .map(|(first, last)| {
            let born = format!(
                "{} {}, {}",
                dice.pick(MONTHS),
                dice.number(1, 28),
                dice.number(1931, 2004)
            );
            let homes = dice.several(&cities, 2);
            let city = |at: usize| homes.get(at).copied().unwrap_or_default().to_owned();
            let mut one = |list: &[&'static str]| dice.pick(&split.share(list)).to_owned();
            let values = [
                born,
                city(0),
                city(1),
                one(UNIVERSITIES),
                one(MAJORS),
                one(EMPLOYERS),
            ];
            Person {
                name: format!("{first} {last}"),
                values,
            }
        })
        .collect()
}

/// A template with name and value put in; a sentence begins with a capital.
fn fill(template: &str, name: &str, value: &str) -> String {
    let text = template.replace("{n}", name).replace("{v}", value);
    let mut characters = text.chars();
    let Some(first) = characters.next() else {
        return text;
    };
    first.to_uppercase().chain(characters).collect()
}
