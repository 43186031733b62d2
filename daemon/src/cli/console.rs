//! Where commands write: results on standard output, everything else on standard error.
//!
//! Owns `--json`, colour and progress bars. A result under `--json` is one JSON object a line,
//! and nothing else is written to standard output then.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::error::{Error, Result};

/// Standard output and error of a command.
pub struct Console {
    out: Box<dyn Write + Send>,
    err: Box<dyn Write + Send>,
    json: bool,
    colour: bool,
    live: bool,
    width: Option<u16>,
}

impl Console {
    /// The process's own streams.
    #[must_use]
    pub fn of_process() -> Self {
        Self {
            out: Box::new(io::stdout()),
            err: Box::new(io::stderr()),
            json: false,
            colour: io::stdout().is_terminal(),
            live: io::stderr().is_terminal(),
            width: terminal_width(),
        }
    }

    /// Any two streams, without colour or bars.
    #[must_use]
    pub fn to(out: Box<dyn Write + Send>, err: Box<dyn Write + Send>) -> Self {
        Self {
            out,
            err,
            json: false,
            colour: false,
            live: false,
            width: None,
        }
    }

    pub(crate) fn set_json(&mut self, json: bool) {
        self.json = json;
    }

    pub(crate) fn set_plain(&mut self, plain: bool) {
        self.colour &= !plain;
    }

    /// Whether results are JSON.
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    /// One line of a result.
    pub(crate) fn line(&mut self, text: &str) -> Result<()> {
        Ok(writeln!(self.out, "{text}")?)
    }

    /// Text as it comes, shown at once.
    pub(crate) fn stream(&mut self, text: &str) -> Result<()> {
        self.out.write_all(text.as_bytes())?;
        Ok(self.out.flush()?)
    }

    /// A line on standard error: what happened, not the result.
    pub(crate) fn note(&mut self, text: &str) -> Result<()> {
        Ok(writeln!(self.err, "{text}")?)
    }

    /// `text` dimmed where the terminal can.
    pub(crate) fn dim(&self, text: &str) -> String {
        self.paint("2", text)
    }

    /// `text` in bold where the terminal can.
    pub(crate) fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }

    /// `text` in the colour of an SGR code where the terminal can.
    pub(crate) fn paint(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// A bar over `total` units, drawn on standard error; nothing where that is no terminal.
    pub(crate) fn bar(&self, total: u64, unit: &'static str, what: &str) -> ProgressBar {
        let bar = self.hidden_or_live(total);
        let template =
            format!("{{msg:24}} {{wide_bar:.cyan/dim}} {{pos}}/{{len}} {unit} {{elapsed:>4}}");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        bar.set_message(what.to_owned());
        bar
    }

    /// A bar over bytes.
    pub(crate) fn bytes(&self, what: &str) -> ProgressBar {
        let bar = self.hidden_or_live(0);
        let template = "{msg:40} {wide_bar:.cyan/dim} {binary_bytes}/{binary_total_bytes} {eta:>4}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        bar.set_message(what.to_owned());
        bar
    }

    /// Columns of the terminal; none where standard output is a file or a pipe.
    pub(crate) fn width(&self) -> Option<u16> {
        self.width
    }

    /// Whether progress is drawn.
    pub(crate) fn live(&self) -> bool {
        self.live
    }

    /// A spinner for work of unknown length.
    pub(crate) fn spinner(&self, what: &str) -> ProgressBar {
        let bar = self.hidden_or_live(0);
        if let Ok(style) = ProgressStyle::with_template("{spinner:.cyan} {msg} {elapsed:.dim}") {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        if self.live {
            bar.enable_steady_tick(Duration::from_millis(120));
        }
        bar
    }

    fn hidden_or_live(&self, total: u64) -> ProgressBar {
        let target = if self.live {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        ProgressBar::with_draw_target(Some(total), target)
    }

    /// Prints an error and returns its exit code. A closed pipe is no error: `… | head` is fine.
    pub fn fail(&mut self, error: &Error) -> ExitCode {
        if let Error::Output(io) = error
            && io.kind() == io::ErrorKind::BrokenPipe
        {
            return ExitCode::SUCCESS;
        }
        let mut text = format!("addenda: {error}");
        let hint = error.hint();
        if !hint.is_empty() {
            text.push_str("\n  hint: ");
            text.push_str(&hint);
        }
        // If standard error is gone as well, nobody can be told; the exit code still says it.
        let _ = writeln!(self.err, "{text}");
        ExitCode::from(error.exit_code())
    }

    /// Prints clap's help, version or usage error.
    pub(crate) fn usage(&mut self, error: &clap::Error) -> Result<ExitCode> {
        let text = if self.colour {
            error.render().ansi().to_string()
        } else {
            error.render().to_string()
        };
        if error.use_stderr() {
            self.err.write_all(text.as_bytes())?;
        } else {
            self.out.write_all(text.as_bytes())?;
        }
        let code = u8::try_from(error.exit_code()).unwrap_or(2);
        Ok(ExitCode::from(code))
    }
}

fn terminal_width() -> Option<u16> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0).then_some(size.ws_col)
}
