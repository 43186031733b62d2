//! A warm-up that is killed at random instants and sent again ends with each document exactly once,
//! and repeats no more than what was in work.
//!
//! The test runs its own binary as the daemon to kill. The daemon's log says each packet that was
//! computed; what stood in the pipe when it died was computed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use addenda_proto::addenda::v1::packets_client::PacketsClient;
use addenda_proto::addenda::v1::warm_progress::Result as Warmed;
use addenda_proto::addenda::v1::{
    ListPacketsRequest, PutDocumentRequest, StatsRequest, WarmProgress,
};
use tokio_stream::StreamExt;
use tonic::transport::Channel;

use crate::daemon::{self, document};
use crate::weights::write_directory;

/// Documents that the daemon works at at once; one kill costs no more.
const BATCH: usize = 8;
/// Where the child finds its data and its model. An argument would be taken for a test's name.
const DATA: &str = "WARM_CRASH_TEST_DATA";
const MODEL: &str = "WARM_CRASH_TEST_MODEL";

#[test]
#[ignore = "the daemon that the crash test kills; alone it does nothing"]
fn child() {
    let (Ok(data), Ok(model)) = (std::env::var(DATA), std::env::var(MODEL)) else {
        return;
    };
    addenda::telemetry::init("warn,addenda=debug").unwrap();
    let config = daemon::config(Path::new(&data), &[("model", &model), ("threads", "1")]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let ready = |address| {
        let mut out = std::io::stdout();
        // A line end first, because the test harness leaves a line open.
        out.write_all(format!("\nready {address}\n").as_bytes())
            .unwrap();
        out.flush().unwrap();
    };
    runtime
        .block_on(addenda::server::serve(config, ready))
        .unwrap();
}

/// A daemon in a process of its own.
struct Victim {
    process: Child,
    packets: PacketsClient<Channel>,
    /// Gives the keys of the packets that were computed.
    log: JoinHandle<Vec<String>>,
}

impl Victim {
    async fn start(data: &Path, model: &Path) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["warm_crash::child", "--exact", "--ignored", "--nocapture"])
            .env(DATA, data)
            .env(MODEL, model)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(process.stderr.take().unwrap());
        let log = std::thread::spawn(move || {
            let lines = stderr.lines().map_while(Result::ok);
            let computed = lines.filter(|line| line.contains("a packet was computed"));
            computed.map(|line| key(&line)).collect()
        });
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let address = lines
            .find_map(|line| Some(line.unwrap().strip_prefix("ready ")?.to_owned()))
            .expect("the daemon starts");
        let channel = Channel::from_shared(format!("http://{address}")).unwrap();
        let packets = PacketsClient::new(channel.connect().await.unwrap());
        Self {
            process,
            packets,
            log,
        }
    }

    /// Warms until the stream ends, or until so many reports came; then it is killed a little later.
    async fn warm(
        &mut self,
        documents: &[PutDocumentRequest],
        kill_after: Option<(usize, Duration)>,
    ) -> Vec<WarmProgress> {
        let documents = tokio_stream::iter(documents.to_vec());
        let Ok(reports) = self.packets.warm(documents).await else {
            return Vec::new();
        };
        let (mut reports, mut heard) = (reports.into_inner(), Vec::new());
        while let Some(Ok(report)) = reports.next().await {
            heard.push(report);
            if let Some((patience, pause)) = kill_after
                && heard.len() == patience
            {
                // Not to wait for anything: to die at another point of the work every time.
                tokio::time::sleep(pause).await;
                self.process.kill().unwrap();
            }
        }
        heard
    }

    /// Its computed packets, once it is dead.
    fn end(mut self) -> Vec<String> {
        drop(self.process.kill());
        self.process.wait().unwrap();
        self.log.join().unwrap()
    }
}

/// The 64 hex digits of a line.
fn key(line: &str) -> String {
    let mut runs = line.split(|c: char| !c.is_ascii_hexdigit());
    runs.find(|run| run.len() == 64).unwrap().to_owned()
}

/// A document of the tiny model's alphabet, different for each number.
fn text(number: usize) -> String {
    let letters = (0..40).map(|bit| {
        if number >> (bit % 12) & 1 == 0 {
            "a"
        } else {
            "b"
        }
    });
    letters.collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn a_thousand_documents_that_are_warmed_through_ten_kills_are_there_once_each() {
    let (count, kills): (usize, usize) = (1000, 10);
    let (data, model) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_directory(model.path(), 1);
    let documents: Vec<_> = (0..count)
        .map(|number| document("", &format!("document {number}"), &text(number)))
        .collect();
    let mut computed: BTreeMap<String, usize> = BTreeMap::new();
    let mut created = BTreeSet::new();
    let mut durable = 0;
    for round in 0..=kills {
        let random = blake3::hash(&round.to_le_bytes());
        let random = random.as_bytes();
        let most = (count / (kills + 1)).max(1);
        // Where the previous runs got to, and a little further, so that each run dies at work.
        let patience = durable + 1 + usize::from(random[0]) * most / 256;
        let pause = Duration::from_micros(u64::from(random[1]) * 40);
        let last = round == kills;
        let mut victim = Victim::start(data.path(), model.path()).await;
        let heard = victim
            .warm(
                &documents,
                (!last).then_some((patience.min(count - 1), pause)),
            )
            .await;
        for (at, (report, sent)) in heard.iter().zip(&documents).enumerate() {
            assert_eq!(
                report.document, sent.name,
                "reports come in the order of the documents"
            );
            assert_eq!((report.received as usize, report.refused), (at + 1, 0));
            assert!(matches!(report.result, Some(Warmed::Packet(_))));
        }
        let mut before = 0;
        for report in &heard {
            if report.created > before {
                assert!(
                    created.insert(report.document.clone()),
                    "{} was durable and was computed again",
                    report.document
                );
            }
            before = report.created;
        }
        assert!(heard.len() >= durable || !last, "what is durable is found");
        durable = durable.max(heard.len());
        if last {
            assert_eq!(heard.len(), count);
            each_once(&mut victim, count).await;
        }
        for key in victim.end() {
            *computed.entry(key).or_default() += 1;
        }
    }
    assert_eq!(computed.len(), count);
    let twice = computed.values().sum::<usize>() - count;
    println!("{count} documents, {kills} kills: {twice} were computed again");
    assert!(
        twice <= kills * BATCH,
        "{twice} documents were computed again"
    );
}

/// Each document has one packet, and there is no other.
async fn each_once(victim: &mut Victim, count: usize) {
    let request = ListPacketsRequest {
        page_size: 1000,
        ..ListPacketsRequest::default()
    };
    let packets = victim
        .packets
        .list(request)
        .await
        .unwrap()
        .into_inner()
        .packets;
    let names: BTreeSet<_> = packets.iter().map(|packet| &packet.document).collect();
    assert_eq!((packets.len(), names.len()), (count, count));
    let stats = victim
        .packets
        .stats(StatsRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(stats.packets as usize, count);
}
