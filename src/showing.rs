//! What OUT/report.html shows beyond the report's figures: distributions, what both models write, and what is needed to do it again.

mod completions;
mod distributions;

use std::collections::BTreeMap;
use std::path::Path;

pub use completions::Completion;
pub use distributions::{Distribution, Distributions};

use calibration::tokenizer::TextTokenizer;
use completions::Prompt;
pub(crate) use completions::SAMPLE_TOKENS;

use crate::error::Error;
use crate::progress::Progress;
use crate::record::FileRecord;
use crate::stored::StoredModel;

/// What is shown beside a report.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The command that was given, word by word; empty where another program asked.
    pub command: Vec<String>,
    /// Files of the original, by name.
    pub original_files: BTreeMap<String, FileRecord>,
    /// Files of the output, by name.
    pub files: BTreeMap<String, FileRecord>,
    /// How weights and scales lie.
    pub distributions: Distributions,
    /// What both models write; empty where nothing was measured or there is no tokenizer.
    pub completions: Vec<Completion>,
}

/// What is looked at for the pages of a run's outputs.
pub(crate) struct Look<'l> {
    command: &'l [String],
    source: &'l StoredModel,
    original_files: BTreeMap<String, FileRecord>,
    /// What both models are asked to go on with; none where nothing is measured.
    asked: Option<(TextTokenizer, Vec<Prompt>)>,
    /// What the original writes.
    answers: Vec<String>,
    progress: &'l dyn Progress,
}

impl<'l> Look<'l> {
    /// Looks at the original; with `windows` of text that was measured on it is also asked to write.
    pub(crate) fn at_original(
        command: &'l [String],
        source: &'l StoredModel,
        windows: Option<&[Vec<u32>]>,
        outputs: usize,
        progress: &'l dyn Progress,
    ) -> Result<Self, Error> {
        let tokenizer = if windows.is_some() { source.tokenizer()? } else { None };
        let asked = match (tokenizer, windows) {
            (Some(tokenizer), Some(windows)) => {
                let prompts = completions::prompts(&tokenizer, windows)?;
                Some((tokenizer, prompts))
            }
            _ => None,
        };
        let steps = asked.as_ref().map_or(0, |(_, prompts)| prompts.len() * (outputs + 1));
        if asked.is_some() {
            progress.phase("writing samples", steps);
        }
        let answers = match &asked {
            Some((tokenizer, prompts)) => completions::write(source, tokenizer, prompts, progress)?,
            None => Vec::new(),
        };
        Ok(Self { command, source, original_files: digests(source)?, asked, answers, progress })
    }

    /// Looks at an output with these files.
    pub(crate) fn at(
        &self,
        written: &StoredModel,
        files: &BTreeMap<String, FileRecord>,
    ) -> Result<Shown, Error> {
        let mut found = Vec::new();
        if let Some((tokenizer, prompts)) = &self.asked {
            let answers = completions::write(written, tokenizer, prompts, self.progress)?;
            for ((prompt, original), quantized) in prompts.iter().zip(&self.answers).zip(answers) {
                found.push(Completion { prompt: prompt.text.clone(), original: original.clone(), quantized });
            }
        }
        Ok(Shown {
            command: self.command.to_vec(),
            original_files: self.original_files.clone(),
            files: files.clone(),
            distributions: Distributions::of(self.source, written)?,
            completions: found,
        })
    }
}

/// Digests of config.json and of the files of weights of a model.
fn digests(source: &StoredModel) -> Result<BTreeMap<String, FileRecord>, Error> {
    let config = source.path.join("config.json");
    let files: Vec<&Path> = source.checkpoint.files().chain([config.as_path()]).collect();
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let known = files.into_iter().filter(|path| path.is_file());
    known.map(|path| Ok((name(path).unwrap_or_default(), FileRecord::of(path)?))).collect()
}
