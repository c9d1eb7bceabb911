//! [`super::coordinate_descent`] for one chunk of rows.
//!
//! With `d = q - w` the loss is `d H dᵀ`. Changing `q_k` by `c` changes it by `c (2 (d H)_k + c H_kk)`, which is least at
//! `c = -(d H)_k / H_kk`. `d H` is computed afresh for each panel and corrected inside it, so rounding errors do not pile up.

use super::chunk::{Chunk, Scratch};
use super::rule::{Group, Rule};
use super::tiles::{ColumnTiles, accumulate};
use super::{PANEL, TILE};
use crate::arch::lanes::{Lanes, Task, Unit};

/// A change must beat a curvature this much larger than it is. Changes that only rounding errors recommend are left out, so
/// a sweep cannot move a code to and fro between two values of equal loss.
const RELUCTANCE: f32 = 1.0 + 1e-5;

/// One chunk of rows to improve.
pub(super) struct Descent<'a, 'c, R> {
    pub(super) chunk: Chunk<'c>,
    pub(super) hessian: &'a ColumnTiles,
    /// The Hessian's diagonal.
    pub(super) curvature: &'a [f32],
    pub(super) rule: R,
    pub(super) scratch: &'a mut Scratch,
    pub(super) sweeps: usize,
    /// How many codes of each row changed.
    pub(super) changed: &'a mut [u64],
}

impl<R: Rule> Descent<'_, '_, R> {
    pub(super) fn run_on(self, unit: Unit) {
        unit.run(self);
    }

    #[inline(always)]
    fn solve<L: Lanes, const V: usize>(mut self, lanes: L) {
        let width = V * L::COUNT;
        let n = self.curvature.len();
        self.chunk.gather_grid(width, self.scratch);
        for start in (0..n).step_by(PANEL) {
            self.load_panel(start, n.min(start + PANEL), width);
            self.set_errors::<L, V>(lanes, start, n.min(start + PANEL));
        }
        for _ in 0..self.sweeps {
            let mut changed = false;
            for start in (0..n).step_by(PANEL) {
                let end = n.min(start + PANEL);
                self.load_panel(start, end, width);
                self.add_all_columns::<L, V>(lanes, start, end);
                for tile in 0..(end - start).div_ceil(TILE) {
                    self.improve_tile::<L, V>(lanes, start, end, tile);
                }
                let counts = &mut *self.changed;
                self.chunk.scatter_codes(start, end, width, self.scratch.codes.as_ref(), |row| {
                    counts[row] += 1;
                    changed = true;
                });
                self.set_errors::<L, V>(lanes, start, end);
            }
            if !changed {
                break;
            }
        }
    }

    fn load_panel(&mut self, start: usize, end: usize, width: usize) {
        self.chunk.gather_weights(start, end, width, self.scratch.weights.as_mut());
        self.chunk.gather_codes(start, end, width, self.scratch.codes.as_mut());
    }

    /// `d = q - w` of the panel's columns.
    #[inline(always)]
    fn set_errors<L: Lanes, const V: usize>(&mut self, lanes: L, start: usize, end: usize) {
        let width = V * L::COUNT;
        let scratch = &mut *self.scratch;
        let errors = &mut scratch.errors.as_mut()[start * width..end * width];
        for (column, errors) in errors.chunks_exact_mut(width).enumerate() {
            let group = self.chunk.group_of[start + column] as usize * width;
            for v in 0..V {
                let lane = v * L::COUNT;
                let grid = Group {
                    scale: lanes.load(&scratch.scales.as_ref()[group + lane..]),
                    zero_point: lanes.load(&scratch.zero_points.as_ref()[group + lane..]),
                };
                let code = lanes.load(&scratch.codes.as_ref()[column * width + lane..]);
                let weight = lanes.load(&scratch.weights.as_ref()[column * width + lane..]);
                let value = self.rule.value(lanes, code, grid);
                lanes.store(lanes.subtract(value, weight), &mut errors[lane..]);
            }
        }
    }

    /// `d H` of the panel's columns.
    #[inline(always)]
    fn add_all_columns<L: Lanes, const V: usize>(&mut self, lanes: L, start: usize, end: usize) {
        let width = V * L::COUNT;
        let sums = self.scratch.sums.as_mut();
        sums.fill(0.0);
        for (stripe, errors) in self.scratch.errors.as_ref().chunks(PANEL * width).enumerate() {
            let tiles = sums.chunks_exact_mut(TILE * width).take((end - start).div_ceil(TILE));
            for (tile, sums) in tiles.enumerate() {
                accumulate::<L, V>(lanes, errors, self.hessian.tile(start / PANEL, stripe, tile), sums);
            }
        }
    }

    /// Improves a tile's columns one after the other.
    #[inline(always)]
    fn improve_tile<L: Lanes, const V: usize>(&mut self, lanes: L, start: usize, end: usize, tile: usize) {
        let width = V * L::COUNT;
        let first = tile * TILE;
        let columns = TILE.min(end - start - first);
        let hessian = self.hessian.tile(start / PANEL, start / PANEL, tile);
        let scratch = &mut *self.scratch;
        let sums = &mut scratch.sums.as_mut()[first * width..(first + TILE) * width];
        accumulate::<L, V>(lanes, &scratch.changes.as_ref()[..first * width], hessian, sums);
        let codes = &mut scratch.codes.as_mut()[first * width..];
        let changes = &mut scratch.changes.as_mut()[first * width..];
        for column in 0..columns {
            let k = start + first + column;
            let group = self.chunk.group_of[k] as usize * width;
            let (scales, zero_points) =
                (&scratch.scales.as_ref()[group..], &scratch.zero_points.as_ref()[group..]);
            let curvature = lanes.splat(self.curvature[k]);
            let reluctant = lanes.splat(self.curvature[k] * RELUCTANCE);
            for v in 0..V {
                let lane = v * L::COUNT;
                let at = column * width + lane;
                let grid = Group {
                    scale: lanes.load(&scales[lane..]),
                    zero_point: lanes.load(&zero_points[lane..]),
                };
                let slope = lanes.load(&sums[at..]);
                let code = lanes.load(&codes[at..]);
                let value = self.rule.value(lanes, code, grid);
                let target = lanes.subtract(value, lanes.divide(slope, curvature));
                let rounded = self.rule.round(lanes, target, grid);
                let change = lanes.subtract(rounded.value, value);
                let rise = lanes.multiply_add(change, reluctant, lanes.add(slope, slope));
                let rise = lanes.multiply(change, rise);
                let change = lanes.where_negative(rise, change, lanes.splat(0.0));
                lanes.store(lanes.where_negative(rise, rounded.code, code), &mut codes[at..]);
                lanes.store(change, &mut changes[at..]);
                for later in column + 1..columns {
                    let sum = &mut sums[later * width + lane..];
                    let factor = lanes.splat(hessian[first + column][later]);
                    lanes.store(lanes.multiply_add(change, factor, lanes.load(sum)), sum);
                }
            }
        }
    }
}

impl<R: Rule> Task for Descent<'_, '_, R> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        match self.chunk.vectors {
            1 => self.solve::<L, 1>(lanes),
            2 => self.solve::<L, 2>(lanes),
            3 => self.solve::<L, 3>(lanes),
            _ => self.solve::<L, 6>(lanes),
        }
    }
}
