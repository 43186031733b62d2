//! The command line and the configuration, run inside this process with an environment of the
//! test's own.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use addenda::cli::{Console, run};
use addenda::config::{Config, Inputs, Loaded, load};
use serde_json::Value;

use crate::daemon;

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub(crate) struct Outcome {
    pub(crate) code: ExitCode,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// One command under these variables, with a home of its own.
pub(crate) fn addenda(home: &Path, variables: &[(&str, &str)], arguments: &[&str]) -> Outcome {
    let (out, err) = (Buffer::default(), Buffer::default());
    let mut console = Console::to(Box::new(out.clone()), Box::new(err.clone()));
    let inputs = |file, flags| Ok(inputs(home, variables, file, flags));
    let arguments = ["addenda"].iter().chain(arguments);
    let code = match run(arguments, inputs, &mut console) {
        Ok(code) => code,
        Err(error) => console.fail(&error),
    };
    Outcome {
        code,
        out: out.text(),
        err: err.text(),
    }
}

fn inputs(
    home: &Path,
    variables: &[(&str, &str)],
    file: Option<std::path::PathBuf>,
    flags: Vec<(&'static str, String)>,
) -> Inputs {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let mut environment: BTreeMap<String, String> = variables.iter().map(own).collect();
    environment.insert("HOME".to_owned(), home.display().to_string());
    Inputs {
        file,
        usual_files: vec![home.join(".config/addenda/addenda.toml")],
        environment,
        flags,
    }
}

fn loaded(home: &Path, variables: &[(&str, &str)]) -> addenda::config::Result<Loaded> {
    load(&inputs(home, variables, None, Vec::new()))
}

fn config(home: &Path, variables: &[(&str, &str)]) -> Config {
    loaded(home, variables).unwrap().config
}

/// Every line of an output as JSON.
pub(crate) fn lines(out: &str) -> Vec<Value> {
    out.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}")))
        .collect()
}

fn write_settings(home: &Path, text: &str) -> String {
    let file = home.join(".config/addenda/addenda.toml");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, text).unwrap();
    file.display().to_string()
}

/// An address of this machine where nobody listens.
fn closed_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[test]
fn flags_beat_the_environment_which_beats_the_file_which_beats_the_defaults() {
    let home = tempfile::tempdir().unwrap();
    let file = write_settings(
        home.path(),
        "queue = 10\nmax_tokens = 100\nthreads = 3\nmin_free_bytes = \"2 GiB\"\n",
    );
    let variables = [("ADDENDA_MAX_TOKENS", "200"), ("ADDENDA_THREADS", "4")];
    let arguments = ["--json", "config", "print", "--threads", "1"];
    let outcome = addenda(home.path(), &variables, &arguments);
    assert_eq!(outcome.code, ExitCode::SUCCESS, "{}", outcome.err);
    let settings = lines(&outcome.out);
    let shown = |key: &str| {
        let setting = settings.iter().find(|one| one["key"] == key).unwrap();
        let text = |name: &str| setting[name].as_str().unwrap().to_owned();
        (text("value"), text("source"))
    };
    assert_eq!(shown("threads"), ("1".into(), "flag --threads".into()));
    let environment = "environment ADDENDA_MAX_TOKENS";
    assert_eq!(shown("max_tokens"), ("200".into(), environment.into()));
    assert_eq!(shown("queue"), ("10".into(), format!("file {file}")));
    assert_eq!(
        shown("min_free_bytes"),
        ("2 GiB".into(), format!("file {file}"))
    );
    assert_eq!(shown("prefill_chunk"), ("512".into(), "default".into()));
}

#[test]
fn an_unknown_key_is_refused_with_its_file_and_what_was_probably_meant() {
    let home = tempfile::tempdir().unwrap();
    let file = write_settings(home.path(), "max_token = 3\n");
    let outcome = addenda(home.path(), &[], &["config", "print"]);
    assert_eq!(outcome.code, ExitCode::from(2));
    assert!(outcome.out.is_empty());
    for part in [file.as_str(), "`max_token`", "did you mean `max_tokens`"] {
        assert!(
            outcome.err.contains(part),
            "{part} is not in {}",
            outcome.err
        );
    }
}

#[test]
fn a_misspelt_variable_is_refused_and_a_stranger_with_our_prefix_is_not() {
    let home = tempfile::tempdir().unwrap();
    let error = loaded(home.path(), &[("ADDENDA_MODLE", "x")]).unwrap_err();
    assert!(error.to_string().contains("ADDENDA_MODEL?"), "{error}");
    let kubernetes = [
        ("ADDENDA_SERVICE_HOST", "10.0.0.1"),
        ("ADDENDA_PORT_7411_TCP", "tcp://10.0.0.1:7411"),
    ];
    loaded(home.path(), &kubernetes).unwrap();
}

#[test]
fn a_value_that_is_not_taken_is_refused_with_its_source_and_what_would_be() {
    let home = tempfile::tempdir().unwrap();
    let wrong = [
        ("ADDENDA_QUEUE", "0", "from 1 to 65536"),
        ("ADDENDA_DTYPE", "fp16", "auto, f32 or bf16"),
        ("ADDENDA_DEVICE", "gpu", "cuda:N"),
        ("ADDENDA_LISTEN", "localhost", "ADDRESS:PORT"),
        ("ADDENDA_MAX_STORE_BYTES", "ten", "10 GiB"),
        ("ADDENDA_CONNECT", "https://example.org:1", "no TLS"),
        ("ADDENDA_MODEL", " ", "must not be empty"),
    ];
    for (variable, value, hint) in wrong {
        let error = loaded(home.path(), &[(variable, value)])
            .unwrap_err()
            .to_string();
        for part in [variable, value, hint] {
            assert!(error.contains(part), "{part} is not in {error}");
        }
    }
    let file = write_settings(home.path(), "threads = \"2\"\n");
    let error = loaded(home.path(), &[]).unwrap_err().to_string();
    assert!(
        error.contains(&file) && error.contains("without quotes"),
        "{error}"
    );
}

#[test]
fn a_file_that_is_no_toml_is_refused_with_the_line_and_a_named_one_must_exist() {
    let home = tempfile::tempdir().unwrap();
    write_settings(home.path(), "queue = 1\nmodel = smollm2\n");
    let error = loaded(home.path(), &[]).unwrap_err().to_string();
    assert!(error.contains("line 2"), "{error}");
    let missing = home.path().join("none.toml").display().to_string();
    let outcome = addenda(home.path(), &[], &["--config", &missing, "config", "print"]);
    assert_eq!(outcome.code, ExitCode::from(2));
    assert!(outcome.err.contains(&missing), "{}", outcome.err);
}

#[test]
fn an_address_that_other_machines_reach_needs_permission_and_is_warned_about() {
    let home = tempfile::tempdir().unwrap();
    let open = ("ADDENDA_LISTEN", "0.0.0.0:7411");
    let error = loaded(home.path(), &[open]).unwrap_err().to_string();
    assert!(error.contains("allow_remote = true"), "{error}");
    let allowed = loaded(home.path(), &[open, ("ADDENDA_ALLOW_REMOTE", "true")]).unwrap();
    assert!(
        allowed
            .warnings
            .iter()
            .any(|warning| warning.contains("TLS"))
    );
    assert_eq!(allowed.config.connect, "http://127.0.0.1:7411");
}

#[test]
fn commands_look_for_the_daemon_where_it_listens_unless_told_otherwise() {
    let home = tempfile::tempdir().unwrap();
    let listen = ("ADDENDA_LISTEN", "127.0.0.1:9000");
    assert_eq!(
        config(home.path(), &[listen]).connect,
        "http://127.0.0.1:9000"
    );
    let connect = ("ADDENDA_CONNECT", "ward7:7411");
    assert_eq!(
        config(home.path(), &[listen, connect]).connect,
        "http://ward7:7411"
    );
}

#[test]
fn a_relative_path_of_the_file_begins_at_the_file_and_a_tilde_at_home() {
    let home = tempfile::tempdir().unwrap();
    write_settings(
        home.path(),
        "data_dir = \"data\"\ncache_dir = \"~/models\"\nmodel = \"./tiny\"\n",
    );
    let config = config(home.path(), &[]);
    let beside = home.path().join(".config/addenda");
    assert_eq!(config.data_dir, beside.join("data"));
    assert_eq!(config.cache_dir, home.path().join("models"));
    assert_eq!(Path::new(&config.model), beside.join("./tiny"));
}

#[test]
fn the_printed_file_gives_the_same_configuration_back() {
    let home = tempfile::tempdir().unwrap();
    let variables = [
        ("ADDENDA_QUEUE", "7"),
        ("ADDENDA_MIN_FREE_BYTES", "1500MB"),
        ("ADDENDA_MODEL", "a \"quoted\" name"),
    ];
    let printed = addenda(home.path(), &variables, &["config", "print", "--toml"]);
    write_settings(home.path(), &printed.out);
    assert_eq!(config(home.path(), &[]), config(home.path(), &variables));
}

#[test]
fn where_no_daemon_answers_the_error_says_how_to_start_one() {
    let home = tempfile::tempdir().unwrap();
    let connect = closed_port();
    let commands: [&[&str]; 5] = [
        &["ask", "Who?"],
        &["fact", "list"],
        &["packet", "stats"],
        &["job", "list"],
        &["model", "info"],
    ];
    for command in commands {
        let arguments = [&["--connect", &connect], command].concat();
        let outcome = addenda(home.path(), &[], &arguments);
        assert_eq!(outcome.code, ExitCode::from(1));
        assert!(outcome.err.contains(&connect), "{}", outcome.err);
        assert!(outcome.err.contains("addenda serve"), "{}", outcome.err);
    }
}

#[test]
fn a_command_waits_for_a_daemon_that_is_starting() {
    let home = tempfile::tempdir().unwrap();
    let connect = closed_port();
    let config = daemon::config(home.path(), &[("listen", &connect)]);
    let starting = std::thread::spawn(|| daemon::Daemon::try_start(config).unwrap());
    // It listens before it loads its model, and refuses what needs the model until then.
    while TcpStream::connect(&connect).is_err() {
        std::thread::yield_now();
    }
    let outcome = addenda(
        home.path(),
        &[],
        &["--connect", &connect, "--json", "fact", "list"],
    );
    assert_eq!(outcome.code, ExitCode::SUCCESS, "{}", outcome.err);
    starting.join().unwrap().stop();
}

#[test]
fn every_command_explains_itself_and_a_wrong_one_is_a_usage_error() {
    let home = tempfile::tempdir().unwrap();
    let commands = [
        "adapter activate",
        "adapter certificates",
        "adapter certify",
        "adapter export",
        "adapter import",
        "adapter list",
        "adapter train",
        "ask",
        "config print",
        "demo",
        "doctor",
        "fact add",
        "fact check",
        "fact list",
        "fact retire",
        "fact show",
        "fact watch",
        "job cancel",
        "job list",
        "job show",
        "job watch",
        "model fetch",
        "model info",
        "model list",
        "packet list",
        "packet pin",
        "packet put",
        "packet rm",
        "packet show",
        "packet stats",
        "packet unpin",
        "packet warm",
        "serve",
    ];
    for command in commands {
        let arguments: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let outcome = addenda(home.path(), &[], &arguments);
        assert_eq!(outcome.code, ExitCode::SUCCESS, "{command}");
        assert!(outcome.out.contains("Usage: addenda"), "{}", outcome.out);
    }
    let outcome = addenda(home.path(), &[], &["fact", "forget"]);
    assert_eq!(outcome.code, ExitCode::from(2));
    assert!(outcome.err.contains("forget"), "{}", outcome.err);
}

#[test]
fn the_catalogue_is_listed_as_json_with_digests() {
    let home = tempfile::tempdir().unwrap();
    let outcome = addenda(home.path(), &[], &["model", "list", "--json"]);
    let models = lines(&outcome.out);
    let small = models
        .iter()
        .find(|one| one["name"] == "smollm2-135m")
        .unwrap();
    assert_eq!(small["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(small["path"], Value::Null);
}

/// Verdict and mend of a finding of `doctor --json`.
fn finding<'a>(findings: &'a [Value], area: &str, subject: &str) -> (&'a str, &'a str) {
    let of = |one: &&Value| one["area"] == area && one["subject"] == subject;
    let found = findings.iter().find(of);
    let found = found.unwrap_or_else(|| panic!("no finding {area} {subject} in {findings:?}"));
    (
        found["verdict"].as_str().unwrap(),
        found["mend"].as_str().unwrap(),
    )
}

fn doctor(home: &Path, data_dir: &Path, model: &str) -> (ExitCode, Vec<Value>) {
    let (connect, data_dir) = (closed_port(), data_dir.display().to_string());
    let arguments = [
        "--json",
        "--connect",
        &connect,
        "doctor",
        "--data-dir",
        &data_dir,
        "--model",
        model,
        "--min-free-bytes",
        "1",
    ];
    let outcome = addenda(home, &[], &arguments);
    (outcome.code, lines(&outcome.out))
}

#[test]
fn doctor_names_a_missing_model_and_the_command_that_brings_it() {
    let home = tempfile::tempdir().unwrap();
    let (code, findings) = doctor(home.path(), &home.path().join("data"), "smollm2-135m");
    assert_eq!(code, ExitCode::FAILURE);
    let mend = "addenda model fetch smollm2-135m";
    assert_eq!(finding(&findings, "model", "files"), ("problem", mend));
    let (verdict, mend) = finding(&findings, "daemon", "reachable");
    assert_eq!(verdict, "warning");
    assert!(mend.contains("addenda serve"));
    assert_eq!(finding(&findings, "machine", "libtorch").0, "ok");
}

#[test]
fn doctor_changes_nothing_where_there_is_no_data_yet() {
    let home = tempfile::tempdir().unwrap();
    let data_dir = home.path().join("deep/data");
    let (_, findings) = doctor(home.path(), &data_dir, "none");
    assert_eq!(finding(&findings, "data", "directory").0, "ok");
    assert!(!home.path().join("deep").exists());
}

#[test]
fn doctor_finds_a_data_directory_that_is_a_file_and_a_model_that_is_damaged() {
    let home = tempfile::tempdir().unwrap();
    let data_dir = home.path().join("data");
    std::fs::write(&data_dir, "no directory").unwrap();
    let model = home.path().join("model.gguf");
    std::fs::write(&model, "GGUF, but not really").unwrap();
    let (code, findings) = doctor(home.path(), &data_dir, &model.display().to_string());
    assert_eq!(code, ExitCode::FAILURE);
    assert_eq!(finding(&findings, "data", "directory").0, "problem");
    assert_eq!(finding(&findings, "model", "files").0, "problem");
}

#[test]
fn doctor_finds_a_ledger_that_was_damaged() {
    let home = tempfile::tempdir().unwrap();
    let data_dir = home.path().join("data");
    std::fs::create_dir_all(data_dir.join("ledger")).unwrap();
    std::fs::write(data_dir.join("ledger/facts.ledger"), [7_u8; 400]).unwrap();
    let (code, findings) = doctor(home.path(), &data_dir, "none");
    assert_eq!(code, ExitCode::FAILURE);
    let (verdict, mend) = finding(&findings, "data", "ledger");
    assert_eq!(verdict, "problem");
    assert!(mend.contains("backup"), "{mend}");
}

#[test]
fn doctor_says_who_holds_the_data_directory_when_the_daemon_does_not_answer() {
    let home = tempfile::tempdir().unwrap();
    let data_dir = home.path().join("data");
    std::fs::create_dir(&data_dir).unwrap();
    let _held = addenda_cache::DirectoryLock::acquire(&data_dir).unwrap();
    let (_, findings) = doctor(home.path(), &data_dir, "none");
    let lock = findings
        .iter()
        .find(|one| one["subject"] == "lock")
        .unwrap();
    let process = std::process::id().to_string();
    assert!(
        lock["finding"].as_str().unwrap().contains(&process),
        "{lock}"
    );
    assert_eq!(finding(&findings, "daemon", "reachable").0, "problem");
}

/// One command to the daemon that tests share.
fn ask_daemon(arguments: &[&str]) -> Outcome {
    let home = tempfile::tempdir().unwrap();
    let connect = daemon::shared().address.to_string();
    let arguments = [&["--connect", &connect, "--json"], arguments].concat();
    addenda(home.path(), &[], &arguments)
}

/// The same, which must succeed, as JSON.
fn answers(arguments: &[&str]) -> Vec<Value> {
    let outcome = ask_daemon(arguments);
    assert_eq!(
        outcome.code,
        ExitCode::SUCCESS,
        "{arguments:?}: {}",
        outcome.err
    );
    lines(&outcome.out)
}

#[test]
fn a_folder_is_warmed_listed_pinned_asked_and_erased_from_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().display().to_string();
    std::fs::create_dir(folder.path().join("wards")).unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("rules.txt", b"Visitors leave at nine.");
    write("wards/alder.md", b"Alder Ward has eleven beds.");
    write(".hidden", b"not a document");
    write("latin.txt", b"Caf\xe9");
    let ours = ["--namespace", "cli-warm"];
    let with_ours = |arguments: &[&'static str]| [arguments, &ours].concat();
    let warm = [&["packet", "warm", &dir], &ours[..]].concat();

    let first = ask_daemon(&warm);
    assert_eq!(first.code, ExitCode::FAILURE, "a file was left out");
    assert!(
        first.err.contains("latin.txt") && first.err.contains("UTF-8"),
        "{}",
        first.err
    );
    assert_eq!(lines(&first.out).last().unwrap()["created"], 2);
    std::fs::remove_file(folder.path().join("latin.txt")).unwrap();
    assert_eq!(answers(&warm).last().unwrap()["found"], 2);

    let packets = answers(&with_ours(&["packet", "list"]));
    let mut names: Vec<&str> = packets
        .iter()
        .map(|one| one["document"].as_str().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["rules.txt", "wards/alder.md"]);
    let short = &packets[0]["id"].as_str().unwrap()[..12];
    let pinned = answers(&[&["packet", "pin", short], &ours[..]].concat());
    assert_eq!(
        (&pinned[0]["id"], &pinned[0]["pinned"]),
        (&packets[0]["id"], &Value::Bool(true))
    );

    let question = [
        "ask",
        "--raw",
        "--doc",
        "rules.txt",
        "--mode",
        "packet",
        "--max-tokens",
        "4",
    ];
    let answer = answers(&with_ours(
        &[&question[..], &["Visitors leave at"]].concat(),
    ));
    assert!(!answer[0]["answer"].as_str().unwrap().is_empty());
    assert_eq!(answer[0]["summary"]["mode"], "MODE_PACKET");
    assert!(answer[0]["summary"]["packet_tokens"].as_u64().unwrap() > 0);

    let erased = answers(&with_ours(&["packet", "rm", "rules.txt"]));
    assert_eq!(erased[0]["packets"], 1);
    let gone = ask_daemon(&with_ours(&["packet", "show", "rules.txt"]));
    assert_eq!(gone.code, ExitCode::FAILURE);
    assert!(
        gone.err.contains("rules.txt") && gone.err.contains("hint:"),
        "{}",
        gone.err
    );
}

#[test]
fn what_is_served_and_stored_is_shown_as_json() {
    let info = answers(&["model", "info"]);
    assert_eq!(info[0]["revision"].as_str().unwrap().len(), 64);
    assert_eq!(info[0]["layers"], 30);
    let stats = answers(&["packet", "stats"]);
    assert!(stats[0]["hits"].is_u64());
    for list in [
        &["fact", "list"][..],
        &["job", "list", "--all"],
        &["fact", "watch", "--no-follow"],
    ] {
        answers(list);
    }
}

#[test]
fn an_id_that_is_unknown_or_too_short_is_an_error_with_a_hint() {
    let unknown = "0".repeat(64);
    for id in ["abc", "0123456789ab", &unknown] {
        for command in ["show", "retire", "check"] {
            let outcome = ask_daemon(&["fact", command, id]);
            assert_eq!(outcome.code, ExitCode::FAILURE, "{command} {id}");
            assert!(outcome.err.contains("fact list"), "{}", outcome.err);
        }
    }
}

#[test]
fn doctor_finds_a_running_daemon_well() {
    let home = tempfile::tempdir().unwrap();
    let connect = daemon::shared().address.to_string();
    let data_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("shared-daemon");
    let config = daemon::config(&data_dir, &[]);
    let (data_dir, cache_dir) = (
        data_dir.display().to_string(),
        config.cache_dir.display().to_string(),
    );
    let arguments = [
        "--json",
        "--connect",
        &connect,
        "--cache-dir",
        &cache_dir,
        "doctor",
        "--data-dir",
        &data_dir,
        "--min-free-bytes",
        "1",
    ];
    let outcome = addenda(home.path(), &[], &arguments);
    let findings = lines(&outcome.out);
    for (area, subject) in [
        ("model", "files"),
        ("model", "tokenizer"),
        ("data", "lock"),
        ("daemon", "reachable"),
        ("daemon", "serves"),
    ] {
        assert_eq!(finding(&findings, area, subject), ("ok", ""));
    }
    assert_eq!(outcome.code, ExitCode::SUCCESS, "{}", outcome.out);
}
