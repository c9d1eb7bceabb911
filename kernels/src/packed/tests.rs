use ndarray::s;

use super::*;

pub(super) const WIDTHS: [u8; 7] = [2, 3, 4, 5, 6, 7, 8];
pub(super) const LAYOUTS: [CodeLayout; 2] = [CodeLayout::OutputMajor, CodeLayout::InputMajor];

/// The next value of a linear congruential generator, its high bits.
fn random(state: &mut u64) -> u32 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 32) as u32
}

pub(super) fn random_x(tokens: usize, in_features: usize, state: &mut u64) -> Array2<f32> {
    Array2::from_shape_simple_fn((tokens, in_features), || random(state) as f32 / (1_u64 << 31) as f32 - 1.0)
}

/// Packs one bit at a time, which shares no arithmetic with the readers.
fn pack(shape: PackedShape, codes: ArrayView2<'_, u8>) -> Vec<u32> {
    let mut words = vec![0_u32; shape.word_count().unwrap()];
    for ((output, column), &code) in codes.indexed_iter() {
        for bit in 0..usize::from(shape.bits) {
            let position = column * usize::from(shape.bits) + bit;
            let at = match shape.layout {
                CodeLayout::OutputMajor => output * shape.words_per_output() + position / 32,
                CodeLayout::InputMajor => position / 32 * shape.out_features + output,
            };
            words[at] |= u32::from(code >> bit & 1) << (position % 32);
        }
    }
    words
}

pub(super) struct Case {
    pub(super) codes: Array2<u8>,
    pub(super) matrix: PackedMatrix,
}

/// Random codes, scales of both signs, and zero points that are all `2^(bits-1)` or any code.
pub(super) fn case(shape: PackedShape, symmetric: bool, state: &mut u64) -> Case {
    let max_code = (1_u32 << shape.bits) - 1;
    let codes = Array2::from_shape_simple_fn((shape.out_features, shape.in_features), || {
        (random(state) & max_code) as u8
    });
    let grid = (shape.groups(), shape.out_features);
    let scales = Array2::from_shape_simple_fn(grid, || {
        let magnitude = 0.001 + (random(state) % 1000) as f32 * 1e-5;
        if random(state).is_multiple_of(2) { magnitude } else { -magnitude }
    });
    let zero_points = Array2::from_shape_simple_fn(grid, || {
        if symmetric { (1 << (shape.bits - 1)) as f32 } else { (random(state) & max_code) as f32 }
    });
    let matrix = PackedMatrix::new(shape, pack(shape, codes.view()), scales, zero_points).unwrap();
    Case { codes, matrix }
}

/// Every width and layout on awkward sizes, with every kind of group that divides the columns.
pub(super) fn shapes() -> Vec<PackedShape> {
    let mut shapes = Vec::new();
    for bits in WIDTHS {
        for layout in LAYOUTS {
            for (out_features, in_features) in [
                (1, 7),
                (7, 1),
                (33, 172),
                (172, 576),
                (576, 32),
                (5, 1000),
                (1000, 33),
                (64, 256),
                (130, 96),
            ] {
                if layout == CodeLayout::InputMajor && in_features * usize::from(bits) % 32 != 0 {
                    continue;
                }
                for group_size in [1, 4, 32, 43, 64, in_features] {
                    if in_features % group_size == 0 {
                        shapes.push(PackedShape { bits, layout, out_features, in_features, group_size });
                    }
                }
            }
        }
    }
    shapes
}

/// Largest error, over the largest value that terms of these sizes and random signs would typically sum to.
pub(super) fn relative_error(x: &Array2<f32>, weights: &Array2<f32>, found: &Array2<f32>) -> f64 {
    let expected = reference_product(x.view(), weights.view());
    assert_eq!(found.dim(), expected.dim());
    assert!(found.iter().all(|y| y.is_finite()));
    let worst = found.iter().zip(&expected).map(|(&a, &b)| (f64::from(a) - b).abs()).fold(0.0, f64::max);
    let squared = |values: &Array2<f32>| values.mapv(|value| value * value);
    let typical = reference_product(squared(x).view(), squared(weights).view()).mapv(f64::sqrt);
    let largest = typical.into_iter().chain(expected.mapv(f64::abs)).fold(f64::MIN_POSITIVE, f64::max);
    worst / largest
}

#[test]
fn unpacked_codes_are_the_packed_ones() {
    let mut state = 1;
    for shape in shapes() {
        let case = case(shape, false, &mut state);
        for machine in Machine::all() {
            assert_eq!(case.matrix.unpack_codes_on(machine), case.codes, "{machine:?}, {shape:?}");
        }
    }
}

/// Words that other implementations wrote: compressed-tensors 0.20.0 `pack_to_int32` for `(5 i + 3) mod 2^bits`.
#[test]
fn words_of_compressed_tensors_unpack_to_its_codes() {
    let golden: [(u8, usize, &[u32]); 8] = [
        (2, 32, &[0x9393_9393, 0x9393_9393]),
        (3, 32, &[0x43C6_7543, 0x7543_C675, 0xC675_43C6]),
        (3, 40, &[0x43C6_7543, 0x7543_C675, 0xC675_43C6, 0x00C6_7543]),
        (4, 32, &[0x61C7_2D83, 0xE94F_A50B, 0x61C7_2D83, 0xE94F_A50B]),
        (5, 32, &[0x7979_3503, 0xFD56_0B30, 0x7713_7249, 0x1BB4_5871, 0xF668_F514]),
        (6, 32, &[0x1748_D203, 0x5C2B_9A17, 0x3891_3FEB, 0x2789_D613, 0x503B_DB1B, 0x7995_0F28]),
        (7, 32, &[0x7243_4403, 0x2B4C_84E1, 0x23F7_4D58, 0x6C53_9D26, 0xC766_7C57, 0x4140_7BED, 0x3C64_A0F1]),
        (8, 12, &[0x120D_0803, 0x2621_1C17, 0x3A35_302B]),
    ];
    for (bits, in_features, words) in golden {
        for layout in LAYOUTS {
            let shape = PackedShape { bits, layout, out_features: 1, in_features, group_size: in_features };
            if shape.word_count().is_err() {
                assert_eq!((bits, in_features, layout), (3, 40, CodeLayout::InputMajor));
                continue;
            }
            let grid = Array2::ones((1, 1));
            let matrix = PackedMatrix::new(shape, words.to_vec(), grid.clone(), grid).unwrap();
            let expected =
                Array2::from_shape_fn((1, in_features), |(_, i)| ((5 * i + 3) % (1 << bits)) as u8);
            assert_eq!(matrix.unpack_codes(), expected, "{bits} bits, {layout:?}");
        }
    }
}

#[test]
fn a_weight_is_scale_times_code_minus_zero_point() {
    let mut state = 2;
    for shape in shapes() {
        for symmetric in [false, true] {
            let Case { codes, matrix } = case(shape, symmetric, &mut state);
            let expected = Array2::from_shape_fn(codes.dim(), |(output, column)| {
                let at = [column / shape.group_size, output];
                matrix.scales()[at] * (f32::from(codes[[output, column]]) - matrix.zero_points()[at])
            });
            for machine in Machine::all() {
                assert_eq!(matrix.dequantize_on(machine), expected, "{machine:?}, {shape:?}");
            }
        }
    }
}

#[test]
fn products_of_every_machine_agree_with_double_precision() {
    let mut state = 3;
    for (index, shape) in shapes().into_iter().enumerate() {
        let matrix = case(shape, index % 2 == 0, &mut state).matrix;
        let weights = matrix.dequantize();
        for tokens in [1, 3, 7, 17] {
            let x = random_x(tokens, shape.in_features, &mut state);
            for machine in Machine::all() {
                let mut out = Array2::from_elem((tokens, shape.out_features), f32::NAN);
                matrix.product_on(machine, x.view(), out.view_mut());
                let error = relative_error(&x, &weights, &out);
                assert!(error < 2e-6, "{error:e} with {tokens} tokens, {machine:?}, {shape:?}");
            }
        }
    }
}

#[test]
fn the_reference_is_exact_on_integers() {
    let x = Array2::from_shape_fn((2, 3), |(t, k)| (t * 3 + k) as f32);
    let weights = Array2::from_shape_fn((4, 3), |(n, k)| (n * 3 + k) as f32 - 5.0);
    assert_eq!(reference_product(x.view(), weights.view()), x.dot(&weights.t()).mapv(f64::from));
}

#[test]
fn strided_activations_and_outputs_give_the_same_product() {
    let mut state = 4;
    let shape = PackedShape {
        bits: 4,
        layout: CodeLayout::InputMajor,
        out_features: 70,
        in_features: 64,
        group_size: 32,
    };
    let matrix = case(shape, false, &mut state).matrix;
    for tokens in [3, 40] {
        let x = random_x(tokens, 64, &mut state);
        let mut expected = Array2::zeros((tokens, 70));
        matrix.product(x.view(), expected.view_mut());
        let x_by_column = x.t().as_standard_layout().into_owned();
        let mut out_by_column = Array2::zeros((70, tokens));
        matrix.product(x_by_column.t(), out_by_column.view_mut().reversed_axes());
        assert_eq!(out_by_column.t(), expected);
    }
}

#[test]
fn grids_in_column_order_are_accepted() {
    let mut state = 5;
    let shape = PackedShape {
        bits: 3,
        layout: CodeLayout::OutputMajor,
        out_features: 9,
        in_features: 40,
        group_size: 8,
    };
    let Case { codes, matrix } = case(shape, false, &mut state);
    let by_column = |grid: ArrayView2<'_, f32>| grid.t().as_standard_layout().into_owned().reversed_axes();
    let (scales, zeros) = (by_column(matrix.scales()), by_column(matrix.zero_points()));
    assert!(!scales.is_standard_layout());
    let other = PackedMatrix::new(shape, pack(shape, codes.view()), scales, zeros).unwrap();
    assert_eq!(other, matrix);
    assert!(other.scales().is_standard_layout());
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let shape = PackedShape {
        bits: 4,
        layout: CodeLayout::OutputMajor,
        out_features: 4,
        in_features: 12,
        group_size: 6,
    };
    let build = |shape, words: usize, scales, zeros| {
        PackedMatrix::new(shape, vec![0; words], Array2::zeros(scales), Array2::zeros(zeros))
    };
    assert!(build(shape, 8, (2, 4), (2, 4)).is_ok());
    let refused = [
        (build(PackedShape { bits: 1, ..shape }, 8, (2, 4), (2, 4)), PackedShapeError::Bits { found: 1 }),
        (build(PackedShape { bits: 9, ..shape }, 8, (2, 4), (2, 4)), PackedShapeError::Bits { found: 9 }),
        (
            build(PackedShape { out_features: 0, ..shape }, 0, (2, 0), (2, 0)),
            PackedShapeError::Empty { out_features: 0, in_features: 12 },
        ),
        (
            build(PackedShape { group_size: 0, ..shape }, 8, (2, 4), (2, 4)),
            PackedShapeError::GroupSize { group_size: 0, in_features: 12 },
        ),
        (
            build(PackedShape { group_size: 5, ..shape }, 8, (2, 4), (2, 4)),
            PackedShapeError::GroupSize { group_size: 5, in_features: 12 },
        ),
        (
            build(PackedShape { layout: CodeLayout::InputMajor, ..shape }, 8, (2, 4), (2, 4)),
            PackedShapeError::PartialWord { in_features: 12, bits: 4 },
        ),
        (
            build(PackedShape { out_features: usize::MAX / 8, ..shape }, 8, (2, 4), (2, 4)),
            PackedShapeError::Overflow { out_features: usize::MAX / 8, in_features: 12 },
        ),
        (
            build(PackedShape { in_features: usize::MAX / 4, group_size: 1, ..shape }, 8, (2, 4), (2, 4)),
            PackedShapeError::Overflow { out_features: 4, in_features: usize::MAX / 4 },
        ),
        (build(shape, 7, (2, 4), (2, 4)), PackedShapeError::Words { expected: 8, found: 7 }),
        (
            build(shape, 8, (4, 2), (2, 4)),
            PackedShapeError::Grid { what: "scales", expected: (2, 4), found: (4, 2) },
        ),
        (
            build(shape, 8, (2, 4), (1, 4)),
            PackedShapeError::Grid { what: "zero points", expected: (2, 4), found: (1, 4) },
        ),
    ];
    for (found, expected) in refused {
        assert_eq!(found, Err(expected));
    }
}

/// More outputs than a tile, more columns than a chunk, and every remainder of tokens.
#[test]
fn products_of_many_tokens_are_the_products_of_each_some() {
    let mut state = 6;
    let shape = PackedShape {
        bits: 3,
        layout: CodeLayout::InputMajor,
        out_features: 290,
        in_features: 576,
        group_size: 64,
    };
    let matrix = case(shape, false, &mut state).matrix;
    let x = random_x(410, 576, &mut state);
    for machine in Machine::all() {
        let product = |x: ArrayView2<'_, f32>| {
            let mut out = Array2::from_elem((x.nrows(), 290), f32::NAN);
            matrix.product_on(machine, x, out.view_mut());
            out
        };
        let all = product(x.view());
        for (first, tokens) in [(0, 17), (100, 18), (200, 19), (300, 20), (320, 21), (380, 22)] {
            let rows = s![first..first + tokens, ..];
            assert_eq!(product(x.slice(rows)), all.slice(rows), "{machine:?}, {tokens} tokens");
        }
        let few = product(x.slice(s![..16, ..]));
        for tokens in 1..16 {
            assert_eq!(product(x.slice(s![..tokens, ..])), few.slice(s![..tokens, ..]), "{machine:?}");
        }
    }
}

#[test]
fn products_are_the_same_for_any_number_of_threads() {
    let mut state = 7;
    let shape = PackedShape {
        bits: 4,
        layout: CodeLayout::OutputMajor,
        out_features: 700,
        in_features: 256,
        group_size: 64,
    };
    let matrix = case(shape, false, &mut state).matrix;
    let x = random_x(400, 256, &mut state);
    for tokens in [1, 9, 400] {
        let product = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut out = Array2::from_elem((tokens, 700), f32::NAN);
            pool.install(|| matrix.product(x.slice(s![..tokens, ..]), out.view_mut()));
            out
        };
        let one = product(1);
        assert!(one.iter().all(|y| y.is_finite()));
        for threads in [2, 3, 8] {
            assert_eq!(product(threads), one);
        }
    }
}

#[test]
fn no_tokens_are_no_work() {
    let shape = PackedShape {
        bits: 2,
        layout: CodeLayout::OutputMajor,
        out_features: 3,
        in_features: 5,
        group_size: 5,
    };
    let matrix = case(shape, true, &mut 8).matrix;
    matrix.product(Array2::zeros((0, 5)).view(), Array2::zeros((0, 3)).view_mut());
}
