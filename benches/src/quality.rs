//! What each mode makes of questions about documents, beside full prefill: one object a mode.
//!
//! The daemon measures by itself (`Adapters.Certify`), on the way that every request goes; here are the
//! questions, and the same once more without an adapter.

use std::ops::Range;
use std::path::{Path, PathBuf};

use addenda::adapters::samples::{Biography, Needle, Split};
use addenda::primer::draw;
use addenda_model::ModelFiles;
use addenda_proto::addenda::v1::{
    ActivateAdapterRequest, CertificateRecord, CertifyRequest, GetJobRequest, JobState,
    LabelledSample, ListCertificatesRequest, Mode,
};
use serde_json::{Map, Value, json};

use crate::daemon::Daemon;
use crate::error::{Error, Result, io};

/// Documents of a sample.
const BIOGRAPHY_DOCUMENTS: usize = 5;
const NEEDLE_DOCUMENTS: usize = 8;
/// Tokens of a needle's document.
const NEEDLE_TOKENS: std::ops::RangeInclusive<usize> = 256..=512;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Suite {
    /// 5 documents, each about an invented person; the right one at a random place.
    Biography,
    /// 8 documents of 256 to 512 tokens, a number hidden in one of them.
    Needle,
    /// Multi-hop questions over 10 passages, from `--path`.
    Musique,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Measured {
    Packet,
    Link,
    Blend,
    Preload,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A model's path or its name in the catalogue.
    #[arg(long, default_value = "smollm2-135m")]
    model: String,
    /// The questions.
    #[arg(long, value_enum)]
    suite: Suite,
    /// MuSiQue as a list of records with `ctxs`, `question` and `answers`.
    #[arg(long)]
    path: Option<PathBuf>,
    /// Questions, held out from all training.
    #[arg(long, default_value_t = 100)]
    samples: usize,
    /// The first question's number.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Modes beside full prefill.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "packet,link,blend,preload"
    )]
    modes: Vec<Measured>,
    /// Tokens of each document that `link` computes; absent is the daemon's default.
    #[arg(long)]
    link_tokens: Option<u32>,
    /// Share of the documents' tokens that `blend` computes; absent is the daemon's default.
    #[arg(long)]
    blend_share: Option<f32>,
    /// An adapter's file, as `addenda adapter export` writes it, to be measured in place of the active one.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Have packets computed behind a primer that is drawn of so many documents of the suite's training split, as
    /// `addenda packet primer` draws one: of at most 16 of them; absent is what ships.
    #[arg(long)]
    primer_documents: Option<usize>,
    /// Write that primer to this file as well, so that an adapter can be trained behind it (`addenda serve --primer FILE`).
    #[arg(long, requires = "primer_documents")]
    keep_primer: Option<PathBuf>,
    /// Leave out the packets without an adapter.
    #[arg(long)]
    no_bare: bool,
    /// Further flags of `addenda serve`, such as `--serve-flag=--packet-codec=int8`.
    #[arg(long)]
    serve_flag: Vec<String>,
    /// One line of JSON (there is no other form yet).
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Value> {
    let given = match arguments.suite {
        Suite::Musique => musique(arguments)?,
        Suite::Biography | Suite::Needle => {
            let end = arguments.seed + arguments.samples as u64;
            made(arguments, Split::HeldOut, arguments.seed..end)?
        }
    };
    crate::block_on(measure(arguments, given))
}

async fn measure(arguments: &Arguments, given: Vec<LabelledSample>) -> Result<Value> {
    let folder = crate::temporary_folder()?;
    let mut flags = arguments.serve_flag.clone();
    if let Some(documents) = arguments.primer_documents {
        let path = folder.path().join("primer.txt");
        let text = primer(arguments, documents)?;
        for path in std::iter::once(&path).chain(&arguments.keep_primer) {
            std::fs::write(path, &text).map_err(io(&path.display()))?;
        }
        flags.push(format!("--primer={}", path.display()));
    }
    let daemon = Daemon::start(&arguments.model, folder.path(), &flags).await?;
    if let Some(path) = &arguments.adapter {
        let file = std::fs::read(path).map_err(io(&path.display()))?;
        let request = addenda_proto::addenda::v1::ImportAdapterRequest {
            file,
            activate: true,
        };
        daemon.adapters().import(request).await?;
    }
    let modes = arguments.modes.iter().map(|mode| match mode {
        Measured::Packet => Mode::Packet,
        Measured::Link => Mode::Link,
        Measured::Blend => Mode::Blend,
        Measured::Preload => Mode::Preload,
    });
    let certificates = certify(&daemon, arguments, modes.collect(), &given).await?;
    let mut line = Map::new();
    line.insert("model".to_owned(), json!(arguments.model));
    line.insert(
        "suite".to_owned(),
        json!(format!("{:?}", arguments.suite).to_lowercase()),
    );
    if let Some(first) = certificates.first() {
        line.insert("codec".to_owned(), json!(first.codec));
        line.insert("adapter".to_owned(), json!(first.adapter));
        line.insert("full".to_owned(), full(first));
    }
    let mut wrapped = false;
    for certificate in &certificates {
        wrapped |= certificate.mode() == Mode::Packet && !certificate.adapter.is_empty();
        line.insert(name(certificate.mode()), object(certificate));
    }
    if wrapped && !arguments.no_bare {
        let none = ActivateAdapterRequest {
            id: "none".to_owned(),
        };
        daemon.adapters().activate(none).await?;
        let bare = certify(&daemon, arguments, vec![Mode::Packet], &given).await?;
        if let Some(bare) = bare.first() {
            line.insert("no_adapter".to_owned(), object(bare));
        }
    } else if let Some(packet) = line.get("packet").filter(|_| !wrapped).cloned() {
        line.insert("no_adapter".to_owned(), packet);
    }
    Ok(Value::Object(line))
}

/// Has the daemon measure `modes`; a certificate of each, in their order.
async fn certify(
    daemon: &Daemon,
    arguments: &Arguments,
    modes: Vec<Mode>,
    given: &[LabelledSample],
) -> Result<Vec<CertificateRecord>> {
    let request = CertifyRequest {
        modes: modes.iter().map(|&mode| mode.into()).collect(),
        given: given.to_vec(),
        link_tokens: arguments.link_tokens,
        blend_share: arguments.blend_share,
        ..CertifyRequest::default()
    };
    let job = daemon.adapters().certify(request).await?.into_inner();
    let watch = GetJobRequest { id: job.id };
    let mut states = daemon.jobs().watch(watch).await?.into_inner();
    let mut last = job.state;
    while let Some(state) = states.message().await? {
        eprint!("\r\x1b[K{}/{} {}", state.done, state.total, state.phase);
        last = state.state;
        if !state.error.is_empty() {
            return Err(Error::Daemon(state.error));
        }
    }
    eprintln!();
    if last != i32::from(JobState::Done) {
        return Err(Error::Daemon("measuring was broken off".to_owned()));
    }
    let list = ListCertificatesRequest::default();
    let all = daemon
        .adapters()
        .list_certificates(list)
        .await?
        .into_inner();
    let find = |mode: &Mode| all.certificates.iter().find(|found| found.mode() == *mode);
    let found: Vec<CertificateRecord> = modes.iter().filter_map(find).cloned().collect();
    if found.len() < modes.len() {
        return Err(Error::Daemon("a mode has no certificate".to_owned()));
    }
    Ok(found)
}

/// Full prefill's own figures, which stand in every certificate.
fn full(certificate: &CertificateRecord) -> Value {
    json!({
        "f1": certificate.f1_full, "exact_match": certificate.exact_match_full,
        "agreement": 1.0, "mean_kl": 0.0, "same_answer": 1.0,
        "ttft_ms": certificate.ttft_full_ms, "n": certificate.samples,
    })
}

fn object(certificate: &CertificateRecord) -> Value {
    let share = certificate.agreement.unwrap_or_default();
    json!({
        "f1": certificate.f1, "exact_match": certificate.exact_match,
        "agreement": share.value, "agreement_95": [share.low, share.high],
        "mean_kl": certificate.mean_kl,
        "same_answer": certificate.same_answer.unwrap_or_default().value,
        "ttft_ms": certificate.ttft_ms, "n": certificate.samples, "tokens": certificate.tokens,
    })
}

fn name(mode: Mode) -> String {
    mode.as_str_name()
        .trim_start_matches("MODE_")
        .to_lowercase()
}

fn labelled(sample: addenda::adapters::samples::Sample) -> LabelledSample {
    LabelledSample {
        documents: sample.documents,
        question: sample.question,
        answer: sample.answer,
    }
}

/// A primer's file of documents of the training split, of another sample each.
fn primer(arguments: &Arguments, documents: usize) -> Result<String> {
    let samples = made(arguments, Split::Train, 0..documents as u64)?;
    let first = samples.iter().filter_map(|sample| sample.documents.first());
    let taken = first
        .enumerate()
        .filter(|(number, _)| draw::takes(*number, documents));
    let excerpts: Vec<String> = taken.filter_map(|(_, text)| draw::excerpt(text)).collect();
    Ok(draw::file(&excerpts))
}

/// The samples of these numbers, from the suite's generator.
fn made(arguments: &Arguments, split: Split, numbers: Range<u64>) -> Result<Vec<LabelledSample>> {
    match arguments.suite {
        Suite::Biography => {
            let documents = BIOGRAPHY_DOCUMENTS;
            let sample = |number| labelled(Biography { documents }.sample(split, number));
            Ok(numbers.map(sample).collect())
        }
        Suite::Needle => {
            let path = crate::resolve(&arguments.model)?;
            needles(&path, split, numbers)
        }
        Suite::Musique => {
            let reason =
                "the suite musique has no documents to train with: leave out --primer-documents";
            Err(Error::Config(reason.to_owned()))
        }
    }
}

fn needles(path: &Path, split: Split, numbers: Range<u64>) -> Result<Vec<LabelledSample>> {
    let tokenizer = ModelFiles::open(path)?.tokenizer;
    let count = |text: &str| {
        tokenizer
            .encode(text)
            .map_or(0, |encoding| encoding.ids.len())
    };
    let maker = Needle::single(NEEDLE_DOCUMENTS, 1, NEEDLE_TOKENS);
    let sample = |number| labelled(maker.sample(split, number, &count));
    Ok(numbers.map(sample).collect())
}

/// Records with passages, a question and its answers, of which the first counts.
fn musique(arguments: &Arguments) -> Result<Vec<LabelledSample>> {
    let path = arguments.path.as_ref().ok_or_else(|| {
        Error::Config("the suite musique comes from a file: give --path".to_owned())
    })?;
    let shown = || path.display().to_string();
    let text = std::fs::read(path).map_err(io(&path.display()))?;
    let wrong = |why: String| Error::Config(format!("{}: {why}", shown()));
    let records: Vec<Value> =
        serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    let first = usize::try_from(arguments.seed).unwrap_or(usize::MAX);
    let chosen = records.iter().skip(first).take(arguments.samples);
    chosen
        .map(|record| {
            sample(record).ok_or_else(|| {
                wrong("a record lacks `ctxs` with `text`, `question` or `answers`".to_owned())
            })
        })
        .collect()
}

fn sample(record: &Value) -> Option<LabelledSample> {
    let passages = record.get("ctxs")?.as_array()?.iter();
    let documents = passages
        .map(|passage| Some(passage.get("text")?.as_str()?.to_owned()))
        .collect::<Option<Vec<String>>>()?;
    let question = record.get("question")?.as_str()?;
    let answer = record.get("answers")?.get(0)?.as_str()?;
    Some(LabelledSample {
        documents,
        question: format!("{question} Answer with a few words only."),
        answer: Some(answer.to_owned()),
    })
}
