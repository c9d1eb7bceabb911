//! Hidden states in files: those behind a whole layer, which the next run may go on from, and those that memory has no room for.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use calibration::activations::Room;
use calibration::weights::SourceError;
use formats::files::{self, read_at, write_at};
use kernels::stripes::Store;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::record::bytes_digest;

/// The file of a stream's states behind a layer: the one before stays until this one is whole.
pub(super) fn name(layer: usize, stream: usize) -> String {
    format!("states-{}-{stream}", layer % 2)
}

/// SHA-256 of what was written at each place of a stream's file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StreamSums(BTreeMap<u64, String>);

/// Numbers in a file, each run of them with its checksum.
#[derive(Debug)]
pub(crate) struct StateFile {
    path: PathBuf,
    file: File,
    sums: Mutex<StreamSums>,
}

impl StateFile {
    /// An empty one.
    pub(super) fn create(path: &Path) -> Result<Self, Error> {
        files::remove(path)?;
        let file = files::create_new(path)?;
        Ok(Self { path: path.to_owned(), file, sums: Mutex::default() })
    }

    /// One that was written before.
    pub(super) fn open(path: &Path, sums: StreamSums) -> Result<Self, Error> {
        let file = File::open(path).map_err(Error::io(path))?;
        Ok(Self { path: path.to_owned(), file, sums: Mutex::new(sums) })
    }

    /// Makes it durable; gives its checksums.
    pub(crate) fn sync(&self) -> Result<StreamSums, Error> {
        files::sync(&self.file, &self.path)?;
        Ok(self.sums.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn sum(&self, place: u64) -> Option<String> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner).0.get(&place).cloned()
    }
}

impl Room for StateFile {
    fn write(&self, place: u64, numbers: &[f32]) -> Result<(), SourceError> {
        let bytes = encode(numbers);
        let sum = bytes_digest(&bytes);
        write_at(&self.file, &bytes, 4 * place).map_err(Error::io(&self.path))?;
        self.sums.lock().unwrap_or_else(PoisonError::into_inner).0.insert(place, sum);
        Ok(())
    }

    fn read(&self, place: u64, numbers: &mut [f32]) -> Result<(), SourceError> {
        let mut bytes = vec![0; 4 * numbers.len()];
        read_at(&self.file, &mut bytes, 4 * place).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                Error::JournalDamaged { path: self.path.clone(), problem: "states end too early".to_owned() }
            }
            _ => Error::io(&self.path)(error),
        })?;
        let expected = self.sum(place);
        let found = bytes_digest(&bytes);
        if expected.as_ref() != Some(&found) {
            let expected = expected.unwrap_or_else(|| "that of other places".to_owned());
            let problem = format!("states at {place} have SHA-256 {found}, expected {expected}");
            return Err(Error::JournalDamaged { path: self.path.clone(), problem }.into());
        }
        decode(&bytes, numbers);
        Ok(())
    }
}

/// A file without a name: the system takes it back when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Scratch {
    directory: PathBuf,
    file: File,
}

impl Scratch {
    pub(super) fn create(directory: &Path) -> Result<Self, Error> {
        let file = tempfile::tempfile_in(directory).map_err(Error::io(directory))?;
        Ok(Self { directory: directory.to_owned(), file })
    }
}

impl Room for Scratch {
    fn write(&self, place: u64, numbers: &[f32]) -> Result<(), SourceError> {
        let bytes = encode(numbers);
        Ok(write_at(&self.file, &bytes, 4 * place).map_err(Error::io(&self.directory))?)
    }

    fn read(&self, place: u64, numbers: &mut [f32]) -> Result<(), SourceError> {
        let mut bytes = vec![0; 4 * numbers.len()];
        read_at(&self.file, &mut bytes, 4 * place).map_err(Error::io(&self.directory))?;
        decode(&bytes, numbers);
        Ok(())
    }
}

impl Store for Scratch {
    fn write(&self, place: u64, bytes: &[u8]) -> io::Result<()> {
        write_at(&self.file, bytes, place)
    }

    fn read(&self, place: u64, bytes: &mut [u8]) -> io::Result<()> {
        read_at(&self.file, bytes, place)
    }
}

fn encode(numbers: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; 4 * numbers.len()];
    for (bytes, number) in bytes.as_chunks_mut().0.iter_mut().zip(numbers) {
        *bytes = number.to_le_bytes();
    }
    bytes
}

fn decode(bytes: &[u8], numbers: &mut [f32]) {
    for (number, bytes) in numbers.iter_mut().zip(bytes.as_chunks().0) {
        *number = f32::from_le_bytes(*bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_come_back_and_damage_is_noticed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(name(3, 0));
        let file = StateFile::create(&path).expect("it can be made");
        let (first, second) = ([1.5_f32, -0.0, f32::MAX], [7.25_f32; 5]);
        file.write(3, &second).expect("there is room");
        file.write(0, &first).expect("there is room");
        let sums = file.sync().expect("it can be synced");
        drop(file);
        let file = StateFile::open(&path, sums.clone()).expect("it is there");
        let mut numbers = [0.0; 3];
        file.read(0, &mut numbers).expect("they are there");
        assert_eq!(numbers.map(f32::to_bits), first.map(f32::to_bits));
        assert!(file.read(1, &mut numbers).is_err(), "nothing was written at 1");
        let mut bytes = std::fs::read(&path).expect("it is there");
        bytes[14] ^= 1;
        std::fs::write(&path, bytes).expect("it can be written");
        let file = StateFile::open(&path, sums).expect("it is there");
        assert!(file.read(3, &mut [0.0; 5]).expect_err("damaged").to_string().contains("SHA-256"));
    }
}
