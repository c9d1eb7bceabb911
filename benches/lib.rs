//! What the benches share: one thread, its processor time, a yardstick, and matrices to work on.
//!
//! The unit is processor time of one thread, so that a busy machine does not change the figures much; where the system does
//! not tell it, wall time. Even so a figure from another run says little: compare shares of the yardstick, which is
//! measured in the same run.

use std::hint::black_box;
use std::time::{Duration, Instant};

use ndarray::Array2;

/// Seconds that are long enough for the system's accounting of processor time, which moves in steps of some milliseconds.
const LEAST: f64 = 0.15;

/// Runs `work` where every parallel loop has this one thread.
pub fn on_one_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    pool.expect("one thread can be started").install(work)
}

/// Processor seconds of one call of `work` on what `prepare` makes, which is not counted: the best of `rounds`, each of as many
/// calls as can be measured.
pub fn best_seconds<T, R>(
    rounds: usize,
    mut prepare: impl FnMut() -> T,
    mut work: impl FnMut(T) -> R,
) -> f64 {
    let mut best = f64::INFINITY;
    let (mut calls, mut measured) = (1, 0);
    while measured < rounds {
        let inputs: Vec<T> = (0..calls).map(|_| prepare()).collect();
        let spent = seconds_of(|| {
            for input in inputs {
                black_box(work(black_box(input)));
            }
        });
        if spent >= LEAST {
            best = best.min(spent / calls as f64);
            measured += 1;
        } else {
            let missing = (1.2 * LEAST / spent).clamp(2.0, 10.0);
            calls = (calls as f64 * missing).ceil() as usize;
        }
    }
    best
}

/// Processor seconds of this thread for `work`.
fn seconds_of(work: impl FnOnce()) -> f64 {
    let (wall, start) = (Instant::now(), thread_time());
    work();
    let spent = match (start, thread_time()) {
        (Some(start), Some(end)) => end - start,
        _ => wall.elapsed(),
    };
    spent.as_secs_f64()
}

/// Processor time of this thread so far.
fn thread_time() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

/// What one thread reaches where nothing is in its way: the dense product of two 1024 x 1024 matrices, which stay in cache.
#[derive(Clone, Copy, Debug)]
pub struct Yardstick {
    /// Floating point operations a second in single precision.
    pub single: f64,
    /// The same in double precision: half of it, as a register holds half as many numbers.
    pub double: f64,
}

impl Yardstick {
    /// Measures and prints it. To be called [`on_one_thread`].
    #[must_use]
    pub fn measure() -> Self {
        const SIZE: usize = 1024;
        const ROUNDS: usize = 4;
        let (a, b) = (numbers(SIZE, SIZE, 1), numbers(SIZE, SIZE, 2));
        let mut out = Array2::zeros((SIZE, SIZE));
        let product = |()| kernels::product::product_nn(a.view(), b.view(), out.view_mut());
        let single = 2.0 * (SIZE as f64).powi(3) / best_seconds(ROUNDS, || (), product);
        println!(
            "yardstick, the dense product of two {SIZE} x {SIZE} matrices in f32: {:.1} GFLOP/s; f64 counts as half",
            single * 1e-9
        );
        Self { single, double: single / 2.0 }
    }
}

/// `[rows, columns]` of numbers with mean 0 and variance 1, the same for the same seed.
#[must_use]
pub fn numbers(rows: usize, columns: usize, seed: u64) -> Array2<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0xd1b5_4a32_d192_ed03;
    Array2::from_shape_simple_fn((rows, columns), || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / (1_u32 << 24) as f32 - 0.5) * 12_f32.sqrt()
    })
}

/// Inputs `[tokens, features]` as a linear sees them: features of uneven size, each correlated with its neighbours.
#[must_use]
pub fn activations(tokens: usize, features: usize) -> Array2<f32> {
    let scales = numbers(1, features, 3).mapv(f32::exp);
    let mut inputs = numbers(tokens, features, 4);
    for mut row in inputs.rows_mut() {
        let mut last = 0.0;
        for (value, scale) in row.iter_mut().zip(&scales) {
            last = 0.8 * last + *value;
            *value = last * scale;
        }
    }
    inputs
}
