//! Which files of a model's repository a run needs: the description, the tokenizer, the weights once, what belongs to a published copy.

use std::collections::BTreeSet;
use std::path::Path;

use formats::checkpoint;
use serde_json::Value;

use super::Address;
use crate::error::Error;

/// Largest index of weights that is read, bytes.
const MOST_INDEX: u64 = 64 << 20;
const SINGLE: &str = "model.safetensors";

/// Whether a file that is not a weight is wanted.
fn is_wanted(name: &str) -> bool {
    let exact = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        "chat_template.json",
        "quantize_config.json",
        "quant_config.json",
        "quantc.json",
        "README.md",
        checkpoint::INDEX,
    ];
    let beginnings = ["LICENSE", "LICENCE", "NOTICE", "USE_POLICY"];
    let template =
        name.strip_prefix("additional_chat_templates/").is_some_and(|rest| rest.ends_with(".jinja"));
    exact.contains(&name) || template || !name.contains('/') && beginnings.iter().any(|b| name.starts_with(b))
}

/// Everything but the weights.
pub(super) fn first(names: &[String], address: &Address) -> Result<Vec<String>, Error> {
    let fail = |problem: String, hint: &str| Err(Error::Hub { problem, hint: hint.to_owned() });
    if !names.iter().any(|name| name == "config.json") {
        if let Some(file) = names.iter().find(|name| name.ends_with(".gguf")) {
            let problem = format!("{address} has no config.json but GGUF files, such as {file}");
            return fail(problem, "download the file and name it, or take the model that it was made from");
        }
        return fail(
            format!("{address} has no config.json"),
            "a model has config.json and safetensors; is this an adapter or a data set?",
        );
    }
    if !names.iter().any(|name| name == SINGLE || name == checkpoint::INDEX) {
        let other = names.iter().find(|name| name.ends_with(".bin") || name.ends_with(".pt"));
        let has = other.map_or(String::new(), |name| format!(" (it has {name})"));
        let problem = format!("{address} has neither {SINGLE} nor {}{has}", checkpoint::INDEX);
        return fail(
            problem,
            "the hub often has a conversion to safetensors as a pull request: --revision refs/pr/N",
        );
    }
    let wanted = names.iter().filter(|name| is_wanted(name) && is_local(name));
    // An index beside a single file describes weights that are not read.
    let single = names.iter().any(|name| name == SINGLE);
    Ok(wanted.filter(|name| !(single && *name == checkpoint::INDEX)).cloned().collect())
}

/// The weights, once: by the index where there is one.
pub(super) fn weights(names: &[String], snapshot: &Path, address: &Address) -> Result<Vec<String>, Error> {
    if names.iter().any(|name| name == SINGLE) {
        return Ok(vec![SINGLE.to_owned()]);
    }
    let shards = shards(&snapshot.join(checkpoint::INDEX))?;
    match shards.iter().find(|shard| !names.contains(shard)) {
        None => Ok(shards),
        Some(missing) => Err(Error::Hub {
            problem: format!("{address} has no {missing}, which its {} names", checkpoint::INDEX),
            hint: "the repository is incomplete; try another --revision".to_owned(),
        }),
    }
}

/// Names of the files that an index speaks of.
fn shards(index: &Path) -> Result<Vec<String>, Error> {
    let length = std::fs::metadata(index).map_err(Error::io(index))?.len();
    let fail = |problem: String| Error::Json { path: index.to_owned(), problem };
    if length > MOST_INDEX {
        return Err(fail(format!("{length} bytes, expected at most {MOST_INDEX}")));
    }
    let text = std::fs::read(index).map_err(Error::io(index))?;
    let value: Value = serde_json::from_slice(&text).map_err(|e| fail(e.to_string()))?;
    let map = value["weight_map"].as_object().ok_or_else(|| fail("has no `weight_map`".to_owned()))?;
    let names: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    if let Some(bad) = names.iter().find(|name| !is_local(name) || name.contains('/')) {
        return Err(fail(format!("names `{bad}`, expected files of the repository's own folder")));
    }
    Ok(names.into_iter().map(str::to_owned).collect())
}

/// Whether a snapshot has what it takes: the weights are brought last.
pub(super) fn is_complete(snapshot: &Path) -> bool {
    let has = |name: &str| snapshot.join(name).is_file();
    has("config.json")
        && (has(SINGLE)
            || shards(&snapshot.join(checkpoint::INDEX))
                .is_ok_and(|shards| !shards.is_empty() && shards.iter().all(|shard| has(shard))))
}

/// Whether a name that a server gives stays in the folder that it is put into.
pub(super) fn is_local(name: &str) -> bool {
    !name.is_empty()
        && !name.contains(['\\', ':', '\0'])
        && name.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}
