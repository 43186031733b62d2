//! Ids as people type them: the whole, or an unambiguous beginning.

use super::error::{Error, Result};

/// Hex digits of a whole id.
pub(crate) const ID_DIGITS: usize = 64;

/// Fewer digits than this would sooner or later mean two things.
const LEAST_DIGITS: usize = 4;

/// The one id of `ids` that begins with `given`.
///
/// # Errors
/// When `given` is too short, fits none, or fits more than one.
pub(crate) fn resolve<'a>(
    what: &str,
    given: &str,
    ids: impl Iterator<Item = &'a str>,
) -> Result<String> {
    let hint = || format!("`addenda {what} list` shows ids");
    let lower = given.to_ascii_lowercase();
    if lower.len() < LEAST_DIGITS || !lower.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let sentence =
            format!("`{given}` is no {what} id: at least {LEAST_DIGITS} hex digits are needed");
        return Err(Error::refused(sentence, hint()));
    }
    let mut fitting = ids.filter(|id| id.starts_with(&lower));
    match (fitting.next(), fitting.next()) {
        (Some(id), None) => Ok(id.to_owned()),
        (None, _) => Err(Error::refused(
            format!("there is no {what} {given}"),
            hint(),
        )),
        (Some(_), Some(_)) => Err(Error::refused(
            format!("more than one {what} begins with {given}"),
            "give more digits",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::resolve;

    #[test]
    fn only_an_unambiguous_beginning_of_four_digits_is_an_id() {
        let ids = ["abcd01", "abcd02", "ef0123"];
        let found = |given| resolve("fact", given, ids.into_iter()).ok();
        assert_eq!(found("EF01"), Some("ef0123".to_owned()));
        assert_eq!(found("abcd01"), Some("abcd01".to_owned()));
        for refused in ["ef0", "abcd", "0000", "wxyz"] {
            assert_eq!(found(refused), None, "{refused}");
        }
    }
}
