//! The architecture's rules, checked: who may name whom, where names of the field's things may stand, and house style.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Crate, level, and the crates it may use. A crate may use lower levels and none of its own.
const LEVELS: [(&str, u8); 6] =
    [("kernels", 0), ("model", 1), ("quantizer", 1), ("formats", 2), ("calibration", 2), ("quantc", 3)];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn source_folder(name: &str) -> PathBuf {
    if name == "quantc" { root().join("src") } else { root().join(name).join("src") }
}

fn manifest(name: &str) -> toml::Table {
    let path =
        if name == "quantc" { root().join("Cargo.toml") } else { root().join(name).join("Cargo.toml") };
    fs::read_to_string(path).unwrap().parse().unwrap()
}

/// The code of a file without its comments, strings kept.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n")
}

/// The code of a file up to its tests.
fn code_without_tests(path: &Path) -> String {
    let code = code(path);
    code.split("#[cfg(test)]").next().unwrap_or("").to_owned()
}

#[test]
fn a_crate_uses_only_crates_of_lower_levels() {
    let levels: BTreeMap<_, _> = LEVELS.into_iter().collect();
    for (name, level) in LEVELS {
        let manifest = manifest(name);
        let dependencies = manifest["dependencies"].as_table().unwrap();
        for dependency in dependencies.keys() {
            if let Some(&other) = levels.get(dependency.as_str()) {
                assert!(other < level, "{name} (level {level}) depends on {dependency} (level {other})");
            }
        }
    }
}

#[test]
fn unsafe_code_lives_in_kernels_alone() {
    for (name, _) in LEVELS.into_iter().filter(|(name, _)| *name != "kernels") {
        let inherits = manifest(name)["lints"]["workspace"].as_bool();
        assert_eq!(inherits, Some(true), "{name} must inherit the workspace's lints, which deny unsafe code");
    }
    let workspace = manifest("quantc");
    assert_eq!(workspace["workspace"]["lints"]["rust"]["unsafe_code"].as_str(), Some("deny"));
}

#[test]
fn names_of_architectures_formats_and_solvers_stay_in_their_own_files() {
    let architectures: Vec<&str> = model::architectures::ALL.iter().map(|known| known.model_type).collect();
    let targets: Vec<&str> = formats::target::all().map(formats::target::TargetFormat::id).collect();
    let solvers: Vec<&str> = quantizer::solver::ALL.iter().map(|known| known.name()).collect();
    // The default target is the one name that the command line has to know; built-in recipes say which solver they are for.
    let exceptions = [
        (root().join("src/cli/quantize.rs"), "gptq"),
        (root().join("quantizer/src/settings.rs"), "gptq"),
        (root().join("quantizer/src/settings.rs"), "rtn"),
        // GGUF calls ways to split text, and a kind of tokenizer, after the models that had them first.
        (root().join("formats/src/gguf/pretokenizers.rs"), "qwen2"),
        (root().join("formats/src/gguf/pretokenizers.rs"), "falcon"),
        (root().join("formats/src/gguf/pretokenizers.rs"), "bloom"),
        (root().join("formats/src/gguf/vocabulary.rs"), "llama"),
        (root().join("formats/src/gguf/vocabulary.rs"), "gpt2"),
        // llama.cpp looks for it in a model's name.
        (root().join("formats/src/gguf/naming.rs"), "phi3"),
    ];
    for (crate_name, _) in LEVELS {
        for path in sources(&source_folder(crate_name)) {
            let here = path.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/");
            let code = code_without_tests(&path);
            let mut banned: Vec<&str> = Vec::new();
            if !here.starts_with("model/src/architectures/") {
                banned.extend(&architectures);
            }
            if !here.starts_with("formats/src/target/") && !here.starts_with("quantizer/src/solver/") {
                banned.extend(targets.iter().chain(&solvers));
            }
            for name in banned {
                let excused = exceptions.iter().any(|(file, word)| *file == path && *word == name);
                assert!(excused || !code.contains(&format!("\"{name}\"")), "{here} names \"{name}\"");
            }
        }
    }
}

#[test]
fn only_the_driver_reads_clocks_and_prints() {
    for (name, _) in LEVELS.into_iter().filter(|(name, _)| *name != "quantc") {
        for path in sources(&source_folder(name)) {
            let code = code_without_tests(&path);
            for banned in ["Instant::now", "SystemTime", "println!", "eprintln!", "std::env::args"] {
                assert!(!code.contains(banned), "{} uses {banned}", path.display());
            }
        }
    }
}

#[test]
fn files_have_one_idea_and_open_with_what_they_are_for() {
    for (name, _) in LEVELS {
        for path in sources(&source_folder(name)).into_iter().filter(|path| !path.ends_with("tests.rs")) {
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("//!"), "{} does not say what it is for", path.display());
            let logic = text.split("#[cfg(test)]").next().unwrap_or("").lines().count();
            assert!(logic <= 600, "{} has {logic} lines before its tests", path.display());
        }
        for word in ["utils.rs", "helpers.rs", "common.rs", "misc.rs"] {
            let stray = sources(&source_folder(name)).into_iter().find(|path| path.ends_with(word));
            assert!(stray.is_none(), "{stray:?}: name the idea instead");
        }
    }
}

/// The table of formats in README.md.
fn support_matrix() -> String {
    let rows = formats::target::all().map(|format| {
        let loaders: Vec<&str> = format.loaders().iter().map(|rule| rule.runtime).collect();
        format!("| `{}` | {} | {} |\n", format.id(), format.summary(), loaders.join("; "))
    });
    let head = "| `--to` | what | runtimes whose rules are checked |\n|---|---|---|\n";
    std::iter::once(head.to_owned()).chain(rows).collect()
}

#[test]
fn the_readme_has_the_registry_s_formats() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    assert!(readme.contains(&support_matrix()), "expected in README.md:\n{}", support_matrix());
}

#[test]
fn no_test_is_switched_off() {
    for folder in LEVELS.iter().map(|(name, _)| source_folder(name)).chain([root().join("tests")]) {
        for path in sources(&folder) {
            let switched_off = concat!("#[", "ignore");
            assert!(!code(&path).contains(switched_off), "{}", path.display());
        }
    }
}

#[test]
fn the_list_of_architectures_names_every_one() {
    let list = fs::read_to_string(root().join("docs/architectures.md")).unwrap();
    for known in model::architectures::ALL {
        assert!(
            list.contains(&format!("`{}`", known.model_type)),
            "docs/architectures.md lacks {}",
            known.model_type
        );
    }
}
