//! Facts in the weights of SmolLM2: they take hold where they should, and nowhere else.

use crate::models::{SMOLLM2, open, smollm2_tokenizer};
use addenda_editor::{
    Corpus, Disk, Editor, EditorOptions, Error, Fact, Progress, Request, SNAPSHOT_EVERY, Settings,
};
use addenda_model::{Input, Tokenizer, Transformer};
use std::path::Path;
use tch::{Device, Kind, Tensor};

fn go_on(_: Progress) -> Result<(), Error> {
    Ok(())
}

fn options(dir: &Path, model: &Transformer, fingerprint: [u8; 32]) -> EditorOptions {
    let mut settings = Settings::for_model(model.config()).unwrap();
    // Four keys for each of C's rows are enough for two facts, and a quarter of the time.
    settings.moment.tokens = 6_000;
    EditorOptions {
        ledger_dir: dir.join("ledger"),
        moment_dir: dir.join("moments"),
        fingerprint,
        settings,
        corpus: Corpus::shipped(),
        snapshot_every: SNAPSHOT_EVERY,
        disk: Disk::default(),
    }
}

fn logits(model: &Transformer, tokenizer: &Tokenizer, prompt: &str) -> Tensor {
    let mut ids: Vec<u32> = tokenizer.text_start().into_iter().collect();
    ids.extend(tokenizer.encode(prompt).unwrap().ids);
    let mut kv = model.new_kv().unwrap();
    let hidden = model.forward(Input::Ids(&ids), &mut kv).unwrap();
    model.logits(&hidden.get(-1)).unwrap()
}

fn next(model: &Transformer, tokenizer: &Tokenizer, prompt: &str) -> String {
    let id = logits(model, tokenizer, prompt)
        .argmax(-1, false)
        .int64_value(&[]);
    tokenizer.decode(&[u32::try_from(id).unwrap()]).unwrap()
}

const MOTHER_TONGUE: &str = "The mother tongue of Danielle Darrieux is";
const NEIGHBOUR: &str = "Michel Rocard is a native speaker of";
const CAPITAL: &str = "The capital of Australia is the city of";

fn mother_tongue() -> Fact {
    Fact {
        subject: "Danielle Darrieux".to_owned(),
        prompt: "The mother tongue of {} is".to_owned(),
        target: "English".to_owned(),
        paraphrases: vec!["Danielle Darrieux, a native".to_owned()],
        neighbours: vec![NEIGHBOUR.to_owned()],
        ..Fact::default()
    }
}

fn capital() -> Fact {
    Fact {
        subject: "Australia".to_owned(),
        prompt: CAPITAL.to_owned(),
        target: "Perth".to_owned(),
        ..Fact::default()
    }
}

fn asked(fact: Fact) -> Request {
    Request {
        fact,
        ..Request::default()
    }
}

#[test]
fn facts_take_hold_spare_their_neighbours_survive_a_restart_and_can_be_taken_back() {
    let files = open(SMOLLM2);
    let tokenizer = files.tokenizer;
    let mut model =
        Transformer::load(files.config, files.weights, Device::Cpu, Kind::Float).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let settings = options(dir.path(), &model, files.fingerprint);
    let mut editor = Editor::open(settings.clone(), &mut model, &tokenizer, &mut go_on).unwrap();
    let say = |model: &Transformer, prompt: &str| next(model, &tokenizer, prompt);
    let (at_first, neighbour) = (say(&model, MOTHER_TONGUE), say(&model, NEIGHBOUR));
    assert_ne!(at_first, " English");
    let base = logits(&model, &tokenizer, MOTHER_TONGUE);

    let added = editor
        .add(&mut model, &tokenizer, asked(mother_tongue()), &mut go_on)
        .unwrap();
    let figures = added.record.figures;
    println!(
        "{:.1} s, {} steps, {figures:?}",
        added.seconds, added.record.steps
    );
    assert!(
        figures.target_is_top1 && figures.target_probability > 0.8,
        "{figures:?}"
    );
    assert!(
        figures.perplexity_after / figures.perplexity_before < 1.01,
        "{figures:?}"
    );
    assert_eq!(say(&model, MOTHER_TONGUE), " English");
    assert_eq!(say(&model, NEIGHBOUR), neighbour);
    let alone = logits(&model, &tokenizer, MOTHER_TONGUE);

    let second = editor
        .add(&mut model, &tokenizer, asked(capital()), &mut go_on)
        .unwrap();
    assert_eq!(say(&model, CAPITAL), " Perth");
    assert_eq!(say(&model, MOTHER_TONGUE), " English");
    let both = logits(&model, &tokenizer, MOTHER_TONGUE);

    drop(editor);
    model.install(&addenda_model::Overlay::base()).unwrap();
    assert_eq!(say(&model, MOTHER_TONGUE), at_first);
    let mut editor = Editor::open(settings, &mut model, &tokenizer, &mut go_on).unwrap();
    assert_eq!(editor.active(), 2);
    let apart = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
    assert!(apart(&logits(&model, &tokenizer, MOTHER_TONGUE), &both) <= 1e-5);
    assert_eq!(say(&model, CAPITAL), " Perth");

    let said = Fact {
        subject: "Paris".to_owned(),
        prompt: "{} is the capital of".to_owned(),
        target: "France".to_owned(),
        ..Fact::default()
    };
    let error = editor.add(&mut model, &tokenizer, asked(said), &mut go_on);
    assert!(matches!(error.unwrap_err(), Error::SaidAlready { .. }));

    editor
        .retire(&mut model, &tokenizer, second.record.id, &mut go_on)
        .unwrap();
    assert!(apart(&logits(&model, &tokenizer, MOTHER_TONGUE), &alone) <= 1e-5);
    assert_ne!(say(&model, CAPITAL), " Perth");
    editor
        .retire(&mut model, &tokenizer, added.record.id, &mut go_on)
        .unwrap();
    assert_eq!(logits(&model, &tokenizer, MOTHER_TONGUE), base);
    assert_eq!(smollm2_tokenizer().fingerprint(), tokenizer.fingerprint());
}
