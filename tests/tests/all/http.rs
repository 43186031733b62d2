//! OpenAI's own Python client against a daemon, and the metrics beside it.

use std::path::Path;
use std::process::Command;

use addenda_proto::addenda::v1::PutDocumentRequest;

use crate::daemon::Daemon;

#[tokio::test(flavor = "multi_thread")]
async fn the_official_openai_client_works_unchanged() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path(), &[]);
    let document = PutDocumentRequest {
        name: "visits".to_owned(),
        text: "Visitors come between two and four in the afternoon, on every day but Friday."
            .to_owned(),
        ..PutDocumentRequest::default()
    };
    let clients = daemon.connect().await;
    clients.packets().put_document(document).await.unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("openai/run.sh");
    let base = format!("http://{}", daemon.address);
    let output = tokio::task::spawn_blocking(move || {
        let mut command = Command::new(script);
        command.args([&base, "visits"]).output().unwrap()
    });
    let output = output.await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{complained}");
    assert_eq!(said.lines().count(), 10, "{said}");
    drop(clients);
    daemon.stopped().await;
}
