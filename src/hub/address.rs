//! Names of models and data sets on the hub, and when something is one.

use std::fmt;
use std::path::Path;

use hf_hub::{Repo, RepoType};

use crate::error::Error;

/// The longest name that the hub gives, characters.
const MOST_CHARACTERS: usize = 96;

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Model,
    Dataset,
}

/// A repository at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) kind: Kind,
    /// `org/name`, or a name alone.
    pub(crate) id: String,
    /// A branch, a tag or a commit.
    pub(crate) revision: String,
    /// Of a data set.
    pub(crate) configuration: Option<String>,
    pub(crate) split: Option<String>,
}

impl Address {
    /// What `model` means on the hub; none: a path. An existing path always wins, and one whose folder exists is a misspelled path. With
    /// `hf://` in front it is always the hub's.
    pub(crate) fn of_model(model: &Path) -> Result<Option<Self>, Error> {
        Self::parse(model, Kind::Model)
    }

    /// The same for text: `org/name`, `org/name:split` or `org/name:configuration:split`.
    pub(crate) fn of_dataset(text: &Path) -> Result<Option<Self>, Error> {
        Self::parse(text, Kind::Dataset)
    }

    fn parse(path: &Path, kind: Kind) -> Result<Option<Self>, Error> {
        let Some(text) = path.to_str() else { return Ok(None) };
        let (explicit, rest) = match text.strip_prefix("hf://") {
            Some(rest) => (true, rest.strip_prefix("datasets/").unwrap_or(rest)),
            None => (false, text),
        };
        if !explicit && (path.symlink_metadata().is_ok() || path.is_absolute() || text.starts_with('.')) {
            return Ok(None);
        }
        let (rest, revision) = rest.split_once('@').map_or((rest, None), |(id, at)| (id, Some(at)));
        let mut parts = rest.split(':');
        let id = parts.next().unwrap_or_default();
        let more: Vec<&str> = parts.collect();
        let folder_exists = || id.split_once('/').is_some_and(|(folder, _)| Path::new(folder).is_dir());
        let segments = id.split('/').count();
        let is_id = id.split('/').all(is_name)
            && (segments == 2 || explicit && segments == 1)
            && id.len() <= MOST_CHARACTERS
            && (explicit || !folder_exists());
        // Files have endings; repositories with such names are there for `hf://`.
        let is_file =
            !explicit && [".txt", ".json", ".jsonl", ".parquet", ".gguf"].iter().any(|end| id.ends_with(end));
        let (configuration, split) = match (kind, more.as_slice()) {
            (_, []) => (None, None),
            (Kind::Dataset, [split]) => (None, Some(*split)),
            (Kind::Dataset, [configuration, split]) => (Some(*configuration), Some(*split)),
            _ => (None, Some("")),
        };
        let revision_is_one = revision.is_none_or(is_revision);
        let named = [configuration, split].into_iter().flatten().all(is_name);
        if is_id && !is_file && revision_is_one && named {
            return Ok(Some(Self {
                kind,
                id: id.to_owned(),
                revision: revision.unwrap_or("main").to_owned(),
                configuration: configuration.map(str::to_owned),
                split: split.map(str::to_owned),
            }));
        }
        if explicit {
            let expected = match kind {
                Kind::Model => "hf://org/name or hf://org/name@revision",
                Kind::Dataset => "hf://org/name, hf://org/name:split or hf://org/name:configuration:split",
            };
            let problem = format!("`{text}` is no name on the hub, expected {expected}");
            return Err(Error::Hub { problem, hint: "a local directory needs no hf://".to_owned() });
        }
        Ok(None)
    }

    /// Whether the revision is a whole commit, whose content never changes.
    pub(crate) fn is_commit(&self) -> bool {
        self.revision.len() == 40 && self.revision.bytes().all(|byte| byte.is_ascii_hexdigit())
    }

    /// The hub's own conversion of a data set to Parquet; none where a revision was asked for.
    pub(crate) fn converted(&self) -> Option<Self> {
        (self.revision == "main")
            .then(|| Self { revision: "refs/convert/parquet".to_owned(), ..self.clone() })
    }

    /// The same for the crate that knows the cache.
    pub(crate) fn repository(&self) -> Repo {
        let kind = match self.kind {
            Kind::Model => RepoType::Model,
            Kind::Dataset => RepoType::Dataset,
        };
        Repo::with_revision(self.id.clone(), kind, self.revision.clone())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)?;
        if self.revision == "main" { Ok(()) } else { write!(f, "@{}", self.revision) }
    }
}

/// Whether a part of an id can stand in paths and addresses as it is.
pub(super) fn is_name(part: &str) -> bool {
    !part.is_empty()
        && !part.starts_with(['.', '-'])
        && !part.ends_with(['.', '-'])
        && !part.contains("..")
        && !part.contains("--")
        && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// The same for branches, which may have folders.
pub(super) fn is_revision(text: &str) -> bool {
    text.len() <= 200
        && text.split('/').all(|part| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(text: &str) -> Option<String> {
        Address::of_model(Path::new(text)).unwrap().map(|found| format!("{} {}", found.id, found.revision))
    }

    #[test]
    fn names_on_the_hub_are_told_from_paths() {
        assert_eq!(model("org/name").unwrap(), "org/name main");
        assert_eq!(model("org/name@v1.0").unwrap(), "org/name v1.0");
        assert_eq!(model("hf://gpt2@refs/pr/1").unwrap(), "gpt2 refs/pr/1");
        for path in
            ["name", "a/b/c", "./org/name", "/org/name", "src/nothing", "org/../name", "org/name.gguf"]
        {
            assert_eq!(model(path), None, "{path}");
        }
        for bad in ["hf://a/b/c", "hf://", "hf://a/b@..", "hf://a/b@/etc", "hf://../b", "hf://a/b:c"] {
            assert!(Address::of_model(Path::new(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn data_sets_have_configurations_and_splits() {
        let found = Address::of_dataset(Path::new("org/name:en:test")).unwrap().unwrap();
        assert_eq!((found.configuration.as_deref(), found.split.as_deref()), (Some("en"), Some("test")));
        let found = Address::of_dataset(Path::new("hf://datasets/org/name:test")).unwrap().unwrap();
        assert_eq!((found.configuration, found.split.as_deref()), (None, Some("test")));
        assert_eq!(Address::of_dataset(Path::new("org/name.txt")).unwrap(), None);
    }
}
