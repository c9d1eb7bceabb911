//! Second moments that several ranks gather, each a share of them: not one bit is other than in one process.

mod support;

use std::sync::Arc;

use kernels::ranks::{Alone, Ranks, threads};
use kernels::stripes::Shelf;
use ndarray::{Array2, s};
use quantizer::HessianAccumulator;
use quantizer::accumulator::{CHUNK_TOKENS, Streams};
use support::{Random, inputs};

/// Three stripes, the last of them not whole.
const COLUMNS: usize = 576;
const ROWS: usize = 300;

/// The moments, on ranks that finish them.
fn gathered(ranks: &Arc<dyn Ranks>, readers: &[usize]) -> Option<Vec<Array2<f64>>> {
    let x = inputs(1, CHUNK_TOKENS + 99, COLUMNS);
    let original = &x + &(Random(2).matrix(x.nrows(), COLUMNS) * 0.1);
    let residual = original.slice(s![.., ..ROWS]).to_owned() * 0.5;
    let mut moments = HessianAccumulator::on(COLUMNS, &Shelf::memory())
        .among(ranks, readers)
        .with_cross_moment(COLUMNS)
        .with_cross_moment(ROWS);
    let streams = [
        Streams { original: original.view(), quantized: x.view() },
        Streams { original: residual.view(), quantized: x.slice(s![.., ..ROWS]) },
    ];
    moments.observe_beside(x.view(), &streams).unwrap();
    if !readers.contains(&ranks.rank()) {
        moments.give().unwrap();
        return None;
    }
    let (hessian, crosses) = moments.finish_all().unwrap();
    let crosses = crosses.iter().map(|cross| cross.matrix().mapv(f64::from));
    Some(std::iter::once(hessian.matrix().unwrap().mapv(f64::from)).chain(crosses).collect())
}

#[test]
fn shares_of_ranks_are_the_moments_of_one_process() {
    let expected = gathered(&Alone::ranks(), &[0]);
    for (size, readers) in [(2, &[0, 1][..]), (3, &[0, 1, 2]), (3, &[1]), (3, &[0, 2])] {
        let found: Vec<_> = std::thread::scope(|scope| {
            let run =
                |ranks: Arc<dyn Ranks>| scope.spawn(move || (gathered(&ranks, readers), ranks.traffic()));
            let runs: Vec<_> = threads(size).into_iter().map(run).collect();
            runs.into_iter().map(|run| run.join().unwrap()).collect()
        });
        for (rank, (found, traffic)) in found.iter().enumerate() {
            if readers.contains(&rank) {
                assert_eq!(*found, expected, "rank {rank} of {size}");
            } else if readers.len() == 1 {
                assert_eq!((found, traffic.received), (&None, 0));
            }
        }
    }
}
