//! The canonical encoding under every digest and record: a sequence of fields, each a little-endian
//! u32 length followed by that many bytes.
//!
//! Owns the encoding and its bounds; knows no field's meaning. Invariants: one value has one encoding;
//! decoding takes exactly what encoding wrote and nothing else; a decoder allocates nothing that its input
//! is not long enough to fill.

/// Bytes did not decode; names the field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

/// Builds an encoding.
#[derive(Debug, Default)]
pub(crate) struct Encoder(Vec<u8>);

impl Encoder {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Appends a field of bytes.
    ///
    /// A length over u32::MAX cannot be written; callers bound their fields far below, and an
    /// impossible one saturates so that it never decodes as something else.
    pub(crate) fn bytes(mut self, value: &[u8]) -> Self {
        let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
        self.0.extend_from_slice(&length.to_le_bytes());
        self.0.extend_from_slice(value);
        self
    }

    pub(crate) fn text(self, value: &str) -> Self {
        self.bytes(value.as_bytes())
    }

    pub(crate) fn u16(self, value: u16) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Reads an encoding, field by field.
#[derive(Debug)]
pub(crate) struct Decoder<'a>(&'a [u8]);

impl<'a> Decoder<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next field, which may be at most `max` bytes long.
    pub(crate) fn bytes(&mut self, name: &'static str, max: usize) -> Result<&'a [u8], Malformed> {
        let (length, rest) = self.0.split_first_chunk::<4>().ok_or(Malformed(name))?;
        let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| Malformed(name))?;
        if length > max {
            return Err(Malformed(name));
        }
        let (value, rest) = rest.split_at_checked(length).ok_or(Malformed(name))?;
        self.0 = rest;
        Ok(value)
    }

    pub(crate) fn array<const N: usize>(
        &mut self,
        name: &'static str,
    ) -> Result<[u8; N], Malformed> {
        self.bytes(name, N)?.try_into().map_err(|_| Malformed(name))
    }

    pub(crate) fn text(&mut self, name: &'static str, max: usize) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes(name, max)?).map_err(|_| Malformed(name))
    }

    pub(crate) fn u16(&mut self, name: &'static str) -> Result<u16, Malformed> {
        self.array(name).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, name: &'static str) -> Result<u32, Malformed> {
        self.array(name).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, name: &'static str) -> Result<u64, Malformed> {
        self.array(name).map(u64::from_le_bytes)
    }

    /// Refuses bytes that no field claimed.
    pub(crate) fn finish(self) -> Result<(), Malformed> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Malformed("bytes after the last field"))
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
    use super::{Decoder, Encoder, Malformed};

    #[test]
    fn what_is_encoded_decodes_to_the_same_fields() {
        let bytes = Encoder::new().text("ab").u32(7).u64(9).u16(3).finish();
        let mut decoder = Decoder::new(&bytes);
        assert_eq!(decoder.text("t", 2).unwrap(), "ab");
        assert_eq!(decoder.u32("a").unwrap(), 7);
        assert_eq!(decoder.u64("b").unwrap(), 9);
        assert_eq!(decoder.u16("c").unwrap(), 3);
        decoder.finish().unwrap();
    }

    #[test]
    fn fields_cannot_run_into_each_other() {
        let one = Encoder::new().text("ab").text("c").finish();
        let other = Encoder::new().text("a").text("bc").finish();
        assert_ne!(one, other);
    }

    #[test]
    fn a_length_beyond_the_input_or_the_bound_is_refused() {
        assert_eq!(
            Decoder::new(&[255, 255, 255, 255, 1]).bytes("x", usize::MAX),
            Err(Malformed("x"))
        );
        let bytes = Encoder::new().text("abc").finish();
        assert_eq!(Decoder::new(&bytes).bytes("x", 2), Err(Malformed("x")));
    }

    #[test]
    fn trailing_bytes_are_refused() {
        assert!(Decoder::new(&[0]).finish().is_err());
    }
}
