//! Models and data sets by their names on the Hugging Face hub, kept in the cache that other tools use.
//!
//! The layout of that cache is the crate `hf-hub`'s. Requests and files are handled here, since its own transfer takes a server's word for
//! what a file is called and how long it is, knows neither time limits nor `HF_HUB_OFFLINE`, and checks no content.
//!
//! What a run needs is downloaded, smallest first, and nothing else: a snapshot with all weights is complete.

mod address;
mod cache;
mod datasets;
mod files;
mod transfer;

use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::progress::Progress;
use address::{Address, Kind};
use cache::HubCache;
use transfer::Transfer;

/// The directory of a model: `model` itself where that exists, or what the hub has under this name, downloaded.
///
/// # Errors
/// A model that neither this machine nor the hub has, or that cannot be downloaded.
pub fn model_directory(model: &Path, progress: &dyn Progress) -> Result<PathBuf, Error> {
    match Address::of_model(model)? {
        None => Ok(model.to_owned()),
        Some(address) => Hub::from_environment()?.model(&address, progress),
    }
}

/// The file of a text: `text` itself where that exists, or the first file of a data set's split, downloaded.
///
/// # Errors
/// A data set that neither this machine nor the hub has, or that cannot be downloaded.
pub fn text_file(text: &Path, progress: &dyn Progress) -> Result<PathBuf, Error> {
    match Address::of_dataset(text)? {
        None => Ok(text.to_owned()),
        Some(address) => Hub::from_environment()?.dataset(&address, progress),
    }
}

/// The hub and its cache.
struct Hub {
    cache: HubCache,
    /// None: what is in the cache has to do.
    transfer: Option<Transfer>,
}

/// A list of files that the hub has of a repository.
struct Listing {
    /// Of the revision that was asked for.
    commit: String,
    names: Vec<String>,
}

impl Hub {
    fn from_environment() -> Result<Self, Error> {
        let cache = HubCache::from_environment()?;
        let offline = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].iter().any(|name| is_set(name));
        let transfer = if offline { None } else { Some(Transfer::from_environment(cache.token())?) };
        Ok(Self { cache, transfer })
    }

    fn model(&self, address: &Address, progress: &dyn Progress) -> Result<PathBuf, Error> {
        let cached = || {
            let commit = self.cache.commit(address)?;
            let snapshot = self.cache.snapshot(address, &commit);
            files::is_complete(&snapshot).then_some(snapshot)
        };
        // A commit never changes.
        if address.is_commit()
            && let Some(snapshot) = cached()
        {
            return Ok(snapshot);
        }
        let Some(transfer) = &self.transfer else {
            return cached().ok_or_else(|| self.not_cached(address));
        };
        let listing = match transfer.list(address) {
            Ok(listing) => listing,
            // A machine without a network has what it had.
            Err(transfer::Failure::Unreachable(problem)) => {
                return match cached() {
                    Some(snapshot) => {
                        progress.warn(&format!("{problem}; {address} is taken from the cache"));
                        Ok(snapshot)
                    }
                    None => Err(transfer.explain(transfer::Failure::Unreachable(problem), address)),
                };
            }
            Err(failure) => return Err(transfer.explain(failure, address)),
        };
        let first = files::first(&listing.names, address)?;
        let snapshot = self.fetch(transfer, address, &listing, &first, progress)?;
        let weights = files::weights(&listing.names, &snapshot, address)?;
        self.fetch(transfer, address, &listing, &weights, progress)?;
        Ok(snapshot)
    }

    fn dataset(&self, address: &Address, progress: &dyn Progress) -> Result<PathBuf, Error> {
        let converted = address.converted();
        let Some(transfer) = &self.transfer else {
            let places = converted.iter().chain([address]);
            let mut cached = places.filter_map(|place| {
                let snapshot = self.cache.snapshot(place, &self.cache.commit(place)?);
                Some((datasets::choose(&cache::files(&snapshot), place), snapshot))
            });
            let (name, snapshot) = cached.next().ok_or_else(|| self.not_cached(address))?;
            return Ok(snapshot.join(name?));
        };
        // The hub converts most data sets to Parquet, in folders by configuration and split.
        let (address, listing) = match converted.map(|address| (transfer.list(&address), address)) {
            Some((Ok(listing), converted)) => (converted, listing),
            Some((Err(transfer::Failure::NotFound(_)), _)) | None => {
                (address.clone(), transfer.list(address).map_err(|found| transfer.explain(found, address))?)
            }
            Some((Err(failure), _)) => return Err(transfer.explain(failure, address)),
        };
        let name = datasets::choose(&listing.names, &address)?;
        let snapshot = self.fetch(transfer, &address, &listing, std::slice::from_ref(&name), progress)?;
        Ok(snapshot.join(name))
    }

    /// Brings files into the snapshot and returns its directory.
    fn fetch(
        &self,
        transfer: &Transfer,
        address: &Address,
        listing: &Listing,
        names: &[String],
        progress: &dyn Progress,
    ) -> Result<PathBuf, Error> {
        let explain = |failure| transfer.explain(failure, address);
        let snapshot = self.cache.snapshot(address, &listing.commit);
        let mut wanted = Vec::new();
        for name in names.iter().filter(|name| !snapshot.join(name).is_file()) {
            let described = transfer.describe(address, &listing.commit, name).map_err(explain)?;
            wanted.push((name, described));
        }
        let missing = wanted.iter().map(|(_, described)| self.cache.missing(address, described)).sum();
        self.cache.demand_space(missing, address)?;
        for (name, described) in &wanted {
            let _lock = self.cache.lock(address, described, progress)?;
            let place = self.cache.blob(address, described);
            if !place.is_file() {
                transfer
                    .download(address, &listing.commit, name, described, &place, progress)
                    .map_err(explain)?;
            }
            self.cache.link(address, &listing.commit, name, described)?;
        }
        self.cache.set_commit(address, &listing.commit)?;
        Ok(snapshot)
    }

    fn not_cached(&self, address: &Address) -> Error {
        let known = self.cache.known(address.kind);
        let known = if known.is_empty() { "nothing".to_owned() } else { known.join(", ") };
        Error::Hub {
            problem: format!("{address} is not in the cache, and HF_HUB_OFFLINE forbids to download it"),
            hint: format!(
                "in the cache ({}) {} complete or in part: {known}",
                self.cache.path().display(),
                match address.kind {
                    Kind::Model => "are models,",
                    Kind::Dataset => "are data sets,",
                }
            ),
        }
    }
}

/// Whether a variable says yes, as other tools read it.
fn is_set(name: &str) -> bool {
    std::env::var(name)
        .is_ok_and(|value| matches!(value.to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
}
