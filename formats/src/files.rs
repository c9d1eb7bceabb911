//! File operations: a checkpoint's files opened inside of its directory only, read and written at positions, and what is written made
//! durable. Every file that a run writes beside its output goes through here.
//!
//! What has to survive a power cut is written under a temporary name, synced, renamed, and then its directory is synced: in that order a
//! name stands for whole content or for none.
//!
//! A link may lead out of the directory in one case: a snapshot of the hub's cache, `models--x/snapshots/REVISION`, links each of its
//! files to `models--x/blobs`. Everything else could have been put there by the checkpoint's author to have another file read, or copied
//! to where it is published.

use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::error::FormatsError;

/// The path of `name` in `directory`, an existing regular file.
///
/// # Errors
/// A name that is not a plain file name, a link that leads out of the directory, a pipe or device (opening one could wait forever), and
/// the system's.
pub(crate) fn inside(directory: &Path, name: &str) -> Result<PathBuf, FormatsError> {
    if name.contains('/') {
        return Err(FormatsError::Outside { path: directory.to_owned(), name: name.to_owned() });
    }
    below(directory, name)
}

/// The path of `name`, which may lie in folders of `directory`: plain names between single slashes. An existing regular file.
///
/// # Errors
/// Any other name, a link that leads out of the directory, a pipe or device (opening one could wait forever), and the system's.
pub fn below(directory: &Path, name: &str) -> Result<PathBuf, FormatsError> {
    let outside = || FormatsError::Outside { path: directory.to_owned(), name: name.to_owned() };
    let plain = |part: &str| {
        let mut parts = Path::new(part).components();
        matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
    };
    // A backslash separates directories on some systems, a colon names a drive or a stream.
    if !name.split('/').all(plain) || name.contains(['\\', ':', '\0']) {
        return Err(outside());
    }
    let path = directory.join(name);
    let real = path.canonicalize().map_err(FormatsError::io(&path))?;
    let home = directory.canonicalize().map_err(FormatsError::io(directory))?;
    let snapshots = home.ancestors().skip(1).find(|folder| folder.ends_with("snapshots"));
    let cache = snapshots.and_then(Path::parent);
    let in_cache = cache.is_some_and(|repository| real.starts_with(repository.join("blobs")));
    if !real.starts_with(&home) && !in_cache {
        return Err(outside());
    }
    if !real.metadata().map_err(FormatsError::io(&path))?.is_file() {
        return Err(FormatsError::malformed(&path, "is not a regular file"));
    }
    Ok(path)
}

/// Copies a file, again from its beginning where a signal interrupts.
///
/// # Errors
/// The system's.
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    loop {
        match std::fs::copy(from, to) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            copied => return copied.map(|_| ()),
        }
    }
}

/// Opens a file that [`inside`] accepts.
pub(crate) fn open(directory: &Path, name: &str) -> Result<(PathBuf, File), FormatsError> {
    let path = inside(directory, name)?;
    let file = File::open(&path).map_err(FormatsError::io(&path))?;
    Ok((path, file))
}

/// The content of a file that [`inside`] accepts, if it is not longer than `most` bytes.
pub(crate) fn read_small(directory: &Path, name: &str, most: u64) -> Result<Vec<u8>, FormatsError> {
    let (path, file) = open(directory, name)?;
    read_whole(&path, &file, most)
}

/// The content of a file, wherever it lies, if it is a regular one and not longer than `most` bytes.
///
/// # Errors
/// A pipe or device, which has no length and may never end, a longer file, and the system's.
pub fn read_regular(path: &Path, most: u64) -> Result<Vec<u8>, FormatsError> {
    // Not after opening it: that waits for somebody to write into a pipe.
    if !std::fs::metadata(path).map_err(FormatsError::io(path))?.is_file() {
        return Err(FormatsError::malformed(path, "is not a regular file"));
    }
    let file = File::open(path).map_err(FormatsError::io(path))?;
    read_whole(path, &file, most)
}

fn read_whole(path: &Path, file: &File, most: u64) -> Result<Vec<u8>, FormatsError> {
    let length = file.metadata().map_err(FormatsError::io(path))?.len();
    if length > most {
        return Err(FormatsError::malformed(path, format!("{length} bytes, expected at most {most}")));
    }
    let mut bytes = vec![0; length as usize];
    read_at(file, &mut bytes, 0).map_err(FormatsError::io(path))?;
    Ok(bytes)
}

/// Fills `buffer` from `offset` on, without moving a shared position.
///
/// # Errors
/// The system's, and a file that ends before.
pub fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    #[cfg(unix)]
    {
        std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
    }
    #[cfg(not(unix))]
    {
        use std::io::{Read, Seek, SeekFrom};
        let _guard = POSITION.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut file = file;
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(buffer)
    }
}

/// Writes `bytes` from `offset` on, without moving a shared position.
///
/// # Errors
/// The system's.
pub fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    #[cfg(unix)]
    {
        std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
    }
    #[cfg(not(unix))]
    {
        use std::io::{Seek, SeekFrom, Write};
        let _guard = POSITION.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut file = file;
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(bytes)
    }
}

/// The position belongs to the open file: nobody may come between a seek and what follows it.
#[cfg(not(unix))]
static POSITION: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// A file to read and write at positions, made where there is none; what it holds stays.
///
/// # Errors
/// The system's.
pub fn open_or_create(path: &Path) -> Result<File, FormatsError> {
    let options = File::options().read(true).write(true).create(true).truncate(false).open(path);
    options.map_err(FormatsError::io(path))
}

/// A new file.
///
/// # Errors
/// The system's, and one of that name.
pub fn create_new(path: &Path) -> Result<File, FormatsError> {
    File::options().read(true).write(true).create_new(true).open(path).map_err(FormatsError::io(path))
}

/// Makes a file's content durable.
///
/// # Errors
/// The system's.
pub fn sync(file: &File, path: &Path) -> Result<(), FormatsError> {
    file.sync_all().map_err(FormatsError::io(path))
}

/// Makes the entries of a directory durable, where the system can.
///
/// # Errors
/// The system's.
pub fn sync_directory(path: &Path) -> Result<(), FormatsError> {
    #[cfg(unix)]
    {
        File::open(path).and_then(|directory| directory.sync_all()).map_err(FormatsError::io(path))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        Ok(())
    }
}

/// Makes a directory durable with everything in it.
///
/// # Errors
/// The system's.
pub fn sync_tree(directory: &Path) -> Result<(), FormatsError> {
    for entry in fs::read_dir(directory).map_err(FormatsError::io(directory))? {
        let path = entry.map_err(FormatsError::io(directory))?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            let file = File::open(&path).map_err(FormatsError::io(&path))?;
            sync(&file, &path)?;
        }
    }
    sync_directory(directory)
}

/// Gives a file or directory another name.
///
/// # Errors
/// The system's.
pub fn rename(from: &Path, to: &Path) -> Result<(), FormatsError> {
    fs::rename(from, to).map_err(FormatsError::io(from))
}

/// Puts `bytes` at `path`, whole or not at all, and durably: under a temporary name first.
///
/// # Errors
/// The system's.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), FormatsError> {
    let staged = beside(path);
    // Whatever has that name, a link of somebody else's among it, is not written to.
    remove(&staged)?;
    let file = create_new(&staged)?;
    write_at(&file, bytes, 0).map_err(FormatsError::io(&staged))?;
    sync(&file, &staged)?;
    rename(&staged, path)?;
    sync_directory(path.parent().unwrap_or(Path::new(".")))
}

/// The name under which a file is written before it gets its own.
#[must_use]
pub fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

/// The whole content of a file of ours, if there is one.
///
/// # Errors
/// The system's, and a file longer than `most` bytes.
pub fn read_own(path: &Path, most: u64) -> Result<Option<Vec<u8>>, FormatsError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(FormatsError::io(path))?,
    };
    let length = file.metadata().map_err(FormatsError::io(path))?.len();
    if length > most {
        return Err(FormatsError::malformed(path, format!("{length} bytes, expected at most {most}")));
    }
    let mut bytes = vec![0; length as usize];
    read_at(&file, &mut bytes, 0).map_err(FormatsError::io(path))?;
    Ok(Some(bytes))
}

/// Removes a file, or finds it gone.
///
/// # Errors
/// The system's.
pub fn remove(path: &Path) -> Result<(), FormatsError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(FormatsError::io(path)),
    }
}

/// A directory that this process alone works in. The lock is the system's, on the open directory: it ends with the process, however that
/// ends, and leaves nothing behind.
#[derive(Debug)]
pub struct OwnDirectory {
    path: PathBuf,
    /// None where directories cannot be opened or locked, as on some network file systems.
    _lock: Option<File>,
}

impl OwnDirectory {
    /// Makes the directory where there is none, and holds it until the value is dropped.
    ///
    /// # Errors
    /// The system's, another process that holds it, and something else of that name.
    pub fn claim(path: &Path) -> Result<Self, FormatsError> {
        loop {
            fs::create_dir_all(path).map_err(FormatsError::io(path))?;
            let found = fs::symlink_metadata(path).map_err(FormatsError::io(path))?;
            if !found.is_dir() {
                return Err(FormatsError::malformed(path, "is a link, expected a directory"));
            }
            #[cfg(unix)]
            {
                use std::os::unix::fs::MetadataExt;
                let directory = File::open(path).map_err(FormatsError::io(path))?;
                let lock = match directory.try_lock() {
                    Ok(()) => Some(directory),
                    Err(fs::TryLockError::WouldBlock) => {
                        return Err(FormatsError::Busy { path: path.to_owned() });
                    }
                    // A file system without locks is no reason to refuse the work.
                    Err(fs::TryLockError::Error(_)) => None,
                };
                // Who held it before may have removed it or put it elsewhere between our opening and locking.
                let held = lock.as_ref().map(File::metadata).transpose().map_err(FormatsError::io(path))?;
                let same = held.is_none_or(|held| {
                    fs::symlink_metadata(path)
                        .is_ok_and(|found| (found.dev(), found.ino()) == (held.dev(), held.ino()))
                });
                if same {
                    return Ok(Self { path: path.to_owned(), _lock: lock });
                }
            }
            #[cfg(not(unix))]
            return Ok(Self { path: path.to_owned(), _lock: None });
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes everything in it.
    ///
    /// # Errors
    /// The system's.
    pub fn clear(&self) -> Result<(), FormatsError> {
        for entry in fs::read_dir(&self.path).map_err(FormatsError::io(&self.path))? {
            let entry = entry.map_err(FormatsError::io(&self.path))?;
            let path = entry.path();
            let removed = match entry.file_type().map_err(FormatsError::io(&path))?.is_dir() {
                true => fs::remove_dir_all(&path),
                false => fs::remove_file(&path),
            };
            removed.map_err(FormatsError::io(&path))?;
        }
        Ok(())
    }

    /// Removes it with everything in it. While that goes on nobody else can claim it.
    ///
    /// # Errors
    /// The system's.
    pub fn remove(&self) -> Result<(), FormatsError> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(FormatsError::io(&self.path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_directory_has_one_owner_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("work");
        let first = OwnDirectory::claim(&path).unwrap();
        assert!(matches!(OwnDirectory::claim(&path), Err(FormatsError::Busy { .. })));
        fs::write(path.join("file"), "left").unwrap();
        drop(first);
        let second = OwnDirectory::claim(&path).unwrap();
        assert!(path.join("file").exists());
        second.clear().unwrap();
        assert!(!path.join("file").exists());
        second.remove().unwrap();
        assert!(!path.exists());
        // Its lock is that of a directory that is gone.
        drop(OwnDirectory::claim(&path).unwrap());
        std::os::unix::fs::symlink(folder.path(), folder.path().join("link")).unwrap();
        assert!(OwnDirectory::claim(&folder.path().join("link")).is_err());
    }

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        replace(&path, b"old and long").unwrap();
        replace(&path, b"new").unwrap();
        assert_eq!(read_own(&path, 100).unwrap().unwrap(), b"new");
        assert!(read_own(&path, 2).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(read_own(&path, 100).unwrap(), None);
    }
}
