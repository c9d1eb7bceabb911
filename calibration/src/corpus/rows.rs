//! Rows of a Parquet file, as the JSON objects that lines of text are.
//!
//! Only the columns of documents are read, row group by row group; pages in Snappy, zstd, gzip or none of these.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::{Type, TypePtr};
use serde_json::{Map, Value};

use crate::error::CalibrationError;

/// First bytes of every Parquet file.
const MAGIC: &[u8; 4] = b"PAR1";
/// Columns that hold documents; the first that there is counts, as in JSON lines.
const COLUMNS: [&str; 3] = ["text", "messages", "input_ids"];
/// Bytes of the largest column of a row group that is read, unpacked.
const LARGEST_COLUMN: i64 = 4 << 30;

/// Whether a regular file is of this kind.
pub(super) fn is_parquet(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *MAGIC
}

/// Rows, one at a time.
pub(super) struct Rows {
    name: String,
    rows: RowIter<'static>,
    number: usize,
}

impl Rows {
    pub(super) fn open(name: &str, path: &Path) -> Result<Self, CalibrationError> {
        let file =
            File::open(path).map_err(|source| CalibrationError::Io { path: PathBuf::from(path), source })?;
        let fail = |problem: String| CalibrationError::Parquet { text: name.to_owned(), problem };
        let rows = guarded(|| {
            let reader = SerializedFileReader::new(file).map_err(|e| e.to_string())?;
            let metadata = reader.metadata();
            let columns = metadata.row_groups().iter().flat_map(RowGroupMetaData::columns);
            if columns.clone().any(|column| column.uncompressed_size() > LARGEST_COLUMN) {
                return Err(format!("has a column of more than {LARGEST_COLUMN} bytes in a row group"));
            }
            let schema = metadata.file_metadata().schema();
            let column = |name: &str| schema.get_fields().iter().find(|field| field.name() == name).cloned();
            let Some(wanted) = COLUMNS.iter().find_map(|name| column(name)) else {
                let names: Vec<&str> =
                    schema.get_fields().iter().map(|field| field.name()).take(20).collect();
                return Err(format!(
                    "expected a column `text`, `messages` or `input_ids`, found {}",
                    names.join(", ")
                ));
            };
            let projection = projection(schema.name(), wanted).map_err(|e| e.to_string())?;
            RowIter::from_file_into(Box::new(reader)).project(Some(projection)).map_err(|e| e.to_string())
        });
        Ok(Self { name: name.to_owned(), rows: rows.map_err(fail)?, number: 0 })
    }

    /// The next row as the JSON object of a document, and its number, from 1.
    pub(super) fn next_row(&mut self) -> Result<Option<(usize, String)>, CalibrationError> {
        let rows = &mut self.rows;
        let row = guarded(|| rows.next().transpose().map_err(|e| e.to_string()));
        let row = row.map_err(|problem| CalibrationError::Parquet {
            text: self.name.clone(),
            problem: format!("row {}: {problem}", self.number + 1),
        })?;
        self.number += 1;
        Ok(row.map(|row| (self.number, object(&row).to_string())))
    }
}

/// The crate ends in a panic where some damaged files contradict themselves.
fn guarded<T>(read: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    crate::foreign::call(read).unwrap_or_else(|_| Err("is damaged".to_owned()))
}

/// One column of the file alone.
fn projection(schema: &str, column: TypePtr) -> Result<Type, ParquetError> {
    Type::group_type_builder(schema).with_fields(vec![Arc::clone(&column)]).build()
}

fn object(row: &Row) -> Value {
    let fields = row.get_column_iter().map(|(name, field)| (name.clone(), value(field)));
    Value::Object(fields.collect::<Map<_, _>>())
}

fn value(field: &Field) -> Value {
    match field {
        Field::Bool(found) => (*found).into(),
        Field::Byte(found) => (*found).into(),
        Field::Short(found) => (*found).into(),
        Field::Int(found) => (*found).into(),
        Field::Long(found) => (*found).into(),
        Field::UByte(found) => (*found).into(),
        Field::UShort(found) => (*found).into(),
        Field::UInt(found) => (*found).into(),
        Field::ULong(found) => (*found).into(),
        Field::Float(found) => (*found).into(),
        Field::Double(found) => (*found).into(),
        Field::Str(found) => found.as_str().into(),
        // Some writers do not say that bytes are text.
        Field::Bytes(found) => std::str::from_utf8(found.data()).map_or(Value::Null, Value::from),
        Field::Group(row) => object(row),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        // What documents have no use for.
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Corpus, Document};
    use super::*;

    fn data(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/texts").join(name)
    }

    fn rows(path: &Path) -> Result<Vec<String>, CalibrationError> {
        let mut rows = Rows::open("rows", path)?;
        let mut found = Vec::new();
        while let Some((number, row)) = rows.next_row()? {
            found.push(row);
            assert_eq!(number, found.len());
        }
        Ok(found)
    }

    #[test]
    fn rows_are_the_lines_that_the_same_documents_have() {
        for (packed, lines) in [
            ("zstd.parquet", "text.jsonl"),
            ("snappy.parquet", "messages.jsonl"),
            ("gzip.parquet", "ids.jsonl"),
        ] {
            assert!(is_parquet(&data(packed)) && !is_parquet(&data(lines)));
            let found = rows(&data(packed)).unwrap();
            let expected = std::fs::read_to_string(data(lines)).unwrap();
            let parse = |line: &str| serde_json::from_str::<Value>(line).unwrap();
            let expected: Vec<Value> = expected.lines().map(parse).collect();
            assert!(expected.len() >= 15);
            assert_eq!(found.iter().map(|row| parse(row)).collect::<Vec<_>>(), expected, "{packed}");
            let corpus = Corpus::read(&data(packed)).unwrap();
            assert!(matches!(
                (corpus.document(1, &found[0]).unwrap(), packed.as_bytes()[0]),
                (Document::Text(_), b'z') | (Document::Messages(_), b's') | (Document::Tokens(_), b'g')
            ));
        }
        let error = rows(&data("other.parquet")).unwrap_err().to_string();
        assert!(error.contains("`text`") && error.contains("prompt"), "{error}");
    }

    #[test]
    fn damaged_files_are_refused_or_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("damaged.parquet");
        for name in ["zstd.parquet", "snappy.parquet", "gzip.parquet"] {
            let whole = std::fs::read(data(name)).unwrap();
            for keep in [4, 12, whole.len() / 2, whole.len() - 1] {
                std::fs::write(&path, &whole[..keep]).unwrap();
                assert!(rows(&path).is_err(), "{keep} bytes of {name}");
            }
            let mut random = kernels::random::SplitMix::new(1);
            for _ in 0..100 {
                let mut bytes = whole.clone();
                let at = random.below(bytes.len());
                bytes[at] ^= 1 << random.below(8);
                std::fs::write(&path, &bytes).unwrap();
                // Whatever comes, it comes as a value.
                let _ = rows(&path);
            }
        }
    }
}
