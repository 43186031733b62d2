//! The measures by which an answer from packets is compared with full prefill's.
//!
//! Owns formulas only: agreement and KL over distributions, F1 over words, confidence intervals.

use crate::certificates::Share;

/// What one sample's tokens say about a mode.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Tokens {
    /// Tokens whose likeliest token is full prefill's.
    pub(crate) agreed: u32,
    pub(crate) all: u32,
    /// Sum over the tokens, nats.
    pub(crate) kl: f64,
}

/// Compares a mode's distributions with full prefill's, both as natural logarithms over the whole
/// vocabulary, one row a token: KL(full ‖ mode) = Σ p ln(p/q).
pub(crate) fn compare(full: &[Vec<f32>], mode: &[Vec<f32>]) -> Tokens {
    let mut tokens = Tokens::default();
    for (full, mode) in full.iter().zip(mode) {
        tokens.all += 1;
        tokens.agreed += u32::from(likeliest(full) == likeliest(mode));
        let terms = full.iter().zip(mode).map(|(&p, &q)| {
            let (p, q) = (f64::from(p), f64::from(q));
            // A probability that is zero in f32 adds nothing, whatever the other one is.
            if p < -80.0 { 0.0 } else { p.exp() * (p - q) }
        });
        // Rounding can take it below zero by as much as f32 has digits.
        tokens.kl += terms.sum::<f64>().max(0.0);
    }
    tokens
}

fn likeliest(row: &[f32]) -> Option<usize> {
    let best = row
        .iter()
        .enumerate()
        .max_by(|(_, a), (_, b)| a.total_cmp(b));
    best.map(|(place, _)| place)
}

/// F1 over words: harmonic mean of precision and recall of `answer`'s words in `right`'s, as SQuAD compares them
/// (Rajpurkar et al. 2016): in lower case, without punctuation and articles.
pub(crate) fn f1(answer: &str, right: &str) -> f64 {
    let (answer, right) = (words(answer), words(right));
    let mut left = right.clone();
    let mut common = 0_usize;
    for word in &answer {
        if let Some(place) = left.iter().position(|other| other == word) {
            left.swap_remove(place);
            common += 1;
        }
    }
    if common == 0 {
        return f64::from(u8::from(answer.is_empty() && right.is_empty()));
    }
    let precision = common as f64 / answer.len() as f64;
    let recall = common as f64 / right.len() as f64;
    2.0 * precision * recall / (precision + recall)
}

/// Whether two answers are the same by the rules of [`f1`].
pub(crate) fn same(answer: &str, right: &str) -> bool {
    words(answer) == words(right)
}

fn words(text: &str) -> Vec<String> {
    let mut text = text.to_lowercase();
    text.retain(|letter| !letter.is_ascii_punctuation());
    let words = text.split_whitespace();
    let words = words.filter(|word| !matches!(*word, "a" | "an" | "the"));
    words.map(str::to_owned).collect()
}

/// A share of units that come in samples, with a 95 % interval over samples: `(hits, units)` of each.
///
/// Units of one sample resemble each other, so the variance is that of a ratio of sums over samples
/// (Cochran 1977, §6.3). Where all samples are alike that is zero, and Wilson's interval over the
/// samples (Wilson 1927) stands in its place.
pub(crate) fn share(samples: &[(u32, u32)]) -> Share {
    /// Of the normal distribution, two-sided 95 %.
    const Z: f64 = 1.96;
    let n = samples.len() as f64;
    let units: f64 = samples.iter().map(|&(_, units)| f64::from(units)).sum();
    let hits: f64 = samples.iter().map(|&(hits, _)| f64::from(hits)).sum();
    if units == 0.0 {
        return Share {
            value: 0.0,
            low: 0.0,
            high: 1.0,
        };
    }
    let value = hits / units;
    let squares = samples.iter().map(|&(hits, units)| {
        let residual = f64::from(hits) - value * f64::from(units);
        residual * residual
    });
    let variance = squares.sum::<f64>() * n / ((n - 1.0).max(1.0) * units * units);
    let (low, high) = if variance > 0.0 {
        (value - Z * variance.sqrt(), value + Z * variance.sqrt())
    } else {
        let centre = (value + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
        let spread = (value * (1.0 - value) / n + Z * Z / (4.0 * n * n)).sqrt();
        let spread = Z * spread / (1.0 + Z * Z / n);
        (centre - spread, centre + spread)
    };
    Share {
        value,
        low: low.clamp(0.0, 1.0),
        high: high.clamp(0.0, 1.0),
    }
}

/// The middle of some times; the lower middle of an even number of them.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len().saturating_sub(1) / 2;
    values.get(middle).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::{compare, f1, same, share};

    #[test]
    fn equal_distributions_agree_and_have_no_divergence() {
        let row = vec![0.5_f32.ln(), 0.3_f32.ln(), 0.2_f32.ln()];
        let other = vec![0.2_f32.ln(), 0.3_f32.ln(), 0.5_f32.ln()];
        let one = std::slice::from_ref(&row);
        let same = compare(one, one);
        assert_eq!((same.agreed, same.all), (1, 1));
        assert!(same.kl < 1e-9);
        let differs = compare(&[row], &[other]);
        assert_eq!((differs.agreed, differs.all), (0, 1));
        // 0.5 ln(0.5/0.2) + 0.2 ln(0.2/0.5)
        assert!((differs.kl - 0.274_887).abs() < 1e-5);
    }

    #[test]
    fn words_count_and_not_their_case_punctuation_or_articles() {
        assert!((f1("in Paris.", "Paris") - 2.0 / 3.0).abs() < 1e-12);
        assert!((f1("paris", "Paris.") - 1.0).abs() < 1e-12);
        assert!(f1("London", "Paris") < 1e-12);
        assert!((f1("4817263.\nAnswer: 4817263", "4817263") - 0.5).abs() < 1e-12);
        assert!(same(" 7 March 1960.", "7 march 1960"));
        assert!(same("the University of Oslo", "University of Oslo."));
        assert!(!same("7 March", "7 March 1960"));
    }

    #[test]
    fn few_samples_that_all_agree_leave_doubt() {
        let few = share(&[(5, 5); 8]);
        let many = share(&[(5, 5); 200]);
        assert!((few.value - 1.0).abs() < 1e-12);
        assert!(few.low < 0.75 && many.low > 0.97, "{few:?} {many:?}");
    }

    #[test]
    fn tokens_of_one_sample_do_not_count_as_many_samples() {
        // Half of the samples agree on all tokens, half on none: as uncertain as 20 tosses of a coin.
        let samples: Vec<(u32, u32)> = (0..20)
            .map(|i| (if i % 2 == 0 { 30 } else { 0 }, 30))
            .collect();
        let share = share(&samples);
        assert!(share.high - share.low > 0.4, "{share:?}");
    }
}
