//! Scales that are products of two stored numbers: a coarse one for many groups, a fine one of few bits for each.
//!
//! Which products a row can hold depends on the coarse numbers, so the scales of a row are stored together. Given ideal scales `s_g` and
//! how much an error in each costs, `w_g`,
//!
//! ```text
//! minimize over d and integers k_g      Σ_g w_g (s_g - d k_g)²
//! ```
//!
//! over the `d` that put the largest scale on one of the outermost integers, each followed by the best `d` for the integers that it gives
//! (llama.cpp tries the outermost integer alone). Integers are never 0, so that a scale can be divided by; those of minimums may be.

use crate::scheme::ScaleDtype;

/// A coarse number and the fine ones of its groups.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Products {
    pub(crate) coarse: f32,
    pub(crate) fine: Vec<f32>,
}

/// How fine numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Integers {
    pub(crate) least: i16,
    pub(crate) most: i16,
    pub(crate) zero: bool,
}

impl Integers {
    /// The integer nearest to `x` that there is.
    pub(crate) fn nearest(self, x: f32) -> f32 {
        let nearest = x.round_ties_even().clamp(f32::from(self.least), f32::from(self.most));
        if nearest != 0.0 || self.zero {
            nearest
        } else if x < 0.0 && self.least < 0 {
            -1.0
        } else {
            1.0
        }
    }

    /// The closest products to `ideal`, whose errors count by `weights`.
    pub(crate) fn fit(self, ideal: &[f32], weights: &[f64]) -> Products {
        let furthest =
            ideal.iter().copied().fold(0.0_f32, |most, x| if x.abs() > most.abs() { x } else { most });
        let ends = (0..OUTERMOST).flat_map(|step| {
            let up = Some(self.most - step).filter(|&end| end > 0);
            let down = Some(self.least + step).filter(|&end| end < 0);
            up.into_iter().chain(down)
        });
        let mut best: Option<(f64, Products)> = None;
        for end in ends {
            let mut coarse = self.round_coarse(furthest / f32::from(end));
            for _ in 0..2 {
                let fine: Vec<f32> = ideal.iter().map(|x| self.nearest(x / coarse)).collect();
                let errors = ideal.iter().zip(&fine).zip(weights);
                let error: f64 = errors
                    .map(|((x, k), w)| w * (f64::from(*x) - f64::from(coarse) * f64::from(*k)).powi(2))
                    .sum();
                let moment = |other: &dyn Fn(usize) -> f64| -> f64 {
                    fine.iter().enumerate().map(|(g, &k)| weights[g] * f64::from(k) * other(g)).sum()
                };
                let along = moment(&|g| f64::from(ideal[g]));
                let length = moment(&|g| f64::from(fine[g]));
                if best.as_ref().is_none_or(|(least, _)| error < *least) {
                    best = Some((error, Products { coarse, fine }));
                }
                if length > 0.0 {
                    coarse = self.round_coarse((along / length) as f32);
                }
            }
        }
        best.map_or_else(
            || Products { coarse: self.round_coarse(0.0), fine: vec![1.0; ideal.len()] },
            |(_, best)| best,
        )
    }

    /// Half precision; positive where the integers have one sign.
    fn round_coarse(self, coarse: f32) -> f32 {
        let rounded = ScaleDtype::F16.round(coarse);
        if self.least < 0 { rounded } else { rounded.abs() }
    }
}

/// Outermost integers that the largest scale is tried on, from either end.
const OUTERMOST: i16 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    const SIX_BITS: Integers = Integers { least: 1, most: 63, zero: false };
    const SIGNED: Integers = Integers { least: -32, most: 31, zero: false };

    fn error(ideal: &[f32], products: &Products) -> f32 {
        ideal.iter().zip(&products.fine).map(|(x, k)| (x - products.coarse * k).powi(2)).sum()
    }

    #[test]
    fn products_are_representable_and_no_worse_than_the_outermost_integer() {
        let ideal: Vec<f32> = (0..16).map(|k| 0.01 + 0.003 * ((k * 7) % 11) as f32).collect();
        let turned: Vec<f32> =
            ideal.iter().enumerate().map(|(k, x)| if k % 3 == 0 { -x } else { *x }).collect();
        for (integers, ideal) in [(SIX_BITS, &ideal), (SIGNED, &turned)] {
            let found = integers.fit(ideal, &[1.0; 16]);
            assert!(ScaleDtype::F16.holds(found.coarse));
            let inside = |k: f32| {
                k == k.trunc()
                    && k != 0.0
                    && (f32::from(integers.least)..=f32::from(integers.most)).contains(&k)
            };
            assert!(found.fine.iter().all(|&k| inside(k)), "{found:?}");
            let coarse = ScaleDtype::F16
                .round(ideal.iter().fold(0.0_f32, |m, x| m.max(x.abs())) / f32::from(integers.most));
            let simple =
                Products { coarse, fine: ideal.iter().map(|x| integers.nearest(x / coarse)).collect() };
            assert!(error(ideal, &found) <= error(ideal, &simple), "{found:?} {simple:?}");
        }
    }

    #[test]
    fn nothing_at_all_can_still_be_divided_by() {
        let found = SIX_BITS.fit(&[0.0; 8], &[1.0; 8]);
        assert!(found.coarse > 0.0 && found.fine.iter().all(|&k| k >= 1.0));
    }
}
