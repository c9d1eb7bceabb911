//! Cutting a packed matrix into the pieces that the kernels take, and bringing those into the form that they want.

use super::PackedMatrix;
use super::kernel::{Codes, GroupGrid, IDENTITY_GRID, LANES, PackedKernel, UNIT};
use super::shape::{CodeLayout, PackedShape};
use crate::arch::generic::packed::interleave;

/// The most units of a chunk.
pub(super) const MOST_UNITS: usize = 16;

/// Consecutive columns that are staged together.
pub(super) struct Chunk {
    /// Counted from the start of the matrix, as are the columns.
    pub(super) first_unit: usize,
    pub(super) units: usize,
    /// Less than `units * UNIT` where the matrix ends within a unit.
    pub(super) columns: usize,
    /// They make up the chunk.
    pub(super) segments: Vec<Segment>,
}

/// Consecutive units of one group, within a chunk.
pub(super) struct Segment {
    /// Counted from the start of the chunk.
    pub(super) first_unit: usize,
    pub(super) units: usize,
    /// Which one; of no meaning where groups do not respect units.
    pub(super) group: usize,
}

/// Whether each unit has a single scale for each output.
pub(super) fn units_lie_in_groups(shape: PackedShape) -> bool {
    shape.group_size.is_multiple_of(UNIT) || shape.group_size == shape.in_features
}

/// All columns in order, in chunks of `units_per_chunk`.
pub(super) fn chunks(shape: PackedShape, units_per_chunk: usize) -> Vec<Chunk> {
    assert!(units_per_chunk <= MOST_UNITS);
    let all_units = shape.in_features.div_ceil(UNIT);
    let units_per_group =
        if units_lie_in_groups(shape) { shape.group_size.div_ceil(UNIT) } else { all_units };
    let chunk = |first_unit: usize| {
        let end = all_units.min(first_unit + units_per_chunk);
        let mut segments = Vec::new();
        let mut at = first_unit;
        while at < end {
            let group = at / units_per_group;
            let units = end.min((group + 1) * units_per_group) - at;
            segments.push(Segment { first_unit: at - first_unit, units, group });
            at += units;
        }
        let columns = shape.in_features.min(end * UNIT) - first_unit * UNIT;
        Chunk { first_unit, units: end - first_unit, columns, segments }
    };
    (0..all_units).step_by(units_per_chunk).map(chunk).collect()
}

/// A packed matrix, taken apart.
#[derive(Clone, Copy)]
pub(super) struct Stored<'a> {
    pub(super) shape: PackedShape,
    words: &'a [u32],
    /// `[groups, out_features]`
    scales: &'a [f32],
    /// `[groups, out_features]`
    zero_points: &'a [f32],
}

impl<'a> Stored<'a> {
    pub(super) fn new(matrix: &'a PackedMatrix) -> Self {
        let grid =
            |values: &'a ndarray::Array2<f32>| values.as_slice().expect("grids are in standard layout");
        Self {
            shape: matrix.shape,
            words: &matrix.words,
            scales: grid(&matrix.scales),
            zero_points: grid(&matrix.zero_points),
        }
    }

    /// Width of a code.
    pub(super) fn bits(self) -> usize {
        usize::from(self.shape.bits)
    }

    /// The outputs from `index * LANES` on.
    pub(super) fn panel(self, index: usize) -> Panel<'a> {
        let first_output = index * LANES;
        Panel { stored: self, first_output, lanes: LANES.min(self.shape.out_features - first_output) }
    }
}

/// Buffers that a thread uses again from tile to tile.
pub(super) struct Scratch {
    words: Aligned<u32>,
    grid: [[f32; LANES]; 2],
}

impl Default for Scratch {
    fn default() -> Self {
        Self { words: Aligned::zeros(MOST_UNITS * 8 * LANES), grid: [[0.0; LANES]; 2] }
    }
}

/// [`LANES`] consecutive outputs; past the last one of the matrix, lanes that are zero.
#[derive(Clone, Copy)]
pub(super) struct Panel<'a> {
    stored: Stored<'a>,
    first_output: usize,
    lanes: usize,
}

impl Panel<'_> {
    /// Calls for each segment of the chunk with its codes, lanes side by side, and its grid.
    pub(super) fn for_each_segment<K: PackedKernel>(
        self,
        kernel: K,
        chunk: &Chunk,
        scratch: &mut Scratch,
        mut visit: impl FnMut(&Segment, Codes<'_>, GroupGrid<'_>),
    ) {
        let Scratch { words, grid } = scratch;
        let codes = self.codes(kernel, chunk, words);
        for segment in &chunk.segments {
            let grid = self.grid(segment.group, grid);
            visit(segment, codes.range(segment.first_unit, segment.units), grid);
        }
    }

    /// Writes the chunk's weights in strips of [`PackedKernel::STRIP`] outputs, `strip_stride` apart.
    pub(super) fn decode<K: PackedKernel>(
        self,
        kernel: K,
        chunk: &Chunk,
        scratch: &mut Scratch,
        weights: &mut [f32],
        strip_stride: usize,
    ) {
        if units_lie_in_groups(self.stored.shape) {
            self.for_each_segment(kernel, chunk, scratch, |segment, codes, grid| {
                let weights = &mut weights[segment.first_unit * UNIT * K::STRIP..];
                kernel.decode(codes, grid, weights, strip_stride);
            });
        } else {
            self.decode_codes(kernel, chunk, scratch, weights, strip_stride);
            self.apply_grid::<K>(chunk, scratch, weights, strip_stride);
        }
    }

    /// Writes the chunk's codes, as [`Panel::decode`] does its weights.
    pub(super) fn decode_codes<K: PackedKernel>(
        self,
        kernel: K,
        chunk: &Chunk,
        scratch: &mut Scratch,
        codes: &mut [f32],
        strip_stride: usize,
    ) {
        kernel.decode(self.codes(kernel, chunk, &mut scratch.words), IDENTITY_GRID, codes, strip_stride);
    }

    /// The chunk's codes with lanes side by side: in place where the matrix has them so, otherwise in `scratch`.
    fn codes<'s, K: PackedKernel>(self, kernel: K, chunk: &Chunk, scratch: &'s mut Aligned<u32>) -> Codes<'s>
    where
        Self: 's,
    {
        let Stored { shape, words, .. } = self.stored;
        let bits = self.stored.bits();
        let (first, wanted) = (chunk.first_unit * bits, chunk.units * bits);
        let present = wanted.min(shape.words_per_output() - first);
        let complete = self.lanes == LANES && present == wanted;
        if shape.layout == CodeLayout::InputMajor && complete {
            let words = &words[first * shape.out_features + self.first_output..];
            return Codes::new(words, shape.out_features, bits, chunk.units);
        }
        let to = &mut scratch.as_mut()[..wanted * LANES];
        if !complete {
            to.fill(0);
        }
        match shape.layout {
            CodeLayout::InputMajor => {
                let rows = words.chunks_exact(shape.out_features).skip(first);
                for (to, row) in to.chunks_exact_mut(LANES).zip(rows) {
                    to[..self.lanes].copy_from_slice(&row[self.first_output..][..self.lanes]);
                }
            }
            CodeLayout::OutputMajor => {
                let words_per_lane = shape.words_per_output();
                let from = &words[self.first_output * words_per_lane + first..];
                let to = &mut to[..present * LANES];
                if self.lanes == LANES {
                    kernel.interleave(from, words_per_lane, to);
                } else {
                    interleave(from, words_per_lane, to);
                }
            }
        }
        Codes::new(scratch.as_ref(), LANES, bits, chunk.units)
    }

    /// The group's scales and zero points: in place if they are those of a whole panel, otherwise in `scratch`.
    fn grid<'s>(self, group: usize, scratch: &'s mut [[f32; LANES]; 2]) -> GroupGrid<'s>
    where
        Self: 's,
    {
        let first = group * self.stored.shape.out_features + self.first_output;
        let scales = &self.stored.scales[first..][..self.lanes];
        let zero_points = &self.stored.zero_points[first..][..self.lanes];
        if let (Some(scales), Some(zero_points)) = (scales.first_chunk(), zero_points.first_chunk()) {
            return GroupGrid { scales, zero_points };
        }
        scratch[0][..self.lanes].copy_from_slice(scales);
        scratch[1][..self.lanes].copy_from_slice(zero_points);
        GroupGrid { scales: &scratch[0], zero_points: &scratch[1] }
    }

    /// Turns codes into weights, column by column.
    fn apply_grid<K: PackedKernel>(
        self,
        chunk: &Chunk,
        scratch: &mut Scratch,
        weights: &mut [f32],
        strip_stride: usize,
    ) {
        for column in 0..chunk.columns {
            let group = (chunk.first_unit * UNIT + column) / self.stored.shape.group_size;
            let grid = self.grid(group, &mut scratch.grid);
            for (strip, (scales, zero_points)) in
                grid.scales.chunks(K::STRIP).zip(grid.zero_points.chunks(K::STRIP)).enumerate()
            {
                let weights = &mut weights[strip * strip_stride + column * K::STRIP..];
                for ((weight, scale), zero_point) in weights.iter_mut().zip(scales).zip(zero_points) {
                    *weight = (*weight - zero_point) * scale;
                }
            }
        }
    }
}

/// A cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line<T>([T; 16]);

/// Memory that starts with a cache line, so that no aligned vector straddles two.
#[derive(Clone, Debug)]
pub(super) struct Aligned<T>(Vec<Line<T>>);

impl<T: Copy + Default> Aligned<T> {
    pub(super) fn zeros(len: usize) -> Self {
        const { assert!(size_of::<Line<T>>() == 16 * size_of::<T>()) };
        Self(vec![Line([T::default(); 16]); len.div_ceil(16)])
    }

    pub(super) fn as_ref(&self) -> &[T] {
        // SAFETY: the lines are 16 values of `T` each, without padding.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * 16) }
    }

    pub(super) fn as_mut(&mut self) -> &mut [T] {
        // SAFETY: the lines are 16 values of `T` each, without padding.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * 16) }
    }
}
