//! The budget of memory for contexts: whoever finds too little of it waits and loses nothing, and what requests took
//! comes back, however they end.

use std::path::Path;
use std::process::Command;

use addenda_proto::addenda::v1::{GenerateRequest, Mode, TokenizeRequest, tokenize_request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tonic::Code;

use crate::daemon::{Clients, Daemon, collect, complete, document, score};

/// Bytes of KV of a token of SmolLM2-135M in f32.
const TOKEN: u64 = 2 * 30 * 3 * 64 * 4;

/// A daemon whose contexts have so much memory.
fn daemon(data: &Path, budget: &'static str) -> Daemon {
    let settings = [
        ("max_kv_bytes", budget),
        ("prefill_chunk", "64"),
        // What is kept would come back in other requests, with the last bits of another way to compute it.
        ("max_prefix_bytes", "0"),
    ];
    Daemon::start(data, &settings)
}

/// The value of one of the daemon's metrics.
async fn metric(daemon: &Daemon, name: &str) -> u64 {
    let mut connection = TcpStream::connect(daemon.address).await.unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    connection.write_all(request).await.unwrap();
    let mut text = String::new();
    connection.read_to_string(&mut text).await.unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    let value = value.unwrap_or_else(|| panic!("no {name} in {text}"));
    value.trim().parse().unwrap()
}

/// Answers of several kinds, one of each task.
fn requests() -> Vec<GenerateRequest> {
    let mut requests: Vec<_> = (0..4)
        .map(|n| complete(&format!("Count upwards from {n} to a hundred: {n},"), 90))
        .collect();
    requests.push(GenerateRequest {
        num_beams: 3,
        ..complete("The three largest cities of Europe are", 30)
    });
    requests.push(GenerateRequest {
        documents: vec!["ward".to_owned()],
        mode: Mode::Packet.into(),
        ..complete("The night nurse of ward seven is", 40)
    });
    requests
}

async fn said(clients: &Clients, request: GenerateRequest) -> String {
    clients.answer(request).await.unwrap().text
}

#[tokio::test]
async fn answers_that_share_too_little_memory_wait_for_it_and_are_the_same() {
    let data = tempfile::tempdir().unwrap();
    let daemon = daemon(data.path(), "24 MiB");
    let clients = daemon.connect().await;
    let text = "On ward seven, Ines Okafor is the night nurse, and Tom Reyes relieves her at six.";
    let ward = document("", "ward", text);
    clients.packets().put_document(ward).await.unwrap();
    let mut alone = Vec::new();
    for request in requests() {
        alone.push(said(&clients, request).await);
    }
    let likely = score("Count upwards from one: 1, 2, 3,", " 4, 5, 6, 7, 8, 9");
    let scored = clients.generation().score(likely.clone()).await.unwrap();
    assert_eq!(metric(&daemon, "addenda_parked_sequences_total").await, 0);

    let mut together = JoinSet::new();
    for (number, request) in requests().into_iter().enumerate() {
        let clients = daemon.connect().await;
        together.spawn(async move { (number, said(&clients, request).await) });
    }
    let beside = clients.generation().score(likely).await.unwrap();
    while let Some(done) = together.join_next().await {
        let (number, text) = done.unwrap();
        assert_eq!(text, alone[number], "request {number}");
    }
    let (beside, scored) = (beside.into_inner(), scored.into_inner());
    let pairs = (beside.scores[0].logprobs.iter()).zip(&scored.scores[0].logprobs);
    for (beside, scored) in pairs {
        assert!((beside - scored).abs() < 1e-3);
    }
    assert!(metric(&daemon, "addenda_parked_sequences_total").await > 0);
    daemon.stopped().await;
}

#[tokio::test]
async fn a_request_that_could_never_fit_is_refused_with_what_to_do() {
    let data = tempfile::tempdir().unwrap();
    let daemon = daemon(data.path(), "32 MiB");
    let clients = daemon.connect().await;
    let refused = clients.answer(complete("Count upwards:", 4000)).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("max_kv_bytes"), "{refused}");
    assert!(
        !said(&clients, complete("Count upwards: 1, 2,", 4))
            .await
            .is_empty()
    );
    daemon.stopped().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_keeps_no_memory_from_others_and_loses_nothing() {
    let data = tempfile::tempdir().unwrap();
    let daemon = daemon(data.path(), "38 MiB");
    let clients = daemon.connect().await;
    let counting = complete("Count upwards from one: 1, 2, 3,", 200);
    let expected = said(&clients, counting.clone()).await;

    let silent = daemon.connect_with_window(Some(1024)).await;
    let unread = silent.generation().generate(counting).await.unwrap();
    let mut unread = unread.into_inner();
    let first = unread.next().await.unwrap().unwrap();
    while metric(&daemon, "addenda_kv_bytes").await < 128 * TOKEN {
        tokio::task::yield_now().await;
    }
    // Its prompt needs what the other one holds, which goes on until nobody takes what it says.
    let long = " apple".repeat(500);
    let tokens = TokenizeRequest {
        prompt: Some(tokenize_request::Prompt::Completion(
            addenda_proto::addenda::v1::Completion { text: long.clone() },
        )),
    };
    let tokens = clients.generation().tokenize(tokens).await.unwrap();
    assert!((490..530).contains(&tokens.into_inner().ids.len()));
    assert!(!said(&clients, complete(&long, 4)).await.is_empty());
    assert!(metric(&daemon, "addenda_parked_sequences_total").await > 0);

    let rest = collect(unread).await.unwrap().text;
    let addenda_proto::addenda::v1::generate_response::Event::Token(first) = first.event.unwrap()
    else {
        panic!("an answer begins with a token")
    };
    assert_eq!(format!("{}{rest}", first.text), expected);
    daemon.stopped().await;
}

/// Set in the process that has nothing else to do.
const ALONE: &str = "ADDENDA_TEST_ALONE";

#[test]
fn a_thousand_requests_of_which_half_are_given_up_leave_nothing_behind() {
    // Threads and files are the process's, so it has one of its own.
    let child = Command::new(std::env::current_exe().unwrap())
        .args([
            "memory::a_thousand_requests",
            "--exact",
            "--ignored",
            "--nocapture",
        ])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&child.stdout),
        String::from_utf8_lossy(&child.stderr),
    );
    assert!(
        child.status.success() && out.contains("1 passed"),
        "{out}\n{err}"
    );
}

/// What a process has open: threads, files.
fn open() -> (usize, usize) {
    let count = |what: &str| {
        std::fs::read_dir(format!("/proc/self/{what}"))
            .unwrap()
            .count()
    };
    (count("task"), count("fd"))
}

#[tokio::test]
#[ignore = "runs in a process of its own, started by the test above"]
async fn a_thousand_requests() {
    assert!(std::env::var_os(ALONE).is_some(), "see the test above");
    let data = tempfile::tempdir().unwrap();
    let settings = [("dtype", "bf16"), ("max_prefix_bytes", "0")];
    let daemon = Daemon::start(data.path(), &settings);
    let clients = daemon.connect().await;
    let round = async |from: u32| {
        let mut running = JoinSet::new();
        for number in from..from + 20 {
            let mut generation = clients.generation();
            running.spawn(async move {
                let request = complete(&format!("Request {number} counts: 1, 2,"), 6);
                let mut answer = generation.generate(request).await.unwrap().into_inner();
                // Half of them leave: before the first token is read, or after one of the next.
                let leaves = blake3::hash(&number.to_le_bytes()).as_bytes()[0];
                let mut read = 0;
                while leaves >= 128 || read < leaves % 6 {
                    match answer.next().await {
                        Some(event) => drop(event.unwrap()),
                        None => break,
                    }
                    read += 1;
                }
            });
        }
        while let Some(done) = running.join_next().await {
            done.unwrap();
        }
    };
    // Those who left are noticed between two steps.
    let rests = async || {
        while metric(&daemon, "addenda_running_sequences").await > 0
            || metric(&daemon, "addenda_waiting_requests").await > 0
        {
            tokio::task::yield_now().await;
        }
        (open(), metric(&daemon, "addenda_kv_bytes").await)
    };
    // What is started at first use is no leak.
    round(0).await;
    let (before, kv_before) = rests().await;
    for from in (20..1020).step_by(20) {
        round(from).await;
    }
    let (after, kv_after) = rests().await;
    assert_eq!(kv_after, kv_before);
    // Of twenty at once, threads may rest for a while before they end.
    assert!(
        after.0 <= before.0 + 20 && after.1 <= before.1 + 4,
        "{before:?} {after:?}"
    );
    daemon.stopped().await;
}
