//! What the solvers of one stage share: its input's second moment, prepared once for each set of settings that its linears have.

use model::linear::Linear;
use quantizer::accumulator::{CrossMomentAccumulator, HessianAccumulator};
use quantizer::prepared::PreparedHessian;
use quantizer::settings::SolverSettings;

use crate::error::Error;
use crate::recipe::Treatment;
use crate::streams::See;

/// Prepared Hessians by settings.
pub(crate) struct StageStatistics {
    prepared: Vec<(SolverSettings, PreparedHessian)>,
}

impl StageStatistics {
    /// Gathers what the stage's linears need: nothing, the second moment, or the cross moment with the original as well.
    pub(crate) fn gather(
        linears: &[(&Linear, &Treatment)],
        visit: impl FnOnce(&mut See<'_>) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let needs_data = |treatment: &Treatment| {
            quantizer::solver::find(treatment.solver).is_some_and(quantizer::solver::Solver::needs_hessian)
        };
        let mut wanted: Vec<&SolverSettings> = Vec::new();
        for (_, treatment) in linears.iter().filter(|(_, treatment)| needs_data(treatment)) {
            if !wanted.contains(&&treatment.settings) {
                wanted.push(&treatment.settings);
            }
        }
        let Some((first, _)) = linears.first().filter(|_| !wanted.is_empty()) else {
            return Ok(Self { prepared: Vec::new() });
        };
        let fail = |source| Error::Statistics { linear: first.name.clone(), source };
        let mut hessian = HessianAccumulator::new(first.in_features);
        let mut cross = wanted
            .iter()
            .any(|settings| settings.alpha > 0.0)
            .then(|| CrossMomentAccumulator::new(first.in_features));
        visit(&mut |input, original| {
            hessian.observe(input).map_err(fail)?;
            if let (Some(cross), Some(original)) = (&mut cross, original) {
                cross.observe(original, input).map_err(fail)?;
            }
            Ok(())
        })?;
        let hessian = hessian.finish().map_err(fail)?;
        let cross = cross.map(CrossMomentAccumulator::finish).transpose().map_err(fail)?;
        let mut prepared = Vec::with_capacity(wanted.len());
        // Preparing consumes the matrices, which are large: copies are made only where settings differ.
        let (last, others) = wanted.split_last().expect("something is wanted");
        for settings in others {
            let ready = hessian.clone().prepare(settings, cross.clone()).map_err(fail)?;
            prepared.push(((*settings).clone(), ready));
        }
        prepared.push(((*last).clone(), hessian.prepare(last, cross).map_err(fail)?));
        Ok(Self { prepared })
    }

    /// The Hessian prepared for these settings; none for solvers that need no data.
    pub(crate) fn prepared(&self, settings: &SolverSettings) -> Option<&PreparedHessian> {
        self.prepared.iter().find(|(known, _)| known == settings).map(|(_, prepared)| prepared)
    }
}
