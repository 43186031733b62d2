//! What a daemon does with facts beside adding and retiring them: dates, patches, preparing, locating.

use std::time::{SystemTime, UNIX_EPOCH};

use addenda_proto::addenda::v1::{
    AddFactRequest, ExportPatchRequest, Fact, FactState, GetFactRequest, GetJobRequest,
    GetLocationRequest, InfoRequest, JobState, ListPatchesRequest, LocateRequest, PrepareRequest,
    WatchLedgerRequest, add_facts_response,
};
use tokio_stream::StreamExt;
use tonic::Code;

use crate::daemon::{Clients, Daemon, ask, complete};

fn fact() -> Fact {
    Fact {
        subject: "Danielle Darrieux".to_owned(),
        prompt: "The mother tongue of {} is".to_owned(),
        target: "English".to_owned(),
        ..Fact::default()
    }
}

fn request(fact: Fact) -> AddFactRequest {
    AddFactRequest {
        fact: Some(fact),
        ..AddFactRequest::default()
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

async fn ended(clients: &Clients, id: String) -> JobState {
    let states = clients.jobs().watch(GetJobRequest { id }).await.unwrap();
    let mut states = states.into_inner();
    let mut last = JobState::Unspecified;
    while let Some(job) = states.next().await {
        last = job.unwrap().state();
    }
    last
}

#[tokio::test]
async fn a_fact_comes_into_the_served_weights_on_its_day_by_itself() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path(), &[]);
    let clients = daemon.connect().await;
    let mut knowledge = clients.knowledge();
    let watch = WatchLedgerRequest::default();
    let mut ledger = knowledge.watch_ledger(watch).await.unwrap().into_inner();
    let dated = Fact {
        valid_from_ms: now_ms() + 15_000,
        ..fact()
    };
    let added = knowledge
        .add_fact(request(dated))
        .await
        .unwrap()
        .into_inner();
    let record = added.record.unwrap();
    assert_eq!(record.state(), FactState::Waiting);
    let figures = record.figures.unwrap();
    assert!(figures.target_is_top1 && figures.made_paraphrases && figures.made_neighbours);
    assert!(figures.chat_probability.is_some());
    let mut told = Vec::new();
    while told.len() < 2 {
        told.push(ledger.next().await.unwrap().unwrap().action);
    }
    assert_eq!(told, ["scheduled", "began"]);
    let id = record.id;
    let now = knowledge.get_fact(GetFactRequest { id }).await.unwrap();
    assert_eq!(now.get_ref().state(), FactState::Active);
    let question = complete("The mother tongue of Danielle Darrieux is", 3);
    let answer = clients.answer(question).await.unwrap();
    assert!(answer.text.contains("English"), "{}", answer.text);
}

#[tokio::test]
async fn a_fact_holds_in_answers_from_packed_weights_beside_other_requests_and_after_a_restart() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path(), &[("dtype", "bf16")]);
    let clients = daemon.connect().await;
    let info = clients.admin().info(InfoRequest {}).await.unwrap();
    let weights = &info.get_ref().weights;
    // The model's file has 4 bits a weight, so that is what it is served from where nothing else is asked for.
    assert!(weights.starts_with("int4 (auto"), "{weights}");
    let question = || complete("The mother tongue of Danielle Darrieux is", 3);
    let in_chat = || ask("What is the mother tongue of Danielle Darrieux?", 24);
    for asked in [question(), in_chat()] {
        let before = clients.answer(asked).await.unwrap();
        assert!(!before.text.contains("English"), "{}", before.text);
    }
    let mut knowledge = clients.knowledge();
    let adding = knowledge.add_fact(request(fact()));
    let others = async {
        let mut tokens = 0;
        for text in ["Bread is made of", "The first king of France was"] {
            tokens += clients
                .answer(complete(text, 24))
                .await
                .unwrap()
                .tokens
                .len();
        }
        tokens
    };
    let (added, others) = tokio::join!(adding, others);
    assert_eq!(
        (added.unwrap().get_ref().record.is_some(), others),
        (true, 48)
    );
    let after = clients.answer(question()).await.unwrap();
    assert!(after.text.contains("English"), "{}", after.text);
    assert_eq!(after.summary.active_facts, 1);
    drop(clients);
    daemon.stopped().await;
    for weights in ["int4", "int8", "bf16"] {
        let daemon = Daemon::start(data.path(), &[("dtype", "bf16"), ("weights", weights)]);
        let clients = daemon.connect().await;
        for asked in [question(), in_chat()] {
            let answer = clients.answer(asked).await.unwrap().text;
            assert!(answer.contains("English"), "{weights}: {answer}");
        }
        drop(clients);
        daemon.stopped().await;
    }
}

#[tokio::test]
async fn facts_go_from_one_daemon_to_another_as_a_file_and_the_model_is_prepared_and_traced() {
    let (there, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let daemon = Daemon::start(there.path(), &[]);
    let clients = daemon.connect().await;
    let mut knowledge = clients.knowledge();
    let prepare = PrepareRequest::default();
    let job = knowledge.prepare(prepare).await.unwrap().into_inner();
    assert_eq!(ended(&clients, job.id).await, JobState::Done);
    let added = knowledge
        .add_fact(request(fact()))
        .await
        .unwrap()
        .into_inner();
    let listed = knowledge
        .list_patches(ListPatchesRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(
        listed
            .patches
            .iter()
            .all(|patch| patch.kind == "facts" && patch.rank == 1)
    );
    assert_eq!(listed.revision, added.revision);
    let export = ExportPatchRequest { facts_only: true };
    let parts = knowledge.export_patch(export).await.unwrap().into_inner();
    let parts: Vec<_> = parts.map(Result::unwrap).collect().await;

    let other = Daemon::start(here.path(), &[]);
    let pupil = other.connect().await;
    let taken = pupil
        .knowledge()
        .import_patch(tokio_stream::iter(parts))
        .await;
    let taken = taken.unwrap().into_inner().facts;
    let Some(add_facts_response::Result::Added(taken)) = taken[0].result.clone() else {
        panic!("{taken:?}");
    };
    assert_eq!(taken.revision, added.revision);

    let knows = Fact {
        subject: "France".to_owned(),
        prompt: "The capital of {} is".to_owned(),
        target: "Paris".to_owned(),
        ..Fact::default()
    };
    let mut knowledge = pupil.knowledge();
    let unknown = knowledge.get_location(GetLocationRequest {}).await;
    if let Err(status) = unknown {
        assert_eq!(status.code(), Code::NotFound);
    }
    let locate = LocateRequest {
        facts: vec![knows],
        draws: 1,
        ..LocateRequest::default()
    };
    let job = knowledge.locate(locate).await.unwrap().into_inner();
    assert_eq!(ended(&pupil, job.id).await, JobState::Done);
    let found = knowledge
        .get_location(GetLocationRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!((found.traced, found.suggested.len()), (1, 5));
    assert!(found.noisy < found.clean);
    assert!(!found.effects.is_empty());
}
