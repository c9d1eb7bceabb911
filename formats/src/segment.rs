//! Segments: what a journal is made of. A file of parts, arrays of bytes, and a head in JSON that says what they are; with a checksum, and
//! written so that it is there as a whole or not at all.
//!
//! ```text
//! magic, 8 bytes | parts | head | lengths of the parts, u64 each | number of parts, u64 | length of the head, u64 | SHA-256 of all before
//! ```
//!
//! Lengths stand at the end, so that parts are written as they come and none is held. A reader hashes the file before it believes a byte.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::error::FormatsError;
use crate::files::{self, read_at, write_at};

const MAGIC: &[u8; 8] = b"quantcj1";
/// Length of a checksum.
const SUM: u64 = 32;
/// Numbers before it, without those of the parts.
const ENDING: u64 = 16;
/// Bytes hashed at a time.
const PIECE: usize = 1 << 20;

/// A segment that is being written.
#[derive(Debug)]
pub struct SegmentWriter {
    path: PathBuf,
    staged: PathBuf,
    file: File,
    hash: Sha256,
    end: u64,
    parts: Vec<u64>,
}

/// A segment that was found whole.
#[derive(Debug)]
pub struct Segment {
    path: PathBuf,
    file: File,
    /// Places and lengths.
    parts: Vec<(u64, u64)>,
    head: Vec<u8>,
}

impl SegmentWriter {
    /// Begins a segment that will stand at `path`.
    ///
    /// # Errors
    /// The system's.
    pub fn create(path: &Path) -> Result<Self, FormatsError> {
        let staged = files::beside(path);
        files::remove(&staged)?;
        let file = files::create_new(&staged)?;
        let path = path.to_owned();
        let mut writer = Self { path, staged, file, hash: Sha256::new(), end: 0, parts: Vec::new() };
        writer.append(MAGIC)?;
        Ok(writer)
    }

    /// Adds a part; returns its number.
    ///
    /// # Errors
    /// The system's.
    pub fn put(&mut self, bytes: &[u8]) -> Result<usize, FormatsError> {
        self.append(bytes)?;
        self.parts.push(bytes.len() as u64);
        Ok(self.parts.len() - 1)
    }

    /// Ends it: durably in its place.
    ///
    /// # Errors
    /// The system's, and a head that JSON cannot say.
    pub fn finish(mut self, head: &impl Serialize) -> Result<(), FormatsError> {
        let head = serde_json::to_vec(head)
            .map_err(|problem| FormatsError::malformed(&self.path, problem.to_string()))?;
        self.append(&head)?;
        let parts = std::mem::take(&mut self.parts);
        let numbers = parts.iter().copied().chain([parts.len() as u64, head.len() as u64]);
        let numbers: Vec<u8> = numbers.flat_map(u64::to_le_bytes).collect();
        self.append(&numbers)?;
        let sum = self.hash.clone().finalize();
        write_at(&self.file, &sum, self.end).map_err(FormatsError::io(&self.staged))?;
        files::sync(&self.file, &self.staged)?;
        files::rename(&self.staged, &self.path)?;
        files::sync_directory(self.path.parent().unwrap_or(Path::new(".")))
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), FormatsError> {
        write_at(&self.file, bytes, self.end).map_err(FormatsError::io(&self.staged))?;
        self.hash.update(bytes);
        self.end += bytes.len() as u64;
        Ok(())
    }
}

impl Segment {
    /// Opens the segment at `path` and checks every byte of it; none where there is none.
    ///
    /// # Errors
    /// The system's, and a file that is not what was written.
    pub fn open(path: &Path) -> Result<Option<Self>, FormatsError> {
        let file = match File::open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(FormatsError::io(path))?,
        };
        let length = file.metadata().map_err(FormatsError::io(path))?.len();
        let bad = |problem: &str| FormatsError::malformed(path, format!("is no whole segment: {problem}"));
        let least = MAGIC.len() as u64 + ENDING + SUM;
        if length < least {
            return Err(bad(&format!("it has {length} bytes, {least} are the least")));
        }
        let end = length - SUM;
        let mut magic = [0; MAGIC.len()];
        read_at(&file, &mut magic, 0).map_err(FormatsError::io(path))?;
        if magic != *MAGIC {
            return Err(bad("it does not begin as one"));
        }
        let mut hash = Sha256::new();
        let mut piece = vec![0; PIECE];
        let mut place = 0;
        while place < end {
            let piece = &mut piece[..PIECE.min((end - place) as usize)];
            read_at(&file, piece, place).map_err(FormatsError::io(path))?;
            hash.update(&*piece);
            place += piece.len() as u64;
        }
        let mut sum = [0; SUM as usize];
        read_at(&file, &mut sum, end).map_err(FormatsError::io(path))?;
        if hash.finalize()[..] != sum {
            return Err(bad("its SHA-256 is another"));
        }
        // From here on it is what somebody wrote; only the lengths are still to be believed.
        let number_at = |place: u64| {
            let mut bytes = [0; 8];
            read_at(&file, &mut bytes, place).map(|()| u64::from_le_bytes(bytes))
        };
        let head = number_at(end - 8).map_err(FormatsError::io(path))?;
        let count = number_at(end - 16).map_err(FormatsError::io(path))?;
        let lengths = (end - ENDING - MAGIC.len() as u64) / 8;
        if count > lengths {
            return Err(bad(&format!("it lists {count} parts")));
        }
        let table = end - ENDING - 8 * count;
        let mut parts = Vec::new();
        let mut place = MAGIC.len() as u64;
        for part in 0..count {
            let bytes = number_at(table + 8 * part).map_err(FormatsError::io(path))?;
            parts.push((place, bytes));
            place = place.saturating_add(bytes);
        }
        if place.saturating_add(head) != table {
            return Err(bad("its parts do not fill it"));
        }
        let mut text = vec![0; head as usize];
        read_at(&file, &mut text, place).map_err(FormatsError::io(path))?;
        Ok(Some(Self { path: path.to_owned(), file, parts, head: text }))
    }

    /// What it says of its parts.
    ///
    /// # Errors
    /// JSON that is no such thing.
    pub fn head<T: DeserializeOwned>(&self) -> Result<T, FormatsError> {
        serde_json::from_slice(&self.head).map_err(|problem| self.malformed(problem.to_string()))
    }

    /// A part.
    ///
    /// # Errors
    /// The system's, and a number that no part has.
    pub fn part(&self, number: usize) -> Result<Vec<u8>, FormatsError> {
        let Some(&(place, bytes)) = self.parts.get(number) else {
            return Err(self.malformed(format!("has {} parts and no part {number}", self.parts.len())));
        };
        let mut part = vec![0; bytes as usize];
        read_at(&self.file, &mut part, place).map_err(FormatsError::io(&self.path))?;
        Ok(part)
    }

    /// An error about its content.
    #[must_use]
    pub fn malformed(&self, problem: impl Into<String>) -> FormatsError {
        FormatsError::malformed(&self.path, problem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_back_and_any_damage_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("layer-0");
        assert!(Segment::open(&path).unwrap().is_none());
        let parts = [vec![], vec![7; 3], (0..=255).collect::<Vec<u8>>()];
        let mut writer = SegmentWriter::create(&path).unwrap();
        for (number, part) in parts.iter().enumerate() {
            assert_eq!(writer.put(part).unwrap(), number);
        }
        assert!(!path.exists());
        writer.finish(&("head", 0.1 + 0.2)).unwrap();
        let segment = Segment::open(&path).unwrap().unwrap();
        assert_eq!(segment.head::<(String, f64)>().unwrap(), ("head".to_owned(), 0.1 + 0.2));
        for (number, part) in parts.iter().enumerate() {
            assert_eq!(segment.part(number).unwrap(), *part);
        }
        assert!(segment.part(3).unwrap_err().to_string().contains("no part 3"));
        let whole = std::fs::read(&path).unwrap();
        for place in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[place] ^= 1;
            std::fs::write(&path, damaged).unwrap();
            assert!(Segment::open(&path).is_err(), "byte {place}");
        }
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(Segment::open(&path).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused_even_under_a_right_checksum() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("layer-0");
        for (count, head) in [(u64::MAX, 0), (1, u64::MAX), (0, 9), (1, 1)] {
            let mut bytes = MAGIC.to_vec();
            bytes.extend([0; 16]);
            bytes.extend([count, head].into_iter().flat_map(u64::to_le_bytes));
            bytes.extend(Sha256::digest(&bytes));
            std::fs::write(&path, bytes).unwrap();
            assert!(Segment::open(&path).is_err(), "{count} {head}");
        }
    }
}
