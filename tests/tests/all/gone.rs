//! What is deleted, replaced, shared or missed, seen over gRPC: nothing of an old text stays, and every miss has a reason.

use addenda_proto::addenda::v1::lookup_request::{Query, query::By};
use addenda_proto::addenda::v1::{
    DeleteRequest, GenerateRequest, ListPacketsRequest, LookupRequest, MissCause, Mode, Summary,
    delete_request,
};
use std::process::ExitCode;

use crate::cli::lines;
use crate::daemon::{Clients, Daemon, complete, document};
use crate::upkeep::{answer, command, put, start, text, tiny_model};

async fn ask(clients: &Clients, name: &str, mode: Mode) -> Summary {
    let request = GenerateRequest {
        documents: vec![name.to_owned()],
        mode: mode.into(),
        ..complete("ab a b", 2)
    };
    clients.answer(request).await.unwrap().summary
}

/// Packets that have no document's name.
async fn joint(clients: &Clients) -> usize {
    let request = ListPacketsRequest::default();
    let listed = clients.packets().list(request).await.unwrap().into_inner();
    let nameless = listed.packets.iter();
    nameless.filter(|packet| packet.document.is_empty()).count()
}

async fn delete(clients: &Clients, name: &str) {
    let request = DeleteRequest {
        what: Some(delete_request::What::Document(name.to_owned())),
        namespace: String::new(),
    };
    clients.packets().delete(request).await.unwrap();
}

#[tokio::test]
async fn a_changed_text_leaves_no_joint_packet_of_the_old_one() {
    let (model, data) = (tiny_model(), tempfile::tempdir().unwrap());
    let daemon = start(model.path(), data.path());
    let clients = daemon.connect().await;
    put(&clients, "rules", 1).await;
    put(&clients, "other", 2).await;
    ask(&clients, "rules", Mode::Preload).await;
    ask(&clients, "other", Mode::Preload).await;
    assert_eq!(joint(&clients).await, 2);
    put(&clients, "rules", 1).await;
    assert_eq!(joint(&clients).await, 2, "the same text changes nothing");
    put(&clients, "rules", 3).await;
    // The other document's may go too: a part of a few tokens stands in many texts.
    assert!(joint(&clients).await < 2, "the old one went");
    delete(&clients, "other").await;
    assert_eq!(joint(&clients).await, 0);
    drop(clients);
    daemon.stopped().await;
}

#[tokio::test]
async fn nothing_of_a_deleted_or_replaced_text_stays_in_the_engines_memory() {
    let (model, data) = (tiny_model(), tempfile::tempdir().unwrap());
    let daemon = start(model.path(), data.path());
    let clients = daemon.connect().await;
    put(&clients, "rules", 1).await;
    let first = ask(&clients, "rules", Mode::Full).await;
    let again = ask(&clients, "rules", Mode::Full).await;
    assert!(
        again.prefix_tokens > 40 && first.prefix_tokens < 16,
        "{again:?}"
    );
    delete(&clients, "rules").await;
    put(&clients, "rules", 1).await;
    let anew = ask(&clients, "rules", Mode::Full).await;
    assert!(anew.prefix_tokens < 16, "{anew:?}");
    // Another text under the name, then the first one again.
    put(&clients, "rules", 3).await;
    put(&clients, "rules", 1).await;
    let anew = ask(&clients, "rules", Mode::Full).await;
    assert!(anew.prefix_tokens < 16, "{anew:?}");
    drop(clients);
    daemon.stopped().await;
}

#[tokio::test]
async fn a_packet_that_two_documents_share_is_shown_and_pinned_by_either_name() {
    let (model, data) = (tiny_model(), tempfile::tempdir().unwrap());
    let daemon = start(model.path(), data.path());
    let clients = daemon.connect().await;
    let one = put(&clients, "one", 5).await;
    assert_eq!(put(&clients, "two", 5).await, one);
    for name in ["one", "two"] {
        let shown = command(&daemon, &["packet", "show", name]).await;
        assert_eq!(shown.code, ExitCode::SUCCESS, "{}", shown.err);
        let shown = lines(&shown.out);
        assert_eq!(shown[0]["id"], one.as_str());
        assert_eq!(shown.len() as u64, shown[0]["parts"].as_u64().unwrap());
    }
    let pinned = answer(&command(&daemon, &["packet", "pin", "two"]).await);
    assert_eq!(pinned["pinned"], true);
    drop(clients);
    daemon.stopped().await;
}

/// Why a text, which the document of this name should have, is a miss.
async fn cause(clients: &Clients, namespace: &str, name: &str, number: usize) -> MissCause {
    let lookup = LookupRequest {
        queries: vec![Query {
            by: Some(By::Text(text(number))),
            name: name.to_owned(),
        }],
        namespace: namespace.to_owned(),
    };
    let hits = clients.packets().lookup(lookup).await.unwrap().into_inner();
    let hit = &hits.hits[0];
    assert_eq!(hit.packet.is_none(), !hit.miss_reason.is_empty());
    hit.miss_cause()
}

#[tokio::test]
async fn a_miss_says_which_part_of_the_key_differs_or_what_became_of_the_packet() {
    let (model, data) = (tiny_model(), tempfile::tempdir().unwrap());
    let path = model.path().display().to_string();
    let daemon = start(model.path(), data.path());
    let clients = daemon.connect().await;
    put(&clients, "rules", 1).await;
    put(&clients, "gone", 2).await;
    put(&clients, "new", 4).await;
    put(&clients, "new", 6).await;
    delete(&clients, "gone").await;
    for (name, number, expected) in [
        ("rules", 1, MissCause::Unspecified),
        ("rules", 9, MissCause::Text),
        ("", 9, MissCause::NeverStored),
        ("", 2, MissCause::Deleted),
        ("", 4, MissCause::Replaced),
    ] {
        assert_eq!(
            cause(&clients, "", name, number).await,
            expected,
            "{number}"
        );
    }
    // Whether another tenant has a text can't be asked.
    let elsewhere = cause(&clients, "elsewhere", "rules", 1).await;
    assert_eq!(elsewhere, MissCause::NeverStored);
    drop(clients);
    daemon.stopped().await;
    for (setting, expected) in [
        (("32", "none"), MissCause::Split),
        (("40", "int8"), MissCause::Codec),
    ] {
        let settings = [
            ("model", path.as_str()),
            ("packet_tokens", setting.0),
            ("packet_codec", setting.1),
        ];
        let daemon = Daemon::start(data.path(), &settings);
        let clients = daemon.connect().await;
        assert_eq!(cause(&clients, "", "", 1).await, expected, "{setting:?}");
        if expected == MissCause::Codec {
            let summary = ask(&clients, "rules", Mode::Packet).await;
            assert_eq!(summary.missed[0].document, "rules");
            assert_eq!(summary.missed[0].cause(), MissCause::Codec);
            assert!(summary.missed[0].reason.contains("now"), "{summary:?}");
        }
        drop(clients);
        daemon.stopped().await;
    }
}

#[tokio::test]
async fn single_files_and_lines_of_json_are_warmed_under_their_names() {
    let (model, data) = (tiny_model(), tempfile::tempdir().unwrap());
    let daemon = start(model.path(), data.path());
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("note.txt"), text(1)).unwrap();
    let line = |name: &str, number| serde_json::json!({"name": name, "text": text(number)});
    let all = format!(
        "{}\n\n{}\n{{\"text\": 5}}\n",
        line("first", 2),
        line("second", 3)
    );
    std::fs::write(path("all.jsonl"), all).unwrap();
    let (note, all) = (path("note.txt"), path("all.jsonl"));
    let warmed = command(&daemon, &["packet", "warm", &note, &all]).await;
    assert_eq!(warmed.code, ExitCode::FAILURE, "one line is no document");
    assert!(warmed.err.contains("all.jsonl"), "{}", warmed.err);
    let clients = daemon.connect().await;
    for (name, number) in [("note.txt", 1), ("first", 2), ("second", 3)] {
        let again = document("", name, &text(number));
        let put = clients.packets().put_document(again).await.unwrap();
        assert!(!put.into_inner().created, "{name}");
    }
    drop(clients);
    daemon.stopped().await;
}
