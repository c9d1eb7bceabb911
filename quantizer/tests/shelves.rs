//! Second moments elsewhere than in memory: everything that is made of them comes out the same.

mod support;

use std::io;
use std::sync::{Arc, Mutex};

use kernels::stripes::{Shelf, Store};
use ndarray::{Array2, s};
use quantizer::accumulator::Streams;
use quantizer::guard::held_out::HeldOut;
use quantizer::guard::{self, Statistics, Unsolved, Verdict};
use quantizer::order::Order;
use quantizer::scheme::Symmetry;
use quantizer::settings::BUILT_IN;
use quantizer::{HessianAccumulator, HessianError, Problem, Shortfall, Solution, SolverSettings, solver};
use support::{Random, groups, inputs, scheme, weight};

#[derive(Debug, Default)]
struct Bytes {
    all: Mutex<Vec<u8>>,
    /// Bytes that it has no room beyond.
    most: Option<usize>,
}

impl Store for Bytes {
    fn write(&self, place: u64, bytes: &[u8]) -> io::Result<()> {
        let mut all = self.all.lock().unwrap();
        let end = place as usize + bytes.len();
        if self.most.is_some_and(|most| end > most) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let length = all.len().max(end);
        all.resize(length, 0x5a);
        all[end - bytes.len()..end].copy_from_slice(bytes);
        Ok(())
    }

    fn read(&self, place: u64, bytes: &mut [u8]) -> io::Result<()> {
        let place = place as usize;
        bytes.copy_from_slice(&self.all.lock().unwrap()[place..place + bytes.len()]);
        Ok(())
    }
}

const COLUMNS: usize = 576;
const ROWS: usize = 40;

/// Moments of tokens of which the quantized stream lacks something.
fn gathered(seed: u64, tokens: usize, shelf: &Arc<Shelf>) -> Result<Statistics, HessianError> {
    let x = inputs(seed, tokens, COLUMNS);
    let original = &x + &(Random(seed + 1).matrix(tokens, COLUMNS) * 0.1);
    let residual = original.slice(s![.., ..ROWS]).to_owned() * 0.5;
    let mut moments =
        HessianAccumulator::on(COLUMNS, shelf).with_cross_moment(COLUMNS).with_cross_moment(ROWS);
    let streams = [
        Streams { original: original.view(), quantized: x.view() },
        Streams { original: residual.view(), quantized: x.slice(s![.., ..ROWS]) },
    ];
    moments.observe_beside(x.view(), &streams)?;
    let (hessian, crosses) = moments.finish_all()?;
    let mut crosses = crosses.into_iter();
    let shortfall = Shortfall { input: crosses.next(), residual: crosses.next() };
    Ok(Statistics { hessian, shortfall })
}

fn solved(
    shelf: &Arc<Shelf>,
    weight: &Array2<f32>,
    settings: &SolverSettings,
) -> Result<(Verdict, Solution), HessianError> {
    let scheme = scheme(3, groups(64), Symmetry::Asymmetric);
    let (fitted, held) = (gathered(1, 2300, shelf)?, gathered(5, 700, shelf)?);
    let held_out = HeldOut::new(&held)?;
    let verdict = guard::decide(&fitted, &held_out, &[Unsolved { weight: weight.view(), scheme }], settings)?;
    let Statistics { hessian, shortfall } = fitted.merge(held)?;
    let chosen = SolverSettings { damping: verdict.damping, ..settings.clone() };
    let prepared = hessian.prepare(&chosen, Some((shortfall, verdict.shares)))?;
    let problem = Problem { weight: weight.view(), hessian: Some(&prepared), output: None, scheme };
    let solution = solver::find("gptq").unwrap().solve(&problem, settings).unwrap();
    Ok((verdict, held_out.judge(&problem, solution, settings).unwrap()))
}

#[test]
fn no_bit_depends_on_where_second_moments_lie() {
    let weight = weight(3, ROWS, COLUMNS);
    for recipe in ["gptq", "default"] {
        let settings = &BUILT_IN.iter().find(|known| known.name == recipe).unwrap().settings;
        for order in [Order::Activation, Order::Pivot].into_iter().take(if recipe == "gptq" { 2 } else { 1 })
        {
            let settings = SolverSettings { order, ..settings.clone() };
            let (verdict, solution) = solved(&Shelf::memory(), &weight, &settings).unwrap();
            for working in [0, 3 << 20] {
                let store = Arc::new(Bytes::default());
                let shelf = Shelf::of_store(store.clone(), working);
                let (other_verdict, other) = solved(&shelf, &weight, &settings).unwrap();
                assert_eq!(other_verdict, verdict, "{recipe}");
                assert_eq!(other.tensor, solution.tensor, "{recipe}");
                assert_eq!(other.report, solution.report, "{recipe}");
                assert!(!store.all.lock().unwrap().is_empty());
            }
        }
    }
}

#[test]
fn a_store_without_room_is_an_error() {
    let weight = weight(3, ROWS, COLUMNS);
    let settings = &BUILT_IN.iter().find(|known| known.name == "gptq").unwrap().settings;
    // Before the first sum, between gathering and factoring, in the factor.
    for most in [0, 1 << 20, 5 << 20] {
        let store = Arc::new(Bytes { most: Some(most), ..Bytes::default() });
        let error = solved(&Shelf::of_store(store, 0), &weight, settings).unwrap_err();
        assert!(matches!(error, HessianError::Shelf { .. }), "{error}");
        assert!(error.to_string().contains("memory has no room"), "{error}");
    }
}

#[test]
fn a_solver_does_not_refine_with_what_was_prepared_without() {
    let (weight, hessian) = (weight(3, 8, 64), support::hessian(3, 64));
    let settings =
        |refits| SolverSettings { refits, sweeps: 0, coupled_sweeps: 0, ..SolverSettings::default() };
    let prepared = hessian.prepare(&settings(0), None).unwrap();
    assert!(prepared.damped().is_none());
    let scheme = scheme(4, groups(32), Symmetry::Symmetric);
    let problem = Problem { weight: weight.view(), hessian: Some(&prepared), output: None, scheme };
    let gptq = solver::find("gptq").unwrap();
    gptq.solve(&problem, &settings(0)).unwrap();
    assert_eq!(gptq.solve(&problem, &settings(1)).unwrap_err(), quantizer::SolveError::NotForRefinement);
}
