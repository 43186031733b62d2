//! The samples that adapters are trained and measured on: made by their seed, the answer is in the
//! documents, and what is held out shares nothing with what is trained on.

use addenda::adapters::samples::{
    Biography, Documents, Needle, Prose, Sample, Split, Suite, Tracking,
};
use std::collections::BTreeSet;

const SPLITS: [Split; 3] = [Split::Train, Split::Validation, Split::HeldOut];

fn words(text: &str) -> usize {
    text.split_whitespace().count()
}

const PARAGRAPHS: [&str; 8] = [
    "The first paragraph speaks at length of lobsters and of how they are caught in pots by fishermen.",
    "The second paragraph is about a rugby team that travelled far and played more than was good for it.",
    "The third paragraph describes a bridge, who built it, and why nobody wanted to pay for the repair.",
    "The fourth paragraph tells of a singer whose first record sold well while the second one did not.",
    "The fifth paragraph names the ships of a fleet and the harbours in which each of them was built.",
    "The sixth paragraph explains how a storm formed over the sea and which villages it passed at night.",
    "The seventh paragraph lists the kings of a small country and the years in which each one reigned.",
    "The eighth paragraph is on a road through the hills, opened late, and on the inns beside the road.",
];

fn sample(suite: Suite, split: Split, seed: u64) -> Sample {
    let (documents, paragraphs) = (5, &PARAGRAPHS[..]);
    match suite {
        Suite::Biography => Biography { documents }.sample(split, seed),
        Suite::Needle => Needle::single(8, 4, 60..=120).sample(split, seed, &words),
        Suite::Tracking => Tracking {
            documents,
            hops: 3,
            sentences: 4,
        }
        .sample(split, seed),
        Suite::Prose => Prose {
            paragraphs,
            documents: 2,
        }
        .sample(split, seed),
        Suite::Documents => Documents {
            texts: paragraphs,
            documents: 2,
        }
        .sample(split, seed),
    }
}

#[test]
fn the_same_seed_gives_the_same_sample_and_another_one_another() {
    for suite in Suite::ALL {
        for split in SPLITS {
            let one = sample(suite, split, 3);
            assert_eq!(one, sample(suite, split, 3));
            let others: BTreeSet<String> = (0..12)
                .map(|seed| format!("{:?}", sample(suite, split, seed)))
                .collect();
            assert!(others.len() >= 6, "{suite} of {split:?}: {}", others.len());
            assert_eq!(suite.name().parse(), Ok(suite));
        }
    }
}

#[test]
fn the_right_answer_stands_in_exactly_the_document_that_is_asked_about() {
    let mut places = BTreeSet::new();
    for seed in 0..60 {
        let one = sample(Suite::Biography, Split::HeldOut, seed);
        let answer = one.answer.unwrap();
        assert_eq!(one.documents.len(), 5);
        let asked = |text: &&String| {
            let name: Vec<&str> = text.split_whitespace().collect();
            let names = name.windows(2).map(|two| two.join(" "));
            names
                .map(|name| name.trim_end_matches("'s").to_owned())
                .any(|name| one.question.contains(&name) && text.contains(&answer))
        };
        let right: Vec<usize> = (0..5).filter(|&at| asked(&&one.documents[at])).collect();
        assert!(
            !right.is_empty(),
            "{} {answer} {:?}",
            one.question,
            one.documents
        );
        places.extend(right);

        let one = sample(Suite::Needle, Split::HeldOut, seed);
        let answer = one.answer.unwrap();
        let holders = one.documents.iter().filter(|text| text.contains(&answer));
        assert_eq!((holders.count(), one.documents.len()), (1, 8));
        let needles: usize = one
            .documents
            .iter()
            .map(|text| text.matches("magic").count())
            .sum();
        assert_eq!(needles, 4);
        for text in &one.documents {
            assert!((45..=120).contains(&words(text)), "{} words", words(text));
        }

        let one = sample(Suite::Tracking, Split::HeldOut, seed);
        let all = one.documents.join(" ");
        let answer = one.answer.unwrap();
        let names: Vec<&str> = answer.split(", ").collect();
        assert_eq!(names.len(), 4);
        for (before, name) in names.iter().zip(&names[1..]) {
            assert!(
                all.contains(&format!("VAR {name} = VAR {before}.")),
                "{all}"
            );
        }
        let value: String = one.question.chars().filter(char::is_ascii_digit).collect();
        assert_eq!(all.matches(&value).count(), 1, "{all}");
    }
    assert_eq!(places.len(), 5, "the right document stands anywhere");
}

#[test]
fn several_questions_about_the_same_documents_begin_with_the_one_and_differ() {
    let needle = Needle::single(8, 4, 45..=120);
    let paragraphs: Vec<String> = (0..40)
        .map(|number| format!("Line {number} of a text. ").repeat(9))
        .collect();
    let paragraphs: Vec<&str> = paragraphs.iter().map(String::as_str).collect();
    let (paragraphs, documents) = (&paragraphs[..], 4);
    for seed in 0..8 {
        let split = Split::Train;
        let biography = Biography { documents };
        let prose = Prose {
            paragraphs,
            documents,
        };
        let own = Documents {
            texts: paragraphs,
            documents,
        };
        for (one, several) in [
            (
                biography.sample(split, seed),
                biography.samples(split, seed, 24),
            ),
            (
                needle.sample(split, seed, &words),
                needle.samples(split, (seed, 4), &words),
            ),
            (prose.sample(split, seed), prose.samples(split, seed, 6)),
            (own.sample(split, seed), own.samples(split, seed, 6)),
        ] {
            assert_eq!(several[0], one);
            assert!(several.iter().all(|other| other.documents == one.documents));
            let questions: BTreeSet<&String> = several.iter().map(|one| &one.question).collect();
            let labelled = one.answer.is_some();
            assert!(questions.len() > 2, "{questions:?}");
            assert!(
                !labelled || questions.len() == several.len(),
                "{questions:?}"
            );
            for asked in several {
                let Some(answer) = asked.answer else { continue };
                assert!(asked.documents.iter().any(|text| text.contains(&answer)));
            }
        }
    }
    assert_eq!(
        Biography { documents: 2 }
            .samples(Split::Train, 1, 99)
            .len(),
        12
    );
}

#[test]
fn several_keys_values_and_queries_are_all_asked_for() {
    let needle = Needle {
        documents: 3,
        keys: 4,
        values: 2,
        queries: 2,
        length: 80..=100,
    };
    let one = needle.sample(Split::Train, 5, &words);
    let answer = one.answer.unwrap();
    let numbers: Vec<&str> = answer.split(", ").collect();
    assert_eq!(numbers.len(), 4);
    let all = one.documents.join(" ");
    assert!(numbers.iter().all(|number| all.contains(number)));
    assert_eq!(all.matches("magic").count(), 8);
}

#[test]
fn what_is_held_out_shares_no_name_key_or_passage_with_what_is_trained_on() {
    let names = |suite: Suite, split: Split| -> BTreeSet<String> {
        let seeds = 0..80;
        let texts = seeds.flat_map(|seed| match suite {
            Suite::Prose => sample(suite, split, seed).documents,
            _ => vec![sample(suite, split, seed).question],
        });
        texts
            .flat_map(|text| match suite {
                Suite::Prose => vec![text],
                Suite::Needle => {
                    let keys = text.split_whitespace().filter(|word| word.contains('-'));
                    keys.map(str::to_owned).collect()
                }
                _ => {
                    let first = text.split_whitespace().skip(1);
                    let upper = |word: &&str| word.starts_with(char::is_uppercase);
                    let names = first.filter(upper).map(|name| {
                        let name = name.trim_matches(|c: char| !c.is_alphabetic());
                        name.trim_end_matches("'s").to_owned()
                    });
                    let words = ["Answer", "Give", "Reply"];
                    names
                        .filter(|name| !words.contains(&name.as_str()))
                        .collect()
                }
            })
            .collect()
    };
    for suite in [Suite::Biography, Suite::Needle, Suite::Prose] {
        let [train, validation, held_out] = SPLITS.map(|split| names(suite, split));
        assert!(
            !held_out.is_empty() && train.len() > validation.len(),
            "{suite}"
        );
        assert!(train.is_disjoint(&held_out), "{suite}: {held_out:?}");
        assert!(
            train.is_disjoint(&validation) && validation.is_disjoint(&held_out),
            "{suite}"
        );
    }
}
