//! The softmax of one token position, and its divergence from another, while the vocabulary passes by in slices.
//!
//! The softmax is online: a running maximum and a running sum relative to it (arXiv 1805.02867). With `p` and `q` the probabilities of the
//! reference and the measured model, `x` and `y` their logits,
//!
//! ```text
//! KL(p || q) = Σ p (ln p - ln q) = Σ p (x - y) - ln Σ exp x + ln Σ exp y
//! ```
//!
//! so that one pass over a slice of both suffices, and two equal models have a divergence of exactly zero.

use kernels::elementwise;

use super::scoring::Favourite;

/// The softmax of one position of one model, as far as the vocabulary was seen.
#[derive(Clone, Copy)]
pub(crate) struct Softmax {
    /// The largest logit.
    highest: f32,
    /// Its token, the first of equals.
    pub(crate) likeliest: usize,
    /// `Σ exp(logit - highest)`.
    total: f64,
    /// The target's logit; not a number before it was seen.
    target: f32,
}

/// `Σ exp(x - highest) (x - y)`, with the reference's highest logit.
#[derive(Clone, Copy, Default)]
pub(crate) struct Difference(f64);

impl Softmax {
    /// Before any slice.
    pub(crate) const EMPTY: Self =
        Self { highest: f32::NEG_INFINITY, likeliest: 0, total: 0.0, target: f32::NAN };

    /// Takes in a slice of the vocabulary that begins with the token `first`; `target` is the place in it of the token to predict.
    pub(crate) fn add(&mut self, logits: &[f32], first: usize, target: Option<usize>) {
        self.raise(logits, first, target);
        self.total += elementwise::sum_of_exponentials(logits, self.highest);
    }

    /// Takes in a slice of the vocabulary that begins with the token `first`; its logits become `exp(logit - highest)`. Gives the factor that older sums shrink by.
    pub(crate) fn add_exponentials(&mut self, logits: &mut [f32], first: usize) -> f64 {
        let shrunk = self.raise(logits, first, None);
        elementwise::exponentiate(logits, self.highest);
        self.total += logits.iter().map(|&x| f64::from(x)).sum::<f64>();
        shrunk
    }

    /// `Σ exp(logit - highest)` of what was seen.
    pub(crate) fn total(&self) -> f64 {
        self.total
    }

    /// Negative log-likelihood of the target, nats.
    pub(crate) fn nll(&self) -> f64 {
        self.log_total() - f64::from(self.target)
    }

    /// The likeliest token, when the whole vocabulary was seen.
    pub(super) fn favourite(&self) -> Favourite {
        Favourite { token: self.likeliest as u32, probability: (1.0 / self.total) as f32 }
    }

    /// Replaces a slice's logits by their probabilities, when the whole vocabulary was seen.
    pub(crate) fn normalize(&self, logits: &mut [f32]) {
        elementwise::exponentiate(logits, self.highest);
        let factor = (1.0 / self.total) as f32;
        logits.iter_mut().for_each(|value| *value *= factor);
    }

    /// Makes the largest of `logits`, whose first is that of the token `first`, the offset, if it is larger than what was seen before.
    /// Gives the factor that this shrinks older sums by.
    fn raise(&mut self, logits: &[f32], first: usize, target: Option<usize>) -> f64 {
        if let Some(target) = target {
            self.target = logits[target];
        }
        let highest = elementwise::max(logits);
        if highest <= self.highest {
            return 1.0;
        }
        let shrunk = (f64::from(self.highest) - f64::from(highest)).exp();
        self.highest = highest;
        self.likeliest = first + logits.iter().position(|&logit| logit == highest).unwrap_or(0);
        self.total *= shrunk;
        shrunk
    }

    fn log_total(&self) -> f64 {
        f64::from(self.highest) + self.total.ln()
    }
}

impl Difference {
    /// Takes in a slice of both, and for `softmax`, the reference's, what [`Softmax::add`] takes in.
    pub(crate) fn add(
        &mut self,
        softmax: &mut Softmax,
        reference: &[f32],
        measured: &[f32],
        first: usize,
        target: Option<usize>,
    ) {
        let shrunk = softmax.raise(reference, first, target);
        let (total, difference) = elementwise::weighted_differences(reference, measured, softmax.highest);
        softmax.total += total;
        self.0 = self.0 * shrunk + difference;
    }

    /// `KL(reference || measured)`, nats, when the whole vocabulary was seen.
    pub(crate) fn divergence(&self, reference: &Softmax, measured: &Softmax) -> f64 {
        self.0 / reference.total - reference.log_total() + measured.log_total()
    }
}
