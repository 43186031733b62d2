//! Certify: modes compared with full prefill, sample by sample, as a job.
//!
//! Owns the order of the comparison. Each sample goes the way of any request: its documents are put
//! (under a namespace of their own, and erased again), its contexts are assembled and computed as for
//! an answer, so that what is measured is what is served.

use std::sync::Arc;
use std::time::Instant;

use addenda_proto::addenda::v1::Mode;

use crate::adapters::samples::Sample;
use crate::certificates::agreement::{self, Tokens};
use crate::certificates::{Certificate, Figures, Labelled};
use crate::documents::blocking;
use crate::ending::Ending;
use crate::engine::command::{Command, Follow, Ticket, Trace, Traced};
use crate::error::{Error, Result};
use crate::grpc::Serving;
use crate::grpc::context::Asked;
use crate::grpc::mode::Way;
use crate::jobs::{JobHandle, now_ms};
use crate::limits;
use crate::prompt::Ask;

/// Tokens of an answer that are compared, at most.
const ANSWER_TOKENS: usize = 32;

/// Packets that are erased between two looks.
const PAGE: usize = 100;

/// What is to be measured.
pub(crate) struct Plan {
    pub(crate) ways: Vec<Way>,
    pub(crate) samples: Vec<Sample>,
    /// Names of what the samples come from.
    pub(crate) suites: Vec<String>,
}

/// A sample whose documents are put.
struct Question<'a> {
    sample: &'a Sample,
    namespace: &'a str,
    names: Vec<String>,
}

/// One way's figures so far.
struct Tally {
    way: Way,
    tokens: Vec<Tokens>,
    /// Whether the answer was full prefill's.
    same: Vec<bool>,
    ttft: Vec<f64>,
    /// F1 and exact match against given answers.
    labelled: Vec<(f64, bool)>,
}

/// One answer in one way.
struct Answer {
    traced: Traced,
    text: String,
    /// From the request's beginning to the first token, milliseconds.
    ttft: f64,
}

/// Measures all of a plan and keeps a certificate for each way.
///
/// # Errors
/// The daemon's; weights that changed meanwhile; a job that was cancelled. Nothing is kept then.
pub(crate) async fn run(
    serving: &Arc<Serving>,
    ticket: &Ticket,
    plan: Plan,
    job: &JobHandle,
) -> Result<()> {
    let bases: Vec<_> = plan.ways.iter().map(|&way| serving.basis(way)).collect();
    let total = plan.samples.len() as u64;
    let mut tallies: Vec<Tally> = plan.ways.iter().copied().map(Tally::new).collect();
    let mut full = Tally::new(Way {
        mode: Mode::Full,
        link_tokens: None,
        blend_share: None,
    });
    // The samples' documents are put where nobody else's are.
    let namespace = format!("addenda.certify.{}", job.state().id);
    let namespace = namespace.as_str();
    for (done, sample) in (0..).zip(&plan.samples) {
        ticket.check()?;
        job.progress(&so_far(&tallies), done, total);
        let measured = async {
            let names = put(serving, ticket, (sample, namespace)).await?;
            let question = Question {
                sample,
                namespace,
                names,
            };
            measure(serving, ticket, &question, (&mut full, &mut tallies)).await
        };
        let measured = measured.await;
        erase(serving, namespace).await?;
        measured?;
    }
    let measured_at = now_ms();
    for (tally, basis) in tallies.into_iter().zip(bases) {
        if serving.basis(tally.way) != basis {
            let reason = "changed while modes were compared with full prefill; certify again";
            return Err(Error::Precondition {
                field: "weights or adapter",
                reason: reason.to_owned(),
            });
        }
        let figures = tally.figures(&full);
        let certificate = Certificate::new(basis, figures, plan.suites.clone(), measured_at);
        let kept = serving.certificates.clone();
        blocking(move || kept.keep(certificate)).await?;
    }
    job.progress("compared", total, total);
    Ok(())
}

/// Full prefill's answer to a sample, and what every other way makes of it.
async fn measure(
    serving: &Arc<Serving>,
    ticket: &Ticket,
    question: &Question<'_>,
    (full, tallies): (&mut Tally, &mut [Tally]),
) -> Result<()> {
    let sample = question.sample;
    let greedy = || Follow::Greedy(ANSWER_TOKENS, Ending::of(serving.template()));
    let right = answer(serving, ticket, (question, full.way), greedy()).await?;
    for tally in tallies {
        let asked = (question, tally.way);
        let own = answer(serving, ticket, asked, greedy()).await?;
        let tokens = if own.traced.ids == right.traced.ids {
            agreement::compare(&right.traced.logprobs, &own.traced.logprobs)
        } else {
            let given = Follow::Given(right.traced.ids.clone());
            let followed = answer(serving, ticket, asked, given).await?;
            agreement::compare(&right.traced.logprobs, &followed.traced.logprobs)
        };
        tally.take(
            &own,
            tokens,
            agreement::same(&own.text, &right.text),
            sample,
        );
    }
    let all = u32::try_from(right.traced.ids.len()).unwrap_or(u32::MAX);
    let exact = Tokens {
        agreed: all,
        all,
        kl: 0.0,
    };
    full.take(&right, exact, true, sample);
    Ok(())
}

async fn answer(
    serving: &Arc<Serving>,
    ticket: &Ticket,
    (question, way): (&Question<'_>, Way),
    follow: Follow,
) -> Result<Answer> {
    let ask = Ask::question(&question.sample.question, serving.template());
    let asked = Asked::in_way(ask, question.names.clone(), way, question.namespace)?;
    let mut tries = 0;
    loop {
        tries += 1;
        let began = Instant::now();
        let context = asked.context(serving, ticket).await?;
        let (prompt, follow) = (context.prompt, follow.clone());
        let traced = serving.documents.engine.ask(ticket, |reply| {
            Command::Trace(Box::new(Trace {
                prompt,
                follow,
                reply,
            }))
        });
        let traced = match traced.await {
            Err(Error::Stale) if tries < limits::STALE_RETRIES => continue,
            other => other?,
        };
        let mut words = traced.ids.clone();
        if words.last().is_some_and(|&id| serving.tokenizer.is_end(id)) {
            words.pop();
        }
        return Ok(Answer {
            text: serving.tokenizer.decode(&words)?,
            ttft: traced.first_at.duration_since(began).as_secs_f64() * 1e3,
            traced,
        });
    }
}

/// Puts a sample's documents; their names.
async fn put(
    serving: &Arc<Serving>,
    ticket: &Ticket,
    (sample, namespace): (&Sample, &str),
) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for (place, text) in sample.documents.iter().enumerate() {
        let name = format!("sample-{place}");
        let documents = &serving.documents;
        let named = documents.named(namespace, &name, text.clone()).await;
        documents.put(ticket, named).await?;
        names.push(name);
    }
    Ok(names)
}

/// Erases all that was put or made in the namespace, joint packets of several documents included.
async fn erase(serving: &Arc<Serving>, namespace: &str) -> Result<()> {
    let store = Arc::clone(serving.documents.packets.store());
    let namespace = namespace.to_owned();
    blocking(move || {
        loop {
            let some = store.list(&namespace, None, PAGE)?;
            if some.is_empty() {
                return Ok(());
            }
            for manifest in some {
                store.delete(&manifest.id)?;
            }
        }
    })
    .await
}

/// For the job's phase: each way's agreement so far.
fn so_far(tallies: &[Tally]) -> String {
    let each = tallies.iter().map(|tally| {
        let agreed: u32 = tally.tokens.iter().map(|tokens| tokens.agreed).sum();
        let all: u32 = tally.tokens.iter().map(|tokens| tokens.all).sum();
        let share = f64::from(agreed) / f64::from(all.max(1));
        format!("{} {share:.3}", name(tally.way.mode))
    });
    let each: Vec<String> = each.collect();
    format!("agreement so far: {}", each.join(", "))
}

fn name(mode: Mode) -> &'static str {
    mode.as_str_name().trim_start_matches("MODE_")
}

impl Tally {
    fn new(way: Way) -> Self {
        Self {
            way,
            tokens: Vec::new(),
            same: Vec::new(),
            ttft: Vec::new(),
            labelled: Vec::new(),
        }
    }

    fn take(&mut self, answer: &Answer, tokens: Tokens, same: bool, sample: &Sample) {
        self.tokens.push(tokens);
        self.same.push(same);
        self.ttft.push(answer.ttft);
        if let Some(right) = &sample.answer {
            let f1 = agreement::f1(&answer.text, right);
            self.labelled
                .push((f1, agreement::same(&answer.text, right)));
        }
    }

    fn figures(&self, full: &Self) -> Figures {
        let agreed: Vec<(u32, u32)> = self
            .tokens
            .iter()
            .map(|tokens| (tokens.agreed, tokens.all))
            .collect();
        let same: Vec<(u32, u32)> = self.same.iter().map(|&same| (u32::from(same), 1)).collect();
        let tokens: u32 = self.tokens.iter().map(|tokens| tokens.all).sum();
        let kl: f64 = self.tokens.iter().map(|tokens| tokens.kl).sum();
        let labelled = (!self.labelled.is_empty()).then(|| Labelled {
            f1: rounded(mean(self.labelled.iter().map(|label| label.0))),
            f1_full: rounded(mean(full.labelled.iter().map(|label| label.0))),
            exact_match: rounded(mean(self.labelled.iter().map(|label| one_if(label.1)))),
            exact_match_full: rounded(mean(full.labelled.iter().map(|label| one_if(label.1)))),
        });
        Figures {
            agreement: agreement::share(&agreed).rounded(),
            mean_kl: rounded(kl / f64::from(tokens.max(1))),
            same_answer: agreement::share(&same).rounded(),
            labelled,
            ttft_ms: rounded(agreement::median(self.ttft.clone())),
            ttft_full_ms: rounded(agreement::median(full.ttft.clone())),
            samples: u32::try_from(self.tokens.len()).unwrap_or(u32::MAX),
            tokens,
        }
    }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len().max(1) as f64;
    values.sum::<f64>() / count
}

fn one_if(it_is: bool) -> f64 {
    f64::from(u8::from(it_is))
}

/// To six places, so that a figure reads back from its decimal form as it was.
fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

impl crate::certificates::Share {
    fn rounded(self) -> Self {
        Self {
            value: rounded(self.value),
            low: rounded(self.low),
            high: rounded(self.high),
        }
    }
}
