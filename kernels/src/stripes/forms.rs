//! Products with symmetric matrices of which the lower triangle is there, and in the tiles on the diagonal the whole. In single precision.

use std::io;

use ndarray::{Array2, ArrayView2, Axis, s};
use rayon::prelude::*;

use super::Triangle;
use crate::elementwise::inner_product;
use crate::product::{product_nn, product_nt};

impl Triangle<f32> {
    /// `tr(D M Dᵀ)` for `d` `[m, n]`, added up in double precision.
    ///
    /// # Errors
    /// Those of the store.
    ///
    /// # Panics
    /// When the shapes do not fit each other.
    pub fn quadratic_form(&self, d: ArrayView2<'_, f32>) -> io::Result<f64> {
        assert_eq!(d.ncols(), self.size, "columns of a factor beside a matrix of {}", self.size);
        let mut sum = 0.0;
        for stripe in 0..self.stripes() {
            let (rows, numbers) = (self.rows(stripe), self.read(stripe)?);
            let (left, diagonal) = numbers.view().split_at(Axis(1), rows.start);
            let own = d.slice(s![.., rows.clone()]);
            // What is left of the diagonal stands for its mirror image too.
            let mut image = Array2::zeros(own.dim());
            product_nt(d.slice(s![.., ..rows.start]), left, image.view_mut());
            let mut within = Array2::zeros(own.dim());
            product_nn(own, diagonal, within.view_mut());
            image.zip_mut_with(&within, |image, within| *image = 2.0 * *image + within);
            sum += inner(image.view(), own);
        }
        Ok(sum)
    }

    /// `D M` for `d` `[m, n]`.
    ///
    /// # Errors
    /// Those of the store.
    ///
    /// # Panics
    /// When the shapes do not fit each other.
    pub fn product(&self, d: ArrayView2<'_, f32>) -> io::Result<Array2<f32>> {
        assert_eq!(d.ncols(), self.size, "columns of a factor beside a matrix of {}", self.size);
        let mut product = Array2::zeros(d.dim());
        for stripe in 0..self.stripes() {
            let (rows, numbers) = (self.rows(stripe), self.read(stripe)?);
            let left = numbers.slice(s![.., ..rows.start]);
            let own = d.slice(s![.., rows.clone()]);
            let mut part = Array2::zeros((d.nrows(), rows.end));
            product_nn(own, numbers.view(), part.view_mut());
            let mut to = product.slice_mut(s![.., ..rows.end]);
            to += &part;
            let mut part = Array2::zeros(own.dim());
            product_nt(d.slice(s![.., ..rows.start]), left, part.view_mut());
            let mut to = product.slice_mut(s![.., rows]);
            to += &part;
        }
        Ok(product)
    }
}

/// The sum of products of entries.
fn inner(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) -> f64 {
    let pairs: Vec<_> = a.outer_iter().zip(b.outer_iter()).collect();
    let rows: Vec<f64> = pairs
        .into_par_iter()
        .map(|(a, b)| match (a.as_slice(), b.as_slice()) {
            (Some(a), Some(b)) => inner_product(a, b),
            _ => a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum(),
        })
        .collect();
    rows.iter().sum()
}
