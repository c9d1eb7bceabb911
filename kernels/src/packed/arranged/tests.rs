use ndarray::s;

use super::*;
use crate::packed::tests::{LAYOUTS, WIDTHS, case, random_x, relative_error, shapes};
use crate::packed::{CodeLayout, PackedShape};

/// What the module says, in double precision: rounded activations `[tokens, in_features]` as numbers.
fn rounded(x: ArrayView2<'_, f32>, group_size: usize) -> Array2<f32> {
    let mut rounded = Array2::zeros(x.dim());
    for unit in units(x.ncols(), group_size) {
        for (token, row) in x.rows().into_iter().enumerate() {
            let row = row.slice(s![unit.clone()]);
            let largest = row.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
            let step = f64::from(largest / 127.0);
            for (place, &value) in row.iter().enumerate() {
                let code = (value * (127.0 / largest)).round_ties_even();
                rounded[[token, unit.start + place]] = (f64::from(code) * step) as f32;
            }
        }
    }
    rounded
}

/// Columns that share a step.
fn units(in_features: usize, group_size: usize) -> Vec<std::ops::Range<usize>> {
    let of_group = |first: usize| {
        (first..first + group_size).step_by(32).map(move |start| start..(start + 32).min(first + group_size))
    };
    (0..in_features).step_by(group_size).flat_map(of_group).collect()
}

fn product_on(machine: Machine, matrix: &ArrangedMatrix, x: ArrayView2<'_, f32>) -> Array2<f32> {
    let mut out = Array2::from_elem((x.nrows(), matrix.out_features()), f32::NAN);
    matrix.product_on(machine, x, out.view_mut());
    out
}

#[test]
fn products_of_every_machine_are_those_of_the_rounded_activations() {
    let mut state = 11;
    for (index, shape) in shapes().into_iter().enumerate() {
        let matrix = case(shape, index % 2 == 0, &mut state).matrix;
        let arranged = ArrangedMatrix::new(&matrix);
        let weights = matrix.dequantize();
        assert_eq!(arranged.dequantize(), weights, "{shape:?}");
        for tokens in [1, 3, 7, 17] {
            let x = random_x(tokens, shape.in_features, &mut state);
            let rounded = rounded(x.view(), shape.group_size);
            for machine in Machine::all() {
                let error = relative_error(&rounded, &weights, &product_on(machine, &arranged, x.view()));
                assert!(error < 2e-6, "{error:e} with {tokens} tokens, {machine:?}, {shape:?}");
            }
        }
    }
}

/// A largest activation of 127 in each unit makes steps of one, so that all is whole numbers.
#[test]
fn whole_numbers_are_multiplied_exactly_on_every_machine() {
    let mut state = 12;
    for bits in WIDTHS {
        for (out_features, in_features) in [(1, 7), (7, 33), (33, 172), (172, 576), (576, 1000), (1000, 1)] {
            for group_size in [1, 43, 64, in_features].into_iter().filter(|&size| in_features % size == 0) {
                let layout = CodeLayout::OutputMajor;
                let shape = PackedShape { bits, layout, out_features, in_features, group_size };
                let case = case(shape, false, &mut state);
                let zeros = case.matrix.zero_points().to_owned();
                let ones = Array2::ones(zeros.dim());
                let matrix = PackedMatrix::new(shape, case.matrix.words().to_vec(), ones, zeros).unwrap();
                let mut x = random_x(5, in_features, &mut state).mapv(|value| (value * 127.0).round());
                for unit in units(in_features, group_size) {
                    x.column_mut(unit.start).mapv_inplace(|value| 127.0_f32.copysign(value));
                }
                let exact = crate::reference_product(x.view(), matrix.dequantize().view()).mapv(|y| y as f32);
                let arranged = ArrangedMatrix::new(&matrix);
                for machine in Machine::all() {
                    assert_eq!(product_on(machine, &arranged, x.view()), exact, "{machine:?}, {shape:?}");
                }
            }
        }
    }
}

/// The largest codes and activations there are, all of one sign: no intermediate sum may saturate.
#[test]
fn the_largest_sums_do_not_overflow() {
    for bits in WIDTHS {
        let in_features = 512;
        for layout in LAYOUTS {
            let shape = PackedShape { bits, layout, out_features: 65, in_features, group_size: in_features };
            let words = vec![u32::MAX; shape.word_count().unwrap()];
            for (zero, sign) in [(0.0, 1.0), (0.0, -1.0), (f32::from((1_u16 << bits) - 1), 1.0), (0.5, -1.0)]
            {
                let grid = Array2::ones((1, 65));
                let zeros = &grid * zero;
                let matrix = PackedMatrix::new(shape, words.clone(), grid, zeros).unwrap();
                let arranged = ArrangedMatrix::new(&matrix);
                let x = Array2::from_elem((9, in_features), sign * 127.0);
                let each = f64::from(sign) * 127.0 * (f64::from((1_u32 << bits) - 1) - f64::from(zero));
                let expected = Array2::from_elem((9, 65), (each * in_features as f64) as f32);
                for machine in Machine::all() {
                    assert_eq!(
                        product_on(machine, &arranged, x.view()),
                        expected,
                        "{machine:?}, {bits} bits"
                    );
                }
            }
        }
    }
}

#[test]
fn a_token_has_the_same_product_in_any_company_and_with_any_number_of_threads() {
    let mut state = 13;
    let shape = PackedShape {
        bits: 4,
        layout: CodeLayout::OutputMajor,
        out_features: 700,
        in_features: 256,
        group_size: 64,
    };
    let matrix = ArrangedMatrix::new(&case(shape, false, &mut state).matrix);
    let x = random_x(400, 256, &mut state);
    for machine in Machine::all() {
        let all = product_on(machine, &matrix, x.view());
        for (first, tokens) in [(0, 1), (3, 2), (100, 7), (200, 9), (383, 17)] {
            let rows = s![first..first + tokens, ..];
            assert_eq!(product_on(machine, &matrix, x.slice(rows)), all.slice(rows), "{machine:?}");
        }
        for threads in [1, 2, 3, 8] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(|| product_on(machine, &matrix, x.view())), all, "{machine:?}");
        }
    }
}

#[test]
fn activations_of_any_size_and_order_have_a_product() {
    let mut state = 14;
    let shape = PackedShape {
        bits: 3,
        layout: CodeLayout::OutputMajor,
        out_features: 9,
        in_features: 200,
        group_size: 100,
    };
    let packed = case(shape, false, &mut state).matrix;
    let matrix = ArrangedMatrix::new(&packed);
    let x = random_x(6, 200, &mut state);
    let expected = product_on(Machine::best(), &matrix, x.view());
    // By columns.
    let by_column = x.t().as_standard_layout().into_owned();
    let mut out = Array2::zeros((9, 6));
    matrix.product(by_column.t(), out.view_mut().reversed_axes());
    assert_eq!(out.t(), expected);
    // A power of two changes nothing but the exponent; an outlier in one piece leaves the other as it is.
    assert_eq!(product_on(Machine::best(), &matrix, (&x * 0.25).view()), &expected * 0.25);
    for machine in Machine::all() {
        // Too small to have an inverse, zero, and none at all.
        for value in [f32::from_bits(1), 1e-38, 0.0, -0.0] {
            let tiny = Array2::from_elem((2, 200), value);
            assert_eq!(
                product_on(machine, &matrix, tiny.view()),
                Array2::zeros((2, 9)),
                "{machine:?}, {value:e}"
            );
        }
        assert_eq!(product_on(machine, &matrix, Array2::zeros((0, 200)).view()).dim(), (0, 9));
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut bad = x.clone();
            bad[[2, 150]] = value;
            let out = product_on(machine, &matrix, bad.view());
            assert!(out.row(2).iter().all(|y| y.is_nan()), "{machine:?}, {value}");
            assert_eq!(out.row(1), product_on(machine, &matrix, x.view()).row(1), "{machine:?}");
        }
    }
}
