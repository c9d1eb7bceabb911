//! The order of work of a packed product, the same for every machine.
//!
//! Outputs are cut into tiles of fixed size, which are independent and run in parallel; each tile walks the columns in chunks
//! of fixed size, in order. So neither the number of threads nor the number of other tokens in the call decides the order in
//! which a sum is taken; only whether there are few tokens or many does.
//!
//! * Few tokens (at most 8): reading the codes is the cost. Each is turned into a float in registers and used for all tokens;
//!   scale and zero point come in once per group.
//! * Many tokens: multiplying is the cost. A tile's weights are decoded once, into a buffer that stays in the second-level
//!   cache, and all tokens pass by.

use ndarray::{ArrayView2, ArrayViewMut2, Axis};
use rayon::prelude::*;

use super::PackedMatrix;
use super::kernel::{
    Codes, GroupActivations, GroupGrid, IDENTITY_GRID, LANES, PackedKernel, Placement, UNIT,
};
use super::shape::CodeLayout;
use crate::arch::generic::packed::interleave;

const PANELS_PER_TILE: usize = 2;
const OUTPUTS_PER_TILE: usize = PANELS_PER_TILE * LANES;
const UNITS_PER_CHUNK: usize = 16;
const COLUMNS_PER_CHUNK: usize = UNITS_PER_CHUNK * UNIT;
const TOKENS_PER_TILE: usize = 384;
const FEW_TOKENS: usize = 8;

/// `x` is `[tokens, in_features]` and both have contiguous rows; `out` is overwritten.
pub(super) fn product<K: PackedKernel>(
    kernel: K,
    matrix: &PackedMatrix,
    x: ArrayView2<'_, f32>,
    out: ArrayViewMut2<'_, f32>,
) {
    let chunks = chunks(matrix);
    if x.nrows() <= FEW_TOKENS && units_lie_in_groups(matrix) {
        few_tokens(kernel, matrix, &chunks, x, out);
    } else {
        many_tokens(kernel, matrix, &chunks, x, out);
    }
}

/// Consecutive units of one group, within a chunk.
struct Segment {
    /// Counted from the start of the chunk.
    first_unit: usize,
    units: usize,
    group: usize,
}

/// Consecutive columns that are staged together.
struct Chunk {
    first_unit: usize,
    units: usize,
    /// Less than `units * UNIT` where the matrix ends within a unit.
    columns: usize,
    /// The whole chunk; where groups do not respect units, one segment of no particular group.
    segments: Vec<Segment>,
}

fn units_lie_in_groups(matrix: &PackedMatrix) -> bool {
    let shape = matrix.shape();
    shape.group_size.is_multiple_of(UNIT) || shape.group_size == shape.in_features
}

fn chunks(matrix: &PackedMatrix) -> Vec<Chunk> {
    let shape = matrix.shape();
    let all_units = shape.in_features.div_ceil(UNIT);
    let units_per_group =
        if units_lie_in_groups(matrix) { shape.group_size.div_ceil(UNIT) } else { UNITS_PER_CHUNK };
    let chunk = |first_unit: usize| {
        let units = UNITS_PER_CHUNK.min(all_units - first_unit);
        let mut segments = Vec::new();
        let mut at = first_unit;
        while at < first_unit + units {
            let group = at / units_per_group;
            let end = ((group + 1) * units_per_group).min(first_unit + units);
            segments.push(Segment { first_unit: at - first_unit, units: end - at, group });
            at = end;
        }
        let columns = (units * UNIT).min(shape.in_features - first_unit * UNIT);
        Chunk { first_unit, units, columns, segments }
    };
    (0..all_units).step_by(UNITS_PER_CHUNK).map(chunk).collect()
}

/// Some tokens of some consecutive outputs.
struct Tile<'a> {
    first_token: usize,
    first_panel: usize,
    /// One slice for each token.
    rows: Vec<&'a mut [f32]>,
}

impl Tile<'_> {
    fn panels(&self) -> usize {
        self.rows.first().map_or(0, |row| row.len().div_ceil(LANES))
    }
}

fn tiles<'a>(out: &'a mut ArrayViewMut2<'_, f32>) -> Vec<Tile<'a>> {
    let tiles_per_row = out.ncols().div_ceil(OUTPUTS_PER_TILE);
    let mut tiles = Vec::new();
    for (token, row) in out.axis_iter_mut(Axis(0)).enumerate() {
        if token % TOKENS_PER_TILE == 0 {
            tiles.extend((0..tiles_per_row).map(|tile| Tile {
                first_token: token,
                first_panel: tile * PANELS_PER_TILE,
                rows: Vec::new(),
            }));
        }
        let newest = tiles.len() - tiles_per_row;
        let row = row.into_slice().expect("`out` has contiguous rows");
        for (tile, part) in tiles[newest..].iter_mut().zip(row.chunks_mut(OUTPUTS_PER_TILE)) {
            tile.rows.push(part);
        }
    }
    tiles
}

fn few_tokens<K: PackedKernel>(
    kernel: K,
    matrix: &PackedMatrix,
    chunks: &[Chunk],
    x: ArrayView2<'_, f32>,
    mut out: ArrayViewMut2<'_, f32>,
) {
    let bits = usize::from(matrix.shape().bits);
    let tokens = x.nrows().next_power_of_two();
    // [tokens, columns]: padded with zeros to whole units and to a number of tokens that there is a kernel for.
    let stride = matrix.shape().in_features.next_multiple_of(UNIT);
    let mut scaled = vec![0.0_f32; tokens * stride];
    let factors: [f32; UNIT] = std::array::from_fn(|k| 1.0 / (1_u32 << Placement::new(bits, k).shift) as f32);
    for (x, scaled) in x.rows().into_iter().zip(scaled.chunks_exact_mut(stride)) {
        for (k, (&x, scaled)) in x.iter().zip(scaled).enumerate() {
            *scaled = x * factors[k % UNIT];
        }
    }
    // [segments, tokens]
    let mut sums = Vec::new();
    for chunk in chunks {
        for segment in &chunk.segments {
            let first = (chunk.first_unit + segment.first_unit) * UNIT;
            let end = (first + segment.units * UNIT).min(x.ncols());
            sums.extend((0..tokens).map(|token| {
                if token < x.nrows() { (first..end).map(|k| x[[token, k]]).sum::<f32>() } else { 0.0 }
            }));
        }
    }

    tiles(&mut out).into_par_iter().for_each_init(Scratch::default, |scratch, mut tile| {
        let mut totals = [0.0_f32; PANELS_PER_TILE * FEW_TOKENS * LANES];
        let mut sums = sums.chunks_exact(tokens);
        for chunk in chunks {
            let chunk_sums: Vec<_> = sums.by_ref().take(chunk.segments.len()).collect();
            for (panel, totals) in totals.chunks_exact_mut(tokens * LANES).take(tile.panels()).enumerate() {
                let panel = Panel { matrix, index: tile.first_panel + panel };
                let codes = panel.codes(kernel, chunk, &mut scratch.words);
                for (segment, sums) in chunk.segments.iter().zip(&chunk_sums) {
                    let first = (chunk.first_unit + segment.first_unit) * UNIT;
                    kernel.multiply_group(
                        codes.range(segment.first_unit, segment.units),
                        panel.grid(segment.group, &mut scratch.grid),
                        GroupActivations { scaled: &scaled[first..], stride, sums },
                        totals,
                    );
                }
            }
        }
        for (token, row) in tile.rows.iter_mut().enumerate() {
            for (panel, part) in row.chunks_mut(LANES).enumerate() {
                let totals = &totals[(panel * tokens + token) * LANES..];
                part.copy_from_slice(&totals[..part.len()]);
            }
        }
    });
}

fn many_tokens<K: PackedKernel>(
    kernel: K,
    matrix: &PackedMatrix,
    chunks: &[Chunk],
    x: ArrayView2<'_, f32>,
    mut out: ArrayViewMut2<'_, f32>,
) {
    let x_stride = x.ncols();
    let x = x.to_slice().expect("`x` has contiguous rows");
    tiles(&mut out).into_par_iter().for_each_init(Scratch::default, |scratch, mut tile| {
        let outputs = tile.rows[0].len();
        let mut sums = vec![0.0; K::ROWS * K::STRIP];
        for chunk in chunks {
            for panel in 0..tile.panels() {
                let weights = &mut scratch.weights.as_mut()[panel * COLUMNS_PER_CHUNK * LANES..];
                let panel = Panel { matrix, index: tile.first_panel + panel };
                panel.decode(kernel, chunk, &mut scratch.words, &mut scratch.grid, weights);
            }
            let x = &x[tile.first_token * x_stride + chunk.first_unit * UNIT..];
            for (pass, rows) in tile.rows.chunks_mut(K::ROWS).enumerate() {
                let x = &x[pass * K::ROWS * x_stride..];
                for (strip, lane) in (0..outputs).step_by(K::STRIP).enumerate() {
                    let weights = &scratch.weights.as_ref()[strip * COLUMNS_PER_CHUNK * K::STRIP..];
                    kernel.tile(x, x_stride, rows.len(), weights, chunk.columns, &mut sums);
                    for (row, sums) in rows.iter_mut().zip(sums.chunks_exact(K::STRIP)) {
                        let outputs = row[lane..].iter_mut().zip(sums);
                        if chunk.first_unit == 0 {
                            outputs.for_each(|(out, sum)| *out = *sum);
                        } else {
                            outputs.for_each(|(out, sum)| *out += sum);
                        }
                    }
                }
            }
        }
    });
}

/// Buffers that a thread uses again from tile to tile.
struct Scratch {
    words: Aligned<u32>,
    weights: Aligned<f32>,
    grid: [[f32; LANES]; 2],
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            words: Aligned::zeros(UNITS_PER_CHUNK * 8 * LANES),
            weights: Aligned::zeros(COLUMNS_PER_CHUNK * OUTPUTS_PER_TILE),
            grid: [[0.0; LANES]; 2],
        }
    }
}

/// [`LANES`] consecutive outputs of a matrix; past its last one, lanes that are zero.
#[derive(Clone, Copy)]
struct Panel<'a> {
    matrix: &'a PackedMatrix,
    index: usize,
}

impl<'a> Panel<'a> {
    fn first_output(self) -> usize {
        self.index * LANES
    }

    fn lanes(self) -> usize {
        LANES.min(self.matrix.shape().out_features - self.first_output())
    }

    /// The chunk's codes with lanes side by side: in place where the matrix has them so, otherwise in `scratch`.
    fn codes<'s, K: PackedKernel>(self, kernel: K, chunk: &Chunk, scratch: &'s mut Aligned<u32>) -> Codes<'s>
    where
        'a: 's,
    {
        let shape = self.matrix.shape();
        let bits = usize::from(shape.bits);
        let (first, wanted) = (chunk.first_unit * bits, chunk.units * bits);
        let present = wanted.min(shape.words_per_output() - first);
        let words = self.matrix.words();
        let whole = self.lanes() == LANES;
        if shape.layout == CodeLayout::InputMajor && whole && present == wanted {
            let words = &words[first * shape.out_features + self.first_output()..];
            return Codes::new(words, shape.out_features, bits, chunk.units);
        }
        let to = &mut scratch.as_mut()[..wanted * LANES];
        if !(whole && present == wanted) {
            to.fill(0);
        }
        match shape.layout {
            CodeLayout::InputMajor => {
                let rows = words.chunks_exact(shape.out_features).skip(first);
                for (to, row) in to.chunks_exact_mut(LANES).zip(rows) {
                    to[..self.lanes()].copy_from_slice(&row[self.first_output()..][..self.lanes()]);
                }
            }
            CodeLayout::OutputMajor => {
                let stride = shape.words_per_output();
                let from = &words[self.first_output() * stride + first..];
                let to = &mut to[..present * LANES];
                if whole { kernel.interleave(from, stride, to) } else { interleave(from, stride, to) }
            }
        }
        Codes::new(scratch.as_ref(), LANES, bits, chunk.units)
    }

    /// The group's scales and zero points: in place if they are those of a whole panel, otherwise in `scratch`.
    fn grid<'s>(self, group: usize, scratch: &'s mut [[f32; LANES]; 2]) -> GroupGrid<'s>
    where
        'a: 's,
    {
        let first = group * self.matrix.shape().out_features + self.first_output();
        let row = |grid: ArrayView2<'a, f32>| {
            &grid.to_slice().expect("grids are in standard layout")[first..][..self.lanes()]
        };
        let (scales, zero_points) = (row(self.matrix.scales()), row(self.matrix.zero_points()));
        if let (Some(scales), Some(zero_points)) = (scales.first_chunk(), zero_points.first_chunk()) {
            return GroupGrid { scales, zero_points };
        }
        scratch[0][..scales.len()].copy_from_slice(scales);
        scratch[1][..zero_points.len()].copy_from_slice(zero_points);
        let [scales, zero_points] = scratch;
        GroupGrid { scales, zero_points }
    }

    /// The chunk's weights, in strips of [`PackedKernel::STRIP`] outputs, [`COLUMNS_PER_CHUNK`] columns apart.
    fn decode<K: PackedKernel>(
        self,
        kernel: K,
        chunk: &Chunk,
        words: &mut Aligned<u32>,
        scratch: &mut [[f32; LANES]; 2],
        weights: &mut [f32],
    ) {
        let in_groups = units_lie_in_groups(self.matrix);
        let codes = self.codes(kernel, chunk, words);
        for segment in &chunk.segments {
            let grid = if in_groups { self.grid(segment.group, scratch) } else { IDENTITY_GRID };
            let weights = &mut weights[segment.first_unit * UNIT * K::STRIP..];
            let codes = codes.range(segment.first_unit, segment.units);
            kernel.decode(codes, grid, weights, COLUMNS_PER_CHUNK * K::STRIP);
        }
        if !in_groups {
            self.apply_grid::<K>(chunk, scratch, weights);
        }
    }

    /// Turns codes into weights, column by column.
    fn apply_grid<K: PackedKernel>(
        self,
        chunk: &Chunk,
        scratch: &mut [[f32; LANES]; 2],
        weights: &mut [f32],
    ) {
        for column in 0..chunk.columns {
            let group = (chunk.first_unit * UNIT + column) / self.matrix.shape().group_size;
            let grid = self.grid(group, scratch);
            for strip in 0..LANES / K::STRIP {
                let at = (strip * COLUMNS_PER_CHUNK + column) * K::STRIP;
                let lanes = strip * K::STRIP..(strip + 1) * K::STRIP;
                let grid = grid.scales[lanes.clone()].iter().zip(&grid.zero_points[lanes]);
                for (weight, (scale, zero_point)) in weights[at..][..K::STRIP].iter_mut().zip(grid) {
                    *weight = (*weight - zero_point) * scale;
                }
            }
        }
    }
}

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line<T>([T; 16]);

/// Memory that starts with a cache line, so that no aligned vector straddles two.
struct Aligned<T>(Vec<Line<T>>);

impl<T: Copy + Default> Aligned<T> {
    fn zeros(len: usize) -> Self {
        const { assert!(size_of::<Line<T>>() == 16 * size_of::<T>()) };
        Self(vec![Line([T::default(); 16]); len.div_ceil(16)])
    }

    fn as_ref(&self) -> &[T] {
        // SAFETY: the lines are 16 values of `T` each, without padding.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * 16) }
    }

    fn as_mut(&mut self) -> &mut [T] {
        // SAFETY: the lines are 16 values of `T` each, without padding.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * 16) }
    }
}
