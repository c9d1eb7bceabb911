//! One output of a job: begun, finished, verified, in its place, measured. Each step is a type, so that none can be left out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use calibration::transforms::Transformed;
use formats::adapter::DIRECTORY;
use formats::container::{TensorData, TensorSpec};
use formats::files;
use formats::gguf::GgufFile;
use formats::model_writer::{Contents, ModelWriter};
use formats::output::OutputDirectory;
use formats::side_files::{CARD, REPORT};
use formats::target::TargetFormat;
use kernels::account::section;

use crate::adapted::{AdaptedModel, AdapterWriter};
use crate::card::Card;
use crate::carry::carry_over;
use crate::corpora::ReadText;
use crate::error::Error;
use crate::evaluate::{Models, measure};
use crate::export::ExportFile;
use crate::job::{Budget, QuantizeJob};
use crate::journal::{Journal, Placed};
use crate::memory::Memory;
use crate::pipeline::Outcome;
use crate::plan::Plan;
use crate::progress::Progress;
use crate::record::{FileRecord, LinearRecord, Record, bytes_digest, file_records};
use crate::render::html;
use crate::report::{AdapterSummary, EvaluationReport, Report, Size};
use crate::showing::Look;
use crate::stored::StoredModel;
use crate::verify::{self, Verification};

/// An output that solutions can be written to; all other tensors are in it.
pub(crate) struct OpenOutput {
    place: PathBuf,
    directory: OutputDirectory,
    format: &'static str,
    writer: Box<dyn ModelWriter>,
    adapters: Option<AdapterWriter>,
    /// Digests of the tensors that were carried over.
    tensors: BTreeMap<String, String>,
}

/// Written, beside its place.
pub(crate) struct ClosedOutput {
    place: PathBuf,
    directory: OutputDirectory,
    adapter: Option<AdapterSummary>,
    card: Card,
    tensor_bytes: u64,
}

/// What stands beside its place is what was solved.
pub(crate) struct VerifiedOutput {
    closed: ClosedOutput,
    verification: Verification,
}

/// In its place.
pub(crate) struct FinishedOutput {
    pub(crate) place: PathBuf,
    pub(crate) adapter: Option<AdapterSummary>,
    pub(crate) verification: Verification,
    written: StoredModel,
    card: Card,
    tensor_bytes: u64,
}

impl OpenOutput {
    /// Begins an output at `place`, and carries over what is not quantized.
    pub(crate) fn begin(
        source: &StoredModel,
        transformed: Option<&Transformed<'_>>,
        plan: &Plan,
        job: &QuantizeJob,
        place: &Path,
    ) -> Result<Self, Error> {
        let contents = plan.contents(source, job);
        let mut output =
            Self::create(source, transformed, plan.format, &contents, &plan.carried, job.force, place)?;
        let rank = job.adapter_rank;
        let adapters = rank.map(|rank| AdapterWriter::create(output.directory.path(), plan, rank));
        output.adapters = adapters.transpose()?;
        Ok(output)
    }

    /// Begins an output with these contents, and carries over `copied`, those of them that `source` has as they are.
    pub(crate) fn create(
        source: &StoredModel,
        transformed: Option<&Transformed<'_>>,
        format: &'static dyn TargetFormat,
        contents: &Contents<'_>,
        copied: &[TensorSpec],
        force: bool,
        place: &Path,
    ) -> Result<Self, Error> {
        let directory = OutputDirectory::create(place, force)?;
        let _section = section("carrying over");
        let mut writer = format.begin(directory.path(), contents)?;
        let tensors = carry_over(source, transformed, copied, writer.as_mut())?;
        let (place, format) = (place.to_owned(), format.id());
        Ok(Self { place, directory, format, writer, adapters: None, tensors })
    }

    /// Writes a tensor that is not quantized and that nobody carried over.
    pub(crate) fn carry(&mut self, name: String, bytes: Vec<u8>) -> Result<(), Error> {
        let tensor = self.writer.held(TensorData { name, bytes });
        self.tensors.insert(tensor.name.clone(), bytes_digest(&tensor.bytes));
        Ok(self.writer.carry(&tensor)?)
    }

    /// Where solutions go.
    pub(crate) fn sinks(&mut self) -> (&mut dyn ModelWriter, Option<&mut AdapterWriter>) {
        (self.writer.as_mut(), self.adapters.as_mut())
    }

    /// Writes what is left, the card and the record.
    pub(crate) fn finish(
        mut self,
        outcome: &Outcome,
        budget: Option<Budget>,
        card: Card,
    ) -> Result<ClosedOutput, Error> {
        let adapter = self.adapters.take().map(AdapterWriter::finish).transpose()?;
        self.close(outcome.records.iter().cloned().collect(), budget, adapter, card)
    }

    /// The same with the records of all solutions and what was written beside.
    pub(crate) fn close(
        self,
        linears: BTreeMap<String, LinearRecord>,
        budget: Option<Budget>,
        adapter: Option<AdapterSummary>,
        card: Card,
    ) -> Result<ClosedOutput, Error> {
        let writing = section("packing and writing");
        let tensor_bytes = self.writer.tensor_bytes();
        self.writer.finish()?;
        drop(writing);
        let _section = section("hashing");
        let directory = self.directory.path();
        let path = directory.join(CARD);
        let text = card.text(tensor_bytes, &weights_file(directory)?, adapter.as_ref(), None);
        std::fs::write(&path, text).map_err(Error::io(path))?;
        let record = Record {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            format: self.format.to_owned(),
            budget,
            linears,
            tensors: self.tensors,
            files: file_records(self.directory.path())?,
            dated: Vec::new(),
        };
        record.write(self.directory.path())?;
        Ok(ClosedOutput { place: self.place, directory: self.directory, adapter, card, tensor_bytes })
    }
}

impl ClosedOutput {
    /// Opens it again and compares it with what was solved.
    pub(crate) fn verify(self, progress: &dyn Progress) -> Result<VerifiedOutput, Error> {
        let _section = section("verifying");
        let verification = verify::verify(self.directory.path(), None, progress)?;
        if verification.problems.is_empty() {
            Ok(VerifiedOutput { closed: self, verification })
        } else {
            Err(Error::Verification(Box::new(verification)))
        }
    }
}

impl VerifiedOutput {
    /// Puts it in its place, as the journal knows from before on.
    pub(crate) fn commit_noted(self, journal: &mut Journal) -> Result<FinishedOutput, Error> {
        let ClosedOutput { place, directory, adapter, tensor_bytes, .. } = &self.closed;
        journal.place_output(place, directory.path(), *tensor_bytes, *adapter)?;
        self.commit()
    }

    /// Puts it in its place.
    pub(crate) fn commit(self) -> Result<FinishedOutput, Error> {
        let Self { closed: ClosedOutput { place, directory, adapter, card, tensor_bytes }, verification } =
            self;
        directory.commit()?;
        let written = StoredModel::open(&place)?;
        Ok(FinishedOutput { place, adapter, verification, written, card, tensor_bytes })
    }
}

impl FinishedOutput {
    /// One that an earlier process of this run put in its place. What that one told of it, or began to tell, is taken back and told again.
    pub(crate) fn standing(
        place: &Path,
        placed: &Placed,
        card: Card,
        progress: &dyn Progress,
    ) -> Result<Self, Error> {
        OutputDirectory::settle(place)?;
        let mut record = Record::read(place)?;
        let text = card.text(placed.tensor_bytes, &weights_file(place)?, placed.adapter.as_ref(), None);
        unlist(&mut record, place)?;
        replace(&place.join(CARD), text.as_bytes())?;
        files::remove(&place.join(REPORT))?;
        record.files.insert(CARD.to_owned(), FileRecord::of_bytes(text.as_bytes()));
        record.write(place)?;
        let verification = verify::verify(place, None, progress)?;
        if !verification.problems.is_empty() {
            return Err(Error::Verification(Box::new(verification)));
        }
        let written = StoredModel::open(place)?;
        let (adapter, tensor_bytes) = (placed.adapter, placed.tensor_bytes);
        Ok(Self { place: place.to_owned(), adapter, verification, written, card, tensor_bytes })
    }

    /// How well it predicts `text`, and how far it is from the original.
    pub(crate) fn measure(
        &self,
        source: &StoredModel,
        text: &ReadText,
        memory: Memory,
        progress: &dyn Progress,
    ) -> Result<EvaluationReport, Error> {
        let directory = self.place.join(DIRECTORY);
        let adapted = self.adapter.as_ref().map(|_| AdaptedModel::open(&self.written, &directory));
        let adapted = adapted.transpose()?;
        let models = Models { measured: &self.written, adapted: adapted.as_ref(), reference: Some(source) };
        measure(models, &text.windows.tokens, text.summary.clone(), memory, progress).map_err(|error| {
            match error {
                Error::Interrupted => Error::InterruptedMeasuring { path: self.place.clone() },
                error => error,
            }
        })
    }

    /// Writes what was measured into the card, and what a run has to show into its page; the record lists both.
    pub(crate) fn publish(&self, report: &Report, look: &Look<'_>) -> Result<(), Error> {
        let measured = report.evaluation.as_ref();
        let text =
            self.card.text(self.tensor_bytes, &weights_file(&self.place)?, self.adapter.as_ref(), measured);
        let mut record = Record::read(&self.place)?;
        unlist(&mut record, &self.place)?;
        record.files.insert(CARD.to_owned(), FileRecord::of_bytes(text.as_bytes()));
        let page = html::page(report, &look.at(&self.written, &record.files)?);
        replace(&self.place.join(CARD), text.as_bytes())?;
        replace(&self.place.join(REPORT), page.as_bytes())?;
        record.dated = vec![REPORT.to_owned()];
        record.write(&self.place)
    }

    /// Length of its files of weights.
    pub(crate) fn file_bytes(&self) -> Result<u64, Error> {
        Ok(self.written.checkpoint.file_bytes()?)
    }

    /// How large it is.
    pub(crate) fn size(&self, source: &StoredModel, plan: &Plan, outcome: &Outcome) -> Result<Size, Error> {
        let parameters = source.summary()?.parameters;
        let packed: u64 = plan
            .quantized()
            .flat_map(|(linear, scheme)| plan.format.layout(linear, scheme))
            .filter(|spec| !spec.name.ends_with("g_idx") && !spec.name.ends_with("_shape"))
            .map(|spec| spec.bytes())
            .sum();
        let quantized: u64 = outcome.rows.iter().map(|row| (row.shape[0] * row.shape[1]) as u64).sum();
        Ok(Size {
            bytes: self.file_bytes()?,
            original_bytes: source.checkpoint.file_bytes()?,
            bits_per_weight: self.tensor_bytes as f64 * 8.0 / parameters as f64,
            linear_bits_per_weight: if quantized == 0 { 0.0 } else { packed as f64 * 8.0 / quantized as f64 },
        })
    }
}

/// Takes the card and the page out of the record of an output that stands, until both are written again: whenever the process ends, what the
/// record lists is there.
fn unlist(record: &mut Record, place: &Path) -> Result<(), Error> {
    record.files.remove(CARD);
    record.dated.clear();
    record.write(place)
}

/// The one file of weights of a format that has a file of its own; otherwise nobody asks for it.
fn weights_file(directory: &Path) -> Result<String, Error> {
    Ok(GgufFile::find(directory)?
        .as_deref()
        .and_then(Path::file_name)
        .map_or_else(|| "FILE".to_owned(), |name| name.to_string_lossy().into_owned()))
}

/// Puts content in the place of a file: all of it or nothing.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<(), Error> {
    let mut file = ExportFile::create("--output", path)?;
    file.write(content)?;
    file.finish()
}
