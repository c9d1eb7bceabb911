//! `inspect`: what a checkpoint is, without running it.

use std::collections::BTreeMap;
use std::path::Path;

use formats::target::{self, PlannedLinear, TargetFormat};
use model::linear::{Linear, Role};
use quantizer::levels::Levels;
use quantizer::scheme::{Granularity, Symmetry};
use serde::Serialize;

use crate::error::Error;
use crate::report::{ModelSummary, RuntimeRow};
use crate::stored::StoredModel;

/// What a checkpoint is.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The model in a few words.
    pub model: ModelSummary,
    /// All files of weights, bytes.
    pub bytes: u64,
    /// Files of weights.
    pub files: usize,
    /// Grids, each with how many linears have it.
    pub schemes: Vec<SchemeRow>,
    /// Tensors that no description of the architecture knows.
    pub unknown_tensors: Vec<String>,
    /// Which runtimes load a quantized checkpoint.
    pub runtimes: Vec<RuntimeRow>,
}

/// Linears on one kind of grid.
#[derive(Clone, Debug, Serialize)]
pub struct SchemeRow {
    /// The grid, in words.
    pub scheme: String,
    /// How many linears have it.
    pub linears: usize,
}

/// Opens a checkpoint, original or quantized, and says what it is.
///
/// # Errors
/// A directory that is no checkpoint.
pub fn inspect(directory: &Path) -> Result<Inspection, Error> {
    let stored = StoredModel::open(directory)?;
    let mut schemes: BTreeMap<String, usize> = BTreeMap::new();
    let mut plan = Vec::new();
    let outer: Vec<Linear> =
        stored.model.outer_linears().filter(|linear| stored.scheme(linear).is_some()).collect();
    let stages = stored.model.layers.iter().flat_map(|layer| &layer.stages).map(|stage| &stage.linears[..]);
    for (fused_group, linears) in stages.chain(outer.chunks(1)).enumerate() {
        for linear in linears {
            let scheme = stored.scheme(linear);
            let words = match scheme {
                None => "not quantized".to_owned(),
                Some(scheme) => {
                    let symmetry = match scheme.symmetry {
                        Symmetry::Symmetric => "symmetric",
                        Symmetry::Asymmetric => "asymmetric",
                        Symmetry::Minimum => "with minimums",
                    };
                    let scales = match scheme.granularity {
                        Granularity::PerTensor => "one scale".to_owned(),
                        Granularity::PerChannel => "whole rows".to_owned(),
                        Granularity::PerGroup(size) => format!("groups of {}", size.get()),
                    };
                    match scheme.levels {
                        Levels::Uniform => format!("{} bit, {symmetry}, {scales}", scheme.bits.get()),
                        table => format!("{}, {scales}", table.name()),
                    }
                }
            };
            let words = match linear.id.role {
                Role::Embedding => format!("{words} (embedding)"),
                Role::Head => format!("{words} (head)"),
                _ => words,
            };
            *schemes.entry(words).or_default() += 1;
            plan.push(PlannedLinear { linear: linear.clone(), fused_group, scheme });
        }
    }
    let format = stored.format.as_ref().map(|format| format.id());
    let loaders = target::all().filter(|known| Some(known.id()) == format).flat_map(TargetFormat::loaders);
    Ok(Inspection {
        model: stored.summary()?,
        bytes: stored.checkpoint.file_bytes()?,
        files: stored.checkpoint.files().count(),
        schemes: schemes.into_iter().map(|(scheme, linears)| SchemeRow { scheme, linears }).collect(),
        unknown_tensors: stored.unknown_tensors(),
        runtimes: loaders
            .map(|rule| rule.check(&plan))
            .map(|v| RuntimeRow { runtime: v.runtime.to_owned(), loads: v.loads, remark: v.remark })
            .collect(),
    })
}
