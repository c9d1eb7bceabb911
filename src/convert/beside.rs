//! What lies beside the weights: a model's own files in its directory, but anything at all beside a file that stands alone.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::error::Error;

/// Where the output's side files come from.
pub(super) struct Beside {
    model: PathBuf,
    directory: PathBuf,
    /// Stands in for the directory of a file that stands alone, whose other files are not the model's.
    nothing: Option<TempDir>,
}

/// A file with one of these beside it is in its model's directory.
const MARKS: [&str; 2] = ["tokenizer.json", "config.json"];

impl Beside {
    /// Beside `model`, a directory or a file in `directory`.
    pub(super) fn of(model: &Path, directory: &Path) -> Result<Self, Error> {
        let alone = model.is_file() && MARKS.iter().all(|name| !directory.join(name).exists());
        let nothing = alone.then(tempfile::tempdir).transpose().map_err(Error::io(std::env::temp_dir()))?;
        Ok(Self { model: model.to_owned(), directory: directory.to_owned(), nothing })
    }

    /// What the user named.
    pub(super) fn model(&self) -> &Path {
        &self.model
    }

    /// The directory to copy from.
    pub(super) fn path(&self) -> &Path {
        self.nothing.as_ref().map_or(&self.directory, TempDir::path)
    }

    /// For `map_err` on what needs files of the model.
    pub(super) fn missing(&self) -> impl FnOnce(formats::FormatsError) -> Error {
        move |error| match error {
            formats::FormatsError::Io { .. } if self.nothing.is_some() => Error::NotSuitable {
                path: self.model.clone(),
                problem: "no tokenizer.json lies beside it, and the format needs one".to_owned(),
                hint: "put the file into a directory with the tokenizer files of its original",
            },
            error => error.into(),
        }
    }
}
