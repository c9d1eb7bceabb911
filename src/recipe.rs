//! Recipes: which scheme and which solver each linear gets.
//!
//! A recipe is a built-in name or a TOML file. A file starts from a built-in recipe (`base`), may change it as a whole, and then
//! by rules, of which the later wins:
//!
//! ```toml
//! base = "gptq"              # rtn, gptq, default (the default) or max
//! bits = 3
//! group_size = 64            # or "channel", "tensor"
//! transforms = ["rotate-values"]   # changes of the weights before they are rounded; `quantc list transforms`
//! own_text = 7               # windows that the model writes beside each window of the calibration text
//! products = "f32"           # what calibration multiplies in: auto, f32 or bf16
//! scale_passes = 3           # passes over text in which scales learn from the original, once all codes stand
//! [settings]                 # of the solver
//! damping = 0.05
//!
//! [[rule]]                   # all conditions that are given must hold
//! roles = ["down"]
//! layers = "0-1,29"
//! names = "mlp"              # regular expression on the module path
//! bits = 4                   # what changes; `keep = true` leaves the linear in 16 bit
//! ```

use std::path::Path;

use calibration::transforms::Transform;
use formats::{FormatsError, files};
use model::linear::{Linear, Role};
use quantizer::scheme::{BitWidth, Granularity, GroupSize, Symmetry};
use quantizer::settings::{BUILT_IN, BuiltIn, SolverSettings};
use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::job::Overrides;
use crate::precision::Products;

/// Largest recipe, bytes: a rule takes some hundred.
const MOST_BYTES: u64 = 1 << 22;

/// What each linear gets.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Built-in name or the file's path.
    pub name: String,
    base: Treatment,
    transforms: Vec<Transform>,
    own_text: usize,
    scale_passes: usize,
    products: Products,
    rules: Vec<Rule>,
}

/// How one linear is quantized; the scale type is the model's and is added by the driver.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Treatment {
    /// Width of a code.
    pub bits: BitWidth,
    /// Which weights share a scale.
    pub granularity: Granularity,
    /// Where zero lies.
    pub symmetry: Symmetry,
    /// Which of the three somebody asked for, as against what is there by default.
    #[serde(skip)]
    pub asked: Overrides,
    /// Name of the solver.
    pub solver: &'static str,
    /// Its settings.
    pub settings: SolverSettings,
    /// Left in 16 bit.
    pub keep: bool,
}

#[derive(Clone, Debug)]
struct Rule {
    roles: Option<Vec<Role>>,
    layers: Option<Vec<std::ops::RangeInclusive<usize>>>,
    names: Option<Regex>,
    change: Change,
}

/// The keys of a recipe file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    base: Option<String>,
    solver: Option<String>,
    bits: Option<BitWidth>,
    group_size: Option<GroupSizeText>,
    symmetric: Option<bool>,
    settings: Option<toml::Table>,
    #[serde(default)]
    transforms: Vec<Transform>,
    own_text: Option<usize>,
    scale_passes: Option<usize>,
    #[serde(default)]
    products: Products,
    #[serde(default)]
    rule: Vec<FileRule>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRule {
    roles: Option<Vec<Role>>,
    layers: Option<String>,
    names: Option<String>,
    solver: Option<String>,
    bits: Option<BitWidth>,
    group_size: Option<GroupSizeText>,
    symmetric: Option<bool>,
    settings: Option<toml::Table>,
    keep: Option<bool>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum GroupSizeText {
    Columns(usize),
    Word(String),
}

#[derive(Clone, Debug, Default)]
struct Change {
    solver: Option<&'static str>,
    bits: Option<BitWidth>,
    granularity: Option<Granularity>,
    symmetry: Option<Symmetry>,
    settings: Option<toml::Table>,
    keep: Option<bool>,
}

impl Recipe {
    /// A built-in recipe by name, or a file.
    ///
    /// # Errors
    /// A name that is neither, or a file with unknown keys or values out of range.
    pub fn load(name_or_path: &str, overrides: &Overrides) -> Result<Self, Error> {
        let mut recipe = match built_in(name_or_path) {
            Some(known) => Self {
                name: name_or_path.to_owned(),
                base: Treatment::of(known),
                transforms: Vec::new(),
                own_text: own_text(known),
                scale_passes: scale_passes(known),
                products: Products::Auto,
                rules: Vec::new(),
            },
            None => Self::from_file(Path::new(name_or_path))?,
        };
        let base = &mut recipe.base;
        base.bits = overrides.bits.unwrap_or(base.bits);
        base.granularity = overrides.granularity.unwrap_or(base.granularity);
        base.symmetry = overrides.symmetry.unwrap_or(base.symmetry);
        base.asked = Overrides {
            bits: overrides.bits.or(base.asked.bits),
            granularity: overrides.granularity.or(base.asked.granularity),
            symmetry: overrides.symmetry.or(base.asked.symmetry),
        };
        Ok(recipe)
    }

    fn from_file(path: &Path) -> Result<Self, Error> {
        let shown = path.display().to_string();
        let fail = |problem: String| Error::Recipe { path: shown.clone(), problem };
        let text = files::read_regular(path, MOST_BYTES).map_err(|error| match error {
            FormatsError::Io { source, .. } => {
                let known: Vec<_> = BUILT_IN.iter().map(|known| known.name).collect();
                fail(format!("it is not one of {}, and no file that can be read: {source}", known.join(", ")))
            }
            other => other.into(),
        })?;
        let text = String::from_utf8(text).map_err(|_| fail("is not UTF-8".to_owned()))?;
        Self::parse(&shown, &text)
    }

    fn parse(shown: &str, text: &str) -> Result<Self, Error> {
        let fail = |problem: String| Error::Recipe { path: shown.to_owned(), problem };
        let file: File = toml::from_str(text).map_err(|e| fail(e.to_string().trim_end().to_owned()))?;
        let base_name = file.base.as_deref().unwrap_or("default");
        let base = built_in(base_name).ok_or_else(|| fail(format!("unknown base recipe `{base_name}`")))?;
        let own_text = file.own_text.unwrap_or(own_text(base));
        let scale_passes = file.scale_passes.unwrap_or(scale_passes(base));
        let whole = Change {
            solver: file.solver.as_deref().map(solver_named).transpose().map_err(fail)?,
            bits: file.bits,
            granularity: file.group_size.map(GroupSizeText::granularity).transpose().map_err(fail)?,
            symmetry: file.symmetric.map(symmetry),
            settings: file.settings,
            keep: None,
        };
        let base = whole.apply(&Treatment::of(base)).map_err(fail)?;
        let mut transforms = file.transforms;
        transforms.sort_unstable();
        if transforms.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(fail("transforms: the same one is given twice".to_owned()));
        }
        let mut rules = Vec::with_capacity(file.rule.len());
        for (index, rule) in file.rule.into_iter().enumerate() {
            let rule = rule.compile().map_err(|problem| fail(format!("rule {}: {problem}", index + 1)))?;
            rule.change.apply(&base).map_err(|problem| fail(format!("rule {}: {problem}", index + 1)))?;
            rules.push(rule);
        }
        for (key, found) in [("own_text", own_text), ("scale_passes", scale_passes)] {
            if found > MOST_TIMES {
                return Err(fail(format!("{key} is {found}, expected at most {MOST_TIMES}")));
            }
        }
        let products = file.products;
        Ok(Self { name: shown.to_owned(), base, transforms, own_text, scale_passes, products, rules })
    }

    /// All of it, as names and values.
    #[must_use]
    pub fn description(&self) -> Vec<(String, String)> {
        let mut description = Vec::new();
        let mut open = vec![(String::new(), serde_json::to_value(&self.base).unwrap_or_default())];
        while let Some((name, value)) = open.pop() {
            match value {
                serde_json::Value::Object(fields) => {
                    let name = |key: String| if name.is_empty() { key } else { format!("{name}.{key}") };
                    open.extend(fields.into_iter().rev().map(|(key, value)| (name(key), value)));
                }
                value => description.push((name, value.to_string())),
            }
        }
        description.push(("transforms".to_owned(), format!("{:?}", self.transforms)));
        description.push(("own_text".to_owned(), self.own_text.to_string()));
        description.push(("scale_passes".to_owned(), self.scale_passes.to_string()));
        description.push(("products".to_owned(), format!("{:?}", self.products).to_lowercase()));
        let rules = self.rules.iter().enumerate();
        description.extend(rules.map(|(number, rule)| (format!("rule {}", number + 1), format!("{rule:?}"))));
        description
    }

    /// What `linear` gets.
    #[must_use]
    pub fn treatment(&self, linear: &Linear) -> Treatment {
        self.rules.iter().filter(|rule| rule.matches(linear)).fold(self.base.clone(), |treatment, rule| {
            rule.change.apply(&treatment).expect("settings were checked when the recipe was read")
        })
    }

    /// The same with another width where no rule says one.
    #[must_use]
    pub fn with_bits(&self, bits: BitWidth) -> Self {
        let mut recipe = self.clone();
        recipe.base.bits = bits;
        recipe.base.asked.bits = Some(bits);
        recipe
    }

    /// Whether a rule says the width of `linear`, which a budget then leaves as it is.
    #[must_use]
    pub fn fixes_bits(&self, linear: &Linear) -> bool {
        self.rules.iter().any(|rule| rule.matches(linear) && rule.change.bits.is_some())
    }

    /// Number, from 1, of the first rule that matches none of `linears`.
    #[must_use]
    pub fn idle_rule(&self, linears: &[&Linear]) -> Option<usize> {
        let idle = |rule: &Rule| !linears.iter().any(|linear| rule.matches(linear));
        self.rules.iter().position(idle).map(|index| index + 1)
    }

    /// How the weights are changed before they are rounded, each once, in the order in which they are applied.
    #[must_use]
    pub fn transforms(&self) -> &[Transform] {
        &self.transforms
    }

    /// Windows that the model writes itself beside each window of the calibration text.
    #[must_use]
    pub fn own_text(&self) -> usize {
        self.own_text
    }

    /// Passes over some calibration windows in which scales learn from the original.
    #[must_use]
    pub fn scale_passes(&self) -> usize {
        self.scale_passes
    }

    /// What calibration multiplies in.
    #[must_use]
    pub fn products(&self) -> Products {
        self.products
    }

    /// What a linear gets that no rule matches.
    #[must_use]
    pub fn base(&self) -> &Treatment {
        &self.base
    }
}

impl Treatment {
    fn of(recipe: &BuiltIn) -> Self {
        Self {
            bits: BitWidth::new(4).expect("4 is a width"),
            granularity: Granularity::PerGroup(GroupSize::new(128).expect("128 is a group size")),
            symmetry: Symmetry::Symmetric,
            asked: Overrides::default(),
            solver: recipe.solver,
            settings: recipe.settings.clone(),
            keep: false,
        }
    }
}

impl Change {
    fn apply(&self, to: &Treatment) -> Result<Treatment, String> {
        let settings = match &self.settings {
            None => to.settings.clone(),
            Some(changes) => {
                let mut merged = toml::Table::try_from(&to.settings).map_err(|e| e.to_string())?;
                merged.extend(changes.clone());
                SolverSettings::deserialize(toml::Value::Table(merged))
                    .map_err(|e| format!("settings: {e}"))?
            }
        };
        settings.check().map_err(|e| format!("settings: {e}"))?;
        Ok(Treatment {
            bits: self.bits.unwrap_or(to.bits),
            granularity: self.granularity.unwrap_or(to.granularity),
            symmetry: self.symmetry.unwrap_or(to.symmetry),
            asked: Overrides {
                bits: self.bits.or(to.asked.bits),
                granularity: self.granularity.or(to.asked.granularity),
                symmetry: self.symmetry.or(to.asked.symmetry),
            },
            solver: self.solver.unwrap_or(to.solver),
            settings,
            keep: self.keep.unwrap_or(to.keep),
        })
    }
}

impl FileRule {
    fn compile(self) -> Result<Rule, String> {
        if self.roles.is_none() && self.layers.is_none() && self.names.is_none() {
            return Err("none of `roles`, `layers`, `names` is given".to_owned());
        }
        Ok(Rule {
            roles: self.roles,
            layers: self.layers.as_deref().map(parse_layers).transpose()?,
            names: self.names.as_deref().map(Regex::new).transpose().map_err(|e| format!("names: {e}"))?,
            change: Change {
                solver: self.solver.as_deref().map(solver_named).transpose()?,
                bits: self.bits,
                granularity: self.group_size.map(GroupSizeText::granularity).transpose()?,
                symmetry: self.symmetric.map(symmetry),
                settings: self.settings,
                keep: self.keep,
            },
        })
    }
}

impl Rule {
    fn matches(&self, linear: &Linear) -> bool {
        self.roles.as_ref().is_none_or(|roles| roles.contains(&linear.id.role))
            && self
                .layers
                .as_ref()
                .is_none_or(|layers| layers.iter().any(|range| range.contains(&linear.id.layer)))
            && self.names.as_ref().is_none_or(|names| names.is_match(&linear.name))
    }
}

impl GroupSizeText {
    fn granularity(self) -> Result<Granularity, String> {
        match self {
            Self::Columns(columns) => {
                GroupSize::new(columns).map(Granularity::PerGroup).map_err(|e| e.to_string())
            }
            Self::Word(word) if word == "channel" => Ok(Granularity::PerChannel),
            Self::Word(word) if word == "tensor" => Ok(Granularity::PerTensor),
            Self::Word(word) => {
                Err(format!("group_size is `{word}`, expected a number, `channel` or `tensor`"))
            }
        }
    }
}

fn built_in(name: &str) -> Option<&'static BuiltIn> {
    BUILT_IN.iter().find(|known| known.name == name)
}

/// What a built-in recipe adds to the calibration text, see [`Recipe::own_text`].
fn own_text(recipe: &BuiltIn) -> usize {
    if recipe.name == "max" { 7 } else { 0 }
}

/// Passes in which a built-in recipe's scales learn, see [`Recipe::scale_passes`].
fn scale_passes(recipe: &BuiltIn) -> usize {
    if recipe.name == "max" { 3 } else { 0 }
}

/// Both cost time by their number, and text memory.
const MOST_TIMES: usize = 64;

fn symmetry(symmetric: bool) -> Symmetry {
    if symmetric { Symmetry::Symmetric } else { Symmetry::Asymmetric }
}

fn solver_named(name: &str) -> Result<&'static str, String> {
    quantizer::solver::ALL
        .iter()
        .map(|solver| solver.name())
        .find(|&known| known == name)
        .ok_or_else(|| format!("unknown solver `{name}`"))
}

/// Layer indices from `0-3,7`.
fn parse_layers(text: &str) -> Result<Vec<std::ops::RangeInclusive<usize>>, String> {
    let number = |part: &str| {
        part.trim()
            .parse::<usize>()
            .map_err(|_| format!("layers is `{text}`, expected a list such as `0-3,7`"))
    };
    text.split(',')
        .map(|part| match part.split_once('-') {
            Some((first, last)) => match (number(first)?, number(last)?) {
                (first, last) if first > last => Err(format!("layers is `{text}`: {first} is behind {last}")),
                (first, last) => Ok(first..=last),
            },
            None => number(part).map(|index| index..=index),
        })
        .collect()
}

/// The built-in recipe that somebody meant who named a file that is not there.
pub(crate) fn resembling(name: &str) -> Option<&'static str> {
    let known = BUILT_IN.iter().map(|known| known.name);
    if Path::new(name).exists() { None } else { crate::error::nearest(name, known) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::linear::{LinearId, Part};

    fn linear(layer: usize, role: Role) -> Linear {
        let name = format!("model.layers.{layer}.{role:?}").to_lowercase();
        Linear {
            id: LinearId { layer, part: Part::Main, role },
            name,
            out_features: 64,
            in_features: 64,
            bias: false,
            class: model::linear::LinearClass::Plain,
        }
    }

    #[test]
    fn later_rules_win_and_only_where_they_match() {
        let text = "base = 'gptq'\nbits = 3\n[[rule]]\nroles = ['down']\nbits = 4\n[[rule]]\nlayers = '1-2,5'\nroles = ['down']\nbits = 8\nsettings = { damping = 0.5 }\n[[rule]]\nnames = 'layers\\.9\\.'\nkeep = true\n";
        let recipe = Recipe::parse("test", text).unwrap();
        assert_eq!(recipe.treatment(&linear(0, Role::Up)).bits.get(), 3);
        assert_eq!(recipe.treatment(&linear(0, Role::Down)).bits.get(), 4);
        let strong = recipe.treatment(&linear(5, Role::Down));
        assert_eq!((strong.bits.get(), strong.settings.damping), (8, 0.5));
        assert!(recipe.treatment(&linear(9, Role::Query)).keep && !strong.keep);
        assert!(recipe.fixes_bits(&linear(0, Role::Down)) && !recipe.fixes_bits(&linear(9, Role::Query)));
    }

    #[test]
    fn a_wrong_key_or_value_is_refused_and_named() {
        for (text, word) in [
            ("bist = 4", "bist"),
            ("bits = 9", "9"),
            ("base = 'best'", "best"),
            ("solver = 'magic'", "magic"),
            ("[[rule]]\nbits = 4", "rule 1"),
            ("[[rule]]\nlayers = 'x'\nbits = 4", "layers"),
            ("[[rule]]\nlayers = '3-1'\nbits = 4", "behind"),
            ("[settings]\ndampening = 0.1", "dampening"),
            ("group_size = 'row'", "row"),
            ("own_text = 65", "own_text is 65, expected at most 64"),
            ("scale_passes = 65", "scale_passes is 65, expected at most 64"),
            ("products = 'f16'", "bf16"),
            ("transforms = ['rotate']", "rotate-residual"),
            ("transforms = ['rotate-values', 'rotate-values']", "twice"),
        ] {
            let message = Recipe::parse("file.toml", text).unwrap_err().to_string();
            assert!(message.contains("file.toml") && message.contains(word), "{text}: {message}");
        }
    }

    #[test]
    fn flags_win_over_the_recipe() {
        let overrides = Overrides {
            bits: Some(BitWidth::new(2).unwrap()),
            symmetry: Some(Symmetry::Asymmetric),
            granularity: None,
        };
        let recipe = Recipe::load("rtn", &overrides).unwrap();
        assert_eq!(recipe.base().bits.get(), 2);
        assert_eq!(recipe.base().symmetry, Symmetry::Asymmetric);
    }
}
