//! Gathering a Hessian, `XᵀX` in single precision summed up in double, in one thread.
//!
//! Prints the processor time for each size, and the floating point operations of one triangle a second, alone and as a share
//! of the dense product's.
//!
//! `cargo bench -p benches --bench hessian`

use benches::{Yardstick, activations, best_seconds, on_one_thread};
use quantizer::HessianAccumulator;

const ROUNDS: usize = 3;

fn main() {
    on_one_thread(|| {
        let yardstick = Yardstick::measure();
        println!("tokens features   core-ms   GFLOP/s   of dense");
        for (tokens, features) in [(2048, 576), (8192, 1024), (8192, 4096)] {
            let inputs = activations(tokens, features);
            // One accumulator for all rounds: its memory is mapped once, as it is for the windows of a stage.
            let mut accumulator = HessianAccumulator::new(features);
            let observe = |()| accumulator.observe(inputs.view()).expect("the inputs are finite");
            let seconds = best_seconds(ROUNDS, || (), observe);
            let rate = (tokens * features * (features + 1)) as f64 / seconds;
            println!(
                "{tokens:6} {features:8} {:9.2} {:9.2} {:8.0} %",
                seconds * 1e3,
                rate * 1e-9,
                100.0 * rate / yardstick.single
            );
        }
    });
}
