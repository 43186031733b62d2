//! `addenda adapter certify`: modes measured against full prefill, followed to the end.

use std::path::PathBuf;
use std::process::ExitCode;

use addenda_proto::addenda::v1::{
    CertificateRecord, CertifyRequest, LabelledSample, ListCertificatesRequest,
};
use clap::Args;
use serde::Deserialize;

use super::show;
use crate::cli::ask::ModeArg;
use crate::cli::client::Client;
use crate::cli::console::Console;
use crate::cli::error::{Error, Result};
use crate::cli::job::finish;

#[derive(Debug, Args)]
pub(crate) struct CertifyArgs {
    /// A mode to measure; repeat for more [default: packet, link, blend]
    #[arg(long = "mode", value_enum, value_name = "MODE")]
    modes: Vec<ModeArg>,
    /// What to measure with: biography, needle, tracking; repeat for more [default: all three]
    #[arg(long = "suite", value_name = "SUITE")]
    suites: Vec<String>,
    /// Your own questions: JSON Lines, each `{"documents": [..], "question": "..", "answer": ".."}`;
    /// the answer may be left out
    #[arg(long, value_name = "FILE")]
    given: Option<PathBuf>,
    /// Samples of each suite [default: 32]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    samples: u32,
    /// Tokens of each document that `link` computes [default: 32]
    #[arg(long, value_name = "K")]
    link_tokens: Option<u32>,
    /// Share of the documents' tokens that `blend` computes [default: 0.15]
    #[arg(long, value_name = "R")]
    blend_share: Option<f32>,
}

/// A line of the caller's own questions.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    documents: Vec<String>,
    question: String,
    answer: Option<String>,
}

impl CertifyArgs {
    pub(crate) async fn run(self, client: &Client, console: &mut Console) -> Result<ExitCode> {
        let job = client
            .adapters()
            .certify(self.request()?)
            .await?
            .into_inner();
        let words = ("nothing was certified", "it was cancelled");
        finish(client, job.id, words, console).await?;
        list(client, false, console).await
    }

    fn request(self) -> Result<CertifyRequest> {
        let given = self.given.as_ref().map(read).transpose()?;
        Ok(CertifyRequest {
            modes: self.modes.iter().map(|mode| mode.wire().into()).collect(),
            suites: self.suites,
            samples: self.samples,
            given: given.unwrap_or_default(),
            link_tokens: self.link_tokens,
            blend_share: self.blend_share,
            ..CertifyRequest::default()
        })
    }
}

/// Shows the certificates there are.
pub(crate) async fn list(client: &Client, all: bool, console: &mut Console) -> Result<ExitCode> {
    let request = ListCertificatesRequest { include_void: all };
    let list = client.adapters().list_certificates(request).await?;
    let certificates: Vec<CertificateRecord> = list.into_inner().certificates;
    show::certificates(&certificates, console)?;
    Ok(ExitCode::SUCCESS)
}

fn read(path: &PathBuf) -> Result<Vec<LabelledSample>> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::File {
        path: path.clone(),
        source,
    })?;
    let lines = text.lines().enumerate();
    lines
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(place, line)| {
            let question: Question = serde_json::from_str(line).map_err(|error| {
                Error::refused(
                    format!("{}, line {}: {error}", path.display(), place + 1),
                    "each line is {\"documents\": [..], \"question\": \"..\", \"answer\": \"..\"}",
                )
            })?;
            Ok(LabelledSample {
                documents: question.documents,
                question: question.question,
                answer: question.answer,
            })
        })
        .collect()
}
