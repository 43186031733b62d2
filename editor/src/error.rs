//! What can go wrong in an edit, as sentences that say what to do next.

use std::path::PathBuf;

use crate::fact::FactId;
use crate::figures::Figures;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong in an edit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of the fact or of the request is unusable.
    #[error("the fact's {field} {problem}")]
    BadFact {
        /// The field as the wire names it.
        field: &'static str,
        /// What is wrong with it, as the rest of a sentence.
        problem: String,
    },
    /// Nothing can be traced of facts that the model does not know.
    #[error(
        "the model completes none of these {0} facts with its target, so there is nothing to trace: give more facts, or facts that it knows"
    )]
    NothingKnown(usize),
    /// The subject does not stand in the prompt.
    #[error(
        "the subject {subject:?} is not in the prompt {prompt:?}: write `{{}}` in the prompt where the subject stands"
    )]
    SubjectNotInPrompt {
        /// The fact's subject.
        subject: String,
        /// The fact's prompt.
        prompt: String,
    },
    /// One request id was used for two different facts.
    #[error(
        "the request id {0:?} was used before for another fact: use a new id for a new request"
    )]
    RequestIdReused(String),
    /// Two facts of one batch answer the same prompt differently.
    #[error(
        "this fact contradicts another one of the same batch: one says {one:?}, the other {two:?} to the same prompt. \
         Neither was applied; send the one that holds"
    )]
    Contradiction {
        /// The target of this one.
        one: String,
        /// The target of the other.
        two: String,
    },
    /// The model gives this answer without an edit.
    #[error(
        "the model says {target:?} there already, without an edit ({:.0} % likely): there is nothing to change",
        .probability * 100.0
    )]
    SaidAlready {
        /// The fact's target.
        target: String,
        /// Its probability by the base weights: geometric mean over its tokens.
        probability: f64,
    },
    /// A batch was broken off between two facts of it.
    #[error(
        "the ledger took only a part of the batch; restart the daemon, which installs what is in the ledger: {0}"
    )]
    HalfBatch(#[source] Box<Error>),
    /// No fact of this id was ever added.
    #[error("no fact with id {0}: `addenda fact list --all` shows those there are")]
    UnknownFact(FactId),
    /// The file is no patch that this program can read.
    #[error("the patch can't be taken in: {0}")]
    BadPatch(String),
    /// The patch was made on other base weights.
    #[error(
        "the patch was made on the base weights {patch}, and this model's are {model}: it holds for those alone. \
         Add its facts anew (`addenda fact patch show` names them)"
    )]
    OtherBase {
        /// Fingerprint that the patch names.
        patch: String,
        /// The model's.
        model: String,
    },
    /// The fact is there, with other dates.
    #[error(
        "the fact {0} is there already with other dates: retire it before it is added with new ones"
    )]
    OtherDates(FactId),
    /// The fact is not active, so it can't be measured.
    #[error("the fact {0} is not active: only a fact that is in the weights can be checked")]
    NotActive(FactId),
    /// The edit was made and measured, and failed its own checks; nothing was changed.
    #[error("the edit was not applied: {reasons}")]
    BarsNotMet {
        /// Which bars failed, with figure and bar.
        reasons: String,
        /// All that was measured.
        figures: Box<Figures>,
    },
    /// The caller's pace callback asked to stop.
    #[error("the edit was cancelled; nothing was changed")]
    Cancelled,
    /// Another edit was committed between planning and committing.
    #[error(
        "another edit was made while this one was being planned; nothing was changed, try again"
    )]
    Stale,
    /// The model can't be edited this way.
    #[error("this model cannot be edited with these settings: {0}")]
    Unsupported(String),
    /// A hyper-parameter is out of its range.
    #[error("the edit setting {setting} {problem}")]
    BadSetting {
        /// The setting's name in `settings.toml`.
        setting: String,
        /// What is wrong, as the rest of a sentence.
        problem: String,
    },
    /// The second moment of this layer is not usable for a solve.
    #[error(
        "the second moment of layer {layer} cannot be inverted, even with a ridge of {ridge:.1e}: \
         measure it again on more text (now {tokens} tokens)"
    )]
    SingularMoment {
        /// The layer, from 0.
        layer: usize,
        /// The largest ridge tried, relative to the mean of the diagonal.
        ridge: f64,
        /// Tokens that it was measured on.
        tokens: u64,
    },
    /// A number that is not finite came out of the arithmetic.
    #[error("{0} came out as a number that is not finite; nothing was changed")]
    NotFinite(&'static str),
    /// Stored matrices, a second moment or what follows from others, do not match their digest.
    #[error(
        "the stored matrices {path} are damaged ({problem}): delete the file and they are worked out again"
    )]
    DamagedMoment {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        problem: String,
    },
    /// A frame of the ledger does not match its digest, and acknowledged ones lie behind it.
    #[error(
        "frame {frame} of the ledger {path} is damaged (at byte {offset}), and acknowledged frames follow it. \
         Nothing was changed. Restore the file from a backup; or, to lose frame {frame} and all after it, \
         stop the daemon and run: truncate -s {offset} {path}"
    )]
    DamagedLedger {
        /// The ledger's file.
        path: PathBuf,
        /// Number of the damaged frame, from 1.
        frame: u64,
        /// Where that frame begins.
        offset: u64,
    },
    /// The file is no ledger, or of a version that this program does not know.
    #[error("{path} {problem}")]
    NotALedger {
        /// The file.
        path: PathBuf,
        /// What it is instead, as the rest of a sentence.
        problem: String,
    },
    /// A frame is whole, but what it says does not fit what came before it.
    #[error(
        "frame {frame} of the ledger {path} says what cannot be ({problem}): it was written by another version of \
         this program; start that version, or restore a backup"
    )]
    InconsistentLedger {
        /// The ledger's file.
        path: PathBuf,
        /// Number of the frame, from 1.
        frame: u64,
        /// What does not fit.
        problem: String,
    },
    /// The facts in the ledger were made for another model.
    #[error(
        "the ledger holds active facts for the model {ledger}, and the model loaded is {model}: start with the model \
         that they were made for, or with another data directory"
    )]
    OtherModel {
        /// Fingerprint in the ledger, hexadecimal.
        ledger: String,
        /// Fingerprint of the model loaded.
        model: String,
    },
    /// An earlier write to the ledger failed half way and could not be undone.
    #[error(
        "an earlier write to the ledger failed, and what of it is on the disk is not known: restart the daemon, which verifies the ledger and cuts off what was never acknowledged"
    )]
    LedgerStuck,
    /// Facts were solved with the second moment of a text that is not at hand.
    #[error(
        "active facts need the second moment of the text {0}, which is neither stored nor the text in the settings: \
         give that text again, or restore the folder of second moments"
    )]
    MissingMoment(String),
    /// The ledger holds the change, and the model could not take the weights.
    #[error(
        "the change is in the ledger, but could not be installed; restart the daemon, which installs it: {0}"
    )]
    Install(#[source] addenda_model::Error),
    /// A file or folder could not be used.
    #[error("could not {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The model refused or failed.
    #[error(transparent)]
    Model(#[from] addenda_model::Error),
    /// libtorch failed in the editor's own arithmetic.
    #[error("libtorch failed during {action}: {}", first_line(.source))]
    Torch {
        /// What was being computed.
        action: &'static str,
        /// libtorch's error, with its backtrace.
        source: tch::TchError,
    },
}

impl Error {
    /// For `map_err` on libtorch's calls.
    pub(crate) fn torch(action: &'static str) -> impl FnOnce(tch::TchError) -> Self {
        move |source| Self::Torch { action, source }
    }

    /// For `map_err` on file operations.
    pub(crate) fn io(
        action: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

/// libtorch's messages carry a C++ backtrace; its first line says what happened.
fn first_line(error: &tch::TchError) -> String {
    error
        .to_string()
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}
