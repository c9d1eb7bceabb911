//! Whether files are still what they were when a run began: what is made of two versions of one must not be written.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::error::FormatsError;

/// A checkpoint's files as they were: those that are open, and those that are read by name.
#[derive(Debug)]
pub struct Stamp {
    open: Vec<(PathBuf, File, Metadata)>,
    named: Vec<(PathBuf, Metadata)>,
}

impl Stamp {
    /// Of open files.
    pub(super) fn of(files: &[(PathBuf, File)]) -> Result<Self, FormatsError> {
        let stamp = |(path, file): &(PathBuf, File)| {
            let now = file.try_clone().and_then(|file| Ok((file.metadata()?, file)));
            now.map(|(before, file)| (path.clone(), file, before)).map_err(FormatsError::io(path))
        };
        Ok(Self { open: files.iter().map(stamp).collect::<Result<_, _>>()?, named: Vec::new() })
    }

    /// The same with files that are read by name; links are followed.
    ///
    /// # Errors
    /// The system's.
    pub fn with_files(mut self, files: impl Iterator<Item = PathBuf>) -> Result<Self, FormatsError> {
        for path in files {
            let now = path.metadata().map_err(FormatsError::io(&path))?;
            self.named.push((path, now));
        }
        Ok(self)
    }

    /// Fails where a file was written to or replaced since the stamp: what was read may then be of two versions of it.
    ///
    /// # Errors
    /// The first file that changed, and the system's.
    pub fn demand_unchanged(&self) -> Result<(), FormatsError> {
        let open = self.open.iter().map(|(path, file, before)| (path, file.metadata(), before));
        let named = self.named.iter().map(|(path, before)| (path, path.metadata(), before));
        for (path, now, before) in open.chain(named) {
            if is_another(&now.map_err(FormatsError::io(path))?, before) {
                return Err(FormatsError::malformed(path, "changed while it was read"));
            }
        }
        Ok(())
    }
}

/// Whether a file is not what it was. The time of its last change of any kind, unlike that of its content, cannot be set back, and is another
/// for a file in its place. Numbers of files are not compared: some file systems of networks give new ones at any time.
fn is_another(now: &Metadata, before: &Metadata) -> bool {
    let told =
        |file: &Metadata| (file.len(), file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec());
    told(now) != told(before)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn what_was_written_to_or_replaced_is_noticed_whatever_its_date_says() {
        let folder = tempfile::tempdir().unwrap();
        let [weights, beside] = ["model.safetensors", "tokenizer.json"].map(|name| folder.path().join(name));
        let date = SystemTime::UNIX_EPOCH + Duration::from_secs(1_500_000_000);
        let write = |path: &PathBuf, text: &str| {
            fs::write(path, text).unwrap();
            File::options().write(true).open(path).unwrap().set_modified(date).unwrap();
        };
        let stamp = || {
            write(&weights, "weights");
            write(&beside, "tokens");
            let open = [(weights.clone(), File::open(&weights).unwrap())];
            let stamp = Stamp::of(&open).unwrap().with_files([beside.clone()].into_iter()).unwrap();
            stamp.demand_unchanged().unwrap();
            // The clock of the file system ticks a few hundred times a second.
            std::thread::sleep(Duration::from_millis(20));
            stamp
        };
        let told = |stamp: Stamp, path: &PathBuf| {
            let message = stamp.demand_unchanged().unwrap_err().to_string();
            assert!(message.contains(path.to_str().unwrap()), "{message}");
        };
        let unchanged = stamp();
        fs::read(&beside).unwrap();
        unchanged.demand_unchanged().unwrap();
        let before = stamp();
        write(&weights, "WEIGHTS");
        told(before, &weights);
        let before = stamp();
        write(&folder.path().join("other"), "TOKENS");
        fs::rename(folder.path().join("other"), &beside).unwrap();
        told(before, &beside);
        let before = stamp();
        fs::remove_file(&beside).unwrap();
        told(before, &beside);
    }
}
