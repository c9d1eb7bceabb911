//! Chunks of rows, and their transposes: what is `[rows, columns]` outside is `[columns, width]` inside, one row in each
//! lane of `width = V` vectors. Lanes without a row compute with zeros, and nobody reads them.

use ndarray::{ArrayView2, ArrayViewMut2, Axis};
use rayon::prelude::*;

use super::{PANEL, RowGrid};
use crate::arch::lanes::Unit;

/// Rows of the largest chunk: their errors fit a second-level cache at a few thousand columns.
pub(super) const MOST_ROWS: usize = 48;
/// How many vectors side by side the loops are compiled for.
const VECTORS: [usize; 4] = [6, 3, 2, 1];

/// Some rows of a problem: at most `vectors` times the unit's lanes.
pub(super) struct Chunk<'a> {
    /// `[rows, n]`.
    pub(super) weights: ArrayView2<'a, f32>,
    /// `[rows, groups]`.
    pub(super) scales: ArrayView2<'a, f32>,
    /// `[rows, groups]`.
    pub(super) zero_points: ArrayView2<'a, f32>,
    /// `[n]`.
    pub(super) group_of: &'a [u32],
    /// `[rows, n]`.
    pub(super) codes: ArrayViewMut2<'a, u8>,
    /// One of [`VECTORS`].
    pub(super) vectors: usize,
}

/// Buffers that one chunk needs, used again for the next one. What they hold in between means nothing.
pub(super) struct Scratch {
    /// `[n, width]`: the error of each column.
    pub(super) errors: Aligned,
    /// `[128, width]`: a panel's weights, ...
    pub(super) weights: Aligned,
    /// ... sums, ...
    pub(super) sums: Aligned,
    /// ... codes, ...
    pub(super) codes: Aligned,
    /// ... and changes.
    pub(super) changes: Aligned,
    /// `[groups, width]`.
    pub(super) scales: Aligned,
    /// `[groups, width]`.
    pub(super) zero_points: Aligned,
}

/// Numbers that begin at a cache line.
pub(super) struct Aligned {
    buffer: Vec<f32>,
    start: usize,
    length: usize,
}

/// Cuts the rows into chunks and calls `work` for each, in parallel, with the chunk's part of `results` (one for each row).
pub(super) fn for_each<T: Send>(
    unit: Unit,
    weights: ArrayView2<'_, f32>,
    grid: &RowGrid<'_>,
    codes: ArrayViewMut2<'_, u8>,
    results: &mut [T],
    work: impl Fn(Unit, Chunk<'_>, &mut Scratch, &mut [T]) + Sync,
) {
    let (rows, n) = weights.dim();
    if rows == 0 || n == 0 {
        return;
    }
    // Wide chunks read the packed matrix less often; every thread should have one. No result depends on the width.
    let threads = rayon::current_num_threads();
    let fits = |&vectors: &usize| {
        let width = vectors * unit.count();
        width <= MOST_ROWS && rows.div_ceil(width) >= threads
    };
    let vectors = VECTORS.into_iter().find(fits).unwrap_or(1);
    let width = vectors * unit.count();
    let mut chunks = Vec::with_capacity(rows.div_ceil(width));
    let mut rest = codes;
    let mut first = 0;
    for results in results.chunks_mut(width) {
        let last = first + results.len();
        let (codes, below) = rest.split_at(Axis(0), results.len());
        rest = below;
        let part = (first..last).into();
        let chunk = Chunk {
            weights: weights.slice_axis(Axis(0), part),
            scales: grid.scales.slice_axis(Axis(0), part),
            zero_points: grid.zero_points.slice_axis(Axis(0), part),
            group_of: grid.group_of,
            codes,
            vectors,
        };
        chunks.push((chunk, results));
        first = last;
    }
    let scratch = || Scratch::new(n, grid.scales.ncols(), width);
    let work = |scratch: &mut Scratch, (chunk, results)| work(unit, chunk, scratch, results);
    chunks.into_par_iter().for_each_init(scratch, work);
}

impl Chunk<'_> {
    /// Transposes the grid of every group. Lanes without a row have scale 1 and zero point 0.
    pub(super) fn gather_grid(&self, width: usize, scratch: &mut Scratch) {
        gather(self.scales, width, 1.0, scratch.scales.as_mut());
        gather(self.zero_points, width, 0.0, scratch.zero_points.as_mut());
    }

    /// Transposes the weights of the columns from `start` to `end`.
    pub(super) fn gather_weights(&self, start: usize, end: usize, width: usize, buffer: &mut [f32]) {
        gather(self.weights.slice_axis(Axis(1), (start..end).into()), width, 0.0, buffer);
    }

    /// Transposes the codes of the columns from `start` to `end`.
    pub(super) fn gather_codes(&self, start: usize, end: usize, width: usize, buffer: &mut [f32]) {
        buffer[..(end - start) * width].fill(0.0);
        let codes = self.codes.slice(ndarray::s![.., start..end]);
        for (row, codes) in codes.rows().into_iter().enumerate() {
            for (column, &code) in codes.iter().enumerate() {
                buffer[column * width + row] = f32::from(code);
            }
        }
    }

    /// Writes the codes of the columns from `start` to `end` back, and calls `changed` with a row for each of its codes
    /// that was another before.
    pub(super) fn scatter_codes(
        &mut self,
        start: usize,
        end: usize,
        width: usize,
        buffer: &[f32],
        mut changed: impl FnMut(usize),
    ) {
        let mut codes = self.codes.slice_mut(ndarray::s![.., start..end]);
        for (row, mut codes) in codes.rows_mut().into_iter().enumerate() {
            for (column, code) in codes.iter_mut().enumerate() {
                let new = buffer[column * width + row] as u8;
                if *code != new {
                    *code = new;
                    changed(row);
                }
            }
        }
    }
}

impl Scratch {
    fn new(n: usize, groups: usize, width: usize) -> Self {
        let buffer = |columns: usize| Aligned::new(columns * width);
        Self {
            errors: buffer(n),
            weights: buffer(PANEL),
            sums: buffer(PANEL),
            codes: buffer(PANEL),
            changes: buffer(PANEL),
            scales: buffer(groups),
            zero_points: buffer(groups),
        }
    }
}

impl Aligned {
    fn new(length: usize) -> Self {
        const LINE: usize = 64;
        let buffer = vec![0.0; length + LINE / size_of::<f32>()];
        let start = buffer.as_ptr().align_offset(LINE);
        Self { start: start.min(buffer.len() - length), buffer, length }
    }

    pub(super) fn as_ref(&self) -> &[f32] {
        &self.buffer[self.start..self.start + self.length]
    }

    pub(super) fn as_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[self.start..self.start + self.length]
    }
}

/// `buffer[column][row] = view[row][column]`, and `padding` in the lanes without a row.
fn gather(view: ArrayView2<'_, f32>, width: usize, padding: f32, buffer: &mut [f32]) {
    let (rows, columns) = view.dim();
    let buffer = &mut buffer[..columns * width];
    if rows < width {
        buffer.fill(padding);
    }
    for (row, values) in view.rows().into_iter().enumerate() {
        for (column, &value) in values.iter().enumerate() {
            buffer[column * width + row] = value;
        }
    }
}
