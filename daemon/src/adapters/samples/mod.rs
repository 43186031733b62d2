//! Samples: documents and a question whose answer stands in them, made without any download.
//!
//! Owns the generators that adapters are trained and measured on. Never tokenises and never asks a
//! model. Invariants: the same split and seed give the same sample everywhere; samples of two splits
//! share no name, no key and no passage, so that what is measured was not trained on.

mod biography;
mod documents;
mod filler;
mod needle;
mod prose;
mod tracking;
mod words;

pub use biography::Biography;
pub use documents::Documents;
pub use needle::Needle;
pub use prose::Prose;
pub use tracking::Tracking;

use std::fmt;
use std::str::FromStr;

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Domain of a sample's random numbers; a new one makes all samples anew.
const CONTEXT: &str = "addenda 2026-11 samples v1";

/// Documents, and a question about them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Which generator made it.
    pub suite: Suite,
    /// The documents' texts, in the order in which they stand in the context.
    pub documents: Vec<String>,
    /// What the user says in a chat.
    pub question: String,
    /// The right answer, where there is one.
    pub answer: Option<String>,
}

/// The first of a generator's samples; one without documents where it gives none.
fn first(suite: Suite, samples: Vec<Sample>) -> Sample {
    samples.into_iter().next().unwrap_or(Sample {
        suite,
        documents: Vec::new(),
        question: String::new(),
        answer: None,
    })
}

/// A kind of sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Suite {
    /// Invented people and their attributes.
    Biography,
    /// Numbers hidden in prose (RULER's needles).
    Needle,
    /// Variables assigned from one another (RULER's variable tracking).
    Tracking,
    /// A passage of prose to be continued.
    Prose,
    /// The user's own documents.
    Documents,
}

impl Suite {
    /// Every kind, in order.
    pub const ALL: [Self; 5] = [
        Self::Biography,
        Self::Needle,
        Self::Tracking,
        Self::Prose,
        Self::Documents,
    ];

    /// Its name on the wire and the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Biography => "biography",
            Self::Needle => "needle",
            Self::Tracking => "tracking",
            Self::Prose => "prose",
            Self::Documents => "documents",
        }
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Suite {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|suite| suite.name() == text);
        known.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("\"{text}\" is no suite; there are {names}")
        })
    }
}

/// What samples are for. No two splits share names, keys or passages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Split {
    /// To learn from.
    Train,
    /// To decide when learning ends, and which state was best.
    Validation,
    /// To measure with, once all is decided.
    HeldOut,
}

impl Split {
    /// The part of a list that is this split's: of four entries, two to train, one each for the others.
    fn share<T: Copy>(self, list: &[T]) -> Vec<T> {
        let own = |place: usize| match place % 4 {
            0 | 1 => self == Self::Train,
            2 => self == Self::Validation,
            _ => self == Self::HeldOut,
        };
        let entries = list.iter().copied().enumerate();
        let entries = entries.filter(|(place, _)| own(*place));
        entries.map(|(_, entry)| entry).collect()
    }
}

/// The random numbers of one sample.
struct Dice(ChaCha8Rng);

impl Dice {
    fn new(suite: Suite, split: Split, seed: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(&[suite as u8, split as u8]);
        hasher.update(&seed.to_le_bytes());
        Self(ChaCha8Rng::from_seed(*hasher.finalize().as_bytes()))
    }

    /// One of `list`; empty for an empty list.
    fn pick<T: Copy + Default>(&mut self, list: &[T]) -> T {
        list.choose(&mut self.0).copied().unwrap_or_default()
    }

    /// `count` different ones of `list`, or all there are.
    fn several<T: Copy>(&mut self, list: &[T], count: usize) -> Vec<T> {
        list.choose_multiple(&mut self.0, count).copied().collect()
    }

    /// A number in `least ..= most`.
    fn number(&mut self, least: usize, most: usize) -> usize {
        self.0.random_range(least..=most.max(least))
    }

    fn shuffle<T>(&mut self, list: &mut [T]) {
        list.shuffle(&mut self.0);
    }
}
