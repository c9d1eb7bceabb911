//! The output directory: written beside its place, renamed into it, and gone without a trace when anything fails.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::FormatsError;
use crate::files::{self, OwnDirectory};

/// The file that marks a directory as an output of ours.
const RECORD: &str = "quantc.json";

/// An output that is being written.
#[derive(Debug)]
pub struct OutputDirectory {
    target: PathBuf,
    parent: PathBuf,
    staging: Staging,
    replace: bool,
}

/// Where it is written: `.NAME.partial` beside its place, one for each place, so that two processes cannot write one output. What a killed
/// process left there goes when the next one begins.
#[derive(Debug)]
struct Staging {
    directory: OwnDirectory,
    /// Whether it has become the output.
    moved: bool,
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.moved {
            // What cannot be removed goes when the output is written the next time.
            let _ = self.directory.remove();
        }
    }
}

impl OutputDirectory {
    /// Begins an output at `target`, whose parent directories are created.
    ///
    /// # Errors
    /// The system's, a target that exists while `replace` is false, and another process that writes it.
    pub fn create(target: &Path, replace: bool) -> Result<Self, FormatsError> {
        Self::check(target, replace)?;
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let directory = OwnDirectory::claim(&hidden_beside(target, "partial"))?;
        let staging = Staging { directory, moved: false };
        staging.directory.clear()?;
        settle_replaced(target)?;
        Self::check(target, replace)?;
        Ok(Self { target: target.to_owned(), parent, staging, replace })
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

    /// Ends what a process that was killed, or failed, while it put the output at `target` in its place left beside it.
    ///
    /// # Errors
    /// The system's.
    pub fn settle(target: &Path) -> Result<(), FormatsError> {
        settle_replaced(target)
    }

    /// Where files are written until [`OutputDirectory::commit`].
    #[must_use]
    pub fn path(&self) -> &Path {
        self.staging.directory.path()
    }

    /// Puts the output in its place; an old one goes only after the new one stands there.
    ///
    /// # Errors
    /// The system's, and a target that somebody made meanwhile.
    pub fn commit(mut self) -> Result<(), FormatsError> {
        Self::check(&self.target, self.replace)?;
        // Else a power cut could leave names without content in place of an earlier output.
        files::sync_tree(self.path())?;
        let aside = hidden_beside(&self.target, REPLACED);
        let replaces = fs::symlink_metadata(&self.target).is_ok();
        if replaces {
            files::rename(&self.target, &aside)?;
        }
        if let Err(error) = files::rename(self.path(), &self.target) {
            if replaces {
                // If that fails too, the next run does it, and nothing is lost.
                let _ = files::rename(&aside, &self.target);
            }
            return Err(error);
        }
        self.staging.moved = true;
        files::sync_directory(&self.parent)?;
        settle_replaced(&self.target)
    }
}

/// Ending of an old output's name from when it leaves its place until the new one stands there.
const REPLACED: &str = "replaced";

/// Ends what a process that was killed between the two renames of a replacement began: an old output without a new one returns to its place,
/// one with a new one goes.
fn settle_replaced(target: &Path) -> Result<(), FormatsError> {
    let aside = hidden_beside(target, REPLACED);
    // What cannot be looked at is not taken for gone.
    let stands = |path: &Path| path.try_exists().map_err(FormatsError::io(path));
    match (stands(&aside)?, stands(target)?) {
        (false, _) => Ok(()),
        (true, false) => files::rename(&aside, target),
        (true, true) => fs::remove_dir_all(&aside).map_err(FormatsError::io(&aside)),
    }
}

/// `.NAME.ENDING` beside `target`.
#[must_use]
pub fn hidden_beside(target: &Path, ending: &str) -> PathBuf {
    let name = target.file_name().map_or_else(|| "output".into(), |name| name.to_string_lossy().into_owned());
    target.with_file_name(format!(".{name}.{ending}"))
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
        let left = folder.path().join(".out.partial");
        fs::create_dir(&left).unwrap();
        fs::write(left.join("model.safetensors"), "half").unwrap();
        let running = OutputDirectory::create(&target, false).unwrap();
        assert_eq!(names(running.path()), Vec::<String>::new());
        fs::write(running.path().join("file"), "new").unwrap();
        assert!(matches!(OutputDirectory::create(&target, false), Err(FormatsError::Busy { .. })));
        assert!(running.path().join("file").exists());
        // One beside it is another's business.
        drop(OutputDirectory::create(&folder.path().join("outer"), false).unwrap());
        running.commit().unwrap();
        assert_eq!(names(folder.path()), ["out"]);
        // The lock went with the directory that is the output now.
        drop(OutputDirectory::create(&target, true).unwrap_err());
        fs::write(target.join(RECORD), "{}").unwrap();
        drop(OutputDirectory::create(&target, true).unwrap());
        assert_eq!(names(folder.path()), ["out"]);
    }

    #[test]
    fn an_old_output_survives_a_death_between_the_two_renames() {
        let folder = tempfile::tempdir().unwrap();
        let (target, aside) = (folder.path().join("out"), folder.path().join(".out.replaced"));
        fs::create_dir(&target).unwrap();
        fs::write(target.join(RECORD), "old").unwrap();
        fs::rename(&target, &aside).unwrap();
        // Without --force the old one is still in the way.
        assert!(matches!(OutputDirectory::create(&target, false), Err(FormatsError::Exists { .. })));
        assert_eq!(fs::read_to_string(target.join(RECORD)).unwrap(), "old");
        fs::create_dir(&aside).unwrap();
        drop(OutputDirectory::create(&target, true).unwrap());
        assert_eq!(names(folder.path()), ["out"]);
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
