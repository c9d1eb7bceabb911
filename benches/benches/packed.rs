//! Products with a packed 4096 by 4096 matrix in groups of 128, in one thread, as a Markdown table: operations of the equivalent dense product and
//! bytes that are read, each with its share of the peak that was measured just before. Activations as they are (f32) and rounded (int8); for one
//! token also with a matrix that no cache holds, and with a dense one in sixteen bits.
//!
//! `cargo bench -p benches --bench packed [-- WORD]` prints the rows that contain the word.

use benches::{Peaks, least_seconds, numbers};
use half::f16;
use kernels::narrow::NarrowMatrix;
use kernels::{ArrangedMatrix, CodeLayout, PackedMatrix, PackedShape};
use ndarray::{Array2, ArrayView2, ArrayViewMut2};

const FEATURES: usize = 4096;
/// Rows of the matrix that no cache holds.
const MANY: usize = 65536;
const GROUP_SIZE: usize = 128;

fn main() {
    let word = std::env::args().skip(1).find(|argument| !argument.starts_with("--")).unwrap_or_default();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    pool.expect("one thread can be started").install(|| {
        let peaks = Peaks::measure();
        println!("{peaks}\n");
        println!("| bits | activations | rows | tokens | core-ms | GOP/s | of peak | GB/s | of peak |");
        println!("|---|---|---|---|---|---|---|---|---|");
        for bits in [4, 2, 3, 8] {
            for rows in [FEATURES, MANY] {
                if rows == MANY && bits != 4 {
                    continue;
                }
                let matrix = matrix(bits, rows);
                let arranged = ArrangedMatrix::new(&matrix);
                let numbers = matrix.words().len() + matrix.scales().len() + matrix.zero_points().len();
                for tokens in [1, 8, 32, 512] {
                    if rows == MANY && tokens > 1 {
                        continue;
                    }
                    let bench = Bench { peaks: &peaks, word: &word, bits, rows, columns: FEATURES, tokens };
                    bench.row("f32", 4 * numbers, peaks.f32, |x, out| matrix.product(x, out));
                    bench.row("int8", arranged.bytes(), peaks.int8, |x, out| arranged.product(x, out));
                }
            }
        }
        // A head of many short rows.
        let (rows, columns) = (49152, 576);
        let head =
            NarrowMatrix::exactly(numbers(rows, columns, 7).mapv(|x| f16::from_f32(x).to_f32()).view());
        let head = head.expect("the numbers are in half precision");
        for tokens in [1, 8] {
            let bench = Bench { peaks: &peaks, word: &word, bits: 16, rows, columns, tokens };
            bench.row("f32", 2 * rows * columns, peaks.f32, |x, out| head.product(x, out));
        }
    });
}

struct Bench<'a> {
    peaks: &'a Peaks,
    word: &'a str,
    bits: u8,
    rows: usize,
    columns: usize,
    tokens: usize,
}

impl Bench<'_> {
    fn row(
        &self,
        activations: &str,
        bytes: usize,
        peak: f64,
        product: impl Fn(ArrayView2<'_, f32>, ArrayViewMut2<'_, f32>),
    ) {
        let Self { peaks, word, bits, rows, columns, tokens } = *self;
        let name = format!("| {bits} | {activations} | {rows} | {tokens} |");
        if !name.contains(word) {
            return;
        }
        let x = numbers(tokens, columns, 6);
        let mut out = Array2::zeros((tokens, rows));
        let seconds = least_seconds(|| product(x.view(), out.view_mut()));
        let rate = (2 * tokens * columns * rows) as f64 / seconds;
        let bandwidth = bytes as f64 / seconds;
        let most = if rows == FEATURES { peaks.cache } else { peaks.memory };
        println!(
            "{name} {:.3} | {:.0} | {:.0} % | {:.1} | {:.0} % |",
            1e3 * seconds,
            1e-9 * rate,
            100.0 * rate / peak,
            1e-9 * bandwidth,
            100.0 * bandwidth / most
        );
    }
}

fn matrix(bits: u8, out_features: usize) -> PackedMatrix {
    let layout = CodeLayout::InputMajor;
    let shape = PackedShape { bits, layout, out_features, in_features: FEATURES, group_size: GROUP_SIZE };
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
