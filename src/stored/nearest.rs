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
    missing: Vec<String>,
    /// Tensors of the checkpoint that it does not know.
    unknown: Vec<String>,
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
        let all = one.common + one.missing.len() + one.unknown.len();
        (one.common as f64 / all.max(1) as f64 * 1e6) as u64
    };
    // The first of several that are alike: later ones are written as differences from it.
    let nearest = likeness.rev().max_by_key(share).filter(|nearest| nearest.common > 0)?;
    let listed = |what: &str, names: &[String]| {
        if names.is_empty() {
            return String::new();
        }
        let some: Vec<String> = names.iter().take(NAMED).map(|name| format!("`{name}`")).collect();
        let more =
            if names.len() > NAMED { format!(" and {} more", names.len() - NAMED) } else { String::new() };
        format!("; {what}: {}{more}", some.join(", "))
    };
    let problem = format!(
        "unknown architecture `{model_type}`; the nearest known one is `{}`, of whose {} tensors {} are here with their shapes{}{}",
        nearest.known.model_type,
        nearest.common + nearest.missing.len(),
        nearest.common,
        listed("missing or of other shapes", &nearest.missing),
        listed("unknown to it", &nearest.unknown),
    );
    let hint = "if it computes what a known one does but for names and choices, describe it in a file: --architecture FILE (docs/architectures.md); `quantc list architectures` shows those that are known";
    Some(Error::NotSuitable { path: path.to_owned(), problem, hint })
}

fn likeness(known: &'static Architecture, config: &Value, checkpoint: &Checkpoint) -> Option<Likeness> {
    let mut config = config.clone();
    let part = if config["text_config"].is_object() { &mut config["text_config"] } else { &mut config };
    part["model_type"] = json!(known.model_type);
    let model = Model::resolve_for(&config, &|name| checkpoint.contains(name)).ok()?;
    let (mut common, mut missing, mut expected) = (0, Vec::new(), BTreeSet::new());
    for tensor in model.expected_tensors() {
        let fits = checkpoint.info(&tensor.name).is_ok_and(|found| found.shape == tensor.shape);
        if fits {
            common += 1;
        } else {
            missing.push(tensor.name.clone());
        }
        expected.insert(tensor.name);
    }
    let unknown = checkpoint.names().filter(|name| !expected.contains(*name)).map(str::to_owned).collect();
    Some(Likeness { known: model.architecture, common, missing, unknown })
}
