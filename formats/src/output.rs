//! The output directory: written beside its place, renamed into it, and gone without a trace when anything fails.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::error::FormatsError;

/// The file that marks a directory as an output of ours.
const RECORD: &str = "quantc.json";

/// An output that is being written.
#[derive(Debug)]
pub struct OutputDirectory {
    target: PathBuf,
    parent: PathBuf,
    staging: TempDir,
    /// Held while the staging directory is in use, so that what a killed process left can be told from what a running one writes.
    #[cfg(unix)]
    _lock: fs::File,
    replace: bool,
}

/// Characters drawn for the name of a staging directory.
const DRAWN: usize = 8;

/// Age from which a staging directory that nobody holds counts as left behind: longer than it takes from making one to holding it.
#[cfg(unix)]
const LEFT_BEHIND: std::time::Duration = std::time::Duration::from_secs(10);

impl OutputDirectory {
    /// Begins an output at `target`, whose parent directories are created.
    ///
    /// # Errors
    /// The system's, and a target that exists while `replace` is false.
    pub fn create(target: &Path, replace: bool) -> Result<Self, FormatsError> {
        Self::check(target, replace)?;
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        fs::create_dir_all(&parent).map_err(FormatsError::io(&parent))?;
        let name =
            target.file_name().map_or_else(|| "output".into(), |name| name.to_string_lossy().into_owned());
        let prefix = format!(".{name}.partial-");
        #[cfg(unix)]
        sweep(&parent, &prefix);
        let staging = tempfile::Builder::new()
            .prefix(&prefix)
            .rand_bytes(DRAWN)
            .tempdir_in(&parent)
            .map_err(FormatsError::io(&parent))?;
        // Temporary directories are private; an output is as readable as any other.
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let readable = fs::Permissions::from_mode(0o755);
            fs::set_permissions(staging.path(), readable).map_err(FormatsError::io(staging.path()))?;
        }
        #[cfg(unix)]
        let _lock = {
            let directory = fs::File::open(staging.path()).map_err(FormatsError::io(staging.path()))?;
            // A file system without locks is no reason to refuse the work: then nothing is swept either.
            let _ = directory.try_lock();
            directory
        };
        Ok(Self {
            target: target.to_owned(),
            parent,
            staging,
            #[cfg(unix)]
            _lock,
            replace,
        })
    }

    /// Fails when an output at `target` would be refused. What is replaced is an output of ours or an empty directory, never an
    /// original or whatever else has the misspelled name.
    ///
    /// # Errors
    /// A target that exists while `replace` is false, or that is not ours to replace.
    pub fn check(target: &Path, replace: bool) -> Result<(), FormatsError> {
        let Ok(found) = fs::symlink_metadata(target) else { return Ok(()) };
        if !replace {
            return Err(FormatsError::Exists { path: target.to_owned() });
        }
        let not_ours = |found: String| FormatsError::NotOurs { path: target.to_owned(), found };
        if !found.is_dir() || target.file_name().is_none() {
            return Err(not_ours("it is no output directory".to_owned()));
        }
        let mut stranger = None;
        for entry in fs::read_dir(target).map_err(FormatsError::io(target))? {
            let name = entry.map_err(FormatsError::io(target))?.file_name();
            if name == RECORD {
                return Ok(());
            }
            stranger = Some(name.to_string_lossy().into_owned());
        }
        stranger.map_or(Ok(()), |name| Err(not_ours(format!("it holds `{name}` and no `{RECORD}`"))))
    }

    /// Where files are written until [`OutputDirectory::commit`].
    #[must_use]
    pub fn path(&self) -> &Path {
        self.staging.path()
    }

    /// Puts the output in its place; an old one goes only after the new one stands there.
    ///
    /// # Errors
    /// The system's, and a target that somebody made meanwhile.
    pub fn commit(self) -> Result<(), FormatsError> {
        Self::check(&self.target, self.replace)?;
        sync_directory(self.staging.path())?;
        let old = match fs::symlink_metadata(&self.target) {
            Err(_) => None,
            Ok(_) => {
                let aside = tempfile::Builder::new()
                    .prefix(".replaced-")
                    .tempdir_in(&self.parent)
                    .map_err(FormatsError::io(&self.parent))?;
                fs::rename(&self.target, aside.path().join("old")).map_err(FormatsError::io(&self.target))?;
                Some(aside)
            }
        };
        let staged = self.staging.path().to_owned();
        if let Err(source) = fs::rename(&staged, &self.target) {
            if let Some(aside) = &old {
                // Put the old one back; if that fails too, it stays aside and nothing is lost.
                if fs::rename(aside.path().join("old"), &self.target).is_err() {
                    let _ = old.map(TempDir::keep);
                }
            }
            return Err(FormatsError::Io { path: self.target, source });
        }
        let _ = self.staging.keep();
        sync_directory(&self.parent)
    }
}

/// Removes staging directories that killed processes left: nobody holds their locks. What cannot be removed does no harm.
#[cfg(unix)]
fn sweep(parent: &Path, prefix: &str) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(drawn) = name.to_str().and_then(|name| name.strip_prefix(prefix)) else { continue };
        let Ok(found) = entry.metadata() else { continue };
        // Only what was named and made as staging directories are: a pipe of that name would wait to be opened, a link lead elsewhere.
        if drawn.len() != DRAWN || !drawn.bytes().all(|byte| byte.is_ascii_alphanumeric()) || !found.is_dir()
        {
            continue;
        }
        let old = found.modified().is_ok_and(|time| time.elapsed().is_ok_and(|age| age > LEFT_BEHIND));
        let Ok(directory) = fs::File::open(entry.path()) else { continue };
        if old && directory.try_lock().is_ok() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Makes the entries of a directory durable, where the system can.
fn sync_directory(path: &Path) -> Result<(), FormatsError> {
    #[cfg(unix)]
    {
        fs::File::open(path).and_then(|directory| directory.sync_all()).map_err(FormatsError::io(path))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn an_output_appears_at_once_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("deep/out");
        let output = OutputDirectory::create(&target, false).unwrap();
        fs::write(output.path().join("file"), "new").unwrap();
        assert!(!target.exists());
        drop(output);
        assert_eq!(names(&folder.path().join("deep")), Vec::<String>::new());
        let output = OutputDirectory::create(&target, false).unwrap();
        fs::write(output.path().join("file"), "new").unwrap();
        output.commit().unwrap();
        assert_eq!(names(&folder.path().join("deep")), ["out"]);
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "new");
    }

    #[cfg(unix)]
    #[test]
    fn what_a_killed_process_left_goes_and_what_a_running_one_writes_stays() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
        let age = |path: &Path| fs::File::open(path).unwrap().set_modified(long_ago).unwrap();
        let left = folder.path().join(".out.partial-AbCd0123");
        let fresh = folder.path().join(".out.partial-fresh012");
        let other = folder.path().join(".others.partial-AbCd0123");
        let named = folder.path().join(".out.partial-of-mine");
        for path in [&left, &fresh, &other, &named] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("model.safetensors"), "half").unwrap();
        }
        let running = OutputDirectory::create(&target, false).unwrap();
        for path in [left.as_path(), &other, &named, running.path()] {
            age(path);
        }
        // Opening a pipe that nobody writes to would never end.
        let pipe = folder.path().join(".out.partial-pipe0123");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let second = OutputDirectory::create(&target, false).unwrap();
        assert!(!left.exists());
        assert!(
            named.exists()
                && fresh.exists()
                && other.exists()
                && running.path().exists()
                && second.path().exists()
        );
    }

    #[test]
    fn an_existing_output_is_replaced_only_when_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("old"), "old").unwrap();
        assert!(matches!(OutputDirectory::create(&target, false), Err(FormatsError::Exists { .. })));
        assert!(matches!(OutputDirectory::create(&target, true), Err(FormatsError::NotOurs { .. })));
        fs::write(target.join(RECORD), "{}").unwrap();
        let output = OutputDirectory::create(&target, true).unwrap();
        fs::write(output.path().join("new"), "new").unwrap();
        assert_eq!(names(&target), ["old", RECORD]);
        output.commit().unwrap();
        assert_eq!(names(&target), ["new"]);
        assert_eq!(names(folder.path()), ["out"]);
    }
}
