//! Adapters over gRPC: trained as a job that survives being stopped, activated, exported and
//! imported; packets and answers name the one they were made with.

use std::path::Path;
use std::time::Instant;

use addenda_model::Adapter;
use addenda_proto::addenda::v1::lookup_request::{Query, query::By};
use addenda_proto::addenda::v1::{
    ActivateAdapterRequest, AdapterRecord, AddFactRequest, ExportAdapterRequest, Fact,
    GetJobRequest, ImportAdapterRequest, InfoRequest, JobRecord, JobState, ListAdaptersRequest,
    LookupRequest, Mode, PacketRecord, TrainAdapterRequest, TrainingData,
};
use tch::{Device, Kind, Tensor};
use tokio_stream::StreamExt;
use tonic::{Code, Status};

use crate::daemon::{Clients, Daemon, ask, document};

const VISITING: &str = "Visiting hours in the Lindenhof clinic are from 14:10 to 19:40.";

async fn list(clients: &Clients) -> Vec<AdapterRecord> {
    let list = clients.adapters().list(ListAdaptersRequest {}).await;
    list.unwrap().into_inner().adapters
}

async fn base(clients: &Clients) -> [u8; 32] {
    let info = clients.admin().info(InfoRequest {}).await.unwrap();
    let hex = info.into_inner().base_fingerprint;
    *blake3::Hash::from_hex(hex).unwrap().as_bytes()
}

/// An adapter of 3 + 2 soft tokens for SmolLM2, as a file.
fn file(base: [u8; 32], name: &str, scale: f64) -> Vec<u8> {
    let soft = |rows: i64| Tensor::ones([rows, 576], (Kind::Float, Device::Cpu)) * scale;
    let adapter = Adapter::new(&soft(3), &soft(2), base, name.to_owned(), "{}".to_owned());
    adapter.unwrap().to_bytes().unwrap()
}

async fn import(clients: &Clients, file: Vec<u8>) -> Result<AdapterRecord, Status> {
    let request = ImportAdapterRequest {
        file,
        activate: false,
    };
    let imported = clients.adapters().import(request).await;
    imported.map(tonic::Response::into_inner)
}

async fn activate(clients: &Clients, id: &str) -> Result<AdapterRecord, Status> {
    let request = ActivateAdapterRequest { id: id.to_owned() };
    let activated = clients.adapters().activate(request).await;
    activated.map(tonic::Response::into_inner)
}

async fn put(clients: &Clients) -> PacketRecord {
    let put = clients
        .packets()
        .put_document(document("", "visiting", VISITING))
        .await;
    put.unwrap().into_inner().packet.unwrap()
}

#[tokio::test]
async fn activating_an_adapter_changes_packet_keys_and_answers_name_it() {
    let data = tempfile::tempdir().unwrap();
    let server = Daemon::start(data.path(), &[("adapter", "auto")]);
    let clients = server.connect().await;
    activate(&clients, "none").await.unwrap();
    let plain = put(&clients).await;
    assert_eq!(plain.adapter, "");
    let imported = import(&clients, file(base(&clients).await, "ward-3", 0.01))
        .await
        .unwrap();
    assert_eq!((imported.name.as_str(), imported.active), ("ward-3", false));
    assert_eq!((imported.header_tokens, imported.trailer_tokens), (3, 2));
    let short = activate(&clients, &imported.id[..3]).await.unwrap_err();
    assert_eq!(short.code(), Code::NotFound);
    // As `adapter list` shows it.
    let by_beginning = activate(&clients, &imported.id[..12]).await.unwrap();
    assert_eq!(
        (&by_beginning.id, by_beginning.active),
        (&imported.id, true)
    );
    activate(&clients, "none").await.unwrap();
    assert!(activate(&clients, "ward-3").await.unwrap().active);

    let lookup = LookupRequest {
        queries: vec![Query {
            by: Some(By::Document("visiting".to_owned())),
            name: String::new(),
        }],
        namespace: String::new(),
    };
    let miss = clients.packets().lookup(lookup).await.unwrap().into_inner();
    let reason = &miss.hits[0].miss_reason;
    assert!(reason.contains("no adapter"), "{reason}");
    let mut request = ask("When may I visit?", 8);
    request.documents = vec!["visiting".to_owned()];
    request.mode = Mode::Packet.into();
    let answer = clients.answer(request.clone()).await.unwrap().summary;
    assert_eq!(answer.adapter, imported.id);
    let wrapped = put(&clients).await;
    assert_eq!(wrapped.adapter, imported.id);
    assert_eq!(wrapped.tokens, plain.tokens + 5);
    assert_ne!(wrapped.key, plain.key);
    request.mode = Mode::Full.into();
    let full = clients.answer(request.clone()).await.unwrap().summary;
    assert_eq!(full.adapter, "");
    assert_eq!(answer.prompt_tokens, full.prompt_tokens + 5);

    // The choice outlives the daemon, and so does taking it back.
    drop(clients);
    server.stopped().await;
    let server = Daemon::start(data.path(), &[("adapter", "auto")]);
    let clients = server.connect().await;
    let active = list(&clients).await.into_iter().find(|one| one.active);
    assert_eq!(active.unwrap().id, imported.id);
    assert_eq!(put(&clients).await.id, wrapped.id);
    activate(&clients, "none").await.unwrap();
    assert_eq!(put(&clients).await.id, plain.id);
    drop(clients);
    server.stopped().await;
    let server = Daemon::start(data.path(), &[("adapter", "auto")]);
    assert!(
        list(&server.connect().await)
            .await
            .iter()
            .all(|one| !one.active)
    );
    server.stopped().await;
}

/// A bridge of five tokens for SmolLM2, as a file.
fn bridge(base: [u8; 32]) -> Vec<u8> {
    let values = Tensor::ones([30, 2, 3, 5, 64], (Kind::Float, Device::Cpu)) * 0.1;
    let made = Adapter::of_bridge(&values, base, "lectern".to_owned(), "{}".to_owned());
    made.unwrap().to_bytes().unwrap()
}

#[tokio::test]
async fn a_bridge_stands_behind_packets_which_stay_what_they_are() {
    let data = tempfile::tempdir().unwrap();
    let server = Daemon::start(data.path(), &[("adapter", "none")]);
    let clients = server.connect().await;
    let plain = put(&clients).await;
    let mut request = ask("When may I visit?", 8);
    request.documents = vec!["visiting".to_owned()];
    request.mode = Mode::Packet.into();
    request.top_logprobs = 1;
    let without = clients.answer(request.clone()).await.unwrap();
    let imported = import(&clients, bridge(base(&clients).await))
        .await
        .unwrap();
    let tokens = (
        imported.header_tokens,
        imported.bridge_tokens,
        imported.trailer_tokens,
    );
    assert_eq!(tokens, (0, 5, 0));
    activate(&clients, "lectern").await.unwrap();

    let with = clients.answer(request.clone()).await.unwrap();
    let (before, now) = (&without.summary, &with.summary);
    assert_eq!(
        (before.adapter.as_str(), now.adapter.as_str()),
        ("", imported.id.as_str())
    );
    assert_eq!(now.prompt_tokens, before.prompt_tokens + 5);
    assert_eq!(now.packet_tokens, before.packet_tokens + 5);
    assert_eq!((&now.packets, now.exact), (&before.packets, false));
    assert_ne!(
        with.tokens[0].logprob, without.tokens[0].logprob,
        "it is read"
    );
    assert_eq!(put(&clients).await.id, plain.id);
    assert_eq!(put(&clients).await.adapter, "");

    // Whatever reads no packet as it stands has no bridge.
    for mode in [Mode::Full, Mode::Link, Mode::Preload] {
        request.mode = mode.into();
        let other = clients.answer(request.clone()).await.unwrap().summary;
        assert_eq!(other.adapter, "", "{mode:?}");
        assert_eq!(other.prompt_tokens, before.prompt_tokens, "{mode:?}");
    }

    // It stands there under other weights as well, and after a restart.
    let fact = Fact {
        subject: "Danielle Darrieux".to_owned(),
        prompt: "The mother tongue of {} is".to_owned(),
        target: "English".to_owned(),
        ..Fact::default()
    };
    let add = AddFactRequest {
        fact: Some(fact),
        ..AddFactRequest::default()
    };
    clients.knowledge().add_fact(add).await.unwrap();
    request.mode = Mode::Packet.into();
    let edited = clients.answer(request.clone()).await.unwrap().summary;
    assert_eq!(
        (edited.active_facts, edited.prompt_tokens),
        (1, now.prompt_tokens)
    );
    drop(clients);
    server.stopped().await;
    let server = Daemon::start(data.path(), &[("adapter", "auto")]);
    let clients = server.connect().await;
    let again = clients.answer(request).await.unwrap().summary;
    assert_eq!(again.adapter, imported.id);
    drop(clients);
    server.stopped().await;
}

#[tokio::test]
async fn an_adapter_goes_out_and_in_again_and_another_models_is_refused_by_name() {
    let data = tempfile::tempdir().unwrap();
    let server = Daemon::start(data.path(), &[]);
    let clients = server.connect().await;
    let base = base(&clients).await;
    let made = file(base, "ward-4", 0.02);
    let id = import(&clients, made.clone()).await.unwrap().id;
    let export = |id: &str| ExportAdapterRequest { id: id.to_owned() };
    for reference in [id.as_str(), "ward-4"] {
        let out = clients.adapters().export(export(reference)).await.unwrap();
        let out = out.into_inner().file;
        assert_eq!(Adapter::from_bytes(&out).unwrap().name(), "ward-4");
        assert_eq!(import(&clients, out).await.unwrap().id, id);
    }
    let named = list(&clients)
        .await
        .into_iter()
        .filter(|one| one.name == "ward-4");
    assert_eq!(
        named.count(),
        1,
        "the same adapter again is the same adapter"
    );

    let other = import(&clients, file([9; 32], "other", 0.02))
        .await
        .unwrap_err();
    assert_eq!(other.code(), Code::FailedPrecondition);
    assert!(
        other.message().contains("\"other\" was trained for"),
        "{other}"
    );
    let mut broken = made.clone();
    let last = broken.len() - 1;
    broken[last] = 0x7f;
    broken[last - 1] = 0xc0;
    for (what, file) in [
        ("not finite", broken),
        ("cut", made[..made.len() / 2].to_vec()),
        ("empty", Vec::new()),
        ("too large", vec![0; (8 << 20) + 1]),
    ] {
        let refused = import(&clients, file).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{what}: {refused}");
    }
    let missing = activate(&clients, "nobody").await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    let missing = clients
        .adapters()
        .export(export("nobody"))
        .await
        .unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    drop(clients);
    server.stopped().await;
    let config = crate::daemon::config(data.path(), &[("adapter", "nobody")]);
    let refused = Daemon::try_start(config).err().unwrap();
    assert!(
        refused
            .to_string()
            .contains("there is no adapter \"nobody\""),
        "{refused}"
    );
}

fn training(name: &str) -> TrainAdapterRequest {
    TrainAdapterRequest {
        name: name.to_owned(),
        bridge_tokens: 4,
        data: Some(TrainingData {
            suites: vec!["biography".to_owned()],
            samples: 4,
            validation: 1,
            questions: 3,
            ..TrainingData::default()
        }),
        epochs: 1,
        batch: 2,
        learning_rate: 2e-3,
        seed: 11,
        ..TrainAdapterRequest::default()
    }
}

/// Trains, cancelling once so many lessons are learned from; the job's last state.
async fn train(clients: &Clients, cancel_at: Option<u64>) -> JobRecord {
    let job = clients.adapters().train(training("ward-5")).await.unwrap();
    let id = job.into_inner().id;
    let of = || GetJobRequest { id: id.clone() };
    let mut states = clients.jobs().watch(of()).await.unwrap().into_inner();
    let mut last = None;
    while let Some(state) = states.next().await {
        let state = state.unwrap();
        let learned = state.phase.starts_with("learning") && cancel_at <= Some(state.done);
        if cancel_at.is_some() && learned {
            clients.jobs().cancel(of()).await.unwrap();
        }
        last = Some(state);
    }
    last.unwrap()
}

fn answers(data: &Path) -> Vec<std::path::PathBuf> {
    let Ok(trainings) = std::fs::read_dir(data.join("adapters/training")) else {
        return Vec::new();
    };
    let files = trainings.flat_map(|one| std::fs::read_dir(one.unwrap().path()).unwrap());
    let files = files.map(|file| file.unwrap().path());
    files
        .filter(|path| path.display().to_string().contains("answer-"))
        .collect()
}

#[tokio::test]
async fn a_training_that_was_stopped_goes_on_and_ends_as_if_it_had_not_been() {
    let [one, other] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let server = Daemon::start(one.path(), &[]);
    let clients = server.connect().await;
    let whole = train(&clients, None).await;
    assert_eq!(
        (whole.state(), whole.kind.as_str()),
        (JobState::Done, "train"),
        "{whole:?}"
    );
    let whole = list(&clients).await.remove(0);
    assert_eq!(
        (whole.updates, whole.samples, whole.name.as_str()),
        (2, 4, "ward-5")
    );
    assert!(whole.kl_before > 0.0 && whole.kl_after > 0.0, "{whole:?}");
    assert!(
        whole.training.contains("\"learning_rate\":0.002"),
        "{}",
        whole.training
    );
    assert!(
        answers(one.path()).is_empty(),
        "a finished training leaves nothing behind"
    );
    drop(clients);
    server.stopped().await;

    let server = Daemon::start(other.path(), &[]);
    let clients = server.connect().await;
    let stopped = train(&clients, Some(3)).await;
    assert_eq!(stopped.state(), JobState::Cancelled, "{stopped:?}");
    assert_eq!(
        answers(other.path()).len(),
        5,
        "the teacher's answers are kept"
    );
    // Somebody asks while it learns on: serving goes before training.
    drop(clients);
    server.stopped().await;
    let server = Daemon::start(other.path(), &[]);
    let clients = server.connect().await;
    let resumed = async {
        let asked = async {
            let began = Instant::now();
            let answer = clients.answer(ask("Say one word.", 2)).await.unwrap();
            (began.elapsed(), answer)
        };
        tokio::join!(train(&clients, None), asked)
    };
    let (job, (waited, answer)) = resumed.await;
    assert_eq!(job.state(), JobState::Done, "{job:?}");
    assert!(
        !answer.tokens.is_empty() && waited.as_secs() < 60,
        "{waited:?}"
    );
    assert_eq!(list(&clients).await.remove(0).id, whole.id);
    drop(clients);
    server.stopped().await;
}

#[tokio::test]
async fn a_training_that_cannot_be_is_refused_in_words() {
    let data = tempfile::tempdir().unwrap();
    let server = Daemon::start(data.path(), &[]);
    let clients = server.connect().await;
    let with = |change: fn(&mut TrainAdapterRequest)| {
        let mut request = training("x");
        change(&mut request);
        request
    };
    for (field, request) in [
        (
            "bridge_tokens",
            with(|one| (one.header_tokens, one.trailer_tokens) = (4, 4)),
        ),
        ("bridge_tokens", with(|one| one.bridge_tokens = 65)),
        (
            "header_tokens",
            with(|one| (one.header_tokens, one.bridge_tokens) = (65, 0)),
        ),
        (
            "data.questions",
            with(|one| one.data.as_mut().unwrap().questions = 17),
        ),
        ("epochs", with(|one| one.epochs = 21)),
        ("batch", with(|one| one.batch = 5)),
        ("learning_rate", with(|one| one.learning_rate = -1.0)),
        ("name", with(|one| one.name = "a/b".to_owned())),
        (
            "data.suites",
            with(|one| one.data.as_mut().unwrap().suites = vec!["poetry".to_owned()]),
        ),
    ] {
        let refused = clients.adapters().train(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().starts_with(field), "{refused}");
    }
    // What only the store knows fails the job.
    let mut request = training("x");
    request.data.as_mut().unwrap().suites = vec!["documents".to_owned()];
    let id = clients
        .adapters()
        .train(request)
        .await
        .unwrap()
        .into_inner()
        .id;
    let mut states = clients
        .jobs()
        .watch(GetJobRequest { id })
        .await
        .unwrap()
        .into_inner();
    let mut last = None;
    while let Some(state) = states.next().await {
        last = Some(state.unwrap());
    }
    let last = last.unwrap();
    assert_eq!(last.state(), JobState::Failed);
    assert!(
        last.error.contains("no documents in this namespace"),
        "{}",
        last.error
    );
    drop(clients);
    server.stopped().await;
}
