//! Which file of a data set's repository holds a split's text.

use std::collections::BTreeSet;
use std::path::Path;

use super::Address;
use super::files::is_local;
use crate::error::Error;

/// Endings of files that text is read from, the best first.
const ENDINGS: [&str; 5] = ["parquet", "jsonl", "ndjson", "json", "txt"];

/// A file with its place among configurations and splits.
struct Candidate<'n> {
    name: &'n str,
    configuration: String,
    split: String,
}

/// The first file of the split that `address` asks for: `train` where it names none, of the only configuration or `default`.
pub(super) fn choose(names: &[String], address: &Address) -> Result<String, Error> {
    let ending = |name: &str| Path::new(name).extension().and_then(|e| e.to_str()).map(str::to_owned);
    let usable: Vec<&String> = names.iter().filter(|name| is_local(name)).collect();
    let found = ENDINGS.iter().find_map(|wanted| {
        let of: Vec<&str> = usable
            .iter()
            .filter(|name| ending(name).as_deref() == Some(wanted))
            .map(|name| name.as_str())
            .filter(|name| !matches!(*name, "dataset_infos.json" | "requirements.txt"))
            .collect();
        (!of.is_empty()).then_some(of)
    });
    let Some(mut of_kind) = found else {
        return Err(Error::Hub {
            problem: format!("{address} has no file of Parquet, JSON lines or text"),
            hint: "download it with its own tools, write JSON lines with `text`, and name that file"
                .to_owned(),
        });
    };
    of_kind.sort_unstable();
    let candidates: Vec<Candidate<'_>> = of_kind.iter().map(|name| place(name)).collect();
    let configurations: BTreeSet<&str> = candidates.iter().map(|c| c.configuration.as_str()).collect();
    let configuration = pick(&configurations, address.configuration.as_deref(), "default", address)?;
    let of_it = || candidates.iter().filter(|c| c.configuration == configuration);
    let splits: BTreeSet<&str> = of_it().map(|c| c.split.as_str()).collect();
    let split = pick(&splits, address.split.as_deref(), "train", address)?;
    of_it()
        .find(|c| c.split == split)
        .map(|c| c.name.to_owned())
        .ok_or_else(|| Error::Internal("a split that was found is not there".to_owned()))
}

/// What was asked for, the usual one, or the only one.
fn pick<'a>(
    known: &BTreeSet<&'a str>,
    asked: Option<&str>,
    usual: &str,
    address: &Address,
) -> Result<&'a str, Error> {
    let one = |name: &str| known.iter().copied().find(|found| *found == name);
    let found = match asked {
        Some(name) => one(name),
        None => one(usual).or_else(|| (known.len() == 1).then(|| known.first().copied()).flatten()),
    };
    found.ok_or_else(|| {
        let names: Vec<&str> = known.iter().copied().filter(|name| !name.is_empty()).collect();
        let problem = match asked {
            Some(name) => format!("{address} has no `{name}`, expected one of {}", names.join(", ")),
            None => format!("{address} leaves a choice: {}", names.join(", ")),
        };
        let hint = format!("name one: {}:CONFIGURATION:SPLIT, or {}:SPLIT", address.id, address.id);
        Error::Hub { problem, hint }
    })
}

/// `CONFIGURATION/SPLIT/0000.parquet` as the hub converts, or `FOLDER/SPLIT-00000-of-00001.parquet`, `SPLIT.jsonl` and the like.
fn place(name: &str) -> Candidate<'_> {
    let parts: Vec<&str> = name.split('/').collect();
    let (folders, file) = parts.split_at(parts.len() - 1);
    let stem = Path::new(file[0]).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let numbered = stem.bytes().all(|byte| byte.is_ascii_digit());
    let (folder, split) = match folders {
        [.., configuration, split] if numbered => (*configuration, *split),
        [split] if numbered => ("", *split),
        [.., folder] => (*folder, stem),
        [] => ("", stem),
    };
    let split = split.strip_prefix("partial-").unwrap_or(split);
    let split = split.split(['-', '.']).next().unwrap_or(split);
    let configuration = if matches!(folder, "" | "data") { "default" } else { folder };
    Candidate { name, configuration: configuration.to_owned(), split: split.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str], address: &str) -> Result<String, Error> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        choose(&names, &Address::of_dataset(Path::new(address)).unwrap().unwrap())
    }

    #[test]
    fn files_are_found_by_configuration_and_split() {
        let converted = [
            "en/test/0000.parquet",
            "en/train/0001.parquet",
            "en/train/0000.parquet",
            "de/train/0000.parquet",
        ];
        assert_eq!(chosen(&converted, "o/d:en:train").unwrap(), "en/train/0000.parquet");
        let error = chosen(&converted, "o/d").unwrap_err();
        assert!(error.to_string().contains("de, en"), "{error}");
        let error = chosen(&converted, "o/d:en:validation").unwrap_err();
        assert!(error.to_string().contains("test, train"), "{error}");
        let own = ["README.md", "data/train-00000-of-00002.parquet", "data/test-00000-of-00001.parquet"];
        assert_eq!(chosen(&own, "o/d").unwrap(), "data/train-00000-of-00002.parquet");
        assert_eq!(chosen(&own, "o/d:test").unwrap(), "data/test-00000-of-00001.parquet");
        assert_eq!(chosen(&["README.md", "notes.jsonl"], "o/d").unwrap(), "notes.jsonl");
        assert!(chosen(&["a.zip", "../train.jsonl"], "o/d").is_err());
    }
}
