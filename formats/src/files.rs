//! File operations of this crate: opened inside of a checkpoint's directory only, read and written at positions.
//!
//! A link may lead out of the directory in one case: a snapshot of the hub's cache, `models--x/snapshots/REVISION`, links each of its
//! files to `models--x/blobs`. Everything else could have been put there by the checkpoint's author to have another file read, or copied
//! to where it is published.

use std::fs::File;
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
pub(crate) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
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
pub(crate) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
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
