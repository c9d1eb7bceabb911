//! Bytes as the reference implementations write them.

use crate::parts::{find, group, linear, scheme};
use formats::Dtype;
use model::linear::Role;
use ndarray::Array2;
use quantizer::levels::Levels;
use quantizer::scheme::{Granularity, ScaleDtype, Scheme, Symmetry};
use quantizer::tensor::QuantizedTensor;

#[test]
fn files_meet_the_words_of_the_reference_implementations() {
    // Zero points as GPTQModel stores them, version 1 for symmetric grids and version 2 for asymmetric ones with the same zero.
    let symmetric: [(u8, &[u32], &[u32]); 4] = [
        (2, &[0x5555_5555; 2], &[0xAAAA_AAAA; 2]),
        (3, &[0xDB6D_B6DB, 0xB6DB_6DB6, 0x6DB6_DB6D], &[0x2492_4924, 0x4924_9249, 0x9249_2492]),
        (4, &[0x7777_7777; 4], &[0x8888_8888; 4]),
        (8, &[0x7F7F_7F7F; 8], &[0x8080_8080; 8]),
    ];
    for (bits, first, second) in symmetric {
        for (gptq, symmetry, words) in [
            (find("gptq"), Symmetry::Symmetric, first),
            (find("gptq"), Symmetry::Asymmetric, second),
            (find("gptq-v2"), Symmetry::Symmetric, second),
        ] {
            let scheme = scheme(gptq, bits, Granularity::PerChannel, symmetry, Dtype::F16);
            let linear = linear(0, Role::Up, (32, 32));
            let zeros = (symmetry == Symmetry::Asymmetric)
                .then(|| Array2::from_elem((32, 1), scheme.bits.symmetric_zero()));
            let codes = Array2::from_shape_fn((32, 32), |(_, column)| ((5 * column + 3) % (1 << bits)) as u8);
            let tensor = QuantizedTensor::new(scheme, codes, Array2::ones((32, 1)), zeros).unwrap();
            let data = gptq.encode(&linear, &tensor);
            let words: Vec<u8> =
                words.iter().take(usize::from(bits)).flat_map(|word| word.to_le_bytes()).collect();
            assert_eq!(data[1].bytes[..words.len()], words, "{bits} bits");
            let repeated = data[1].bytes.chunks(words.len()).all(|part| *part == words[..part.len()]);
            assert!(repeated, "{bits} bits");
            if bits == 3 {
                // The first stream runs down the first column of [3, 32] words.
                let down: Vec<u32> = [0, 1, 2]
                    .map(|row| u32::from_le_bytes(data[0].bytes[128 * row..][..4].try_into().unwrap()))
                    .to_vec();
                assert_eq!(down, [0x43C6_7543, 0x7543_C675, 0xC675_43C6]);
            }
            assert_eq!(data[2].bytes, [0x00, 0x3C].repeat(32));
            assert_eq!(data[3].bytes, [0; 128]);
        }
    }
    // AutoAWQ 0.2.9: eight outputs of one input.
    let format = find("awq");
    let scheme_of = scheme(format, 4, Granularity::PerChannel, Symmetry::Asymmetric, Dtype::F16);
    let ramp = |first: u8| Array2::from_shape_fn((8, 16), |(row, _)| first + row as u8);
    let zeros = Array2::from_shape_fn((8, 1), |(row, _)| row as u8);
    let tensor = QuantizedTensor::new(scheme_of, ramp(1), Array2::ones((8, 1)), Some(zeros)).unwrap();
    let data = format.encode(&linear(0, Role::Up, (8, 16)), &tensor);
    assert_eq!(data[0].bytes, 0x8642_7531_u32.to_le_bytes().repeat(16));
    assert_eq!(data[1].bytes, 0x7531_6420_u32.to_le_bytes());
    let tensor = QuantizedTensor::new(
        Scheme { symmetry: Symmetry::Symmetric, ..scheme_of },
        ramp(0),
        Array2::ones((8, 1)),
        None,
    );
    let data = format.encode(&linear(0, Role::Up, (8, 16)), &tensor.unwrap());
    assert_eq!(data[1].bytes, [0x88; 4]);
    // mlx 0.32.4: codes 0 to 15 twice, scale 0.0123 in half, bias -0.0984.
    let format = find("mlx");
    let scheme_of = scheme(format, 4, group(32), Symmetry::Symmetric, Dtype::F16);
    let codes = Array2::from_shape_fn((1, 32), |(_, column)| (column % 16) as u8);
    let scale = Array2::from_elem((1, 1), ScaleDtype::F16.round(0.0123));
    let tensor = QuantizedTensor::new(scheme_of, codes, scale, None).unwrap();
    let data = format.encode(&linear(0, Role::Up, (1, 32)), &tensor);
    let words = [0x7654_3210_u32, 0xFEDC_BA98, 0x7654_3210, 0xFEDC_BA98];
    assert_eq!(data[0].bytes, words.map(u32::to_le_bytes).concat());
    assert_eq!((&data[1].bytes[..], &data[2].bytes[..]), (&[0x4C, 0x22][..], &[0x4C, 0xAE][..]));
    // compressed-tensors 0.20: zero points -8, -7, -3, 0, 1, 5, 7, 2 of eight outputs.
    let format = find("compressed-tensors");
    let scheme = scheme(format, 4, Granularity::PerChannel, Symmetry::Asymmetric, Dtype::Bf16);
    let zeros = Array2::from_shape_vec((8, 1), vec![0, 1, 5, 8, 9, 13, 15, 10]).unwrap();
    let codes = Array2::from_shape_fn((8, 40), |(_, column)| ((5 * column + 3) % 16) as u8);
    let tensor = QuantizedTensor::new(scheme, codes, Array2::ones((8, 1)), Some(zeros)).unwrap();
    let data = format.encode(&linear(0, Role::Up, (8, 40)), &tensor);
    assert_eq!(data[0].bytes[..8], [0x83, 0x2D, 0xC7, 0x61, 0x0B, 0xA5, 0x4F, 0xE9]);
    assert_eq!(data[1].bytes, [0x80, 0x3F].repeat(8));
    assert_eq!(data[2].bytes, [8, 0, 0, 0, 0, 0, 0, 0, 40, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(data[3].bytes, 0xAFD9_8510_u32.to_le_bytes());
}

/// Codes of 0, 0.5, 1, 1.5, 2, 3, 4, 6, their negatives from -0.5 on, and 0, twice.
const MLX_VALUES: [u8; 16] = [7, 8, 9, 10, 11, 12, 13, 14, 6, 5, 4, 3, 2, 1, 0, 7];
const MLX_WORDS: [u8; 8] = [0x10, 0x32, 0x54, 0x76, 0xA9, 0xCB, 0xED, 0x0F];

#[test]
fn four_bit_floats_on_two_levels_are_told_what_they_share() {
    let format = find("compressed-tensors:nvfp4");
    let scheme = scheme(format, 4, group(16), Symmetry::Symmetric, Dtype::Bf16);
    // The largest weight, 0.3, has a scale of 0.05: 204.8 times 2^-12.
    assert_eq!(scheme.scale_dtype, ScaleDtype::SharedE4m3 { exponent: -12 });
    let codes = Array2::from_shape_fn((1, 32), |(_, column)| (column % 15) as u8);
    let scales = ndarray::array![[208.0 / 4096.0, 1.0 / 4096.0]];
    let tensor = QuantizedTensor::new(scheme, codes, scales, None).unwrap();
    let data = format.encode(&linear(0, Role::Up, (1, 32)), &tensor);
    assert_eq!(data[1].bytes, [0x75, 0x38]);
    assert_eq!(
        (data[2].name.rsplit('.').next(), &data[2].bytes[..]),
        (Some("weight_global_scale"), &4096.0_f32.to_le_bytes()[..])
    );
}

#[test]
fn numbers_have_the_bits_that_their_standards_say() {
    // Codes, a scale, the bytes of both.
    type Case = (&'static str, &'static [u8], f32, &'static [u8], &'static [u8]);
    let shape = (1, 32);
    // Two's complement; the bits of E4M3, from 448 down to its negative; pairs of E2M1 on a scale of 2^-3.
    let cases: [Case; 6] = [
        ("compressed-tensors:w8a8-int8", &[0, 127, 128, 255], 0.5, &[0x80, 0xFF, 0x00, 0x7F], &[0x00, 0x3F]),
        (
            "compressed-tensors:fp8",
            &[252, 182, 126, 125, 0],
            2.0,
            &[0x7E, 0x38, 0x00, 0x81, 0xFE],
            &[0x00, 0x40],
        ),
        ("compressed-tensors:mxfp4", &[0, 14, 7, 8, 6, 9], 0.125, &[0x7F, 0x10, 0x29], &[124]),
        // The values that mlx 0.32.4 was given: 0 to 6, -0.5 to -6, 0.
        ("mlx:mxfp4", &MLX_VALUES, 1.0, &MLX_WORDS, &[127]),
        ("mlx:nvfp4", &MLX_VALUES, 1.0, &MLX_WORDS, &[0x38, 0x38]),
        ("mlx:mxfp8", &[126, 174, 182, 206], 0.015625, &[0x00, 0x30, 0x38, 0x50], &[0x79]),
    ];
    for (id, codes, scale, numbers, scales) in cases {
        let format = find(id);
        let scheme = scheme(format, 8, Granularity::PerChannel, Symmetry::Symmetric, Dtype::Bf16);
        let codes = Array2::from_shape_fn(shape, |(_, column)| codes[column % codes.len()]);
        let of_groups = Array2::from_elem(scheme.granularity.scale_shape(1, 32), scale);
        let tensor = QuantizedTensor::new(scheme, codes, of_groups, None).unwrap();
        let data = format.encode(&linear(0, Role::Up, shape), &tensor);
        assert_eq!(&data[0].bytes[..numbers.len()], numbers, "{id}");
        assert_eq!(data[1].bytes, scales, "{id}");
    }
    assert_eq!(Levels::E4m3.table().unwrap()[182], 1.0);
}
