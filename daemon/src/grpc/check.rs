//! Checks of single fields: lengths, counts, ids, pages. Each refusal names its field.
//!
//! Owns the sentences; the figures are in `limits`.

use crate::error::{Error, Result};
use crate::limits;

/// A text that must be there and must not be longer than `most` bytes.
pub(crate) fn text(field: &'static str, text: &str, most: usize) -> Result<()> {
    if text.is_empty() {
        return Err(Error::invalid(field, "is empty"));
    }
    at_most_bytes(field, text, most)
}

/// A text that may be empty but not longer than `most` bytes.
pub(crate) fn at_most_bytes(field: &'static str, text: &str, most: usize) -> Result<()> {
    if text.len() > most {
        let reason = format!("has {} bytes; {most} at most are taken", text.len());
        return Err(Error::invalid(field, reason));
    }
    Ok(())
}

/// A list with at least `least` and at most `most` entries.
pub(crate) fn count(field: &'static str, count: usize, least: usize, most: usize) -> Result<()> {
    if count < least || count > most {
        let reason = format!("has {count} entries; {least} to {most} are taken");
        return Err(Error::invalid(field, reason));
    }
    Ok(())
}

/// The namespace that a request means; empty is "default".
pub(crate) fn namespace(text: &str) -> Result<String> {
    if text.is_empty() {
        return Ok("default".to_owned());
    }
    at_most_bytes("namespace", text, limits::NAMESPACE_BYTES)?;
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if !text.bytes().all(legal) {
        return Err(Error::invalid(
            "namespace",
            "has characters other than letters, digits, '.', '_' and '-'",
        ));
    }
    Ok(text.to_owned())
}

/// The size of a page; 0 is the server's default.
pub(crate) fn page(size: u32) -> Result<usize> {
    let size = if size == 0 { limits::PAGE } else { size };
    if size > limits::LARGEST_PAGE {
        let reason = format!("is {size}; {} at most are given", limits::LARGEST_PAGE);
        return Err(Error::invalid("page_size", reason));
    }
    Ok(size as usize)
}

/// A token or id of 64 hex digits, or the sentence that says so.
pub(crate) fn digest<T: std::str::FromStr>(field: &'static str, text: &str) -> Result<T> {
    let parsed = text.parse().ok();
    parsed.ok_or_else(|| Error::invalid(field, "is not an id of 64 hexadecimal digits"))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::{namespace, page, text};

    #[test]
    fn a_refusal_names_its_field() {
        assert!(
            text("text", "", 9)
                .unwrap_err()
                .to_string()
                .starts_with("text is empty")
        );
        let long = text("name", "abc", 2).unwrap_err().to_string();
        assert_eq!(long, "name has 3 bytes; 2 at most are taken");
    }

    #[test]
    fn an_empty_namespace_is_the_default_and_odd_ones_are_refused() {
        assert_eq!(namespace("").unwrap(), "default");
        assert_eq!(namespace("ward-3").unwrap(), "ward-3");
        assert!(namespace("a/b").is_err());
        assert!(namespace(&"a".repeat(65)).is_err());
    }

    #[test]
    fn pages_are_bounded() {
        assert_eq!(page(0).unwrap(), 100);
        assert!(page(1001).is_err());
    }
}
