//! Products with a dense matrix whose entries are kept in sixteen bits because they lose nothing by it: half the bytes are read, which is what a
//! product of few rows costs.
//!
//! Entries are widened before they meet, so a result is what [`crate::product`] gives for few rows of the same numbers, to the last bit.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use rayon::prelude::*;

use crate::arch::lanes::Unit;
use crate::product::thin;

/// A weight `[n, k]` all of whose entries have sixteen bits.
#[derive(Clone, Debug)]
pub struct NarrowMatrix(Entries);

#[derive(Clone, Debug)]
enum Entries {
    Bf16(Array2<bf16>),
    F16(Array2<f16>),
}

impl NarrowMatrix {
    /// The same numbers in bfloat16 or else in half precision; none where neither holds all of them.
    #[must_use]
    pub fn exactly(matrix: ArrayView2<'_, f32>) -> Option<Self> {
        let matrix = matrix.as_standard_layout();
        let values = matrix.as_slice()?;
        if values.par_chunks(CHUNK).all(|values| values.iter().all(|value| value.to_bits() & 0xFFFF == 0)) {
            let entries =
                values.iter().map(|value| bf16::from_bits((value.to_bits() >> 16) as u16)).collect();
            let entries = Array2::from_shape_vec(matrix.dim(), entries).ok();
            return entries.map(|entries| Self(Entries::Bf16(entries)));
        }
        let mut entries = vec![f16::ZERO; values.len()];
        let exact = entries.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).all(|(entries, values)| {
            entries.convert_from_f32_slice(values);
            let mut widened = vec![0.0; values.len()];
            entries.convert_to_f32_slice(&mut widened);
            widened.iter().zip(values).all(|(a, b)| a.to_bits() == b.to_bits())
        });
        let entries = exact.then(|| Array2::from_shape_vec(matrix.dim(), entries).ok()).flatten();
        entries.map(|entries| Self(Entries::F16(entries)))
    }

    /// Rows and columns, `(n, k)`.
    #[must_use]
    pub fn dim(&self) -> (usize, usize) {
        match &self.0 {
            Entries::Bf16(entries) => entries.dim(),
            Entries::F16(entries) => entries.dim(),
        }
    }

    /// In single precision.
    #[must_use]
    pub fn widened(&self) -> Array2<f32> {
        match &self.0 {
            Entries::Bf16(entries) => entries.mapv(bf16::to_f32),
            Entries::F16(entries) => entries.mapv(f16::to_f32),
        }
    }

    /// `out = x wᵀ`.
    ///
    /// Shapes: `x` `[m, k]`, `out` `[m, n]`. Each row's result is the same in any company.
    ///
    /// # Panics
    /// When the shapes do not fit each other.
    pub fn product(&self, x: ArrayView2<'_, f32>, out: ArrayViewMut2<'_, f32>) {
        self.product_on(Unit::widest(), x, out);
    }

    fn product_on(&self, unit: Unit, x: ArrayView2<'_, f32>, out: ArrayViewMut2<'_, f32>) {
        let (n, k) = self.dim();
        assert_eq!(x.ncols(), k, "inner dimensions of a product");
        assert_eq!(out.dim(), (x.nrows(), n), "shape of a product");
        let x = x.as_standard_layout();
        match &self.0 {
            Entries::Bf16(entries) => thin::multiply(unit, x.view(), entries.view(), out),
            Entries::F16(entries) => thin::multiply(unit, x.view(), entries.view(), out),
        }
    }
}

/// Numbers that a thread converts at once.
const CHUNK: usize = 1 << 14;

#[cfg(test)]
mod tests {
    use ndarray::s;

    use super::*;
    use crate::product::product_nt;
    use crate::sample::Sample;

    #[test]
    fn products_are_those_in_single_precision_to_the_last_bit() {
        for (m, n, k) in [(1, 1, 1), (1, 7, 33), (3, 172, 129), (16, 33, 576), (2, 1000, 1000)] {
            let weights = Sample::new(3).matrix(n, k);
            let x = Sample::new(4).matrix(m, k);
            for narrow in
                [weights.mapv(|w| bf16::from_f32(w).to_f32()), weights.mapv(|w| f16::from_f32(w).to_f32())]
            {
                let matrix = NarrowMatrix::exactly(narrow.view()).unwrap();
                assert_eq!((matrix.dim(), matrix.widened()), ((n, k), narrow.clone()));
                let mut expected = Array2::zeros((m, n));
                if k >= 128 {
                    product_nt(x.view(), narrow.view(), expected.view_mut());
                } else {
                    matrix.product(x.view(), expected.view_mut());
                    let exact = crate::reference_product(x.view(), narrow.view());
                    assert!(expected.iter().zip(&exact).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5));
                }
                for unit in Unit::all() {
                    let mut out = Array2::from_elem((m, n), f32::NAN);
                    matrix.product_on(unit, x.view(), out.view_mut());
                    assert_eq!(out, expected, "{unit:?}, {m} x {n} x {k}");
                }
            }
        }
    }

    #[test]
    fn many_rows_are_each_as_if_alone() {
        let weights = Sample::new(5).matrix(70, 200).mapv(|w| f16::from_f32(w).to_f32());
        let matrix = NarrowMatrix::exactly(weights.view()).unwrap();
        let x = Sample::new(6).matrix(37, 200);
        let mut all = Array2::zeros((37, 70));
        matrix.product(x.view(), all.view_mut());
        for row in [0, 16, 36] {
            let mut one = Array2::zeros((1, 70));
            matrix.product(x.slice(s![row..=row, ..]), one.view_mut());
            assert_eq!(one.row(0), all.row(row));
        }
        // By columns.
        let mut turned = Array2::zeros((70, 37));
        let by_column = x.t().as_standard_layout().into_owned();
        matrix.product(by_column.t(), turned.view_mut().reversed_axes());
        assert_eq!(turned.t(), all);
    }

    #[test]
    fn what_has_more_than_sixteen_bits_stays_wide() {
        let mut weights = Sample::new(7).matrix(4, 40).mapv(|w| f16::from_f32(w).to_f32());
        assert!(NarrowMatrix::exactly(weights.view()).is_some());
        weights[[3, 39]] = 0.1;
        assert!(NarrowMatrix::exactly(weights.view()).is_none());
        // Beyond half precision, within bfloat16; infinite ones and those that are no numbers as well.
        for value in [f32::MAX, 1e30, 1e-30, f32::INFINITY] {
            let value = f32::from_bits(value.to_bits() & 0xFFFF_0000);
            let matrix = NarrowMatrix::exactly(Array2::from_elem((2, 3), value).view()).unwrap();
            assert!(matches!(matrix.0, Entries::Bf16(_)));
            assert_eq!(matrix.widened()[[1, 2]], value);
        }
    }
}
