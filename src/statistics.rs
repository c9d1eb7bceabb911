//! What the solvers of one stage share: its input's second moment, prepared once for each set of settings that its linears have.

use model::Stage;
use model::linear::Linear;
use quantizer::accumulator::{CrossMomentAccumulator, HessianAccumulator};
use quantizer::hessian::Shortfall;
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
    /// Gathers what the stage's linears need: nothing, the second moment, or what the input and the residual stream lack as well.
    pub(crate) fn gather(
        stage: &Stage,
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
        let any = |holds: fn(&SolverSettings) -> bool| wanted.iter().any(|&settings| holds(settings));
        let cross = |features| CrossMomentAccumulator::new(features, first.in_features);
        let mut input_cross = any(|settings| settings.alpha > 0.0).then(|| cross(first.in_features));
        let mut residual_cross = (stage.writes_residual() && any(|settings| settings.beta > 0.0))
            .then(|| cross(first.out_features));
        visit(&mut |seen| {
            hessian.observe(seen.input).map_err(fail)?;
            let Some((input, residual)) = seen.original else { return Ok(()) };
            if let Some(cross) = &mut input_cross {
                cross.observe(input, seen.input, seen.input).map_err(fail)?;
            }
            if let Some(cross) = &mut residual_cross {
                cross.observe(residual, seen.residual, seen.input).map_err(fail)?;
            }
            Ok(())
        })?;
        let hessian = hessian.finish().map_err(fail)?;
        let finish = |cross: Option<CrossMomentAccumulator>| {
            cross.map(CrossMomentAccumulator::finish).transpose().map_err(fail)
        };
        let shortfall = Shortfall { input: finish(input_cross)?, residual: finish(residual_cross)? };
        let mut prepared = Vec::with_capacity(wanted.len());
        // Preparing consumes the matrices, which are large: copies are made only where settings differ.
        let (last, others) = wanted.split_last().expect("something is wanted");
        for settings in others {
            let ready = hessian.clone().prepare(settings, shortfall.clone()).map_err(fail)?;
            prepared.push(((*settings).clone(), ready));
        }
        prepared.push(((*last).clone(), hessian.prepare(last, shortfall).map_err(fail)?));
        Ok(Self { prepared })
    }

    /// The Hessian prepared for these settings; none for solvers that need no data.
    pub(crate) fn prepared(&self, settings: &SolverSettings) -> Option<&PreparedHessian> {
        self.prepared.iter().find(|(known, _)| known == settings).map(|(_, prepared)| prepared)
    }
}
