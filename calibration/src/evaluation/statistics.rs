//! Means, quantiles and their standard errors over tokens that come in windows.
//!
//! Tokens of a window are not independent, so what is resampled or averaged is the window (a cluster, in the language of surveys). The mean
//! is a ratio of two sums over windows, of values and of counts, and its standard error that of a ratio (Cochran 1977, section 2.11). The
//! error of a quantile is the spread over bootstrap resamples of the windows (Efron 1979) with a fixed seed. With fewer than [`FEW`]
//! windows neither is worth anything, and each token counts as a cluster of its own.

/// Windows below which tokens are taken for independent.
const FEW: usize = 8;
/// Bootstrap resamples.
const RESAMPLES: usize = 200;
/// Where the generator of resamples starts.
const SEED: u64 = 0x2545_f491_4f6c_dd1d;

/// A figure and its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The figure.
    pub value: f64,
    /// Its standard error.
    pub stderr: f64,
}

/// The mean difference of two sets of figures on the same tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairedDifference {
    /// First less second, with the standard error of the differences themselves: what both share does not blur it.
    pub difference: Estimate,
    /// Half the width of the interval that holds the true difference 95 times of 100 (Student's t over windows).
    pub margin: f64,
}

impl PairedDifference {
    /// Of `first` and `second`, figures of the same tokens, in windows.
    #[must_use]
    pub fn of<T: Copy + Into<f64>>(first: &[Vec<T>], second: &[Vec<T>]) -> Self {
        let differences: Vec<Vec<f64>> = first
            .iter()
            .zip(second)
            .map(|(first, second)| first.iter().zip(second).map(|(&a, &b)| a.into() - b.into()).collect())
            .collect();
        let clusters =
            if differences.len() < FEW { differences.iter().map(Vec::len).sum() } else { differences.len() };
        let difference = mean(&differences);
        Self { difference, margin: difference.stderr * student_975(clusters.saturating_sub(1)) }
    }

    /// Whether chance alone would show such a difference less than 5 times in 100.
    #[must_use]
    pub fn is_significant(&self) -> bool {
        self.margin > 0.0 && self.difference.value.abs() > self.margin
    }
}

/// The 97.5 % point of Student's t, by the expansion around the normal's (Abramowitz and Stegun 26.7.5); within 0.1 % from 6 degrees on.
fn student_975(degrees: usize) -> f64 {
    let (z, v) = (1.959_963_985_f64, degrees.max(1) as f64);
    let odd = [
        (z.powi(3) + z) / 4.0,
        (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0,
        (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0,
        (79.0 * z.powi(9) + 776.0 * z.powi(7) + 1482.0 * z.powi(5) - 1920.0 * z.powi(3) - 945.0 * z)
            / 92160.0,
    ];
    odd.iter().rev().fold(0.0, |sum, term| (sum + term) / v) + z
}

/// Mean over all values of all windows.
pub(super) fn mean<T: Copy + Into<f64>>(windows: &[Vec<T>]) -> Estimate {
    let clusters: Vec<(f64, f64)> = if windows.len() < FEW {
        windows.iter().flatten().map(|&value| (value.into(), 1.0)).collect()
    } else {
        let sum = |window: &Vec<T>| window.iter().map(|&value| value.into()).sum();
        windows.iter().map(|window| (sum(window), window.len() as f64)).collect()
    };
    let count: f64 = clusters.iter().map(|(_, count)| count).sum();
    let value = clusters.iter().map(|(sum, _)| sum).sum::<f64>() / count;
    let residuals: f64 = clusters.iter().map(|(sum, count)| (sum - value * count).powi(2)).sum();
    let many = clusters.len() as f64;
    let stderr = if clusters.len() < 2 { 0.0 } else { (many / (many - 1.0) * residuals).sqrt() / count };
    Estimate { value, stderr }
}

/// The quantile `share` (0 to 1) over all values, linear between neighbours.
pub(super) fn quantile(windows: &[Vec<f32>], share: f64) -> Estimate {
    let by_token = windows.len() < FEW;
    let values =
        windows.iter().enumerate().flat_map(|(window, values)| values.iter().map(move |&v| (v, window)));
    let mut values: Vec<(f32, usize)> = if by_token {
        values.enumerate().map(|(token, (v, _))| (v, token)).collect()
    } else {
        values.collect()
    };
    let sizes: Vec<usize> =
        if by_token { vec![1; values.len()] } else { windows.iter().map(Vec::len).collect() };
    values.sort_by(|(a, _), (b, _)| b.total_cmp(a));

    let mut drawn = vec![1; sizes.len()];
    let value = weighted_quantile(&values, &sizes, &drawn, share);
    let mut state = SEED;
    let resampled: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            drawn.fill(0);
            for _ in 0..drawn.len() {
                // xorshift64 (Marsaglia 2003).
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                drawn[(state % sizes.len() as u64) as usize] += 1;
            }
            weighted_quantile(&values, &sizes, &drawn, share)
        })
        .collect();
    let mean = resampled.iter().sum::<f64>() / RESAMPLES as f64;
    let squares: f64 = resampled.iter().map(|value| (value - mean).powi(2)).sum();
    Estimate { value, stderr: (squares / (RESAMPLES - 1) as f64).sqrt() }
}

/// The quantile of a sample that holds cluster `c`, of `sizes[c]` values, `drawn[c]` times. `descending` holds value and cluster.
fn weighted_quantile(descending: &[(f32, usize)], sizes: &[usize], drawn: &[usize], share: f64) -> f64 {
    let total: usize = sizes.iter().zip(drawn).map(|(size, drawn)| size * drawn).sum();
    let place = share * total.saturating_sub(1) as f64;
    let below = place.floor() as usize;
    let mut above = 0;
    let mut next_larger = None;
    for &(value, cluster) in descending {
        if drawn[cluster] == 0 {
            continue;
        }
        // This value takes the ranks from `total - above - drawn` on, counted from the smallest.
        above += drawn[cluster];
        if total - above <= below {
            let low = f64::from(value);
            // The rank above is this value's too when it was drawn more often.
            let high =
                if total - above + drawn[cluster] > below + 1 { low } else { next_larger.unwrap_or(low) };
            return low + (place - below as f64) * (high - low);
        }
        next_larger = Some(f64::from(value));
    }
    0.0
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
        let one = quantile(&[vec![3.0]], 0.99);
        assert_eq!((one.value, one.stderr), (3.0, 0.0));
    }

    #[test]
    fn quantiles_of_students_t_are_the_tables() {
        for (degrees, expected) in [(7, 2.3646), (15, 2.1314), (31, 2.0395), (127, 1.9788)] {
            assert!((student_975(degrees) - expected).abs() < 2e-3, "{degrees}: {}", student_975(degrees));
        }
    }

    #[test]
    fn a_small_difference_under_a_large_spread_shows_when_it_is_paired() {
        let mut state = 7_u64;
        let mut uniform = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / (1 << 24) as f64
        };
        let mut first: Vec<Vec<f64>> = (0..32).map(|_| (0..20).map(|_| 10.0 * uniform()).collect()).collect();
        let second: Vec<Vec<f64>> =
            first.iter().map(|window| window.iter().map(|x| x + 0.01 + 0.02 * uniform()).collect()).collect();
        let found = PairedDifference::of(&second, &first);
        assert!(found.is_significant() && (found.difference.value - 0.02).abs() < found.margin);
        assert!(mean(&first).stderr > 4.0 * found.difference.value);
        assert!(!PairedDifference::of(&first, &first).is_significant());
        // Differences that are as often above as below.
        first.iter_mut().enumerate().for_each(|(i, w)| w[0] += if i % 2 == 0 { 1.0 } else { -1.0 });
        let before: Vec<Vec<f64>> = second.iter().map(|w| w.iter().map(|x| x - 0.02).collect()).collect();
        assert!(!PairedDifference::of(&first, &before).is_significant());
    }

    #[test]
    fn a_window_drawn_twice_counts_twice() {
        let mut windows: Vec<Vec<f32>> = (0..9).map(|w| vec![w as f32, (w * w) as f32, 0.5]).collect();
        windows[3].push(40.0);
        let drawn = [0, 2, 1, 3, 0, 0, 1, 1, 1];
        let mut sample: Vec<f32> = Vec::new();
        for (window, times) in windows.iter().zip(drawn) {
            (0..times).for_each(|_| sample.extend(window));
        }
        sample.sort_by(f32::total_cmp);
        let mut values: Vec<(f32, usize)> =
            windows.iter().enumerate().flat_map(|(w, v)| v.iter().map(move |&v| (v, w))).collect();
        values.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        let sizes: Vec<usize> = windows.iter().map(Vec::len).collect();
        for share in [0.0, 0.25, 0.5, 0.9, 0.99, 1.0] {
            let place = share * (sample.len() - 1) as f64;
            let low = f64::from(sample[place.floor() as usize]);
            let high = f64::from(sample[place.ceil() as usize]);
            let expected = low + place.fract() * (high - low);
            let found = weighted_quantile(&values, &sizes, &drawn, share);
            assert!((found - expected).abs() < 1e-12, "{share}: {found} {expected}");
        }
    }

    #[test]
    fn standard_errors_are_the_spread_over_repetitions() {
        // 400 repetitions of 32 windows of 50 values that share a level: what is estimated from one must be what they spread by.
        let mut state = 1_u64;
        let mut uniform = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32
        };
        let mut found: [Vec<Estimate>; 2] = [Vec::new(), Vec::new()];
        for _ in 0..400 {
            let windows: Vec<Vec<f32>> = (0..32)
                .map(|_| {
                    let level = uniform();
                    (0..50).map(|_| level + uniform()).collect()
                })
                .collect();
            found[0].push(mean(&windows));
            found[1].push(quantile(&windows, 0.9));
        }
        for estimates in found {
            let many = estimates.len() as f64;
            let mean = estimates.iter().map(|e| e.value).sum::<f64>() / many;
            let spread = (estimates.iter().map(|e| (e.value - mean).powi(2)).sum::<f64>() / many).sqrt();
            let claimed = estimates.iter().map(|e| e.stderr).sum::<f64>() / many;
            assert!((claimed / spread - 1.0).abs() < 0.15, "{claimed} {spread}");
        }
    }
}
