//! Gathering a Hessian, `XᵀX` in single precision summed up in double, in one thread. Operations are those of one triangle.
//!
//! `cargo bench -p benches --bench hessian`

use benches::activations;
use criterion::{BenchmarkId, Throughput};
use quantizer::HessianAccumulator;

fn main() {
    benches::run(|criterion| {
        let mut group = criterion.benchmark_group("hessian");
        for (tokens, features) in [(2048, 576), (8192, 1024), (8192, 4096)] {
            let inputs = activations(tokens, features);
            // One accumulator for all rounds: its memory is mapped once, as it is for the windows of a stage.
            let mut accumulator = HessianAccumulator::new(features);
            group.throughput(Throughput::Elements((tokens * features * (features + 1)) as u64));
            let id = BenchmarkId::from_parameter(format!("{tokens} tokens x {features}"));
            group.bench_function(id, |bencher| {
                bencher.iter(|| accumulator.observe(inputs.view()).expect("the inputs are finite"));
            });
        }
        group.finish();
    });
}
