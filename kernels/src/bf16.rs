//! Products of matrices whose entries are rounded to bfloat16 first, with sums in single precision.
//!
//! The definition is the product of [`crate::product`] on [`rounded`] entries; the machines that have an instruction for it compute two terms of
//! a sum at once, at about twice the rate of single precision, and their results differ from the definition in the rounding of
//! sums alone. Entries that are bfloat16 already, such as the weights of most published models, lose nothing.
//!
//! A matrix that is multiplied with many others is rounded and laid out once, [`Bf16Matrix`]. As in [`crate::product`], outputs are cut into
//! fixed tiles and each sum runs in one order, so that no bit depends on the number of threads.

pub(crate) mod layout;
pub(crate) mod tiled;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Zip, s};

#[cfg(target_arch = "x86_64")]
use crate::arch::x86_64::bf16::Avx512Bf16;
use crate::dense::Tile;
use crate::product;
use layout::{Pairs, Panels};

/// What the factors of a product are rounded to before they meet. Sums are single precision either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// They are taken as they are.
    #[default]
    Single,
    /// To bfloat16.
    Bf16,
}

impl Precision {
    /// The columns of `x`, ready for products with this precision.
    #[must_use]
    pub fn columns(self, x: ArrayView2<'_, f32>) -> Columns<'_> {
        match self {
            Self::Single => Columns(Side::Single(x)),
            Self::Bf16 => Columns::on(Machine::best(), x),
        }
    }

    /// The lower triangle of `xᵀ x`, see [`Columns::gram`].
    ///
    /// # Panics
    /// When the shapes do not fit each other.
    pub fn gram(self, x: ArrayView2<'_, f32>, out: ArrayViewMut2<'_, f32>) {
        self.columns(x).gram(out);
    }
}

/// Whether this machine multiplies bfloat16 faster than single precision.
#[must_use]
pub fn is_fast() -> bool {
    Machine::best().is_some()
}

/// The nearest bfloat16, halves to the even one. Beyond the largest it is infinite.
#[must_use]
pub fn rounded(value: f32) -> f32 {
    f32::from_bits(layout::upper(value))
}

/// The bits of the nearest bfloat16, see [`rounded`].
pub(crate) fn upper_half(value: f32) -> u16 {
    (layout::upper(value) >> 16) as u16
}

/// The number of these bits.
pub(crate) fn of_upper_half(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// A matrix rounded to bfloat16, ready to be the right side of products `x M`.
#[derive(Clone, Debug)]
pub struct Bf16Matrix(Kept);

#[derive(Clone, Debug)]
enum Kept {
    /// For machines with the instruction.
    Panels(Panels),
    /// `M`, `[k, n]`, rounded.
    Dense(Array2<f32>),
}

impl Bf16Matrix {
    /// `M = matrix`, `[k, n]`.
    #[must_use]
    pub fn new(matrix: ArrayView2<'_, f32>) -> Self {
        Self::on(Machine::best(), matrix)
    }

    /// `M = weightᵀ` for the weight `[n, k]` of a linear.
    #[must_use]
    pub fn of_linear(weight: ArrayView2<'_, f32>) -> Self {
        Self::new(weight.reversed_axes())
    }

    fn on(machine: Option<Machine>, matrix: ArrayView2<'_, f32>) -> Self {
        Self(match machine {
            Some(_) => Kept::Panels(Panels::of(matrix)),
            None => Kept::Dense(matrix.mapv(rounded)),
        })
    }

    /// Rows and columns of `M`, `(k, n)`.
    #[must_use]
    pub fn dim(&self) -> (usize, usize) {
        match &self.0 {
            Kept::Panels(panels) => panels.dim(),
            Kept::Dense(matrix) => matrix.dim(),
        }
    }

    /// `out = x M`.
    ///
    /// Shapes: `x` `[m, k]`, `out` `[m, n]`.
    ///
    /// # Panics
    /// When the shapes do not fit each other.
    pub fn product(&self, x: ArrayView2<'_, f32>, out: ArrayViewMut2<'_, f32>) {
        let (k, n) = self.dim();
        assert_eq!(x.ncols(), k, "inner dimensions of a product");
        assert_eq!(out.dim(), (x.nrows(), n), "shape of a product");
        match &self.0 {
            Kept::Panels(panels) => {
                let machine = Machine::best().expect("panels are made where there is a machine for them");
                tiled::product(machine, &Pairs::of(x), panels, out);
            }
            Kept::Dense(matrix) => product::product_nn(x.mapv(rounded).view(), matrix.view(), out),
        }
    }
}

impl Bf16Matrix {
    /// `out = x M'` on this thread alone, for the part `M'` of `M` that begins at this row and column and fits `x`, `[m, k]`, and `out`, `[m, n]`.
    ///
    /// # Panics
    /// When the part is not within `M`, or does not begin at a multiple of 32.
    pub fn part_product(
        &self,
        x: ArrayView2<'_, f32>,
        (row, column): (usize, usize),
        out: ArrayViewMut2<'_, f32>,
    ) {
        let (rows, columns) = self.dim();
        let ((m, k), (out_rows, n)) = (x.dim(), out.dim());
        assert!(
            out_rows == m && row + k <= rows && column + n <= columns,
            "a part of a matrix [{rows}, {columns}]"
        );
        assert_eq!((row % tiled::COLUMNS, column % tiled::COLUMNS), (0, 0), "where a part begins");
        match &self.0 {
            Kept::Panels(panels) => {
                let machine = Machine::best().expect("panels are made where there is a machine for them");
                tiled::part(machine, &Pairs::of_few(x), panels, (row / 2, column), out);
            }
            Kept::Dense(matrix) => {
                let part = matrix.slice(s![row..row + k, column..column + n]);
                product::product_nn(x.mapv(rounded).view(), part, out);
            }
        }
    }
}

/// A matrix `X`, `[t, n]`, whose columns are multiplied with one another and with those of other matrices: rounded and laid out once for all of
/// these products.
#[derive(Clone, Debug)]
pub struct Columns<'x>(Side<'x>);

#[derive(Clone, Debug)]
enum Side<'x> {
    /// As it is.
    Single(ArrayView2<'x, f32>),
    /// Rounded, for machines with the instruction.
    Panels(Panels),
    /// Rounded.
    Dense(Array2<f32>),
}

impl<'x> Columns<'x> {
    fn on(machine: Option<Machine>, x: ArrayView2<'x, f32>) -> Self {
        Self(match machine {
            Some(_) => Side::Panels(Panels::of(x)),
            None => Side::Dense(x.mapv(rounded)),
        })
    }

    /// `(t, n)`.
    fn dim(&self) -> (usize, usize) {
        match &self.0 {
            Side::Single(x) => x.dim(),
            Side::Panels(panels) => panels.dim(),
            Side::Dense(x) => x.dim(),
        }
    }

    /// The lower triangle of `Xᵀ X`, diagonal included. The strict upper triangle of `out` is left as it is.
    ///
    /// Shape: `out` `[n, n]`.
    ///
    /// # Panics
    /// When the shape does not fit.
    pub fn gram(&self, out: ArrayViewMut2<'_, f32>) {
        let (t, n) = self.dim();
        assert_eq!(out.dim(), (n, n), "shape of the gram matrix of x [{t}, {n}]");
        match &self.0 {
            Side::Single(x) => product::gram(*x, out),
            Side::Panels(panels) => {
                let machine = Machine::best().expect("panels are made where there is a machine for them");
                tiled::gram(machine, panels, out);
            }
            Side::Dense(x) => product::gram(x.view(), out),
        }
    }

    /// `Xᵀ Y`.
    ///
    /// Shape: `Y` `[t, m]`, the result `[n, m]`.
    ///
    /// # Panics
    /// When the shapes do not fit each other, or the two have not the same precision.
    #[must_use]
    pub fn product(&self, other: &Columns<'_>) -> Array2<f32> {
        let ((t, n), (others, m)) = (self.dim(), other.dim());
        assert_eq!(t, others, "inner dimensions of a product");
        let mut out = Array2::zeros((n, m));
        match (&self.0, &other.0) {
            (Side::Single(x), Side::Single(y)) => product::product_tn(*x, *y, out.view_mut()),
            (Side::Panels(x), Side::Panels(y)) => {
                let machine = Machine::best().expect("panels are made where there is a machine for them");
                tiled::product(machine, x, y, out.view_mut());
            }
            (Side::Dense(x), Side::Dense(y)) => product::product_tn(x.view(), y.view(), out.view_mut()),
            _ => panic!("both sides of a product have one precision"),
        }
        out
    }

    /// Adds the tile of `Xᵀ Y` that begins at `row` and `column` and is as large as `sums`; each entry is one sum in single precision.
    ///
    /// Shapes: `Y` `[t, m]`, `sums` within `[n, m]`.
    ///
    /// # Panics
    /// When the shapes do not fit each other, the two have not the same precision, or a tile does not begin at a multiple of 32.
    pub fn add_tile(&self, other: &Columns<'_>, (row, column): (usize, usize), sums: ArrayViewMut2<'_, f64>) {
        let ((t, n), (others, m)) = (self.dim(), other.dim());
        let (height, width) = sums.dim();
        assert_eq!(t, others, "inner dimensions of a product");
        assert!(row + height <= n && column + width <= m, "a tile of a product [{n}, {m}]");
        assert_eq!((row % tiled::COLUMNS, column % tiled::COLUMNS), (0, 0), "where a tile begins");
        let mut product = Array2::zeros((height, width));
        let tile = Tile { row, column, view: product.view_mut() };
        match (&self.0, &other.0) {
            (Side::Single(x), Side::Single(y)) => product::tile_tn(*x, *y, tile),
            (Side::Panels(x), Side::Panels(y)) => {
                let machine = Machine::best().expect("panels are made where there is a machine for them");
                tiled::task(machine, x, y, tile, false);
            }
            (Side::Dense(x), Side::Dense(y)) => product::tile_tn(x.view(), y.view(), tile),
            _ => panic!("both sides of a product have one precision"),
        }
        Zip::from(sums).and(&product).for_each(|sum, &product| *sum += f64::from(product));
    }
}

/// A set of kernels that this machine can run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Machine {
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512Bf16),
}

impl Machine {
    fn best() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        return Avx512Bf16::detect().map(Self::Avx512);
        #[cfg(not(target_arch = "x86_64"))]
        None
    }
}

#[cfg(test)]
mod tests;
