//! English prose of a wanted number of tokens, made up from word lists and a seed.

use addenda_model::Tokenizer;

use crate::error::Result;
use crate::random::Random;

const SUBJECTS: [&str; 8] = [
    "The harbour master",
    "A retired teacher",
    "The night porter",
    "Our neighbour",
    "The surveyor",
    "An old gardener",
    "The ferry captain",
    "A young engineer",
];
const VERBS: [&str; 8] = [
    "repaired",
    "described",
    "carried",
    "measured",
    "remembered",
    "painted",
    "sold",
    "found",
];
const OBJECTS: [&str; 8] = [
    "the broken lantern",
    "a map of the coast",
    "three wooden chairs",
    "the garden wall",
    "a box of letters",
    "the tall clock",
    "an empty boat",
    "the school bell",
];
const PLACES: [&str; 8] = [
    "near the mill",
    "behind the station",
    "in the long meadow",
    "by the river",
    "at the market",
    "under the bridge",
    "on the hill",
    "beside the chapel",
];
const TIMES: [&str; 8] = [
    "before sunrise",
    "late in autumn",
    "after the storm",
    "on a quiet Monday",
    "last winter",
    "during the fair",
    "at noon",
    "when the rain stopped",
];

/// Text number `seed`, of exactly `tokens` tokens where the tokenizer allows it, of at most so many
/// otherwise.
pub(crate) fn prose(tokenizer: &Tokenizer, tokens: usize, seed: u64) -> Result<String> {
    let mut random = Random::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut pick = |words: &[&'static str; 8]| random.pick(words).copied().unwrap_or_default();
    let mut text = String::new();
    // A sentence is at least ten tokens of any tokenizer here.
    for _ in 0..=tokens / 10 {
        let [who, what] = [pick(&SUBJECTS), pick(&VERBS)];
        let [whom, place, time] = [pick(&OBJECTS), pick(&PLACES), pick(&TIMES)];
        text.push_str(&format!("{who} {what} {whom} {place} {time}. "));
    }
    let encoding = tokenizer.encode(&text)?;
    let end = tokens
        .checked_sub(1)
        .and_then(|last| encoding.offsets.get(last));
    let end = end.map_or(text.len(), |&(_, end)| end);
    text.truncate(end);
    Ok(text)
}
