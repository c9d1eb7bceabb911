//! The order of work of a packed product, the same for every machine.
//!
//! Outputs are cut into tiles of fixed size, which are independent and run in parallel; each tile walks the columns in chunks
//! of fixed size, in order. So neither the number of threads nor the number of other tokens in the call decides the order in
//! which a sum is taken; only whether there are few tokens or many does.
//!
//! * Few tokens (at most 16): reading the codes is the cost. Each is turned into a float in registers and used for all tokens;
//!   scale and zero point come in once per group.
//! * Many tokens: multiplying is the cost. A tile's weights are decoded once, into a buffer that stays in the second-level
//!   cache, and all tokens pass by.

use ndarray::{ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use super::kernel::{GroupActivations, LANES, PackedKernel, UNIT};
use super::stage::{Aligned, Chunk, MOST_UNITS, Scratch, Stored, chunks, units_lie_in_groups};

/// The most tokens that are few.
const FEW: usize = 16;

/// Outputs of a tile, in panels: for few tokens wide, as the words of neighbouring outputs may be neighbours in memory; for
/// many just so many that the tokens, which have to come from further away, are used often enough.
const PANELS_FOR_FEW: usize = 4;
const PANELS_FOR_MANY: usize = 2;

/// Units of a chunk, likewise: few, so that a tile's words are read in about the order in which they lie in memory.
const UNITS_FOR_FEW: usize = 4;
const UNITS_FOR_MANY: usize = MOST_UNITS;

/// Tokens of a tile.
const TOKENS_PER_TILE: usize = 384;

/// `x` is `[tokens, in_features]`, `out` is `[tokens, out_features]` and overwritten; both have contiguous rows.
pub(super) fn product<K: PackedKernel>(
    kernel: K,
    stored: Stored<'_>,
    x: ArrayView2<'_, f32>,
    out: ArrayViewMut2<'_, f32>,
) {
    if x.nrows() <= FEW && units_lie_in_groups(stored.shape) {
        few_tokens(kernel, stored, x, out);
    } else {
        many_tokens(kernel, stored, x, out);
    }
}

fn few_tokens<K: PackedKernel>(
    kernel: K,
    stored: Stored<'_>,
    x: ArrayView2<'_, f32>,
    mut out: ArrayViewMut2<'_, f32>,
) {
    let tokens = x.nrows();
    let chunks = chunks(stored.shape, UNITS_FOR_FEW);
    let (scaled, stride) = scaled_activations(kernel, stored.bits(), x);
    // [segments, tokens]
    let mut sums = Vec::new();
    for chunk in &chunks {
        for segment in &chunk.segments {
            let first = (chunk.first_unit + segment.first_unit) * UNIT;
            let end = x.ncols().min(first + segment.units * UNIT);
            sums.extend(x.rows().into_iter().map(|x| x.slice(s![first..end]).sum()));
        }
    }
    let buffers = || (Scratch::default(), Aligned::zeros(PANELS_FOR_FEW * LANES * tokens));
    tiles(&mut out, PANELS_FOR_FEW).into_par_iter().for_each_init(buffers, |(scratch, totals), mut tile| {
        let totals = totals.as_mut();
        totals.fill(0.0);
        let mut sums = sums.as_slice();
        for chunk in &chunks {
            let (now, later) = sums.split_at(chunk.segments.len() * tokens);
            sums = later;
            for (panel, totals) in totals.chunks_exact_mut(tokens * LANES).take(tile.panels()).enumerate() {
                let mut sums = now.chunks_exact(tokens);
                let panel = stored.panel(tile.first_panel + panel);
                panel.for_each_segment(kernel, chunk, scratch, |segment, codes, grid| {
                    let scaled = &scaled[(chunk.first_unit + segment.first_unit) * UNIT..];
                    let sums = sums.next().expect("each segment has its sums");
                    kernel.multiply_group(codes, grid, GroupActivations { scaled, stride, sums }, totals);
                });
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

/// The activations times [`PackedKernel::activation_factor`], each token padded with zeros to whole units; and the length of
/// a token.
fn scaled_activations<K: PackedKernel>(kernel: K, bits: usize, x: ArrayView2<'_, f32>) -> (Vec<f32>, usize) {
    let stride = x.ncols().next_multiple_of(UNIT);
    let factors: [f32; UNIT] = std::array::from_fn(|column| kernel.activation_factor(bits, column));
    let mut scaled = vec![0.0_f32; x.nrows() * stride];
    for (x, scaled) in x.rows().into_iter().zip(scaled.chunks_exact_mut(stride)) {
        for ((x, scaled), factor) in x.iter().zip(scaled).zip(factors.iter().cycle()) {
            *scaled = x * factor;
        }
    }
    (scaled, stride)
}

fn many_tokens<K: PackedKernel>(
    kernel: K,
    stored: Stored<'_>,
    x: ArrayView2<'_, f32>,
    mut out: ArrayViewMut2<'_, f32>,
) {
    const STRIP_COLUMNS: usize = UNITS_FOR_MANY * UNIT;
    let chunks = chunks(stored.shape, UNITS_FOR_MANY);
    let x_stride = x.ncols();
    let x = x.to_slice().expect("`x` has contiguous rows");
    let buffers = || {
        let weights = Aligned::zeros(PANELS_FOR_MANY * LANES * STRIP_COLUMNS);
        (Scratch::default(), weights, Aligned::zeros(K::ROWS * K::STRIP))
    };
    tiles(&mut out, PANELS_FOR_MANY).into_par_iter().for_each_init(buffers, |buffers, mut tile| {
        let (scratch, weights, sums) = buffers;
        let (weights, sums) = (weights.as_mut(), sums.as_mut());
        for chunk in &chunks {
            for (panel, weights) in weights.chunks_mut(LANES * STRIP_COLUMNS).take(tile.panels()).enumerate()
            {
                let panel = stored.panel(tile.first_panel + panel);
                panel.decode(kernel, chunk, scratch, weights, STRIP_COLUMNS * K::STRIP);
            }
            let mut x = &x[tile.first_token * x_stride + chunk.first_unit * UNIT..];
            for rows in tile.rows.chunks_mut(K::ROWS) {
                for (strip, weights) in weights.chunks(STRIP_COLUMNS * K::STRIP).enumerate() {
                    let first = strip * K::STRIP;
                    if first >= rows[0].len() {
                        break;
                    }
                    kernel.tile(x, x_stride, rows.len(), weights, chunk.columns, sums);
                    for (row, sums) in rows.iter_mut().zip(sums.chunks_exact(K::STRIP)) {
                        deposit(&mut row[first..], sums, chunk);
                    }
                }
                x = x.get(rows.len() * x_stride..).unwrap_or_default();
            }
        }
    });
}

/// The first chunk's sums replace what is in `out`, later ones are added; `out` may end before they do.
fn deposit(out: &mut [f32], sums: &[f32], chunk: &Chunk) {
    let pairs = out.iter_mut().zip(sums);
    if chunk.first_unit == 0 {
        pairs.for_each(|(out, sum)| *out = *sum);
    } else {
        pairs.for_each(|(out, sum)| *out += sum);
    }
}

/// Some tokens of some consecutive outputs.
pub(super) struct Tile<'a> {
    pub(super) first_token: usize,
    pub(super) first_panel: usize,
    /// One slice for each token.
    pub(super) rows: Vec<&'a mut [f32]>,
}

impl Tile<'_> {
    pub(super) fn panels(&self) -> usize {
        self.rows.first().map_or(0, |row| row.len().div_ceil(LANES))
    }
}

/// Tiles of [`TOKENS_PER_TILE`] tokens and `panels` panels that make up `out`.
pub(super) fn tiles<'a>(out: &'a mut ArrayViewMut2<'_, f32>, panels: usize) -> Vec<Tile<'a>> {
    let tiles_per_row = out.ncols().div_ceil(panels * LANES);
    let mut tiles: Vec<Tile<'a>> = Vec::new();
    for (token, row) in out.axis_iter_mut(Axis(0)).enumerate() {
        if token % TOKENS_PER_TILE == 0 {
            tiles.extend((0..tiles_per_row).map(|tile| Tile {
                first_token: token,
                first_panel: tile * panels,
                rows: Vec::new(),
            }));
        }
        let newest = tiles.len() - tiles_per_row;
        let row = row.into_slice().expect("`out` has contiguous rows");
        for (tile, part) in tiles[newest..].iter_mut().zip(row.chunks_mut(panels * LANES)) {
            tile.rows.push(part);
        }
    }
    tiles
}
