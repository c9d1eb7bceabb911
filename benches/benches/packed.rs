//! Products with a packed 4096 by 4096 matrix, in one thread: the operations of the equivalent dense product, and the packed bytes that
//! are read (scales and zero points as `f32` included).
//!
//! `cargo bench -p benches --bench packed`

use criterion::{BenchmarkId, Throughput};
use kernels::{CodeLayout, PackedMatrix, PackedShape};
use ndarray::Array2;

const FEATURES: usize = 4096;
const GROUP_SIZE: usize = 128;

fn main() {
    benches::run(|criterion| {
        let mut group = criterion.benchmark_group("packed");
        for bits in [4, 3] {
            for layout in [CodeLayout::InputMajor, CodeLayout::OutputMajor] {
                let matrix = matrix(bits, layout);
                let numbers = matrix.words().len() + matrix.scales().len() + matrix.zero_points().len();
                for tokens in [1, 8, 32, 512] {
                    let x = benches::numbers(tokens, FEATURES, 6);
                    let mut out = Array2::zeros((tokens, FEATURES));
                    group.throughput(Throughput::ElementsAndBytes {
                        elements: (2 * tokens * FEATURES * FEATURES) as u64,
                        bytes: 4 * numbers as u64,
                    });
                    let id = BenchmarkId::new(format!("{bits} bit, {layout:?}"), tokens);
                    group.bench_function(id, |b| b.iter(|| matrix.product(x.view(), out.view_mut())));
                }
            }
        }
        group.finish();
    });
}

fn matrix(bits: u8, layout: CodeLayout) -> PackedMatrix {
    let shape =
        PackedShape { bits, layout, out_features: FEATURES, in_features: FEATURES, group_size: GROUP_SIZE };
    let mut state = 1_u32;
    let mut word = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state ^ state >> 16
    };
    let words = (0..shape.word_count().expect("the shape is valid")).map(|_| word()).collect();
    let grid = (shape.groups(), shape.out_features);
    let scales = Array2::from_shape_simple_fn(grid, || 0.001 + word() as f32 * 1e-12);
    let zero_points = Array2::from_elem(grid, f32::from(1_u8 << (bits - 1)));
    PackedMatrix::new(shape, words, scales, zero_points).expect("the sizes fit")
}
