//! A conversation becomes the text that Transformers makes of it.

use crate::models::{GEMMA3, SMOLLM2, open};
use addenda_model::ChatMessage;
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    messages: Vec<Message>,
    add_generation_prompt: bool,
    text: String,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: String,
}

#[test]
fn smollm2_renders_conversations_as_transformers_does() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../../fixtures/chat.json")).unwrap();
    assert_eq!(cases.len(), 10);
    let template = open(SMOLLM2)
        .chat_template
        .expect("SmolLM2 has a chat template");
    for case in cases {
        let messages: Vec<ChatMessage> = case
            .messages
            .into_iter()
            .map(|message| ChatMessage {
                role: message.role,
                content: message.content,
            })
            .collect();
        let text = template
            .render(&messages, case.add_generation_prompt)
            .unwrap();
        assert_eq!(text, case.text);
    }
}

#[test]
fn a_base_model_has_no_chat_template() {
    assert!(open(GEMMA3).chat_template.is_none());
}
