//! Means, quantiles and their standard errors over tokens that come in windows.
//!
//! Tokens of a window are not independent, so errors are those of the windows' means; with fewer than [`FEW`] windows that estimate is
//! worthless, and the tokens are taken for independent. The error of a quantile is the spread over bootstrap resamples of the windows
//! (Efron 1979) with a fixed seed.

/// Windows below which tokens are taken for independent.
const FEW: usize = 8;
/// Bootstrap resamples.
const RESAMPLES: usize = 200;

/// A figure and its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The figure.
    pub value: f64,
    /// Its standard error.
    pub stderr: f64,
}

/// Mean over all values of all windows.
pub(crate) fn mean(windows: &[Vec<f32>]) -> Estimate {
    let count: usize = windows.iter().map(Vec::len).sum();
    let sums: Vec<f64> = windows.iter().map(|window| window.iter().map(|&v| f64::from(v)).sum()).collect();
    let value = sums.iter().sum::<f64>() / count as f64;
    let stderr = if windows.len() >= FEW {
        let means: Vec<f64> =
            sums.iter().zip(windows).map(|(sum, window)| sum / window.len() as f64).collect();
        spread(&means) / (means.len() as f64).sqrt()
    } else {
        let all: Vec<f64> = windows.iter().flatten().map(|&v| f64::from(v)).collect();
        spread(&all) / (count as f64).sqrt()
    };
    Estimate { value, stderr }
}

/// The quantile `share` (0 to 1) over all values, linear between neighbours.
pub(crate) fn quantile(windows: &[Vec<f32>], share: f64) -> Estimate {
    let mut all: Vec<f32> = windows.iter().flatten().copied().collect();
    let value = select(&mut all, share);
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut draw = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let mut resampled = Vec::with_capacity(RESAMPLES);
    for _ in 0..RESAMPLES {
        all.clear();
        if windows.len() >= FEW {
            for _ in windows {
                all.extend(&windows[draw(windows.len())]);
            }
        } else {
            for window in windows {
                all.extend((0..window.len()).map(|_| window[draw(window.len())]));
            }
        }
        resampled.push(select(&mut all, share));
    }
    Estimate { value, stderr: spread(&resampled) }
}

/// Standard deviation with n - 1; zero for fewer than two values.
fn spread(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}

fn select(values: &mut [f32], share: f64) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    let place = share * (values.len() - 1) as f64;
    let below = place.floor() as usize;
    let (_, &mut low, above) = values.select_nth_unstable_by(below, f32::total_cmp);
    let high = above.iter().copied().min_by(f32::total_cmp).unwrap_or(low);
    f64::from(low) + (place - below as f64) * (f64::from(high) - f64::from(low))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_and_quantiles_of_known_values() {
        let windows: Vec<Vec<f32>> =
            (0..10).map(|w| (0..10).map(|i| (w * 10 + i) as f32).collect()).collect();
        let found = mean(&windows);
        assert_eq!(found.value, 49.5);
        // Means 4.5, 14.5, ..., 94.5 have a standard deviation of 30.2765.
        assert!((found.stderr - 30.2765 / 10.0_f64.sqrt()).abs() < 1e-4);
        let found = quantile(&windows, 0.99);
        assert!((found.value - 98.01).abs() < 1e-9 && found.stderr > 0.0);
        assert_eq!(quantile(&windows, 0.99), found);
        assert_eq!(quantile(&[vec![3.0]], 0.99).value, 3.0);
    }
}
