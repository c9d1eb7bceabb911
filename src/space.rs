//! Room on disks, looked at before the work.

use std::path::Path;

use nix::sys::statvfs::statvfs;

use crate::error::Error;
use crate::render::text::bytes;

/// Bytes that may still be written where `path` is or will be; none where the system does not tell.
#[must_use]
pub(crate) fn free(path: &Path) -> Option<u64> {
    let path = std::path::absolute(path).ok()?;
    let found = path.ancestors().find_map(|place| statvfs(place).ok())?;
    #[allow(clippy::unnecessary_cast, reason = "the types differ between systems")]
    Some((found.blocks_available() as u64).saturating_mul(found.fragment_size() as u64))
}

/// Fails where `needed` bytes have no room at `path`.
///
/// # Errors
/// [`Error::NoSpace`] with `hint`.
pub(crate) fn demand(path: &Path, needed: u64, what: &str, hint: &'static str) -> Result<(), Error> {
    match free(path) {
        Some(free) if free < needed => Err(Error::NoSpace {
            path: path.to_owned(),
            problem: format!("{what} takes {}, and {} are free", bytes(needed), bytes(free)),
            hint,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_looked_for_where_a_path_will_be() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("not/there/yet");
        assert!(free(&path).expect("the system tells") > 0);
        demand(&path, 1, "a byte", "").expect("there is room");
        let error = demand(&path, u64::MAX, "everything", "buy a disk").unwrap_err();
        assert!(error.to_string().contains("everything takes"), "{error}");
        assert_eq!(error.hint().as_deref(), Some("buy a disk"));
    }
}
