//! An operator's own documents in the place of those that packets are computed behind by default.

use addenda_proto::addenda::v1::{Mode, PacketRecord, ScoreRequest, score_request};

use crate::cli::addenda;
use crate::daemon::{Daemon, chat, config, document};

const OWN: &str = "Visiting hours in the Birkenau ward are from 9:00 to 11:30.\n\n\n\n\
    Visiting hours in the Lindenau ward are from 15:20 to 18:10.\nDogs stay outside.\n";
const VISITING: &str = "Visiting hours in the Lindenhof clinic are from 14:10 to 19:40.";

/// Puts the same text; whether it was computed, and its packet.
async fn put(server: Daemon) -> (bool, PacketRecord) {
    let clients = server.connect().await;
    let request = document("default", "visiting", VISITING);
    let put = clients.packets().put_document(request).await.unwrap();
    drop(clients);
    server.stopped().await;
    let put = put.into_inner();
    (put.created, put.packet.unwrap())
}

#[tokio::test]
async fn packets_behind_an_operators_own_documents_are_other_packets_and_are_kept() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().join("primer.txt");
    std::fs::write(&path, OWN).unwrap();
    let own = [("primer", path.to_str().unwrap())];
    let (created, first) = put(Daemon::start(data.path(), &own)).await;
    assert!(created);
    let (created, shipped) = put(Daemon::start(data.path(), &[])).await;
    assert!(created, "it was computed behind other documents");
    assert_ne!((&shipped.id, &shipped.primer), (&first.id, &first.primer));
    std::fs::write(&path, OWN.replace('\n', "\r\n")).unwrap();
    let (created, again) = put(Daemon::start(data.path(), &own)).await;
    assert!(!created, "it is there, however lines end");
    assert_eq!((again.id, again.primer), (first.id, first.primer));
}

#[tokio::test]
async fn a_primer_that_is_computed_in_chunks_gives_the_same_packets() {
    let scored = async |chunk: &str| {
        let data = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(data.path(), &[("prefill_chunk", chunk)]);
        let clients = daemon.connect().await;
        let request = document("default", "visiting", VISITING);
        clients.packets().put_document(request).await.unwrap();
        let request = ScoreRequest {
            prompt: Some(score_request::Prompt::Chat(chat("When may one visit?"))),
            continuations: vec!["From 14:10 to 19:40.".to_owned()],
            documents: vec!["visiting".to_owned()],
            mode: Mode::Packet.into(),
            ..ScoreRequest::default()
        };
        let scored = clients.generation().score(request).await.unwrap();
        drop(clients);
        daemon.stopped().await;
        scored.into_inner().scores[0].logprobs.clone()
    };
    let (small, whole) = (scored("37").await, scored("4096").await);
    assert_eq!(small.len(), whole.len());
    for (a, b) in small.iter().zip(&whole) {
        assert!((a - b).abs() < 1e-3, "{small:?} {whole:?}");
    }
}

#[test]
fn documents_of_a_folder_are_drawn_into_a_primer_that_the_daemon_takes() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("notices");
    std::fs::create_dir(&folder).unwrap();
    for ward in ["Birkenau", "Lindenau"] {
        let rules = "Dogs stay outside.\n\nFlowers are welcome. ".repeat(20);
        let text = format!("Visiting hours in the {ward} ward are from 9:00 to 11:30. {rules}");
        std::fs::write(folder.join(format!("{ward}.txt")), text).unwrap();
    }
    std::fs::write(folder.join("blank.txt"), " \n\n").unwrap();
    std::fs::write(folder.join("scan.pdf"), [0xff, 0xfe]).unwrap();
    let draw = ["packet", "primer", folder.to_str().unwrap()];
    let drawn = addenda(home.path(), &[], &draw);
    assert!(drawn.err.contains("scan.pdf") && drawn.err.contains("2 documents"));
    let documents: Vec<&str> = drawn.out.trim_end().split("\n\n").collect();
    assert_eq!(documents.len(), 2, "{}", drawn.out);
    assert!(documents[0].starts_with("Visiting hours in the Birkenau ward"));
    assert!(
        documents
            .iter()
            .all(|text| text.len() <= 160 && text.ends_with('.'))
    );
    let path = home.path().join("primer.txt");
    std::fs::write(&path, &drawn.out).unwrap();
    let data = home.path().join("data");
    let daemon = Daemon::start(&data, &[("primer", path.to_str().unwrap())]);
    let (created, _) = tokio::runtime::Runtime::new()
        .unwrap()
        .block_on(put(daemon));
    assert!(created);

    let none = addenda(home.path(), &[], &[&draw[..], &["--ext", "doc"]].concat());
    assert!(
        none.out.is_empty() && none.err.contains("--ext"),
        "{}",
        none.err
    );
}

#[test]
fn a_file_without_a_document_that_fits_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().join("primer.txt");
    let refusal = || {
        let config = config(data.path(), &[("primer", path.to_str().unwrap())]);
        Daemon::try_start(config).err().unwrap().to_string()
    };
    let missing = refusal();
    assert!(missing.contains("primer.txt"), "{missing}");
    for text in ["", "\n\n \n\n", &"much too long for an eighth ".repeat(400)] {
        std::fs::write(&path, text).unwrap();
        let refused = refusal();
        assert!(refused.contains("has no document that fits"), "{refused}");
    }
}
