//! Codes and losses of an independent implementation, in double precision.

mod support;

use ndarray::Array2;
use quantizer::levels::Levels;
use quantizer::order::Order;
use quantizer::scheme::{BitWidth, ScaleDtype, Scheme, Symmetry};
use quantizer::settings::Range;
use quantizer::{Hessian, Problem, SolverSettings, solver};
use safetensors::SafeTensors;
use support::groups;

const GOLDEN: &[u8] = include_bytes!("data/solver.safetensors");

#[test]
fn codes_and_losses_agree_with_the_textbook() {
    let golden = SafeTensors::deserialize(GOLDEN).unwrap();
    let weight = matrix::<f32, 4>(&golden, "weight", f32::from_le_bytes);
    let hessian = Hessian::from_lower(matrix(&golden, "hessian", f64::from_le_bytes), 256).unwrap();
    for bits in [2, 3, 4] {
        for group_size in [16, 64] {
            let scheme = Scheme {
                bits: BitWidth::new(bits).unwrap(),
                levels: Levels::Uniform,
                granularity: groups(group_size),
                symmetry: Symmetry::Symmetric,
                scale_dtype: ScaleDtype::F16,
            };
            let name = format!("b{bits}g{group_size}");
            let scales = matrix(&golden, &format!("{name}.scale"), f32::from_le_bytes);
            let cases = [
                ("rtn", Order::Natural, format!("rtn.{name}")),
                ("gptq", Order::Natural, name.clone()),
                ("gptq", Order::Activation, format!("{name}p")),
            ];
            for (solver, order, name) in cases {
                let settings = SolverSettings {
                    order,
                    range: Range::MinMax,
                    refits: 0,
                    sweeps: 0,
                    ..SolverSettings::default()
                };
                let prepared = hessian.clone().prepare(&settings, None).unwrap();
                let problem =
                    Problem { weight: weight.view(), hessian: Some(&prepared), output: None, scheme };
                let solution = solver::find(solver).unwrap().solve(&problem, &settings).unwrap();
                assert_eq!(solution.tensor.scales(), scales, "{name}");
                let codes = matrix(&golden, &format!("{name}.codes"), |[code]: [u8; 1]| {
                    (i16::from(code as i8) + (1 << (bits - 1))) as u8
                });
                let differing = codes.iter().zip(solution.tensor.codes()).filter(|(a, b)| a != b).count();
                assert!(differing * 200 < codes.len(), "{name}: {differing} codes differ");
                let losses = matrix(&golden, &format!("{name}.loss"), f64::from_le_bytes);
                let ours = support::row_losses(weight.view(), &solution.tensor, damped(&hessian).view());
                assert!(close(ours.iter().sum(), losses.sum()), "{name}: {ours:?}, expected {losses}");
                let undamped =
                    support::row_losses(weight.view(), &solution.tensor, hessian.matrix().unwrap().view());
                assert!(close(solution.report.loss, undamped.iter().sum()), "{name}: {:?}", solution.report);
            }
        }
    }
}

#[test]
fn the_hessian_of_the_inputs_agrees() {
    let golden = SafeTensors::deserialize(GOLDEN).unwrap();
    let inputs = matrix(&golden, "inputs", f32::from_le_bytes);
    let expected: Array2<f64> = matrix(&golden, "hessian", f64::from_le_bytes);
    let ours = support::hessian_of(inputs.view());
    let largest = expected.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
    for (ours, expected) in ours.matrix().unwrap().iter().zip(&expected) {
        assert!((ours - expected).abs() < 1e-5 * largest, "{ours}, expected {expected}");
    }
}

fn damped(hessian: &Hessian) -> Array2<f64> {
    hessian.clone().damp(0.01).matrix().unwrap()
}

fn close(ours: f64, expected: f64) -> bool {
    (ours - expected).abs() <= 1e-4 * expected
}

/// A tensor as a matrix; a vector as one row.
fn matrix<T, const BYTES: usize>(
    golden: &SafeTensors<'_>,
    name: &str,
    decode: impl Fn([u8; BYTES]) -> T,
) -> Array2<T> {
    let tensor = golden.tensor(name).unwrap();
    let values = tensor.data().chunks_exact(BYTES).map(|bytes| decode(bytes.try_into().unwrap())).collect();
    let shape = match tensor.shape() {
        [rows, columns] => (*rows, *columns),
        shape => (1, shape.iter().product()),
    };
    Array2::from_shape_vec(shape, values).unwrap()
}
