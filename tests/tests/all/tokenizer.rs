//! Tokenizers agree with Transformers', and text survives the way there and back.

use crate::models::{GEMMA3, SMOLLM2, gemma3_tokenizer, smollm2_tokenizer};
use addenda_model::Tokenizer;
use serde::Deserialize;
use serde_json::json;
use std::collections::HashMap;

#[derive(Deserialize)]
struct Fixture {
    strings: Vec<String>,
    #[serde(flatten)]
    ids: HashMap<String, Vec<Vec<u32>>>,
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("../../fixtures/tokens.json")).unwrap()
}

fn agrees_with_transformers(tokenizer: &Tokenizer, model: &str) {
    let fixture = fixture();
    assert_eq!(fixture.strings.len(), 200);
    for (text, expected) in fixture.strings.iter().zip(&fixture.ids[model]) {
        let found = tokenizer.encode(text).unwrap().ids;
        assert_eq!(&found, expected, "{model}: {text:?}");
    }
}

#[test]
fn smollm2_gives_200_strings_the_ids_that_transformers_gives() {
    agrees_with_transformers(smollm2_tokenizer(), SMOLLM2);
}

#[test]
fn gemma3_gives_200_strings_the_ids_that_transformers_gives() {
    agrees_with_transformers(gemma3_tokenizer(), GEMMA3);
}

#[test]
fn offsets_are_byte_ranges_on_character_boundaries_that_cover_the_text() {
    for tokenizer in [smollm2_tokenizer(), gemma3_tokenizer()] {
        for text in fixture().strings {
            let encoding = tokenizer.encode(&text).unwrap();
            assert_eq!(encoding.ids.len(), encoding.offsets.len());
            let mut covered = 0;
            for (start, end) in encoding.offsets {
                assert!(text.get(start..end).is_some(), "{text:?}: {start}..{end}");
                assert!(start <= covered, "{text:?}: a gap before {start}");
                covered = covered.max(end);
            }
            assert_eq!(covered, text.len(), "{text:?}");
        }
    }
}

#[test]
fn decoding_gives_the_text_back_without_its_special_tokens() {
    for (tokenizer, rewritten) in [(smollm2_tokenizer(), ""), (gemma3_tokenizer(), "▁")] {
        for text in fixture().strings {
            // SentencePiece cannot tell its own mark from a space.
            if !rewritten.is_empty() && text.contains(rewritten) {
                continue;
            }
            let ids = tokenizer.encode(&text).unwrap().ids;
            let mut plain = text.clone();
            for id in ids.iter().filter(|id| tokenizer.is_special(**id)) {
                plain = plain.replacen(&tokenizer.piece(*id), "", 1);
            }
            assert_eq!(tokenizer.decode(&ids).unwrap(), plain, "{text:?}");
        }
    }
}

#[test]
fn a_stream_gives_whole_characters_only_and_the_same_text_in_the_end() {
    for tokenizer in [smollm2_tokenizer(), gemma3_tokenizer()] {
        for text in fixture()
            .strings
            .iter()
            .filter(|text| !text.contains('\u{fffd}'))
        {
            let ids = tokenizer.encode(text).unwrap().ids;
            let mut stream = tokenizer.stream();
            let mut streamed = String::new();
            for id in &ids {
                let part = stream.push(*id).unwrap();
                assert!(!part.contains('\u{fffd}'), "{text:?}: {part:?}");
                streamed.push_str(&part);
            }
            assert_eq!(stream.finish(), "", "{text:?}");
            assert_eq!(streamed, tokenizer.decode(&ids).unwrap(), "{text:?}");
        }
    }
}

#[test]
fn a_character_that_is_never_completed_becomes_a_replacement_character() {
    let tokenizer = smollm2_tokenizer();
    let ids = tokenizer.encode("🚀").unwrap().ids;
    assert!(
        ids.len() > 1,
        "the test needs a character of several tokens"
    );
    let mut stream = tokenizer.stream();
    assert_eq!(stream.push(ids[0]).unwrap(), "");
    let next = tokenizer.encode("a").unwrap().ids[0];
    assert_eq!(stream.push(next).unwrap(), "\u{fffd}a");
    assert_eq!(stream.push(ids[0]).unwrap(), "");
    assert_eq!(stream.finish(), "\u{fffd}");
}

#[test]
fn what_stands_before_raw_text_is_bos_or_the_end_of_text_token() {
    assert_eq!(
        gemma3_tokenizer().text_start(),
        gemma3_tokenizer().token_id("<bos>")
    );
    assert_eq!(
        smollm2_tokenizer().text_start(),
        smollm2_tokenizer().token_id("<|endoftext|>")
    );
}

#[test]
fn the_tokens_that_end_an_answer_are_known() {
    let tokenizer = smollm2_tokenizer();
    let end = tokenizer.token_id("<|im_end|>").unwrap();
    assert!(tokenizer.is_end(end));
    assert!(!tokenizer.is_end(tokenizer.token_id("<|im_start|>").unwrap()));
    assert!(gemma3_tokenizer().is_end(gemma3_tokenizer().token_id("<eos>").unwrap()));
    assert!(gemma3_tokenizer().is_end(gemma3_tokenizer().token_id("<end_of_turn>").unwrap()));
}

#[test]
fn an_id_outside_the_vocabulary_is_refused() {
    let tokenizer = smollm2_tokenizer();
    let outside = u32::try_from(tokenizer.vocab_size()).unwrap();
    assert!(
        tokenizer
            .decode(&[outside])
            .unwrap_err()
            .to_string()
            .contains("49152")
    );
    assert!(tokenizer.stream().push(outside).is_err());
    assert_eq!(tokenizer.piece(outside), "");
}

#[test]
fn a_tokenizer_json_gives_plain_ids_and_says_what_begins_a_text() {
    let json = word_tokenizer("ByteLevel");
    let tokenizer = Tokenizer::from_json(&json, None, &[3]).unwrap();
    let encoding = tokenizer.encode("ab <end>").unwrap();
    assert_eq!(
        encoding.ids,
        [4, 1, 3],
        "neither the template's token nor padding is added"
    );
    assert_eq!(
        encoding.offsets,
        [(0, 2), (2, 3), (3, 8)],
        "spaces are not trimmed away"
    );
    assert_eq!(tokenizer.text_start(), Some(2));
    assert_eq!(tokenizer.decode(&encoding.ids).unwrap(), "ab ");
    assert!(tokenizer.is_end(3));
    let silent = Tokenizer::from_json(&json, Some(None), &[]).unwrap();
    assert_eq!(silent.text_start(), None);
    assert_eq!(silent.fingerprint(), tokenizer.fingerprint());
    assert_ne!(silent.fingerprint(), smollm2_tokenizer().fingerprint());
}

#[test]
fn a_tokenizer_json_that_spells_tokens_otherwise_is_refused_by_name() {
    let error = Tokenizer::from_json(&word_tokenizer("WordPiece"), None, &[]).unwrap_err();
    assert!(error.to_string().contains("WordPiece"), "{error}");
    assert!(Tokenizer::from_json(b"{}", None, &[]).is_err());
}

/// A `tokenizer.json` of three letters, with padding and a template that adds a
/// token, as published files have them.
pub(crate) fn word_tokenizer(decoder: &str) -> Vec<u8> {
    let special = |id: u32, content: &str| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true
        })
    };
    let mut decoding = json!({
        "type": decoder, "add_prefix_space": false, "trim_offsets": true, "use_regex": true
    });
    if decoder == "WordPiece" {
        decoding = json!({ "type": decoder, "prefix": "##", "cleanup": true });
    }
    json!({
        "version": "1.0",
        "truncation": { "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0 },
        "padding": {
            "strategy": { "Fixed": 9 }, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "a"
        },
        "added_tokens": [special(2, "<start>"), special(3, "<end>")],
        "normalizer": null,
        "pre_tokenizer": {
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                { "SpecialToken": { "id": "<start>", "type_id": 0 } },
                { "Sequence": { "id": "A", "type_id": 0 } }
            ],
            "pair": [
                { "Sequence": { "id": "A", "type_id": 0 } },
                { "Sequence": { "id": "B", "type_id": 1 } }
            ],
            "special_tokens": {
                "<start>": { "id": "<start>", "ids": [2], "tokens": ["<start>"] }
            }
        },
        "decoder": decoding,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false,
            "vocab": { "a": 0, "Ġ": 1, "<start>": 2, "<end>": 3, "ab": 4, "b": 5 },
            "merges": [["a", "b"]]
        }
    })
    .to_string()
    .into_bytes()
}
