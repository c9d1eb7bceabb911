//! Importance matrices of llama.cpp: somebody else's used instead of calibration text, and the original's gathered and written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use calibration::weights::LayerWeights;
use formats::imatrix::{Entry, Imatrix, gguf_name};
use model::linear::{Linear, LinearId};
use model::{Layer, Model, Stage};
use ndarray::{Array1, Axis, Zip};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::export::ExportFile;
use crate::plan::Plan;
use crate::report::{ImatrixSummary, TextSummary};
use crate::statistics::StageStatistics;
use crate::streams::Streams;

/// Mean squares of the inputs of every stage that is quantized.
pub(crate) struct MeanSquares {
    path: PathBuf,
    imatrix: Imatrix,
    pub(crate) summary: ImatrixSummary,
}

impl MeanSquares {
    /// Reads a file and checks that it has what `plan` needs, before any work.
    pub(crate) fn read(path: &Path, plan: &Plan, model: &Model) -> Result<Self, Error> {
        let imatrix = Imatrix::read(path)?;
        let summary = ImatrixSummary {
            path: path.display().to_string(),
            datasets: imatrix.datasets.clone(),
            chunks: imatrix.chunks,
        };
        let known = Self { path: path.to_owned(), imatrix, summary };
        for stage in model.layers.iter().flat_map(|layer| &layer.stages) {
            let solved = solved(plan, stage);
            if !solved.is_empty() {
                known.imatrix.of_stage(&known.path, &solved)?;
            }
        }
        Ok(known)
    }

    /// The diagonal Hessian of a stage's input.
    pub(crate) fn of_stage(&self, plan: &Plan, stage: &Stage) -> Result<StageStatistics, Error> {
        let solved = solved(plan, stage);
        let linears: Vec<_> = solved.iter().map(|&linear| (linear, plan.treatment(linear))).collect();
        let mean_squares =
            if solved.is_empty() { &[] } else { self.imatrix.of_stage(&self.path, &solved)? };
        StageStatistics::of_mean_squares(&linears, mean_squares)
    }
}

fn solved<'s>(plan: &Plan, stage: &'s Stage) -> Vec<&'s Linear> {
    stage.linears.iter().filter(|linear| plan.scheme(linear).is_some()).collect()
}

/// Sums of squares of the original's inputs, of every linear.
#[derive(Default)]
pub(crate) struct ImportanceGatherer {
    /// By linear: GGUF's name, sums `[in_features]`, tokens.
    sums: BTreeMap<LinearId, (String, Array1<f64>, usize)>,
}

/// What was gathered of one linear.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Importance {
    /// Module path.
    linear: String,
    /// `[in_features]`.
    sums: Vec<f64>,
    tokens: usize,
}

impl ImportanceGatherer {
    /// What was gathered of a layer.
    pub(crate) fn of_layer(&self, layer: &Layer) -> Vec<Importance> {
        let linears = layer.stages.iter().flat_map(|stage| &stage.linears);
        let importance = linears.filter_map(|linear| {
            let (_, sums, tokens) = self.sums.get(&linear.id)?;
            Some(Importance { linear: linear.name.clone(), sums: sums.to_vec(), tokens: *tokens })
        });
        importance.collect()
    }

    /// Takes in what an earlier run gathered of a layer.
    pub(crate) fn restore(&mut self, layer: &Layer, gathered: Vec<Importance>) {
        let linears = || layer.stages.iter().flat_map(|stage| &stage.linears);
        for Importance { linear: name, sums, tokens } in gathered {
            if let Some(linear) = linears().find(|linear| linear.name == name) {
                self.sums.insert(linear.id, (gguf_name(linear), sums.into(), tokens));
            }
        }
    }

    /// Adds all windows' inputs of a stage.
    pub(crate) fn gather(
        &mut self,
        streams: &Streams<'_>,
        layer: &Layer,
        place: usize,
        weights: &LayerWeights,
    ) -> Result<(), Error> {
        let linears = &layer.stages[place].linears;
        let Some(first) = linears.first() else { return Ok(()) };
        let mut sums = Array1::<f64>::zeros(first.in_features);
        let mut tokens = 0;
        streams.see_original_input(layer, place, weights, &mut |input| {
            tokens += input.nrows();
            for row in input.axis_iter(Axis(0)) {
                Zip::from(&mut sums).and(row).for_each(|sum, &x| *sum += f64::from(x) * f64::from(x));
            }
        })?;
        for linear in linears {
            self.sums.insert(linear.id, (gguf_name(linear), sums.clone(), tokens));
        }
        Ok(())
    }
}

/// Where an importance matrix goes.
pub(crate) struct ImportanceFile(ExportFile);

impl ImportanceFile {
    /// Opens `path` before the work.
    pub(crate) fn create(path: &Path, output: &Path) -> Result<Self, Error> {
        const FLAG: &str = "--export-imatrix";
        let file = ExportFile::create(FLAG, path)?;
        file.demand_outside(FLAG, output)?;
        Ok(Self(file))
    }

    /// Writes what was gathered on `text`.
    pub(crate) fn write(mut self, gathered: ImportanceGatherer, text: &TextSummary) -> Result<(), Error> {
        let entry = |(name, sums, tokens): (String, Array1<f64>, usize)| {
            let mean_squares = sums.iter().map(|sum| (sum / tokens as f64) as f32).collect();
            (name, Entry { mean_squares, count: tokens as f32 })
        };
        let imatrix = Imatrix {
            entries: gathered.sums.into_values().map(entry).collect(),
            datasets: vec![text.text.clone()],
            chunks: u32::try_from(text.windows).unwrap_or(u32::MAX),
            chunk_size: u32::try_from(text.context).ok(),
        };
        self.0.write(&imatrix.encode())?;
        self.0.finish()
    }
}
