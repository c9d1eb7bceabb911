//! Products with a packed 4096 by 4096 matrix, in one thread.
//!
//! Prints, for each width, layout and number of tokens, the time of one product in seconds of one core, the packed bytes read
//! for each of those seconds (scales and zero points as `f32` included), and the floating point operations of the equivalent
//! dense product, alone and as a share of what a dense product reaches in the same run.
//!
//! `cargo bench -p benches --bench packed`

use benches::{Yardstick, best_seconds, on_one_thread};
use kernels::{CodeLayout, PackedMatrix, PackedShape};
use ndarray::Array2;

const FEATURES: usize = 4096;
const GROUP_SIZE: usize = 128;
const ROUNDS: usize = 4;

fn main() {
    on_one_thread(|| {
        let yardstick = Yardstick::measure();
        println!("bits layout       tokens   core-ms     GB/s   GFLOP/s   of dense");
        for bits in [4, 3] {
            for layout in [CodeLayout::InputMajor, CodeLayout::OutputMajor] {
                let matrix = matrix(bits, layout);
                for tokens in [1, 8, 32, 512] {
                    print_time(&matrix, tokens, &yardstick);
                }
            }
        }
    });
}

fn print_time(matrix: &PackedMatrix, tokens: usize, yardstick: &Yardstick) {
    let x = Array2::from_shape_fn((tokens, FEATURES), |(t, k)| ((t * 31 + k * 7) % 100) as f32 * 0.01 - 0.5);
    let mut out = Array2::zeros((tokens, FEATURES));
    let seconds = best_seconds(ROUNDS, || (), |()| matrix.product(x.view(), out.view_mut()));
    let PackedShape { bits, layout, .. } = matrix.shape();
    let bytes = (4 * (matrix.words().len() + matrix.scales().len() + matrix.zero_points().len())) as f64;
    let rate = 2.0 * (tokens * FEATURES * FEATURES) as f64 / seconds;
    println!(
        "{bits:4} {:12} {tokens:6} {:9.3} {:8.2} {:9.2} {:8.0} %",
        format!("{layout:?}"),
        seconds * 1e3,
        bytes / seconds * 1e-9,
        rate * 1e-9,
        100.0 * rate / yardstick.single
    );
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
