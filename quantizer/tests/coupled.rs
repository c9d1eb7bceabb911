//! What rows make of each other's errors.

mod support;

use ndarray::{Array2, ArrayView2, Axis, s};
use quantizer::output::{MOST_ROWS, OutputHessian, OutputHessianAccumulator};
use quantizer::settings::BUILT_IN;
use quantizer::{HessianError, Problem, QuantizedTensor, Solution, SolveError, SolverSettings, solver};
use support::{groups, hessian, inputs, scheme, schemes, weight};

fn built_in(name: &str) -> SolverSettings {
    BUILT_IN.iter().find(|known| known.name == name).unwrap().settings.clone()
}

fn output_of(gradients: ArrayView2<'_, f32>) -> OutputHessian {
    let mut accumulator = OutputHessianAccumulator::new(gradients.ncols());
    accumulator.observe(gradients).unwrap();
    accumulator.finish().unwrap()
}

fn solve(
    settings: &SolverSettings,
    weight: &Array2<f32>,
    h: &quantizer::Hessian,
    output: Option<&OutputHessian>,
    scheme: quantizer::Scheme,
) -> Solution {
    let prepared = h.clone().prepare(settings, None).unwrap();
    let problem = Problem { weight: weight.view(), hessian: Some(&prepared), output, scheme };
    solver::find("gptq").unwrap().solve(&problem, settings).unwrap()
}

/// `tr(A D (H + λI) Dᵀ)` in double precision, over the blocks of `A`.
fn coupled_loss(
    weight: ArrayView2<'_, f32>,
    tensor: &QuantizedTensor,
    output: &OutputHessian,
    h: &quantizer::Hessian,
    damping: f64,
) -> f64 {
    let errors = (&weight - &tensor.dequantize()).mapv(f64::from);
    let damped = h.clone().damp(damping).matrix().unwrap();
    output
        .blocks()
        .enumerate()
        .map(|(block, rows)| {
            let outer = output.damped(block, 0.3).mapv(f64::from);
            let errors = errors.slice(s![rows, ..]);
            (&outer.dot(&errors).dot(&damped) * &errors).sum()
        })
        .sum()
}

#[test]
fn it_is_never_worse_than_plain_gptq_or_rounding_in_the_models_metric() {
    for seed in 0..3 {
        let (weight, h) = (weight(seed, 40, 64), hessian(seed, 64));
        // Fewer gradients than outputs: all but the damping is singular.
        for tokens in [8, 300] {
            let output = output_of(inputs(seed + 9, tokens, 40).view());
            for scheme in schemes() {
                let default = SolverSettings { alpha: 0.0, beta: 0.0, ..built_in("default") };
                let loss = |solution: &Solution| {
                    coupled_loss(weight.view(), &solution.tensor, &output, &h, default.damping)
                };
                let found = solve(&default, &weight, &h, Some(&output), scheme);
                let alone = solve(&default, &weight, &h, None, scheme);
                let plain = solve(&built_in("gptq"), &weight, &h, None, scheme);
                let (after, before) = (loss(&found), loss(&alone));
                assert!(after <= before * 1.0001, "seed {seed} {scheme:?}: {after} {before}");
                assert!(after <= loss(&plain) * 1.0001, "seed {seed} {scheme:?}");
                let report = found.report.coupled.unwrap();
                assert!((report.after / after - 1.0).abs() < 1e-3, "{report:?} {after}");
                assert!((report.before / before - 1.0).abs() < 1e-3, "{report:?} {before}");
                assert!(alone.report.coupled.is_none());
            }
        }
    }
}

#[test]
fn related_outputs_make_up_for_each_other() {
    let (weight, h) = (weight(3, 48, 96), hessian(3, 96));
    let output = output_of(inputs(4, 400, 48).view());
    for bits in [2, 3, 4] {
        let scheme = scheme(bits, groups(32), quantizer::scheme::Symmetry::Symmetric);
        let report = solve(&built_in("default"), &weight, &h, Some(&output), scheme).report.coupled.unwrap();
        assert!(report.after < 0.8 * report.before, "{bits} bit: {report:?}");
    }
}

#[test]
fn moments_are_means_in_even_blocks() {
    let (tokens, outputs) = (60, 2 * MOST_ROWS + 4);
    let gradients = inputs(1, tokens, outputs);
    let mut accumulator = OutputHessianAccumulator::new(outputs);
    for part in gradients.axis_chunks_iter(Axis(0), 17) {
        accumulator.observe(part).unwrap();
    }
    let output = accumulator.finish().unwrap();
    let blocks: Vec<_> = output.blocks().collect();
    assert_eq!(blocks.iter().map(ExactSizeIterator::len).collect::<Vec<_>>(), [outputs / 3; 3]);
    assert_eq!((blocks[0].start, blocks[2].end), (0, outputs));
    for (block, rows) in blocks.into_iter().enumerate() {
        let part = gradients.slice(s![.., rows]).mapv(f64::from);
        let exact = part.t().dot(&part) / tokens as f64;
        let mean = exact.diag().mean().unwrap();
        for ((row, column), &found) in output.damped(block, 0.5).indexed_iter() {
            let expected = exact[[row, column]] + if row == column { 0.5 * mean } else { 0.0 };
            assert!((f64::from(found) - expected).abs() < 1e-4 * mean, "{block} {row} {column}");
        }
    }
}

#[test]
fn gradients_that_cannot_be_used_are_refused() {
    let mut accumulator = OutputHessianAccumulator::new(4);
    let wide = accumulator.observe(Array2::zeros((2, 5)).view());
    assert_eq!(wide, Err(HessianError::Width { expected: 4, found: 5 }));
    let mut gradients = Array2::zeros((3, 4));
    gradients[[1, 2]] = f32::INFINITY;
    let expected = HessianError::NonFiniteActivation { column: 2, token: 1, found: f32::INFINITY };
    assert_eq!(accumulator.observe(gradients.view()), Err(expected));
    assert_eq!(accumulator.finish().unwrap_err(), HessianError::NoTokens);

    let settings = built_in("default");
    let prepared = hessian(1, 64).prepare(&settings, None).unwrap();
    let (weight, output) = (weight(1, 8, 64), output_of(inputs(1, 20, 9).view()));
    let scheme = schemes()[0];
    let problem = Problem { weight: weight.view(), hessian: Some(&prepared), output: Some(&output), scheme };
    let refused = solver::find("gptq").unwrap().solve(&problem, &settings).unwrap_err();
    assert_eq!(refused, SolveError::OutputHessianWidth { expected: 8, found: 9 });
}
