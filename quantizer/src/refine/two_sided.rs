//! Successive rounding in the metric of the model's loss, `tr(A D H Dᵀ)`: rows learn of earlier rows' errors as columns do of earlier columns' (YAQA,
//! arXiv 2505.22988, section 4, feeds errors back from both sides).
//!
//! With `A = U Uᵀ` and `H = R Rᵀ`, both factors upper triangular, the loss is `‖Uᵀ D R‖²`. Once the rows before part `B` are rounded, with errors `D_o`,
//! the least that the rows from `B` on can make of it is reached, whatever `H` is, where
//!
//! ```text
//! U_BBᵀ D_B + U_oBᵀ D_o = 0          so that B is rounded to          T_B + (U_BBᵀ)⁻¹ U_oBᵀ D_o
//! ```
//!
//! column by column as ever. A part is as many rows as the vectors of the inner loop hold, far apart in the matrix, and counts its own rows as
//! unrelated; with parts of one row this is Babai's nearest plane in the lattice of both factors, and loses little less.

use kernels::factor::cholesky_upper;
use kernels::parts::PART_LANES;
use kernels::product::product_nn;
use ndarray::{Array2, ArrayView2, Axis, s};

use super::{Solved, rounded};
use crate::prepared::PreparedHessian;

/// Rounds `target` on the grid of `solved` part by part; none where `outer`, which is `A`, has no factor.
pub(super) fn round(
    target: ArrayView2<'_, f32>,
    solved: &Solved,
    outer: ArrayView2<'_, f32>,
    hessian: &PreparedHessian,
) -> Option<Solved> {
    let rows = target.nrows();
    let parts = rows.div_ceil(PART_LANES);
    let part = |number: usize| (number..rows).step_by(parts);
    let order: Vec<usize> = (0..parts).flat_map(part).collect();
    let in_order = |(row, column)| f64::from(outer[[order[row], order[column]]]);
    let factor = cholesky_upper(Array2::from_shape_fn((rows, rows), in_order)).ok()?;
    let columns = hessian.order().columns();
    let groups = solved.grid.groups();
    let group_of: Vec<u32> = columns.iter().map(|&column| groups[column]).collect();
    let mut result = solved.clone();
    // In the order of rounding.
    let mut errors = Array2::<f32>::zeros(target.dim());
    let mut first = 0;
    for number in 0..parts {
        let chosen: Vec<usize> = part(number).collect();
        let own = target.select(Axis(0), &chosen);
        let mut wanted = own.clone();
        if first > 0 {
            let weights = feedback(&factor, first, chosen.len());
            let mut told = Array2::zeros(own.dim());
            product_nn(weights.view(), errors.slice(s![..first, ..]), told.view_mut());
            wanted += &told;
        }
        let ordered = wanted.select(Axis(1), columns);
        let Solved { grid, codes } =
            rounded(ordered.view(), solved.grid.select(&chosen), &group_of, hessian).solved;
        errors.slice_mut(s![first..first + chosen.len(), ..]).assign(&grid.errors(own.view(), codes.view()));
        for (&row, codes) in chosen.iter().zip(codes.rows()) {
            result.codes.row_mut(row).assign(&codes);
        }
        first += chosen.len();
    }
    Some(result)
}

/// `(U_BBᵀ)⁻¹ U_oBᵀ` for the part of `count` rows from `first` on, `[count, first]`.
fn feedback(factor: &Array2<f64>, first: usize, count: usize) -> Array2<f32> {
    let mut weights = factor.slice(s![..first, first..first + count]).reversed_axes().to_owned();
    for row in 0..count {
        let (earlier, mut own) = weights.view_mut().split_at(Axis(0), row);
        let mut own = own.row_mut(0);
        let column = factor.column(first + row);
        for (earlier, &entry) in earlier.rows().into_iter().zip(column.slice(s![first..])) {
            own.scaled_add(-entry, &earlier);
        }
        own /= column[first + row];
    }
    weights.mapv(|entry| entry as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hessian::Hessian;
    use crate::levels::Levels;
    use crate::range;
    use crate::refine::Refinement;
    use crate::scheme::{BitWidth, Granularity, GroupSize, ScaleDtype, Scheme, Symmetry};
    use crate::settings::SolverSettings;

    fn noise((i, j): (usize, usize)) -> f64 {
        let place = (i * 131 + j + 1) as f64;
        (place * 12.9898).sin() * 43758.547 % 1.0
    }

    /// `root rootᵀ`, of so many rows and half as many columns again.
    fn moment(rows: usize) -> Array2<f64> {
        let root = Array2::from_shape_fn((rows, rows * 3 / 2), noise);
        root.dot(&root.t())
    }

    #[test]
    fn what_a_part_is_told_is_best_when_all_rows_behind_it_do_their_best_too() {
        let (first, count, rows) = (4, 3, 9);
        let moment = moment(rows);
        let factor = cholesky_upper(moment.clone()).unwrap();
        let mut errors = Array2::zeros((rows, 2));
        errors.slice_mut(s![..first, ..]).assign(&Array2::from_shape_fn((first, 2), noise));
        for part in [first..first + count, first + count..rows] {
            let weights = feedback(&factor, part.start, part.len()).mapv(f64::from);
            let own = -weights.dot(&errors.slice(s![..part.start, ..]));
            errors.slice_mut(s![part, ..]).assign(&own);
        }
        // The rows that were free are at the least: no slope is left there.
        let slopes = moment.dot(&errors);
        assert!(slopes.slice(s![first.., ..]).iter().all(|slope| slope.abs() < 1e-5), "{slopes}");
    }

    #[test]
    fn related_rows_lose_less_when_they_are_rounded_together() {
        let (rows, columns) = (5 * PART_LANES + 3, 64);
        let settings = SolverSettings { alpha: 0.0, beta: 0.0, ..SolverSettings::default() };
        let hessian = Hessian::from_lower(moment(columns), 100).unwrap().prepare(&settings, None).unwrap();
        let scheme = Scheme {
            bits: BitWidth::new(4).unwrap(),
            levels: Levels::Uniform,
            granularity: Granularity::PerGroup(GroupSize::new(32).unwrap()),
            symmetry: Symmetry::Symmetric,
            scale_dtype: ScaleDtype::F16,
        };
        let target = Array2::from_shape_fn((rows, columns), |place| noise(place) as f32);
        let grid = range::choose(target.view(), scheme, &settings, Some(&hessian));
        let alone = Refinement::start(target.view(), grid, &hessian).first().clone();
        let outer = moment(rows).mapv(|entry| entry as f32) + Array2::<f32>::eye(rows);
        let together = round(target.view(), &alone, outer.view(), &hessian).unwrap();
        let loss = |solved: &Solved| {
            let errors = solved.grid.errors(target.view(), solved.codes.view());
            (&outer.dot(&errors).dot(&hessian.full()) * &errors).sum()
        };
        assert!(loss(&together) < 0.8 * loss(&alone), "{} {}", loss(&together), loss(&alone));
        // No row before it, and nothing to be told.
        let own = Array2::<f32>::eye(rows);
        assert_eq!(round(target.view(), &alone, own.view(), &hessian).unwrap().codes, alone.codes);
        assert!(round(target.view(), &alone, Array2::zeros((rows, rows)).view(), &hessian).is_none());
    }
}
