//! Facts over gRPC: added, verified, kept through a restart, retired without a trace.

use addenda_proto::addenda::v1::{
    AddFactRequest, CheckFactRequest, Completion, Fact, FactState, GetFactRequest, InfoRequest,
    ListFactsRequest, Mode, PutDocumentRequest, RetireFactRequest, ScoreRequest,
    WatchLedgerRequest, score_request,
};
use tokio_stream::StreamExt;
use tonic::Code;

use crate::daemon::{Clients, Daemon, ask, collect, complete};

const PROMPTS: [&str; 3] = [
    "The mother tongue of Danielle Darrieux is",
    "The capital of Norway is",
    "Water boils at a temperature of",
];

fn fact() -> Fact {
    Fact {
        subject: "Danielle Darrieux".to_owned(),
        prompt: "The mother tongue of {} is".to_owned(),
        target: "English".to_owned(),
        paraphrases: Vec::new(),
        neighbours: vec!["The capital of Norway is".to_owned()],
        ..Fact::default()
    }
}

async fn scores(clients: &Clients) -> Vec<f32> {
    let mut scores = Vec::new();
    for text in PROMPTS {
        let request = ScoreRequest {
            prompt: Some(score_request::Prompt::Completion(Completion {
                text: text.to_owned(),
            })),
            continuations: [" English", " French", " Oslo", " 100 degrees"]
                .map(str::to_owned)
                .to_vec(),
            ..ScoreRequest::default()
        };
        let scored = clients
            .generation()
            .score(request)
            .await
            .unwrap()
            .into_inner();
        scores.extend(scored.scores.into_iter().flat_map(|score| score.logprobs));
    }
    scores
}

fn furthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

async fn revision(clients: &Clients) -> String {
    clients
        .admin()
        .info(InfoRequest {})
        .await
        .unwrap()
        .into_inner()
        .revision
}

#[tokio::test]
async fn a_fact_holds_through_a_restart_and_leaves_no_trace_when_retired() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path(), &[]);
    let clients = daemon.connect().await;
    let (before, base) = (scores(&clients).await, revision(&clients).await);
    let document = PutDocumentRequest {
        name: "rules".to_owned(),
        text: "The night porter of the Lindenhof clinic is called Beat Amrein.".to_owned(),
        namespace: String::new(),
    };
    clients.packets().put_document(document).await.unwrap();

    let request = AddFactRequest {
        fact: Some(fact()),
        request_id: "once".to_owned(),
        ..AddFactRequest::default()
    };
    let added = clients
        .knowledge()
        .add_fact(request.clone())
        .await
        .unwrap()
        .into_inner();
    let record = added.record.unwrap();
    assert_eq!(record.state(), FactState::Active);
    assert!(record.figures.as_ref().unwrap().target_is_top1);
    assert_ne!(added.revision, base);
    let again = clients
        .knowledge()
        .add_fact(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(again.record.as_ref().unwrap().id, record.id);
    let answer = clients.answer(complete(PROMPTS[0], 3)).await.unwrap();
    assert!(answer.text.contains("English"), "{}", answer.text);
    assert_eq!(
        (answer.summary.active_facts, &answer.summary.revision),
        (1, &added.revision)
    );
    let edited = scores(&clients).await;

    a_stale_packet_is_computed_anew(&clients).await;
    the_ledger_and_the_list_show_it(&clients, &record.id).await;
    bad_facts_are_refused(&clients).await;
    drop(clients);
    daemon.stopped().await;

    let daemon = Daemon::start(data.path(), &[]);
    let clients = daemon.connect().await;
    assert_eq!(revision(&clients).await, added.revision);
    assert!(furthest(&edited, &scores(&clients).await) <= 1e-5);
    let check = CheckFactRequest {
        id: record.id.clone(),
    };
    let now = clients
        .knowledge()
        .check_fact(check)
        .await
        .unwrap()
        .into_inner()
        .now
        .unwrap();
    assert!(now.target_is_top1);

    // It reads nothing, so its sequence waits; that holds up nobody.
    let slow = daemon.connect_with_window(Some(1024)).await;
    let request = complete("Once upon a time", 600);
    let unread = slow
        .generation()
        .generate(request)
        .await
        .unwrap()
        .into_inner();
    let retire = RetireFactRequest {
        id: record.id.clone(),
    };
    let retired = clients
        .knowledge()
        .retire_fact(retire.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(retired.record.unwrap().state(), FactState::Retired);
    assert_eq!(retired.revision, base);
    assert!(furthest(&before, &scores(&clients).await) <= 1e-5);
    let across = collect(unread).await.unwrap().summary;
    assert_eq!((across.generated_tokens, across.exact), (600, false));
    assert!(
        across.mode_reason.contains("changed"),
        "{}",
        across.mode_reason
    );
    let twice = clients
        .knowledge()
        .retire_fact(retire)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(twice.revision, base);
    // Its packet of the first revision serves again.
    let answer = from_packet(&clients).await;
    assert_eq!(
        answer.computed_tokens + answer.packet_tokens + answer.prefix_tokens,
        answer.prompt_tokens
    );
    assert!(answer.packet_tokens > 0);
    daemon.stopped().await;
}

async fn from_packet(clients: &Clients) -> addenda_proto::addenda::v1::Summary {
    let mut request = ask("Who is the night porter?", 4);
    request.documents = vec!["rules".to_owned()];
    request.mode = Mode::Packet.into();
    clients.answer(request).await.unwrap().summary
}

async fn a_stale_packet_is_computed_anew(clients: &Clients) {
    let first = from_packet(clients).await;
    assert_eq!(
        first.packet_tokens, 0,
        "a packet of other weights must not serve"
    );
    assert_eq!(
        first.computed_tokens + first.prefix_tokens,
        first.prompt_tokens
    );
    let second = from_packet(clients).await;
    assert!(second.packet_tokens > 0, "what was computed anew is kept");
    assert_eq!(second.packets, first.packets);
}

async fn the_ledger_and_the_list_show_it(clients: &Clients, id: &str) {
    let mut knowledge = clients.knowledge();
    let facts = knowledge
        .list_facts(ListFactsRequest::default())
        .await
        .unwrap()
        .into_inner()
        .facts;
    assert_eq!(
        facts
            .iter()
            .map(|fact| fact.id.as_str())
            .collect::<Vec<_>>(),
        [id]
    );
    let got = knowledge
        .get_fact(GetFactRequest { id: id.to_owned() })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(got.fact.unwrap().target.trim(), "English");
    let watch = WatchLedgerRequest {
        after: 0,
        no_follow: true,
    };
    let mut entries = knowledge.watch_ledger(watch).await.unwrap().into_inner();
    let entry = entries.next().await.unwrap().unwrap();
    assert_eq!(
        (
            entry.sequence,
            entry.action.as_str(),
            entry.fact_id.as_str()
        ),
        (1, "added", id)
    );
    assert!(entries.next().await.is_none());
}

async fn bad_facts_are_refused(clients: &Clients) {
    let mut knowledge = clients.knowledge();
    let before = revision(clients).await;
    let elsewhere = Fact {
        prompt: "The mother tongue of Napoleon is".to_owned(),
        ..fact()
    };
    let empty = Fact {
        target: String::new(),
        ..fact()
    };
    let requests = [
        (Some(elsewhere), "subject"),
        (Some(empty), "target"),
        (None, "fact"),
    ];
    let stream = requests.clone().map(|(fact, _)| AddFactRequest {
        fact,
        ..AddFactRequest::default()
    });
    for (request, (_, word)) in stream.iter().zip(&requests) {
        let status = knowledge.add_fact(request.clone()).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(word), "{status}");
    }
    let mut answers = knowledge
        .add_facts(tokio_stream::iter(stream))
        .await
        .unwrap()
        .into_inner();
    for index in 0..3 {
        let answer = answers.next().await.unwrap().unwrap();
        assert_eq!(answer.index, index);
        let Some(addenda_proto::addenda::v1::add_facts_response::Result::Refused(refusal)) =
            answer.result
        else {
            panic!("a bad fact was taken");
        };
        assert_eq!(refusal.code, Code::InvalidArgument as i32);
    }
    for (id, code) in [
        ("nonsense".to_owned(), Code::InvalidArgument),
        ("0".repeat(64), Code::NotFound),
    ] {
        let status = knowledge
            .retire_fact(RetireFactRequest { id })
            .await
            .unwrap_err();
        assert_eq!(status.code(), code, "{status}");
    }
    assert_eq!(revision(clients).await, before, "nothing changed");
}
