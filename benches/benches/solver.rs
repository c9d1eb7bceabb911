//! Solving a square matrix in one thread, at 4 bit in groups of 128: the factorization alone, preparation with it, and the solve.
//!
//! A factorization of `n` columns counts `n³/3` operations (in double precision, which half of the yardstick would be the whole of), a
//! solve `n³`, whatever the recipe: what it spends on choosing ranges and on refinement lowers its rate. No recipe propagates errors
//! here, as there is no earlier layer.
//!
//! `cargo bench -p benches --bench solver`

use benches::{ProcessorTime, activations, numbers};
use criterion::measurement::Measurement;
use criterion::{BatchSize, BenchmarkGroup, BenchmarkId, Throughput};
use kernels::factor::cholesky_upper;
use quantizer::levels::Levels;
use quantizer::scheme::{BitWidth, Granularity, GroupSize, ScaleDtype, Symmetry};
use quantizer::settings::BUILT_IN;
use quantizer::{Hessian, HessianAccumulator, Problem, Scheme, solver};

fn main() {
    benches::run(|criterion| {
        let mut group = criterion.benchmark_group("solver");
        for columns in [1024, 4096] {
            let hessian = hessian(columns);
            factorization(&mut group, &hessian);
            for recipe in ["gptq", "default"].into_iter().take(if columns > 1024 { 1 } else { 2 }) {
                solve(&mut group, recipe, &hessian);
            }
        }
        group.finish();
    });
}

fn factorization(group: &mut BenchmarkGroup<'_, ProcessorTime>, hessian: &Hessian) {
    let damped = hessian.clone().damp(0.01);
    let columns = hessian.in_features();
    group.throughput(Throughput::Elements(columns.pow(3) as u64 / 3));
    group.bench_function(BenchmarkId::new("factorization, f64", columns), |bencher| {
        let factor = |matrix| cholesky_upper(matrix).expect("the matrix is damped");
        bencher.iter_batched(|| damped.matrix().expect("it is in memory"), factor, BatchSize::LargeInput);
    });
}

fn solve<M: Measurement>(group: &mut BenchmarkGroup<'_, M>, recipe: &str, hessian: &Hessian) {
    let recipe = BUILT_IN.iter().find(|known| known.name == recipe).expect("a built-in recipe");
    let solver = solver::find(recipe.solver).expect("a built-in recipe names a solver");
    let columns = hessian.in_features();
    let weight = numbers(columns, columns, 5) * 0.02;
    let prepare = |hessian: Hessian| hessian.prepare(&recipe.settings, None).expect("the settings are valid");
    let prepared = prepare(hessian.clone());
    let problem = Problem { weight: weight.view(), hessian: Some(&prepared), output: None, scheme: scheme() };
    group.throughput(Throughput::Elements(columns.pow(3) as u64));
    group.bench_function(BenchmarkId::new(format!("{}, solve", recipe.name), columns), |bencher| {
        bencher.iter(|| solver.solve(&problem, &recipe.settings).expect("the problem is well formed"));
    });
    group.bench_function(
        BenchmarkId::new(format!("{}, prepare and solve", recipe.name), columns),
        |bencher| {
            let whole = |hessian: Hessian| {
                let prepared = prepare(hessian);
                let problem = Problem {
                    weight: weight.view(),
                    hessian: Some(&prepared),
                    output: None,
                    scheme: scheme(),
                };
                solver.solve(&problem, &recipe.settings).expect("the problem is well formed")
            };
            bencher.iter_batched(|| hessian.clone(), whole, BatchSize::LargeInput);
        },
    );
}

fn scheme() -> Scheme {
    Scheme {
        bits: BitWidth::new(4).expect("a width"),
        levels: Levels::Uniform,
        granularity: Granularity::PerGroup(GroupSize::new(128).expect("a group size")),
        symmetry: Symmetry::Symmetric,
        scale_dtype: ScaleDtype::F16,
    }
}

fn hessian(columns: usize) -> Hessian {
    let mut accumulator = HessianAccumulator::new(columns);
    accumulator.observe(activations(2 * columns, columns).view()).expect("the inputs are finite");
    accumulator.finish().expect("there are tokens")
}
