//! The matrix that mixes columns, packed in the order in which the loops read it, and the one product that reads it.

use std::ops::Range;

use rayon::prelude::*;

use super::{PANEL, TILE};
use crate::arch::lanes::Lanes;

/// A matrix `M` `[n, n]` for sums over its rows, `sum over j of e_j M_jk`: panels of 128 columns; in a panel, stripes of
/// 128 rows; in a stripe, tiles of 8 columns; in a tile, row after row.
#[derive(Clone, Debug)]
pub(super) struct ColumnTiles {
    panels: Vec<Vec<[f32; TILE]>>,
}

impl ColumnTiles {
    /// The strict upper triangle of `entry(row, column)`, zero elsewhere. Panel `p` has the stripes `0..=p`.
    pub(super) fn upper(n: usize, entry: impl Fn(usize, usize) -> f32 + Sync) -> Self {
        Self::of_panels(Self::upper_panels(n, 0..n, entry))
    }

    /// The panels of [`ColumnTiles::upper`] that begin with these columns, of a matrix `[n, n]`.
    pub(super) fn upper_panels(
        n: usize,
        columns: Range<usize>,
        entry: impl Fn(usize, usize) -> f32 + Sync,
    ) -> Vec<Vec<[f32; TILE]>> {
        let panels = columns.start / PANEL..columns.end.div_ceil(PANEL);
        panels.into_par_iter().map(|panel| pack(n, panel, panel + 1, |column| column, &entry)).collect()
    }

    pub(super) fn of_panels(panels: Vec<Vec<[f32; TILE]>>) -> Self {
        Self { panels }
    }

    /// Every `entry(row, column)`.
    pub(super) fn full(n: usize, entry: impl Fn(usize, usize) -> f32 + Sync) -> Self {
        let count = n.div_ceil(PANEL);
        let panels = (0..count).into_par_iter();
        Self::of_panels(panels.map(|panel| pack(n, panel, count, |_| n, &entry)).collect())
    }

    fn start(stripe: usize, tile: usize) -> usize {
        (stripe * (PANEL / TILE) + tile) * PANEL
    }

    /// The 128 rows of one tile.
    pub(super) fn tile(&self, panel: usize, stripe: usize, tile: usize) -> &[[f32; TILE]] {
        let start = Self::start(stripe, tile);
        &self.panels[panel][start..start + PANEL]
    }

    pub(super) fn entry(&self, row: usize, column: usize) -> f32 {
        self.tile(column / PANEL, row / PANEL, column % PANEL / TILE)[row % PANEL][column % TILE]
    }
}

/// One panel of so many stripes. Rows below `rows(column)` are read, the others zero.
fn pack(
    n: usize,
    panel: usize,
    stripes: usize,
    rows: impl Fn(usize) -> usize,
    entry: &impl Fn(usize, usize) -> f32,
) -> Vec<[f32; TILE]> {
    let mut packed = vec![[0.0; TILE]; stripes * PANEL * PANEL / TILE];
    for column in panel * PANEL..n.min((panel + 1) * PANEL) {
        let (tile, lane) = ((column % PANEL) / TILE, column % TILE);
        for row in 0..rows(column) {
            packed[ColumnTiles::start(row / PANEL, tile) + row % PANEL][lane] = entry(row, column);
        }
    }
    packed
}

/// `sums[c] += sum over j of errors[j] tile[j][c]` for each row in a lane, `j` ascending, one fused multiply-add each.
///
/// `errors` is `[j, V vectors]`, `sums` `[8, V vectors]`; `tile` may be longer than `errors`.
#[inline(always)]
pub(super) fn accumulate<L: Lanes, const V: usize>(
    lanes: L,
    errors: &[f32],
    tile: &[[f32; TILE]],
    sums: &mut [f32],
) {
    // What must fit the registers: the sums, the errors of one column, and one entry of the tile.
    if L::COUNT == 16 {
        // 24 sums of 32 registers.
        accumulate_columns::<L, V, 0, 8>(lanes, errors, tile, sums);
    } else if V <= 2 {
        // 8 sums of 16 registers.
        accumulate_columns::<L, V, 0, 4>(lanes, errors, tile, sums);
        accumulate_columns::<L, V, 4, 4>(lanes, errors, tile, sums);
    } else {
        // 12 sums of 16 registers.
        accumulate_columns::<L, V, 0, 2>(lanes, errors, tile, sums);
        accumulate_columns::<L, V, 2, 2>(lanes, errors, tile, sums);
        accumulate_columns::<L, V, 4, 2>(lanes, errors, tile, sums);
        accumulate_columns::<L, V, 6, 2>(lanes, errors, tile, sums);
    }
}

/// [`accumulate`] for the columns `FIRST..FIRST + C`.
#[inline(always)]
fn accumulate_columns<L: Lanes, const V: usize, const FIRST: usize, const C: usize>(
    lanes: L,
    errors: &[f32],
    tile: &[[f32; TILE]],
    sums: &mut [f32],
) {
    let width = V * L::COUNT;
    let sums = &mut sums[FIRST * width..(FIRST + C) * width];
    let mut totals = [[lanes.splat(0.0); V]; C];
    for (c, totals) in totals.iter_mut().enumerate() {
        for (v, total) in totals.iter_mut().enumerate() {
            *total = lanes.load(&sums[c * width + v * L::COUNT..]);
        }
    }
    for (errors, tile) in errors.chunks_exact(width).zip(tile) {
        // The shorter side of the tile stays in registers, the longer one passes through.
        if C < V {
            let mut factor = [lanes.splat(0.0); C];
            for (c, factor) in factor.iter_mut().enumerate() {
                *factor = lanes.splat(tile[FIRST + c]);
            }
            for v in 0..V {
                let error = lanes.load(&errors[v * L::COUNT..(v + 1) * L::COUNT]);
                for c in 0..C {
                    totals[c][v] = lanes.multiply_add(error, factor[c], totals[c][v]);
                }
            }
        } else {
            let mut error = [lanes.splat(0.0); V];
            for (v, error) in error.iter_mut().enumerate() {
                *error = lanes.load(&errors[v * L::COUNT..(v + 1) * L::COUNT]);
            }
            for c in 0..C {
                let factor = lanes.splat(tile[FIRST + c]);
                for v in 0..V {
                    totals[c][v] = lanes.multiply_add(error[v], factor, totals[c][v]);
                }
            }
        }
    }
    for (c, totals) in totals.iter().enumerate() {
        for (v, &total) in totals.iter().enumerate() {
            lanes.store(total, &mut sums[c * width + v * L::COUNT..]);
        }
    }
}
