//! What the program is built of: licences, sources and bans, as `deny.toml` has them (cargo-deny reads the same file).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

fn deny() -> toml::Table {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deny.toml");
    std::fs::read_to_string(path).unwrap().parse().unwrap()
}

fn texts<'t>(value: &'t toml::Value, key: &str) -> BTreeSet<&'t str> {
    value[key].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

/// The packages of a build for this machine: what is built is there already, so nothing is fetched.
fn packages() -> Vec<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let version = Command::new(&cargo).args(["-vV"]).output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let found = Command::new(&cargo)
        .args(["metadata", "--locked", "--offline", "--format-version", "1", "--filter-platform", host])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    let metadata: Value = serde_json::from_slice(&found.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// Whether an SPDX expression holds with these licences; a slash is an old `OR`.
fn holds(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut place = 0;
    let found = any(&words, &mut place, allowed);
    assert_eq!(place, words.len(), "{expression}");
    found
}

fn any(words: &[&str], place: &mut usize, allowed: &BTreeSet<&str>) -> bool {
    let mut found = all(words, place, allowed);
    while words.get(*place) == Some(&"OR") {
        *place += 1;
        found |= all(words, place, allowed);
    }
    found
}

fn all(words: &[&str], place: &mut usize, allowed: &BTreeSet<&str>) -> bool {
    let mut found = one(words, place, allowed);
    while words.get(*place) == Some(&"AND") {
        *place += 1;
        found &= one(words, place, allowed);
    }
    found
}

fn one(words: &[&str], place: &mut usize, allowed: &BTreeSet<&str>) -> bool {
    *place += 1;
    if words[*place - 1] == "(" {
        let found = any(words, place, allowed);
        assert_eq!(words.get(*place), Some(&")"));
        *place += 1;
        return found;
    }
    let mut licence = words[*place - 1].to_owned();
    if words.get(*place) == Some(&"WITH") {
        licence = format!("{licence} WITH {}", words[*place + 1]);
        *place += 2;
    }
    allowed.contains(licence.as_str())
}

#[test]
fn expressions_of_licences_are_read() {
    let allowed = BTreeSet::from(["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"]);
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0/MIT", true),
        ("GPL-3.0 AND MIT", false),
        ("(GPL-3.0 OR MIT) AND ISC", true),
        ("GPL-3.0 OR MIT AND Zlib", false),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("Apache-2.0", false),
    ] {
        assert_eq!(holds(expression, &allowed), expected, "{expression}");
    }
}

#[test]
fn every_dependency_has_a_licence_that_is_allowed_and_none_is_banned() {
    let deny = deny();
    let allowed = texts(&deny["licenses"], "allow");
    let banned: BTreeSet<&str> =
        deny["bans"]["deny"].as_array().unwrap().iter().map(|ban| ban["crate"].as_str().unwrap()).collect();
    let exceptions = deny["licenses"]["exceptions"].as_array().unwrap();
    let packages = packages();
    assert!(packages.len() > 100, "{}", packages.len());
    for package in &packages {
        let name = package["name"].as_str().unwrap();
        let licence = package["license"].as_str().unwrap_or_default();
        let mut allowed = allowed.clone();
        for exception in exceptions.iter().filter(|exception| exception["crate"].as_str() == Some(name)) {
            allowed.extend(texts(exception, "allow"));
        }
        assert!(!licence.is_empty() && holds(licence, &allowed), "{name}: {licence}");
        assert!(!banned.contains(name), "{name} is banned");
    }
}

#[test]
fn every_dependency_comes_from_the_registry_with_its_checksum() {
    let deny = deny();
    let registries = texts(&deny["sources"], "allow-registry");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock");
    let lock: toml::Table = std::fs::read_to_string(path).unwrap().parse().unwrap();
    let mut sources: BTreeMap<String, usize> = BTreeMap::new();
    for package in lock["package"].as_array().unwrap() {
        // What has no source is of this workspace.
        let Some(source) = package.get("source").and_then(toml::Value::as_str) else { continue };
        let registry = source.strip_prefix("registry+").unwrap_or(source);
        assert!(registries.contains(registry), "{} comes from {source}", package["name"]);
        assert!(package.get("checksum").is_some(), "{} has no checksum", package["name"]);
        *sources.entry(registry.to_owned()).or_default() += 1;
    }
    assert_eq!(sources.len(), 1, "{sources:?}");
}
