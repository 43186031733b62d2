//! Stop strings: lets text through only once it cannot belong to one any more.
//!
//! Owns the text that is held back. Invariant: what was let through never contains a stop string
//! nor the beginning of one that later completed.

/// Text that may still turn out to be a stop string, and the strings.
#[derive(Debug)]
pub(crate) struct Stops {
    strings: Vec<String>,
    held: String,
}

impl Stops {
    pub(crate) fn new(strings: Vec<String>) -> Self {
        Self {
            strings,
            held: String::new(),
        }
    }

    /// Takes new text; gives what is certain, and whether a stop string was met right after it.
    pub(crate) fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        let met = self
            .strings
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()));
        if let Some(place) = met.min() {
            self.held.truncate(place);
            return (std::mem::take(&mut self.held), true);
        }
        let doubtful = self.held.split_off(self.held.len() - self.doubt());
        (std::mem::replace(&mut self.held, doubtful), false)
    }

    /// The text that is still held back; nothing more comes.
    pub(crate) fn rest(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end of the held text that a stop string could begin with.
    fn doubt(&self) -> usize {
        let longest = |stop: &String| {
            let most = stop.len().saturating_sub(1).min(self.held.len());
            let begins = |&len: &usize| {
                stop.is_char_boundary(len)
                    && stop
                        .get(..len)
                        .is_some_and(|head| self.held.ends_with(head))
            };
            (1..=most).rev().find(begins).unwrap_or(0)
        };
        self.strings.iter().map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::Stops;

    fn stops(strings: &[&str]) -> Stops {
        Stops::new(strings.iter().map(|&text| text.to_owned()).collect())
    }

    #[test]
    fn a_stop_string_across_tokens_never_shows() {
        let mut stops = stops(&["\n\nQ:"]);
        assert_eq!(stops.push("Paris."), ("Paris.".to_owned(), false));
        assert_eq!(stops.push("\n"), (String::new(), false));
        assert_eq!(stops.push("\nQ"), (String::new(), false));
        assert_eq!(stops.push(": next"), (String::new(), true));
    }

    #[test]
    fn held_text_that_is_no_stop_string_is_given_back() {
        let mut stops = stops(&["END"]);
        assert_eq!(stops.push("the E"), ("the ".to_owned(), false));
        assert_eq!(stops.push("N"), (String::new(), false));
        assert_eq!(stops.push("glish"), ("ENglish".to_owned(), false));
        assert_eq!(stops.push(" EN"), (" ".to_owned(), false));
        assert_eq!(stops.rest(), "EN");
    }

    #[test]
    fn the_earliest_of_several_stop_strings_counts() {
        let mut stops = stops(&["b", "ab"]);
        assert_eq!(stops.push("xab"), ("x".to_owned(), true));
    }

    #[test]
    fn characters_of_several_bytes_are_not_torn() {
        let mut stops = stops(&["é…"]);
        assert_eq!(stops.push("caf\u{e9}"), ("caf".to_owned(), false));
        assert_eq!(stops.push("s"), ("és".to_owned(), false));
    }
}
