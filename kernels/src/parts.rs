//! Inner products of the parts of rows: what is left of a quadratic form once rows are multiplied with the matrix.
//!
//! There is one row in each SIMD lane, so matrices are transposed, `[columns, width]`, and no sum runs across a vector. A row's sums are
//! the same on every vector unit: ascending over runs of 64 columns, one fused multiply-add each, and then over the runs.

use crate::arch::lanes::{Lanes, Task, Unit};

/// Rows come in multiples of this many; those beyond the last may hold anything finite.
pub const PART_LANES: usize = 16;

/// Inner products of each row's parts of `size` columns: `with_first[p] = Σ image_j first_j` over the columns of part `p`, and the
/// same of `second`, over all parts, added to `with_second` in double precision.
///
/// Shapes: `image`, `first` and `second` `[parts * size, width]`, `with_first` `[parts, width]`, `with_second` `[width]`.
///
/// # Panics
/// When the shapes do not fit each other, or `width` is not a multiple of [`PART_LANES`].
pub fn part_products(
    size: usize,
    image: &[f32],
    first: &[f32],
    second: &[f32],
    with_first: &mut [f32],
    with_second: &mut [f64],
) {
    part_products_on(Unit::widest(), Parts { size, image, first, second, with_first, with_second });
}

fn part_products_on(unit: Unit, parts: Parts<'_>) {
    let width = parts.with_second.len();
    assert_eq!(width % PART_LANES, 0, "{width} rows");
    let expected = parts.with_first.len() * parts.size;
    let found = [parts.image.len(), parts.first.len(), parts.second.len()];
    assert_eq!(found, [expected; 3], "numbers in parts of {} columns of {width} rows", parts.size);
    if expected > 0 {
        unit.run(parts);
    }
}

/// Columns whose products are added before a sum goes on.
const RUN: usize = 64;

struct Parts<'a> {
    size: usize,
    image: &'a [f32],
    first: &'a [f32],
    second: &'a [f32],
    with_first: &'a mut [f32],
    with_second: &'a mut [f64],
}

impl Task for Parts<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let width = self.with_second.len();
        let length = self.size * width;
        for (part, with_first) in self.with_first.chunks_exact_mut(width).enumerate() {
            let matrices = [self.image, self.first, self.second];
            let matrices = matrices.map(|numbers| &numbers[part * length..(part + 1) * length]);
            let mut lane = 0;
            while lane < width {
                // Two vectors hide the latency of the sums.
                if lane + 2 * L::COUNT <= width {
                    let to = (&mut with_first[lane..], &mut self.with_second[lane..]);
                    lanes_products::<L, 2>(lanes, width, lane, matrices, to);
                    lane += 2 * L::COUNT;
                } else {
                    let to = (&mut with_first[lane..], &mut self.with_second[lane..]);
                    lanes_products::<L, 1>(lanes, width, lane, matrices, to);
                    lane += L::COUNT;
                }
            }
        }
    }
}

/// The products of one part for the rows of `V` vectors, from row `lane` on.
#[inline(always)]
fn lanes_products<L: Lanes, const V: usize>(
    lanes: L,
    width: usize,
    lane: usize,
    [image, first, second]: [&[f32]; 3],
    (with_first, with_second): (&mut [f32], &mut [f64]),
) {
    let zero = lanes.splat(0.0);
    let mut totals = [[zero; V]; 2];
    let run = RUN * width;
    for ((image, first), second) in image.chunks(run).zip(first.chunks(run)).zip(second.chunks(run)) {
        let mut sums = [[zero; V]; 2];
        let rows = image.chunks_exact(width).zip(first.chunks_exact(width)).zip(second.chunks_exact(width));
        for ((image, first), second) in rows {
            let [with_first, with_second] = &mut sums;
            for (v, (with_first, with_second)) in with_first.iter_mut().zip(with_second).enumerate() {
                let at = lane + v * L::COUNT;
                let image = lanes.load(&image[at..]);
                *with_first = lanes.multiply_add(image, lanes.load(&first[at..]), *with_first);
                *with_second = lanes.multiply_add(image, lanes.load(&second[at..]), *with_second);
            }
        }
        for (totals, sums) in totals.iter_mut().zip(sums) {
            for (total, sum) in totals.iter_mut().zip(sums) {
                *total = lanes.add(*total, sum);
            }
        }
    }
    let mut products = [0.0_f32; 2 * PART_LANES];
    for v in 0..V {
        lanes.store(totals[0][v], &mut with_first[v * L::COUNT..]);
        lanes.store(totals[1][v], &mut products[v * L::COUNT..]);
    }
    for (sum, &product) in with_second.iter_mut().zip(&products[..V * L::COUNT]) {
        *sum += f64::from(product);
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, s};

    use super::*;
    use crate::sample::Sample;

    const SHAPES: [(usize, usize, usize); 7] =
        [(1, 1, 16), (7, 3, 32), (33, 2, 48), (64, 5, 64), (172, 2, 16), (576, 1, 32), (1000, 1, 80)];

    fn products(unit: Unit, size: usize, matrices: &[Array2<f32>; 3]) -> (Vec<f32>, Vec<f64>) {
        let (columns, width) = matrices[0].dim();
        let (mut with_first, mut with_second) = (vec![0.0; columns / size * width], vec![1.0; width]);
        let [image, first, second] = matrices.each_ref().map(|matrix| matrix.as_slice().unwrap());
        let (with_first_to, with_second_to) = (&mut with_first[..], &mut with_second[..]);
        let parts =
            Parts { size, image, first, second, with_first: with_first_to, with_second: with_second_to };
        part_products_on(unit, parts);
        (with_first, with_second)
    }

    #[test]
    fn every_unit_gives_the_same_bits_and_those_of_the_definition() {
        for (size, parts, width) in SHAPES {
            let mut sample = Sample::new((size * 100 + width) as u64);
            let matrices: [_; 3] = std::array::from_fn(|_| sample.matrix(parts * size, width));
            let portable = products(Unit::all()[0], size, &matrices);
            for unit in Unit::all() {
                assert_eq!(products(unit, size, &matrices), portable, "{unit:?}, {size} x {parts} x {width}");
            }
            let exact = |part: usize, row: usize, with: &Array2<f32>| -> f64 {
                let columns = s![part * size..(part + 1) * size, row];
                let pairs = matrices[0].slice(columns).into_iter().zip(with.slice(columns));
                pairs.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
            };
            let tolerance = 1e-5 * (parts * size) as f64;
            for row in 0..width {
                for part in 0..parts {
                    let found = f64::from(portable.0[part * width + row]);
                    assert!((found - exact(part, row, &matrices[1])).abs() < tolerance);
                }
                let expected = 1.0 + (0..parts).map(|part| exact(part, row, &matrices[2])).sum::<f64>();
                assert!((portable.1[row] - expected).abs() < tolerance);
            }
        }
    }
}
