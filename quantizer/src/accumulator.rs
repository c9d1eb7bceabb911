//! Second moments of a stage's input, gathered over any number of batches.
//!
//! `H = Xᵀ X / tokens` for the rows `x` that a linear sees, and, where the original model's activations flow beside the quantized
//! ones, cross moments `C = (Y_original - Y)ᵀ X / tokens` of `X` with what the quantized stream lacks: `Y` is the input `X` itself (QEP,
//! arXiv 2504.09629, section 4; Qronos, arXiv 2505.11695), or the residual stream that the linear's output is added to (LoaQ, arXiv
//! 2509.06297). `C` is gathered from the difference itself, since that of two large moments would cancel.
//!
//! Rows are buffered to chunks of a fixed number of tokens: one product with sums in single precision per chunk and moment, added up in double
//! precision; where the caller asks for it, its factors are rounded to bfloat16, once for all moments of a chunk. The
//! chunk boundaries depend on nothing but the position in the stream, so however the caller splits its batches, no bit changes. Products are made and
//! added tile by tile: of the second moment only the lower triangle, in stripes, which may lie elsewhere than in memory (`kernels::stripes`).
//!
//! Of several ranks ([`kernels::ranks`]) each observes the same rows and adds up its own stripes, which those that need the whole are given in the end.
//!
//! Not here: which tokens count (the caller leaves padding out), and damping (`hessian.rs`).

use std::ops::Range;
use std::sync::Arc;

use kernels::account;
use kernels::bf16::{Columns, Precision};
use kernels::elementwise::all_finite;
use kernels::ranks::{self, Alone, Ranks};
use kernels::stripes::{HEIGHT, Shelf, Triangle, WIDTH};
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, Slice};

use crate::hessian::{CrossMoment, Hessian, HessianError};

/// Tokens of one single-precision product.
pub const CHUNK_TOKENS: usize = 2048;
/// Rows that one thread copies at a time.
const COPIED: usize = 256;

/// Gathers a [`Hessian`] and, where asked for, cross moments with the same input.
#[derive(Debug)]
pub struct HessianAccumulator {
    input: Chunk,
    /// `Xᵀ X`.
    sum: Triangle<f64>,
    /// Rows that are in it.
    summed: u64,
    crosses: Vec<Cross>,
    precision: Precision,
    ranks: Arc<dyn Ranks>,
    /// The ranks that finish it.
    readers: Vec<usize>,
}

/// Some features in both streams, `[tokens, features]` each.
#[derive(Clone, Copy, Debug)]
pub struct Streams<'a> {
    /// As the original model has them.
    pub original: ArrayView2<'a, f32>,
    /// As the quantized one has them.
    pub quantized: ArrayView2<'a, f32>,
}

/// What is observed of one window.
#[derive(Clone, Debug)]
pub struct Window<'a> {
    /// Of the quantized stream, `[tokens, in_features]`.
    pub rows: ArrayView2<'a, f32>,
    /// For each cross moment, in the order in which these were asked for.
    pub lacks: Vec<Lack<'a>>,
}

/// What the quantized stream has less than the original.
#[derive(Clone, Copy, Debug)]
pub enum Lack<'a> {
    /// The difference, `[tokens, features]`.
    Known(ArrayView2<'a, f32>),
    /// That of these.
    Between(Streams<'a>),
}

impl<'a> Lack<'a> {
    /// A matrix, and what is to be taken from it.
    fn parts(self) -> (ArrayView2<'a, f32>, Option<ArrayView2<'a, f32>>) {
        match self {
            Self::Known(difference) => (difference, None),
            Self::Between(Streams { original, quantized }) => (original, Some(quantized)),
        }
    }
}

/// What a [`CrossMoment`] is gathered in.
#[derive(Debug)]
struct Cross {
    difference: Chunk,
    /// `[features, in_features]`, added up in double precision.
    sum: Array2<f64>,
}

impl HessianAccumulator {
    /// For inputs of `in_features` columns.
    #[must_use]
    pub fn new(in_features: usize) -> Self {
        Self::on(in_features, &Shelf::memory())
    }

    /// The same with the second moment, and what is made of it, on `shelf`.
    #[must_use]
    pub fn on(in_features: usize, shelf: &Arc<Shelf>) -> Self {
        Self {
            input: Chunk::new(in_features),
            sum: Triangle::zeros(in_features, shelf),
            summed: 0,
            crosses: Vec::new(),
            precision: Precision::Single,
            ranks: Alone::ranks(),
            readers: vec![0],
        }
    }

    /// One of those of several `ranks`, which are shown the same rows: `readers` finish it, and the others [`give`](Self::give) it.
    #[must_use]
    pub fn among(self, ranks: &Arc<dyn Ranks>, readers: &[usize]) -> Self {
        Self { ranks: ranks.clone(), readers: readers.to_vec(), ..self }
    }

    /// With factors of products rounded so.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// With one more cross moment: of so many features that both streams have.
    #[must_use]
    pub fn with_cross_moment(mut self, features: usize) -> Self {
        let sum = Array2::zeros((features, self.input.width()));
        self.crosses.push(Cross { difference: Chunk::new(features), sum });
        self
    }

    /// Adds `rows`, `[tokens, in_features]`, where no cross moment is gathered.
    ///
    /// # Errors
    /// Rows of another width, an activation that is not finite, or a shelf that fails.
    ///
    /// # Panics
    /// When a cross moment is gathered.
    pub fn observe(&mut self, rows: ArrayView2<'_, f32>) -> Result<(), HessianError> {
        self.observe_beside(rows, &[])
    }

    /// Adds `rows`, `[tokens, in_features]`, of the quantized stream, and what both streams have for each cross moment, in the order in which
    /// these were asked for.
    ///
    /// # Errors
    /// Rows of another width or count, an activation that is not finite, or a shelf that fails.
    ///
    /// # Panics
    /// When there are not as many `streams` as cross moments.
    pub fn observe_beside<'a>(
        &mut self,
        rows: ArrayView2<'a, f32>,
        streams: &[Streams<'a>],
    ) -> Result<(), HessianError> {
        let lacks = streams.iter().copied().map(Lack::Between).collect();
        self.observe_windows(&[Window { rows, lacks }])
    }

    /// Adds the rows of several windows, in order: copied side by side.
    ///
    /// # Errors
    /// As those of [`HessianAccumulator::observe_beside`].
    ///
    /// # Panics
    /// When a window has not as many `lacks` as there are cross moments.
    pub fn observe_windows(&mut self, windows: &[Window<'_>]) -> Result<(), HessianError> {
        windows.iter().try_for_each(|window| self.check(window))?;
        let (mut next, mut from) = (0, 0);
        while next < windows.len() {
            let mut room = self.input.room();
            let mut parts = Vec::new();
            while let Some(window) = windows.get(next).filter(|_| room > 0) {
                let rows = from..window.rows.nrows().min(from + room.min(COPIED));
                room -= rows.len();
                from = rows.end;
                if from == window.rows.nrows() {
                    (next, from) = (next + 1, 0);
                }
                parts.push((window, rows));
            }
            self.take(&parts)?;
            if self.input.room() == 0 {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// How many ranks, from the first on, have a share of the sums: there may be fewer stripes than ranks.
    #[must_use]
    pub fn sharers(&self) -> usize {
        let crosses = self.crosses.iter().map(|cross| cross.sum.nrows().div_ceil(HEIGHT));
        self.ranks.size().min(self.sum.stripes() + crosses.sum::<usize>())
    }

    /// Counts so many tokens on a rank that has no share.
    pub fn pass_over(&mut self, tokens: usize) {
        self.summed += tokens as u64;
    }

    fn check(&self, Window { rows, lacks }: &Window<'_>) -> Result<(), HessianError> {
        assert_eq!(lacks.len(), self.crosses.len(), "what is lacked for each cross moment");
        self.input.demand_width(*rows)?;
        for (cross, lack) in self.crosses.iter().zip(lacks) {
            let (first, other) = lack.parts();
            for part in std::iter::once(first).chain(other) {
                cross.difference.demand_width(part)?;
                if part.nrows() != rows.nrows() {
                    return Err(HessianError::TokenCount { original: part.nrows(), quantized: rows.nrows() });
                }
            }
        }
        Ok(())
    }

    /// Copies some rows of windows, for which there is room.
    fn take(&mut self, parts: &[(&Window<'_>, Range<usize>)]) -> Result<(), HessianError> {
        let seen = self.tokens();
        let mut copies: Vec<RowsCopy<'_>> = Vec::with_capacity(parts.len() * (1 + self.crosses.len()));
        let own = parts.iter().map(|(window, rows)| ((window.rows, None), rows.clone()));
        self.input.plan(own, seen, &mut copies);
        for (number, cross) in self.crosses.iter_mut().enumerate() {
            let lacks = parts.iter().map(|(window, rows)| (window.lacks[number].parts(), rows.clone()));
            cross.difference.plan(lacks, seen, &mut copies);
        }
        let copied: Vec<_> = copies.into_par_iter().map(RowsCopy::run).collect();
        // The first of several errors, whoever found it.
        copied.into_iter().collect::<Result<(), _>>()?;
        let rows: usize = parts.iter().map(|(_, rows)| rows.len()).sum();
        let crosses = self.crosses.iter_mut().map(|cross| &mut cross.difference);
        std::iter::once(&mut self.input).chain(crosses).for_each(|chunk| chunk.filled += rows);
        Ok(())
    }

    /// Tokens that were observed.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.summed + self.input.filled as u64
    }

    /// The mean over all tokens.
    ///
    /// # Errors
    /// No token was observed, or the shelf or another rank fails.
    pub fn finish(self) -> Result<Hessian, HessianError> {
        self.finish_all().map(|(hessian, _)| hessian)
    }

    /// The same, and the cross moments in the order in which they were asked for.
    ///
    /// # Errors
    /// No token was observed, or the shelf or another rank fails.
    pub fn finish_all(mut self) -> Result<(Hessian, Vec<CrossMoment>), HessianError> {
        self.share()?;
        if self.summed == 0 {
            return Err(HessianError::NoTokens);
        }
        let tokens = self.summed as f64;
        self.sum.modify(|rows, mut stripe| {
            stripe.mapv_inplace(|sum| sum / tokens);
            mirror(&rows, &mut stripe);
        })?;
        let hessian = Hessian::of_moment(self.sum, self.summed)?;
        let cross = |Cross { mut sum, .. }: Cross| {
            sum.par_mapv_inplace(|sum| sum / tokens);
            CrossMoment::new(sum, self.summed)
        };
        Ok((hessian, self.crosses.into_iter().map(cross).collect()))
    }

    /// Gives the ranks that finish it this one's share.
    ///
    /// # Errors
    /// The shelf or another rank fails.
    pub fn give(mut self) -> Result<(), HessianError> {
        self.share()
    }

    /// Has all stripes on the ranks that read them.
    fn share(&mut self) -> Result<(), HessianError> {
        self.flush()?;
        let Self { sum, crosses, ranks, readers, summed, .. } = self;
        if ranks.is_alone() || *summed == 0 {
            return Ok(());
        }
        sum.share(&**ranks, 0, readers)?;
        let mut first = sum.stripes();
        let reads = readers.contains(&ranks.rank());
        for Cross { sum, .. } in crosses {
            for mut stripe in sum.axis_chunks_iter_mut(Axis(0), HEIGHT) {
                let owner = first % ranks.size();
                let mut message = Vec::new();
                if owner == ranks.rank() {
                    ranks::put(&mut message, stripe.view());
                }
                let message = ranks::tell(&**ranks, owner, readers, message)?;
                if reads && owner != ranks.rank() {
                    stripe.assign(&ranks::take(&mut &message[..])?);
                }
                first += 1;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), HessianError> {
        let input = self.input.drain();
        let tokens = input.nrows();
        if tokens == 0 {
            return Ok(());
        }
        let section = account::section("second moments");
        let input = self.precision.columns(input);
        let ranks = &self.ranks;
        let add = |rows: Range<usize>, stripe: ArrayViewMut2<'_, f64>| {
            add_tiles(&input, &input, rows.start, stripe, true);
        };
        self.sum.modify_some(|stripe| ranks.owns(stripe), add)?;
        self.summed += tokens as u64;
        drop(section);
        let _section = account::section("cross moments");
        let mut first = self.sum.stripes();
        for Cross { difference, sum } in &mut self.crosses {
            let difference = self.precision.columns(difference.drain());
            let stripes: Vec<_> = sum.axis_chunks_iter_mut(Axis(0), HEIGHT).enumerate().collect();
            let count = stripes.len();
            let own = stripes.into_par_iter().filter(|(number, _)| ranks.owns(first + number));
            own.for_each(|(number, stripe)| add_tiles(&difference, &input, number * HEIGHT, stripe, false));
            first += count;
        }
        Ok(())
    }
}

/// Adds some rows, from `first` on, of `Xᵀ Y`; of a triangle only the tiles that are not above the diagonal.
fn add_tiles(x: &Columns<'_>, y: &Columns<'_>, first: usize, mut sums: ArrayViewMut2<'_, f64>, lower: bool) {
    let width = tile_width(sums.ncols());
    let tiles: Vec<_> = sums.axis_chunks_iter_mut(Axis(1), width).enumerate().collect();
    tiles.into_par_iter().for_each(|(number, mut tile)| {
        let column = number * width;
        let above = if lower { column.saturating_sub(first) } else { 0 };
        let tile = tile.slice_axis_mut(Axis(0), Slice::from(above..));
        x.add_tile(y, (first + above, column), tile);
    });
}

/// Columns of a tile that one thread computes: a stripe of a narrow matrix, too, is several threads' work, and one that crosses the diagonal is cut
/// off above it.
fn tile_width(columns: usize) -> usize {
    (columns / 4).next_multiple_of(64).clamp(64, WIDTH)
}

/// Makes the tile on the diagonal of a stripe symmetric.
fn mirror(rows: &Range<usize>, stripe: &mut ArrayViewMut2<'_, f64>) {
    let mut tile = stripe.slice_axis_mut(Axis(1), Slice::from(rows.clone()));
    for row in 0..rows.len() {
        for column in 0..row {
            tile[[column, row]] = tile[[row, column]];
        }
    }
}

/// Rows waiting for their product.
#[derive(Clone, Debug)]
struct Chunk {
    /// `[CHUNK_TOKENS, features]`
    rows: Array2<f32>,
    filled: usize,
}

impl Chunk {
    fn new(features: usize) -> Self {
        Self { rows: Array2::zeros((CHUNK_TOKENS, features)), filled: 0 }
    }

    fn width(&self) -> usize {
        self.rows.ncols()
    }

    /// Rows that still fit.
    fn room(&self) -> usize {
        CHUNK_TOKENS - self.filled
    }

    fn demand_width(&self, rows: ArrayView2<'_, f32>) -> Result<(), HessianError> {
        let (expected, found) = (self.width(), rows.ncols());
        if expected == found { Ok(()) } else { Err(HessianError::Width { expected, found }) }
    }

    /// Plans to copy rows of matrices, less those of others where there are some, behind what is here; the first of them is token `seen` of all.
    fn plan<'c>(
        &'c mut self,
        parts: impl Iterator<Item = ((ArrayView2<'c, f32>, Option<ArrayView2<'c, f32>>), Range<usize>)>,
        mut seen: u64,
        copies: &mut Vec<RowsCopy<'c>>,
    ) {
        let mut free = self.rows.slice_axis_mut(Axis(0), Slice::from(self.filled..));
        for ((matrix, others), rows) in parts {
            let (to, rest) = free.split_at(Axis(0), rows.len());
            free = rest;
            let slice = Slice::from(rows.clone());
            let part = |matrix: ArrayView2<'c, f32>| matrix.slice_axis_move(Axis(0), slice);
            copies.push(RowsCopy { to, rows: part(matrix), others: others.map(part), seen });
            seen += rows.len() as u64;
        }
    }

    /// The rows gathered so far; the next row starts a new chunk.
    fn drain(&mut self) -> ArrayView2<'_, f32> {
        let filled = std::mem::take(&mut self.filled);
        self.rows.slice_axis(Axis(0), (..filled).into())
    }
}

/// Some rows on their way to a chunk.
struct RowsCopy<'c> {
    to: ArrayViewMut2<'c, f32>,
    rows: ArrayView2<'c, f32>,
    /// What is taken from them.
    others: Option<ArrayView2<'c, f32>>,
    /// Tokens before the first of them.
    seen: u64,
}

impl RowsCopy<'_> {
    fn run(self) -> Result<(), HessianError> {
        let Self { mut to, rows, others, seen } = self;
        let rows = rows.as_standard_layout();
        let others = others.as_ref().map(|others| others.as_standard_layout());
        for (token, (to, row)) in to.outer_iter_mut().zip(rows.rows()).enumerate() {
            let to = to.into_slice().expect("rows of a matrix made here");
            let row = row.to_slice().expect("standard layout");
            match &others {
                None => to.copy_from_slice(row),
                Some(others) => {
                    let other = others.row(token).to_slice().expect("standard layout");
                    for ((to, row), other) in to.iter_mut().zip(row).zip(other) {
                        *to = row - other;
                    }
                }
            }
            // While the row is still in the first cache.
            if !all_finite(to) {
                let column = to.iter().position(|x| !x.is_finite()).unwrap_or(0);
                let other = others.as_ref().map_or(0.0, |others| others[[token, column]]);
                let found = [row[column], other].into_iter().find(|x| !x.is_finite()).unwrap_or(to[column]);
                return Err(HessianError::NonFiniteActivation { column, token: seen + token as u64, found });
            }
        }
        Ok(())
    }
}
