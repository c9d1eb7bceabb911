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
    /// A directory without weights that can be read.
    #[error("{path}: {problem}")]
    NoWeights {
        /// The directory.
        path: PathBuf,
        /// What is there instead.
        problem: String,
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
    },
    /// An output that exists already.
    #[error("{path} exists already; --force replaces it")]
    Exists {
        /// The output.
        path: PathBuf,
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
