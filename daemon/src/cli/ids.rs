//! Ids as people type them: the whole, or an unambiguous beginning.

use super::error::{Error, Result};
use crate::digest::{LEAST_DIGITS, Unclear, beginning};

/// Hex digits of a whole id.
pub(crate) const ID_DIGITS: usize = 64;

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
    let found = beginning(given, ids, |id| (*id).to_owned());
    found.map(str::to_owned).map_err(|unclear| match unclear {
        Unclear::NoId => Error::refused(
            format!("`{given}` is no {what} id: at least {LEAST_DIGITS} hex digits are needed"),
            hint(),
        ),
        Unclear::Unknown => Error::refused(format!("there is no {what} {given}"), hint()),
        Unclear::Several => Error::refused(
            format!("more than one {what} begins with {given}"),
            "give more digits",
        ),
    })
}
