//! What an unknown architecture is most like: the known one whose tensors the checkpoint has most of.

use std::collections::BTreeSet;
use std::path::Path;

use formats::Checkpoint;
use model::architecture::Architecture;
use model::{Model, registry};
use serde_json::{Value, json};

use crate::error::Error;

/// Tensors that are named for each difference.
const NAMED: usize = 3;

/// How a checkpoint lies to a known architecture.
struct Likeness {
    known: &'static Architecture,
    /// Tensors that are there as the known one has them.
    common: usize,
    /// Tensors that it has and the checkpoint has not, or not of that shape.
    missing: Names,
    /// Tensors of the checkpoint that it does not know.
    unknown: Names,
}

/// Names, of which the first few are kept: a configuration may ask for any number of layers.
#[derive(Default)]
struct Names {
    count: usize,
    first: Vec<String>,
}

impl Names {
    fn add(&mut self, name: &str) {
        self.count += 1;
        if self.count <= NAMED {
            self.first.push(format!("`{name}`"));
        }
    }

    fn listed(&self, what: &str) -> String {
        match self.count {
            0 => String::new(),
            count if count > NAMED => {
                format!("; {what}: {} and {} more", self.first.join(", "), count - NAMED)
            }
            _ => format!("; {what}: {}", self.first.join(", ")),
        }
    }
}

/// The error for a checkpoint of the unknown `model_type`; none where no known architecture can be made of its numbers.
pub(super) fn unknown(
    path: &Path,
    config: &Value,
    checkpoint: &Checkpoint,
    model_type: &str,
) -> Option<Error> {
    let likeness = registry::all().into_iter().filter_map(|known| likeness(known, config, checkpoint));
    let share = |one: &Likeness| {
        let all = one.common + one.missing.count + one.unknown.count;
        (one.common as f64 / all.max(1) as f64 * 1e6) as u64
    };
    // The first of several that are alike: later ones are written as differences from it.
    let nearest = likeness.rev().max_by_key(share).filter(|nearest| nearest.common > 0)?;
    let problem = format!(
        "unknown architecture `{model_type}`; the nearest known one is `{}`, of whose {} tensors {} are here with their shapes{}{}",
        nearest.known.model_type,
        nearest.common + nearest.missing.count,
        nearest.common,
        nearest.missing.listed("missing or of other shapes"),
        nearest.unknown.listed("unknown to it"),
    );
    let hint = "if it computes what a known one does but for names and choices, describe it in a file: --architecture FILE (docs/architectures.md); `quantc list architectures` shows those that are known";
    Some(Error::NotSuitable { path: path.to_owned(), problem, hint })
}

fn likeness(known: &'static Architecture, config: &Value, checkpoint: &Checkpoint) -> Option<Likeness> {
    let mut config = config.clone();
    let part = if config["text_config"].is_object() { &mut config["text_config"] } else { &mut config };
    // No layer is without a tensor: what asks for more is like nothing, and would take long to compare.
    let tensors = checkpoint.names().count() as u64;
    if part["num_hidden_layers"].as_u64().is_some_and(|layers| layers > tensors) {
        return None;
    }
    part["model_type"] = json!(known.model_type);
    let model = Model::resolve_for(&config, &|name| checkpoint.contains(name)).ok()?;
    let (mut common, mut missing, mut expected) = (0, Names::default(), BTreeSet::new());
    for tensor in model.expected_tensors() {
        let fits = checkpoint.info(&tensor.name).is_ok_and(|found| found.shape == tensor.shape);
        if fits {
            common += 1;
            expected.insert(tensor.name);
        } else if checkpoint.contains(&tensor.name) {
            missing.add(&tensor.name);
            expected.insert(tensor.name);
        } else {
            missing.add(&tensor.name);
        }
    }
    let mut unknown = Names::default();
    checkpoint.names().filter(|name| !expected.contains(*name)).for_each(|name| unknown.add(name));
    Some(Likeness { known: model.architecture, common, missing, unknown })
}
