//! An operator's own documents in the place of those that packets are computed behind by default.

use addenda_proto::addenda::v1::PacketRecord;

use crate::daemon::{Daemon, config, document};

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
