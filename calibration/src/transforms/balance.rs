//! Which factors make a matrix lose least when it is rounded (AWQ, arXiv 2306.00978, section 3.2, in closed form).
//!
//! Column `i` of `W` is multiplied by `s_i` and its input `x_i` divided by it. Rounding in groups leaves each weight of a group an error whose
//! mean square goes with the mean square of the group's weights. The error of the output is then, summed over rows `r`,
//!
//! ```text
//! Σ_r (Σ_i x_i² / s_i²) (Σ_i w_ri² s_i²)      least, by Cauchy and Schwarz, where      s_i⁴ = x_i² / Σ_r w_ri²
//! ```
//!
//! AWQ searches `s_i = x_i^a` on a grid of `a`; its later versions divide by the weights too. Like AWQ we take the mean magnitude for `x_i`: a
//! mean square would be that of the one token of a window whose activations are massive. Factors are at most [`MOST`] apart from their
//! geometric mean, so that nothing leaves the range of half precision.

use ndarray::{Array1, Array2};

/// Largest factor, and one over the smallest.
const MOST: f64 = 16.0;

/// `s` `[features]` for inputs of mean magnitude `sizes` `[features]` and columns of mean square `squares` `[features]`; ones where a feature or
/// its column is zero.
pub(super) fn factors(sizes: &Array1<f64>, squares: &Array1<f64>) -> Array1<f64> {
    let raw: Array1<f64> = sizes
        .iter()
        .zip(squares)
        .map(|(&size, &square)| if size > 0.0 && square > 0.0 { (size / square.sqrt()).sqrt() } else { 0.0 })
        .collect();
    let known: Vec<f64> = raw.iter().filter(|&&factor| factor > 0.0).map(|factor| factor.ln()).collect();
    let mean = (known.iter().sum::<f64>() / known.len().max(1) as f64).exp();
    raw.mapv(|factor| if factor > 0.0 { (factor / mean).clamp(1.0 / MOST, MOST) } else { 1.0 })
}

/// Sum over rows of the square of each column, `[in_features]`.
pub(super) fn column_squares(weight: &Array2<f64>) -> Array1<f64> {
    weight.rows().into_iter().fold(Array1::zeros(weight.ncols()), |mut sum, row| {
        sum.zip_mut_with(&row, |sum, value| *sum += value * value);
        sum
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn no_other_factors_lose_less() {
        let (sizes, squares) = (array![0.1, 3.0, 0.5, 1.0], array![2.0, 0.1, 1.0, 0.4]);
        let loss = |s: &Array1<f64>| {
            let inputs = (&sizes / s).mapv(|x| x * x).sum();
            inputs * (&squares * s * s).sum()
        };
        let best = factors(&sizes, &squares);
        for feature in 0..4 {
            for change in [0.8, 0.98, 1.02, 1.3] {
                let mut other = best.clone();
                other[feature] *= change;
                assert!(loss(&other) > loss(&best));
            }
        }
    }

    #[test]
    fn what_is_dead_is_left_alone_and_nothing_is_stretched_too_far() {
        let found = factors(&array![0.0, 1.0, 1e9, 1.0], &array![1.0, 0.0, 1e-9, 1.0]);
        assert_eq!((found[0], found[1]), (1.0, 1.0));
        assert!(found.iter().all(|&factor| (1.0 / MOST..=MOST).contains(&factor)), "{found}");
    }
}
