//! Resume: what a run has done so far, beside its output, for the same command to go on from.
//!
//! ```text
//! .OUT.journal/   job.json          what the run is made of, see `fingerprint`
//!                 text              text that the model wrote
//!                 widths            what each width of each stage would do
//!                 gradients         what is kept of them, for each layer
//!                 layer-00007       a whole layer: solutions, rows of the report, adapters, importance, checksums of the states
//!                 states-1-0        the residual streams behind the last whole layer, one file for each stream; two take turns
//!                 scales-0          scales of a track that have learned, or are learning
//!                 placed.json       outputs that stand in their places
//!                 done              the run is over, and the rest may go
//! ```
//!
//! All but the states are segments ([`formats::segment`]), which are there as a whole or not at all; states are synced before the layer that
//! vouches for them. Nothing else is kept: the outputs themselves are begun anew and filled from the journal, so that a process may die at
//! any moment. A run of several ranks ([`kernels::ranks`]) keeps no layers: nothing goes on from it. The same states are spilled here where memory does not hold them ([`calibration::activations`]). Two processes cannot have one journal: it is locked as the staging directories are. It goes when the run is done.

mod fingerprint;
mod layers;
mod phases;
mod states;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use calibration::activations::Room;
use formats::FormatsError;
use formats::checkpoint::Stamp;
use formats::files::{self, OwnDirectory};
use formats::output::hidden_beside;
use formats::segment::{Segment, SegmentWriter};
use kernels::ranks::Ranks;
use kernels::stripes::Store;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::job::QuantizeJob;
use crate::record::Record;
use crate::report::AdapterSummary;

pub(crate) use fingerprint::{Fingerprint, files as files_read};
pub(crate) use layers::{LayerEntry, Restored};
pub(crate) use phases::KeptGradients;
pub(crate) use states::{StateFile, StreamSums};

const JOB: &str = "job.json";
const PLACED: &str = "placed.json";
/// A file that says that nothing of the journal is needed any more.
const DONE: &str = "done";
/// Largest of both files, bytes.
const MOST_JSON: u64 = 64 << 20;

/// A run's journal, which nobody else has.
#[derive(Debug)]
pub(crate) struct Journal {
    directory: OwnDirectory,
    /// Layers that are whole.
    layers: usize,
    /// Whether the next run may go on from it.
    lasting: bool,
    /// Whether there is anything that the next run would go on from.
    holds: bool,
    /// Whether it held anything when the run began: then a command that is refused leaves it as it is.
    held: bool,
    /// Whether what an earlier run left goes once the job is known to be possible.
    stale: bool,
    placed: BTreeMap<PathBuf, Placed>,
    /// The checkpoint as it was when the run began.
    checkpoint: Option<Stamp>,
    /// Directories that were made for it, the innermost first.
    made: Vec<PathBuf>,
}

/// An output that stands in its place.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Placed {
    /// Its record's identity, by which it is known again.
    record: String,
    /// Length of all its tensors.
    pub(crate) tensor_bytes: u64,
    pub(crate) adapter: Option<AdapterSummary>,
}

impl Journal {
    /// The journal of a job's output, empty where there was none or where the job is to begin anew.
    pub(crate) fn claim(job: &QuantizeJob) -> Result<Self, Error> {
        Self::claim_at(job, place(job))
    }

    /// That of one of several ranks: rank 0's is in the journal's place, where nothing may be that an earlier run left; the others' are beside, and
    /// begin anew. All are gone when the run is over.
    pub(crate) fn claim_among(job: &QuantizeJob, ranks: &dyn Ranks) -> Result<Self, Error> {
        if ranks.is_alone() {
            return Self::claim(job);
        }
        let first = ranks.is_first();
        let ending = format!("journal-{}", ranks.rank());
        let (place, job) = match first {
            true => (place(job), job.clone()),
            false => (hidden_beside(&job.output, &ending), QuantizeJob { fresh: true, ..job.clone() }),
        };
        let mut journal = Self::claim_at(&job, place)?;
        if journal.holds {
            let problem =
                "is the journal of a run of one process, and several do not go on from it".to_owned();
            let hint = "give the command to one process, or begin anew with --fresh";
            return Err(Error::NotSuitable { path: journal.place().to_owned(), problem, hint });
        }
        journal.lasting = false;
        journal.be_done()?;
        Ok(journal)
    }

    fn claim_at(job: &QuantizeJob, place: PathBuf) -> Result<Self, Error> {
        let parents = place.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty());
        let made = parents.take_while(|parent| !parent.exists()).map(Path::to_owned).collect();
        let directory = OwnDirectory::claim(&place).map_err(|error| unwritable(&place, error))?;
        let mut journal = Self {
            directory,
            layers: 0,
            lasting: true,
            // Until it is known: what cannot be read is not thrown away.
            holds: true,
            held: false,
            stale: false,
            placed: BTreeMap::new(),
            checkpoint: None,
            made,
        };
        if journal.path(DONE).exists() {
            journal.erase()?;
        }
        if job.fresh {
            journal.stale = journal.path(JOB).exists();
            journal.holds = false;
            return Ok(journal);
        }
        if let Some(bytes) = files::read_own(&journal.path(PLACED), MOST_JSON)? {
            journal.placed = journal.parse(PLACED, &bytes)?;
        }
        while journal.path(&layers::name(journal.layers)).exists() {
            journal.layers += 1;
        }
        journal.remove_stray_layers()?;
        let phases = [phases::TEXT, phases::WIDTHS, phases::GRADIENTS];
        journal.holds = journal.layers > 0
            || !journal.placed.is_empty()
            || phases.iter().any(|name| journal.path(name).exists());
        journal.held = journal.holds;
        Ok(journal)
    }

    /// Fails where what the journal holds was done for another job; an empty one is this job's from here on.
    pub(crate) fn agree(&mut self, job: &Fingerprint) -> Result<(), Error> {
        if std::mem::take(&mut self.stale) {
            self.erase()?;
            self.be_done()?;
        }
        match files::read_own(&self.path(JOB), MOST_JSON)? {
            Some(bytes) if self.holds => {
                let changes = self.parse::<Fingerprint>(JOB, &bytes)?.changes(job);
                if changes.is_empty() {
                    return Ok(());
                }
                Err(Error::JournalOfAnother { path: self.directory.path().to_owned(), changes })
            }
            None if self.holds => Err(self.damaged(&format!("there is no `{JOB}`"))),
            _ => {
                let json = serde_json::to_vec_pretty(job).map_err(|e| Error::Internal(e.to_string()))?;
                Ok(files::replace(&self.path(JOB), &json)?)
            }
        }
    }

    /// Whole layers.
    pub(crate) fn layers(&self) -> usize {
        self.layers
    }

    /// Fails where there are more whole layers than the model has.
    pub(crate) fn demand_at_most(&self, layers: usize) -> Result<(), Error> {
        if self.layers <= layers {
            return Ok(());
        }
        Err(self.damaged(&format!("it has {} layers, the model {layers}", self.layers)))
    }

    /// Where it is.
    pub(crate) fn place(&self) -> &Path {
        self.directory.path()
    }

    /// Whether the same command would go on from something.
    pub(crate) fn holds_anything(&self) -> bool {
        self.holds
    }

    /// What is known of an output of this run that stands at `place` already.
    pub(crate) fn placed(&self, place: &Path) -> Option<&Placed> {
        let placed = self.placed.get(&absolute(place))?;
        let found = Record::read(place).and_then(|record| record.identity()).ok()?;
        (found == placed.record).then_some(placed)
    }

    /// Notes that the output in `staged` is about to stand at `place`.
    pub(crate) fn place_output(
        &mut self,
        place: &Path,
        staged: &Path,
        tensor_bytes: u64,
        adapter: Option<AdapterSummary>,
    ) -> Result<(), Error> {
        let record = Record::read(staged)?.identity()?;
        self.placed.insert(absolute(place), Placed { record, tensor_bytes, adapter });
        let json = serde_json::to_vec_pretty(&self.placed).map_err(|e| Error::Internal(e.to_string()))?;
        files::replace(&self.path(PLACED), &json)?;
        self.holds = self.lasting;
        Ok(())
    }

    /// A file for one stream's states behind a layer, where they are kept.
    pub(crate) fn states(&self, layer: usize, stream: usize) -> Result<Option<Arc<StateFile>>, Error> {
        let create = || StateFile::create(&self.path(&states::name(layer, stream))).map(Arc::new);
        self.lasting.then(create).transpose()
    }

    /// Room for what memory does not hold; it is gone when the process is.
    pub(crate) fn scratch(&self) -> Result<Arc<dyn Room>, Error> {
        Ok(Arc::new(states::Scratch::create(self.directory.path())?))
    }

    /// The same for bytes.
    pub(crate) fn store(&self) -> Result<Arc<dyn Store>, Error> {
        Ok(Arc::new(states::Scratch::create(self.directory.path())?))
    }

    /// Removes it: the run is done.
    pub(crate) fn remove(self) -> Result<(), Error> {
        self.erase()?;
        Ok(self.directory.remove()?)
    }

    /// Marks one that nothing goes on from, so that what is left of a killed run goes with the next.
    fn be_done(&self) -> Result<(), Error> {
        if self.lasting { Ok(()) } else { Ok(files::replace(&self.path(DONE), b"")?) }
    }

    /// Removes what is in it, as a mark says until all else is gone.
    fn erase(&self) -> Result<(), Error> {
        files::replace(&self.path(DONE), b"")?;
        for entry in std::fs::read_dir(self.place()).map_err(Error::io(self.place()))? {
            let entry = entry.map_err(Error::io(self.place()))?;
            if entry.file_name() != DONE {
                files::remove(&entry.path())?;
            }
        }
        Ok(files::remove(&self.path(DONE))?)
    }

    /// Lets it go when the value is dropped, unless an earlier run has left something in it.
    pub(crate) fn forget(&mut self) {
        self.holds = self.held;
    }

    /// Removes what a killed process had begun of layers; a whole one without those before it is damage.
    fn remove_stray_layers(&self) -> Result<(), Error> {
        let known: Vec<String> = (0..self.layers).map(layers::name).collect();
        for entry in std::fs::read_dir(self.place()).map_err(Error::io(self.place()))? {
            let name = entry.map_err(Error::io(self.place()))?.file_name().to_string_lossy().into_owned();
            if layers::is_whole(&name) && !known.contains(&name) {
                return Err(
                    self.damaged(&format!("`{name}` is there, and `{}` is not", layers::name(self.layers)))
                );
            }
            if name.starts_with(layers::PREFIX) && !known.contains(&name) {
                files::remove(&self.path(&name))?;
            }
        }
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn segment(&self, name: &str) -> Result<Option<Segment>, Error> {
        let path = self.path(name);
        Segment::open(&path).map_err(|error| self.damaged(&error.to_string()))
    }

    /// Takes in nothing more once the checkpoint is not as it was at `stamp`: what was made of it would be of two versions.
    pub(crate) fn watch(&mut self, stamp: Stamp) {
        self.checkpoint = Some(stamp);
    }

    /// Fails where the checkpoint has changed.
    pub(crate) fn demand_unchanged(&self) -> Result<(), Error> {
        Ok(self.checkpoint.as_ref().map_or(Ok(()), Stamp::demand_unchanged)?)
    }

    /// Ends a segment.
    fn finish(&self, writer: SegmentWriter, head: &impl Serialize) -> Result<(), Error> {
        self.demand_unchanged()?;
        Ok(writer.finish(head)?)
    }

    fn write(&mut self, name: &str) -> Result<SegmentWriter, Error> {
        Ok(SegmentWriter::create(&self.path(name))?)
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, name: &str, bytes: &[u8]) -> Result<T, Error> {
        serde_json::from_slice(bytes).map_err(|error| self.damaged(&format!("`{name}`: {error}")))
    }

    fn damaged(&self, problem: &str) -> Error {
        let path = self.directory.path().to_owned();
        Error::JournalDamaged { path, problem: problem.to_owned() }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if !self.holds && !self.stale {
            // What cannot be removed does no harm.
            let _ = self.directory.remove();
            // Directories that hold something stay.
            let _ = self.made.iter().try_for_each(std::fs::remove_dir);
        }
    }
}

/// Where a job's journal is: beside the output, or the directory of several, so that two runs that write there know of each other.
fn place(job: &QuantizeJob) -> PathBuf {
    hidden_beside(&job.output, "journal")
}

/// An output whose journal has no place: whoever reads that asked for the output.
fn unwritable(place: &Path, error: FormatsError) -> Error {
    let above = place.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match error {
        FormatsError::Io { source, .. } if source.kind() != std::io::ErrorKind::StorageFull => {
            let problem = format!("nothing can be written in {}: {source}", above.display());
            Error::Argument { flag: "--output", problem }
        }
        other => other.into(),
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
