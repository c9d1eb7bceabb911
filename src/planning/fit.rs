//! Which model at which width for a bound on memory.

use model::Model;
use quantizer::scheme::BitWidth;
use serde::Serialize;

use super::{FitRequest, at_width, short, size};
use crate::error::Error;
use crate::job::QuantizeJob;
use crate::plan::Plan;
use crate::progress::Progress;
use crate::stored::StoredModel;

/// Models and widths under a bound on memory.
#[derive(Clone, Debug, Serialize)]
pub struct Fit {
    /// Bytes for weights and keys and values.
    pub bytes: u64,
    /// Tokens that were asked for; no model holds keys and values of more than it attends to.
    pub context: usize,
    /// Every model at every width that the format has, as given.
    pub candidates: Vec<Candidate>,
    /// The best that fits, by number; none: nothing fits, or nothing says what is better.
    pub chosen: Option<usize>,
    /// Why.
    pub reason: String,
}

/// A model at a width.
#[derive(Clone, Debug, Serialize)]
pub struct Candidate {
    /// Last part of the model's path.
    pub model: String,
    /// Weights.
    pub parameters: u64,
    /// Bits of a code, the mean over the quantized weights.
    pub bits: f64,
    /// Files of weights, bytes.
    pub weight_bytes: u64,
    /// Tokens whose keys and values are held.
    pub context: usize,
    /// Keys and values in 16 bit, bytes.
    pub cache_bytes: u64,
    /// Whether both are within the bound.
    pub fits: bool,
    /// Of the original.
    pub perplexity: Option<f64>,
    /// Divergence that this width is predicted to cause, before refinements, nats a token.
    pub predicted_kl: Option<f64>,
    /// Perplexity of the original times e to the divergence.
    pub predicted_perplexity: Option<f64>,
}

/// A model at every width that its format has.
pub(super) fn candidates(
    source: &StoredModel,
    plan: &Plan,
    job: &QuantizeJob,
    fit: &FitRequest,
    perplexity: Option<f64>,
    calibrate: bool,
    progress: &dyn Progress,
) -> Result<Vec<Candidate>, Error> {
    let summary = source.summary()?;
    let context = fit.context.min(source.model.hyperparameters.context);
    let cache_bytes = cache_bytes(&source.model, context);
    let widths = (2..=8).filter_map(|bits| BitWidth::new(bits).ok());
    let mut plans: Vec<Plan> = widths.filter_map(|bits| at_width(plan, bits)).collect();
    if plans.is_empty() {
        plans.push(plan.clone());
    }
    let mut found = Vec::new();
    for plan in plans {
        let weight_bytes = size(source, &plan, job)?.bytes;
        let predicted_kl = if calibrate { Some(super::predict(source, &plan, job, progress)?) } else { None };
        found.push(Candidate {
            model: short(&summary.path),
            parameters: summary.parameters,
            bits: mean_bits(&plan),
            weight_bytes,
            context,
            cache_bytes,
            fits: weight_bytes.saturating_add(cache_bytes) <= fit.bytes,
            perplexity,
            predicted_kl,
            predicted_perplexity: perplexity.zip(predicted_kl).map(|(ppl, kl)| ppl * kl.exp()),
        });
    }
    Ok(found)
}

/// Keys and values of all layers in 16 bit.
fn cache_bytes(model: &Model, context: usize) -> u64 {
    let numbers = &model.hyperparameters;
    let token = 2 * numbers.cached_features() * model.layers.len();
    token as u64 * context as u64
}

/// Of the codes, over the weights that have one: mixtures have several widths.
fn mean_bits(plan: &Plan) -> f64 {
    let widths = plan.quantized().map(|(linear, scheme)| {
        let weights = (linear.out_features * linear.in_features) as f64;
        (weights, weights * f64::from(scheme.bits.get()))
    });
    let (weights, bits) = widths.fold((0.0, 0.0), |sum, of| (sum.0 + of.0, sum.1 + of.1));
    if weights > 0.0 { bits / weights } else { 16.0 }
}

impl Fit {
    pub(super) fn choose(request: &FitRequest, candidates: Vec<Candidate>) -> Self {
        let fitting = || candidates.iter().enumerate().filter(|(_, candidate)| candidate.fits);
        let known = fitting().all(|(_, candidate)| candidate.predicted_perplexity.is_some());
        let best = fitting().filter_map(|(number, c)| Some((number, c.predicted_perplexity?)));
        let (chosen, reason) = if fitting().next().is_none() {
            (None, "nothing fits".to_owned())
        } else if known {
            let best = best.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(number, _)| number);
            (best, "the lowest predicted perplexity of what fits".to_owned())
        } else {
            (None, "what fits is marked; --calibrate predicts what each loses, and chooses".to_owned())
        };
        Self { bytes: request.bytes, context: request.context, candidates, chosen, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(weight_bytes: u64, fits: bool, predicted_perplexity: Option<f64>) -> Candidate {
        Candidate {
            model: String::new(),
            parameters: 0,
            bits: 4.0,
            weight_bytes,
            context: 1,
            cache_bytes: 0,
            fits,
            perplexity: None,
            predicted_kl: None,
            predicted_perplexity,
        }
    }

    #[test]
    fn the_best_that_fits_is_chosen_and_nothing_without_figures() {
        let request = FitRequest { bytes: 10, context: 1, perplexities: Vec::new() };
        let choose = |candidates| Fit::choose(&request, candidates).chosen;
        let (small, middle, large) = (
            candidate(1, true, Some(30.0)),
            candidate(9, true, Some(20.0)),
            candidate(11, false, Some(10.0)),
        );
        assert_eq!(choose(vec![small.clone(), middle, large.clone()]), Some(1));
        assert_eq!(choose(vec![large]), None);
        assert_eq!(choose(vec![small, candidate(2, true, None)]), None);
    }
}
