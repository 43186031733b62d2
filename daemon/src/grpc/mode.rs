//! Which way a request's documents take into its context.
//!
//! Owns the choice and the reason given for it, and the bounds of each mode's settings. Never
//! measures: what is known of a mode's agreement with full prefill is brought by whoever asks.

use addenda_proto::addenda::v1::Mode;

use crate::error::{Error, Result};
use crate::limits;

/// The modes that `auto` may take, cheapest first.
const BY_COST: [Mode; 3] = [Mode::Packet, Mode::Link, Mode::Blend];

/// The modes by the names that people use.
pub(crate) const NAMES: [&str; 6] = ["auto", "full", "packet", "link", "blend", "preload"];

/// How a mode is run: which one, and its own setting.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Way {
    pub(crate) mode: Mode,
    /// Of `MODE_LINK`; none is the default.
    pub(crate) link_tokens: Option<u32>,
    /// Of `MODE_BLEND`; none is the default.
    pub(crate) blend_share: Option<f32>,
}

/// What a request says of modes, checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) way: Way,
    /// From 0 to 1; 0 leaves it to the server.
    pub(crate) min_agreement: f32,
}

/// What is known of a way: how well it agrees with full prefill.
#[derive(Debug, Clone)]
pub(crate) struct Certified {
    /// The share of tokens that it surely agrees on.
    pub(crate) agreement: f32,
    /// The certificate's id.
    pub(crate) certificate: String,
}

/// The way that a request goes.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    /// Its mode is never unspecified or auto.
    pub(crate) way: Way,
    /// Why the mode is not the one asked for; empty otherwise.
    pub(crate) reason: String,
    /// The certificate that it was chosen by; empty for none.
    pub(crate) certificate: String,
}

impl Way {
    /// Tokens of each document that `MODE_LINK` computes.
    pub(crate) fn link_tokens(&self) -> usize {
        self.link_tokens.unwrap_or(limits::DEFAULT_LINK_TOKENS) as usize
    }

    /// Share of the documents' tokens that `MODE_BLEND` computes, as it was asked for.
    pub(crate) fn share(&self) -> f32 {
        self.blend_share.unwrap_or(limits::DEFAULT_BLEND_SHARE)
    }

    /// The same as it was meant.
    pub(crate) fn blend_share(&self) -> f64 {
        // By way of its decimal form: 0.15 is meant, not what an f32 makes of it.
        let share = self.share();
        share.to_string().parse().unwrap_or(f64::from(share))
    }

    fn check(&self) -> Result<()> {
        if let Some(tokens) = self.link_tokens
            && tokens > limits::LINK_TOKENS
        {
            let reason = format!("is {tokens}; {} at most are taken", limits::LINK_TOKENS);
            return Err(Error::invalid("link_tokens", reason));
        }
        if let Some(share) = self.blend_share
            && !(0.0..=1.0).contains(&share)
        {
            return Err(Error::invalid(
                "blend_share",
                format!("is {share}, which is not between 0 and 1"),
            ));
        }
        Ok(())
    }
}

impl Wanted {
    /// Checks what the wire says.
    ///
    /// # Errors
    /// A field out of its bounds.
    pub(crate) fn new(
        mode: i32,
        link_tokens: Option<u32>,
        blend_share: Option<f32>,
        min_agreement: f32,
    ) -> Result<Self> {
        let mode = Mode::try_from(mode).map_err(|_| {
            Error::invalid(
                "mode",
                format!("is {mode}, which this daemon does not know"),
            )
        })?;
        if !(0.0..=1.0).contains(&min_agreement) {
            return Err(Error::invalid(
                "min_agreement",
                format!("is {min_agreement}, which is not between 0 and 1"),
            ));
        }
        Self {
            way: Way {
                mode,
                link_tokens,
                blend_share,
            },
            min_agreement,
        }
        .checked()
    }

    /// One way and no other.
    ///
    /// # Errors
    /// A setting out of its bounds.
    pub(crate) fn only(way: Way) -> Result<Self> {
        Self {
            way,
            min_agreement: 0.0,
        }
        .checked()
    }

    fn checked(self) -> Result<Self> {
        self.way.check()?;
        Ok(self)
    }

    /// The way that a request with so many documents goes. `bar` is the agreement that must be
    /// certified where the request leaves that to the server.
    pub(crate) fn choose(
        &self,
        documents: usize,
        bar: f32,
        certified: impl Fn(Way) -> Option<Certified>,
    ) -> Choice {
        let is_auto = matches!(self.way.mode, Mode::Auto | Mode::Unspecified);
        let chosen = |mode: Mode, reason: &str, certificate: String| Choice {
            way: Way { mode, ..self.way },
            reason: reason.to_owned(),
            certificate,
        };
        if documents == 0 {
            let as_asked = is_auto || self.way.mode == Mode::Full;
            let reason = if as_asked {
                ""
            } else {
                "there are no documents"
            };
            return chosen(Mode::Full, reason, String::new());
        }
        if !is_auto {
            return chosen(self.way.mode, "", String::new());
        }
        let bar = if self.min_agreement > 0.0 {
            self.min_agreement
        } else {
            bar
        };
        let mut best: Option<f32> = None;
        for mode in BY_COST {
            let Some(known) = certified(Way { mode, ..self.way }) else {
                continue;
            };
            if known.agreement >= bar {
                return chosen(mode, "", known.certificate);
            }
            best = Some(best.unwrap_or(0.0).max(known.agreement));
        }
        let reason = match best {
            None => "no packet mode has a certificate for what is served now; `addenda adapter certify` measures"
                .to_owned(),
            Some(best) => {
                format!("no packet mode is certified to agree by {bar}; the best by {best:.3}")
            }
        };
        chosen(Mode::Full, &reason, String::new())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use addenda_proto::addenda::v1::Mode;

    use super::{Certified, Wanted, Way};

    fn auto(min_agreement: f32) -> Wanted {
        Wanted::new(Mode::Auto.into(), None, None, min_agreement).unwrap()
    }

    fn certified(way: Way) -> Option<Certified> {
        let agreement = match way.mode {
            Mode::Packet => 0.9,
            Mode::Blend => 0.97,
            _ => return None,
        };
        Some(Certified {
            agreement,
            certificate: format!("{:?}", way.mode),
        })
    }

    #[test]
    fn auto_is_the_cheapest_mode_that_meets_the_bar_and_else_full() {
        let mode = |wanted: Wanted, documents| {
            let choice = wanted.choose(documents, 0.95, certified);
            (choice.way.mode, choice.certificate)
        };
        assert_eq!(mode(auto(0.9), 2), (Mode::Packet, "Packet".to_owned()));
        assert_eq!(mode(auto(0.0), 2), (Mode::Blend, "Blend".to_owned()));
        assert_eq!(mode(auto(0.99), 2), (Mode::Full, String::new()));
        assert_eq!(mode(auto(0.9), 0), (Mode::Full, String::new()));
        let why = auto(0.99).choose(1, 0.95, certified).reason;
        assert!(why.contains("0.970"), "{why}");
        let why = auto(0.0).choose(1, 0.95, |_| None).reason;
        assert!(why.contains("no packet mode has a certificate"), "{why}");
    }

    #[test]
    fn settings_out_of_bounds_are_refused_by_name() {
        let refused = |tokens, share, agreement| {
            let wanted = Wanted::new(Mode::Auto.into(), tokens, share, agreement);
            wanted.unwrap_err().to_string()
        };
        assert!(refused(Some(65_537), None, 0.0).starts_with("link_tokens is 65537"));
        assert!(refused(None, Some(1.01), 0.0).starts_with("blend_share is 1.01"));
        assert!(refused(None, Some(f32::NAN), 0.0).starts_with("blend_share"));
        assert!(refused(None, None, -0.5).starts_with("min_agreement"));
        assert!(Wanted::new(99, None, None, 0.0).is_err());
    }

    #[test]
    fn a_share_is_what_was_written() {
        let way = Way {
            mode: Mode::Blend,
            link_tokens: None,
            blend_share: Some(0.15),
        };
        assert_eq!((way.blend_share() * 1000.0).round(), 150.0);
        assert!((way.blend_share() - 0.15).abs() < 1e-12);
    }
}
