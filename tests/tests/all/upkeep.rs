//! The upkeep of a data directory from the command line, beside a daemon that serves.

use std::path::Path;
use std::process::ExitCode;

use addenda_proto::addenda::v1::lookup_request::{Query, query::By};
use addenda_proto::addenda::v1::{LookupRequest, PinRequest};
use serde_json::Value;
use tempfile::TempDir;

use crate::cli::{Outcome, addenda, lines};
use crate::daemon::{Clients, Daemon, document};
use crate::weights::write_directory;

pub(crate) fn start(model: &Path, data: &Path) -> Daemon {
    let model = model.display().to_string();
    Daemon::start(data, &[("model", &model), ("packet_tokens", "40")])
}

pub(crate) fn tiny_model() -> TempDir {
    let model = tempfile::tempdir().unwrap();
    write_directory(model.path(), 1);
    model
}

/// Sixty words, no stretch of which stands in another number's text.
pub(crate) fn text(number: usize) -> String {
    let mut state = number as u64 + 1;
    let words = (0..60).map(|_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        if state >> 33 & 1 == 0 { "a" } else { "b" }
    });
    words.collect::<Vec<_>>().join(" ")
}

pub(crate) async fn put(clients: &Clients, name: &str, number: usize) -> String {
    let mut packets = clients.packets();
    let put = packets.put_document(document("", name, &text(number)));
    let put = put.await.unwrap().into_inner();
    put.packet.unwrap().id
}

/// Whether the texts of these documents are found.
async fn found(clients: &Clients, numbers: &[usize]) -> Vec<bool> {
    let by = numbers.iter().map(|number| Query {
        by: Some(By::Text(text(*number))),
        name: String::new(),
    });
    let lookup = LookupRequest {
        queries: by.collect(),
        namespace: String::new(),
    };
    let hits = clients.packets().lookup(lookup).await.unwrap().into_inner();
    hits.hits.iter().map(|hit| hit.packet.is_some()).collect()
}

/// A command to this daemon, on a thread of its own so that the test's connection is served.
pub(crate) async fn command(daemon: &Daemon, arguments: &[&str]) -> Outcome {
    let mut all = vec!["--json".to_owned(), "--connect".to_owned()];
    all.push(daemon.address.to_string());
    all.extend(arguments.iter().map(|one| (*one).to_owned()));
    tokio::task::spawn_blocking(move || local(&all.iter().map(String::as_str).collect::<Vec<_>>()))
        .await
        .unwrap()
}

fn local(arguments: &[&str]) -> Outcome {
    let home = tempfile::tempdir().unwrap();
    addenda(home.path(), &[], arguments)
}

pub(crate) fn answer(outcome: &Outcome) -> Value {
    assert_eq!(outcome.code, ExitCode::SUCCESS, "{}", outcome.err);
    lines(&outcome.out).pop().unwrap()
}

#[tokio::test]
async fn a_store_is_verified_compacted_and_backed_up_while_it_serves_and_restored_elsewhere() {
    let (model, data) = (tiny_model(), tempfile::tempdir().unwrap());
    let daemon = start(model.path(), data.path());
    let clients = daemon.connect().await;
    for number in 0..12 {
        put(&clients, &format!("document {}", number % 8), number).await;
    }
    let pinned = put(&clients, "document 7", 7).await;
    let pin = PinRequest { id: pinned };
    clients.packets().pin(pin).await.unwrap();

    let verified = answer(&command(&daemon, &["store", "verify"]).await);
    assert_eq!(verified["packets"], verified["packets_total"]);
    assert_eq!(verified["report"]["damaged"].as_array().unwrap().len(), 0);
    let compacted = answer(&command(&daemon, &["store", "compact"]).await);
    let disk = |field: &str| compacted[field].as_u64().unwrap();
    assert!(
        disk("disk_bytes") <= disk("disk_bytes_before"),
        "{compacted}"
    );

    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("backup");
    let folder = folder.to_str().unwrap();
    let backup = answer(&command(&daemon, &["store", "backup", folder]).await);
    assert_eq!(backup["documents"], 8);
    let twice = command(&daemon, &["store", "backup", folder]).await;
    assert_eq!(twice.code, ExitCode::FAILURE, "a folder that is there");
    // What comes after the backup is not in it.
    put(&clients, "document 8", 20).await;

    let busy = data.path().display().to_string();
    let rebuild = local(&["store", "rebuild", "--data-dir", &busy]);
    assert!(
        rebuild.err.contains(&std::process::id().to_string()),
        "{}",
        rebuild.err
    );
    drop(clients);
    daemon.stopped().await;

    let refused = local(&["store", "restore", folder, "--data-dir", &busy]);
    assert!(refused.err.contains("not empty"), "{}", refused.err);
    let target = place.path().join("restored");
    let to = target.display().to_string();
    let restored = answer(&local(&[
        "--json",
        "store",
        "restore",
        folder,
        "--data-dir",
        &to,
    ]));
    assert_eq!(restored["packets"], backup["packets"]);
    let daemon = start(model.path(), &target);
    let clients = daemon.connect().await;
    let numbers = [4, 7, 11, 0, 20];
    assert_eq!(
        found(&clients, &numbers).await,
        [true, true, true, false, false]
    );
    drop(clients);
    daemon.stopped().await;
    let rebuilt = answer(&local(&["--json", "store", "rebuild", "--data-dir", &to]));
    assert_eq!(rebuilt["packets"], backup["packets"]);
}

#[tokio::test]
async fn a_backup_with_one_changed_byte_or_of_a_newer_version_is_not_restored() {
    let (model, data) = (tiny_model(), tempfile::tempdir().unwrap());
    let daemon = start(model.path(), data.path());
    let clients = daemon.connect().await;
    put(&clients, "document", 1).await;
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("backup");
    let backup = answer(&command(&daemon, &["store", "backup", folder.to_str().unwrap()]).await);
    drop(clients);
    daemon.stopped().await;
    let target = place.path().join("restored");
    let restore = || {
        let (from, to) = (folder.to_str().unwrap(), target.to_str().unwrap());
        local(&["store", "restore", from, "--data-dir", to])
    };
    for file in backup["files"].as_array().unwrap() {
        let path = folder.join(file["path"].as_str().unwrap());
        let bytes = std::fs::read(&path).unwrap();
        let mut changed = bytes.clone();
        changed[bytes.len() / 2] ^= 1;
        std::fs::write(&path, changed).unwrap();
        let refused = restore();
        assert_eq!(refused.code, ExitCode::FAILURE);
        assert!(
            refused.err.contains("not what was backed up"),
            "{}",
            refused.err
        );
        assert!(!target.exists());
        std::fs::write(&path, bytes).unwrap();
    }
    let list = folder.join("backup.json");
    let text = std::fs::read_to_string(&list).unwrap();
    std::fs::write(&list, text.replace("\"version\": 1", "\"version\": 2")).unwrap();
    let refused = restore();
    assert!(refused.err.contains("version 2"), "{}", refused.err);
    std::fs::write(&list, text).unwrap();
    assert_eq!(restore().code, ExitCode::SUCCESS);
}
