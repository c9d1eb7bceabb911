//! Everything that can go wrong, with what the user can do about it.

use std::path::PathBuf;

use crate::convert::Difference;
use crate::verify::Verification;

/// An error of the driver or of a crate below, with the place it happened in.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A command line that cannot be read.
    #[error("{problem}")]
    CommandLine {
        /// What is wrong with it.
        problem: String,
        /// What may have been meant.
        hint: Option<String>,
    },
    /// A flag whose value cannot be used.
    #[error("{flag}: {problem}")]
    Argument {
        /// The flag.
        flag: &'static str,
        /// Expected and found.
        problem: String,
    },
    /// A recipe that cannot be read.
    #[error("recipe `{path}`: {problem}")]
    Recipe {
        /// The file.
        path: String,
        /// What is wrong in it.
        problem: String,
    },
    /// A name that no registry has.
    #[error("unknown {kind} `{found}`{}, expected one of {known}", perhaps(.found, .known))]
    Unknown {
        /// What was looked up.
        kind: &'static str,
        /// What was asked for.
        found: String,
        /// What there is.
        known: String,
    },
    /// A file that cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A JSON file that does not parse.
    #[error("{path}: {problem}")]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A model that no description fits.
    #[error("{path}: {source}")]
    Model {
        /// The checkpoint's directory.
        path: PathBuf,
        /// What does not fit.
        source: model::ModelError,
    },
    /// A tensor that is not what config.json says.
    #[error("{path}: {problem}")]
    Mismatch {
        /// The checkpoint's directory.
        path: PathBuf,
        /// Tensor, expected and found.
        problem: String,
    },
    /// A checkpoint that cannot be used for what was asked.
    #[error("{path}: {problem}")]
    NotSuitable {
        /// The checkpoint's directory.
        path: PathBuf,
        /// Why.
        problem: String,
        /// What to do instead.
        hint: &'static str,
    },
    /// A path that is no model.
    #[error("{path}: {problem}")]
    NoModel {
        /// What was named.
        path: PathBuf,
        /// Why it is none.
        problem: &'static str,
        /// What may have been meant.
        hint: String,
    },
    /// A model or a data set that the hub does not give.
    #[error("{problem}")]
    Hub {
        /// What was asked for, and what came.
        problem: String,
        /// What to do instead.
        hint: String,
    },
    /// A disk without the room that the work takes.
    #[error("{path}: {problem}")]
    NoSpace {
        /// Where it is missing.
        path: PathBuf,
        /// Needed and free.
        problem: String,
        /// What to do instead.
        hint: &'static str,
    },
    /// Reading or writing a checkpoint failed.
    #[error(transparent)]
    Formats(#[from] formats::FormatsError),
    /// Text or the forward pass failed.
    #[error(transparent)]
    Calibration(#[from] calibration::CalibrationError),
    /// Activations that no Hessian can be made of.
    #[error("inputs of `{linear}`: {source}")]
    Statistics {
        /// Module path of the stage's first linear.
        linear: String,
        /// Why.
        source: quantizer::hessian::HessianError,
    },
    /// The solver failed.
    #[error("solving `{linear}`: {source}")]
    Solve {
        /// Module path.
        linear: String,
        /// Why.
        source: quantizer::solver::SolveError,
    },
    /// No adapter can be made.
    #[error("the adapter of `{linear}`: {source}")]
    Adapter {
        /// Module path.
        linear: String,
        /// Why.
        source: quantizer::adapter::AdapterError,
    },
    /// No runtime could load what the job would write.
    #[error("no runtime could load the output: {reasons}")]
    NoRuntime {
        /// One reason for each runtime.
        reasons: String,
    },
    /// A linear that would not be quantized as asked for, where that is not to be.
    #[error("not as asked for: {problem}")]
    Downgraded {
        /// Which, and what instead.
        problem: String,
    },
    /// A conversion that would change values.
    #[error(
        "{path}: {} would not be the same in {format}: {}",
        counted(.differences),
        told(.differences)
    )]
    NotTheSame {
        /// The checkpoint.
        path: PathBuf,
        /// The format.
        format: &'static str,
        /// What would change, by how much.
        differences: Vec<Difference>,
    },
    /// What was written is not what was solved.
    #[error("verification failed: {}", .0.problems.first().map_or("", |p| p.as_str()))]
    Verification(Box<Verification>),
    /// The user asked for an end.
    #[error("interrupted; nothing half-written is left")]
    Interrupted,
    /// The user asked for an end while files were downloaded.
    #[error("interrupted while downloading; what has come is kept")]
    InterruptedDownload,
    /// The user asked for an end, and the next run goes on.
    #[error("interrupted; what is done is in {path}")]
    InterruptedWithJournal {
        /// The journal.
        path: PathBuf,
    },
    /// A journal of another job.
    #[error("{path} is the journal of another job: {}", .changes.join("; "))]
    JournalOfAnother {
        /// The journal.
        path: PathBuf,
        /// What is not the same, with both values.
        changes: Vec<String>,
    },
    /// A journal that cannot be gone on from.
    #[error("the journal {path} is damaged: {problem}")]
    JournalDamaged {
        /// The journal.
        path: PathBuf,
        /// Expected and found.
        problem: String,
    },
    /// The user asked for an end, and had the output already.
    #[error("interrupted while measuring; {path} is written and verified")]
    InterruptedMeasuring {
        /// The output.
        path: PathBuf,
    },
    /// Several processes that do one job, and one of them cannot go on.
    #[error("{0}")]
    Ranks(#[from] std::io::Error),
    /// A bug.
    #[error("internal error: {0}")]
    Internal(String),
}

impl Error {
    /// The process's exit code: 1 the user can fix it, 2 unexpected, 3 verification failed, 130 interrupted.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Verification(_) => 3,
            Self::Internal(_) => 2,
            // What shells say of a program that SIGINT ended.
            Self::Interrupted
            | Self::InterruptedDownload
            | Self::InterruptedWithJournal { .. }
            | Self::InterruptedMeasuring { .. } => 130,
            _ => 1,
        }
    }

    /// Whether what was asked for cannot be done, so that asking for it again fails again.
    pub(crate) fn is_of_the_job(&self) -> bool {
        matches!(
            self,
            Self::CommandLine { .. }
                | Self::Argument { .. }
                | Self::Recipe { .. }
                | Self::Unknown { .. }
                | Self::NotSuitable { .. }
                | Self::NoRuntime { .. }
                | Self::Downgraded { .. }
                | Self::Formats(formats::FormatsError::Unsupported { .. })
        )
    }

    /// What the user can do about it, if there is something to say beyond the message.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::CommandLine { hint, .. } => hint.clone(),
            Self::NotSuitable { hint, .. } | Self::NoSpace { hint, .. } => Some((*hint).to_owned()),
            Self::NoModel { hint, .. } | Self::Hub { hint, .. } => Some(hint.clone()),
            Self::Interrupted => Some("the same command begins anew".to_owned()),
            Self::InterruptedDownload => Some("the same command goes on from there".to_owned()),
            Self::Formats(formats::FormatsError::Io { source, .. }) | Self::Io { source, .. }
                if source.kind() == std::io::ErrorKind::StorageFull =>
            {
                Some(
                    "the disk is full: make room, or write to another one with -o; where a journal was begun, the same command goes on from the last whole layer"
                        .to_owned(),
                )
            }
            Self::Formats(error) => error.hint().map(str::to_owned),
            Self::Model { source: model::ModelError::UnknownArchitecture { .. }, .. } => {
                Some("`quantc list architectures` says what is read".to_owned())
            }
            Self::Recipe { path, problem } => {
                let near = meant(problem).or_else(|| crate::recipe::resembling(path));
                near.map(|near| format!("did you mean `{near}`?"))
            }
            Self::Argument { flag: "--memory", problem } => {
                // A number without a unit counts bytes.
                let number = problem.split_once(" B is too little").map(|(number, _)| number)?;
                number.parse::<u64>().is_ok().then(|| format!("did you mean {number}GB?"))
            }
            Self::Argument { flag: "--runs-on", problem } => {
                let (found, known) = problem.split_once("is called `")?.1.split_once("`; known are ")?;
                nearest(found, known.split(", ").filter_map(|name| name.split(' ').next()))
                    .map(|near| format!("did you mean {near}?"))
            }
            Self::Argument { flag: "--output", .. } => {
                Some("name another place with -o, or look at its permissions".to_owned())
            }
            Self::Argument { flag: "MODELS", .. } => Some(
                "name a second one, such as an output of `quantize`, or the original with --reference".to_owned(),
            ),
            Self::Argument { flag: "--group-size", .. } => {
                Some("32, 64 and 128 load nearly everywhere; fewer columns cost bits and lower the loss".to_owned())
            }
            Self::Argument { flag: "--context", problem } if problem.starts_with("the prompt") => {
                Some("shorten it, or give a larger --context, up to the model's own".to_owned())
            }
            Self::Argument { flag: "--context" | "--evaluate-context", .. } => {
                Some("2048 tokens, or the model's own context, are usual".to_owned())
            }
            Self::Calibration(calibration::CalibrationError::NoTokenizer { .. }) => Some(
                "put the original's tokenizer.json beside config.json (where there is only tokenizer.model, `python -c \"from transformers import AutoTokenizer as T; T.from_pretrained('DIR').save_pretrained('DIR')\"` makes it), or give token ids: JSON lines with `input_ids`"
                    .to_owned(),
            ),
            Self::Calibration(calibration::CalibrationError::TooShort { .. }) => {
                Some("give more text, or shorter windows".to_owned())
            }
            Self::Unknown { kind: "format", .. } => {
                Some("`quantc list formats` says what each is for".to_owned())
            }
            Self::Calibration(calibration::CalibrationError::Io { path, .. }) if path.is_dir() => {
                Some("a text is a file: UTF-8, or JSON lines or Parquet".to_owned())
            }
            Self::Downgraded { .. } => {
                Some("without --strict it is written so, with a warning and a line in the report".to_owned())
            }
            Self::NotTheSame { .. } => {
                Some("--lossy rounds them to the nearest that the format holds".to_owned())
            }
            Self::InterruptedWithJournal { .. } => {
                Some("the same command goes on from there; with --fresh it begins anew".to_owned())
            }
            Self::JournalOfAnother { .. } => Some(
                "give the command that it is of to go on, --fresh to begin anew, or another output"
                    .to_owned(),
            ),
            Self::JournalDamaged { .. } => Some("--fresh begins anew".to_owned()),
            Self::InterruptedMeasuring { .. } => {
                Some("the same command measures it, as does `quantc evaluate`".to_owned())
            }
            Self::Verification(_) => {
                Some("the files differ from what was solved; write them again from the original".to_owned())
            }
            _ => None,
        }
    }

    /// For `map_err` on what weight sources give: their own error where it is one of ours.
    pub(crate) fn from_source(error: calibration::weights::SourceError) -> Self {
        match error.downcast::<Self>() {
            Ok(error) => *error,
            Err(other) => calibration::CalibrationError::Source(other).into(),
        }
    }

    /// For `map_err` on file operations.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

/// The one of `known` that somebody who wrote `found` may have meant.
pub(crate) fn nearest<'a>(found: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let found = found.to_lowercase();
    let near = |name: &str| strsim::jaro_winkler(&found, &name.to_lowercase());
    known
        .map(|name| (near(name), name))
        .filter(|(near, _)| *near >= NEAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// The known key or value that somebody meant who wrote an unknown one, by the parser's message.
fn meant(problem: &str) -> Option<&str> {
    let unknown = ["unknown field `", "unknown variant `"];
    let (found, known) = unknown.iter().find_map(|words| problem.split_once(words))?.1.split_once('`')?;
    nearest(found, known.split('`').skip(1).step_by(2))
}

/// What may have been meant, before a list that is longer than a screen.
fn perhaps(found: &str, known: &str) -> String {
    let near = nearest(found, known.split(", "));
    near.map_or_else(String::new, |near| format!(" (did you mean {near}?)"))
}

/// Likeness, 0 to 1, from which a name is worth to be asked about.
const NEAR: f64 = 0.85;

/// Names of tensors that a message has room for.
const NAMED: usize = 4;

fn counted(differences: &[Difference]) -> String {
    let number = differences.len();
    format!("{number} tensor{}", if number == 1 { "" } else { "s" })
}

/// Which tensors differ, why the first does, and the worst of them.
fn told(differences: &[Difference]) -> String {
    let mut names: Vec<String> =
        differences.iter().take(NAMED).map(|found| format!("`{}`", found.name)).collect();
    if differences.len() > NAMED {
        names.push(format!("and {} more", differences.len() - NAMED));
    }
    let reason = differences.first().map_or("", |first| first.reason.as_str());
    let worst =
        differences.iter().max_by(|a, b| a.relative_difference.total_cmp(&b.relative_difference)).map(
            |worst| {
                format!(
                    "; the nearest there is differs by {:.2e} of its norm and {:.2e} at most in the worst of them, `{}`",
                    worst.relative_difference, worst.largest_difference, worst.name
                )
            },
        );
    format!("{} ({reason}{})", names.join(", "), worst.unwrap_or_default())
}
