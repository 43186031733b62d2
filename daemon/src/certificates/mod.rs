//! Certificates: how well a mode agrees with full prefill, as measured here.
//!
//! Owns what a certificate says, what it depends on, when it is void, and which mode meets a bar. Never
//! measures: that is `grpc::certify`. Invariants: a certificate holds for exactly the weights,
//! tokenizer, adapter, codec, positions and format that it was measured with; one whose content does
//! not hash to its id is not believed.

pub(crate) mod agreement;
pub(crate) mod kept;

use addenda_proto::addenda::v1::Mode;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::grpc::mode::Certified;

/// Version of what a certificate means and how it is encoded.
const VERSION: u32 = 1;

/// Domain of a certificate's id.
const CONTEXT: &str = "addenda 2026-11 certificate v1";

/// All that a measurement depends on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Basis {
    /// The mode's number on the wire.
    pub(crate) mode: i32,
    pub(crate) link_tokens: Option<u32>,
    pub(crate) blend_share: Option<f32>,
    /// 64 hex digits each.
    pub(crate) revision: String,
    pub(crate) adapter: String,
    pub(crate) tokenizer: String,
    /// What packets are stored as.
    pub(crate) codec: String,
    pub(crate) rope: String,
    /// What packets are computed behind, 64 hex digits; empty for nothing.
    #[serde(default)]
    pub(crate) primer: String,
    /// Of packets.
    pub(crate) format: u32,
}

/// A share with the bounds of its 95 % confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Share {
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figures {
    /// Of the answers' tokens: whose likeliest token is full prefill's.
    pub(crate) agreement: Share,
    /// From full prefill, nats per token.
    pub(crate) mean_kl: f64,
    /// Of greedy answers: which are full prefill's, word for word.
    pub(crate) same_answer: Share,
    /// Against given answers, where there were any; this mode's and full prefill's.
    pub(crate) labelled: Option<Labelled>,
    pub(crate) ttft_ms: f64,
    pub(crate) ttft_full_ms: f64,
    pub(crate) samples: u32,
    pub(crate) tokens: u32,
}

/// Figures against given answers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Labelled {
    pub(crate) f1: f64,
    pub(crate) f1_full: f64,
    pub(crate) exact_match: f64,
    pub(crate) exact_match_full: f64,
}

/// A measurement that is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Certificate {
    version: u32,
    pub(crate) basis: Basis,
    pub(crate) figures: Figures,
    /// What was measured with.
    pub(crate) suites: Vec<String>,
    pub(crate) measured_at_ms: u64,
}

impl Certificate {
    pub(crate) fn new(basis: Basis, figures: Figures, suites: Vec<String>, at_ms: u64) -> Self {
        Self {
            version: VERSION,
            basis,
            figures,
            suites,
            measured_at_ms: at_ms,
        }
    }

    /// BLAKE3 over every field, each with its length.
    pub(crate) fn id(&self) -> Digest {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        let mut field = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        field(&self.version.to_le_bytes());
        self.basis.encode(&mut field);
        self.figures.encode(&mut field);
        field(&(self.suites.len() as u64).to_le_bytes());
        for suite in &self.suites {
            field(suite.as_bytes());
        }
        field(&self.measured_at_ms.to_le_bytes());
        Digest(*hasher.finalize().as_bytes())
    }

    /// What a choice of modes goes by: the lower bound of the agreement.
    pub(crate) fn certified(&self) -> Certified {
        #[expect(clippy::cast_possible_truncation, reason = "a share")]
        let agreement = self.figures.agreement.low as f32;
        Certified {
            agreement,
            certificate: self.id().to_string(),
        }
    }

    /// Whether it is of a version that means here what it says.
    pub(crate) fn is_known(&self) -> bool {
        self.version == VERSION
    }
}

impl Basis {
    pub(crate) fn mode(&self) -> Mode {
        Mode::try_from(self.mode).unwrap_or(Mode::Unspecified)
    }

    /// Why a measurement on this basis says nothing about `now`; none if it does. Both are of one
    /// way.
    pub(crate) fn void_reason(&self, now: &Self) -> Option<String> {
        let differs = |what: &str| Some(format!("{what} changed since it was measured"));
        if self.revision != now.revision {
            return differs("the weights");
        }
        if self.adapter != now.adapter {
            return differs("the adapter");
        }
        if self.tokenizer != now.tokenizer {
            return differs("the tokenizer");
        }
        if self.codec != now.codec {
            return differs("the codec of packets");
        }
        if self.rope != now.rope {
            return differs("the RoPE settings");
        }
        if self.primer != now.primer {
            return differs("what packets are computed behind");
        }
        if self.format != now.format {
            return differs("the format of packets");
        }
        None
    }

    fn encode(&self, field: &mut impl FnMut(&[u8])) {
        field(&self.mode.to_le_bytes());
        field(&optional(self.link_tokens.map(u32::to_le_bytes)));
        field(&optional(
            self.blend_share.map(|share| share.to_bits().to_le_bytes()),
        ));
        let texts = [
            &self.revision,
            &self.adapter,
            &self.tokenizer,
            &self.codec,
            &self.rope,
        ];
        for text in texts {
            field(text.as_bytes());
        }
        field(&self.format.to_le_bytes());
        // Certificates of before there were primers have the id they always had.
        if !self.primer.is_empty() {
            field(self.primer.as_bytes());
        }
    }
}

impl Figures {
    fn encode(&self, field: &mut impl FnMut(&[u8])) {
        let mut numbers = vec![self.mean_kl, self.ttft_ms, self.ttft_full_ms];
        for share in [self.agreement, self.same_answer] {
            numbers.extend([share.value, share.low, share.high]);
        }
        if let Some(labelled) = self.labelled {
            numbers.extend([labelled.f1, labelled.f1_full]);
            numbers.extend([labelled.exact_match, labelled.exact_match_full]);
        }
        for number in numbers {
            field(&number.to_bits().to_le_bytes());
        }
        field(&self.samples.to_le_bytes());
        field(&self.tokens.to_le_bytes());
    }
}

/// A field that may be absent: empty then.
fn optional(bytes: Option<[u8; 4]>) -> Vec<u8> {
    bytes.map(Vec::from).unwrap_or_default()
}

#[cfg(test)]
mod fuzz {
    use super::{Certificate, kept};

    #[test]
    fn a_certificate_of_any_bytes_is_believed_only_under_the_digest_of_what_it_says() {
        addenda_fuzz::target!("certificate", 10_000, |bytes: &[u8]| {
            let Ok(certificate) = serde_json::from_slice::<Certificate>(bytes) else {
                assert!(kept::believed(bytes, "").is_none());
                return;
            };
            let id = certificate.id().to_string();
            let believed = addenda_fuzz::within(1 << 20, || kept::believed(bytes, &id));
            assert_eq!(believed.is_some(), certificate.is_known());
            assert!(kept::believed(bytes, &"0".repeat(64)).is_none());
            let again = serde_json::to_vec(&certificate).unwrap_or_default();
            let again = serde_json::from_slice::<Certificate>(&again).ok();
            assert_eq!(again.map(|again| again.id()), Some(certificate.id()));
        });
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{Basis, Certificate, Figures, Share};
    use addenda_proto::addenda::v1::Mode;

    pub(crate) fn certificate(mode: Mode, low: f64) -> Certificate {
        let share = Share {
            value: low,
            low,
            high: 1.0,
        };
        let basis = Basis {
            mode: mode.into(),
            link_tokens: None,
            blend_share: None,
            revision: "aa".to_owned(),
            adapter: String::new(),
            tokenizer: "bb".to_owned(),
            codec: "bf16".to_owned(),
            rope: "theta=1".to_owned(),
            primer: "dd".to_owned(),
            format: 1,
        };
        let figures = Figures {
            agreement: share,
            mean_kl: 0.1,
            same_answer: share,
            labelled: None,
            ttft_ms: 1.0,
            ttft_full_ms: 2.0,
            samples: 32,
            tokens: 200,
        };
        Certificate::new(basis, figures, vec!["needle".to_owned()], 1)
    }

    #[test]
    fn every_figure_is_part_of_the_id() {
        let one = certificate(Mode::Packet, 0.9);
        let mut other = one.clone();
        other.figures.agreement.low = 0.95;
        assert_ne!(one.id(), other.id());
        let mut other = one.clone();
        other.basis.adapter = "cc".to_owned();
        assert_ne!(one.id(), other.id());
        assert_eq!(one.id(), one.clone().id());
    }

    #[test]
    fn a_certificate_is_void_once_the_weights_or_the_adapter_changed() {
        let basis = certificate(Mode::Packet, 0.9).basis;
        assert_eq!(basis.void_reason(&basis.clone()), None);
        let edited = Basis {
            revision: "ab".to_owned(),
            ..basis.clone()
        };
        assert!(
            basis
                .void_reason(&edited)
                .is_some_and(|why| why.contains("weights"))
        );
        let other = Basis {
            adapter: "cc".to_owned(),
            ..basis.clone()
        };
        assert!(
            basis
                .void_reason(&other)
                .is_some_and(|why| why.contains("adapter"))
        );
    }
}
