//! The metadata at the top of a model card, as hubs read it: what is known of the output, and what the original's card says that holds
//! for it as well.

use std::path::{Component, Path};

/// What the original's card says that holds for what is made from it.
const CARRIED: [&str; 6] =
    ["license", "license_name", "license_link", "language", "pipeline_tag", "extra_gated_prompt"];
/// Largest card that is read, bytes.
const MOST_BYTES: usize = 1 << 20;

/// The lines of a card's front matter that are carried over, as they are.
pub(super) fn carried(card: &str) -> Vec<String> {
    let card = card.strip_prefix('\u{feff}').unwrap_or(card);
    let mut lines = card.get(..card.len().min(MOST_BYTES)).unwrap_or_default().lines();
    if lines.next().map(str::trim_end) != Some("---") {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut taken = false;
    let mut open = Vec::new();
    for line in lines {
        if line.trim_end() == "---" {
            // Front matter that does not end is none.
            return open;
        }
        let inner = line.starts_with([' ', '\t', '-', '#']) || line.is_empty();
        if !inner {
            let key = line.split(':').next().unwrap_or_default().trim();
            taken = CARRIED.contains(&key);
        }
        if taken && !line.starts_with('#') && !line.is_empty() {
            found.push(line.trim_end().to_owned());
            open.clone_from(&found);
        }
    }
    Vec::new()
}

/// The hub's name of the model in a directory of the hub's cache, `models--ORG--NAME/snapshots/REVISION`.
pub(super) fn hub_name(directory: &Path) -> Option<String> {
    let whole = std::path::absolute(directory).ok()?;
    let name = |part: Component<'_>| {
        let (owner, model) = part.as_os_str().to_str()?.strip_prefix("models--")?.split_once("--")?;
        let known = |text: &str| {
            !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        (known(owner) && known(model)).then(|| format!("{owner}/{model}"))
    };
    whole.components().rev().find_map(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_for_the_output_is_carried_as_it_is() {
        let card = "---\nlicense: other\nlicense_link: https://example.org\ntags:\n- chat\nlanguage:\n- en\n- de\n# no\nmodel-index:\n  - license: x\n---\n# Model\nlicense: not this\n";
        let expected = ["license: other", "license_link: https://example.org", "language:", "- en", "- de"];
        assert_eq!(carried(card), expected);
        assert!(carried("# no front matter\nlicense: mit\n").is_empty());
        assert!(carried("---\nlicense: mit\n").is_empty());
        assert_eq!(carried("---\r\nlicense: mit\r\n---\r\n"), ["license: mit"]);
    }

    #[test]
    fn the_hub_s_cache_says_what_a_model_is_called() {
        let cached = Path::new("/cache/hub/models--org--a-model--v2/snapshots/0123");
        assert_eq!(hub_name(cached).as_deref(), Some("org/a-model--v2"));
        assert_eq!(hub_name(Path::new("/models/org/name")), None);
        assert_eq!(hub_name(Path::new("/models--a b--c")), None);
    }
}
