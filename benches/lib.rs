//! What the benches share: criterion in the processor time of one thread, a yardstick, and matrices to work on.
//!
//! The unit is processor time of one thread, so that a busy machine does not change the figures much; where the system does not tell
//! it, wall time. Even so a figure from another run says little: compare shares of the yardstick, which is measured in the same run.

use std::fmt::{Display, Formatter};
use std::hint::black_box;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use criterion::measurement::{Measurement, ValueFormatter};
use criterion::{Criterion, Throughput};
use ndarray::Array2;

/// Runs `benches` where every parallel loop has one thread, after measuring the yardstick.
pub fn run(benches: impl FnOnce(&mut Criterion<ProcessorTime>) + Send) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    pool.expect("one thread can be started").install(|| {
        let dense = dense_rate();
        println!(
            "yardstick, the dense f32 product of two {DENSE} x {DENSE} matrices: {:.1} GFLOP/s",
            dense * 1e-9
        );
        let mut criterion = Criterion::default()
            .with_measurement(ProcessorTime)
            .without_plots()
            .sample_size(10)
            .warm_up_time(Duration::from_millis(500))
            .measurement_time(Duration::from_secs(2))
            .configure_from_args();
        benches(&mut criterion);
        criterion.final_summary();
    });
}

/// What one thread of this machine does at most, measured in the same run as what is compared with it.
#[derive(Clone, Copy, Debug)]
pub struct Peaks {
    /// Multiplications and additions a second in single precision.
    pub f32: f64,
    /// The same of bytes; that of single precision where no instruction multiplies bytes.
    pub int8: f64,
    /// Bytes a second from memory that is read once.
    pub memory: f64,
    /// Bytes a second from the last cache: of what was read just before and does not fit the first two.
    pub cache: f64,
}

impl Peaks {
    /// In one thread.
    #[must_use]
    pub fn measure() -> Self {
        const ROUNDS: usize = 1_000_000;
        let rate = |work: &dyn Fn() -> usize| work() as f64 / least_seconds(|| _ = black_box(work()));
        let f32 = rate(&|| kernels::peak::multiply_and_add(ROUNDS));
        let bytes = || kernels::peak::multiply_and_add_bytes(ROUNDS);
        let int8 = if bytes().is_some() { rate(&|| bytes().unwrap_or(0)) } else { f32 };
        let read = |mib: usize| {
            let values = vec![1.0; mib << 18];
            rate(&|| kernels::peak::read(&values))
        };
        Self { f32, int8, memory: read(512), cache: read(8) }
    }
}

impl Display for Peaks {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let Self { f32, int8, memory, cache } = self;
        write!(
            f,
            "peaks of one thread: f32 {:.0} GFLOP/s, int8 {:.0} GOP/s, memory {:.1} GB/s, cache {:.1} GB/s",
            1e-9 * f32,
            1e-9 * int8,
            1e-9 * memory,
            1e-9 * cache
        )
    }
}

/// The least processor time of `work`, in seconds, over several rounds of it.
pub fn least_seconds(mut work: impl FnMut()) -> f64 {
    /// Seconds of a round: the system's accounting moves in steps of some milliseconds.
    const ROUND: f64 = 0.04;
    const TIMES: usize = 7;
    let mut round = |calls: usize| {
        let start = thread_time();
        (0..calls).for_each(|_| work());
        (thread_time() - start).as_secs_f64() / calls as f64
    };
    let mut calls = 1;
    while round(calls) * (calls as f64) < ROUND {
        calls *= 2;
    }
    (0..TIMES).map(|_| round(calls)).fold(f64::INFINITY, f64::min)
}

/// Processor time of the thread that measures.
#[derive(Clone, Copy, Debug)]
pub struct ProcessorTime;

impl Measurement for ProcessorTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        thread_time()
    }

    fn end(&self, start: Duration) -> Duration {
        thread_time().saturating_sub(start)
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        self
    }
}

/// Elements are floating point operations, bytes are bytes; values are nanoseconds.
impl ValueFormatter for ProcessorTime {
    fn format_throughput(&self, throughput: &Throughput, value: f64) -> String {
        let rates = |count: u64| count as f64 / value;
        match *throughput {
            Throughput::Elements(count) => flops(rates(count)),
            Throughput::ElementsAndBytes { elements, bytes } => {
                format!("{}, {:.2} GB/s", flops(rates(elements)), rates(bytes))
            }
            Throughput::Bytes(count) | Throughput::BytesDecimal(count) | Throughput::Bits(count) => {
                format!("{:.2} GB/s", rates(count))
            }
        }
    }

    fn scale_values(&self, _typical: f64, values: &mut [f64]) -> &'static str {
        values.iter_mut().for_each(|value| *value *= 1e-6);
        "core-ms"
    }

    fn scale_throughputs(&self, _typical: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        let (count, unit) = match *throughput {
            Throughput::Elements(count) | Throughput::ElementsAndBytes { elements: count, .. } => {
                (count, "GFLOP/s")
            }
            Throughput::Bytes(count) | Throughput::BytesDecimal(count) | Throughput::Bits(count) => {
                (count, "GB/s")
            }
        };
        values.iter_mut().for_each(|value| *value = count as f64 / *value);
        unit
    }

    fn scale_for_machines(&self, _values: &mut [f64]) -> &'static str {
        "core-ns"
    }
}

fn flops(rate: f64) -> String {
    format!("{rate:.1} GFLOP/s ({:.0} % of dense)", 100.0 * rate * 1e9 / dense_rate())
}

/// Processor time of this thread so far.
fn thread_time() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    let system = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let system = system.and_then(|text| text.split_whitespace().next()?.parse().ok());
    system.map_or_else(|| START.get_or_init(Instant::now).elapsed(), Duration::from_nanos)
}

const DENSE: usize = 1024;

/// What one thread reaches where nothing is in its way, in f32 operations a second: a dense product that stays in cache. Measured once.
fn dense_rate() -> f64 {
    static RATE: OnceLock<f64> = OnceLock::new();
    *RATE.get_or_init(|| {
        /// Calls of one round: long enough for the system's accounting, which moves in steps of some milliseconds.
        const CALLS: usize = 20;
        let (a, b) = (numbers(DENSE, DENSE, 1), numbers(DENSE, DENSE, 2));
        let mut out = Array2::zeros((DENSE, DENSE));
        let mut round = || {
            let start = thread_time();
            for _ in 0..CALLS {
                kernels::product::product_nn(a.view(), b.view(), out.view_mut());
                black_box(&out);
            }
            (thread_time() - start).as_secs_f64() / CALLS as f64
        };
        let best = (0..5).map(|_| round()).fold(f64::INFINITY, f64::min);
        2.0 * (DENSE as f64).powi(3) / best
    })
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
