//! Matrices like those of a transformer, from a seed.

#![allow(dead_code, reason = "every test file uses its own part")]

use ndarray::{Array2, ArrayView2};
use quantizer::accumulator::Streams;
use quantizer::hessian::CrossMoment;
use quantizer::levels::Levels;
use quantizer::scheme::{BitWidth, Granularity, GroupSize, ScaleDtype, Scheme, Symmetry};
use quantizer::{Hessian, HessianAccumulator, QuantizedTensor};

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn uniform(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 24) as f32
    }

    /// Nearly normal: the sum of twelve uniforms.
    pub(crate) fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0
    }

    pub(crate) fn matrix(&mut self, rows: usize, columns: usize) -> Array2<f32> {
        Array2::from_shape_simple_fn((rows, columns), || self.normal())
    }
}

pub(crate) fn weight(seed: u64, rows: usize, columns: usize) -> Array2<f32> {
    Random(seed).matrix(rows, columns) * 0.05
}

/// `[tokens, columns]`: neighbours correlate, and the columns' magnitudes differ by more than tenfold.
pub(crate) fn inputs(seed: u64, tokens: usize, columns: usize) -> Array2<f32> {
    let mut random = Random(seed ^ 0x51ab);
    let gains: Vec<f32> = (0..columns).map(|_| (0.8 * random.normal()).exp()).collect();
    let mut x = random.matrix(tokens, columns);
    for mut token in x.rows_mut() {
        for column in 1..columns {
            token[column] = 0.9 * token[column - 1] + 0.44 * token[column];
        }
        for (x, gain) in token.iter_mut().zip(&gains) {
            *x *= gain;
        }
    }
    x
}

/// What `quantized` lacks of `original` against the rows of `x`, `[tokens, columns]` each.
pub(crate) fn cross_of(
    original: ArrayView2<'_, f32>,
    quantized: ArrayView2<'_, f32>,
    x: ArrayView2<'_, f32>,
) -> CrossMoment {
    let mut moments = HessianAccumulator::new(x.ncols()).with_cross_moment(original.ncols());
    moments.observe_beside(x, &[Streams { original, quantized }]).unwrap();
    moments.finish_all().unwrap().1.remove(0)
}

pub(crate) fn hessian_of(x: ArrayView2<'_, f32>) -> Hessian {
    let mut accumulator = HessianAccumulator::new(x.ncols());
    accumulator.observe(x).unwrap();
    accumulator.finish().unwrap()
}

pub(crate) fn hessian(seed: u64, columns: usize) -> Hessian {
    hessian_of(inputs(seed, 4 * columns, columns).view())
}

pub(crate) fn scheme(bits: u8, granularity: Granularity, symmetry: Symmetry) -> Scheme {
    let bits = BitWidth::new(bits).unwrap();
    Scheme { bits, levels: Levels::Uniform, granularity, symmetry, scale_dtype: ScaleDtype::F16AndBf16 }
}

pub(crate) fn groups(size: usize) -> Granularity {
    Granularity::PerGroup(GroupSize::new(size).unwrap())
}

/// Widths, granularities and symmetries for matrices of 64 columns, and every other kind of grid.
pub(crate) fn schemes() -> Vec<Scheme> {
    let mut schemes = Vec::new();
    for bits in [2, 3, 4, 8] {
        for granularity in [groups(16), groups(32), Granularity::PerChannel, Granularity::PerTensor] {
            for symmetry in [Symmetry::Symmetric, Symmetry::Asymmetric] {
                schemes.push(scheme(bits, granularity, symmetry));
            }
        }
    }
    schemes.extend(other_grids());
    schemes
}

/// Tables, stored minimums, and scales that are powers of two or products.
pub(crate) fn other_grids() -> Vec<Scheme> {
    let grid = |bits, levels, size, symmetry, scale_dtype| Scheme {
        levels,
        scale_dtype,
        ..scheme(bits, groups(size), symmetry)
    };
    let integers = |least, most| ScaleDtype::Integers { least, most };
    let (uniform, middle, minimum) = (Levels::Uniform, Symmetry::Symmetric, Symmetry::Minimum);
    vec![
        grid(4, Levels::Nf4, 64, middle, ScaleDtype::F32),
        grid(4, Levels::Fp4, 64, middle, ScaleDtype::F32),
        grid(4, Levels::Iq4, 32, middle, ScaleDtype::F16),
        grid(4, Levels::Iq4, 32, middle, integers(-32, 31)),
        grid(4, Levels::E2m1, 32, middle, ScaleDtype::E8m0),
        grid(4, Levels::E2m1, 16, middle, ScaleDtype::SharedE4m3 { exponent: -8 }),
        grid(4, Levels::Nf4, 32, middle, ScaleDtype::Nested),
        Scheme { granularity: Granularity::PerChannel, ..grid(8, Levels::E4m3, 16, middle, ScaleDtype::F32) },
        grid(4, uniform, 32, minimum, ScaleDtype::F16),
        grid(3, uniform, 32, minimum, ScaleDtype::Bf16),
        grid(2, uniform, 16, minimum, integers(1, 15)),
        grid(4, uniform, 32, minimum, integers(1, 63)),
        grid(3, uniform, 16, middle, integers(-32, 31)),
        grid(6, uniform, 16, middle, integers(-128, 127)),
    ]
}

/// `d H dᵀ` of each row, in double precision, the plain way.
pub(crate) fn row_losses(
    weight: ArrayView2<'_, f32>,
    tensor: &QuantizedTensor,
    h: ArrayView2<'_, f64>,
) -> Vec<f64> {
    let errors = (&weight - &tensor.dequantize()).mapv(f64::from);
    let product = errors.dot(&h);
    errors.rows().into_iter().zip(product.rows()).map(|(d, p)| d.dot(&p)).collect()
}
