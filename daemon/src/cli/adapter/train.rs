//! `addenda adapter train`: a training, followed to its end or left to itself.

use std::process::ExitCode;

use addenda_proto::addenda::v1::{ListAdaptersRequest, TrainAdapterRequest, TrainingData};
use clap::Args;

use super::show;
use crate::cli::client::Client;
use crate::cli::console::Console;
use crate::cli::error::{Error, Result};
use crate::cli::job::finish;

#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    /// A name for people [default: the model's]
    #[arg(long, default_value = "", hide_default_value = true)]
    name: String,
    /// What to train on: biography, needle, tracking, prose, documents; repeat for more, and one
    /// twice for a double share [default: all that can be had]
    #[arg(long = "suite", value_name = "SUITE")]
    suites: Vec<String>,
    /// Documents that were put, for the suite "documents"; repeat for more [default: all]
    #[arg(long = "document", value_name = "NAME")]
    documents: Vec<String>,
    /// Whose documents
    #[arg(long, value_name = "NAME", default_value = "default")]
    namespace: String,
    /// Samples to train on [default: 384]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    samples: u32,
    /// Samples to validate on [default: 48]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    validation: u32,
    /// Passes over the samples [default: 3]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    epochs: u32,
    /// Samples between two updates [default: 16]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    batch: u32,
    /// Learning rate of the first update [default: 0.01, of soft tokens 5e-4]
    #[arg(long, default_value_t = 0.0, hide_default_value = true)]
    learning_rate: f32,
    /// Questions about the same documents, each a sample, at most [default: 4, of soft tokens 1]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    questions: u32,
    /// Tokens of a bridge, which stands between documents and question [default: 8, without soft tokens]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    bridge_tokens: u32,
    /// Train soft tokens instead: so many before a document [default: 8, beside some after it]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    header_tokens: u32,
    /// And so many after it [default: 8, beside some before it]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    trailer_tokens: u32,
    /// Makes the samples and their order
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Make it the active adapter when it is done and better than none
    #[arg(long)]
    activate: bool,
    /// Start it and go; `addenda job watch` follows it
    #[arg(long)]
    detach: bool,
}

impl TrainArgs {
    pub(crate) async fn run(self, client: &Client, console: &mut Console) -> Result<ExitCode> {
        let detach = self.detach;
        let job = client.adapters().train(self.request()).await?.into_inner();
        if detach {
            if console.json() {
                console.message("JobRecord", &job)?;
            } else {
                console.line(&format!(
                    "{} trains; `addenda job watch {}` follows it.",
                    job.id, job.id
                ))?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        console.note(&format!(
            "{} trains in the daemon; `addenda job cancel {}` stops it, and the same command goes on.",
            job.id, job.id
        ))?;
        let cancelled = "cancelled; the same command goes on from its checkpoint";
        let words = ("the training ended early", cancelled);
        finish(client, job.id, words, console).await?;
        let list = client.adapters().list(ListAdaptersRequest {}).await?;
        let newest = list.get_ref().adapters.first();
        let newest = newest.ok_or(Error::Incomplete {
            what: "the list of adapters",
        })?;
        show::one(newest, console)?;
        Ok(ExitCode::SUCCESS)
    }

    fn request(self) -> TrainAdapterRequest {
        TrainAdapterRequest {
            name: self.name,
            header_tokens: self.header_tokens,
            trailer_tokens: self.trailer_tokens,
            bridge_tokens: self.bridge_tokens,
            data: Some(TrainingData {
                suites: self.suites,
                documents: self.documents,
                namespace: self.namespace,
                samples: self.samples,
                validation: self.validation,
                questions: self.questions,
            }),
            epochs: self.epochs,
            batch: self.batch,
            learning_rate: self.learning_rate,
            seed: self.seed,
            activate: self.activate,
        }
    }
}
