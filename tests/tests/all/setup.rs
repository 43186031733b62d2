//! The set-up script: what it says when something is missing, and what it leaves alone.
//!
//! It runs in a copy of its own, with a PATH that holds just what a case gives it; nothing is
//! fetched.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

const TOOLS: [&str; 18] = [
    "awk", "cat", "cp", "dirname", "flock", "grep", "head", "mkdir", "mktemp", "mv", "rm", "sed",
    "sh", "tail", "make", "cc", "c++", "env",
];

/// A clone with nothing but the set-up in it, on a machine of which the test says what it has.
struct Machine {
    dir: TempDir,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let machine = Self { dir };
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        fs::create_dir_all(machine.path("clone/setup")).unwrap();
        fs::create_dir(machine.path("bin")).unwrap();
        for file in ["Cargo.toml", "setup/setup.sh", "setup/libtorch-2.11.0.txt"] {
            fs::copy(repository.join(file), machine.path("clone").join(file)).unwrap();
        }
        for tool in TOOLS {
            let places = ["/usr/bin", "/bin", "/usr/local/bin"];
            let found = places.map(|place| Path::new(place).join(tool));
            let found = found.iter().find(|path| path.exists());
            symlink(found.unwrap(), machine.path("bin").join(tool)).unwrap();
        }
        machine.install("cargo", "exit 0");
        machine.install("uname", "[ \"$1\" = -s ] && echo Linux || echo x86_64");
        machine.install("df", "echo head; echo disk 0 0 99000000 0% /");
        machine.install("rustc", "echo 'rustc 1.99.0 (stub)'");
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn install(&self, tool: &str, body: &str) {
        let source = self.path("tool.sh");
        fs::write(&source, format!("#!/bin/sh\n{body}\n")).unwrap();
        let mut install = Command::new("install");
        install
            .args(["-m", "755"])
            .arg(source)
            .arg(self.path("bin").join(tool));
        assert!(install.status().unwrap().success());
    }

    fn remove(&self, tool: &str) {
        fs::remove_file(self.path("bin").join(tool)).unwrap();
    }

    /// A folder that looks like libtorch of a version.
    fn libtorch(&self, name: &str, version: &str) -> PathBuf {
        let folder = self.path(name);
        let headers = folder.join("include/torch/csrc/api/include/torch");
        fs::create_dir_all(&headers).unwrap();
        fs::create_dir(folder.join("lib")).unwrap();
        fs::write(headers.join("torch.h"), "").unwrap();
        fs::write(folder.join("lib/libtorch_cpu.so"), "").unwrap();
        fs::write(folder.join("build-version"), version).unwrap();
        folder
    }

    fn set_up(&self, libtorch: Option<&Path>) -> Output {
        let mut script = Command::new(self.path("clone/setup/setup.sh"));
        script
            .env_clear()
            .env("PATH", self.path("bin"))
            .env("HOME", self.path("home"));
        if let Some(libtorch) = libtorch {
            script.env("LIBTORCH", libtorch);
        }
        script.output().unwrap()
    }

    /// The one sentence with which a set-up fails.
    fn fault(&self, libtorch: Option<&Path>) -> String {
        let output = self.set_up(libtorch);
        assert!(!output.status.success());
        let said = String::from_utf8(output.stderr).unwrap();
        let said = said.trim();
        assert!(
            said.starts_with("setup: ") && said.lines().count() == 1,
            "{said}"
        );
        said.to_owned()
    }

    fn config(&self) -> PathBuf {
        self.path("clone/.cargo/config.toml")
    }
}

#[test]
fn a_missing_tool_is_one_sentence_that_says_how_to_get_it() {
    for (tool, says) in [
        ("cargo", "rustup"),
        ("rustc", "rustup"),
        ("c++", "apt install build-essential"),
        ("make", "apt install build-essential"),
    ] {
        let machine = Machine::new();
        machine.remove(tool);
        let fault = machine.fault(None);
        assert!(fault.contains(tool) && fault.contains(says), "{fault}");
    }
    // Python is only needed to fetch.
    let fault = Machine::new().fault(None);
    assert!(
        fault.contains("python3-pip") && fault.contains("LIBTORCH"),
        "{fault}"
    );
    let machine = Machine::new();
    machine.install("python3", "exit 1");
    let fault = machine.fault(None);
    assert!(fault.contains("has no pip"), "{fault}");
}

#[test]
fn a_rust_that_is_too_old_is_named_with_the_one_that_is_needed() {
    let machine = Machine::new();
    machine.install("rustc", "echo 'rustc 1.63.0 (old)'");
    let fault = machine.fault(None);
    assert!(
        fault.contains("1.63.0") && fault.contains("rustup update"),
        "{fault}"
    );
}

#[test]
fn a_network_that_is_down_is_one_sentence_and_leaves_nothing_behind() {
    let machine = Machine::new();
    machine.install(
        "python3",
        "[ \"$3\" = --version ] || { echo 'NewConnectionError: retrying' >&2; exit 1; }",
    );
    let fault = machine.fault(None);
    assert!(fault.contains("check the network"), "{fault}");
    let left: Vec<_> = fs::read_dir(machine.path("home/.cache/addenda"))
        .unwrap()
        .map(|file| file.unwrap().file_name())
        .collect();
    assert_eq!(left, ["setup.lock"]);
    assert!(!machine.config().exists());
}

#[test]
fn a_disk_that_is_too_full_is_named_with_what_is_needed() {
    let machine = Machine::new();
    machine.install("python3", "exit 0");
    machine.install("df", "echo head; echo disk 0 0 1024000 0% /");
    let fault = machine.fault(None);
    assert!(
        fault.contains("there are 1000 MB") && fault.contains("CARGO_TARGET_DIR"),
        "{fault}"
    );
    // What is built already needs no more of that.
    fs::create_dir_all(machine.path("clone/target/release")).unwrap();
    let fault = machine.fault(None);
    assert!(
        fault.contains("there are 1000 MB") && fault.contains("ADDENDA_CACHE_DIR"),
        "{fault}"
    );
}

#[test]
fn another_kind_of_machine_is_asked_to_bring_its_own_libtorch() {
    let machine = Machine::new();
    machine.install("uname", "[ \"$1\" = -s ] && echo Linux || echo aarch64");
    let fault = machine.fault(None);
    assert!(
        fault.contains("Linux on aarch64") && fault.contains("set LIBTORCH"),
        "{fault}"
    );
    let folder = machine.libtorch("folder", "2.11.0");
    assert!(machine.set_up(Some(&folder)).status.success());
}

#[test]
fn a_libtorch_folder_that_cannot_be_built_against_is_refused_with_the_reason() {
    let machine = Machine::new();
    let fault = machine.fault(Some(Path::new("/nowhere")));
    assert!(
        fault.contains("/nowhere") && fault.contains("lib/libtorch_cpu.so"),
        "{fault}"
    );
    let newer = machine.libtorch("newer", "2.13.0+cpu");
    let fault = machine.fault(Some(&newer));
    assert!(
        fault.contains("2.13.0+cpu") && fault.contains("2.11.0 is needed"),
        "{fault}"
    );
}

#[test]
fn a_libtorch_folder_is_told_to_cargo_once_and_kept() {
    let machine = Machine::new();
    let first = machine.libtorch("first", "2.11.0+cpu\n");
    assert!(machine.set_up(Some(&first)).status.success());
    let config = fs::read_to_string(machine.config()).unwrap();
    assert!(
        config.contains(&format!("LIBTORCH = \"{}\"", first.display())),
        "{config}"
    );
    // Another time stamp would have cargo compile libtorch's bindings anew.
    let written = fs::metadata(machine.config()).unwrap().modified().unwrap();
    assert!(machine.set_up(Some(&first)).status.success());
    assert!(
        machine.set_up(None).status.success(),
        "what was chosen before stays"
    );
    assert_eq!(
        fs::metadata(machine.config()).unwrap().modified().unwrap(),
        written
    );
    // Another folder takes its place.
    let second = machine.libtorch("second", "2.11.0");
    assert!(machine.set_up(Some(&second)).status.success());
    let config = fs::read_to_string(machine.config()).unwrap();
    assert!(
        config.contains(&format!("LIBTORCH = \"{}\"", second.display())),
        "{config}"
    );
}

#[test]
fn settings_of_cargo_that_someone_wrote_by_hand_are_not_overwritten() {
    let machine = Machine::new();
    let folder = machine.libtorch("folder", "2.11.0");
    fs::create_dir(machine.path("clone/.cargo")).unwrap();
    fs::write(machine.config(), "[net]\noffline = true\n").unwrap();
    let fault = machine.fault(Some(&folder));
    assert!(
        fault.contains("LIBTORCH = ") && fault.contains("[env]"),
        "{fault}"
    );
    assert_eq!(
        fs::read_to_string(machine.config()).unwrap(),
        "[net]\noffline = true\n"
    );
}
