//! What happens before the first layer and after the last.

use ndarray::{Array2, ArrayView2, CowArray, Ix2};

use super::{Forward, WindowState, elementwise};
use crate::weights::{LinearOperator, OuterWeights, SourceError, WeightSource};

impl Forward<'_> {
    /// The state before the first layer of a run of tokens that begins at position `first`.
    ///
    /// # Errors
    /// The source's own, and positions beyond those that the model has learned.
    pub fn embed(
        &self,
        source: &dyn WeightSource,
        tokens: &[u32],
        first: usize,
    ) -> Result<WindowState, SourceError> {
        self.embed_at(source, tokens, &|| self.learned(source, first, tokens.len()))
    }

    /// The same for one token at `position` of each of several sequences.
    ///
    /// # Errors
    /// As [`Forward::embed`].
    pub fn embed_each(
        &self,
        source: &dyn WeightSource,
        tokens: &[u32],
        position: usize,
    ) -> Result<WindowState, SourceError> {
        self.embed_at(source, tokens, &|| self.learned(source, position, 1))
    }

    /// Rows of the learned positions from `first` on.
    fn learned(
        &self,
        source: &dyn WeightSource,
        first: usize,
        count: usize,
    ) -> Result<Array2<f32>, SourceError> {
        let context = self.model().hyperparameters.context;
        if first + count > context {
            let problem =
                format!("the model has learned {context} positions, and a window has {}", first + count);
            return Err(problem.into());
        }
        source.positions(first..first + count)
    }

    fn embed_at(
        &self,
        source: &dyn WeightSource,
        tokens: &[u32],
        positions: &dyn Fn() -> Result<Array2<f32>, SourceError>,
    ) -> Result<WindowState, SourceError> {
        let architecture = self.model().architecture;
        let mut hidden = source.embed(tokens)?;
        let factor = self.model().hyperparameters.factors.embedding;
        if factor != 1.0 {
            hidden *= factor;
        }
        if architecture.projections.is_some() || architecture.embedding_norm.is_some() {
            let outer = source.outer()?;
            if let Some(widening) = &outer.widening {
                hidden = widening.apply(hidden.view());
            }
            if let Some(norm) = &outer.embedding_norm {
                elementwise::norm_in_place(&mut hidden, norm, self.eps());
            }
        }
        if architecture.positions.is_some() {
            hidden += &positions()?;
        }
        Ok(WindowState::new(hidden))
    }

    /// What the head multiplies with, `[tokens, embedding_size]`: the residual stream after the last layer, normed and, where widths differ,
    /// narrowed.
    #[must_use]
    pub fn head_input<'x>(
        &self,
        outer: &OuterWeights,
        hidden: ArrayView2<'x, f32>,
    ) -> CowArray<'x, f32, Ix2> {
        let normed: CowArray<'x, f32, Ix2> = match &outer.final_norm {
            Some(norm) => elementwise::norm(hidden, norm, self.eps()).into(),
            None => hidden.into(),
        };
        match &outer.narrowing {
            Some(narrowing) => narrowing.apply(normed.view()).into(),
            None => normed,
        }
    }

    /// Logits of some tokens of a window, `[tokens, rows of projection]`: `projection` is the head or some rows of it.
    #[must_use]
    pub fn logits(
        &self,
        outer: &OuterWeights,
        projection: &LinearOperator,
        hidden: ArrayView2<'_, f32>,
    ) -> Array2<f32> {
        self.logits_of(projection, self.head_input(outer, hidden).view())
    }

    /// Logits of what the head multiplies with.
    pub(crate) fn logits_of(
        &self,
        projection: &LinearOperator,
        before_head: ArrayView2<'_, f32>,
    ) -> Array2<f32> {
        let factors = &self.model().hyperparameters.factors;
        let mut logits = projection.apply(before_head);
        if factors.logits != 1.0 {
            logits *= factors.logits;
        }
        if let Some(cap) = factors.logit_cap {
            elementwise::cap(logits.as_slice_mut().expect("an owned matrix is contiguous"), cap);
        }
        logits
    }
}
