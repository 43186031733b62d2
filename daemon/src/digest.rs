//! A BLAKE3 digest as it travels through the daemon: 32 bytes inside, 64 hex digits outside; and what the beginning of
//! such digits stands for.

use std::fmt;

/// A weights revision, fingerprint or source digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Digest(pub(crate) [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Fewer digits than this would sooner or later mean two things.
pub(crate) const LEAST_DIGITS: usize = 4;

/// Why the beginning of an id stands for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unclear {
    /// Fewer than [`LEAST_DIGITS`], or something that is no hex digit.
    NoId,
    /// No id begins so.
    Unknown,
    /// More than one does.
    Several,
}

/// The one of `all` whose id, in lower case, begins with `given`.
///
/// # Errors
/// There is none, or it could be several.
pub(crate) fn beginning<T>(
    given: &str,
    all: impl IntoIterator<Item = T>,
    id: impl Fn(&T) -> String,
) -> Result<T, Unclear> {
    let lower = given.to_ascii_lowercase();
    if lower.len() < LEAST_DIGITS || !lower.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Unclear::NoId);
    }
    let mut fitting = all.into_iter().filter(|one| id(one).starts_with(&lower));
    match (fitting.next(), fitting.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err(Unclear::Unknown),
        (Some(_), Some(_)) => Err(Unclear::Several),
    }
}

#[cfg(test)]
mod tests {
    use super::{Unclear, beginning};

    #[test]
    fn only_an_unambiguous_beginning_of_four_digits_is_an_id() {
        let ids = ["abcd01", "abcd02", "ef0123"];
        let found = |given| beginning(given, ids, |id| (*id).to_owned());
        assert_eq!(found("EF01"), Ok("ef0123"));
        assert_eq!(found("abcd01"), Ok("abcd01"));
        assert_eq!(found("abcd"), Err(Unclear::Several));
        assert_eq!(found("0000"), Err(Unclear::Unknown));
        for no_id in ["", "ef0", "wxyz"] {
            assert_eq!(found(no_id), Err(Unclear::NoId), "{no_id}");
        }
    }
}
