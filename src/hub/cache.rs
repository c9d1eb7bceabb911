//! The hub's cache on disk, shared with other tools: `models--org--name/{blobs,refs,snapshots}`, files under `blobs` by what the hub calls
//! their content, a folder of links for each commit.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::Cache;

use super::Address;
use super::address::Kind;
use super::transfer::Described;
use crate::error::Error;
use crate::progress::{Progress, go_on};
use crate::space;

/// Folders below a snapshot that are looked into.
const DEEPEST: usize = 4;

#[derive(Debug)]
pub(super) struct HubCache {
    cache: Cache,
    /// Where the token of a login is.
    token: PathBuf,
}

impl HubCache {
    /// `HF_HUB_CACHE`, or `hub` in `HF_HOME`, or what these are by default.
    pub(super) fn from_environment() -> Result<Self, Error> {
        let variable =
            |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = variable("HF_HOME")
            .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
            .or_else(|| std::env::home_dir().map(|home| home.join(".cache/huggingface")));
        let Some(home) = home else {
            return Err(Error::Hub {
                problem: "there is no home directory for the hub's cache".to_owned(),
                hint: "set HF_HOME to a directory".to_owned(),
            });
        };
        let path = variable("HF_HUB_CACHE").unwrap_or_else(|| home.join("hub"));
        let token = variable("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        // Links of snapshots are read from other directories too.
        let path = std::path::absolute(&path).map_err(Error::io(&path))?;
        Ok(Self { cache: Cache::new(path), token })
    }

    pub(super) fn path(&self) -> &Path {
        self.cache.path()
    }

    /// `HF_TOKEN`, or that of a login.
    pub(super) fn token(&self) -> Option<String> {
        let token = std::env::var("HF_TOKEN").ok().or_else(|| fs::read_to_string(&self.token).ok())?;
        Some(token.trim().to_owned()).filter(|token| !token.is_empty())
    }

    fn repository(&self, address: &Address) -> PathBuf {
        self.path().join(address.repository().folder_name())
    }

    /// The commit that a revision was when it was last asked for.
    pub(super) fn commit(&self, address: &Address) -> Option<String> {
        if address.is_commit() {
            return Some(address.revision.clone());
        }
        let found = fs::read_to_string(self.repository(address).join("refs").join(&address.revision)).ok()?;
        Some(found.trim().to_owned()).filter(|commit| super::transfer::is_hash(commit))
    }

    pub(super) fn set_commit(&self, address: &Address, commit: &str) -> Result<(), Error> {
        if address.is_commit() {
            return Ok(());
        }
        self.cache.repo(address.repository()).create_ref(commit).map_err(Error::io(self.repository(address)))
    }

    pub(super) fn snapshot(&self, address: &Address, commit: &str) -> PathBuf {
        self.cache.repo(address.repository()).pointer_path(commit)
    }

    /// Where the content of a file is, whatever commits have it.
    pub(super) fn blob(&self, address: &Address, described: &Described) -> PathBuf {
        self.repository(address).join("blobs").join(&described.etag)
    }

    /// Bytes that are still to be downloaded.
    pub(super) fn missing(&self, address: &Address, described: &Described) -> u64 {
        let place = self.blob(address, described);
        if place.is_file() {
            return 0;
        }
        let begun = fs::metadata(incomplete(&place)).map_or(0, |found| found.len());
        described.bytes.saturating_sub(begun)
    }

    /// Fails where the disk has no room for so many bytes.
    pub(super) fn demand_space(&self, bytes: u64, address: &Address) -> Result<(), Error> {
        let what = format!("downloading {address}");
        space::demand(self.path(), bytes, &what, "make room, or set HF_HOME to a directory on another disk")
    }

    /// Waits until no other program downloads the same file, as those of Python's hub library do.
    pub(super) fn lock(
        &self,
        address: &Address,
        described: &Described,
        progress: &dyn Progress,
    ) -> Result<File, Error> {
        let folder = self.path().join(".locks").join(address.repository().folder_name());
        fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let path = folder.join(format!("{}.lock", described.etag));
        let file =
            File::options().create(true).truncate(false).write(true).open(&path).map_err(Error::io(&path))?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => {
                    if !std::mem::replace(&mut told, true) {
                        progress.warn(&format!("waiting for another program that downloads {address}"));
                    }
                    go_on(progress)?;
                    std::thread::sleep(Duration::from_millis(200));
                }
                // Some file systems have no locks; a download that is done twice is no harm.
                Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => return Ok(file),
                Err(TryLockError::Error(e)) => return Err(Error::io(&path)(e)),
            }
        }
    }

    /// Puts a file into the snapshot of a commit.
    pub(super) fn link(
        &self,
        address: &Address,
        commit: &str,
        name: &str,
        described: &Described,
    ) -> Result<(), Error> {
        let place = self.snapshot(address, commit).join(name);
        if place.is_file() {
            return Ok(());
        }
        let folder = place.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        // A link without its file may be there.
        match fs::remove_file(&place) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::io(&place)(e)),
            _ => {}
        }
        let up = "../".repeat(2 + name.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{}", described.etag));
        #[cfg(unix)]
        return std::os::unix::fs::symlink(target, &place).map_err(Error::io(&place));
        #[cfg(not(unix))]
        fs::copy(folder.join(target), &place).map(|_| ()).map_err(Error::io(&place))
    }

    /// Ids of what is there, sorted.
    pub(super) fn known(&self, kind: Kind) -> Vec<String> {
        let beginning = match kind {
            Kind::Model => "models--",
            Kind::Dataset => "datasets--",
        };
        let names = fs::read_dir(self.path()).into_iter().flatten().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let mut ids: Vec<String> = names
            .filter_map(|name| name.strip_prefix(beginning).map(|id| id.replacen("--", "/", 1)))
            .collect();
        ids.sort();
        ids
    }
}

/// Where a file is while it is downloaded; other tools go on with it too.
pub(super) fn incomplete(blob: &Path) -> PathBuf {
    let mut name = blob.as_os_str().to_owned();
    name.push(".incomplete");
    PathBuf::from(name)
}

/// Names of the files of a snapshot, with their folders.
pub(super) fn files(snapshot: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![(snapshot.to_owned(), String::new(), 0)];
    while let Some((folder, prefix, depth)) = open.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let name = format!("{prefix}{name}");
            if entry.path().is_file() {
                found.push(name);
            } else if depth < DEEPEST && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push((entry.path(), format!("{name}/"), depth + 1));
            }
        }
    }
    found
}
