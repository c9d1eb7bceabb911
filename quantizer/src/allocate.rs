//! Bits under a budget: which width each stage of a model gets.
//!
//! # What a width costs in quality
//!
//! Let `p` be the model's distribution of the next token and `δy_t` the error that a quantized linear makes in its output at token `t`. The
//! divergence of a model from a slightly changed one is half the Fisher information of the change (Martens, arXiv 1412.1193, section 5):
//!
//! ```text
//! Σ_s KL_s ≈ ½ E[(Σ_t ȳ_tᵀ δy_t)²]        ȳ_t = ∂/∂y_t Σ_s -ln p(label_s), label_s drawn from p itself
//! ```
//!
//! The labels are drawn independently, so that the gradients of different positions are uncorrelated and have mean 0. Errors at different tokens
//! nearly are, too, which leaves `½ Σ_t (ȳ_tᵀ δy_t)²`: the statistic of GuidedQuant (arXiv 2505.07004, section 3), with `δy_t = (W - Q) x_t`
//! of a solution `Q` at the width in question instead of a bound on it. Linears of a stage share a width and their projected errors are added
//! before they are squared. Different stages' errors are taken for uncorrelated: their damages add up.
//!
//! # Choosing
//!
//! One width for each stage, the least sum of damages, no more bytes than the budget: the multiple-choice knapsack problem, by dynamic
//! programming over the bytes (Dudzinski and Walukiewicz 1987), in units of a fraction of the budget, rounded up. What rounding leaves over is
//! filled by exchanges of one stage's width, or two stages' at once, as long as they lower the damage.
//!
//! Not here: where inputs and gradients come from, and what a width costs in bytes.

use ndarray::{Array2, ArrayView2, Zip};

use kernels::product::product_nt;

/// One width that a stage can have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// What it costs, bytes.
    pub bytes: u64,
    /// What it does to the model, nats of divergence a token.
    pub damage: f64,
}

/// Adds `ȳ_tᵀ (W - Q) x_t` of each token to `projected`. `errors` is `W - Q`, `[out_features, in_features]`; `input` `[tokens, in_features]`;
/// `output_gradient` `[tokens, out_features]`.
///
/// # Panics
/// When the shapes do not fit each other.
pub fn add_projected_errors(
    errors: ArrayView2<'_, f32>,
    input: ArrayView2<'_, f32>,
    output_gradient: ArrayView2<'_, f32>,
    projected: &mut [f64],
) {
    let mut outputs = Array2::zeros(output_gradient.dim());
    product_nt(input, errors, outputs.view_mut());
    assert_eq!(projected.len(), outputs.nrows(), "tokens of projected errors");
    for ((sum, error), gradient) in projected.iter_mut().zip(outputs.rows()).zip(output_gradient.rows()) {
        let mut dot = 0.0;
        Zip::from(error).and(gradient).for_each(|&e, &g| dot += f64::from(e) * f64::from(g));
        *sum += dot;
    }
}

/// The damage, nats a token, of errors that were projected on the gradients of all tokens.
#[must_use]
pub fn damage(projected: &[f64]) -> f64 {
    0.5 * projected.iter().map(|p| p * p).sum::<f64>() / projected.len().max(1) as f64
}

/// The index of one choice for each stage, of least total damage within `budget` bytes; none where even the smallest choices are too large.
///
/// # Panics
/// When a stage has no choice, or more than 256.
#[must_use]
pub fn allocate(stages: &[Vec<Choice>], budget: u64) -> Option<Vec<usize>> {
    let least = |choices: &Vec<Choice>| choices.iter().map(|c| c.bytes).min().expect("a stage has a choice");
    let left = budget.checked_sub(stages.iter().map(least).sum())?;
    let unit = (left / UNITS as u64).max(1);
    // The least damage of the stages so far with so many units beyond their smallest choices, and the choice of each that it takes.
    let mut damages = vec![0.0_f64; (left / unit) as usize + 1];
    let mut taken: Vec<Vec<u8>> = Vec::with_capacity(stages.len());
    for choices in stages {
        let least = least(choices);
        let mut next = vec![f64::INFINITY; damages.len()];
        let mut choice_of = vec![0_u8; damages.len()];
        for (index, choice) in choices.iter().enumerate() {
            let Ok(units) = usize::try_from((choice.bytes - least).div_ceil(unit)) else { continue };
            for spent in units..damages.len() {
                let damage = damages[spent - units] + choice.damage;
                if damage < next[spent] {
                    (next[spent], choice_of[spent]) = (damage, index as u8);
                }
            }
        }
        damages = next;
        taken.push(choice_of);
    }
    let mut spent = damages.len() - 1;
    let mut chosen = vec![0; stages.len()];
    for (stage, choices) in stages.iter().enumerate().rev() {
        chosen[stage] = usize::from(taken[stage][spent]);
        spent -= (choices[chosen[stage]].bytes - least(choices)).div_ceil(unit) as usize;
    }
    let spent: u64 = stages.iter().zip(&chosen).map(|(choices, &index)| choices[index].bytes).sum();
    let mut state = State { stages, chosen, left: i128::from(budget) - i128::from(spent) };
    while let Some(steps) = state.best_exchange() {
        steps.into_iter().flatten().for_each(|step| state.take(step));
    }
    Some(state.chosen)
}

/// Parts that the budget is cut into.
const UNITS: usize = 1 << 14;

struct State<'s> {
    stages: &'s [Vec<Choice>],
    chosen: Vec<usize>,
    /// Bytes that nobody has taken.
    left: i128,
}

/// Another choice for one stage.
#[derive(Clone, Copy)]
struct Step {
    stage: usize,
    choice: usize,
    /// Bytes more, or fewer.
    bytes: i128,
    /// Damage less.
    relief: f64,
}

impl State<'_> {
    fn steps(&self) -> impl Iterator<Item = Step> + '_ {
        self.stages.iter().enumerate().flat_map(move |(stage, choices)| {
            let now = choices[self.chosen[stage]];
            choices.iter().enumerate().filter(move |&(choice, _)| choice != self.chosen[stage]).map(
                move |(choice, other)| Step {
                    stage,
                    choice,
                    bytes: i128::from(other.bytes) - i128::from(now.bytes),
                    relief: now.damage - other.damage,
                },
            )
        })
    }

    /// The step, or the two steps of different stages, that fit and relieve most.
    fn best_exchange(&self) -> Option<[Option<Step>; 2]> {
        let steps: Vec<Step> = self.steps().collect();
        let mut best = (0.0, None);
        for (index, &first) in steps.iter().enumerate() {
            if first.bytes <= self.left && first.relief > best.0 {
                best = (first.relief, Some([Some(first), None]));
            }
            for &second in steps[index + 1..].iter().filter(|second| second.stage != first.stage) {
                let relief = first.relief + second.relief;
                if relief > best.0 && first.bytes + second.bytes <= self.left {
                    best = (relief, Some([Some(first), Some(second)]));
                }
            }
        }
        // Sums of damages that differ in their last bits must not be exchanged for ever.
        let whole: f64 =
            self.stages.iter().zip(&self.chosen).map(|(choices, &index)| choices[index].damage).sum();
        best.1.filter(|_| best.0 > 1e-12 * whole)
    }

    fn take(&mut self, step: Step) {
        self.chosen[step.stage] = step.choice;
        self.left -= step.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    fn uniform(state: &mut u64) -> f64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Stages of different sizes and sensitivities, whose damage falls about fourfold with each bit.
    fn stages(count: usize, state: &mut u64) -> Vec<Vec<Choice>> {
        let stage = |state: &mut u64| {
            let size = 1000 + (uniform(state) * 9000.0) as u64;
            let sensitivity = (uniform(state) * 6.0).exp();
            let choice = |bits: u64| Choice {
                bytes: size * bits + 17,
                damage: sensitivity * 4.0_f64.powi(-(bits as i32)) * (0.7 + 0.6 * uniform(state)),
            };
            [2, 3, 4, 8].map(choice).to_vec()
        };
        (0..count).map(|_| stage(state)).collect()
    }

    fn total(stages: &[Vec<Choice>], chosen: &[usize]) -> (u64, f64) {
        let picked = stages.iter().zip(chosen).map(|(choices, &index)| choices[index]);
        picked.fold((0, 0.0), |(bytes, damage), choice| (bytes + choice.bytes, damage + choice.damage))
    }

    fn least(stages: &[Vec<Choice>], budget: u64) -> f64 {
        let mut best = f64::INFINITY;
        for code in 0..4_usize.pow(stages.len() as u32) {
            let chosen: Vec<usize> = (0..stages.len()).map(|i| code >> (2 * i) & 3).collect();
            let (bytes, damage) = total(stages, &chosen);
            if bytes <= budget {
                best = best.min(damage);
            }
        }
        best
    }

    #[test]
    fn the_choice_is_nearly_the_best_of_all() {
        let mut state = 5;
        let mut excess = Vec::new();
        for _ in 0..40 {
            let stages = stages(7, &mut state);
            let (smallest, _) = total(&stages, &[0; 7]);
            let (largest, _) = total(&stages, &[3; 7]);
            let budget = smallest + (uniform(&mut state) * (largest - smallest) as f64) as u64;
            let chosen = allocate(&stages, budget).unwrap();
            let (bytes, damage) = total(&stages, &chosen);
            assert!(bytes <= budget);
            excess.push(damage / least(&stages, budget));
        }
        assert!(excess.iter().all(|&ratio| (1.0 - 1e-12..1.001).contains(&ratio)), "{excess:?}");
        assert!(excess.iter().sum::<f64>() < 1.0001 * 40.0, "{excess:?}");
    }

    #[test]
    fn a_budget_below_the_smallest_has_no_answer_and_one_above_the_largest_takes_the_widest() {
        let stages = stages(5, &mut 9);
        let (smallest, _) = total(&stages, &[0; 5]);
        assert_eq!(allocate(&stages, smallest - 1), None);
        assert_eq!(allocate(&stages, smallest), Some(vec![0; 5]));
        assert_eq!(allocate(&stages, u64::MAX), Some(vec![3; 5]));
        assert_eq!(allocate(&[], 0), Some(Vec::new()));
    }

    #[test]
    fn more_budget_never_does_more_damage() {
        let stages = stages(30, &mut 77);
        let (smallest, _) = total(&stages, &[0; 30]);
        let (largest, _) = total(&stages, &[3; 30]);
        let damages: Vec<f64> = (0..=20)
            .map(|k| {
                let budget = smallest + (largest - smallest) * k / 20;
                total(&stages, &allocate(&stages, budget).unwrap()).1
            })
            .collect();
        assert!(damages.windows(2).all(|pair| pair[1] <= pair[0] * (1.0 + 1e-9)), "{damages:?}");
    }

    #[test]
    fn projected_errors_add_up_over_linears_and_are_squared_once() {
        let (input, gradient) = (array![[1.0_f32, 2.0], [0.5, -1.0]], array![[3.0_f32], [2.0]]);
        let mut projected = [0.0; 2];
        add_projected_errors(array![[0.1_f32, 0.2]].view(), input.view(), gradient.view(), &mut projected);
        add_projected_errors(array![[0.0_f32, -0.1]].view(), input.view(), gradient.view(), &mut projected);
        assert!((projected[0] - 3.0 * 0.3).abs() < 1e-6 && (projected[1] - 2.0 * -0.05).abs() < 1e-6);
        assert!((damage(&projected) - 0.25 * (0.81 + 0.01)).abs() < 1e-6);
        assert_eq!(damage(&[]), 0.0);
    }
}
