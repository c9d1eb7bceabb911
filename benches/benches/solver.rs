//! Solving a matrix, in one thread: the factorization alone, then whole solves to 4 bit in groups of 128.
//!
//! Prints the processor time and the floating point operations a second, alone and as a share of the dense product's of the
//! same precision. A factorization of `n` columns counts `n³/3`, a solve of `m` rows `m n²`, whatever the recipe: what it spends
//! on choosing ranges and on refinement lowers its share. The last column is the time of preparation and solve over the one
//! of the plain recipe at the same size. No recipe propagates errors here, as there is no earlier layer.
//!
//! `cargo bench -p benches --bench solver`

use benches::{Yardstick, activations, best_seconds, numbers, on_one_thread};
use kernels::factor::cholesky_upper;
use quantizer::scheme::{BitWidth, Granularity, GroupSize, ScaleDtype, Symmetry};
use quantizer::settings::{BUILT_IN, BuiltIn};
use quantizer::{Hessian, HessianAccumulator, Problem, Scheme, solver};

const GROUP_SIZE: usize = 128;
const PLAIN: &str = "gptq";
const REFINED: &str = "default";

fn main() {
    on_one_thread(|| {
        let yardstick = Yardstick::measure();
        let (small, large) = (hessian(1024), hessian(4096));
        println!("factorization, f64\ncolumns   core-ms   GFLOP/s   of dense");
        factorization(&small, &yardstick, 4);
        factorization(&large, &yardstick, 2);
        println!(
            "solve, f32\nrecipe      columns   prepare ms   solve ms   GFLOP/s   of dense   time / {PLAIN}"
        );
        let plain = solve(PLAIN, &small, &yardstick, 3, None);
        solve(REFINED, &small, &yardstick, 2, Some(plain));
        solve(PLAIN, &large, &yardstick, 1, None);
    });
}

fn factorization(hessian: &Hessian, yardstick: &Yardstick, rounds: usize) {
    let damped = hessian.clone().damp(0.01);
    let columns = hessian.in_features();
    let factor = |matrix| cholesky_upper(matrix).expect("the matrix is damped");
    let seconds = best_seconds(rounds, || damped.matrix().to_owned(), factor);
    let rate = (columns as f64).powi(3) / 3.0 / seconds;
    println!(
        "{columns:7} {:9.2} {:9.2} {:8.0} %",
        seconds * 1e3,
        rate * 1e-9,
        100.0 * rate / yardstick.double
    );
}

/// Times a square weight; returns the seconds of preparation and solve.
fn solve(recipe: &str, hessian: &Hessian, yardstick: &Yardstick, rounds: usize, plain: Option<f64>) -> f64 {
    let BuiltIn { solver, settings, .. } =
        BUILT_IN.iter().find(|known| known.name == recipe).expect("a built-in recipe");
    let solver = solver::find(solver).expect("a built-in recipe names a solver");
    let columns = hessian.in_features();
    let weight = numbers(columns, columns, 5) * 0.02;
    let prepare = |hessian: Hessian| hessian.prepare(settings, None).expect("the settings are valid");
    let preparation = best_seconds(rounds, || hessian.clone(), prepare);
    let prepared = prepare(hessian.clone());
    let problem = Problem { weight: weight.view(), hessian: Some(&prepared), scheme: scheme() };
    let work = |()| solver.solve(&problem, settings).expect("the problem is well formed");
    let solving = best_seconds(rounds, || (), work);
    let rate = (columns as f64).powi(3) / solving;
    let seconds = preparation + solving;
    println!(
        "{recipe:10} {columns:8} {:12.2} {:10.2} {:9.2} {:8.0} % {:13.2}",
        preparation * 1e3,
        solving * 1e3,
        rate * 1e-9,
        100.0 * rate / yardstick.single,
        seconds / plain.unwrap_or(seconds)
    );
    seconds
}

fn scheme() -> Scheme {
    Scheme {
        bits: BitWidth::new(4).expect("a width"),
        granularity: Granularity::PerGroup(GroupSize::new(GROUP_SIZE).expect("a group size")),
        symmetry: Symmetry::Symmetric,
        scale_dtype: ScaleDtype::F16,
    }
}

/// From half as many tokens again as there are columns.
fn hessian(columns: usize) -> Hessian {
    let mut accumulator = HessianAccumulator::new(columns);
    let inputs = activations(columns + columns / 2, columns);
    accumulator.observe(inputs.view()).expect("the inputs are finite");
    accumulator.finish().expect("there are tokens")
}
