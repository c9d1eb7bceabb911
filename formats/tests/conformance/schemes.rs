//! One linear in every format, of several shapes and on every scheme.

use crate::parts::{checkpoints, find, group, linear, planned, quantization, scheme, solution, write};
use formats::target::{self, PlannedLinear, TargetFormat};
use formats::{Checkpoint, Dtype};
use model::linear::Role;
use quantizer::levels::Levels;
use quantizer::scheme::{Granularity, ScaleDtype, Scheme, Symmetry};
use quantizer::tensor::{Offsets, QuantizedTensor};

/// What a format is known to hold; none where nobody wrote that down, and its own word counts.
fn claimed(format: &dyn TargetFormat, scheme: Scheme, shape: (usize, usize)) -> Option<bool> {
    let bits = scheme.bits.get();
    let holds = match format.id() {
        "gptq" | "gptq-v2" => {
            let whole_words = |features: usize| (features * usize::from(bits)).is_multiple_of(32);
            [2, 3, 4, 8].contains(&bits) && whole_words(shape.0) && whole_words(shape.1)
        }
        "awq" => bits == 4 && shape.0.is_multiple_of(8),
        "compressed-tensors:mxfp4" | "mlx:mxfp4" | "mlx:mxfp8" => shape.1.is_multiple_of(32),
        "compressed-tensors:nvfp4" | "mlx:nvfp4" => shape.1.is_multiple_of(16),
        id if id.starts_with("compressed-tensors") => true,
        "nf4" | "fp4" | "nf4:double" | "fp4:double" => {
            let Granularity::PerGroup(size) = scheme.granularity else { return Some(false) };
            lowered(size.get(), shape.1).is_some_and(|size| size >= 32 && size.is_power_of_two())
        }
        "mlx" => {
            let group = match scheme.granularity {
                Granularity::PerGroup(size) => lowered(size.get(), shape.1),
                Granularity::PerChannel | Granularity::PerTensor => None,
            };
            bits != 7 && scheme.symmetry == Symmetry::Symmetric && [32, 64, 128].map(Some).contains(&group)
        }
        _ => return None,
    };
    Some(holds)
}

/// The largest size that divides the width, of `asked` and what halving leaves of it, and of the powers of two below.
fn lowered(asked: usize, width: usize) -> Option<usize> {
    let halves = |size: usize| asked.is_multiple_of(size) && (asked / size).is_power_of_two();
    (16..=asked)
        .rev()
        .filter(|&size| size.is_power_of_two() || halves(size))
        .find(|size| width.is_multiple_of(*size))
}

#[test]
fn what_a_format_claims_comes_back_exactly_and_the_rest_is_refused_with_a_reason() {
    let granularities =
        [group(16), group(48), group(64), group(1024), Granularity::PerChannel, Granularity::PerTensor];
    let (mut written, mut seen) = (0, std::collections::HashSet::new());
    for format in checkpoints() {
        let before = written;
        for shape in [(64, 192), (32, 1024), (33, 96), (40, 80), (1, 16), (3, 7)] {
            for bits in 2..=8 {
                for (number, granularity) in granularities.into_iter().enumerate() {
                    for symmetry in [Symmetry::Symmetric, Symmetry::Asymmetric] {
                        let runtime = if number % 2 == 0 { Dtype::F16 } else { Dtype::Bf16 };
                        let scheme = scheme(format, bits, granularity, symmetry, runtime);
                        // Formats of one grid make the same of all.
                        if !seen.insert((format.id(), shape, scheme)) {
                            continue;
                        }
                        written += usize::from(holds_or_refuses(format, shape, scheme));
                    }
                }
            }
        }
        assert!(written > before, "{} holds nothing", format.id());
    }
    assert!(written > 500, "{written}");
}

/// Whether the format took the scheme, after it was seen to be right either way.
fn holds_or_refuses(format: &'static dyn TargetFormat, shape: (usize, usize), scheme: Scheme) -> bool {
    let what = format!("{} {scheme:?} {shape:?}", format.id());
    let linear = linear(3, Role::Down, shape);
    let mut plan = vec![PlannedLinear { linear, fused_group: 0, scheme: Some(scheme) }];
    let grouped = matches!(scheme.granularity, Granularity::PerGroup(_));
    let possible =
        claimed(format, scheme, shape).map(|holds| holds && (!grouped || shape.1.is_multiple_of(16)));
    match format.settle(&mut plan) {
        Err(error) => {
            assert!(possible != Some(true), "{what} refused: {error}");
            assert!(error.to_string().contains("down_proj") && error.hint().is_some(), "{error}");
            false
        }
        Ok(_) => {
            assert!(possible != Some(false), "{what} is not refused");
            round_trip(format, &plan, &what);
            true
        }
    }
}

fn round_trip(format: &'static dyn TargetFormat, plan: &[PlannedLinear], what: &str) {
    let folder = tempfile::tempdir().unwrap();
    let (linear, scheme) = (&plan[0].linear, plan[0].scheme.unwrap());
    let solution = solution(linear, scheme);
    for (spec, data) in format.layout(linear, scheme).iter().zip(format.encode(linear, &solution)) {
        assert_eq!((&spec.name, spec.bytes()), (&data.name, data.bytes.len() as u64), "{what}");
    }
    write(folder.path(), format, plan, std::slice::from_ref(&solution));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let stored = target::open(&quantization(folder.path())).unwrap();
    // Of two formats that write the same, reading names one.
    assert!(target::alike(stored.id(), format.id()), "{what}");
    for name in stored.tensors(linear, scheme) {
        assert!(checkpoint.contains(&name), "{what} {name}");
    }
    // With the scheme that was solved for, everything comes back; with the one that config.json gives, all values do.
    let decoded = stored.decode(linear, scheme, &checkpoint).unwrap();
    assert_eq!(decoded, solution, "{what}");
    let read = stored.scheme(linear).unwrap();
    assert_eq!((read.bits, read.scale_dtype), (scheme.bits, ScaleDtype::F32));
    // A format that always stores zero points or minimums holds symmetric grids too.
    assert!(read.symmetry == scheme.symmetry || read.symmetry != Symmetry::Symmetric, "{what}");
    let decoded = stored.decode(linear, read, &checkpoint).unwrap();
    assert_eq!(decoded.codes(), solution.codes());
    assert_eq!(decoded.scales_by_row(), solution.scales_by_row());
    assert_eq!(decoded.dequantize(), solution.dequantize());
    let packed = stored.packed(linear, scheme, &checkpoint).unwrap();
    assert_eq!(packed.is_some(), scheme.levels == Levels::Uniform, "{what}");
    if let Some(packed) = packed {
        assert_eq!(packed.dequantize(), solution.dequantize(), "{what}");
        assert_eq!(packed.unpack_codes(), solution.codes(), "{what}");
    }
}

#[test]
fn minimums_come_back_exactly_where_a_format_has_them() {
    let format = find("mlx");
    let linear = linear(0, Role::Up, (24, 192));
    for bits in [2, 3, 4, 5, 6, 8] {
        for runtime in [Dtype::F16, Dtype::Bf16] {
            let asked = scheme(format, bits, group(64), Symmetry::Asymmetric, runtime);
            let scheme = format.grid(&linear, 1, asked);
            assert_eq!(scheme.symmetry, Symmetry::Minimum);
            let mut plan = [planned(&linear, scheme)];
            format.settle(&mut plan).unwrap();
            let symmetric = solution(&linear, Scheme { symmetry: Symmetry::Symmetric, ..scheme });
            let minimums = symmetric.scales().mapv(|scale| scheme.scale_dtype.round_minimum(scale * -1.7));
            let (codes, scales) = (symmetric.codes().to_owned(), symmetric.scales().to_owned());
            let expected =
                QuantizedTensor::with_offsets(scheme, codes, scales, Offsets::Minimums(minimums)).unwrap();
            let folder = tempfile::tempdir().unwrap();
            write(folder.path(), format, &plan, std::slice::from_ref(&expected));
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            let stored = target::open(&quantization(folder.path())).unwrap();
            assert_eq!(stored.decode(&linear, scheme, &checkpoint).unwrap(), expected, "{bits}");
            assert!(stored.packed(&linear, scheme, &checkpoint).unwrap().is_none());
            let refused = Scheme { symmetry: Symmetry::Symmetric, ..scheme };
            let message = stored.decode(&linear, refused, &checkpoint).unwrap_err().to_string();
            assert!(message.contains("up_proj.biases"), "{message}");
        }
    }
}
