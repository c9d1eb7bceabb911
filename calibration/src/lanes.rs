//! Exponentials and reductions that compilers vectorize: sixteen running values instead of one, in an order that is always the same.

/// Running values of a reduction.
const LANES: usize = 16;

/// e to the x, within two units in the last place; zero below -87, and e to the 88 above 88. Not a number stays so.
///
/// `x = n ln 2 + r` with `r` at most half of ln 2, a polynomial for `e^r` (Cephes, `expf`), and `n` added to the exponent. No branches.
#[inline]
pub(crate) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, so that the reduction is exact for every n that can occur.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 * 2^23 rounds to the nearest integer, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // Not `clamp` and not `max`: what those do for a number that is none costs more than the rest.
    let clamped = if x > 88.0 { 88.0 } else { x };
    let clamped = if clamped < -87.0 { -87.0 } else { clamped };
    let shifted = clamped * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    let mut polynomial = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        polynomial = polynomial * r + coefficient;
    }
    let mantissa = polynomial * r * r + r + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < -87.0 { 0.0 } else { mantissa * power }
}

/// The largest value; that of no values is minus infinity. Values that are not numbers are passed over.
pub(crate) fn max(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, value);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |most, &value| larger(most, value))
}

/// Σ value², each square and the sum in f64.
pub(crate) fn sum_of_squares(values: &[f32]) -> f64 {
    let mut lanes = [0.0_f64; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(value) * f64::from(value);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>()
}

/// Replaces each value by `exp(value - offset)`; gives their sum, in f32.
pub(crate) fn exponentiate(values: &mut [f32], offset: f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let mut chunks = values.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *value = exp(*value - offset);
            *lane += *value;
        }
    }
    let mut sum = lanes.iter().sum();
    for value in chunks.into_remainder() {
        *value = exp(*value - offset);
        sum += *value;
    }
    sum
}

/// Σ exp(value - offset). Runs of four values for each lane are added in f32, runs in f64.
pub(crate) fn sum_of_exponentials(values: &[f32], offset: f32) -> f64 {
    let mut total = [0.0_f64; LANES];
    for run in values.chunks(4 * LANES) {
        let mut lanes = [0.0_f32; LANES];
        let chunks = run.chunks_exact(LANES);
        let rest = chunks.remainder();
        for chunk in chunks {
            for (lane, &value) in lanes.iter_mut().zip(chunk) {
                *lane += exp(value - offset);
            }
        }
        for (lane, &value) in lanes.iter_mut().zip(rest) {
            *lane += exp(value - offset);
        }
        for (total, lane) in total.iter_mut().zip(lanes) {
            *total += f64::from(lane);
        }
    }
    total.iter().sum()
}

/// Σ exp(value - offset), and the same sum with each term times `value - other`.
pub(crate) fn weighted_differences(values: &[f32], others: &[f32], offset: f32) -> (f64, f64) {
    let mut total = [0.0_f64; LANES];
    let mut weighted = [0.0_f64; LANES];
    for (run, other_run) in values.chunks(4 * LANES).zip(others.chunks(4 * LANES)) {
        let mut lanes = [0.0_f32; LANES];
        let mut differences = [0.0_f32; LANES];
        let mut add = |chunk: &[f32], other_chunk: &[f32]| {
            for (((lane, difference), &value), &other) in
                lanes.iter_mut().zip(&mut differences).zip(chunk).zip(other_chunk)
            {
                let weight = exp(value - offset);
                *lane += weight;
                *difference += weight * (value - other);
            }
        };
        let (chunks, other_chunks) = (run.chunks_exact(LANES), other_run.chunks_exact(LANES));
        let (rest, other_rest) = (chunks.remainder(), other_chunks.remainder());
        for (chunk, other_chunk) in chunks.zip(other_chunks) {
            add(chunk, other_chunk);
        }
        add(rest, other_rest);
        for (total, lane) in total.iter_mut().zip(lanes) {
            *total += f64::from(lane);
        }
        for (weighted, difference) in weighted.iter_mut().zip(differences) {
            *weighted += f64::from(difference);
        }
    }
    (total.iter().sum(), weighted.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_accurate_over_its_range() {
        for step in -86_999..88_000 {
            let x = step as f32 * 1e-3;
            let exact = f64::from(x).exp();
            let relative = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(relative < 2.4e-7, "exp({x}): {relative:e}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn lanes_give_what_one_running_value_gives() {
        for count in [0, 1, 15, 16, 17, 64, 65, 130, 1000] {
            let values: Vec<f32> = (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.1).collect();
            let others: Vec<f32> = values.iter().map(|v| v * 0.9 + 0.01).collect();
            let close = |found: f64, expected: f64| {
                assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{count}: {found} {expected}");
            };
            let wide = |v: &f32| f64::from(*v);
            let offset = max(&values);
            assert_eq!(offset, values.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            close(sum_of_squares(&values), values.iter().map(|v| wide(v) * wide(v)).sum());
            let offset = if count == 0 { 0.0 } else { offset };
            let weights: Vec<f64> = values.iter().map(|v| (wide(v) - f64::from(offset)).exp()).collect();
            let total: f64 = weights.iter().sum();
            close(sum_of_exponentials(&values, offset), total);
            let differences = weights.iter().zip(values.iter().zip(&others));
            let weighted: f64 = differences.map(|(weight, (v, o))| weight * (wide(v) - wide(o))).sum();
            let found = weighted_differences(&values, &others, offset);
            close(found.0, total);
            close(found.1, weighted);
            let mut replaced = values.clone();
            close(f64::from(exponentiate(&mut replaced, offset)), total);
            assert!(replaced.iter().zip(&weights).all(|(f, e)| (wide(f) - e).abs() <= 1e-6 * e));
        }
    }
}
