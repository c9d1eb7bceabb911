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
fn moments_are_means_in_even_blocks_drawn_to_the_identity_by_what_their_tokens_spread() {
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
        let identity = Array2::<f64>::eye(exact.nrows()) * mean;
        let distance = |a: &Array2<f64>, b: &Array2<f64>| (a - b).mapv(|entry| entry * entry).sum();
        // By the definition: how far single tokens' moments are from their mean.
        let of_token = |row: ndarray::ArrayView1<'_, f64>| {
            let row = row.insert_axis(Axis(1));
            distance(&row.dot(&row.t()), &exact)
        };
        let noise = part.rows().into_iter().map(of_token).sum::<f64>() / (tokens * tokens) as f64;
        let share = (noise / distance(&exact, &identity)).min(1.0);
        assert!((0.1..1.0).contains(&share), "{share}");
        let drawn = &exact * (1.0 - share) + &identity * share;
        for ((row, column), &found) in output.damped(block, 0.5).indexed_iter() {
            let expected = drawn[[row, column]] + if row == column { 0.5 * mean } else { 0.0 };
            assert!((f64::from(found) - expected).abs() < 1e-4 * mean, "{block} {row} {column}");
        }
    }
}

#[test]
fn gradients_without_structure_leave_none_and_many_tokens_of_some_keep_theirs() {
    let (tokens, outputs) = (4000, 96);
    let noise = Array2::from_shape_fn((tokens, outputs), |(token, output)| {
        let place = (token * outputs + output) as u64;
        let mixed = (place + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((mixed ^ (mixed >> 32)) as u32) as f32 / u32::MAX as f32 - 0.5
    });
    let beside = |gradients: &Array2<f32>| {
        let found = output_of(gradients.view()).damped(0, 0.0);
        let on_diagonal = found.diag().mapv(|entry| entry * entry).sum();
        (found.mapv(|entry| entry * entry).sum() - on_diagonal) / on_diagonal
    };
    let raw = noise.t().dot(&noise) / tokens as f32;
    let of_raw = (raw.mapv(|entry| entry * entry).sum() / raw.diag().mapv(|entry| entry * entry).sum()) - 1.0;
    assert!(beside(&noise) < 0.05 * of_raw, "{} {of_raw}", beside(&noise));
    // Each output is half of the one before it.
    let mut related = noise.clone();
    for output in 1..outputs {
        let (earlier, mut later) = related.view_mut().split_at(Axis(1), output);
        later.column_mut(0).scaled_add(0.5, &earlier.column(output - 1));
    }
    assert!(beside(&related) > 0.5, "{}", beside(&related));
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
