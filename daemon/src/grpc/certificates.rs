//! Certificates on the wire: asked for as a job, and listed.
//!
//! Owns the checks of what is to be measured. Never measures: that is `certify`.

use std::sync::Arc;

use addenda_proto::addenda::v1::{
    CertificateRecord, CertifyRequest, JobRecord, LabelledSample, ListCertificatesRequest,
    ListCertificatesResponse, Mode, Share as WireShare,
};
use tonic::{Request, Response, Status};

use crate::adapters::samples::{Biography, Needle, Sample, Split, Suite, Tracking};
use crate::certificates::{Certificate, Share};
use crate::documents::blocking;
use crate::error::{Error, Result};
use crate::grpc::certify::{self, Plan};
use crate::grpc::mode::{Wanted, Way};
use crate::grpc::status::status;
use crate::grpc::{Daemon, Serving, check, jobs};
use crate::limits;

/// Modes that are measured where the request does not say.
const MODES: [Mode; 3] = [Mode::Packet, Mode::Link, Mode::Blend];
/// Suites that are measured where the request brings no samples either.
const SUITES: [Suite; 3] = [Suite::Biography, Suite::Needle, Suite::Tracking];
/// Samples of each suite where the request does not say.
const SAMPLES: u32 = 32;
/// Samples of one request.
const MOST_SAMPLES: usize = 1000;
/// Documents of one sample that the caller brings.
const MOST_DOCUMENTS: usize = 64;
/// Documents of a generated sample, and tokens of a needle's.
const DOCUMENTS: usize = 5;
const NEEDLE_TOKENS: std::ops::RangeInclusive<usize> = 128..=256;
/// Links of a generated chain of variables, and sentences of prose around them.
const TRACKING_HOPS: usize = 2;
const TRACKING_SENTENCES: usize = 6;

type Answer<T> = std::result::Result<Response<T>, Status>;

/// Starts measuring; the job's record as it begins.
pub(crate) async fn certify(
    daemon: &Arc<Daemon>,
    request: Request<CertifyRequest>,
) -> Answer<JobRecord> {
    let (serving, mut ticket, _leave) = daemon.admit("Certify", &request)?;
    let planning = Arc::clone(&serving);
    let plan = blocking(move || plan(&planning, request.into_inner()));
    let plan = plan.await.map_err(|error| status(&error))?;
    // The job outlives its request: it ends when it is cancelled, or the daemon stops.
    ticket.cancel = daemon.stop.child_token();
    ticket.deadline = None;
    ticket.patient = true;
    let job = daemon
        .jobs
        .begin("certify", "samples", ticket.cancel.clone());
    let record = jobs::record(&job.state());
    tokio::spawn(async move {
        let result = certify::run(&serving, &ticket, plan, &job).await;
        job.end(&result);
    });
    Ok(Response::new(record))
}

/// What there is, newest first.
pub(crate) async fn list(
    daemon: &Arc<Daemon>,
    request: Request<ListCertificatesRequest>,
) -> Answer<ListCertificatesResponse> {
    let serving = daemon.serving().map_err(|error| status(&error))?;
    let records = serving.certificates.list().into_iter();
    let records = records.map(|certificate| record(serving, &certificate));
    let certificates = records.filter(|record| record.valid || request.get_ref().include_void);
    Ok(Response::new(ListCertificatesResponse {
        certificates: certificates.collect(),
    }))
}

fn plan(serving: &Serving, request: CertifyRequest) -> Result<Plan> {
    let modes = match request.modes.is_empty() {
        true => MODES.map(i32::from).to_vec(),
        false => request.modes,
    };
    let mut ways: Vec<Way> = Vec::new();
    for mode in modes {
        let way = Wanted::new(mode, request.link_tokens, request.blend_share, 0.0)?.way;
        if !matches!(
            way.mode,
            Mode::Packet | Mode::Link | Mode::Blend | Mode::Preload
        ) {
            let reason =
                "can be packet, link, blend or preload: full is what they are compared with";
            return Err(Error::invalid("modes", reason));
        }
        if !ways.contains(&way) {
            ways.push(way);
        }
    }
    if !request.documents.is_empty() {
        let reason = "can't be measured by name yet; send questions about them as `given`";
        return Err(Error::invalid("documents", reason));
    }
    let mut suites = request
        .suites
        .iter()
        .map(|name| {
            name.parse()
                .map_err(|reason: String| Error::invalid("suites", reason))
        })
        .collect::<Result<Vec<Suite>>>()?;
    if suites.is_empty() && request.given.is_empty() {
        suites = SUITES.to_vec();
    }
    let count = match request.samples {
        0 => SAMPLES,
        count => count,
    } as usize;
    let all = count
        .saturating_mul(suites.len())
        .saturating_add(request.given.len());
    check::count("samples", all, 1, MOST_SAMPLES)?;
    let mut names: Vec<String> = suites.iter().map(ToString::to_string).collect();
    let mut samples = Vec::with_capacity(all);
    for suite in suites {
        for seed in 0..count as u64 {
            samples.push(generated(serving, suite, seed)?);
        }
    }
    if !request.given.is_empty() {
        names.push("given".to_owned());
    }
    for given in request.given {
        samples.push(checked(given)?);
    }
    Ok(Plan {
        ways,
        samples,
        suites: names,
    })
}

fn generated(serving: &Serving, suite: Suite, seed: u64) -> Result<Sample> {
    let count = |text: &str| {
        let encoding = serving.tokenizer.encode(text);
        encoding.map_or(0, |encoding| encoding.ids.len())
    };
    let documents = DOCUMENTS;
    match suite {
        Suite::Biography => Ok(Biography { documents }.sample(Split::HeldOut, seed)),
        Suite::Needle => {
            let maker = Needle::single(documents, 1, NEEDLE_TOKENS);
            Ok(maker.sample(Split::HeldOut, seed, &count))
        }
        Suite::Tracking => {
            let (hops, sentences) = (TRACKING_HOPS, TRACKING_SENTENCES);
            let maker = Tracking {
                documents,
                hops,
                sentences,
            };
            Ok(maker.sample(Split::HeldOut, seed))
        }
        Suite::Prose | Suite::Documents => {
            let reason = format!("can be biography, needle or tracking; {suite} is for training");
            Err(Error::invalid("suites", reason))
        }
    }
}

fn checked(given: LabelledSample) -> Result<Sample> {
    check::count("given.documents", given.documents.len(), 1, MOST_DOCUMENTS)?;
    for text in &given.documents {
        check::text("given.documents", text, limits::DOCUMENT_BYTES)?;
    }
    check::text("given.question", &given.question, limits::TEXT_BYTES)?;
    if let Some(answer) = &given.answer {
        check::at_most_bytes("given.answer", answer, limits::TEXT_BYTES)?;
    }
    Ok(Sample {
        suite: Suite::Documents,
        documents: given.documents,
        question: given.question,
        answer: given.answer,
    })
}

fn record(serving: &Serving, certificate: &Certificate) -> CertificateRecord {
    let (basis, figures) = (&certificate.basis, &certificate.figures);
    let way = Way {
        mode: basis.mode(),
        link_tokens: basis.link_tokens,
        blend_share: basis.blend_share,
    };
    let void_reason = basis.void_reason(&serving.basis(way));
    let labelled = figures.labelled;
    CertificateRecord {
        id: certificate.id().to_string(),
        mode: basis.mode,
        adapter: basis.adapter.clone(),
        codec: basis.codec.clone(),
        revision: basis.revision.clone(),
        agreement: Some(share(figures.agreement)),
        mean_kl: figures.mean_kl,
        f1: labelled.map(|labelled| labelled.f1),
        f1_full: labelled.map(|labelled| labelled.f1_full),
        ttft_ms: figures.ttft_ms,
        ttft_full_ms: figures.ttft_full_ms,
        samples: figures.samples,
        tokens: figures.tokens,
        measured_at_ms: certificate.measured_at_ms,
        valid: void_reason.is_none(),
        void_reason: void_reason.unwrap_or_default(),
        exact_match: labelled.map(|labelled| labelled.exact_match),
        exact_match_full: labelled.map(|labelled| labelled.exact_match_full),
        same_answer: Some(share(figures.same_answer)),
        link_tokens: basis.link_tokens,
        blend_share: basis.blend_share,
        suites: certificate.suites.clone(),
    }
}

fn share(share: Share) -> WireShare {
    WireShare {
        value: share.value,
        low: share.low,
        high: share.high,
    }
}
