//! Fetching from the hub, which is a listener on a loopback port here.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use addenda_model::Error;
use addenda_model::catalogue::{self, FetchProgress, Fetcher};
use sha2::{Digest, Sha256};

use super::files_under;

/// A stand-in for the hub: one repository, `maker/toy`, at one commit.
struct Hub {
    endpoint: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    /// `files`: name, etag, content.
    fn start(files: &[(&str, &str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let files: Vec<(String, String, Vec<u8>)> = files
            .iter()
            .map(|(name, etag, content)| ((*name).into(), (*etag).into(), content.to_vec()))
            .collect();
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(stream, &files, &seen);
            }
        });
        Self { endpoint, requests }
    }

    fn fetcher(&self, cache: &Path) -> Fetcher {
        let mut fetcher = Fetcher::new(cache);
        fetcher.hub_endpoint = Some(self.endpoint.clone());
        fetcher
    }
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn answer(mut stream: TcpStream, files: &[(String, String, Vec<u8>)], seen: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let request = lines.next().unwrap().unwrap();
    let path = request.split(' ').nth(1).unwrap().to_owned();
    let range = lines
        .map(Result::unwrap)
        .take_while(|line| !line.is_empty())
        .find_map(|line| line.strip_prefix("Range: bytes=").map(str::to_owned));
    seen.lock().unwrap().push(path.clone());
    let file = files
        .iter()
        .find(|(name, ..)| path == format!("/maker/toy/resolve/{COMMIT}/{name}"));
    let (status, headers, body) = if path == "/api/models/maker/toy/revision/main" {
        let siblings: Vec<_> = files
            .iter()
            .map(|(name, ..)| serde_json::json!({ "rfilename": name }))
            .collect();
        let info = serde_json::json!({ "sha": COMMIT, "siblings": siblings });
        ("200 OK", String::new(), info.to_string().into_bytes())
    } else if let Some((_, etag, content)) = file {
        let range = range.unwrap_or_default();
        let (from, to) = range.split_once('-').unwrap();
        let from: usize = from.parse().unwrap();
        let to = to.parse().map_or(content.len(), |to: usize| to + 1);
        let headers = format!(
            "ETag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\n\
             Content-Range: bytes {from}-{}/{}\r\n",
            to - 1,
            content.len(),
        );
        ("206 Partial Content", headers, content[from..to].to_vec())
    } else {
        ("404 Not Found", String::new(), Vec::new())
    };
    let head = format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    // A client that goes away early is its own affair.
    let _ = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(&body));
}

#[test]
fn a_repository_of_the_hub_is_fetched_without_what_a_model_does_not_need() {
    let weights = b"weights";
    let digest = format!("{:x}", Sha256::digest(weights));
    let hub = Hub::start(&[
        ("config.json", "e1", b"{}"),
        ("tokenizer.json", "e2", b"{\"a\":1}"),
        ("model.safetensors", &digest, weights),
        ("consolidated.safetensors", "e3", b"again"),
        ("README.md", "e4", b"hello"),
        ("onnx/model.onnx", "e5", b"other"),
        ("../../escape.json", "e6", b"no"),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let path = hub
        .fetcher(dir.path())
        .fetch("maker/toy", &mut |_| {})
        .unwrap();
    assert_eq!(path, dir.path().join("models/maker--toy"));
    let mut names: Vec<_> = files_under(dir.path());
    names.sort();
    let expected = ["config.json", "model.safetensors", "tokenizer.json"];
    assert_eq!(names, expected.map(|name| path.join(name)));
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), weights);
    assert_eq!(catalogue::resolve("maker/toy", dir.path()).unwrap(), path);
    // It is there: nobody is asked again.
    let before = hub.requests.lock().unwrap().len();
    hub.fetcher(dir.path())
        .fetch("maker/toy", &mut |_| {})
        .unwrap();
    assert_eq!(hub.requests.lock().unwrap().len(), before);
}

#[test]
fn a_file_of_the_hub_with_another_digest_than_its_name_is_refused() {
    let digest = format!("{:x}", Sha256::digest(b"weights"));
    let hub = Hub::start(&[
        ("config.json", "e1", b"{}"),
        ("model.safetensors", &digest, b"WEIGHTS"),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let fault = hub
        .fetcher(dir.path())
        .fetch("maker/toy", &mut |_| {})
        .unwrap_err();
    assert!(matches!(fault, Error::WrongDigest { .. }), "{fault}");
    assert!(catalogue::resolve("maker/toy", dir.path()).is_err());
}

#[test]
fn a_repository_with_several_gguf_files_asks_which_one() {
    let hub = Hub::start(&[
        ("toy-q4.gguf", "e1", b"four"),
        ("toy-q8.gguf", "e2", b"eight"),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let fetcher = hub.fetcher(dir.path());
    let fault = fetcher
        .fetch("maker/toy", &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(
        fault.contains("maker/toy/toy-q4.gguf, maker/toy/toy-q8.gguf"),
        "{fault}"
    );
    let path = fetcher.fetch("maker/toy/toy-q8.gguf", &mut |_| {}).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"eight");
    assert_eq!(
        catalogue::resolve("maker/toy/toy-q8.gguf", dir.path()).unwrap(),
        path
    );
    // The only one that is here needs no longer name.
    assert_eq!(catalogue::resolve("maker/toy", dir.path()).unwrap(), path);
}

#[test]
fn a_hub_that_says_no_or_nothing_is_a_sentence_that_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(&[]);
    let fault = hub
        .fetcher(dir.path())
        .fetch("maker/other", &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(fault.contains("check the name"), "{fault}");
    // A port that was free a moment ago and that nobody listens on.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut fetcher = Fetcher::new(dir.path());
    fetcher.hub_endpoint = Some(format!("http://127.0.0.1:{port}"));
    let fault = fetcher
        .fetch("maker/toy", &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(fault.contains("check the network"), "{fault}");
}

#[test]
fn a_transfer_from_the_hub_that_broke_off_is_gone_on_with() {
    let content: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let digest = format!("{:x}", Sha256::digest(&content));
    let hub = Hub::start(&[("toy.gguf", &digest, &content)]);
    let dir = tempfile::tempdir().unwrap();
    // What a killed transfer leaves: the beginning of the file, as a part.
    let blobs = dir
        .path()
        .join("models/.fetch/maker--toy/hub/models--maker--toy/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(format!("{digest}.part")), &content[..60_000]).unwrap();
    let mut first = None;
    let path = hub
        .fetcher(dir.path())
        .fetch("maker/toy", &mut |progress| {
            if let FetchProgress::Fetching { done, .. } = progress {
                first.get_or_insert(done);
            }
        })
        .unwrap();
    assert_eq!(first, Some(60_000));
    assert!(fs::read(path).unwrap() == content);
}
