//! What the demo knows: the rules of a hospital that does not exist, and a question about them.
//!
//! The texts lie in `demo/documents` and are part of the binary, so that the demo runs anywhere.

/// Name and text of each document.
pub(crate) const DOCUMENTS: [(&str, &str); 10] = [
    (
        "visiting",
        include_str!("../../../../demo/documents/01-visiting.txt"),
    ),
    (
        "wristbands",
        include_str!("../../../../demo/documents/02-wristbands.txt"),
    ),
    (
        "medicine-keys",
        include_str!("../../../../demo/documents/03-medicine-keys.txt"),
    ),
    (
        "night-shift",
        include_str!("../../../../demo/documents/04-night-shift.txt"),
    ),
    (
        "kitchen",
        include_str!("../../../../demo/documents/05-kitchen.txt"),
    ),
    (
        "pharmacy",
        include_str!("../../../../demo/documents/06-pharmacy.txt"),
    ),
    (
        "lifts-and-doors",
        include_str!("../../../../demo/documents/07-lifts-and-doors.txt"),
    ),
    (
        "lost-property",
        include_str!("../../../../demo/documents/08-lost-property.txt"),
    ),
    (
        "hand-washing",
        include_str!("../../../../demo/documents/09-hand-washing.txt"),
    ),
    (
        "discharge",
        include_str!("../../../../demo/documents/10-discharge.txt"),
    ),
];

/// Tokens that the documents have at least, in all, with any tokenizer.
pub(crate) const LEAST_TOKENS: u64 = 2_000;

/// The question that is answered three ways.
pub(crate) const QUESTION: &str = "When is the main door locked?";

/// What the right answer contains.
pub(crate) const ANSWER: &str = "20:25";
