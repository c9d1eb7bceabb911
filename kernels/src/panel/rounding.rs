//! [`super::successive_rounding`] for one chunk of rows.
//!
//! Left-looking: a panel's sums over all earlier panels come first, stripe by stripe, then, tile by tile, the sums over the
//! panel's own columns, and then the tile's columns are rounded one after the other.

use super::chunk::{Chunk, MOST_ROWS, Scratch};
use super::rule::{Group, Rule};
use super::tiles::accumulate;
use super::{FeedbackFactor, PANEL, TILE};
use crate::arch::lanes::{Lanes, Task, Unit};

/// One chunk of rows to round.
pub(super) struct Rounding<'a, 'c, R> {
    pub(super) chunk: Chunk<'c>,
    pub(super) factor: &'a FeedbackFactor,
    pub(super) rule: R,
    pub(super) scratch: &'a mut Scratch,
    /// The loss of each row.
    pub(super) loss: &'a mut [f64],
}

impl<R: Rule> Rounding<'_, '_, R> {
    pub(super) fn run_on(self, unit: Unit) {
        unit.run(self);
    }

    #[inline(always)]
    fn solve<L: Lanes, const V: usize>(mut self, lanes: L) {
        let width = V * L::COUNT;
        let mut losses = [0.0_f64; MOST_ROWS];
        self.chunk.gather_grid(width, self.scratch);
        for start in (0..self.factor.size).step_by(PANEL) {
            let end = self.factor.size.min(start + PANEL);
            self.chunk.gather_weights(start, end, width, self.scratch.weights.as_mut());
            self.add_earlier_panels::<L, V>(lanes, start, end);
            for tile in 0..(end - start).div_ceil(TILE) {
                self.round_tile::<L, V>(lanes, start, end, tile, &mut losses);
            }
            self.chunk.scatter_codes(start, end, width, self.scratch.codes.as_ref(), |_| {});
        }
        self.loss.copy_from_slice(&losses[..self.loss.len()]);
    }

    /// The sums of the panel's columns over all columns before the panel.
    #[inline(always)]
    fn add_earlier_panels<L: Lanes, const V: usize>(&mut self, lanes: L, start: usize, end: usize) {
        let width = V * L::COUNT;
        let sums = self.scratch.sums.as_mut();
        sums.fill(0.0);
        let panel = start / PANEL;
        for (stripe, errors) in
            self.scratch.errors.as_ref()[..start * width].chunks_exact(PANEL * width).enumerate()
        {
            let tiles = sums.chunks_exact_mut(TILE * width).take((end - start).div_ceil(TILE));
            for (tile, sums) in tiles.enumerate() {
                accumulate::<L, V>(lanes, errors, self.factor.feedback.tile(panel, stripe, tile), sums);
            }
        }
    }

    /// Completes the sums of a tile's columns and rounds them.
    #[inline(always)]
    fn round_tile<L: Lanes, const V: usize>(
        &mut self,
        lanes: L,
        start: usize,
        end: usize,
        tile: usize,
        losses: &mut [f64],
    ) {
        let width = V * L::COUNT;
        let first = tile * TILE;
        let columns = TILE.min(end - start - first);
        let factor = self.factor.feedback.tile(start / PANEL, start / PANEL, tile);
        let scratch = &mut *self.scratch;
        let sums = &mut scratch.sums.as_mut()[first * width..(first + TILE) * width];
        accumulate::<L, V>(
            lanes,
            &scratch.errors.as_ref()[start * width..(start + first) * width],
            factor,
            sums,
        );
        let weights = &scratch.weights.as_ref()[first * width..];
        let codes = &mut scratch.codes.as_mut()[first * width..];
        let errors = &mut scratch.errors.as_mut()[(start + first) * width..];
        for column in 0..columns {
            let k = start + first + column;
            let group = self.chunk.group_of[k] as usize * width;
            let (scales, zero_points) =
                (&scratch.scales.as_ref()[group..], &scratch.zero_points.as_ref()[group..]);
            for v in 0..V {
                let lane = v * L::COUNT;
                let at = column * width + lane;
                let grid = Group {
                    scale: lanes.load(&scales[lane..]),
                    zero_point: lanes.load(&zero_points[lane..]),
                };
                let weight = lanes.load(&weights[at..]);
                let target = lanes.add(weight, lanes.load(&sums[at..]));
                let rounded = self.rule.round(lanes, target, grid);
                let error = lanes.subtract(weight, rounded.value);
                lanes.store(rounded.code, &mut codes[at..]);
                lanes.store(error, &mut errors[at..]);
                let rest = lanes.subtract(target, rounded.value);
                lanes.add_weighted_square(self.factor.weights[k], rest, &mut losses[lane..]);
                for later in column + 1..columns {
                    let sum = &mut sums[later * width + lane..];
                    let factor = lanes.splat(factor[first + column][later]);
                    lanes.store(lanes.multiply_add(error, factor, lanes.load(sum)), sum);
                }
            }
        }
    }
}

impl<R: Rule> Task for Rounding<'_, '_, R> {
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
