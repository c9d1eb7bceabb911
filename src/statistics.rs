//! What the solvers of one stage share: its input's second moment, prepared once for each set of settings that its linears have.

use model::Stage;
use model::linear::Linear;
use ndarray::{Array1, Array2, ArrayView2};
use quantizer::accumulator::{CrossMomentAccumulator, HessianAccumulator};
use quantizer::guard::{self, Shares, Statistics};
use quantizer::hessian::{Hessian, HessianError, Shortfall};
use quantizer::prepared::PreparedHessian;
use quantizer::settings::SolverSettings;

use crate::error::Error;
use crate::recipe::Treatment;
use crate::streams::{See, Seen};

/// Prepared Hessians by settings.
pub(crate) struct StageStatistics {
    prepared: Vec<(SolverSettings, PreparedHessian)>,
}

impl StageStatistics {
    /// Gathers what the stage's linears need: nothing, the second moment, or what the input and the residual stream lack as well.
    pub(crate) fn gather(
        stage: &Stage,
        linears: &[(&Linear, &Treatment)],
        weights: &[ArrayView2<'_, f32>],
        windows: usize,
        visit: impl FnOnce(&mut See<'_>) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let wanted = wanted(linears);
        let Some((first, _)) = linears.first().filter(|_| !wanted.is_empty()) else {
            return Ok(Self { prepared: Vec::new() });
        };
        let fail = |source| Error::Statistics { linear: first.name.clone(), source };
        let any = |holds: fn(&SolverSettings) -> bool| wanted.iter().any(|&settings| holds(settings));
        let accumulators = || Accumulators {
            hessian: HessianAccumulator::new(first.in_features),
            input: any(|settings| settings.alpha > 0.0)
                .then(|| CrossMomentAccumulator::new(first.in_features, first.in_features)),
            residual: (stage.writes_residual() && any(|settings| settings.beta > 0.0))
                .then(|| CrossMomentAccumulator::new(first.out_features, first.in_features)),
        };
        let mut fitted = accumulators();
        let mut held = (any(SolverSettings::propagates) && windows > 1).then(accumulators);
        let period = windows.min(HELD_OUT);
        let mut seen_windows = 0;
        visit(&mut |seen| {
            seen_windows += 1;
            match &mut held {
                Some(held) if seen_windows % period == 0 => held.observe(&seen),
                _ => fitted.observe(&seen),
            }
            .map_err(fail)
        })?;
        let fitted = fitted.finish().map_err(fail)?;
        let held = held.map(Accumulators::finish).transpose().map_err(fail)?;
        let shares: Vec<Option<Shares>> = wanted
            .iter()
            .map(|settings| {
                let held = held.as_ref().filter(|_| settings.propagates())?;
                Some(guard::shares(&fitted, held, weights, settings))
            })
            .collect();
        let Statistics { hessian, shortfall } = match held {
            Some(held) => fitted.merge(held),
            None => fitted,
        };
        let mut prepared = Vec::with_capacity(wanted.len());
        // Preparing consumes the matrices, which are large: copies are made only where settings differ.
        let last = wanted.len() - 1;
        for (settings, shares) in wanted.iter().zip(&shares).take(last) {
            let lacking = shares.map(|shares| (shortfall.clone(), shares));
            let ready = hessian.clone().prepare(settings, lacking).map_err(fail)?;
            prepared.push(((*settings).clone(), ready));
        }
        let lacking = shares[last].map(|shares| (shortfall, shares));
        prepared.push((wanted[last].clone(), hessian.prepare(wanted[last], lacking).map_err(fail)?));
        Ok(Self { prepared })
    }

    /// What is known from the mean squares of the stage's input alone, `[in_features]`: its Hessian's diagonal.
    pub(crate) fn of_mean_squares(
        linears: &[(&Linear, &Treatment)],
        mean_squares: &[f32],
    ) -> Result<Self, Error> {
        let diagonal: Array1<f64> = mean_squares.iter().map(|&x| f64::from(x)).collect();
        let mut prepared = Vec::new();
        for settings in wanted(linears) {
            let ready = Hessian::from_lower(Array2::from_diag(&diagonal), 1)
                .and_then(|hessian| hessian.prepare(settings, None))
                .map_err(|source| Error::Statistics { linear: linears[0].0.name.clone(), source })?;
            prepared.push((settings.clone(), ready));
        }
        Ok(Self { prepared })
    }

    /// The Hessian prepared for these settings; none for solvers that need no data.
    pub(crate) fn prepared(&self, settings: &SolverSettings) -> Option<&PreparedHessian> {
        self.prepared.iter().find(|(known, _)| known == settings).map(|(_, prepared)| prepared)
    }
}

/// The settings of linears whose solver needs data, each once.
fn wanted<'t>(linears: &[(&Linear, &'t Treatment)]) -> Vec<&'t SolverSettings> {
    let needs_data = |treatment: &Treatment| {
        quantizer::solver::find(treatment.solver).is_some_and(quantizer::solver::Solver::needs_hessian)
    };
    let mut wanted: Vec<&SolverSettings> = Vec::new();
    for (_, treatment) in linears.iter().filter(|(_, treatment)| needs_data(treatment)) {
        if !wanted.contains(&&treatment.settings) {
            wanted.push(&treatment.settings);
        }
    }
    wanted
}

/// Every so many windows one is held out.
const HELD_OUT: usize = 4;

/// What is gathered of some windows.
struct Accumulators {
    hessian: HessianAccumulator,
    input: Option<CrossMomentAccumulator>,
    residual: Option<CrossMomentAccumulator>,
}

impl Accumulators {
    fn observe(&mut self, seen: &Seen<'_>) -> Result<(), HessianError> {
        self.hessian.observe(seen.input)?;
        let Some((input, residual)) = seen.original else { return Ok(()) };
        if let Some(cross) = &mut self.input {
            cross.observe(input, seen.input, seen.input)?;
        }
        if let Some(cross) = &mut self.residual {
            cross.observe(residual, seen.residual, seen.input)?;
        }
        Ok(())
    }

    fn finish(self) -> Result<Statistics, HessianError> {
        let finish =
            |cross: Option<CrossMomentAccumulator>| cross.map(CrossMomentAccumulator::finish).transpose();
        let shortfall = Shortfall { input: finish(self.input)?, residual: finish(self.residual)? };
        Ok(Statistics { hessian: self.hessian.finish()?, shortfall })
    }
}
