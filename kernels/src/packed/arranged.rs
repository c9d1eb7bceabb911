//! Products with a quantized matrix whose activations are rounded to eight bits, so that what is multiplied are integers.
//!
//! A group's columns are cut into *units* of at most 32. For token `t` and unit `u`
//!
//! ```text
//! step[t, u] = max |x[t, k]| / 127        q[t, k] = x[t, k] / step[t, u], to the nearest integer, halves to the even one
//!
//! out[t, n] = sum over g of scale[g, n] * (sum over u of step[t, u] * (sum over k of code[n, k] * q[t, k])
//!                                          - zero_point[g, n] * sum over u of step[t, u] * (sum over k of q[t, k]))
//! ```
//!
//! where `u` runs over the units of group `g`, and `k` over the columns of `u`. The sums over `k` are exact; the others are single precision, in order.
//! So an activation is off by at most half a step of its unit, and one outlier costs no other unit anything. A unit that holds what is not finite gives
//! what is not a number.
//!
//! The words of a checkpoint are arranged anew for it, once: see `planes`. [`PackedMatrix::product`], which takes activations as they are, is
//! what measurements and checks go by.

mod activations;
pub(crate) mod kernel;
pub(crate) mod planes;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use self::activations::Activations;
use self::kernel::{DWORDS, Group, Int8Kernel, Panel};
use super::PackedMatrix;
use super::kernel::{LANES, UNIT};
use super::product::{Tile, tiles};
use super::stage::Aligned;
use crate::arch::generic::int8::Portable;
#[cfg(target_arch = "x86_64")]
use crate::arch::x86_64::{int8_vnni::Vnni, lanes::Avx2};

/// Tiles that a matrix is cut into, at most.
const TILES: usize = 64;
/// Bytes of a tile's words, at least, times passes over them: enough for a thread to be worth its start.
const TILE_BYTES: usize = 1 << 15;

/// A quantized matrix `[out_features, in_features]`, arranged for products with activations of eight bits.
///
/// The fields are private because the fast kernels rely on what [`ArrangedMatrix::new`] has made.
#[derive(Clone, Debug)]
pub struct ArrangedMatrix {
    bits: usize,
    out_features: usize,
    in_features: usize,
    groups: Vec<Group>,
    units: usize,
    /// `[panels, units, bits, LANES]`
    words: Aligned<u32>,
    /// `[panels, groups, LANES]`
    scales: Aligned<f32>,
    zero_points: ZeroPoints,
}

#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "one for each matrix")]
enum ZeroPoints {
    /// The same one everywhere, as symmetric grids have it.
    Same([f32; LANES]),
    /// `[panels, groups, LANES]`
    Each(Aligned<f32>),
}

impl ArrangedMatrix {
    /// Arranges the codes of `matrix`; takes a byte for each while it does.
    #[must_use]
    pub fn new(matrix: &PackedMatrix) -> Self {
        let shape = matrix.shape();
        let bits = usize::from(shape.bits);
        let groups = groups(shape.in_features, shape.group_size);
        let units = groups.iter().map(|group| group.units).sum();
        let panels = shape.out_features.div_ceil(LANES);
        let mut words = Aligned::zeros(panels * units * bits * LANES);
        let codes = matrix.unpack_codes();
        let codes = codes.as_slice().expect("codes are in standard layout");
        let by_panel = words.as_mut().par_chunks_mut(units * bits * LANES);
        by_panel.zip(codes.par_chunks(LANES * shape.in_features)).for_each(|(words, codes)| {
            for (lane, codes) in codes.chunks_exact(shape.in_features).enumerate() {
                for group in &groups {
                    let units = words.chunks_exact_mut(bits * LANES).skip(group.first_unit);
                    for (words, codes) in units.zip(codes[group.columns.clone()].chunks(UNIT)) {
                        planes::store(bits, codes, &mut words[lane..]);
                    }
                }
            }
        });
        let by_panel = |values: ArrayView2<'_, f32>| {
            let mut to = Aligned::zeros(panels * shape.groups() * LANES);
            for (panel, to) in to.as_mut().chunks_exact_mut(shape.groups() * LANES).enumerate() {
                for (group, to) in to.chunks_exact_mut(LANES).enumerate() {
                    let from = values.row(group);
                    to.iter_mut().zip(from.iter().skip(panel * LANES)).for_each(|(to, &from)| *to = from);
                }
            }
            to
        };
        let zeros = matrix.zero_points();
        let first = zeros[[0, 0]];
        let same = zeros.iter().all(|&zero| zero == first);
        Self {
            bits,
            out_features: shape.out_features,
            in_features: shape.in_features,
            units,
            words,
            scales: by_panel(matrix.scales()),
            zero_points: if same {
                ZeroPoints::Same([first; LANES])
            } else {
                ZeroPoints::Each(by_panel(zeros))
            },
            groups,
        }
    }

    /// Rows of the matrix.
    #[must_use]
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Columns of the matrix.
    #[must_use]
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Bytes that a product reads: words, scales and zero points.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let zeros = match &self.zero_points {
            ZeroPoints::Same(_) => 0,
            ZeroPoints::Each(zeros) => zeros.as_ref().len(),
        };
        4 * (self.words.as_ref().len() + self.scales.as_ref().len() + zeros)
    }

    /// The weights, `[out_features, in_features]`, as [`PackedMatrix::dequantize`] gives them.
    #[must_use]
    pub fn dequantize(&self) -> Array2<f32> {
        let mut weights = Array2::zeros((self.out_features, self.in_features));
        let rows = weights.axis_chunks_iter_mut(Axis(0), LANES).into_par_iter().enumerate();
        rows.for_each(|(panel, mut rows)| {
            let panel = self.panel(panel);
            for (lane, mut row) in rows.rows_mut().into_iter().enumerate() {
                for (number, group) in self.groups.iter().enumerate() {
                    let (scale, zero) = (panel.scale(number, lane), panel.zero_point(number, lane));
                    let codes = (group.first_unit..group.first_unit + group.units).flat_map(|unit| {
                        (0..DWORDS).flat_map(move |dword| {
                            planes::load(self.bits, dword, |word| panel.word(unit, word, lane))
                        })
                    });
                    let row = row.slice_mut(s![group.columns.clone()]);
                    for (weight, code) in row.into_iter().zip(codes) {
                        *weight = scale * (f32::from(code) - zero);
                    }
                }
            }
        });
        weights
    }

    /// `out = x wᵀ`, where `x`, `[tokens, in_features]`, is rounded as this module says, and `out` is `[tokens, out_features]`.
    ///
    /// A token's result depends neither on the number of threads nor on what other tokens there are.
    ///
    /// # Panics
    /// When the shapes of `x` and `out` are not those.
    pub fn product(&self, x: ArrayView2<'_, f32>, out: ArrayViewMut2<'_, f32>) {
        assert_eq!(x.ncols(), self.in_features, "columns of `x` must be the input features");
        assert_eq!(out.dim(), (x.nrows(), self.out_features), "`out` must be [tokens, out_features]");
        self.product_on(Machine::best(), x, out);
    }

    fn product_on(&self, machine: Machine, x: ArrayView2<'_, f32>, mut out: ArrayViewMut2<'_, f32>) {
        if out.is_empty() {
            return;
        }
        if out.strides()[1] != 1 && out.ncols() > 1 {
            let mut contiguous = Array2::zeros(out.dim());
            self.product_on(machine, x, contiguous.view_mut());
            out.assign(&contiguous);
            return;
        }
        let x = Activations::round(x, &self.groups, self.units);
        match machine {
            Machine::Portable => self.multiply(Portable, &x, out),
            #[cfg(target_arch = "x86_64")]
            Machine::Avx2(kernel) => self.multiply(kernel, &x, out),
            #[cfg(target_arch = "x86_64")]
            Machine::Vnni(kernel) => self.multiply(kernel, &x, out),
        }
    }

    fn multiply<K: Int8Kernel>(&self, kernel: K, x: &Activations, mut out: ArrayViewMut2<'_, f32>) {
        let panels = self.out_features.div_ceil(LANES);
        let work = 4 * self.words.as_ref().len() * out.nrows().div_ceil(kernel::TOKENS);
        let panels = panels.div_ceil((work / TILE_BYTES).clamp(1, TILES));
        tiles(&mut out, panels).into_par_iter().for_each(|mut tile| {
            let mut totals = [[0.0; LANES]; kernel::TOKENS];
            for panel in 0..tile.panels() {
                let from = self.panel(tile.first_panel + panel);
                let mut done = 0;
                while done < tile.rows.len() {
                    let some = x.tokens(tile.first_token + done, tile.rows.len() - done);
                    let totals = &mut totals[..some.count()];
                    kernel.multiply(from, some, totals);
                    deposit(&mut tile, done, panel, totals);
                    done += totals.len();
                }
            }
        });
    }

    /// The outputs from `index * LANES` on.
    fn panel(&self, index: usize) -> Panel<'_> {
        let words = self.units * self.bits * LANES;
        let grid = index * self.groups.len() * LANES..(index + 1) * self.groups.len() * LANES;
        let zero_points = match &self.zero_points {
            ZeroPoints::Same(zeros) => kernel::ZeroPoints::Same(zeros),
            ZeroPoints::Each(zeros) => kernel::ZeroPoints::Each(&zeros.as_ref()[grid.clone()]),
        };
        let scales = &self.scales.as_ref()[grid];
        let words = &self.words.as_ref()[index * words..(index + 1) * words];
        Panel::new(self.bits, &self.groups, words, scales, zero_points)
    }
}

fn deposit(tile: &mut Tile<'_>, first: usize, panel: usize, totals: &[[f32; LANES]]) {
    for (row, totals) in tile.rows[first..].iter_mut().zip(totals) {
        let row = &mut row[panel * LANES..];
        let count = row.len().min(LANES);
        row[..count].copy_from_slice(&totals[..count]);
    }
}

/// Groups of `group_size` of so many columns.
fn groups(in_features: usize, group_size: usize) -> Vec<Group> {
    let units = group_size.div_ceil(UNIT);
    let first = (0..in_features).step_by(group_size).enumerate();
    first
        .map(|(group, start)| Group { columns: start..start + group_size, first_unit: group * units, units })
        .collect()
}

/// A set of kernels that this machine can run.
#[derive(Clone, Copy, Debug)]
enum Machine {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Vnni(Vnni),
}

impl Machine {
    /// All of them, the fastest first.
    fn all() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let fast = [Vnni::detect().map(Self::Vnni), Avx2::detect().map(Self::Avx2)];
        #[cfg(not(target_arch = "x86_64"))]
        let fast: [Option<Self>; 0] = [];
        fast.into_iter().flatten().chain([Self::Portable])
    }

    fn best() -> Self {
        Self::all().next().unwrap_or(Self::Portable)
    }
}

#[cfg(test)]
mod tests;
