//! Filler: plain prose without end that says nothing anybody asks about.
//!
//! Sentences from patterns and word lists; a document's sentences share a place and a person, so
//! that documents differ.

use super::{Dice, Split};

const PLACES: &[&str] = &[
    "the old harbour",
    "the valley",
    "the market square",
    "the northern road",
    "the mill",
    "the upper village",
    "the library",
    "the railway station",
    "the orchard",
    "the lighthouse",
    "the river bank",
    "the town hall",
    "the quarry",
    "the south gate",
    "the school house",
    "the post office",
];
const PEOPLE: &[&str] = &[
    "the gardener",
    "the ferryman",
    "the baker",
    "the schoolmaster",
    "the clerk",
    "the carpenter",
    "the doctor's sister",
    "the postman",
    "the watchmaker",
    "the innkeeper",
    "the miller",
    "the organist",
    "the fisherman",
    "the seamstress",
    "the surveyor",
    "the beekeeper",
];
const THINGS: &[&str] = &[
    "a basket of apples",
    "an old map",
    "a letter without a stamp",
    "a broken clock",
    "a pair of boots",
    "a bundle of firewood",
    "a jar of honey",
    "a coil of rope",
    "a blue umbrella",
    "a sack of flour",
    "a tin box",
    "a worn book",
    "a lamp",
    "a wooden bench",
    "a ladder",
    "a heavy coat",
];
const TIMES: &[&str] = &[
    "In the morning",
    "Towards evening",
    "On market days",
    "In late autumn",
    "After the rain",
    "Before sunrise",
    "During the holidays",
    "In the middle of the week",
    "When the wind turned",
    "At the end of the month",
    "Every second Sunday",
    "In a dry summer",
];
const WEATHER: &[&str] = &[
    "mist",
    "snow",
    "a light rain",
    "dust",
    "warm air",
    "the smell of hay",
    "the sound of bells",
    "a cold wind",
    "sunlight",
    "smoke",
];
const PATTERNS: &[&str] = &[
    "{t}, {p} walked to {l} and came back with {o}.",
    "{p} had known {l} since childhood and never tired of it.",
    "There was {w} over {l}, and nobody was in a hurry.",
    "{t}, {w} filled {l}.",
    "People said that {p} kept {o} near {l}, but few had seen it.",
    "{p} told the same story again, and everybody listened with patience.",
    "The path from {l} to the bridge is short, yet it takes longer in winter.",
    "{t}, children played at {l} until somebody called them home.",
    "{p} put down {o} and looked towards {l}.",
    "It is not known who built the wall beside {l}.",
    "{o} was found at {l}, and {p} took care of it.",
    "Most of the houses near {l} have green doors and low roofs.",
    "{p} does not like to speak before noon.",
    "{t}, the benches at {l} are taken early.",
    "A letter for {p} arrived late because of {w}.",
    "Nothing much changed at {l} in those years.",
    "{p} wanted to sell {o}, but then decided to keep it.",
    "The old people remember {w} and the songs that went with it.",
    "{t}, {p} sat at {l} and counted the boats.",
    "Visitors often ask the way to {l}, and {p} is glad to show it.",
];

/// Sentences about one place and its people.
pub(super) struct Filler {
    places: Vec<&'static str>,
    people: Vec<&'static str>,
    split: Split,
}

impl Filler {
    pub(super) fn new(dice: &mut Dice, split: Split) -> Self {
        Self {
            places: dice.several(&split.share(PLACES), 3),
            people: dice.several(&split.share(PEOPLE), 4),
            split,
        }
    }

    pub(super) fn sentence(&self, dice: &mut Dice) -> String {
        let text = dice
            .pick(PATTERNS)
            .replace("{t}", dice.pick(TIMES))
            .replace("{p}", dice.pick(&self.people))
            .replace("{l}", dice.pick(&self.places))
            .replace("{o}", dice.pick(&self.split.share(THINGS)))
            .replace("{w}", dice.pick(WEATHER));
        let mut characters = text.chars();
        match characters.next() {
            Some(first) => first.to_uppercase().chain(characters).collect(),
            None => text,
        }
    }
}
