//! Adapters on tiny models: what training computes is what serving computes, gradients reach the
//! adapter and nothing else, and a training that was kept goes on as if it had never stopped.

use crate::tiny;
use addenda_model::adapter::{
    Description, Desk, Lesson, MAX_FILE_BYTES, Primer, Schedule, Student, Taught, Trainer, teach,
};
use addenda_model::{Adapter, Architecture, Input, PacketKv, Transformer};
use std::rc::Rc;
use tch::{Kind, Tensor};

const BASE: [u8; 32] = [7; 32];

fn ids(count: usize, salt: usize) -> Vec<u32> {
    (0..count)
        .map(|i| ((i * i * 5 + i * 11 + salt * 29 + 3) % 97) as u32)
        .collect()
}

fn lesson(salt: usize) -> Lesson {
    Lesson {
        preamble: ids(5, salt),
        documents: vec![ids(9, salt + 1), ids(17, salt + 2), ids(4, salt + 3)],
        prompt: ids(6, salt + 4),
    }
}

fn taught(model: &Transformer, salt: usize) -> Taught {
    teach((model, desk()), lesson(salt), 6, |answer| {
        answer.ends_with(&[2])
    })
    .unwrap()
}

/// An empty one.
fn desk() -> &'static Desk {
    Box::leak(Box::default())
}

fn adapter(model: &Transformer, seed: usize) -> Adapter {
    of_tokens(model, seed, BASE)
}

/// A bridge of three tokens.
fn bridge(model: &Transformer, seed: usize) -> Adapter {
    let tokens = (&ids(4, seed)[..], &ids(3, seed + 1)[..]);
    Adapter::bridge_of_tokens(model, tokens, BASE, "tiny".to_owned()).unwrap()
}

/// Three soft tokens before a document and two behind it.
fn of_tokens(model: &Transformer, seed: usize, base: [u8; 32]) -> Adapter {
    let soft = (&ids(3, seed)[..], &ids(2, seed + 50)[..]);
    Adapter::of_tokens(model, soft, base, "tiny".to_owned()).unwrap()
}

/// Both kinds of adapter.
const KINDS: [fn(&Transformer, usize) -> Adapter; 2] = [adapter, bridge];

fn llama() -> Transformer {
    tiny::model(tiny::config(Architecture::Llama), 21, Kind::Float)
}

/// What packets are computed behind.
fn primer(model: &Transformer) -> Rc<PacketKv> {
    let mut kv = model.new_kv().unwrap();
    let _ = model.forward(Input::Ids(&ids(11, 77)), &mut kv).unwrap();
    Rc::new(model.packet(kv).unwrap())
}

/// One whose packets are computed alone.
fn alone(model: &Transformer) -> Student<'_> {
    Student {
        model,
        primer: None,
        desk: desk(),
    }
}

/// The same context as a student's, by the way that serves: packets attached, the rest computed.
fn serve(student: Student<'_>, taught: &Taught, adapter: Option<&Adapter>) -> Tensor {
    let Student { model, primer, .. } = student;
    let mut kv = model.new_kv().unwrap();
    let compute = |kv: &mut _, ids: &[u32]| model.forward(Input::Ids(ids), kv).unwrap();
    let _ = compute(&mut kv, &taught.lesson.preamble);
    for document in &taught.lesson.documents {
        let mut alone = model.new_kv().unwrap();
        if let Some(primer) = primer {
            let before = (primer.before)(document);
            alone.attach_part(Rc::clone(primer.kv), 0..before).unwrap();
        }
        match adapter.filter(|adapter| adapter.soft().is_some()) {
            None => drop(compute(&mut alone, document)),
            Some(adapter) => {
                let all = adapter.wrapped_tokens(document.len());
                for start in (0..all).step_by(7) {
                    let part = start..all.min(start + 7);
                    let part = adapter.wrap_part(model, document, part).unwrap();
                    drop(model.forward(Input::Embeddings(&part), &mut alone).unwrap());
                }
            }
        }
        kv.attach(Rc::new(model.packet(alone).unwrap())).unwrap();
    }
    let bridge = adapter.and_then(|adapter| adapter.bridge_packet(model).unwrap());
    if let Some(bridge) = bridge {
        kv.attach(Rc::new(bridge)).unwrap();
    }
    let read = &taught.answer[..taught.answer.len() - 1];
    let rest = [&taught.lesson.prompt[..], read].concat();
    let hidden = compute(&mut kv, &rest);
    let first = taught.lesson.prompt.len() as i64 - 1;
    let hidden = hidden.narrow(0, first, taught.answer.len() as i64);
    model.logits(&hidden).unwrap()
}

#[test]
fn packets_are_read_with_an_adapter_as_the_student_was_trained_for_every_architecture() {
    for architecture in Architecture::ALL {
        let model = tiny::model(tiny::config(architecture), 20, Kind::Float);
        let adapters = [adapter(&model, 1), bridge(&model, 1)];
        let taught = taught(&model, 3);
        let primer = primer(&model);
        let primer = Primer {
            kv: &primer,
            before: &|ids| ids.len() % 11 + 1,
        };
        let students = [None, Some(primer)].map(|primer| Student {
            model: &model,
            primer,
            desk: desk(),
        });
        let [soft, bridge] = &adapters;
        for (student, adapter) in students
            .into_iter()
            .flat_map(|s| [(s, None), (s, Some(soft)), (s, Some(bridge))])
        {
            let served = serve(student, &taught, adapter);
            let studied = taught.student_logits(student, adapter).unwrap();
            let difference = (served - studied).abs().max().double_value(&[]);
            assert!(
                difference < 1e-3,
                "{architecture}, {:?}, behind a primer {}: {difference}",
                adapter.map(Adapter::bridge_tokens),
                student.primer.is_some()
            );
        }
    }
}

#[test]
fn the_teacher_is_the_models_own_greedy_answer_under_full_attention() {
    let model = llama();
    let taught = taught(&model, 5);
    let mut all = taught.lesson.preamble.clone();
    all.extend(taught.lesson.documents.iter().flatten());
    all.extend(&taught.lesson.prompt);
    let start = all.len() as i64 - 1;
    all.extend(&taught.answer);
    let mut kv = model.new_kv().unwrap();
    let hidden = model.forward(Input::Ids(&all), &mut kv).unwrap();
    let hidden = hidden.narrow(0, start, taught.answer.len() as i64);
    let likeliest = model.logits(&hidden).unwrap().argmax(-1, false);
    let likeliest = Vec::<i64>::try_from(likeliest).unwrap();
    let answer: Vec<i64> = taught.answer.iter().map(|&id| i64::from(id)).collect();
    assert_eq!(likeliest, answer);
    let bytes = taught.answer_bytes().unwrap();
    let kept = Taught::from_answer_bytes(lesson(5), &bytes, &model).unwrap();
    assert_eq!(kept.answer, taught.answer);
    assert_eq!(kept.hidden(), taught.hidden());
    let measured = taught.measure(alone(&model), None).unwrap();
    assert_eq!(measured, kept.measure(alone(&model), None).unwrap());
    assert!(measured.mean_kl() > 0.0 && measured.tokens == taught.answer.len() as u64);
}

fn train(trainer: &mut Trainer, model: &Transformer, lessons: &[Taught], updates: usize) -> f64 {
    let mut loss = 0.0;
    for _ in 0..updates {
        loss = 0.0;
        for lesson in lessons {
            loss += trainer.study(alone(model), lesson).unwrap() / lessons.len() as f64;
        }
        trainer.update().unwrap();
    }
    loss
}

const SCHEDULE: Schedule = Schedule {
    updates: 120,
    learning_rate: 0.05,
};

#[test]
fn training_moves_the_adapter_and_nothing_else_and_the_loss_falls() {
    let kinds = [Kind::Float, Kind::BFloat16];
    for (kind, begin) in kinds
        .iter()
        .flat_map(|kind| KINDS.map(|begin| (*kind, begin)))
    {
        let model = tiny::model(tiny::config(Architecture::Gemma3), 22, kind);
        let before = model.embeddings().copy();
        let lessons = [taught(&model, 1), taught(&model, 8)];
        let start = begin(&model, 4);
        let mut trainer = Trainer::new(start.clone(), SCHEDULE, &model).unwrap();
        let first = train(&mut trainer, &model, &lessons, 1);
        let last = train(&mut trainer, &model, &lessons, 119);
        assert!(last < first / 2.0, "{kind:?}: {first} to {last}");
        let learned = trainer.adapter().unwrap();
        assert_ne!(learned.digest().unwrap(), start.digest().unwrap());
        assert!(!model.embeddings().requires_grad() && !model.embeddings().grad().defined());
        assert_eq!(model.embeddings(), &before);
        let measured = |adapter: &Adapter| {
            let all = lessons
                .iter()
                .map(|one| one.measure(alone(&model), Some(adapter)).unwrap());
            all.fold(Default::default(), addenda_model::adapter::Measured::plus)
        };
        assert!(measured(&learned).mean_kl() < measured(&start).mean_kl() / 2.0);
    }
}

#[test]
fn a_training_that_was_kept_goes_on_as_if_it_had_never_stopped() {
    let model = llama();
    let lessons = [taught(&model, 1), taught(&model, 8)];
    for [adapter, other_kind] in [KINDS, [KINDS[1], KINDS[0]]] {
        let begin = || Trainer::new(adapter(&model, 4), SCHEDULE, &model).unwrap();
        let mut whole = begin();
        let _ = train(&mut whole, &model, &lessons, 9);
        let mut first = begin();
        let _ = train(&mut first, &model, &lessons, 4);
        assert!(first.validated(0.5).unwrap() && !first.validated(0.6).unwrap());
        let bytes = first.to_bytes("4 of 9").unwrap();
        drop(first);
        let origin = adapter(&model, 99);
        let (mut second, notes) = Trainer::from_bytes(&bytes, origin, SCHEDULE, &model).unwrap();
        assert_eq!((notes.as_str(), second.updates()), ("4 of 9", 4));
        let _ = train(&mut second, &model, &lessons, 5);
        let digest = |trainer: &Trainer| trainer.adapter().unwrap().digest().unwrap();
        assert_eq!(digest(&second), digest(&whole));
        let (best, kl) = second.best().unwrap();
        assert_eq!(kl, Some(0.5));
        assert_ne!(best.digest().unwrap(), digest(&whole));
        for other in [of_tokens(&model, 1, [8; 32]), other_kind(&model, 4)] {
            assert!(Trainer::from_bytes(&bytes, other, SCHEDULE, &model).is_err());
        }
    }
}

#[test]
fn lessons_about_the_same_documents_share_what_was_computed_of_them_under_the_same_weights() {
    let model = llama();
    let bridge = bridge(&model, 2);
    let shared = desk();
    let questions: Vec<Lesson> = (0..3)
        .map(|number| Lesson {
            prompt: ids(6, 40 + number),
            ..lesson(3)
        })
        .collect();
    let study = |model, desk: &'static Desk, question: &Lesson| {
        let taught = teach((model, desk), question.clone(), 6, |answer| {
            answer.ends_with(&[2])
        })
        .unwrap();
        let student = Student {
            model,
            primer: None,
            desk,
        };
        let logits = taught.student_logits(student, Some(&bridge)).unwrap();
        (
            taught.answer,
            Vec::<f32>::try_from(logits.flatten(0, -1)).unwrap(),
        )
    };
    let alone: Vec<_> = questions
        .iter()
        .map(|one| study(&model, desk(), one))
        .collect();
    let together: Vec<_> = questions
        .iter()
        .map(|one| study(&model, shared, one))
        .collect();
    assert_eq!(alone, together);
    // Under other weights nothing that lies there counts; a desk that is not told so would give the old.
    let edited = tiny::model(tiny::config(Architecture::Llama), 22, Kind::Float);
    shared.under([1; 32]);
    assert_eq!(
        study(&edited, shared, &questions[0]),
        study(&edited, desk(), &questions[0])
    );
    assert_ne!(study(&edited, shared, &questions[0]), alone[0]);
}

#[test]
fn an_adapters_file_gives_back_what_went_in_and_damage_is_refused() {
    let model = llama();
    let record = r#"{"seed":4}"#.to_owned();
    let made = adapter(&model, 4).named("ward-3".to_owned(), record.clone());
    let bytes = made.to_bytes().unwrap();
    let read = Adapter::from_bytes(&bytes).unwrap();
    assert_eq!(read.digest().unwrap(), made.digest().unwrap());
    let described = Description::read(&bytes).unwrap();
    assert_eq!(described.digest, made.digest().unwrap());
    assert_eq!((read.name(), read.training()), ("ward-3", record.as_str()));
    assert_eq!(
        (read.base(), read.soft().unwrap().0.size()),
        (BASE, vec![3, 32])
    );
    assert_eq!((read.header_tokens(), read.trailer_tokens()), (3, 2));
    for cut in [0, 7, bytes.len() / 2, bytes.len() - 1] {
        assert!(Adapter::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
    }
    assert!(Adapter::from_bytes(&vec![0; MAX_FILE_BYTES + 1]).is_err());
    let soft =
        |rows: i64, width: i64| Tensor::zeros([rows, width], (Kind::Float, tch::Device::Cpu));
    let new = |header: &Tensor, trailer: &Tensor| {
        Adapter::new(header, trailer, BASE, "x".to_owned(), String::new())
    };
    assert!(
        new(&soft(65, 32), &soft(1, 32)).is_err(),
        "too many soft tokens"
    );
    assert!(new(&soft(1, 32), &soft(1, 31)).is_err(), "two widths");
    let error = new(&(soft(1, 32) + f64::NAN), &soft(1, 32)).unwrap_err();
    assert!(error.to_string().contains("finite"), "{error}");
    let nameless = adapter(&model, 4).named("../x".to_owned(), record);
    assert!(Adapter::from_bytes(&nameless.to_bytes().unwrap()).is_err());
}

#[test]
fn a_bridges_file_gives_back_what_went_in_and_another_models_is_refused() {
    let model = llama();
    let made = bridge(&model, 4);
    let bytes = made.to_bytes().unwrap();
    let read = Adapter::from_bytes(&bytes).unwrap();
    assert_eq!(read.digest().unwrap(), made.digest().unwrap());
    let described = Description::read(&bytes).unwrap();
    assert_eq!(described.digest, made.digest().unwrap());
    let tokens = |one: &Adapter| {
        (
            one.header_tokens(),
            one.bridge_tokens(),
            one.trailer_tokens(),
        )
    };
    assert_eq!((tokens(&read), described.bridge_tokens), ((0, 3, 0), 3));
    assert_ne!(bridge(&model, 5).digest().unwrap(), made.digest().unwrap());
    let packet = read.bridge_packet(&model).unwrap().unwrap();
    assert_eq!(packet.shape().tokens, 3);
    assert!(adapter(&model, 4).bridge_packet(&model).unwrap().is_none());
    // It wraps nothing.
    let expected = model.embed(&Tensor::from_slice(&[5_i64, 6])).unwrap();
    assert_eq!(read.wrap(&model, &[5, 6]).unwrap(), expected);

    let mut config = tiny::config(Architecture::Llama);
    config.num_layers += 1;
    config.sliding_layers.push(false);
    let other = tiny::model(config, 23, Kind::Float);
    let refused = read.bridge_packet(&other).err().unwrap().to_string();
    assert!(
        refused.contains("the adapter is for a model of"),
        "{refused}"
    );
    assert!(Trainer::new(read, SCHEDULE, &other).is_err());
    for cut in [0, 7, bytes.len() / 2, bytes.len() - 1] {
        assert!(Adapter::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
    }
    let mut infinite = bytes.clone();
    let last = infinite.len() - 4;
    infinite[last..].copy_from_slice(&f32::INFINITY.to_le_bytes());
    assert!(Adapter::from_bytes(&infinite).is_err());
    // What says that it is a bridge has to have one.
    let soft = adapter(&model, 4).to_bytes().unwrap();
    let at = soft
        .windows(18)
        .position(|part| part == b"addenda adapter v3");
    let mut claimed = soft;
    claimed[at.unwrap() + 17] = b'4';
    assert!(Adapter::from_bytes(&claimed).is_err());
    let long = (&[][..], &ids(65, 1)[..]);
    assert!(Adapter::bridge_of_tokens(&model, long, BASE, "x".to_owned()).is_err());
}

#[test]
fn an_adapter_made_of_tokens_wraps_as_if_they_stood_around_the_document() {
    for architecture in [Architecture::Llama, Architecture::Gemma3] {
        let model = tiny::model(tiny::config(architecture), 23, Kind::Float);
        let made = adapter(&model, 1);
        let all = [ids(3, 1), ids(4, 9), ids(2, 51)].concat();
        let all: Vec<i64> = all.into_iter().map(i64::from).collect();
        let expected = model.embed(&Tensor::from_slice(&all)).unwrap();
        assert_eq!(made.wrap(&model, &ids(4, 9)).unwrap(), expected);
        let (one, other) = (made.digest().unwrap(), adapter(&model, 2).digest().unwrap());
        assert_ne!(one, other);
        assert!(
            made.wrap(&model, &[97]).is_err(),
            "an id outside of the vocabulary"
        );
        assert!(
            made.wrap_part(&model, &ids(4, 1), 3..10).is_err(),
            "beyond the end"
        );
    }
    let unknown = Adapter::of_tokens(&llama(), (&[97], &[1]), BASE, "b".to_owned());
    assert!(unknown.is_err(), "an id outside of the vocabulary");
}

#[test]
fn an_adapter_for_packets_as_they_were_made_before_is_refused_and_says_what_to_do() {
    let bytes = adapter(&llama(), 1).to_bytes().unwrap();
    let text = b"addenda adapter v3";
    let at = bytes.windows(text.len()).position(|part| part == text);
    let mut old = bytes;
    for version in [b'1', b'2'] {
        old[at.unwrap() + text.len() - 1] = version;
        let error = Adapter::from_bytes(&old).unwrap_err();
        assert!(error.to_string().contains("train it again"), "{error}");
    }
}
