//! What can be wrong with files.

use std::path::{Path, PathBuf};

/// An error of this crate. Every variant names the file, and the tensor where there is one.
#[derive(Debug, thiserror::Error)]
pub enum FormatsError {
    /// The system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file that is not what it should be.
    #[error("{path}: {problem}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Expected and found.
        problem: String,
    },
    /// A file that ends too early or too late.
    #[error("{path}: {problem}")]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Expected and found.
        problem: String,
    },
    /// A directory without weights that can be read.
    #[error("{path}: {problem}")]
    NoWeights {
        /// The directory.
        path: PathBuf,
        /// What is there instead.
        problem: String,
    },
    /// A name that is no plain file name, or a link that leads elsewhere.
    #[error("{path}: `{name}` leads out of the directory")]
    Outside {
        /// The directory.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// Weights in a format that can run code when it is read.
    #[error("{path}: there is only `{file}`, whose pickled format can run code; expected safetensors")]
    Pickled {
        /// The directory.
        path: PathBuf,
        /// The file found.
        file: String,
    },
    /// A tensor that is not in the checkpoint.
    #[error("{path}: there is no tensor `{tensor}`")]
    MissingTensor {
        /// The checkpoint's directory.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor of the wrong shape, type or content.
    #[error("{path}: tensor `{tensor}` {problem}")]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Expected and found.
        problem: String,
    },
    /// A scheme that a format cannot hold.
    #[error("format {format} cannot hold `{linear}`: {problem}")]
    Unsupported {
        /// The format.
        format: &'static str,
        /// Module path of the linear.
        linear: String,
        /// Why.
        problem: String,
        /// What to do instead.
        remedy: &'static str,
    },
    /// An output that exists already.
    #[error("{path} exists already")]
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// A directory that another process works in.
    #[error("{path}: another process of quantc is at work on this output")]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// An output that would replace what quantc did not write.
    #[error("{path} is not replaced: {found}")]
    NotOurs {
        /// The output.
        path: PathBuf,
        /// What it is instead of an output.
        found: String,
    },
    /// A writer that was used wrongly.
    #[error("{path}: tensor `{tensor}` {problem}")]
    Writer {
        /// The output.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong.
        problem: String,
    },
}

impl FormatsError {
    /// What the user can do about it, if there is something to say beyond the message.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Pickled { .. } => Some(
                "convert it once where you trust it: `AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW)` writes safetensors",
            ),
            Self::Outside { .. } => Some("put the file itself into the directory if you trust it"),
            Self::Truncated { .. } => {
                Some("the download is not complete, or another file has its name: fetch it again")
            }
            Self::Busy { .. } => Some("wait until it is done, or choose another output"),
            Self::Exists { .. } => Some("choose another output, or replace it with --force"),
            Self::NotOurs { .. } => {
                Some("--force replaces outputs of quantc only; remove the directory yourself if it can go")
            }
            Self::Unsupported { remedy, .. } => Some(remedy),
            _ => None,
        }
    }

    /// For `map_err` on file operations.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn malformed(path: &Path, problem: impl Into<String>) -> Self {
        Self::Malformed { path: path.to_owned(), problem: problem.into() }
    }

    pub(crate) fn tensor(path: &Path, tensor: &str, problem: impl Into<String>) -> Self {
        Self::Tensor { path: path.to_owned(), tensor: tensor.to_owned(), problem: problem.into() }
    }
}
