//! What is known of each token position while the vocabulary passes by in slices: log-likelihood, divergence, the likeliest token.

use std::ops::Range;

use ndarray::{ArrayView1, ArrayView2};

use super::softmax::{Difference, Softmax};

/// The token that a model ranks first at a position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Favourite {
    /// The token.
    pub token: u32,
    /// Its probability.
    pub probability: f32,
}

/// One window's positions that have a next token, with the figures gathered so far.
pub(super) struct WindowScore<'w> {
    /// Token that each position should predict.
    targets: &'w [u32],
    measured: Vec<Softmax>,
    /// Of the reference; empty without one.
    reference: Vec<Softmax>,
    /// Between the two; empty without a reference.
    differences: Vec<Difference>,
}

/// Figures of every scored position of one window.
pub(super) struct WindowFigures {
    /// Negative log-likelihoods, nats.
    pub(super) measured_nll: Vec<f64>,
    /// Negative log-likelihoods, nats; empty without a reference.
    pub(super) reference_nll: Vec<f64>,
    /// KL(reference || measured), nats; empty without a reference.
    pub(super) divergence: Vec<f32>,
    /// What the measured model ranks first.
    pub(super) measured_first: Vec<Favourite>,
    /// What the reference ranks first; empty without one.
    pub(super) reference_first: Vec<Favourite>,
}

impl WindowFigures {
    /// Whether both models rank the same token first, for each position; empty without a reference.
    pub(super) fn agreements(&self) -> Vec<bool> {
        let pairs = self.reference_first.iter().zip(&self.measured_first);
        pairs.map(|(reference, measured)| reference.token == measured.token).collect()
    }
}

impl<'w> WindowScore<'w> {
    /// Before any slice, for a window of `tokens`.
    pub(super) fn new(tokens: &'w [u32], with_reference: bool) -> Self {
        let targets = tokens.get(1..).unwrap_or_default();
        let count = if with_reference { targets.len() } else { 0 };
        Self {
            targets,
            measured: vec![Softmax::EMPTY; targets.len()],
            reference: vec![Softmax::EMPTY; count],
            differences: vec![Difference::default(); count],
        }
    }

    /// Positions that have a next token, from the first of the window.
    pub(super) fn positions(&self) -> usize {
        self.targets.len()
    }

    /// Takes in the logits `[positions, vocabulary]` of some positions and a part of the vocabulary.
    pub(super) fn add(
        &mut self,
        positions: Range<usize>,
        vocabulary: Range<usize>,
        measured: ArrayView2<'_, f32>,
        reference: Option<ArrayView2<'_, f32>>,
    ) {
        for (row, position) in positions.enumerate() {
            let target = self.targets[position] as usize;
            let target = vocabulary.contains(&target).then(|| target - vocabulary.start);
            let measured = contiguous(measured.row(row));
            self.measured[position].add(measured, vocabulary.start, target);
            if let Some(reference) = &reference {
                let reference = contiguous(reference.row(row));
                let softmax = &mut self.reference[position];
                self.differences[position].add(softmax, reference, measured, vocabulary.start, target);
            }
        }
    }

    /// The figures, when the whole vocabulary was seen; none where a logit was not finite.
    pub(super) fn finish(self) -> Option<WindowFigures> {
        let measured_nll: Vec<f64> = self.measured.iter().map(Softmax::nll).collect();
        let reference_nll: Vec<f64> = self.reference.iter().map(Softmax::nll).collect();
        let pairs = self.reference.iter().zip(&self.measured).zip(self.differences);
        let divergence: Vec<f32> =
            pairs.map(|((p, q), difference)| difference.divergence(p, q) as f32).collect();
        let finite = measured_nll.iter().chain(&reference_nll).all(|value| value.is_finite())
            && divergence.iter().all(|value| value.is_finite());
        let firsts = |softmaxes: &[Softmax]| softmaxes.iter().map(Softmax::favourite).collect();
        finite.then(|| WindowFigures {
            measured_nll,
            reference_nll,
            divergence,
            measured_first: firsts(&self.measured),
            reference_first: firsts(&self.reference),
        })
    }
}

fn contiguous(row: ArrayView1<'_, f32>) -> &[f32] {
    row.to_slice().expect("logits are stored by rows")
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;

    fn logits(seed: f32) -> Array2<f32> {
        Array2::from_shape_fn((3, 300), |(i, j)| {
            ((i * 300 + j) as f32 * (0.37 + seed)).sin() * 6.0 + j as f32 * 0.01
        })
    }

    fn figures(slice: usize, reference: bool) -> WindowFigures {
        let (measured, original) = (logits(0.01), logits(0.0));
        let mut score = WindowScore::new(&[5, 299, 0, 150], reference);
        for first in (0..300).step_by(slice) {
            let vocabulary = first..(first + slice).min(300);
            for positions in [0..2, 2..3] {
                let part = ndarray::s![positions.clone(), vocabulary.clone()];
                // As products give them: by rows.
                let (measured, original) = (measured.slice(part).to_owned(), original.slice(part).to_owned());
                let original = reference.then(|| original.view());
                score.add(positions, vocabulary.clone(), measured.view(), original);
            }
        }
        score.finish().unwrap()
    }

    /// ln softmax of each row, in f64, by the definition.
    fn log_probabilities(logits: &Array2<f32>) -> Vec<Vec<f64>> {
        let rows = logits.rows().into_iter().map(|row| {
            let total: f64 = row.iter().map(|&v| f64::from(v).exp()).sum();
            row.iter().map(|&v| f64::from(v) - total.ln()).collect()
        });
        rows.collect()
    }

    #[test]
    fn slices_give_what_the_definition_gives() {
        let (p, q) = (log_probabilities(&logits(0.0)), log_probabilities(&logits(0.01)));
        for slice in [1, 7, 64, 299, 300] {
            let found = figures(slice, true);
            for (position, target) in [299, 0, 150].into_iter().enumerate() {
                let (p, q) = (&p[position], &q[position]);
                assert!((found.measured_nll[position] + q[target]).abs() < 1e-6);
                assert!((found.reference_nll[position] + p[target]).abs() < 1e-6);
                let expected: f64 = p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum();
                assert!((f64::from(found.divergence[position]) - expected).abs() < 1e-5 * (1.0 + expected));
            }
        }
    }

    #[test]
    fn a_logit_that_is_not_finite_is_noticed_wherever_it_is() {
        for bad in [f32::NAN, f32::INFINITY] {
            for place in [0, 17, 31] {
                let mut logits = Array2::from_elem((1, 32), 1.0_f32);
                logits[[0, place]] = bad;
                let mut score = WindowScore::new(&[3, 4], false);
                score.add(0..1, 0..32, logits.view(), None);
                assert!(score.finish().is_none(), "{bad} at {place}");
            }
        }
    }

    #[test]
    fn a_model_agrees_with_itself_exactly() {
        let logits = logits(0.0);
        let mut score = WindowScore::new(&[5, 299, 0, 150], true);
        score.add(0..3, 0..300, logits.view(), Some(logits.view()));
        let found = score.finish().unwrap();
        assert_eq!((&found.divergence, found.agreements()), (&vec![0.0; 3], vec![true; 3]));
        assert_eq!(found.measured_nll, found.reference_nll);
    }
}
