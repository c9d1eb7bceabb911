//! OUT/quantc.json: what was solved, as digests, so that an output can be proven right long after it was made.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use formats::side_files::CARD;
use formats::{FormatsError, files};
use ndarray::ArrayView2;
use quantizer::scheme::Scheme;
use quantizer::tensor::QuantizedTensor;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::export::ExportFile;
use crate::job::Budget;

/// Name of the record in an output directory.
pub const RECORD_FILE: &str = "quantc.json";
/// Largest record that is read, bytes: some hundred for each linear and tensor.
const MOST_RECORD: u64 = 1 << 28;

/// What an output must hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Version of the program that wrote it.
    pub version: String,
    /// Id of the format.
    pub format: String,
    /// The bound on its size that widths were chosen for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// Quantized linears by module path.
    pub linears: BTreeMap<String, LinearRecord>,
    /// SHA-256 of the bytes of every other tensor.
    pub tensors: BTreeMap<String, String>,
    /// Every other file of the output.
    pub files: BTreeMap<String, FileRecord>,
    /// Files that state times, and so are others in every run: they hold their own digests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dated: Vec<String>,
}

/// One quantized linear.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinearRecord {
    /// Its grid.
    pub scheme: Scheme,
    /// [`solution_digest`] of what the solver returned.
    pub digest: String,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// Length.
    pub bytes: u64,
    /// SHA-256 of the content.
    pub sha256: String,
}

impl Record {
    /// Reads OUT/quantc.json.
    ///
    /// # Errors
    /// No such file, or one that is not a record.
    pub fn read(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(RECORD_FILE);
        let text = match files::read_regular(&path, MOST_RECORD) {
            Ok(text) => text,
            Err(FormatsError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::NotSuitable {
                    path: directory.to_owned(),
                    problem: format!("there is no `{RECORD_FILE}`, so nothing says what was solved"),
                    hint: "`verify` works on outputs of `quantc quantize`; `inspect` and `evaluate` need no record",
                });
            }
            Err(error) => return Err(error.into()),
        };
        serde_json::from_slice(&text).map_err(|e| Error::Json { path, problem: e.to_string() })
    }

    /// Digest of all that it says but of files that tell about the output, and are written again once it was measured: the same for one
    /// output from its first record to its last.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub(crate) fn identity(&self) -> Result<String, Error> {
        let mut rest = Self { dated: Vec::new(), ..self.clone() };
        rest.files.remove(CARD);
        let json = serde_json::to_vec(&rest).map_err(|error| Error::Internal(error.to_string()))?;
        Ok(bytes_digest(&json))
    }

    /// Writes OUT/quantc.json.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, directory: &Path) -> Result<(), Error> {
        let path = directory.join(RECORD_FILE);
        let mut text = serde_json::to_string_pretty(self).map_err(|e| Error::Internal(e.to_string()))?;
        text.push('\n');
        // All of it or what was there before: an output stands without it only half.
        let mut file = ExportFile::create("--output", &path)?;
        file.write(text.as_bytes())?;
        file.finish()
    }
}

/// SHA-256 over the shape, the codes, the scales' bits and zero points of each row, and what minimums and products are stored: equal
/// exactly when two solutions hold the same values, whether a scale is stored once or for each row.
#[must_use]
pub fn solution_digest(tensor: &QuantizedTensor) -> String {
    let mut hash = Sha256::new();
    for extent in [tensor.out_features(), tensor.in_features()] {
        hash.update((extent as u64).to_le_bytes());
    }
    update_bytes(&mut hash, tensor.codes());
    for scale in &tensor.scales_by_row() {
        hash.update(scale.to_bits().to_le_bytes());
    }
    update_bytes(&mut hash, tensor.zero_points_by_row().view());
    let parts = [tensor.scale_parts(), tensor.minimum_parts()].into_iter().flatten();
    let parts = parts.flat_map(|parts| [parts.coarse.view(), parts.fine.view()]);
    for number in tensor.minimums().into_iter().chain(parts).flatten() {
        hash.update(number.to_bits().to_le_bytes());
    }
    hex(&hash.finalize())
}

/// SHA-256, as hexadecimal text, of what `read` gives from a place on, piece after piece, `length` bytes in all.
///
/// # Errors
/// Those of `read`.
pub(crate) fn digest_in_pieces<E>(
    length: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<String, E> {
    let size_of = |left: u64| usize::try_from(left).unwrap_or(PIECE).min(PIECE);
    let (mut hash, mut piece) = (Sha256::new(), vec![0; size_of(length)]);
    let mut first = 0;
    while first < length {
        let piece = &mut piece[..size_of(length - first)];
        read(first, piece)?;
        hash.update(&*piece);
        first += piece.len() as u64;
    }
    Ok(hex(&hash.finalize()))
}

/// Bytes of a tensor that are hashed at a time.
const PIECE: usize = 1 << 24;

/// SHA-256 of bytes, as hexadecimal text.
#[must_use]
pub fn bytes_digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn update_bytes(hash: &mut Sha256, values: ArrayView2<'_, u8>) {
    for row in values.rows() {
        match row.as_slice() {
            Some(bytes) => hash.update(bytes),
            None => row.iter().for_each(|&byte| hash.update([byte])),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        for nibble in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
        }
        text
    })
}

/// Length and SHA-256 of every file of a directory except the record, by path within it.
///
/// # Errors
/// The system's.
pub fn file_records(directory: &Path) -> Result<BTreeMap<String, FileRecord>, Error> {
    let names = file_names(directory)?.into_iter();
    names.map(|name| FileRecord::of(&directory.join(&name)).map(|record| (name, record))).collect()
}

/// Paths within a directory of all its files except the record.
///
/// # Errors
/// The system's.
pub fn file_names(directory: &Path) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    let mut open = vec![(directory.to_owned(), String::new())];
    while let Some((folder, prefix)) = open.pop() {
        for entry in std::fs::read_dir(&folder).map_err(Error::io(&folder))? {
            let entry = entry.map_err(Error::io(&folder))?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.file_type().map_err(Error::io(entry.path()))?.is_dir() {
                open.push((entry.path(), format!("{name}/")));
            } else if name != RECORD_FILE {
                names.push(name);
            }
        }
    }
    names.sort();
    Ok(names)
}

impl FileRecord {
    /// Of a file that has these bytes.
    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, sha256: bytes_digest(bytes) }
    }

    /// Reads and hashes a file, a part at a time.
    ///
    /// # Errors
    /// The system's.
    pub fn of(path: &Path) -> Result<Self, Error> {
        if !std::fs::metadata(path).map_err(Error::io(path))?.is_file() {
            // A pipe would wait to be opened, a device never end.
            let problem = std::io::Error::other("is not a regular file");
            return Err(Error::Io { path: path.to_owned(), source: problem });
        }
        let mut file = std::fs::File::open(path).map_err(Error::io(path))?;
        let mut hash = Sha256::new();
        let mut part = vec![0; 1 << 20];
        let mut bytes = 0;
        loop {
            let read = match file.read(&mut part) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                read => read.map_err(Error::io(path))?,
            };
            if read == 0 {
                return Ok(Self { bytes, sha256: hex(&hash.finalize()) });
            }
            hash.update(&part[..read]);
            bytes += read as u64;
        }
    }
}
