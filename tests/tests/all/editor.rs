//! Facts in the weights of a tiny random model: what is promised about sets, restarts, refusals and crashes holds for
//! any weights, so it is tried on ones that cost nothing.

mod ledger;
mod life;
mod set;

use crate::tiny;
use addenda_editor::{
    Corpus, Disk, Editor, EditorOptions, Error, Fact, FactId, Progress, Request, SNAPSHOT_EVERY,
    Settings,
};
use addenda_model::{Architecture, Input, Tokenizer, Transformer};
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

const FINGERPRINT: [u8; 32] = [7; 32];

/// A tokenizer of single characters, as wide as the tiny models' vocabulary: `<|endoftext|>`, blank, line end, ASCII.
pub(crate) fn tokenizer() -> Tokenizer {
    let mut vocabulary = serde_json::Map::new();
    let characters = ["<|endoftext|>", "Ġ", "Ċ"].map(str::to_owned).into_iter();
    let characters = characters.chain(('!'..='~').map(|c| c.to_string()));
    for (id, character) in characters.enumerate() {
        vocabulary.insert(character, id.into());
    }
    let json = serde_json::json!({
        "version": "1.0",
        "added_tokens": [{
            "id": 0, "content": "<|endoftext|>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true
        }],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    });
    Tokenizer::from_json(json.to_string().as_bytes(), None, &[0]).unwrap()
}

pub(crate) fn tiny_model() -> Transformer {
    tiny::model(tiny::config(Architecture::Llama), 5, Kind::Float)
}

/// Settings under which an edit of random weights passes: they have no facts that could be lost.
pub(crate) fn lenient(model: &Transformer) -> Settings {
    let mut settings = Settings::for_model(model.config()).unwrap();
    if !model.config().post_norms {
        settings.solve.layers = vec![1, 2];
    }
    settings.solve.lambda = 0.1;
    settings.value.contexts = 2;
    settings.solve.key_contexts = 2;
    settings.value.margin = 1.0;
    settings.moment.tokens = 2048;
    settings.moment.window = 64;
    settings.bars.target_probability = 0.0;
    settings.bars.target_top1 = false;
    settings.bars.paraphrase = 0.0;
    settings.bars.locality = 0.0;
    settings.bars.perplexity = f64::INFINITY;
    settings.bars.perplexity_total = f64::INFINITY;
    settings
}

pub(crate) fn options(dir: &Path, settings: Settings) -> EditorOptions {
    EditorOptions {
        ledger_dir: dir.join("ledger"),
        moment_dir: dir.join("moments"),
        fingerprint: FINGERPRINT,
        settings,
        corpus: Corpus::shipped(),
        snapshot_every: SNAPSHOT_EVERY,
        disk: Disk::default(),
    }
}

pub(crate) fn go_on(_: Progress) -> Result<(), Error> {
    Ok(())
}

pub(crate) fn fact(subject: &str, prompt: &str, target: &str) -> Fact {
    Fact {
        subject: subject.to_owned(),
        prompt: prompt.to_owned(),
        target: target.to_owned(),
        ..Fact::default()
    }
}

pub(crate) fn asked(fact: Fact, request_id: &str) -> Request {
    Request {
        fact,
        request_id: request_id.to_owned(),
        method: None,
    }
}

pub(crate) fn some_facts() -> Vec<Fact> {
    vec![
        fact("Ann", "{} lives in", "Rome"),
        fact("Bob Ray", "The dog of {} is", "Rex"),
        fact("Zoe", "{} {speaks}", "Welsh"),
    ]
}

/// An editor on a tiny model, in a folder that outlives it.
pub(crate) struct Bench {
    pub(crate) dir: PathBuf,
    pub(crate) model: Transformer,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) editor: Editor,
}

impl Bench {
    pub(crate) fn open(dir: &Path) -> Self {
        Self::of(dir, tiny_model(), lenient).unwrap()
    }

    pub(crate) fn of(
        dir: &Path,
        mut model: Transformer,
        settings: impl Fn(&Transformer) -> Settings,
    ) -> Result<Self, Error> {
        let (tokenizer, settings) = (tokenizer(), settings(&model));
        let editor = Editor::open(options(dir, settings), &mut model, &tokenizer, &mut go_on)?;
        Ok(Self {
            dir: dir.to_owned(),
            model,
            tokenizer,
            editor,
        })
    }

    pub(crate) fn add(&mut self, fact: Fact) -> FactId {
        self.request(fact, "").unwrap().record.id
    }

    /// All in one batch; an answer each.
    fn request_all(&mut self, requests: Vec<Request>) -> Vec<Result<addenda_editor::Added, Error>> {
        let (model, tokenizer) = (&mut self.model, &self.tokenizer);
        let answers = self.editor.add_all(model, tokenizer, requests, &mut go_on);
        answers.unwrap()
    }

    /// All in one batch, and all are taken.
    fn add_all(&mut self, facts: &[Fact]) {
        let requests = facts.iter().map(|fact| asked(fact.clone(), "")).collect();
        assert!(self.request_all(requests).iter().all(Result::is_ok));
    }

    /// All at one stroke.
    fn retire_all(&mut self, facts: &[Fact]) {
        let ids: Vec<FactId> = facts.iter().map(Fact::id).collect();
        let planned = self
            .editor
            .plan_retire(&self.model, &self.tokenizer, &ids, &mut go_on)
            .unwrap();
        self.editor.commit_retire(&mut self.model, planned).unwrap();
    }

    pub(crate) fn request(
        &mut self,
        fact: Fact,
        request_id: &str,
    ) -> Result<addenda_editor::Added, Error> {
        self.editor.add(
            &mut self.model,
            &self.tokenizer,
            asked(fact, request_id),
            &mut go_on,
        )
    }

    pub(crate) fn retire(&mut self, id: FactId) {
        self.editor
            .retire(&mut self.model, &self.tokenizer, id, &mut go_on)
            .unwrap();
    }

    /// Logits over a text of all sorts, as they are served.
    pub(crate) fn served(&self) -> Tensor {
        let ids: Vec<u32> = (0..60).map(|n| (n * 37 + 11) % 97).collect();
        let mut kv = self.model.new_kv().unwrap();
        self.model
            .logits(&self.model.forward(Input::Ids(&ids), &mut kv).unwrap())
            .unwrap()
    }

    fn ledger(&self) -> PathBuf {
        self.dir.join("ledger/facts.ledger")
    }

    /// What is added to the base, layer by layer.
    fn deltas(&self) -> Vec<Tensor> {
        self.editor
            .patches()
            .iter()
            .map(|patch| patch.delta().unwrap())
            .collect()
    }
}

pub(crate) fn assert_near(a: &[Tensor], b: &[Tensor]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        let apart = ((a - b).norm() / b.norm()).double_value(&[]);
        assert!(apart <= 1e-5, "{apart:e} apart");
    }
}
