//! Files that a run leaves beside its output: opened before the work, so that a path that cannot be written is no late surprise, and
//! whole or not there.

use std::fs::{File, TryLockError};
use std::io::{BufWriter, ErrorKind, Stdout, Write};
use std::path::{Path, PathBuf};

use formats::files;
use formats::output::hidden_beside;

use crate::error::Error;
use crate::quantize::resolved;

/// A file that is being written.
#[derive(Debug)]
pub struct ExportFile {
    path: PathBuf,
    sink: Sink,
}

#[derive(Debug)]
enum Sink {
    /// Beside its place, renamed at the end.
    Staged(BufWriter<File>, Staged),
    /// A pipe or a device, which is written as it is.
    Direct(BufWriter<File>),
    /// Of this process.
    StandardOutput(BufWriter<Stdout>),
}

/// `.NAME.new` beside a file, of one process at a time; what a killed one left is written over.
#[derive(Debug)]
struct Staged(PathBuf);

impl Drop for Staged {
    fn drop(&mut self) {
        // It has been renamed, or is written over the next time.
        let _ = files::remove(&self.0);
    }
}

impl ExportFile {
    /// Opens `path`, which `flag` gave.
    ///
    /// # Errors
    /// A directory, a path in a directory that does not exist, or one that cannot be written.
    pub fn create(flag: &'static str, path: &Path) -> Result<Self, Error> {
        let fail = |source: std::io::Error| Error::Argument {
            flag,
            // Not the whole error: it names a temporary file.
            problem: format!("cannot write `{}`: {}", path.display(), source.kind()),
        };
        // A link is written through, not replaced.
        let real = resolved(path);
        let sink = match std::fs::metadata(&real) {
            Ok(found) if found.is_dir() => {
                return Err(Error::Argument {
                    flag,
                    problem: format!("`{}` is a directory, expected a file", path.display()),
                });
            }
            Ok(found) if !found.is_file() => {
                let file = File::options().write(true).open(&real).map_err(fail)?;
                Sink::Direct(BufWriter::new(file))
            }
            _ => {
                let staged = hidden_beside(&real, "new");
                let options = File::options().write(true).create(true).truncate(false).open(&staged);
                let file = options.map_err(fail)?;
                if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
                    let problem = format!("another process is writing `{}`", path.display());
                    return Err(Error::Argument { flag, problem });
                }
                let staged = Staged(staged);
                file.set_len(0).map_err(fail)?;
                Sink::Staged(BufWriter::new(file), staged)
            }
        };
        Ok(Self { path: real, sink })
    }

    /// Standard output in the place of a file.
    #[must_use]
    pub fn standard_output() -> Self {
        Self { path: "standard output".into(), sink: Sink::StandardOutput(BufWriter::new(std::io::stdout())) }
    }

    /// Whether it is that, where nothing else may be written then.
    #[must_use]
    pub fn is_standard_output(&self) -> bool {
        matches!(self.sink, Sink::StandardOutput(_))
    }

    /// Fails for a file in a directory that is going to be put in its place as a whole.
    ///
    /// # Errors
    /// As said.
    pub fn demand_outside(&self, flag: &'static str, output: &Path) -> Result<(), Error> {
        if matches!(self.sink, Sink::Staged(..)) && resolved(&self.path).starts_with(resolved(output)) {
            let problem = format!("`{}` is in the output, which is written as a whole", self.path.display());
            return Err(Error::Argument { flag, problem });
        }
        Ok(())
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let written = match &mut self.sink {
            Sink::Staged(file, _) => file.write_all(bytes),
            Sink::Direct(file) => file.write_all(bytes),
            Sink::StandardOutput(output) => until_closed(output.write_all(bytes)),
        };
        written.map_err(Error::io(&self.path))
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// The system's.
    pub fn finish(self) -> Result<(), Error> {
        match self.sink {
            Sink::Direct(mut file) => file.flush().map_err(Error::io(&self.path)),
            Sink::StandardOutput(mut output) => until_closed(output.flush()).map_err(Error::io(&self.path)),
            Sink::Staged(file, staged) => {
                let file = file.into_inner().map_err(|e| Error::io(&self.path)(e.into_error()))?;
                files::sync(&file, &staged.0)?;
                Ok(files::rename(&staged.0, &self.path)?)
            }
        }
    }
}

/// A closed pipe is the end of interest, no failure.
fn until_closed(written: std::io::Result<()>) -> std::io::Result<()> {
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_whole_and_a_link_stays_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let (file, link) = (folder.path().join("report.json"), folder.path().join("link.json"));
        std::fs::write(&file, "old").expect("a file");
        std::os::unix::fs::symlink(&file, &link).expect("a link");
        let mut export = ExportFile::create("--export-json", &link).expect("it can be written");
        export.write(b"new").expect("there is room");
        assert_eq!(std::fs::read(&file).expect("it is there"), b"old");
        export.finish().expect("it can be renamed");
        assert_eq!(std::fs::read(&file).expect("it is there"), b"new");
        assert!(link.symlink_metadata().expect("it is there").is_symlink());
    }
}
