//! The text that the second moment of the keys is measured on. Invariant: the digest is that of the text's bytes.

use std::borrow::Cow;

use crate::digest::Canonical;

/// A text and its identity.
#[derive(Debug, Clone)]
pub struct Corpus {
    text: Cow<'static, str>,
    digest: [u8; 32],
}

impl Corpus {
    /// The excerpt of Wikipedia that ships with the program; `data/README.md` says where it is from.
    #[must_use]
    pub fn shipped() -> Self {
        Self::from(Cow::Borrowed(include_str!("../data/corpus.txt")))
    }

    /// The text of a digest, if it ships or shipped once: what facts of an older ledger were solved with can be
    /// measured again on another machine.
    pub(crate) fn of_digest(digest: &[u8; 32]) -> Option<Self> {
        let first = Self::from(Cow::Borrowed(include_str!("../data/corpus-v1.txt")));
        let mut all = [Self::shipped(), first].into_iter();
        all.find(|corpus| corpus.digest == *digest)
    }

    /// A text of the caller's: the closer to what the model is used for, the better it protects.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self::from(Cow::Owned(text))
    }

    fn from(text: Cow<'static, str>) -> Self {
        let mut canonical = Canonical::new("addenda 2026-01 corpus");
        canonical.text(&text);
        let digest = canonical.finish();
        Self { text, digest }
    }

    /// BLAKE3 of the text.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The paragraphs, each with its line end.
    pub fn paragraphs(&self) -> impl Iterator<Item = &str> {
        self.text.split_inclusive('\n')
    }
}

/// The fixed text on which an edit's damage is measured; it shares no paragraph with [`Corpus::shipped`].
pub(crate) const FIXED_TEXT: &str = include_str!("../data/perplexity.txt");
