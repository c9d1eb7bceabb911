//! Losses at the head, and their gradients at the residual stream.
//!
//! With `z` the logits of a position, `q = softmax(z)` and `p` the teacher's probabilities, both losses have a gradient that is a difference
//! of probabilities:
//!
//! ```text
//! KL(p || q)          z̄ = q - p
//! -ln q[target]       z̄ = q - onehot(target)
//! ```
//!
//! and a third "loss" is random: its gradient `z̄` has the covariance that the gradient of `-ln q[y]` has over labels `y` that the model itself
//! draws, the Fisher matrix of the logits. With independent signs `ξ`,
//!
//! ```text
//! z̄ = √q ∘ ξ - q (√q · ξ)          E[z̄ z̄ᵀ] = diag(q) - q qᵀ
//! ```
//!
//! which, unlike drawn labels, hears of every token at each position, and so varies less.
//!
//! Logits behind a factor and a cap, `z = c tanh(f u / c)`, pass it on as `ū = f (1 - z² / c²) z̄`.
//!
//! The vocabulary passes by twice, in slices: first for the normalizers, then for `z̄` times the head's rows. Logits exist for
//! [`POSITIONS`] positions and one slice at a time.

use std::ops::Range;

use kernels::signs::signed_roots_less;
use ndarray::{Array1, Array2, ArrayView2, s};

use super::signs::{SignedRoots, Signs};
use super::{Backward, elementwise};
use crate::evaluation::softmax::{Difference, Softmax};
use crate::forward::Forward;
use crate::weights::{LinearOperator, OuterWeights};

/// Positions whose logits exist together.
const POSITIONS: usize = 128;

/// What lies before the head, and the head.
#[derive(Clone, Copy, Debug)]
pub struct Head<'h> {
    /// The norm, and where there is one the projection.
    pub outer: &'h OuterWeights,
    /// The head's rows, `[rows, embedding_size]`, in slices of the vocabulary and in its order. Dense, because packed ones would be unpacked again
    /// and again.
    pub slices: &'h [LinearOperator],
}

/// A loss of one window, and its gradients.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// Sum over positions, nats. Not finite where a logit is not, and not a number where a target is no token of the vocabulary.
    pub sum: f64,
    /// Of the residual stream after the last layer, `[tokens, hidden]`.
    pub hidden_gradient: Array2<f32>,
    /// Of the norm's weight, `[hidden]`, where there is one.
    pub norm_gradient: Option<Array1<f32>>,
}

impl Backward<'_, '_> {
    /// The divergence `KL(teacher || student)`, summed over all positions. `student_hidden` and `teacher_hidden` are residual streams after
    /// the last layer, `[tokens, hidden]`; the two heads may be the same. The gradients are the student's, and exactly zero where both are
    /// equal.
    ///
    /// # Panics
    /// When the shapes do not fit each other, or the heads are cut into different slices.
    #[must_use]
    pub fn kl_divergence(
        &self,
        student: Head<'_>,
        student_hidden: ArrayView2<'_, f32>,
        teacher: Head<'_>,
        teacher_hidden: ArrayView2<'_, f32>,
    ) -> Loss {
        assert_eq!(student_hidden.nrows(), teacher_hidden.nrows(), "positions of student and teacher");
        let cut =
            |head: Head<'_>| -> Vec<usize> { head.slices.iter().map(LinearOperator::out_features).collect() };
        assert_eq!(cut(student), cut(teacher), "slices of student and teacher");
        let mut student = self.scores(student, student_hidden);
        let mut teacher = self.scores(teacher, teacher_hidden);
        let mut differences = vec![Difference::default(); student.softmax.len()];
        for piece in student.pieces() {
            let (measured, reference) = (student.logits(&piece), teacher.logits(&piece));
            for (row, position) in piece.positions.clone().enumerate() {
                let (measured, reference) = (row_of(&measured, row), row_of(&reference, row));
                student.softmax[position].add(measured, piece.first, None);
                let softmax = &mut teacher.softmax[position];
                differences[position].add(softmax, reference, measured, piece.first, None);
            }
        }
        let pairs = teacher.softmax.iter().zip(&student.softmax);
        let sum = differences.iter().zip(pairs).map(|(d, (p, q))| d.divergence(p, q)).sum();
        let gradient =
            student.gradient(&|piece, probabilities| *probabilities -= &teacher.probabilities(piece));
        self.loss(sum, &student, student_hidden, gradient)
    }

    /// The negative log-likelihood, summed over the first `targets.len()` positions; `targets[t]` is the token that position `t` should
    /// predict, and `hidden`, `[tokens, hidden]`, the residual stream after the last layer. Gradients of the positions after are zero.
    ///
    /// # Panics
    /// When there are more targets than positions, or the shapes do not fit each other.
    #[must_use]
    pub fn cross_entropy(&self, head: Head<'_>, hidden: ArrayView2<'_, f32>, targets: &[u32]) -> Loss {
        let scored = hidden.slice(s![..targets.len(), ..]);
        let mut scores = self.scores(head, scored);
        for piece in scores.pieces() {
            let logits = scores.logits(&piece);
            for (row, position) in piece.positions.clone().enumerate() {
                let target = piece.place_of(targets[position]);
                scores.softmax[position].add(row_of(&logits, row), piece.first, target);
            }
        }
        let sum = scores.softmax.iter().map(Softmax::nll).sum();
        let gradient = scores.gradient(&|piece, probabilities| {
            for (row, &target) in targets[piece.positions.clone()].iter().enumerate() {
                if let Some(place) = piece.place_of(target) {
                    probabilities[[row, place]] -= 1.0;
                }
            }
        });
        let mut loss = self.loss(sum, &scores, scored, gradient);
        if targets.len() < hidden.nrows() {
            let mut all = Array2::zeros(hidden.dim());
            all.slice_mut(s![..targets.len(), ..]).assign(&loss.hidden_gradient);
            loss.hidden_gradient = all;
        }
        loss
    }

    /// The gradient of the residual stream after the last layer, `[tokens, hidden]`, for a random gradient of the logits whose covariance is
    /// the Fisher matrix `diag(q) - q qᵀ` of each position. `seed` draws the signs; different windows need different ones.
    ///
    /// # Panics
    /// When the shapes do not fit each other.
    #[must_use]
    pub fn fisher_probe(&self, head: Head<'_>, hidden: ArrayView2<'_, f32>, seed: u64) -> Array2<f32> {
        let mut scores = self.scores(head, hidden);
        let mut products = vec![SignedRoots::default(); scores.softmax.len()];
        let mut signs = Signs::default();
        for piece in scores.pieces() {
            let mut logits = scores.logits(&piece);
            for (mut row, position) in logits.rows_mut().into_iter().zip(piece.positions.clone()) {
                let row = row.as_slice_mut().expect("the rows of an owned matrix are contiguous");
                let signs = signs.draw(seed, position, piece.first, row.len());
                products[position].add(&mut scores.softmax[position], row, piece.first, signs);
            }
        }
        let products: Vec<f32> =
            products.iter().zip(&scores.softmax).map(|(product, softmax)| product.finish(softmax)).collect();
        let gradient = scores.gradient(&|piece, probabilities| {
            let mut signs = Signs::default();
            for (mut row, position) in probabilities.rows_mut().into_iter().zip(piece.positions.clone()) {
                let row = row.as_slice_mut().expect("the rows of an owned matrix are contiguous");
                let signs = signs.draw(seed, position, piece.first, row.len());
                signed_roots_less(row, signs, products[position]);
            }
        });
        self.loss(0.0, &scores, hidden, gradient).hidden_gradient
    }

    fn scores<'h>(&'h self, head: Head<'h>, hidden: ArrayView2<'_, f32>) -> Scores<'h> {
        let before_head = self.forward.head_input(head.outer, hidden).into_owned();
        Scores {
            forward: self.forward,
            head,
            softmax: vec![Softmax::EMPTY; before_head.nrows()],
            before_head,
        }
    }

    /// Takes `gradient`, that of what the head multiplies with, through the projection and the norm.
    fn loss(
        &self,
        sum: f64,
        scores: &Scores<'_>,
        hidden: ArrayView2<'_, f32>,
        mut gradient: Array2<f32>,
    ) -> Loss {
        let eps = self.forward.model().hyperparameters.norm_eps;
        if let Some(narrowing) = &scores.head.outer.narrowing {
            gradient = narrowing.apply_transposed(gradient.view());
        }
        let norm = scores.head.outer.final_norm.as_ref();
        let norm_gradient = norm.map(|norm| elementwise::norm_vjp(hidden, norm, eps, &mut gradient).weight);
        Loss { sum, hidden_gradient: gradient, norm_gradient }
    }
}

/// One model at its head.
struct Scores<'h> {
    forward: &'h Forward<'h>,
    head: Head<'h>,
    /// `[positions, embedding_size]`.
    before_head: Array2<f32>,
    /// One for each position.
    softmax: Vec<Softmax>,
}

/// Some positions and a slice of the vocabulary.
struct Piece {
    /// Which slice.
    slice: usize,
    /// The slice's first token.
    first: usize,
    /// Tokens of the slice.
    tokens: usize,
    positions: Range<usize>,
}

impl Scores<'_> {
    /// Slice by slice.
    fn pieces(&self) -> Vec<Piece> {
        let positions = self.before_head.nrows();
        let mut pieces = Vec::new();
        let mut first = 0;
        for (slice, rows) in self.head.slices.iter().enumerate() {
            let tokens = rows.out_features();
            for start in (0..positions).step_by(POSITIONS) {
                pieces.push(Piece {
                    slice,
                    first,
                    tokens,
                    positions: start..(start + POSITIONS).min(positions),
                });
            }
            first += tokens;
        }
        pieces
    }

    /// `[positions, tokens]` of the piece.
    fn logits(&self, piece: &Piece) -> Array2<f32> {
        let before_head = self.before_head.slice(s![piece.positions.clone(), ..]);
        self.forward.logits_of(&self.head.slices[piece.slice], before_head)
    }

    /// `[positions, tokens]` of the piece, when the whole vocabulary was seen.
    fn probabilities(&self, piece: &Piece) -> Array2<f32> {
        self.normalized(self.logits(piece), piece)
    }

    fn normalized(&self, mut logits: Array2<f32>, piece: &Piece) -> Array2<f32> {
        for (mut row, softmax) in logits.rows_mut().into_iter().zip(&self.softmax[piece.positions.clone()]) {
            softmax.normalize(row.as_slice_mut().expect("the rows of an owned matrix are contiguous"));
        }
        logits
    }

    /// Of what the head multiplies with, `[positions, embedding_size]`, where `subtract` makes the gradient of logits of their probabilities.
    fn gradient(&self, subtract: &dyn Fn(&Piece, &mut Array2<f32>)) -> Array2<f32> {
        let factors = &self.forward.model().hyperparameters.factors;
        let mut gradient = Array2::zeros(self.before_head.dim());
        for piece in self.pieces() {
            let logits = self.logits(&piece);
            let slopes = factors.logit_cap.map(|cap| logits.mapv(|logit| 1.0 - (logit / cap).powi(2)));
            let mut of_logits = self.normalized(logits, &piece);
            subtract(&piece, &mut of_logits);
            if let Some(slopes) = slopes {
                of_logits *= &slopes;
            }
            if factors.logits != 1.0 {
                of_logits *= factors.logits;
            }
            let mut part = gradient.slice_mut(s![piece.positions.clone(), ..]);
            part += &self.head.slices[piece.slice].apply_transposed(of_logits.view());
        }
        gradient
    }
}

impl Piece {
    /// Where in the slice the token is.
    fn place_of(&self, token: u32) -> Option<usize> {
        (token as usize).checked_sub(self.first).filter(|&place| place < self.tokens)
    }
}

fn row_of(logits: &Array2<f32>, row: usize) -> &[f32] {
    logits.row(row).to_slice().expect("the rows of an owned matrix are contiguous")
}
