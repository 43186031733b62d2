//! Mixed traffic on one daemon for a while, more of it than the daemon lets in: answers, of which half are
//! given up at some token, documents put and deleted, facts added and retired.
//!
//! What must hold: no error but RESOURCE_EXHAUSTED, nothing left running at the end, no more threads and files
//! than after a quarter of the time, memory that does not grow. What does not is named, and the run fails.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use addenda_model::{ModelFiles, Tokenizer};
use addenda_proto::addenda::v1::generation_client::GenerationClient;
use addenda_proto::addenda::v1::knowledge_client::KnowledgeClient;
use addenda_proto::addenda::v1::packets_client::PacketsClient;
use addenda_proto::addenda::v1::{
    AddFactRequest, Completion, DeleteRequest, Fact, GenerateRequest, PutDocumentRequest,
    RetireFactRequest, delete_request, generate_request::Prompt,
};
use serde_json::json;
use tokio::task::JoinSet;
use tonic::Code;
use tonic::transport::Channel;

use crate::daemon::Daemon;
use crate::error::{Error, Result, io};
use crate::pages::resident;
use crate::random::Random;
use crate::text;

/// Places in the daemon's queue: fewer than there are clients.
const QUEUE: usize = 4;
/// Memory for contexts: less than all clients need, so that requests wait for it.
const KV_BYTES: u64 = 64 << 20;
/// Names that documents are put under, again and again.
const NAMES: u64 = 12;
/// How much of the memory in the middle of the run the end may have besides.
const GROWTH: f64 = 1.1;
/// Threads, and open files, that the end may have besides: the store's files, and threads that rest before
/// they end. Thousands of requests that each left one behind would show.
const LEFT_OVER: u64 = 4;
/// A daemon that has nothing to do is idle within so long.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A model's path or its name in the catalogue.
    #[arg(long, default_value = "smollm2-135m")]
    model: String,
    /// How long.
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Clients that ask for answers.
    #[arg(long, default_value_t = 28)]
    clients: u64,
    /// Further flags of `addenda serve`.
    #[arg(long)]
    serve_flag: Vec<String>,
    /// What is asked, and given up, follows from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// One line of JSON (there is no other form yet).
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<serde_json::Value> {
    crate::block_on(soak(arguments))
}

async fn soak(arguments: &Arguments) -> Result<serde_json::Value> {
    let folder = crate::temporary_folder()?;
    let tokenizer = ModelFiles::open(&crate::resolve(&arguments.model)?)?.tokenizer;
    let mut flags = vec![
        format!("--queue={QUEUE}"),
        format!("--max-kv-bytes={KV_BYTES}"),
    ];
    flags.extend(arguments.serve_flag.iter().cloned());
    let daemon = Daemon::start(&arguments.model, folder.path(), &flags).await?;
    let texts = Texts::new(&tokenizer)?;
    // What is started once, by the first of each kind, is no leak.
    let mut once = Traffic::new(&daemon, &texts, arguments.seed, Instant::now());
    for kind in [Kind::Fact, Kind::Document, Kind::Answer] {
        once.one(kind).await?;
    }
    let idle = daemon.idle().await?;

    let until = Instant::now() + Duration::from_secs(arguments.seconds);
    let mut clients = JoinSet::new();
    for client in 0..arguments.clients + 2 {
        let kind = match client {
            0 => Kind::Fact,
            1 => Kind::Document,
            _ => Kind::Answer,
        };
        let seed = arguments.seed.wrapping_add(client * 7919);
        let mut traffic = Traffic::new(&daemon, &texts, seed, until);
        clients.spawn(async move { traffic.go_on(kind).await });
    }
    let mut footprints = Vec::new();
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_secs(1)).await;
        footprints.push(Footprint::of(daemon.id())?);
        if std::io::stderr().is_terminal() {
            let left = (until - Instant::now()).as_secs_f64();
            eprint!("\r\x1b[K{left:.0} s left");
        }
    }
    eprintln!();
    let mut tally = Tally::default();
    while let Some(client) = clients.join_next().await {
        tally.add(client.map_err(|error| Error::Daemon(error.to_string()))?);
    }
    let left = daemon.idle().await?;
    let parked = value(&daemon.metrics().await?, "addenda_parked_sequences_total");
    // By then pools of threads, here and in libraries, have as many as the traffic asks for.
    let early = footprints.get(footprints.len() / 4);
    let early = *early.ok_or_else(|| Error::Content("a soak takes seconds".to_owned()))?;
    let after = daemon.settled(&early).await?;

    // The first half fills caches, which have bounds of their own.
    let memory: Vec<f64> = footprints.iter().map(|now| now.resident_mib).collect();
    let (_, second) = memory.split_at(memory.len() / 2);
    let quarter = second.len().div_ceil(2);
    let most = |part: &[f64]| part.iter().copied().fold(0.0, f64::max);
    let (middle, last) = second.split_at(quarter);
    let (middle, last) = (most(middle), most(last));
    let mut faults: Vec<String> = tally.faults();
    let mut hold = |holds: bool, what: String| {
        if !holds {
            faults.push(what);
        }
    };
    hold(
        idle && left,
        "something ran on when all clients had gone".to_owned(),
    );
    hold(
        last <= middle * GROWTH,
        format!("memory grew from {middle:.0} to {last:.0} MiB in the last quarter"),
    );
    hold(
        after.threads <= early.threads + LEFT_OVER,
        format!("threads: {} early, {} after", early.threads, after.threads),
    );
    hold(
        after.files <= early.files + LEFT_OVER,
        format!("open files: {} early, {} after", early.files, after.files),
    );
    if !faults.is_empty() {
        return Err(Error::Content(faults.join("; ")));
    }
    Ok(json!({
        "model": arguments.model, "seconds": arguments.seconds, "clients": arguments.clients,
        "answers": tally.answers, "given_up": tally.given_up, "refused": tally.refused,
        "documents": tally.documents, "facts": tally.facts, "parked": parked,
        "resident_mib": { "early": early.resident_mib, "middle": middle, "last": last },
        "threads": after.threads, "open_files": after.files,
    }))
}

#[derive(Clone, Copy)]
enum Kind {
    Answer,
    Document,
    Fact,
}

/// Texts of several lengths, made once.
struct Texts(Vec<String>);

impl Texts {
    fn new(tokenizer: &Tokenizer) -> Result<Arc<Self>> {
        let lengths = [8, 20, 40, 80, 160, 400];
        let texts = (0..48_u64).zip(lengths.iter().cycle());
        let texts = texts.map(|(seed, length)| text::prose(tokenizer, *length, seed + 1));
        Ok(Arc::new(Self(texts.collect::<Result<_>>()?)))
    }
}

/// What came of the requests of one client, or of all.
#[derive(Default)]
struct Tally {
    answers: u64,
    given_up: u64,
    documents: u64,
    facts: u64,
    /// For want of a place.
    refused: u64,
    /// Others, by what they said.
    failed: BTreeMap<String, u64>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.answers += other.answers;
        self.given_up += other.given_up;
        self.documents += other.documents;
        self.facts += other.facts;
        self.refused += other.refused;
        for (what, times) in other.failed {
            *self.failed.entry(what).or_default() += times;
        }
    }

    fn faults(&self) -> Vec<String> {
        let failed = self.failed.iter();
        let mut faults: Vec<String> = failed
            .map(|(what, times)| format!("{times} times: {what}"))
            .collect();
        let each = [
            ("answer", self.answers),
            ("document", self.documents),
            ("fact", self.facts),
        ];
        for (what, count) in each {
            if count == 0 {
                faults.push(format!("no {what} came through"));
            }
        }
        faults
    }
}

/// One client.
struct Traffic {
    generation: GenerationClient<Channel>,
    packets: PacketsClient<Channel>,
    knowledge: KnowledgeClient<Channel>,
    texts: Arc<Texts>,
    random: Random,
    until: Instant,
    tally: Tally,
}

impl Traffic {
    fn new(daemon: &Daemon, texts: &Arc<Texts>, seed: u64, until: Instant) -> Self {
        Self {
            generation: daemon.generation(),
            packets: daemon.packets(),
            knowledge: daemon.knowledge(),
            texts: Arc::clone(texts),
            random: Random::new(seed),
            until,
            tally: Tally::default(),
        }
    }

    fn text(&mut self) -> String {
        self.random.pick(&self.texts.0).cloned().unwrap_or_default()
    }

    async fn go_on(&mut self, kind: Kind) -> Tally {
        while Instant::now() < self.until {
            match self.one(kind).await {
                Ok(()) => {}
                Err(Error::Status(status)) if status.code() == Code::ResourceExhausted => {
                    self.tally.refused += 1;
                    // Who is refused comes again a little later, as the refusal asks for.
                    let pause = Duration::from_millis(20 + self.random.below(200));
                    tokio::time::sleep(pause).await;
                }
                Err(error) => {
                    *self.tally.failed.entry(error.to_string()).or_default() += 1;
                }
            }
        }
        std::mem::take(&mut self.tally)
    }

    async fn one(&mut self, kind: Kind) -> Result<()> {
        match kind {
            Kind::Answer => self.answer().await,
            Kind::Document => self.document().await,
            Kind::Fact => self.fact().await,
        }
    }

    /// An answer; every other one is given up, before its first token or at a later one.
    async fn answer(&mut self) -> Result<()> {
        let tokens = 1 + self.random.below(32);
        let text = self.text();
        let documents = match self.random.below(4) {
            0 => vec![format!("soak-{}", self.random.below(NAMES))],
            _ => Vec::new(),
        };
        let give_up = (self.random.below(2) == 0).then(|| self.random.below(tokens));
        let request = GenerateRequest {
            prompt: Some(Prompt::Completion(Completion { text })),
            max_tokens: u32::try_from(tokens).unwrap_or(1),
            documents,
            ..GenerateRequest::default()
        };
        let stream = self.generation.generate(request).await;
        let mut stream = match stream {
            Ok(stream) => stream.into_inner(),
            // The document may have been deleted, or never been put.
            Err(status) if status.code() == Code::NotFound => return Ok(()),
            Err(status) => return Err(status.into()),
        };
        let mut heard = 0;
        loop {
            if give_up == Some(heard) {
                self.tally.given_up += 1;
                return Ok(());
            }
            match stream.message().await {
                Ok(Some(_)) => heard += 1,
                Ok(None) => break,
                Err(status) if status.code() == Code::NotFound => return Ok(()),
                Err(status) => return Err(status.into()),
            }
        }
        self.tally.answers += 1;
        Ok(())
    }

    /// A document under one of a few names, put with another text, or deleted.
    async fn document(&mut self) -> Result<()> {
        let name = format!("soak-{}", self.random.below(NAMES));
        if self.random.below(4) == 0 {
            let request = DeleteRequest {
                what: Some(delete_request::What::Document(name)),
                ..DeleteRequest::default()
            };
            match self.packets.delete(request).await {
                Ok(_) => self.tally.documents += 1,
                Err(status) if status.code() == Code::NotFound => {}
                Err(status) => return Err(status.into()),
            }
            return Ok(());
        }
        let text = format!("{} {}", self.text(), self.text());
        let request = PutDocumentRequest {
            name,
            text,
            namespace: String::new(),
        };
        self.packets.put_document(request).await?;
        self.tally.documents += 1;
        Ok(())
    }

    /// A fact that is added and retired again.
    async fn fact(&mut self) -> Result<()> {
        let subjects = [
            "Brenna Castell",
            "Odo Lindqvist",
            "Mirela Ostrov",
            "Tam Wexford",
        ];
        let crafts = ["violinist", "carpenter", "surgeon", "baker"];
        let mut pick = |of: [&str; 4]| {
            self.random
                .pick(&of)
                .copied()
                .unwrap_or_default()
                .to_owned()
        };
        let fact = Fact {
            subject: pick(subjects),
            prompt: "The profession of {} is".to_owned(),
            target: pick(crafts),
            ..Fact::default()
        };
        let request = AddFactRequest {
            fact: Some(fact),
            ..AddFactRequest::default()
        };
        let added = self.knowledge.add_fact(request).await?.into_inner();
        let id = added.record.map(|record| record.id).unwrap_or_default();
        self.knowledge.retire_fact(RetireFactRequest { id }).await?;
        self.tally.facts += 1;
        Ok(())
    }
}

/// What a process holds.
#[derive(Clone, Copy)]
struct Footprint {
    resident_mib: f64,
    threads: u64,
    files: u64,
}

impl Footprint {
    fn of(process: u32) -> Result<Self> {
        let folder = format!("/proc/{process}");
        let count = |of: &str| -> Result<u64> {
            let path = Path::new(&folder).join(of);
            let entries = std::fs::read_dir(&path).map_err(io(&path.display()))?;
            Ok(entries.count() as u64)
        };
        // What is mapped from the store's files is the system's to keep or drop.
        let (resident, mapped) = resident(&process.to_string())?;
        Ok(Self {
            resident_mib: (resident - mapped) / f64::from(1 << 20),
            threads: count("task")?,
            files: count("fd")?,
        })
    }
}

/// One of the daemon's metrics.
fn value(page: &str, name: &str) -> Option<u64> {
    let lines = page.lines().filter_map(|line| line.split_once(' '));
    let mut values = lines.filter(|(own, _)| *own == name);
    values.next()?.1.parse().ok()
}

impl Daemon {
    /// Whether the daemon comes to run nothing and to hold no KV memory but that of kept beginnings, by its own
    /// metrics.
    async fn idle(&self) -> Result<bool> {
        let until = Instant::now() + PATIENCE;
        loop {
            let page = self.metrics().await?;
            let value = |name: &str| value(&page, name);
            let runs = value("addenda_running_sequences") != Some(0);
            if !runs && value("addenda_kv_bytes") == value("addenda_prefix_bytes") {
                return Ok(true);
            }
            if Instant::now() > until {
                return Ok(false);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What the daemon holds once that is about what it held `early`, or after a while.
    async fn settled(&self, early: &Footprint) -> Result<Footprint> {
        let until = Instant::now() + PATIENCE;
        loop {
            let now = Footprint::of(self.id())?;
            let few = now.threads <= early.threads + LEFT_OVER;
            if few && now.files <= early.files + LEFT_OVER || Instant::now() > until {
                return Ok(now);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}
