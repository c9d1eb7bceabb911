//! What a run's results follow from, by name, so that a journal knows whose it is and a change can be said.
//!
//! Files count by all their bytes. Hashing reads the checkpoint once, at a gigabyte or more in a second and processor, where the run that
//! follows reads it several times and spends thousands of times as long on each byte; in return a checkpoint may be fetched again or moved
//! to another machine, and one that was changed without a trace in its date is noticed.
//!
//! What does not change results is not here: threads, memory, how outputs are cut into files, what is measured.

use std::path::{Path, PathBuf};

use formats::side_files;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::hub;
use crate::job::{Calibration, QuantizeJob, Text};
use crate::progress::Progress;
use crate::record::{FileRecord, bytes_digest};
use crate::stored::StoredModel;

/// Names and values, in the order in which changes are told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fingerprint(Vec<(String, String)>);

impl Fingerprint {
    /// Of a job on `source`.
    pub(crate) fn of(
        job: &QuantizeJob,
        source: &StoredModel,
        progress: &dyn Progress,
    ) -> Result<Self, Error> {
        let mut fields = Fields::default();
        fields.add("quantc", concat!(env!("CARGO_PKG_VERSION"), ", built of ", env!("QUANTC_SOURCES")));
        fields.add("instruction set", kernels::instruction_set());
        fields.add("products in bfloat16", if kernels::bf16::is_fast() { "fast" } else { "slow" });
        fields.add("factorizations", if cfg!(feature = "lapack") { "LAPACK" } else { "faer" });
        let targets: Vec<String> = job.targets.iter().map(crate::job::Target::directory).collect();
        fields.add("--to", targets.join(","));
        fields.add("--recipe", &job.recipe.name);
        for (name, value) in job.recipe.description() {
            fields.add(&format!("recipe: {name}"), value);
        }
        let told = |value: Option<String>| value.unwrap_or_else(|| "none".to_owned());
        fields.add("--target-bits or --target-size", told(job.budget.map(|budget| format!("{budget:?}"))));
        fields.add("--adapter-rank", told(job.adapter_rank.map(|rank| rank.to_string())));
        let exclude: Vec<&str> = job.exclude.iter().map(regex::Regex::as_str).collect();
        fields.add("--exclude", format!("{exclude:?}"));
        for (flag, bits) in [("--embedding-bits", job.embedding_bits), ("--head-bits", job.head_bits)] {
            fields.add(flag, told(bits.map(|bits| bits.get().to_string())));
        }
        fields.add("--min-expert-tokens", told(job.min_expert_tokens.map(|tokens| tokens.to_string())));
        fields.add("--untie", job.untie.to_string());
        fields.add("--export-imatrix", if job.export_imatrix.is_some() { "yes" } else { "no" });
        match &job.imatrix {
            Some(path) => fields.add("--imatrix", content(path)?),
            None => {
                fields.add("--imatrix", "none");
                let text = match &job.calibration {
                    Calibration::Own => "self".to_owned(),
                    Calibration::Text(Text::File(path)) => {
                        let file = hub::text_file(path, progress)?;
                        match file.metadata() {
                            Ok(found) if found.is_file() => content(&file)?,
                            Ok(_) => format!("what only process {} could read", std::process::id()),
                            // One that is not there is said when it is read, if it is.
                            Err(_) => path.display().to_string(),
                        }
                    }
                    Calibration::Text(Text::Windows(windows)) => {
                        let words = windows.iter().flat_map(|window| {
                            std::iter::once(window.len() as u64)
                                .chain(window.iter().map(|&token| token.into()))
                        });
                        let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
                        format!("{} lists of tokens with SHA-256 {}", windows.len(), bytes_digest(&bytes))
                    }
                    Calibration::Text(text) => text.name(),
                };
                fields.add("--calibration", text);
                fields.add("--samples", job.calibration_windows.samples.to_string());
                fields.add("--context", job.calibration_windows.context.to_string());
                fields.add("--seed", told(job.calibration_windows.seed.map(|seed| seed.to_string())));
            }
        }
        // What a file describes has no name that would tell.
        let described = format!("{:?}", source.model.architecture);
        let digest = bytes_digest(described.as_bytes());
        let architecture = format!("{} ({digest})", source.model.architecture.model_type);
        fields.add("architecture", architecture);
        let files = files(source)?;
        let contents = files.par_iter().map(|(_, path)| content(path)).collect::<Result<Vec<_>, _>>()?;
        for ((name, _), content) in files.iter().zip(contents) {
            fields.add(&format!("checkpoint: {name}"), content);
        }
        Ok(Self(fields.0))
    }

    /// What `new` has otherwise, a line each.
    pub(crate) fn changes(&self, new: &Self) -> Vec<String> {
        let told = |(name, old, new)| format!("{name} was {old}, is now {new}");
        self.compared(new).into_iter().map(told).collect()
    }

    /// What this process has otherwise than another one, whose this is, a line each.
    pub(crate) fn differences(&self, own: &Self) -> Vec<String> {
        let told = |(name, there, here)| format!("{name} is {there}, and here {here}");
        self.compared(own).into_iter().map(told).collect()
    }

    /// Name and both values of what is not the same.
    fn compared<'f>(&'f self, new: &'f Self) -> Vec<(&'f str, &'f str, &'f str)> {
        let find = |fields: &'f Self, name: &str| {
            fields.0.iter().find(|(known, _)| known == name).map_or("not there", |(_, value)| value)
        };
        let mut names: Vec<&String> = self.0.iter().map(|(name, _)| name).collect();
        names
            .extend(new.0.iter().map(|(name, _)| name).filter(|name| self.0.iter().all(|(n, _)| n != *name)));
        names
            .into_iter()
            .map(|name| (name.as_str(), find(self, name), find(new, name)))
            .filter(|(_, old, new)| old != new)
            .collect()
    }
}

#[derive(Default)]
struct Fields(Vec<(String, String)>);

impl Fields {
    fn add(&mut self, name: &str, value: impl Into<String>) {
        self.0.push((name.to_owned(), value.into()));
    }
}

fn content(path: &Path) -> Result<String, Error> {
    let FileRecord { bytes, sha256 } = FileRecord::of(path)?;
    Ok(format!("{bytes} bytes with SHA-256 {sha256}"))
}

/// The files that a run reads of a checkpoint: weights, their description, and what tokenizers and outputs take from beside them.
pub(crate) fn files(source: &StoredModel) -> Result<Vec<(String, PathBuf)>, Error> {
    let weights: Vec<&Path> = source.checkpoint.files().collect();
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&source.path).map_err(Error::io(&source.path))? {
        let path = entry.map_err(Error::io(&source.path))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()).map(str::to_owned) else { continue };
        let reads = weights.contains(&path.as_path())
            || name.ends_with(".json")
            || !name.starts_with('.') && !side_files::is_read_by_loaders(&name);
        if reads && path.is_file() {
            files.push((name, path));
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_told_by_name_with_both_values() {
        let fields = |fields: &[(&str, &str)]| {
            Fingerprint(
                fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            )
        };
        let old = fields(&[("--samples", "6"), ("--context", "96"), ("gone", "x")]);
        assert!(old.changes(&old).is_empty());
        let new = fields(&[("--samples", "7"), ("--context", "96"), ("added", "y")]);
        let expected =
            ["--samples was 6, is now 7", "gone was x, is now not there", "added was not there, is now y"];
        assert_eq!(old.changes(&new), expected);
    }
}
