//! Products with a packed 4096 by 4096 matrix, in one thread.
//!
//! Prints, for each width, layout and number of tokens, the time of one product in seconds of one core, the packed bytes read
//! for each of those seconds (scales and zero points as `f32` included), and the floating point operations of the equivalent
//! dense product. The unit is processor time, so that a busy machine does not change the figures much; where the system
//! does not tell it, wall time.
//!
//! `cargo bench -p benches --bench packed`

use std::hint::black_box;
use std::time::{Duration, Instant};

use kernels::{CodeLayout, PackedMatrix, PackedShape};
use ndarray::Array2;

const FEATURES: usize = 4096;
const GROUP_SIZE: usize = 128;
/// Long enough for the system's accounting of processor time, which moves in steps of some milliseconds.
const LEAST: Duration = Duration::from_millis(150);
const ROUNDS: usize = 4;

fn main() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("one thread");
    println!("bits layout       tokens   core-ms     GB/s   GFLOP/s");
    for bits in [4, 3] {
        for layout in [CodeLayout::InputMajor, CodeLayout::OutputMajor] {
            let matrix = matrix(bits, layout);
            for tokens in [1, 8, 32, 512] {
                let seconds = pool.install(|| best_time(&matrix, tokens));
                let grid_bytes = 4 * (matrix.scales().len() + matrix.zero_points().len());
                let bytes = (4 * matrix.words().len() + grid_bytes) as f64;
                let flops = 2.0 * (tokens * FEATURES * FEATURES) as f64;
                println!(
                    "{bits:4} {:12} {tokens:6} {:9.3} {:8.2} {:9.2}",
                    format!("{layout:?}"),
                    seconds * 1e3,
                    bytes / seconds * 1e-9,
                    flops / seconds * 1e-9
                );
            }
        }
    }
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

/// Seconds of one product, the best of some rounds.
fn best_time(matrix: &PackedMatrix, tokens: usize) -> f64 {
    let x = Array2::from_shape_fn((tokens, FEATURES), |(t, k)| ((t * 31 + k * 7) % 100) as f32 * 0.01 - 0.5);
    let mut out = Array2::zeros((tokens, FEATURES));
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let (wall, start) = (Instant::now(), thread_time());
        let mut products = 0;
        while wall.elapsed() < LEAST {
            matrix.product(black_box(x.view()), out.view_mut());
            black_box(&out);
            products += 1;
        }
        let spent = match (start, thread_time()) {
            (Some(start), Some(end)) => end - start,
            _ => wall.elapsed(),
        };
        best = best.min(spent.as_secs_f64() / f64::from(products));
    }
    best
}

/// Processor time of this thread so far.
fn thread_time() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}
