//! Long documents: split into packets, read back whole and in order, replaced part by part, erased.

use addenda_proto::addenda::v1::lookup_request::{Query, query::By};
use addenda_proto::addenda::v1::{
    DeleteRequest, GenerateRequest, ListPacketsRequest, LookupRequest, Mode, PacketRecord,
    PutDocumentResponse, delete_request,
};
use std::collections::BTreeSet;
use std::path::Path;
use tempfile::TempDir;
use tonic::Code;

use crate::daemon::{Clients, Daemon, complete, document};
use crate::weights::write_directory;

/// A daemon over a tiny random model whose packets are short.
fn start(model: &Path, data: &Path) -> Daemon {
    let model = model.display().to_string();
    Daemon::start(data, &[("model", &model), ("packet_tokens", "40")])
}

fn tiny_model() -> TempDir {
    let model = tempfile::tempdir().unwrap();
    write_directory(model.path(), 1);
    model
}

/// A line that the tiny tokenizer has 15 tokens for, different for each number.
fn line(number: u32) -> String {
    let letters = (0..8).map(|bit| if number >> bit & 1 == 0 { "a" } else { "b" });
    letters.collect::<Vec<_>>().join(" ") + "!"
}

fn text(numbers: impl IntoIterator<Item = u32>) -> String {
    let lines: Vec<String> = numbers.into_iter().map(line).collect();
    lines.join("\n")
}

async fn put(clients: &Clients, name: &str, text: &str) -> PutDocumentResponse {
    let mut packets = clients.packets();
    let put = packets.put_document(document("", name, text)).await;
    put.unwrap().into_inner()
}

async fn list(clients: &Clients) -> Vec<PacketRecord> {
    let request = ListPacketsRequest {
        page_size: 1000,
        ..ListPacketsRequest::default()
    };
    clients
        .packets()
        .list(request)
        .await
        .unwrap()
        .into_inner()
        .packets
}

fn ids(packets: &[PacketRecord]) -> Vec<String> {
    packets.iter().map(|packet| packet.id.clone()).collect()
}

fn question(name: &str, mode: Mode) -> GenerateRequest {
    GenerateRequest {
        documents: vec![name.to_owned()],
        mode: mode.into(),
        ..complete("ab a b", 2)
    }
}

#[tokio::test]
async fn a_long_document_is_read_whole_and_in_order_also_after_a_restart_and_a_rebuild() {
    let (model, data) = (tiny_model(), tempfile::tempdir().unwrap());
    let rules = text(0..20);
    let daemon = start(model.path(), data.path());
    let clients = daemon.connect().await;
    let first = put(&clients, "rules", &rules).await;
    assert!(
        first.created && first.packets.len() >= 7,
        "{}",
        first.packets.len()
    );
    assert_eq!(first.packet.as_ref(), first.packets.first());
    let parts = u32::try_from(first.packets.len()).unwrap();
    for (part, packet) in (0..).zip(&first.packets) {
        assert_eq!((packet.part, packet.parts), (part, parts));
        assert!(packet.tokens <= 40, "{}", packet.tokens);
    }
    let tokens: u32 = first.packets.iter().map(|packet| packet.tokens).sum();
    let again = put(&clients, "rules", &rules).await;
    assert!(!again.created, "the same text again is free");
    assert_eq!(ids(&again.packets), ids(&first.packets));
    let full = clients
        .answer(question("rules", Mode::Full))
        .await
        .unwrap()
        .summary;
    daemon.stopped().await;

    for rebuild in [false, true] {
        if rebuild {
            std::fs::remove_dir_all(data.path().join("index")).unwrap();
        }
        let daemon = start(model.path(), data.path());
        let clients = daemon.connect().await;
        let summary = clients
            .answer(question("rules", Mode::Packet))
            .await
            .unwrap()
            .summary;
        assert_eq!(
            summary.packets,
            ids(&first.packets),
            "in the order of the text"
        );
        assert_eq!(summary.packet_tokens, tokens, "nothing is computed again");
        assert_eq!(
            summary.prompt_tokens, full.prompt_tokens,
            "in every mode the same tokens"
        );
        let mut listed = list(&clients).await;
        listed.sort_by_key(|packet| packet.part);
        assert_eq!(ids(&listed), ids(&first.packets));
        assert!(listed.iter().all(|packet| packet.parts == parts));
        daemon.stopped().await;
    }
}

#[tokio::test]
async fn a_changed_text_replaces_its_packets_and_reuses_those_that_did_not_change() {
    let (model, data) = (tiny_model(), tempfile::tempdir().unwrap());
    let daemon = start(model.path(), data.path());
    let clients = daemon.connect().await;
    let old = put(&clients, "rules", &text(0..24)).await.packets;
    let changed = put(&clients, "rules", &text((0..4).chain([200]).chain(5..24))).await;
    assert!(changed.created);
    let new = changed.packets;
    let (old, new): (BTreeSet<_>, BTreeSet<_>) = (
        ids(&old).into_iter().collect(),
        ids(&new).into_iter().collect(),
    );
    let kept = old.intersection(&new).count();
    assert!(
        kept + 4 >= new.len(),
        "{kept} of {} parts serve again",
        new.len()
    );
    let listed: BTreeSet<String> = ids(&list(&clients).await).into_iter().collect();
    assert_eq!(listed, new, "parts that are gone are deleted");
    let summary = clients
        .answer(question("rules", Mode::Packet))
        .await
        .unwrap()
        .summary;
    assert_eq!(summary.packets.len(), new.len());

    // A short text takes the place of a long one.
    let short = put(&clients, "rules", &line(7)).await;
    assert_eq!(ids(&list(&clients).await), ids(&short.packets));
    daemon.stopped().await;
}

#[tokio::test]
async fn deleting_a_document_erases_all_its_packets_and_a_hole_is_never_read_over() {
    let (model, data) = (tiny_model(), tempfile::tempdir().unwrap());
    let daemon = start(model.path(), data.path());
    let clients = daemon.connect().await;
    let rules = text(0..12);
    let first = put(&clients, "rules", &rules).await.packets;
    let delete = |what| DeleteRequest {
        what: Some(what),
        ..DeleteRequest::default()
    };
    let by_id = delete(delete_request::What::Id(first[1].id.clone()));
    assert_eq!(
        clients
            .packets()
            .delete(by_id)
            .await
            .unwrap()
            .into_inner()
            .packets,
        1
    );
    for mode in [Mode::Full, Mode::Packet] {
        let status = clients.answer(question("rules", mode)).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "{status}");
        assert!(status.message().contains("put it again"), "{status}");
    }
    let lookup = LookupRequest {
        queries: vec![Query {
            by: Some(By::Document("rules".to_owned())),
            name: String::new(),
        }],
        ..LookupRequest::default()
    };
    let hits = clients
        .packets()
        .lookup(lookup)
        .await
        .unwrap()
        .into_inner()
        .hits;
    assert!(
        hits[0].miss_reason.contains("parts"),
        "{}",
        hits[0].miss_reason
    );
    let again = put(&clients, "rules", &rules).await;
    assert!(again.created);
    assert_eq!(ids(&again.packets), ids(&first), "the hole is filled");

    let by_name = delete(delete_request::What::Document("rules".to_owned()));
    let erased = clients
        .packets()
        .delete(by_name)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(erased.packets as usize, first.len());
    assert!(list(&clients).await.is_empty());
    daemon.stopped().await;
}
