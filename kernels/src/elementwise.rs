//! Exponentials and reductions over slices, in single precision: what a softmax, a norm and a gated activation are made of.
//!
//! Sums run in sixteen lanes in an order that is always the same, and nothing is fused, so that a result has the same bits on every machine.
//! The code is plain; what is picked at run time is the vector unit that it is compiled for.

use crate::arch::lanes::{Lanes, Task, Unit};

/// Running values of a reduction.
const LANES: usize = 16;
/// Values of a lane that are added in single precision, before a sum goes on in double.
const RUN: usize = 4;

/// e to the x, within two units in the last place; zero below -87, and e to the 88 above 88. Not a number stays so.
#[must_use]
pub fn exp(x: f32) -> f32 {
    exponential(x)
}

/// The largest value; that of no values is minus infinity. Values that are not numbers are passed over.
#[must_use]
pub fn max(values: &[f32]) -> f32 {
    Unit::widest().run(Max(values))
}

/// Σ value², each square and the sum in double precision.
#[must_use]
pub fn sum_of_squares(values: &[f32]) -> f64 {
    Unit::widest().run(SumOfSquares(values))
}

/// Σ value · other, each product and the sum in double precision.
///
/// # Panics
/// When there are not as many `others` as `values`.
#[must_use]
pub fn inner_product(values: &[f32], others: &[f32]) -> f64 {
    assert_eq!(values.len(), others.len(), "each value needs its other one");
    Unit::widest().run(InnerProduct { values, others })
}

/// Whether every value is a finite number.
#[must_use]
pub fn all_finite(values: &[f32]) -> bool {
    Unit::widest().run(AllFinite(values))
}

/// `x = x / sqrt(mean(x²) + eps) * weight` for each row of as many values as there are weights (arXiv 1910.07467); the mean in double
/// precision.
///
/// # Panics
/// When the values are not whole rows.
pub fn scale_to_unit_mean_square(rows: &mut [f32], weight: &[f32], eps: f64) {
    assert!(
        !weight.is_empty() && rows.len().is_multiple_of(weight.len()),
        "rows of {} values in {}",
        weight.len(),
        rows.len()
    );
    Unit::widest().run(ScaleToUnitMeanSquare { rows, weight, eps });
}

/// Replaces each value by `exp(value - offset)`; gives their sum, in single precision.
pub fn exponentiate(values: &mut [f32], offset: f32) -> f32 {
    Unit::widest().run(Exponentiate { values, offset })
}

/// Σ exp(value - offset). Each lane adds runs of four values in single precision, and those sums in double.
#[must_use]
pub fn sum_of_exponentials(values: &[f32], offset: f32) -> f64 {
    Unit::widest().run(SumOfExponentials { values, offset })
}

/// Σ exp(value - offset), which is [`sum_of_exponentials`] to the last bit, and the same sum with each term times `value - other`.
///
/// # Panics
/// When there are not as many `others` as `values`.
#[must_use]
pub fn weighted_differences(values: &[f32], others: &[f32], offset: f32) -> (f64, f64) {
    assert_eq!(values.len(), others.len(), "each value needs its other one");
    Unit::widest().run(WeightedDifferences { values, others, offset })
}

/// `gate = gate / (1 + exp(-gate)) * up`: the SiLU of a gated MLP.
///
/// # Panics
/// When there are not as many `up` as `gate`.
pub fn gate_silu(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "each gate needs its value");
    Unit::widest().run(GateSilu { gate, up });
}

/// The derivative of [`gate_silu`]: from `gradient`, that of its result, `gate` becomes the gradient of the gate and `up` that of `up`.
///
/// # Panics
/// When the three are not equally many.
pub fn gate_silu_vjp(gate: &mut [f32], up: &mut [f32], gradient: &[f32]) {
    assert!(gate.len() == up.len() && up.len() == gradient.len(), "each gate needs its value and gradient");
    Unit::widest().run(GateSiluVjp { gate, up, gradient });
}

/// `x = n ln 2 + r` with `r` at most half of ln 2, a polynomial for `e^r` (Cephes, `expf`), and `n` added to the exponent. No branches.
#[inline(always)]
fn exponential(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, so that the reduction is exact for every n that can occur.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 * 2^23 rounds to the nearest integer, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // Not `clamp`: what that does for a number that is none costs more than the rest.
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

struct Max<'a>(&'a [f32]);

impl Task for Max<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) -> f32 {
        let larger = |a: f32, b: f32| if b > a { b } else { a };
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (chunks, rest) = self.0.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, &value) in lanes.iter_mut().zip(chunk) {
                *lane = larger(*lane, value);
            }
        }
        lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |most, &value| larger(most, value))
    }
}

struct SumOfSquares<'a>(&'a [f32]);

impl Task for SumOfSquares<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) -> f64 {
        let mut lanes = [0.0_f64; LANES];
        let (chunks, rest) = self.0.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, &value) in lanes.iter_mut().zip(chunk) {
                *lane += f64::from(value) * f64::from(value);
            }
        }
        for (lane, &value) in lanes.iter_mut().zip(rest) {
            *lane += f64::from(value) * f64::from(value);
        }
        lanes.iter().sum()
    }
}

struct InnerProduct<'a> {
    values: &'a [f32],
    others: &'a [f32],
}

impl Task for InnerProduct<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) -> f64 {
        let mut lanes = [0.0_f64; LANES];
        let (chunks, rest) = self.values.as_chunks::<LANES>();
        let (other_chunks, other_rest) = self.others.as_chunks::<LANES>();
        for (chunk, other_chunk) in chunks.iter().zip(other_chunks) {
            for lane in 0..LANES {
                lanes[lane] += f64::from(chunk[lane]) * f64::from(other_chunk[lane]);
            }
        }
        for (lane, (&value, &other)) in lanes.iter_mut().zip(rest.iter().zip(other_rest)) {
            *lane += f64::from(value) * f64::from(other);
        }
        lanes.iter().sum()
    }
}

struct AllFinite<'a>(&'a [f32]);

impl Task for AllFinite<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) -> bool {
        // Without a sign, the bits of numbers are in the order of the numbers, and what is not finite is above.
        let magnitude = |value: &f32| value.to_bits() & !(1 << 31);
        self.0.iter().map(magnitude).fold(0, u32::max) < f32::INFINITY.to_bits()
    }
}

struct ScaleToUnitMeanSquare<'a> {
    rows: &'a mut [f32],
    weight: &'a [f32],
    eps: f64,
}

impl Task for ScaleToUnitMeanSquare<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        for row in self.rows.chunks_exact_mut(self.weight.len()) {
            let mean = SumOfSquares(row).run(lanes) / row.len() as f64;
            let factor = (1.0 / (mean + self.eps).sqrt()) as f32;
            for (value, &weight) in row.iter_mut().zip(self.weight) {
                *value = *value * factor * weight;
            }
        }
    }
}

struct Exponentiate<'a> {
    values: &'a mut [f32],
    offset: f32,
}

impl Task for Exponentiate<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) -> f32 {
        let mut lanes = [0.0_f32; LANES];
        let (chunks, rest) = self.values.as_chunks_mut::<LANES>();
        for chunk in chunks {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *value = exponential(*value - self.offset);
                *lane += *value;
            }
        }
        for (lane, value) in lanes.iter_mut().zip(rest) {
            *value = exponential(*value - self.offset);
            *lane += *value;
        }
        lanes.iter().sum()
    }
}

struct SumOfExponentials<'a> {
    values: &'a [f32],
    offset: f32,
}

impl Task for SumOfExponentials<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) -> f64 {
        let mut total = [0.0_f64; LANES];
        for run in self.values.chunks(RUN * LANES) {
            let mut lanes = [0.0_f32; LANES];
            let (chunks, rest) = run.as_chunks::<LANES>();
            for chunk in chunks {
                for (lane, &value) in lanes.iter_mut().zip(chunk) {
                    *lane += exponential(value - self.offset);
                }
            }
            for (lane, &value) in lanes.iter_mut().zip(rest) {
                *lane += exponential(value - self.offset);
            }
            for (total, lane) in total.iter_mut().zip(lanes) {
                *total += f64::from(lane);
            }
        }
        total.iter().sum()
    }
}

struct WeightedDifferences<'a> {
    values: &'a [f32],
    others: &'a [f32],
    offset: f32,
}

impl Task for WeightedDifferences<'_> {
    type Output = (f64, f64);

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) -> (f64, f64) {
        let mut total = [0.0_f64; LANES];
        let mut weighted = [0.0_f64; LANES];
        for (run, other_run) in self.values.chunks(RUN * LANES).zip(self.others.chunks(RUN * LANES)) {
            let mut lanes = [0.0_f32; LANES];
            let mut differences = [0.0_f32; LANES];
            let (chunks, rest) = run.as_chunks::<LANES>();
            let (other_chunks, other_rest) = other_run.as_chunks::<LANES>();
            for (chunk, other_chunk) in chunks.iter().zip(other_chunks) {
                for lane in 0..LANES {
                    let weight = exponential(chunk[lane] - self.offset);
                    lanes[lane] += weight;
                    differences[lane] += weight * (chunk[lane] - other_chunk[lane]);
                }
            }
            for (lane, (&value, &other)) in rest.iter().zip(other_rest).enumerate() {
                let weight = exponential(value - self.offset);
                lanes[lane] += weight;
                differences[lane] += weight * (value - other);
            }
            for lane in 0..LANES {
                total[lane] += f64::from(lanes[lane]);
                weighted[lane] += f64::from(differences[lane]);
            }
        }
        (total.iter().sum(), weighted.iter().sum())
    }
}

struct GateSilu<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Task for GateSilu<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        for (gate, &up) in self.gate.iter_mut().zip(self.up) {
            *gate = *gate / (1.0 + exponential(-*gate)) * up;
        }
    }
}

struct GateSiluVjp<'a> {
    gate: &'a mut [f32],
    up: &'a mut [f32],
    gradient: &'a [f32],
}

impl Task for GateSiluVjp<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        for ((gate, up), &gradient) in self.gate.iter_mut().zip(self.up).zip(self.gradient) {
            let share = 1.0 / (1.0 + exponential(-*gate));
            let value = *gate * share;
            let slope = share + value * (1.0 - share);
            (*gate, *up) = (gradient * *up * slope, gradient * value);
        }
    }
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
            let products = values.iter().zip(&others).map(|(v, o)| wide(v) * wide(o));
            close(inner_product(&values, &others), products.sum());
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
            let mut gated = values.clone();
            gate_silu(&mut gated, &others);
            for (found, (v, o)) in gated.iter().zip(values.iter().zip(&others)) {
                close(wide(found), wide(v) / (1.0 + (-wide(v)).exp()) * wide(o));
            }
        }
    }

    #[test]
    fn the_gradient_of_the_gate_is_its_slope() {
        let swish = |g: f64| g / (1.0 + (-g).exp());
        for step in -300..=300 {
            let (gate, up, gradient) = (step as f32 * 0.05, 1.7_f32, -0.6_f32);
            let (mut gates, mut ups) = ([gate], [up]);
            gate_silu_vjp(&mut gates, &mut ups, &[gradient]);
            let g = f64::from(gate);
            let slope = (swish(g + 1e-5) - swish(g - 1e-5)) / 2e-5;
            let close = |found: f32, expected: f64| {
                assert!((f64::from(found) - expected).abs() < 1e-6, "{gate}: {found} {expected}");
            };
            close(gates[0], f64::from(gradient) * f64::from(up) * slope);
            close(ups[0], f64::from(gradient) * swish(g));
        }
        let (mut gates, mut ups) = ([-200.0, 200.0], [1.0, 1.0]);
        gate_silu_vjp(&mut gates, &mut ups, &[1.0, 1.0]);
        assert!(gates[0].abs() < 1e-30 && gates[1] == 1.0 && ups[0].abs() < 1e-30 && ups[1] == 200.0);
    }

    #[test]
    fn every_unit_gives_the_same_bits() {
        let values: Vec<f32> = (0..203).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.31).collect();
        let others: Vec<f32> = values.iter().map(|v| v * 0.9 + 0.01).collect();
        let results = |unit: Unit| {
            let (mut replaced, mut gated) = (values.clone(), values.clone());
            let sum = unit.run(Exponentiate { values: &mut replaced, offset: 3.7 });
            unit.run(GateSilu { gate: &mut gated, up: &others });
            let (mut gate, mut up) = (values.clone(), others.clone());
            unit.run(GateSiluVjp { gate: &mut gate, up: &mut up, gradient: &replaced });
            (
                unit.run(Max(&values)),
                unit.run(SumOfSquares(&values)),
                (sum, replaced, gated),
                unit.run(SumOfExponentials { values: &values, offset: 3.7 }),
                unit.run(WeightedDifferences { values: &values, others: &others, offset: 3.7 }),
                unit.run(InnerProduct { values: &values, others: &others }),
                (gate, up),
            )
        };
        let expected = results(Unit::all()[0]);
        assert_eq!(expected.3, expected.4.0);
        for unit in Unit::all() {
            assert_eq!(results(unit), expected, "{unit:?}");
        }
    }

    #[test]
    fn what_is_not_finite_is_found_wherever_it_is() {
        for count in [0, 1, 7, 33, 172, 576, 1000] {
            let mut values = vec![-1.5_f32; count];
            assert!(all_finite(&values));
            for at in 0..count {
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    values[at] = bad;
                    assert!(!all_finite(&values), "{bad} at {at} of {count}");
                }
                values[at] = f32::MAX;
            }
        }
    }

    #[test]
    fn every_unit_norms_rows_to_the_same_bits() {
        for columns in [1, 7, 33, 172, 576, 1000] {
            let start: Vec<f32> = (0..3 * columns).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.1).collect();
            let weight: Vec<f32> = (0..columns).map(|i| 0.5 + (i % 5) as f32).collect();
            let on = |unit: Unit| {
                let mut rows = start.clone();
                unit.run(ScaleToUnitMeanSquare { rows: &mut rows, weight: &weight, eps: 1e-5 });
                rows
            };
            let portable = on(Unit::all()[0]);
            assert!(Unit::all().into_iter().all(|unit| on(unit) == portable), "{columns} columns");
            for (row, found) in start.chunks(columns).zip(portable.chunks(columns)) {
                let mean = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / columns as f64;
                for ((&x, &w), &found) in row.iter().zip(&weight).zip(found) {
                    let expected = f64::from(x) / (mean + 1e-5).sqrt() * f64::from(w);
                    assert!((f64::from(found) - expected).abs() <= 1e-6 * expected.abs());
                }
            }
        }
    }
}
