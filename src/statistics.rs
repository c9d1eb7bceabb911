//! What the solvers of one stage share: its input's second moment, prepared once for each set of settings that its linears have.
//!
//! A stage that writes to the residual stream can make up for what its input lacks, `ΔX`, and for what the stream itself does, `ΔR`. Where both count alike
//! its target moves by a multiple of `(W C + Γ) (H + λ'I)⁻¹`, in which `W C + Γ` is the one cross moment of `ΔX Wᵀ + ΔR` with the input. That is gathered where
//! it is narrower than the input: for a down projection it is several times less to multiply and to hold.

use std::sync::Arc;

use kernels::bf16::Precision;
use kernels::ranks::{Alone, Ranks};
use kernels::stripes::Shelf;
use model::Stage;
use model::linear::Linear;
use ndarray::{Array1, Array2};
use quantizer::accumulator::{HessianAccumulator, Lack, Streams, Window};
use quantizer::guard::held_out::HeldOut;
use quantizer::guard::{self, Statistics, Unsolved, Verdict};
use quantizer::hessian::{Hessian, HessianError, Shortfall};
use quantizer::prepared::PreparedHessian;
use quantizer::settings::SolverSettings;
use rayon::prelude::*;

use crate::error::Error;
use crate::recipe::Treatment;
use crate::streams::{Lacks, See, Seen, Through, Wanted};

/// An expert's tokens, which may be few or none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sent {
    /// What stands in for those that are missing: the second moment that the expert's input has over the layer's tokens, counted as so many.
    pub(crate) pooled: Option<Hessian>,
}

/// The ranks that gather, and those of them that solve with what is gathered.
#[derive(Clone, Debug)]
pub(crate) struct Among {
    pub(crate) ranks: Arc<dyn Ranks>,
    pub(crate) solvers: Vec<usize>,
}

impl Among {
    /// One process without others.
    pub(crate) fn alone() -> Self {
        Self { ranks: Alone::ranks(), solvers: vec![0] }
    }
}

/// Prepared Hessians by settings, and what held-out windows judge solutions by.
#[derive(Default)]
pub(crate) struct StageStatistics {
    prepared: Vec<(SolverSettings, PreparedHessian)>,
    held_out: Option<HeldOut>,
}

/// Moments of a stage's input as they were gathered, before anything is decided by them.
pub(crate) struct Gathered<'s> {
    /// Each once.
    wanted: Vec<&'s SolverSettings>,
    unsolved: Vec<Unsolved<'s>>,
    /// None where nobody here solves with them.
    parts: Option<Parts>,
    /// Whether what the input lacks and what the residual stream does are one cross moment.
    together: bool,
    /// The first linear, for errors.
    name: &'s str,
}

/// Both parts of the windows.
struct Parts {
    fitted: Statistics,
    held: Option<Statistics>,
}

impl<'s> Gathered<'s> {
    /// Gathers what the stage's linears need: nothing, the second moment, or what the input and the residual stream lack as well. `sent` for
    /// an expert's stage, of which windows may have no token. Products are computed in `precision`, second moments lie on `shelf`. A rank that
    /// solves nothing with it has nothing in the end.
    pub(crate) fn gather(
        stage: &Stage,
        linears: &[(&'s Linear, &'s Treatment)],
        unsolved: Vec<Unsolved<'s>>,
        windows: usize,
        sent: Option<Sent>,
        (precision, shelf, among): (Precision, &Arc<Shelf>, Among),
        visit: impl FnOnce(Wanted<'_>, &mut See<'_>) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let wanted = wanted(linears);
        let Some(&(first, _)) = linears.first().filter(|_| !wanted.is_empty()) else {
            return Ok(Self { wanted, unsolved, parts: None, together: false, name: "" });
        };
        let fail = |source| Error::Statistics { linear: first.name.clone(), source };
        let any = |holds: fn(&SolverSettings) -> bool| wanted.iter().any(|&settings| holds(settings));
        let together = lacks_together(stage, &wanted) && !unsolved.is_empty();
        let input = !together && any(|settings| settings.alpha > 0.0);
        let residual = stage.writes_residual && any(|settings| settings.beta > 0.0);
        let through = unsolved.first().filter(|_| together).map(|one| Through::new(one.weight, precision));
        let accumulators = || {
            let moments = HessianAccumulator::on(first.in_features, shelf).with_precision(precision);
            let mut moments = moments.among(&among.ranks, &among.solvers);
            if input {
                moments = moments.with_cross_moment(first.in_features);
            }
            if residual {
                moments = moments.with_cross_moment(first.out_features);
            }
            let shares = among.ranks.rank() < moments.sharers();
            Accumulators { moments, input, residual, through: through.as_ref(), shares }
        };
        let mut fitted = accumulators();
        let guarded = any(|settings| settings.guard);
        let mut held = ((guarded || any(SolverSettings::propagates)) && windows > 1).then(accumulators);
        let period = windows.min(HELD_OUT);
        let mut seen_windows = 0;
        let sharers = fitted.moments.sharers();
        visit(Wanted { input, residual, through: through.as_ref(), sharers }, &mut |windows| {
            let (mut to_fitted, mut to_held) = (Vec::new(), Vec::new());
            for seen in windows {
                seen_windows += 1;
                let holds = held.is_some() && seen_windows % period == 0;
                if holds { to_held.push(seen) } else { to_fitted.push(seen) }
            }
            if let Some(held) = &mut held {
                held.observe(&to_held).map_err(fail)?;
            }
            fitted.observe(&to_fitted).map_err(fail)
        })?;
        if !among.solvers.contains(&among.ranks.rank()) {
            for part in [Some(fitted), held].into_iter().flatten() {
                part.moments.give().map_err(fail)?;
            }
            return Ok(Self { wanted, unsolved, parts: None, together, name: &first.name });
        }
        let least = if sent.is_some() { LEAST_HELD_OUT } else { 0 };
        let pooled = sent.and_then(|sent| sent.pooled);
        let (fitted, held) = settle(fitted, held, least, pooled).map_err(fail)?;
        let parts = Some(Parts { fitted, held });
        Ok(Self { wanted, unsolved, parts, together, name: &first.name })
    }

    /// Decides and prepares what the linears are solved with.
    pub(crate) fn prepare(self) -> Result<StageStatistics, Error> {
        let Self { wanted, unsolved, parts, together, name } = self;
        let Some(Parts { fitted, held }) = parts else { return Ok(StageStatistics::default()) };
        let fail = |source| Error::Statistics { linear: name.to_owned(), source };
        let held_out = held.as_ref().map(HeldOut::new).transpose().map_err(fail)?;
        let verdict = |settings: &&SolverSettings| -> Result<_, HessianError> {
            let Some(held) = &held_out else { return Ok(None) };
            let mut verdict = guard::decide(&fitted, held, &unsolved, settings)?;
            if together {
                verdict.shares.alpha = verdict.shares.beta;
            }
            Ok(Some(verdict))
        };
        let verdicts =
            wanted.iter().map(verdict).collect::<Result<Vec<Option<Verdict>>, _>>().map_err(fail)?;
        let held_out = held_out.filter(|_| wanted.iter().any(|settings| settings.guard));
        let Statistics { hessian, shortfall } = match held {
            Some(held) => fitted.merge(held).map_err(fail)?,
            None => fitted,
        };
        let mut prepared = Vec::with_capacity(wanted.len());
        // Preparing consumes the matrices, which are large: copies are made only where settings differ.
        let last = wanted.len() - 1;
        for (&settings, &verdict) in wanted.iter().zip(&verdicts).take(last) {
            let ready =
                prepare(hessian.clone(), settings, verdict.map(|verdict| (shortfall.clone(), verdict)));
            prepared.push((settings.clone(), ready.map_err(fail)?));
        }
        let ready = prepare(hessian, wanted[last], verdicts[last].map(|verdict| (shortfall, verdict)));
        prepared.push((wanted[last].clone(), ready.map_err(fail)?));
        Ok(StageStatistics { prepared, held_out })
    }
}

impl StageStatistics {
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
        Ok(Self { prepared, held_out: None })
    }

    /// The Hessian prepared for these settings; none for solvers that need no data.
    pub(crate) fn prepared(&self, settings: &SolverSettings) -> Option<&PreparedHessian> {
        self.prepared.iter().find(|(known, _)| known == settings).map(|(_, prepared)| prepared)
    }

    /// What held-out windows judge solutions with these settings by.
    pub(crate) fn held_out(&self, settings: &SolverSettings) -> Option<&HeldOut> {
        self.held_out.as_ref().filter(|_| settings.guard)
    }
}

/// With the damping and the shares that held-out windows gave, where there are any.
fn prepare(
    hessian: Hessian,
    settings: &SolverSettings,
    lacking: Option<(Shortfall, Verdict)>,
) -> Result<PreparedHessian, HessianError> {
    let damping = lacking.as_ref().map_or(settings.damping, |(_, verdict)| verdict.damping);
    let settings = SolverSettings { damping, ..settings.clone() };
    hessian.prepare(&settings, lacking.map(|(shortfall, verdict)| (shortfall, verdict.shares)))
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

/// Whether what a stage's input lacks and what the residual stream does are gathered as one, for solvers with these settings.
pub(crate) fn lacks_together(stage: &Stage, settings: &[&SolverSettings]) -> bool {
    let alike = |settings: &&SolverSettings| settings.beta > 0.0 && settings.alpha == settings.beta;
    let [linear] = &stage.linears[..] else { return false };
    let narrows = linear.out_features < linear.in_features;
    stage.writes_residual && narrows && !settings.is_empty() && settings.iter().all(alike)
}

/// Every so many windows one is held out.
const HELD_OUT: usize = 4;
/// Tokens that an expert's held-out windows must have to judge anything.
pub(crate) const LEAST_HELD_OUT: u64 = 32;

/// Moments of both parts of the windows. Held-out windows with fewer than `least` tokens join the others; `pooled` joins these.
fn settle(
    fitted: Accumulators<'_>,
    held: Option<Accumulators<'_>>,
    least: u64,
    pooled: Option<Hessian>,
) -> Result<(Statistics, Option<Statistics>), HessianError> {
    let finish = |part: Accumulators<'_>| (part.moments.tokens() > 0).then(|| part.finish()).transpose();
    let (judges, tokens) = match &held {
        Some(held) => {
            (held.moments.tokens() >= least.max(1) && fitted.moments.tokens() > 0, held.moments.tokens())
        }
        None => (false, 0),
    };
    let (mut fitted, mut held) = (finish(fitted)?, held.map(finish).transpose()?.flatten());
    if !judges && tokens > 0 {
        fitted = match (fitted, held.take()) {
            (Some(fitted), Some(held)) => Some(fitted.merge(held)?),
            (fitted, held) => fitted.or(held),
        };
    }
    let fitted = match (fitted, pooled) {
        (Some(fitted), Some(pooled)) => {
            Statistics { hessian: fitted.hessian.merge(pooled)?, shortfall: fitted.shortfall }
        }
        (Some(fitted), None) => fitted,
        (None, Some(hessian)) => Statistics { hessian, shortfall: Shortfall::default() },
        (None, None) => return Err(HessianError::NoTokens),
    };
    Ok((fitted, held))
}

/// What is gathered of some windows.
struct Accumulators<'w> {
    moments: HessianAccumulator,
    /// Whether with what the input lacks.
    input: bool,
    /// Whether with what the residual stream lacks.
    residual: bool,
    /// The stage's linear, where what its output lacks for want of input is added to that.
    through: Option<&'w Through<'w>>,
    /// Whether any of the sums are this rank's.
    shares: bool,
}

impl Accumulators<'_> {
    fn observe(&mut self, windows: &[&Seen<'_>]) -> Result<(), HessianError> {
        if !self.shares {
            windows.iter().for_each(|seen| self.moments.pass_over(seen.input.nrows()));
            return Ok(());
        }
        let through = |seen: &&Seen<'_>| self.through.and_then(|through| through.lack(seen));
        let through: Vec<Option<Array2<f32>>> = windows.par_iter().map(through).collect();
        let mut all = Vec::with_capacity(windows.len());
        for (&seen, through) in windows.iter().zip(&through) {
            all.push(Window { rows: seen.input, lacks: self.lacks(seen, through) });
        }
        self.moments.observe_windows(&all)
    }

    /// What the cross moments are gathered from; `through` is what the linear's output lacks, where that is one of them.
    fn lacks<'a>(&self, seen: &'a Seen<'_>, through: &'a Option<Array2<f32>>) -> Vec<Lack<'a>> {
        let [input, residual] = match (seen.lacks, through, seen.original) {
            (Some(Lacks { input, residual }), _, _) => [input, residual].map(|lack| lack.map(Lack::Known)),
            (None, Some(lack), _) => return vec![Lack::Known(lack.view())],
            (None, None, Some((input, residual))) => [(input, seen.input), (residual, seen.residual)]
                .map(|(original, quantized)| Some(Lack::Between(Streams { original, quantized }))),
            (None, None, None) => [None, None],
        };
        [input.filter(|_| self.input), residual.filter(|_| self.residual)].into_iter().flatten().collect()
    }

    fn finish(self) -> Result<Statistics, HessianError> {
        let (hessian, crosses) = self.moments.finish_all()?;
        let mut crosses = crosses.into_iter();
        let input = self.input.then(|| crosses.next()).flatten();
        let residual = self.residual.then(|| crosses.next()).flatten();
        Ok(Statistics { hessian, shortfall: Shortfall { input, residual } })
    }
}
