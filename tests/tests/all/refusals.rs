//! What the daemon refuses, and that it goes on: bad input, deadlines, full queues, clients that
//! leave, and starts that cannot be.

use std::time::Duration;

use addenda_proto::addenda::v1::{
    ChatMessage, GetJobRequest, GetPacketRequest, InfoRequest, ListPacketsRequest, Sampling,
    ScoreResponse,
};
use tokio_stream::StreamExt;
use tonic::{Code, Request};

use crate::daemon::{Clients, Daemon, ask, collect, complete, document, score, shared};

#[tokio::test]
async fn clients_that_go_away_free_their_places() {
    let clients = shared().connect().await;
    // More than can run at once: if those who left kept their places, the last would never start.
    for _ in 0..3 {
        let mut streams = Vec::new();
        for _ in 0..8 {
            let request = complete("Count upwards from one: 1, 2, 3,", 4000);
            streams.push(
                clients
                    .generation()
                    .generate(request)
                    .await
                    .unwrap()
                    .into_inner(),
            );
        }
        for stream in &mut streams {
            assert!(stream.next().await.unwrap().is_ok());
        }
    }
    let mut request = Request::new(complete("The sky is", 2));
    request.set_timeout(Duration::from_secs(60));
    let stream = clients
        .generation()
        .generate(request)
        .await
        .unwrap()
        .into_inner();
    let answer = collect(stream).await.unwrap();
    assert_eq!(answer.summary.generated_tokens, 2);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_recovers() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path(), &[("queue", "1")]);
    let clients = daemon.connect().await;
    // They read no more than their beginnings, so their answers never end: all places stay taken.
    let silent = daemon.connect_with_window(Some(1024)).await;
    let mut running = Vec::new();
    for _ in 0..16 {
        let request = complete("Count upwards from one: 1, 2, 3,", 8000);
        let answer = silent.generation().generate(request).await.unwrap();
        let mut answer = answer.into_inner();
        // Only an answer that has begun has left the one waiting place to the next.
        answer.next().await.unwrap().unwrap();
        running.push(answer);
    }
    let waiting = clients.generation();
    let waits = tokio::spawn(async move {
        let mut waiting = waiting;
        waiting.generate(complete("One more:", 2)).await.map(drop)
    });
    // Only once that one has the waiting place is it certain whom the queue refuses.
    loop {
        let info = clients.admin().info(InfoRequest {}).await.unwrap();
        if info.into_inner().queue_length >= 1 {
            break;
        }
        tokio::task::yield_now().await;
    }
    let another = complete("And another:", 2);
    let refused = clients.generation().generate(another).await.map(drop);
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("queue"), "{}", refused.message());
    drop(running);
    waits.await.unwrap().unwrap();
    assert_eq!(
        clients
            .answer(complete("Still", 2))
            .await
            .unwrap()
            .summary
            .generated_tokens,
        2
    );
    daemon.stop();
}

/// The client's own clock may be first, and then says it in its own way.
fn is_deadline(status: &tonic::Status) -> bool {
    status.code() == Code::DeadlineExceeded
        || (status.code() == Code::Cancelled && status.message().contains("Timeout"))
}

#[tokio::test]
async fn a_deadline_ends_an_answer_in_the_middle() {
    let clients = shared().connect().await;
    let mut request = Request::new(complete("Count upwards from one: 1, 2, 3,", 8000));
    request.set_timeout(Duration::from_millis(1500));
    let stream = clients
        .generation()
        .generate(request)
        .await
        .unwrap()
        .into_inner();
    let status = collect(stream).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert!(status.message().contains("deadline"), "{status}");
}

/// What comes of a bad request: its code, and a word that its sentence must have.
async fn bad_generations(clients: &Clients) {
    let too_long = "word ".repeat(9000);
    let mut cases = Vec::new();
    let mut case = |change: fn(&mut _), code, word| {
        let mut request = ask("Hi", 4);
        change(&mut request);
        cases.push((request, code, word));
    };
    case(|r| r.prompt = None, Code::InvalidArgument, "prompt");
    case(|r| r.mode = 99, Code::InvalidArgument, "mode");
    case(
        |r| r.stop = vec![String::new()],
        Code::InvalidArgument,
        "stop",
    );
    case(
        |r| r.top_logprobs = 21,
        Code::InvalidArgument,
        "top_logprobs",
    );
    case(
        |r| r.namespace = "a/b".to_owned(),
        Code::InvalidArgument,
        "namespace",
    );
    case(
        |r| r.min_agreement = 2.0,
        Code::InvalidArgument,
        "min_agreement",
    );
    case(
        |r| r.link_tokens = Some(65_537),
        Code::InvalidArgument,
        "link_tokens",
    );
    case(
        |r| {
            r.sampling = Some(Sampling {
                temperature: -1.0,
                ..Sampling::default()
            });
        },
        Code::InvalidArgument,
        "temperature",
    );
    case(
        |r| r.documents = vec!["nobody".to_owned()],
        Code::NotFound,
        "nobody",
    );
    for share in [-0.1, 1.1, f32::NAN] {
        let mut request = ask("Hi", 4);
        request.blend_share = Some(share);
        cases.push((request, Code::InvalidArgument, "blend_share"));
    }
    cases.push((complete("", 4), Code::InvalidArgument, "text"));
    cases.push((complete(&too_long, 4), Code::InvalidArgument, "context"));
    for (request, code, word) in cases {
        let status = clients.answer(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(word), "{word}: {status}");
    }
    let mut request = ask("Hi", 4);
    request.documents = vec!["a".to_owned()];
    if let Some(addenda_proto::addenda::v1::generate_request::Prompt::Chat(chat)) =
        &mut request.prompt
    {
        chat.messages = vec![ChatMessage {
            role: "system".to_owned(),
            content: "Be brief.".to_owned(),
        }];
    }
    assert_eq!(
        clients.answer(request).await.unwrap_err().code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn bad_input_gets_its_status_and_a_sentence_and_the_daemon_goes_on() {
    let clients = shared().connect().await;
    bad_generations(&clients).await;

    let mut packets = clients.packets();
    for (text, word) in [("", "empty"), ("  \n ", "empty")] {
        let status = packets
            .put_document(document("", "bad", text))
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(word), "{status}");
    }
    let long_name = "n".repeat(257);
    let status = packets
        .put_document(document("", &long_name, "text"))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    for (id, code) in [
        ("xyz".to_owned(), Code::InvalidArgument),
        ("0".repeat(64), Code::NotFound),
    ] {
        let status = packets.get(GetPacketRequest { id }).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
    }
    let list = ListPacketsRequest {
        page_size: 5000,
        ..ListPacketsRequest::default()
    };
    assert_eq!(
        packets.list(list).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let job = GetJobRequest {
        id: "job-999999".to_owned(),
    };
    assert_eq!(
        clients.jobs().get(job).await.unwrap_err().code(),
        Code::NotFound
    );

    let mut none = score("Hi", " there");
    none.continuations.clear();
    assert_eq!(
        clients.generation().score(none).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let mut late = Request::new(score("A prompt that is never reached", " so"));
    late.metadata_mut()
        .insert("grpc-timeout", "1n".parse().unwrap());
    let status = clients.generation().score(late).await.unwrap_err();
    assert!(is_deadline(&status), "{status}");

    let answer: ScoreResponse = clients
        .generation()
        .score(score("Two and two is", " four"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.scores.len(), 1);
}

#[test]
fn a_daemon_that_cannot_start_says_why() {
    let data = tempfile::tempdir().unwrap();
    let start = |more: &[(&'static str, &str)]| {
        let config = crate::daemon::config(data.path(), more);
        Daemon::try_start(config)
            .map(Daemon::stop)
            .unwrap_err()
            .to_string()
    };
    let missing = start(&[("model", "/nowhere/model.gguf")]);
    assert!(missing.contains("/nowhere/model.gguf"), "{missing}");
    let other = data.path().join("notes.gguf");
    std::fs::write(&other, b"not a model at all").unwrap();
    let broken = start(&[("model", other.to_str().unwrap())]);
    assert!(broken.contains("notes.gguf"), "{broken}");
    let taken = shared().address.to_string();
    let listening = start(&[("listen", &taken)]);
    assert!(listening.contains(&taken), "{listening}");
    let running = Daemon::start(data.path(), &[]);
    let locked = start(&[]);
    assert!(locked.contains("in use"), "{locked}");
    running.stop();
}

#[tokio::test]
async fn a_daemon_told_to_stop_finishes_what_runs_and_takes_nothing_new() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path(), &[]);
    let clients = daemon.connect().await;
    let request = complete("Count upwards from one: 1, 2, 3,", 60);
    let mut stream = clients
        .generation()
        .generate(request)
        .await
        .unwrap()
        .into_inner();
    assert!(stream.next().await.unwrap().is_ok());
    let stopping = tokio::task::spawn_blocking(move || daemon.stop());
    let answer = collect(stream).await.unwrap();
    assert_eq!(answer.summary.generated_tokens, 60);
    let late = clients.answer(complete("Too late", 2)).await.unwrap_err();
    assert_eq!(late.code(), Code::Unavailable, "{late}");
    stopping.await.unwrap();
}
