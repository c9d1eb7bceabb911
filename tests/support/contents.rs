//! What a run has left in a folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Everything that is left in a folder, hidden or not; of the page that states times only that it is there.
pub(crate) fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![directory.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(directory).unwrap().to_owned();
                let content =
                    if name.ends_with("report.html") { Vec::new() } else { fs::read(&path).unwrap() };
                found.insert(name, content);
            }
        }
    }
    found
}
