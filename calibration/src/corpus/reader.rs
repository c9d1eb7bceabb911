//! Reads as much of a text as is asked for, and checks that it is UTF-8.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use crate::error::CalibrationError;

/// Bytes read at a time.
const PIECE: usize = 1 << 16;
/// Bytes that are read of a pipe.
const LONGEST_PIPE: u64 = 1 << 30;
/// U+FEFF in UTF-8.
const MARK: &[u8] = b"\xef\xbb\xbf";
/// Bytes of the longest line that is read; a longer one is no document.
const LONGEST_LINE: u64 = 1 << 28;

/// Where text is.
#[derive(Clone, Debug)]
pub(super) enum Source {
    Memory(String),
    File(PathBuf),
    /// Read by rows instead.
    Parquet(PathBuf),
}

impl Source {
    /// A regular file as it is, a pipe's whole content.
    pub(super) fn of(path: &Path) -> Result<Self, CalibrationError> {
        let fail = |source| CalibrationError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(fail)?;
        if file.metadata().map_err(fail)?.is_file() {
            let parquet = super::rows::is_parquet(path);
            return Ok(if parquet { Self::Parquet(path.to_owned()) } else { Self::File(path.to_owned()) });
        }
        let mut bytes = Vec::new();
        file.take(LONGEST_PIPE + 1).read_to_end(&mut bytes).map_err(fail)?;
        if bytes.len() as u64 > LONGEST_PIPE {
            let problem =
                format!("a pipe that gives more than {LONGEST_PIPE} bytes; put the text into a file");
            return Err(fail(std::io::Error::other(problem)));
        }
        String::from_utf8(bytes).map(Self::Memory).map_err(|error| {
            let offset = error.utf8_error().valid_up_to();
            let line = error.as_bytes()[..offset].iter().filter(|&&byte| byte == b'\n').count() + 1;
            CalibrationError::NotUtf8 { text: path.display().to_string(), line, offset }
        })
    }

    /// From behind the mark that some editors put before a text to say that it is UTF-8.
    /// Also how many bytes the mark has.
    fn open(&self) -> Result<(Box<dyn BufRead + '_>, usize), CalibrationError> {
        let mut reader: Box<dyn BufRead + '_> = match self {
            Self::Memory(text) => Box::new(Cursor::new(text.as_bytes())),
            Self::File(path) | Self::Parquet(path) => {
                let file =
                    File::open(path).map_err(|source| CalibrationError::Io { path: path.clone(), source })?;
                Box::new(BufReader::with_capacity(PIECE, file))
            }
        };
        let marked = reader.fill_buf().map_err(|e| self.failed(e))?.starts_with(MARK);
        let skipped = if marked { MARK.len() } else { 0 };
        reader.consume(skipped);
        Ok((reader, skipped))
    }

    fn failed(&self, source: std::io::Error) -> CalibrationError {
        match self {
            Self::Memory(_) => CalibrationError::Io { path: PathBuf::new(), source },
            Self::File(path) | Self::Parquet(path) => CalibrationError::Io { path: path.clone(), source },
        }
    }

    /// The first line that is not blank, or an empty one; what is not UTF-8 is replaced.
    pub(super) fn first_line(&self) -> Result<String, CalibrationError> {
        let (mut reader, _) = self.open()?;
        loop {
            let mut bytes = Vec::new();
            let limited = &mut reader.by_ref().take(LONGEST_LINE);
            let count = limited.read_until(b'\n', &mut bytes).map_err(|e| self.failed(e))?;
            let line = String::from_utf8_lossy(&bytes);
            if count == 0 || !line.trim().is_empty() {
                return Ok(line.into_owned());
            }
        }
    }
}

/// A text that grows from its start; every line end is `\n`.
pub(super) struct Text<'a> {
    name: &'a str,
    source: &'a Source,
    reader: Box<dyn BufRead + 'a>,
    text: String,
    characters: usize,
    /// Bytes of a character whose end was not read yet.
    partial: Vec<u8>,
    /// Bytes before those.
    bytes: usize,
    /// Line ends before those.
    lines: usize,
    ends_in_return: bool,
    exhausted: bool,
}

impl<'a> Text<'a> {
    pub(super) fn open(name: &'a str, source: &'a Source) -> Result<Self, CalibrationError> {
        let (reader, bytes) = source.open()?;
        Ok(Self {
            name,
            source,
            reader,
            text: String::new(),
            characters: 0,
            partial: Vec::new(),
            bytes,
            lines: 0,
            ends_in_return: false,
            exhausted: false,
        })
    }

    /// The first `characters` characters, or all where there are not so many.
    pub(super) fn prefix(&mut self, characters: usize) -> Result<&str, CalibrationError> {
        // One more tells whether there is more.
        while !self.exhausted && self.characters <= characters {
            self.grow()?;
        }
        let cut = self.text.char_indices().nth(characters).map_or(self.text.len(), |(offset, _)| offset);
        Ok(&self.text[..cut])
    }

    /// Whether the prefix of so many characters, which was asked for before, is all of the text.
    pub(super) fn is_complete(&self, characters: usize) -> bool {
        self.exhausted && self.characters <= characters
    }

    fn grow(&mut self) -> Result<(), CalibrationError> {
        let before = self.partial.len();
        let limited = &mut self.reader.by_ref().take(PIECE as u64);
        limited.read_to_end(&mut self.partial).map_err(|e| self.source.failed(e))?;
        self.exhausted = self.partial.len() == before;
        let piece = std::mem::take(&mut self.partial);
        let (valid, rest, broken) = match std::str::from_utf8(&piece) {
            Ok(text) => (text, &[][..], false),
            Err(error) => {
                let (valid, rest) = piece.split_at(error.valid_up_to());
                let broken = error.error_len().is_some() || self.exhausted;
                (std::str::from_utf8(valid).unwrap_or_default(), rest, broken)
            }
        };
        self.bytes += valid.len();
        self.lines += valid.matches('\n').count();
        if broken {
            let (text, line, offset) = (self.name.to_owned(), self.lines + 1, self.bytes);
            return Err(CalibrationError::NotUtf8 { text, line, offset });
        }
        self.partial = rest.to_vec();
        let start = self.text.len();
        let fresh = if self.ends_in_return { valid.strip_prefix('\n').unwrap_or(valid) } else { valid };
        if !valid.is_empty() {
            self.ends_in_return = valid.ends_with('\r');
        }
        if fresh.contains('\r') {
            self.text.push_str(&fresh.replace("\r\n", "\n").replace('\r', "\n"));
        } else {
            self.text.push_str(fresh);
        }
        self.characters += self.text[start..].chars().count();
        Ok(())
    }
}

/// Lines, one at a time.
pub(super) struct Lines<'a> {
    name: &'a str,
    source: &'a Source,
    reader: Box<dyn BufRead + 'a>,
    number: usize,
    bytes: usize,
}

impl<'a> Lines<'a> {
    pub(super) fn open(name: &'a str, source: &'a Source) -> Result<Self, CalibrationError> {
        let (reader, bytes) = source.open()?;
        Ok(Self { name, source, reader, number: 0, bytes })
    }

    /// The next line that is not blank, and its number, from 1.
    pub(super) fn next_line(&mut self) -> Result<Option<(usize, String)>, CalibrationError> {
        loop {
            let mut bytes = Vec::new();
            let limited = &mut self.reader.by_ref().take(LONGEST_LINE);
            let count = limited.read_until(b'\n', &mut bytes).map_err(|e| self.source.failed(e))?;
            if count == 0 {
                return Ok(None);
            }
            self.number += 1;
            let (text, line) = (self.name.to_owned(), self.number);
            if count as u64 == LONGEST_LINE {
                let problem = format!("longer than {LONGEST_LINE} bytes");
                return Err(CalibrationError::Line { text, line, problem });
            }
            let decoded = String::from_utf8(bytes).map_err(|error| {
                let offset = self.bytes + error.utf8_error().valid_up_to();
                CalibrationError::NotUtf8 { text, line, offset }
            })?;
            self.bytes += count;
            if !decoded.trim().is_empty() {
                return Ok(Some((line, decoded)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> String {
        let source = Source::Memory(text.to_owned());
        let mut reader = Text::open("test", &source).unwrap();
        reader.prefix(usize::MAX - 1).unwrap().to_owned()
    }

    #[test]
    fn line_ends_are_one_character_wherever_pieces_end() {
        assert_eq!(all("a\r\nb\rc\n\r\n"), "a\nb\nc\n\n");
        for filler in [PIECE - 2, PIECE - 1, PIECE, PIECE + 1] {
            let long = format!("{}\r\n\r\rü€\r\n", "x".repeat(filler));
            assert_eq!(all(&long), long.replace("\r\n", "\n").replace('\r', "\n"));
        }
    }

    #[test]
    fn a_byte_order_mark_is_no_text() {
        assert_eq!(all("\u{feff}a\u{feff}b"), "a\u{feff}b");
        let source = Source::Memory("\u{feff}{\"text\": 1}\n".to_owned());
        assert_eq!(source.first_line().unwrap(), "{\"text\": 1}\n");
    }

    #[test]
    fn prefixes_are_counted_in_characters() {
        let text = "ä€𝄞x".repeat(PIECE / 4);
        let source = Source::Memory(text.clone());
        let mut reader = Text::open("test", &source).unwrap();
        for count in [0, 1, 5, PIECE / 4, PIECE - 1] {
            let expected: String = text.chars().take(count).collect();
            assert_eq!(reader.prefix(count).unwrap(), expected);
            assert!(!reader.is_complete(count));
        }
        assert_eq!(reader.prefix(PIECE).unwrap(), text);
        assert!(reader.is_complete(PIECE));
    }

    #[test]
    fn bytes_that_are_no_text_are_named_by_line_and_offset() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text");
        for (before, bad) in [
            ("ab\nc", &b"\xff"[..]),
            (&"é\n".repeat(PIECE), b"\xc3"),
            ("x\n", b"\xe2\x28\xa1 tail"),
            ("\u{feff}x\ny", b"\xff"),
        ] {
            std::fs::write(&path, [before.as_bytes(), bad].concat()).unwrap();
            let source = Source::File(path.clone());
            let expected_line = before.matches('\n').count() + 1;
            let errors = [Text::open("text", &source).unwrap().prefix(1 << 30).unwrap_err(), {
                let mut lines = Lines::open("text", &source).unwrap();
                loop {
                    match lines.next_line() {
                        Ok(Some(_)) => {}
                        Ok(None) => panic!("the bad byte was passed over"),
                        Err(error) => break error,
                    }
                }
            }];
            for error in errors {
                match error {
                    CalibrationError::NotUtf8 { line, offset, .. } => {
                        assert_eq!((line, offset), (expected_line, before.len()));
                    }
                    other => panic!("{other}"),
                }
            }
        }
    }
}
