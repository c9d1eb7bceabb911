//! What holds for every solver, scheme and seed.

mod support;

use ndarray::{Array2, Axis, concatenate, s};
use quantizer::guard::{self, Statistics, Unsolved};
use quantizer::levels::Levels;
use quantizer::nested;
use quantizer::order::Order;
use quantizer::scheme::{Granularity, ScaleDtype, Scheme, Symmetry};
use quantizer::settings::{BUILT_IN, Range};
use quantizer::tensor::Offsets;
use quantizer::{
    Hessian, Problem, QuantizedTensor, Shares, Shortfall, Solution, SolveError, SolverSettings, solver,
};
use support::{Random, groups, hessian, inputs, other_grids, row_losses, scheme, schemes, weight};

fn solve(
    name: &str,
    settings: &SolverSettings,
    weight: &Array2<f32>,
    h: &Hessian,
    scheme: Scheme,
) -> Solution {
    let prepared = h.clone().prepare(settings, None).unwrap();
    let problem = Problem { weight: weight.view(), hessian: Some(&prepared), output: None, scheme };
    solver::find(name).unwrap().solve(&problem, settings).unwrap()
}

fn built_in(name: &str) -> SolverSettings {
    BUILT_IN.iter().find(|known| known.name == name).unwrap().settings.clone()
}

/// Every built-in, and every metric and order beside it.
fn all_settings() -> Vec<(&'static str, SolverSettings)> {
    let mut all: Vec<_> = BUILT_IN.iter().map(|known| (known.solver, known.settings.clone())).collect();
    for range in [Range::MinMax, Range::Plain, Range::Diagonal, Range::Pivots, Range::Conditional] {
        for order in [Order::Natural, Order::Activation, Order::Pivot] {
            all.push(("gptq", SolverSettings { range, order, ..built_in("gptq") }));
        }
    }
    all
}

#[test]
fn names_are_unique_and_found() {
    for known in solver::ALL {
        assert_eq!(solver::find(known.name()).unwrap().name(), known.name());
        assert_eq!(solver::ALL.iter().filter(|other| other.name() == known.name()).count(), 1);
    }
    for known in BUILT_IN {
        assert!(solver::find(known.solver).is_some(), "{}", known.name);
        known.settings.check().unwrap();
    }
}

#[test]
fn with_an_identity_hessian_every_solver_rounds_to_nearest() {
    let weight = weight(1, 24, 64);
    let identity = Hessian::from_lower(Array2::eye(64), 1).unwrap();
    for scheme in schemes() {
        for range in [Range::MinMax, Range::Plain, Range::Diagonal, Range::Pivots] {
            let settings = SolverSettings { range, ..built_in("gptq") };
            let expected = solve("rtn", &settings, &weight, &identity, scheme).tensor;
            for solver in solver::ALL {
                let ours = solve(solver.name(), &settings, &weight, &identity, scheme).tensor;
                assert_eq!(ours, expected, "{} {scheme:?} {range:?}", solver.name());
                let problem = Problem { weight: weight.view(), hessian: None, output: None, scheme };
                assert_eq!(solver.solve(&problem, &settings).unwrap().tensor, expected, "data-free");
            }
        }
    }
}

#[test]
fn reported_losses_are_those_of_the_tensor() {
    let (weight, h) = (weight(2, 24, 64), hessian(2, 64));
    let whole: f64 = {
        let w = weight.mapv(f64::from);
        (&w.dot(&h.matrix().unwrap()) * &w).sum()
    };
    for (solver, settings) in all_settings() {
        for scheme in schemes() {
            let solution = solve(solver, &settings, &weight, &h, scheme);
            let expected: f64 =
                row_losses(weight.view(), &solution.tensor, h.matrix().unwrap().view()).iter().sum();
            let report = solution.report;
            let close = |ours: f64, expected: f64| (ours - expected).abs() <= 2e-4 * expected + 1e-9 * whole;
            assert!(close(report.loss, expected), "{solver} {scheme:?} {settings:?} {report:?} {expected}");
            assert!(close(report.relative_loss, expected / whole), "{solver} {scheme:?} {report:?}");
        }
    }
}

#[test]
fn gptq_beats_rounding_and_the_default_beats_gptq() {
    for seed in 0..4 {
        let (weight, h) = (weight(seed, 32, 96), hessian(seed, 96));
        for bits in [2, 3, 4] {
            for symmetry in [Symmetry::Symmetric, Symmetry::Asymmetric] {
                let scheme = scheme(bits, groups(32), symmetry);
                let loss = |solver, settings: &str| {
                    solve(solver, &built_in(settings), &weight, &h, scheme).report.relative_loss
                };
                let (rtn, gptq, default) =
                    (loss("rtn", "rtn"), loss("gptq", "gptq"), loss("gptq", "default"));
                assert!(gptq < 0.45 * rtn, "seed {seed} {scheme:?}: gptq {gptq}, rtn {rtn}");
                assert!(default < 0.97 * gptq, "seed {seed} {scheme:?}: default {default}, gptq {gptq}");
            }
        }
    }
}

#[test]
fn other_grids_are_solved_and_refined_too() {
    // Two numbers for 256 columns each, the second for half as many.
    let (weight, h) = (weight(11, 32, 384), hessian(11, 384));
    for scheme in other_grids() {
        let loss = |solver, settings: &str| {
            solve(solver, &built_in(settings), &weight, &h, scheme).report.relative_loss
        };
        let (rtn, gptq, default) = (loss("rtn", "rtn"), loss("gptq", "gptq"), loss("gptq", "default"));
        assert!(gptq < 0.45 * rtn, "{scheme:?}: gptq {gptq}, rtn {rtn}");
        assert!(default < 0.985 * gptq, "{scheme:?}: default {default}, gptq {gptq}");
    }
}

#[test]
fn products_are_of_the_numbers_that_are_stored() {
    let (weight, h) = (weight(12, 16, 512), hessian(12, 512));
    for scheme in other_grids().into_iter().filter(|scheme| scheme.scale_dtype.is_product()) {
        let tensor = solve("gptq", &built_in("default"), &weight, &h, scheme).tensor;
        let parts = tensor.scale_parts().unwrap();
        let stored = |k: f32| match scheme.scale_dtype {
            ScaleDtype::Integers { least, most } => {
                k == k.trunc() && k != 0.0 && (f32::from(least)..=f32::from(most)).contains(&k)
            }
            _ => nested::TABLE.contains(&k),
        };
        assert!(parts.fine.iter().all(|&k| stored(k)), "{scheme:?}");
        assert_eq!(tensor.minimum_parts().is_some(), scheme.symmetry == Symmetry::Minimum, "{scheme:?}");
        assert!(tensor.minimums().is_none_or(|minimums| minimums.iter().all(|&m| m <= 0.0)), "{scheme:?}");
        if let ScaleDtype::Integers { .. } = scheme.scale_dtype {
            assert_eq!(parts.coarse.dim(), (16, 2));
            assert!(parts.coarse.iter().all(|&coarse| ScaleDtype::F16.holds(coarse)), "{scheme:?}");
        } else {
            // 16 rows of 16 groups are 256; the last number is what is added.
            assert_eq!(parts.coarse.dim(), (16, 17));
            let first = parts.coarse[[0, 0]];
            assert!(parts.coarse.slice(s![.., ..16]).iter().all(|&coarse| coarse == first), "{scheme:?}");
            assert!(parts.coarse.column(16).iter().all(|&offset| offset == parts.coarse[[0, 16]]));
        }
        // Without its parts, or with others', it is another tensor.
        let mut other = parts.clone();
        other.fine[[3, 1]] += 1.0;
        let bare = QuantizedTensor::with_offsets(
            scheme,
            tensor.codes().to_owned(),
            tensor.scales().to_owned(),
            tensor.minimums().map_or(Offsets::None, |minimums| Offsets::Minimums(minimums.to_owned())),
        )
        .unwrap();
        assert!(bare.clone().in_parts(other, tensor.minimum_parts().cloned()).is_err());
        assert_eq!(bare.in_parts(parts.clone(), tensor.minimum_parts().cloned()).unwrap(), tensor);
    }
}

#[test]
fn refinement_raises_no_row_of_the_loss() {
    for seed in 0..3 {
        let weight = weight(seed, 40, 64);
        // More columns than tokens: the Hessian is singular but for its damping.
        for tokens in [16, 400] {
            let h = support::hessian_of(inputs(seed, tokens, 64).view());
            let damped = h.clone().damp(0.01);
            for scheme in schemes() {
                let plain = built_in("gptq");
                let before = solve("gptq", &plain, &weight, &h, scheme).tensor;
                let before = row_losses(weight.view(), &before, damped.matrix().unwrap().view());
                for (refits, sweeps) in [(1, 0), (3, 0), (0, 1), (0, 3), (2, 4)] {
                    let settings = SolverSettings { refits, sweeps, ..plain.clone() };
                    let after = solve("gptq", &settings, &weight, &h, scheme).tensor;
                    let after = row_losses(weight.view(), &after, damped.matrix().unwrap().view());
                    for (row, (before, after)) in before.iter().zip(&after).enumerate() {
                        assert!(
                            *after <= before * (1.0 + 1e-5),
                            "row {row} {scheme:?}: {after}, was {before}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn rows_solved_together_equal_rows_solved_alone() {
    let (weight, h) = (weight(3, 70, 64), hessian(3, 64));
    for (solver, settings) in all_settings() {
        for scheme in
            [scheme(3, groups(16), Symmetry::Symmetric), scheme(4, groups(32), Symmetry::Asymmetric)]
        {
            let together = solve(solver, &settings, &weight, &h, scheme).tensor;
            for row in [0, 37, 69] {
                let one = weight.slice_axis(Axis(0), (row..row + 1).into()).to_owned();
                let alone = solve(solver, &settings, &one, &h, scheme).tensor;
                assert_eq!(
                    alone.codes().row(0),
                    together.codes().row(row),
                    "{solver} {settings:?} row {row}"
                );
                assert_eq!(
                    alone.scales().row(0),
                    together.scales().row(row),
                    "{solver} {settings:?} row {row}"
                );
            }
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let (weight, h) = (weight(4, 130, 64), hessian(4, 64));
    let scheme = scheme(3, groups(16), Symmetry::Symmetric);
    for (solver, settings) in all_settings() {
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let solution = pool.install(|| solve(solver, &settings, &weight, &h, scheme));
            (solution.tensor, solution.report)
        };
        let one = on(1);
        for threads in [2, 5] {
            assert_eq!(on(threads), one, "{solver} {settings:?} on {threads} threads");
        }
    }
}

#[test]
fn every_scale_is_of_its_stored_type() {
    let (weight, h) = (weight(5, 16, 64), hessian(5, 64));
    for scale_dtype in [ScaleDtype::F16, ScaleDtype::Bf16, ScaleDtype::F16AndBf16, ScaleDtype::F32] {
        for (solver, settings) in all_settings() {
            for scheme in schemes() {
                let scheme = Scheme { scale_dtype, ..scheme };
                let tensor = solve(solver, &settings, &weight, &h, scheme).tensor;
                assert!(tensor.scales().iter().all(|&scale| scale_dtype.holds(scale)), "{solver} {scheme:?}");
                let asymmetric = scheme.symmetry == Symmetry::Asymmetric;
                assert!(
                    !asymmetric || tensor.scales().iter().all(|&scale| scale > 0.0),
                    "{solver} {scheme:?}"
                );
            }
        }
    }
}

#[test]
fn awkward_weights_and_inputs_are_solved() {
    let columns = 64;
    let mut extreme = weight(6, 12, columns);
    extreme.row_mut(0).fill(0.0);
    extreme.row_mut(1).fill(1e-40);
    extreme.row_mut(2).fill(f32::MAX);
    extreme.row_mut(3).mapv_inplace(|w| w * 1e-30);
    extreme.row_mut(4).fill(0.25);
    extreme[[5, 7]] = -f32::MAX;
    extreme.row_mut(6).mapv_inplace(f32::abs);
    let mut dead = inputs(6, 300, columns);
    dead.slice_axis_mut(Axis(1), (10..40).into()).fill(0.0);
    let mut massive = inputs(6, 300, columns);
    massive.column_mut(3).mapv_inplace(|x| x * 1e4);
    let cases = [
        ("one token", inputs(6, 1, columns)),
        ("dead inputs", dead),
        ("massive input", massive),
        ("no activation at all", Array2::zeros((5, columns))),
        ("tiny activations", inputs(6, 300, columns) * 1e-18),
    ];
    for (name, x) in cases {
        let h = support::hessian_of(x.view());
        for (solver, settings) in all_settings() {
            for scheme in schemes() {
                let solution = solve(solver, &settings, &extreme, &h, scheme);
                assert!(!solution.report.loss.is_nan(), "{name} {solver} {scheme:?}: {:?}", solution.report);
                let row = solution.tensor.dequantize();
                // A table without a zero has the least that it can do.
                let least = if scheme.levels == Levels::Iq4 { 1e-2 } else { 0.0 };
                assert!(
                    row.row(0).iter().all(|&w| w.abs() <= least),
                    "{name} {solver} {scheme:?}: {}",
                    row.row(0)
                );
            }
        }
    }
}

#[test]
fn weights_of_dead_inputs_become_zero_and_cost_nothing() {
    let mut x = inputs(7, 300, 64);
    x.column_mut(5).fill(0.0);
    let (mut weight, h) = (weight(7, 8, 64), support::hessian_of(x.view()));
    weight.column_mut(5).fill(100.0);
    for settings in ["gptq", "default"] {
        let solution =
            solve("gptq", &built_in(settings), &weight, &h, scheme(4, groups(16), Symmetry::Symmetric));
        assert!(solution.tensor.dequantize().column(5).iter().all(|&w| w == 0.0));
        assert!(solution.report.relative_loss < 0.01, "{:?}", solution.report);
        assert_eq!(solution.report.damping.unwrap().dead_inputs, 1);
    }
}

#[test]
fn a_weight_that_is_not_finite_is_named() {
    let h = hessian(8, 64);
    for (value, shown) in [(f32::NAN, "NaN"), (f32::NEG_INFINITY, "-inf")] {
        let mut weight = weight(8, 8, 64);
        weight[[3, 17]] = value;
        for (solver, settings) in all_settings() {
            let prepared = h.clone().prepare(&settings, None).unwrap();
            let scheme = scheme(4, groups(16), Symmetry::Symmetric);
            let problem = Problem { weight: weight.view(), hessian: Some(&prepared), output: None, scheme };
            let error = solver::find(solver).unwrap().solve(&problem, &settings).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("the weight at [3, 17] is {shown}, expected a finite number")
            );
        }
    }
}

#[test]
fn problems_that_do_not_fit_are_refused() {
    let settings = built_in("gptq");
    let prepared = hessian(9, 64).prepare(&settings, None).unwrap();
    for solver in solver::ALL {
        let refused = |weight: &Array2<f32>, granularity| {
            let scheme = scheme(4, granularity, Symmetry::Symmetric);
            let problem = Problem { weight: weight.view(), hessian: Some(&prepared), output: None, scheme };
            solver.solve(&problem, &settings).unwrap_err()
        };
        let width = refused(&weight(9, 8, 32), groups(16));
        assert_eq!(width, SolveError::HessianWidth { expected: 32, found: 64 });
        assert!(matches!(refused(&weight(9, 8, 64), groups(48)), SolveError::Tensor(_)));
        assert!(matches!(refused(&Array2::zeros((0, 64)), groups(16)), SolveError::Empty { .. }));
    }
}

#[test]
fn error_propagation_brings_the_outputs_nearer_to_the_originals() {
    for seed in 0..3 {
        let (rows, columns, tokens) = (24, 64, 1000);
        let (weight, x) = (weight(seed, rows, columns), inputs(seed, tokens, columns));
        // Earlier layers' errors: a linear part that can be made up for, and noise that cannot.
        let drift = x.dot(&(Random(seed ^ 77).matrix(columns, columns) * 0.02));
        let original = &x + &drift + Random(seed ^ 78).matrix(tokens, columns) * 0.02;
        let mixed = |alpha: f64| {
            let cross = support::cross_of(original.view(), x.view(), x.view());
            let settings = built_in("default");
            let shortfall = Shortfall { input: Some(cross), residual: None };
            let prepared = support::hessian_of(x.view())
                .prepare(&settings, Some((shortfall, Shares { alpha, beta: 0.0, damping: 0.01 })))
                .unwrap();
            assert_eq!(prepared.damping().made_up_for.is_some(), alpha > 0.0);
            let scheme = scheme(4, groups(32), Symmetry::Symmetric);
            let problem = Problem { weight: weight.view(), hessian: Some(&prepared), output: None, scheme };
            let solution = solver::find("gptq").unwrap().solve(&problem, &settings).unwrap();
            let outputs = x.dot(&solution.tensor.dequantize().t());
            (original.dot(&weight.t()) - outputs).mapv(|d| f64::from(d).powi(2)).sum()
        };
        let (none, half, whole) = (mixed(0.0), mixed(0.5), mixed(1.0));
        assert!(half < 0.8 * none && whole < half, "seed {seed}: {none} {half} {whole}");
    }
}

#[test]
fn a_linear_makes_up_for_the_error_of_the_stream_that_it_writes_to() {
    for seed in 0..3 {
        let (rows, columns, tokens) = (24, 64, 1000);
        let (weight, x) = (weight(seed, rows, columns), inputs(seed, tokens, columns));
        // What the residual stream lacks: a part that the input knows, and noise that it does not.
        let known = x.dot(&(Random(seed ^ 79).matrix(columns, rows) * 0.02));
        let lack = known + Random(seed ^ 80).matrix(tokens, rows) * 0.02;
        let stream = Random(seed ^ 81).matrix(tokens, rows);
        let after = |beta: f64| {
            let cross = support::cross_of((&stream + &lack).view(), stream.view(), x.view());
            let settings = built_in("default");
            let shortfall = Shortfall { input: None, residual: Some(cross) };
            let lacking = Some((shortfall, Shares { alpha: 0.0, beta, damping: 0.01 }));
            let prepared = support::hessian_of(x.view()).prepare(&settings, lacking).unwrap();
            let scheme = scheme(4, groups(32), Symmetry::Symmetric);
            let problem = Problem { weight: weight.view(), hessian: Some(&prepared), output: None, scheme };
            let solution = solver::find("gptq").unwrap().solve(&problem, &settings).unwrap();
            let lacking = &lack + &x.dot(&(&weight - &solution.tensor.dequantize()).t());
            lacking.mapv(|d| f64::from(d).powi(2)).sum()
        };
        let (none, half, whole) = (after(0.0), after(0.5), after(1.0));
        assert!(half < 0.8 * none && whole < half, "seed {seed}: {none} {half} {whole}");
    }
}

#[test]
fn held_out_tokens_tell_an_error_that_can_be_made_up_for_from_noise() {
    let (rows, columns) = (24, 64);
    let weight = weight(1, rows, columns);
    let drift = Random(5).matrix(columns, columns) * 0.02;
    let statistics = |seed: u64, tokens: usize, known: f32, noise: f32| {
        let x = inputs(seed, tokens, columns);
        let original = &x + &(x.dot(&drift) * known) + Random(seed ^ 78).matrix(tokens, columns) * noise;
        let cross = support::cross_of(original.view(), x.view(), x.view());
        let shortfall = Shortfall { input: Some(cross), residual: None };
        Statistics { hessian: support::hessian_of(x.view()), shortfall }
    };
    let settings = SolverSettings { alpha: 1.0, beta: 1.0, ..built_in("default") };
    let scheme = scheme(4, groups(32), Symmetry::Symmetric);
    let unsolved = [Unsolved { weight: weight.view(), scheme }];
    let decided = |fitted: &Statistics, held: &Statistics, settings: &SolverSettings| {
        let held = guard::held_out::HeldOut::new(held).unwrap();
        guard::decide(fitted, &held, &unsolved, settings).unwrap().shares.alpha
    };
    let alpha = |tokens: usize, known: f32, noise: f32| {
        let (fitted, held) = (statistics(6, tokens, known, noise), statistics(7, tokens / 2, known, noise));
        decided(&fitted, &held, &settings)
    };
    let (clear, nothing) = (alpha(2000, 1.0, 0.01), alpha(80, 0.0, 0.1));
    assert!(clear > 0.9 && nothing < 0.1, "{clear} {nothing}");
    let half = SolverSettings { alpha: 0.5, ..settings.clone() };
    let (fitted, held) = (statistics(6, 2000, 1.0, 0.01), statistics(7, 1000, 1.0, 0.01));
    assert_eq!(decided(&fitted, &held, &half), 0.5 * clear);
}

#[test]
fn a_search_is_never_worse_than_the_full_range() {
    let weight = weight(10, 32, 64);
    for scheme in schemes() {
        let loss = |range| {
            let settings = SolverSettings { range, ..built_in("rtn") };
            let problem = Problem { weight: weight.view(), hessian: None, output: None, scheme };
            solver::find("rtn").unwrap().solve(&problem, &settings).unwrap().report.loss
        };
        let (full, searched) = (loss(Range::MinMax), loss(Range::Plain));
        let margin = if scheme.bits.get() <= 3 { 0.9 } else { 1.01 };
        assert!(searched <= margin * full, "{scheme:?}: {searched}, full range {full}");
    }
}

#[test]
fn a_symmetric_scale_turns_its_longer_side_to_the_larger_weights() {
    // Three steps down and no more than one up, and the other way round: two bits hold both exactly.
    let row = |sign: f32| Array2::from_shape_fn((1, 16), |(_, k)| sign * [-2.0, -1.0, 0.0, 1.0][k % 4] * 0.5);
    let weight = concatenate![Axis(0), row(1.0), row(-1.0)];
    let settings = SolverSettings { range: Range::Plain, ..built_in("rtn") };
    let scheme = scheme(2, groups(16), Symmetry::Symmetric);
    let problem = Problem { weight: weight.view(), hessian: None, output: None, scheme };
    let solution = solver::find("rtn").unwrap().solve(&problem, &settings).unwrap();
    assert_eq!(solution.report.loss, 0.0);
    assert_eq!(solution.tensor.scales().as_slice().unwrap(), [0.5, -0.5]);
}

#[test]
fn several_passes_over_the_rows_equal_one() {
    // More rows than one pass holds.
    let (weight, h) = (weight(11, 2100, 16), hessian(11, 16));
    let scheme = scheme(2, Granularity::PerChannel, Symmetry::Symmetric);
    let whole = solve("gptq", &built_in("gptq"), &weight, &h, scheme);
    let last = weight.slice_axis(Axis(0), (2000..2100).into()).to_owned();
    let last: QuantizedTensor = solve("gptq", &built_in("gptq"), &last, &h, scheme).tensor;
    assert_eq!(last.codes(), whole.tensor.codes().slice_axis(Axis(0), (2000..2100).into()));
    let losses = row_losses(weight.view(), &whole.tensor, h.matrix().unwrap().view());
    assert!((losses.iter().sum::<f64>() - whole.report.loss).abs() < 1e-4 * whole.report.loss);
}
