//! What held-out tokens decide: never worse than rounding to nearest on them, and damping where tokens are few.

mod support;

use ndarray::{Array2, ArrayView2};
use quantizer::guard::held_out::HeldOut;
use quantizer::guard::{self, Statistics, Unsolved};
use quantizer::scheme::{Granularity, Scheme, Symmetry};
use quantizer::settings::{BUILT_IN, Range};
use quantizer::{Hessian, Problem, QuantizedTensor, Shortfall, Solution, SolverSettings, solver};
use support::{groups, inputs, row_losses, scheme, weight};

fn built_in(name: &str) -> SolverSettings {
    BUILT_IN.iter().find(|known| known.name == name).unwrap().settings.clone()
}

fn statistics(x: ArrayView2<'_, f32>) -> Statistics {
    Statistics { hessian: support::hessian_of(x), shortfall: Shortfall::default() }
}

/// Solved on all tokens as the driver does it, with the damping that the held-out ones chose.
fn solved(
    fitted: &Statistics,
    held: &Statistics,
    weight: &Array2<f32>,
    scheme: Scheme,
    settings: &SolverSettings,
) -> (f64, Solution) {
    let verdict = guard::decide(
        fitted,
        &HeldOut::new(held).unwrap(),
        &[Unsolved { weight: weight.view(), scheme }],
        settings,
    )
    .unwrap();
    let chosen = SolverSettings { damping: verdict.damping, ..settings.clone() };
    let hessian: Hessian = fitted.clone().merge(held.clone()).unwrap().hessian;
    let prepared = hessian.prepare(&chosen, None).unwrap();
    let problem = Problem { weight: weight.view(), hessian: Some(&prepared), output: None, scheme };
    let solution = solver::find("gptq").unwrap().solve(&problem, settings).unwrap();
    (verdict.damping, HeldOut::new(held).unwrap().judge(&problem, solution, settings).unwrap())
}

#[test]
fn no_solution_is_worse_than_rounding_to_nearest_on_held_out_tokens() {
    let columns = 64;
    for seed in 0..6 {
        let weight = weight(seed, 24, columns);
        // From one token to many more than columns; what is held out is like the rest, or of another kind.
        for (tokens, held_seed) in
            [(1, seed), (4, seed), (48, seed), (400, seed), (48, seed + 100), (4, seed + 100)]
        {
            let fitted = statistics(inputs(seed, tokens, columns).view());
            let other = inputs(held_seed, tokens + tokens.div_ceil(3), columns);
            let held = statistics(other.slice(ndarray::s![tokens.., ..]));
            for granularity in [groups(16), Granularity::PerChannel] {
                for (bits, symmetry) in
                    [(2, Symmetry::Symmetric), (4, Symmetry::Asymmetric), (8, Symmetry::Symmetric)]
                {
                    let scheme = scheme(bits, granularity, symmetry);
                    let problem = Problem { weight: weight.view(), hessian: None, output: None, scheme };
                    let nearest = solver::find("rtn").unwrap().solve(&problem, &built_in("rtn")).unwrap();
                    let loss = |solution: &Solution| -> f64 {
                        row_losses(weight.view(), &solution.tensor, held.hessian.matrix().unwrap().view())
                            .iter()
                            .sum()
                    };
                    for recipe in ["gptq", "default"] {
                        let (_, solution) = solved(&fitted, &held, &weight, scheme, &built_in(recipe));
                        let found = solution.report.held_out.unwrap();
                        let (ours, nearest) = (loss(&solution), loss(&nearest));
                        let place = format!("seed {seed}, {tokens} tokens, {scheme:?}, {recipe}: {found:?}");
                        assert!(ours <= nearest * (1.0 + 1e-4), "{place}: {ours}, nearest {nearest}");
                        assert!(
                            (found.nearest - nearest).abs() <= 1e-3 * nearest,
                            "{place}: nearest {nearest}"
                        );
                        assert!((found.solved - ours).abs() <= 1e-3 * nearest, "{place}: {ours}");
                    }
                }
            }
        }
    }
}

#[test]
fn what_fits_other_text_only_gives_way_to_rounding_to_nearest() {
    let (columns, scheme) = (64, scheme(3, groups(32), Symmetry::Symmetric));
    let settings = SolverSettings { damping: 1e-4, range: Range::MinMax, ..built_in("gptq") };
    for seed in 0..4 {
        let weight = weight(seed, 24, columns);
        let prepared =
            support::hessian_of(inputs(seed, 12, columns).view()).prepare(&settings, None).unwrap();
        let problem = Problem { weight: weight.view(), hessian: Some(&prepared), output: None, scheme };
        let held = statistics(inputs(seed + 50, 200, columns).view());
        let loss = |tensor: &QuantizedTensor| -> f64 {
            row_losses(weight.view(), tensor, held.hessian.matrix().unwrap().view()).iter().sum()
        };
        let solution = solver::find("gptq").unwrap().solve(&problem, &settings).unwrap();
        let before = loss(&solution.tensor);
        let judged = HeldOut::new(&held).unwrap().judge(&problem, solution, &settings).unwrap();
        let nearest = solver::find("rtn").unwrap().solve(&problem, &built_in("rtn")).unwrap().tensor;
        assert!(before > loss(&nearest), "seed {seed}: {before}, so that there was nothing to mend");
        assert!(judged.report.held_out.unwrap().fell_back, "seed {seed}");
        assert_eq!(judged.tensor, nearest, "seed {seed}");
    }
}

#[test]
fn few_tokens_ask_for_more_damping_and_are_better_for_it() {
    let (columns, scheme) = (64, scheme(3, groups(32), Symmetry::Symmetric));
    let (mut chosen, mut asked, mut raised) = (0.0, 0.0, 0);
    for seed in 0..6 {
        let weight = weight(seed, 48, columns);
        let x = inputs(seed, 4000, columns);
        let part = |from: usize, to: usize| statistics(x.slice(ndarray::s![from..to, ..]));
        let loss = |solution: &Solution| -> f64 {
            let unseen = part(2000, 4000);
            row_losses(weight.view(), &solution.tensor, unseen.hessian.matrix().unwrap().view()).iter().sum()
        };
        let guarded = built_in("gptq");
        let unguarded = SolverSettings { guard: false, ..guarded.clone() };
        let (few, more) = ((part(0, 48), part(48, 64)), (part(0, 1500), part(1500, 2000)));
        let (damping, solution) = solved(&few.0, &few.1, &weight, scheme, &guarded);
        raised += usize::from(damping > guarded.damping);
        let (same, plain) = solved(&few.0, &few.1, &weight, scheme, &unguarded);
        assert_eq!(same, unguarded.damping);
        chosen += loss(&solution);
        asked += loss(&plain);
        let (damping, _) = solved(&more.0, &more.1, &weight, scheme, &guarded);
        assert!(damping <= 0.05, "seed {seed}: {damping}");
    }
    assert!(raised >= 4, "{raised} of 6");
    assert!(chosen < 0.97 * asked, "{chosen}, as asked {asked}");
}
