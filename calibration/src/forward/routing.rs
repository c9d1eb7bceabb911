//! Which experts a token is sent to, and what their results weigh.
//!
//! From the router's outputs `z`, `[experts]`, for one token:
//!
//! ```text
//! s = softmax(z) or sigmoid(z)      C = the largest of s + correction      p_c = factor s_c (/ Σ_C s)      for c in C
//! ```
//!
//! and where experts lie in groups, of those alone whose best scores have the largest sum. A softmax over the chosen outputs alone is a softmax over all, divided by the sum of the chosen. The choice has no derivative; the weights'
//! is [`Chosen::vjp`]. Scores and weights are in f32, sums in f64.

use std::sync::Arc;

use model::architecture::Scores;
use model::experts::{Groups, Routing};
use ndarray::{Array2, ArrayView1, ArrayView2, Axis};

use crate::weights::RouterWeights;

/// Added to the sum that weights of sigmoid scores are divided by, as the reference does.
const LEAST_SUM: f64 = 1e-20;

/// What a layer's experts are given for one window, until all of them have given their results.
#[derive(Clone, Debug)]
pub(crate) struct Routed {
    /// The normed residual stream, `[tokens, hidden]`.
    input: Array2<f32>,
    sent: Arc<Sent>,
}

/// Where the tokens of a window go.
#[derive(Debug)]
pub(crate) struct Sent {
    /// For each expert its tokens, ascending, and what its result weighs there.
    pub(crate) to: Vec<Vec<(usize, f32)>>,
    /// What the shared expert's result weighs at each token; none: one.
    pub(crate) shared: Option<Vec<f32>>,
}

impl Sent {
    /// The tokens of an expert, ascending, with what its result weighs there.
    pub(crate) fn to(&self, expert: usize) -> &[(usize, f32)] {
        &self.to[expert]
    }
}

/// The experts of one token.
#[derive(Clone, Debug)]
pub(crate) struct Chosen {
    /// Scores of all experts.
    scores: Vec<f32>,
    /// The chosen ones, ascending, with their weights.
    pub(crate) experts: Vec<(usize, f32)>,
}

impl Routed {
    /// Sends the tokens of a window; `input` is the normed residual stream, `[tokens, hidden]`.
    pub(crate) fn new(routing: &Routing, router: &RouterWeights, input: Array2<f32>) -> Self {
        let chosen = choose(routing, router, input.view());
        Self::of(routing, router, input, &chosen)
    }

    /// The same with experts that are chosen already.
    pub(crate) fn of(
        routing: &Routing,
        router: &RouterWeights,
        input: Array2<f32>,
        chosen: &[Chosen],
    ) -> Self {
        let mut to = vec![Vec::new(); routing.experts];
        for (token, chosen) in chosen.iter().enumerate() {
            for &(expert, weight) in &chosen.experts {
                to[expert].push((token, weight));
            }
        }
        let shared = router
            .shared_gate
            .as_ref()
            .map(|gate| gate.apply(input.view()).column(0).iter().map(|&value| sigmoid(value)).collect());
        Self { input, sent: Arc::new(Sent { to, shared }) }
    }

    /// The same as [`Routed::parts`] gave.
    pub(crate) fn from_parts(input: Array2<f32>, sent: Arc<Sent>) -> Self {
        Self { input, sent }
    }

    /// What it is made of.
    pub(crate) fn parts(&self) -> (ArrayView2<'_, f32>, &Arc<Sent>) {
        (self.input.view(), &self.sent)
    }

    /// Of one expert's tokens alone, which it is sent in their order; `input` is theirs.
    pub(crate) fn of_expert(sent: &Sent, expert: usize, input: Array2<f32>) -> Self {
        let mut to = vec![Vec::new(); sent.to.len()];
        to[expert] = sent.to(expert).iter().enumerate().map(|(row, &(_, weight))| (row, weight)).collect();
        Self { input, sent: Arc::new(Sent { to, shared: None }) }
    }

    /// The normed residual stream, `[tokens, hidden]`.
    pub(crate) fn input(&self) -> ArrayView2<'_, f32> {
        self.input.view()
    }

    /// The tokens of an expert, ascending, with what its result weighs there.
    pub(crate) fn sent(&self, expert: usize) -> &[(usize, f32)] {
        self.sent.to(expert)
    }

    /// The inputs of an expert's tokens, `[tokens of the expert, hidden]`.
    pub(crate) fn gathered(&self, expert: usize) -> Array2<f32> {
        let tokens: Vec<usize> = self.sent(expert).iter().map(|&(token, _)| token).collect();
        self.input.select(Axis(0), &tokens)
    }

    /// What the shared expert's result weighs; none: one everywhere.
    pub(crate) fn shared(&self) -> Option<&[f32]> {
        self.sent.shared.as_deref()
    }
}

/// The experts of each token of `input`, `[tokens, hidden]`.
pub(crate) fn choose(routing: &Routing, router: &RouterWeights, input: ArrayView2<'_, f32>) -> Vec<Chosen> {
    let outputs = router.outputs.apply(input);
    let correction = router.correction.as_ref().map(|correction| correction.to_vec());
    outputs.rows().into_iter().map(|row| Chosen::of(routing, row, correction.as_deref())).collect()
}

impl Chosen {
    fn of(routing: &Routing, outputs: ArrayView1<'_, f32>, correction: Option<&[f32]>) -> Self {
        let scores: Vec<f32> = match routing.scores {
            Scores::Sigmoid => outputs.iter().map(|&output| sigmoid(output)).collect(),
            Scores::Softmax => {
                let highest = outputs.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let exponentials: Vec<f64> =
                    outputs.iter().map(|&output| f64::from(output - highest).exp()).collect();
                let total: f64 = exponentials.iter().sum();
                exponentials.into_iter().map(|value| (value / total) as f32).collect()
            }
        };
        let ranked: Vec<f32> = match correction {
            None => scores.clone(),
            Some(correction) => scores.iter().zip(correction).map(|(score, add)| score + add).collect(),
        };
        let candidates = match &routing.groups {
            None => (0..ranked.len()).collect(),
            Some(groups) => members(groups, &ranked),
        };
        let order = best(&ranked, candidates, routing.chosen);
        let mut chosen = Self { scores, experts: order.into_iter().map(|expert| (expert, 0.0)).collect() };
        let share = routing.factor / chosen.divisor(routing);
        let Self { scores, experts } = &mut chosen;
        for (expert, weight) in experts {
            *weight = (f64::from(scores[*expert]) * share) as f32;
        }
        chosen
    }

    /// What chosen scores are divided by.
    fn divisor(&self, routing: &Routing) -> f64 {
        if routing.normalized {
            self.experts.iter().map(|&(expert, _)| f64::from(self.scores[expert])).sum::<f64>() + LEAST_SUM
        } else {
            1.0
        }
    }

    /// The gradient of the router's outputs, `[experts]`, where those of the chosen weights are `gradients`.
    pub(crate) fn vjp(&self, routing: &Routing, gradients: &[f64]) -> Vec<f32> {
        let divisor = self.divisor(routing);
        let along: f64 = if routing.normalized {
            let pairs = self.experts.iter().zip(gradients);
            pairs.map(|(&(expert, _), gradient)| gradient * f64::from(self.scores[expert])).sum::<f64>()
                / divisor
        } else {
            0.0
        };
        let mut of_scores = vec![0.0; self.scores.len()];
        for (&(expert, _), gradient) in self.experts.iter().zip(gradients) {
            of_scores[expert] = routing.factor * (gradient - along) / divisor;
        }
        let mean: f64 = of_scores.iter().zip(&self.scores).map(|(g, &s)| g * f64::from(s)).sum();
        let of_outputs = of_scores.iter().zip(&self.scores).map(|(gradient, &score)| {
            let score = f64::from(score);
            match routing.scores {
                Scores::Softmax => score * (gradient - mean),
                Scores::Sigmoid => score * (1.0 - score) * gradient,
            }
        });
        of_outputs.map(|gradient| gradient as f32).collect()
    }
}

/// So many of the candidates with the largest values, ascending; of two that are as good the first.
fn best(values: &[f32], mut candidates: Vec<usize>, count: usize) -> Vec<usize> {
    candidates.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
    candidates.truncate(count);
    candidates.sort_unstable();
    candidates
}

/// The experts of the groups that are chosen.
fn members(groups: &Groups, ranked: &[f32]) -> Vec<usize> {
    let size = ranked.len() / groups.count;
    let sum = |group: &[f32]| {
        let taken = best(group, (0..size).collect(), groups.summed);
        taken.into_iter().map(|expert| group[expert]).sum::<f32>()
    };
    let sums: Vec<f32> = ranked.chunks_exact(size).map(sum).collect();
    let chosen = best(&sums, (0..groups.count).collect(), groups.chosen);
    chosen.into_iter().flat_map(|group| group * size..(group + 1) * size).collect()
}

pub(crate) fn sigmoid(x: f32) -> f32 {
    (1.0 / (1.0 + (-f64::from(x)).exp())) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    fn routing(scores: Scores, normalized: bool, factor: f64) -> Routing {
        Routing { experts: 4, chosen: 2, scores, normalized, factor, groups: None }
    }

    #[test]
    fn the_best_are_chosen_and_weighed() {
        let outputs = array![1.0_f32, 3.0, 2.0, 3.0];
        let chosen = Chosen::of(&routing(Scores::Softmax, true, 1.0), outputs.view(), None);
        assert_eq!(chosen.experts, [(1, 0.5), (3, 0.5)]);
        // A correction changes the choice, and no weight.
        let chosen =
            Chosen::of(&routing(Scores::Sigmoid, false, 2.0), outputs.view(), Some(&[1.0, -1.0, 1.0, 0.0]));
        let expected = [(0, 2.0 * sigmoid(1.0)), (2, 2.0 * sigmoid(2.0))];
        assert_eq!(chosen.experts, expected);
    }

    #[test]
    fn groups_are_chosen_before_their_experts() {
        let outputs = array![3.0_f32, -3.0, 2.0, 1.0, 0.0, 2.5];
        let chosen = |summed, chosen, experts| {
            let groups = Some(Groups { count: 3, chosen, summed });
            let routing =
                Routing { experts: 6, chosen: experts, groups, ..routing(Scores::Sigmoid, true, 1.0) };
            let chosen = Chosen::of(&routing, outputs.view(), None).experts;
            chosen.into_iter().map(|(expert, _)| expert).collect::<Vec<_>>()
        };
        // The best expert's group, and the group with the two best.
        assert_eq!(chosen(1, 1, 2), [0, 1]);
        assert_eq!(chosen(2, 1, 2), [2, 3]);
        assert_eq!(chosen(2, 2, 3), [2, 3, 5]);
        assert_eq!(chosen(2, 3, 2), [0, 5]);
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_weights() {
        let outputs = array![0.3_f32, 1.0, -0.4, 0.9];
        for scores in [Scores::Softmax, Scores::Sigmoid] {
            for normalized in [false, true] {
                let routing = routing(scores, normalized, 1.5);
                let gradients = [0.7, -1.3];
                let value = |outputs: &ndarray::Array1<f32>| -> f64 {
                    let chosen = Chosen::of(&routing, outputs.view(), None);
                    chosen.experts.iter().zip(gradients).map(|(&(_, w), g)| f64::from(w) * g).sum()
                };
                let found = Chosen::of(&routing, outputs.view(), None).vjp(&routing, &gradients);
                for expert in 0..4 {
                    let moved = |step: f32| {
                        let mut outputs = outputs.clone();
                        outputs[expert] += step;
                        value(&outputs)
                    };
                    let expected = (moved(0.02) - moved(-0.02)) / 0.04;
                    assert!((f64::from(found[expert]) - expected).abs() < 1e-4, "{scores:?} {normalized}");
                }
            }
        }
    }
}
