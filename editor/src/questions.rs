//! What is asked about a fact, as tokens: its prompt, its paraphrases and neighbours, and its prompt in a chat.

use addenda_model::tokenizer::Tokenizer;
use addenda_model::{ChatMessage, ChatTemplate};

use crate::error::Result;
use crate::fact::Fact;
use crate::subject::{target_tokens, text_tokens};

/// A fact's questions as tokens.
#[derive(Debug)]
pub(crate) struct Questions {
    pub(crate) prompt: Vec<u32>,
    pub(crate) target: Vec<u32>,
    pub(crate) paraphrases: Vec<Vec<u32>>,
    pub(crate) neighbours: Vec<Vec<u32>>,
    /// The prompt as the assistant repeats it in a chat; none without a template.
    pub(crate) chat: Option<Vec<u32>>,
}

impl Questions {
    pub(crate) fn of(tokenizer: &Tokenizer, fact: &Fact) -> Result<Self> {
        let filled = fact.filled_prompt();
        let tokens = |texts: &[String]| {
            texts
                .iter()
                .map(|text| text_tokens(tokenizer, text))
                .collect::<Result<Vec<_>>>()
        };
        Ok(Self {
            prompt: text_tokens(tokenizer, &filled)?,
            target: target_tokens(tokenizer, &filled, &fact.target)?,
            paraphrases: tokens(&fact.paraphrases)?,
            neighbours: tokens(&fact.neighbours)?,
            chat: None,
        })
    }

    /// The same, with the prompt in a chat as well.
    pub(crate) fn in_chat(
        mut self,
        tokenizer: &Tokenizer,
        template: &ChatTemplate,
        fact: &Fact,
    ) -> Result<Self> {
        let filled = fact.filled_prompt();
        let asked = ChatMessage {
            role: "user".to_owned(),
            content: format!("Complete this sentence: {filled}"),
        };
        let asked = template.render(&[asked], true)?;
        self.chat = Some(tokenizer.encode(&format!("{asked}{filled}"))?.ids);
        Ok(self)
    }

    /// Tokens of the longest text, with the target behind it.
    pub(crate) fn longest(&self) -> usize {
        let probes = self
            .paraphrases
            .iter()
            .chain(&self.neighbours)
            .map(Vec::len);
        let chat = self.chat.as_ref().map_or(0, Vec::len);
        self.target.len() + probes.chain([self.prompt.len(), chat]).max().unwrap_or(0)
    }
}
