//! How weights lie before and after, and how scales do, over a sample of the linears.

use model::linear::Linear;

use crate::error::Error;
use crate::stored::StoredModel;

/// Linears that are looked at, spread evenly over the model.
const LINEARS: usize = 48;
/// Rows of each, spread evenly.
const ROWS: usize = 32;
/// Bars of a distribution.
const BARS: usize = 61;
/// Weights are shown from minus so many standard deviations of their linear to as many.
const DEVIATIONS: f64 = 4.0;

/// Shares of equal steps between two ends; what lies outside is in none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Distribution {
    /// Left end of the first step.
    pub first: f64,
    /// Right end of the last.
    pub last: f64,
    /// Share of all values in each step.
    pub shares: Vec<f64>,
}

/// How weights and scales lie.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Distributions {
    /// Linears that were looked at.
    pub linears: usize,
    /// The original's weights over the standard deviation of their linear.
    pub original: Distribution,
    /// The output's, over the same.
    pub quantized: Distribution,
    /// Decimal logarithms of the magnitudes of scales.
    pub scales: Distribution,
}

impl Distribution {
    fn of(first: f64, last: f64, values: impl Iterator<Item = f64>) -> Self {
        let mut counts = vec![0_usize; BARS];
        let mut all = 0_usize;
        let step = (last - first) / BARS as f64;
        for value in values {
            all += 1;
            let place = ((value - first) / step).floor();
            if (0.0..BARS as f64).contains(&place) {
                counts[place as usize] += 1;
            }
        }
        let shares = counts.into_iter().map(|count| count as f64 / all.max(1) as f64).collect();
        Self { first, last, shares }
    }
}

impl Distributions {
    /// Of linears that `written` has quantized.
    pub(super) fn of(source: &StoredModel, written: &StoredModel) -> Result<Self, Error> {
        let quantized: Vec<&Linear> =
            written.model.linears().filter(|linear| written.scheme(linear).is_some()).collect();
        let step = quantized.len().div_ceil(LINEARS).max(1);
        let looked_at: Vec<&Linear> = quantized.into_iter().step_by(step).collect();
        let (mut before, mut after, mut scales) = (Vec::new(), Vec::new(), Vec::new());
        for linear in &looked_at {
            let tensor = written.decode(linear)?;
            let every = linear.out_features.div_ceil(ROWS).max(1);
            // The original may exist only quantized.
            let operator = source.operator(linear)?;
            let original = operator.weights.values();
            let original =
                original.ok_or_else(|| Error::Internal(format!("`{}` was read rounded", linear.name)))?;
            let dense = tensor.dequantize();
            let rows = (0..linear.out_features).step_by(every);
            let sample: Vec<f64> =
                rows.clone().flat_map(|row| original.row(row).to_vec()).map(f64::from).collect();
            let square: f64 = sample.iter().map(|value| value * value).sum();
            let deviation = (square / sample.len().max(1) as f64).sqrt();
            if deviation > 0.0 {
                before.extend(sample.iter().map(|value| value / deviation));
                let values = rows.flat_map(|row| dense.row(row).to_vec());
                after.extend(values.map(|value| f64::from(value) / deviation));
            }
            let all = tensor.scales_by_row();
            let every = all.len().div_ceil(ROWS * ROWS).max(1);
            let magnitudes = all.iter().step_by(every).map(|scale| f64::from(scale.abs()));
            scales.extend(magnitudes.filter(|scale| *scale > 0.0).map(f64::log10));
        }
        let low = scales.iter().copied().fold(f64::INFINITY, f64::min);
        let high = scales.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        // One value has a width too.
        let (low, high) = if low.is_finite() { (low - 0.05, high + 0.05) } else { (0.0, 1.0) };
        Ok(Self {
            linears: looked_at.len(),
            original: Distribution::of(-DEVIATIONS, DEVIATIONS, before.into_iter()),
            quantized: Distribution::of(-DEVIATIONS, DEVIATIONS, after.into_iter()),
            scales: Distribution::of(low, high, scales.into_iter()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_all_values_and_the_ends_belong_to_no_other_step() {
        let found = Distribution::of(0.0, BARS as f64, [0.0, 0.5, 60.9, 61.0, -0.1].into_iter());
        assert_eq!((found.shares[0], found.shares[60]), (0.4, 0.2));
        assert!((found.shares.iter().sum::<f64>() - 0.6).abs() < 1e-12);
    }
}
