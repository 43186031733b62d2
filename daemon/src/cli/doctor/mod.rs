//! `addenda doctor`: what is wrong with the machine, the model, the data or the daemon, and how to
//! mend it.
//!
//! Owns the findings and their look. Changes nothing: it creates no file, takes no lock for longer
//! than the look at it, and writes to no directory.

mod daemon;
mod data;
mod machine;
mod model;

use std::fmt;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::console::Console;
use super::error::Result;
use super::settings::ServerArgs;
use super::table::table;
use super::text::count;
use crate::config::Loaded;

/// Look for what keeps Addenda from working here, and say how to mend it.
///
/// Exits with 1 if there is a problem; warnings alone exit with 0. With --json: one object a line
/// with `area`, `subject`, `verdict` (ok, warning, problem), `finding` and `mend`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    settings: ServerArgs,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Ok,
    Warning,
    Problem,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
        })
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Finding {
    /// "machine", "model", "data", "daemon".
    area: &'static str,
    subject: &'static str,
    verdict: Verdict,
    finding: String,
    /// What to do; empty when all is well.
    mend: String,
}

/// The findings so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    area: &'static str,
    findings: Vec<Finding>,
}

impl Report {
    fn begin(&mut self, area: &'static str) {
        self.area = area;
    }

    fn ok(&mut self, subject: &'static str, finding: impl Into<String>) {
        self.add(subject, Verdict::Ok, finding.into(), String::new());
    }

    fn warning(
        &mut self,
        subject: &'static str,
        finding: impl Into<String>,
        mend: impl Into<String>,
    ) {
        self.add(subject, Verdict::Warning, finding.into(), mend.into());
    }

    fn problem(
        &mut self,
        subject: &'static str,
        finding: impl Into<String>,
        mend: impl Into<String>,
    ) {
        self.add(subject, Verdict::Problem, finding.into(), mend.into());
    }

    fn add(&mut self, subject: &'static str, verdict: Verdict, finding: String, mend: String) {
        self.findings.push(Finding {
            area: self.area,
            subject,
            verdict,
            finding,
            mend,
        });
    }

    fn number(&self, verdict: Verdict) -> u64 {
        self.findings
            .iter()
            .filter(|finding| finding.verdict == verdict)
            .count() as u64
    }
}

impl DoctorArgs {
    pub(crate) fn flags(&self) -> Vec<(&'static str, String)> {
        self.settings.flags()
    }

    pub(crate) fn run(&self, loaded: &Loaded, console: &mut Console) -> Result<ExitCode> {
        let config = &loaded.config;
        let mut report = Report::default();
        report.begin("machine");
        machine::look(config, &mut report);
        for warning in &loaded.warnings {
            let mend = "use 127.0.0.1, or trust the network around this machine";
            report.warning("configuration", warning, mend);
        }
        report.begin("model");
        model::look(config, &mut report);
        report.begin("data");
        let owner = data::look(config, &mut report);
        report.begin("daemon");
        daemon::look(config, owner.as_deref(), &mut report)?;
        print(&report, console)?;
        Ok(if report.number(Verdict::Problem) == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

fn print(report: &Report, console: &mut Console) -> Result<()> {
    if console.json() {
        for finding in &report.findings {
            let line = serde_json::to_string(finding)
                .map_err(|error| super::error::Error::Json(error.to_string()))?;
            console.line(&line)?;
        }
        return Ok(());
    }
    let mut rows = table(&["Area", "What", "Verdict", "Finding"]);
    for finding in &report.findings {
        let text = if finding.mend.is_empty() {
            finding.finding.clone()
        } else {
            format!("{}\n→ {}", finding.finding, finding.mend)
        };
        rows.add_row([
            finding.area,
            finding.subject,
            &finding.verdict.to_string(),
            &text,
        ]);
    }
    console.rows(rows)?;
    let (problems, warnings) = (
        report.number(Verdict::Problem),
        report.number(Verdict::Warning),
    );
    console.line(&format!(
        "{}, {}.",
        count(problems, "problem"),
        count(warnings, "warning")
    ))
}
