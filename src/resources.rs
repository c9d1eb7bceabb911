//! What a run cost: wall clock, processor time, peak memory.

use std::sync::OnceLock;
use std::time::Instant;

use kernels::account::Time;
use nix::sys::resource::{UsageWho, getrusage};
use serde::{Deserialize, Serialize};

/// Cost of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    /// Seconds on the clock.
    pub wall_seconds: f64,
    /// Seconds of all processors together, user and system.
    pub cpu_seconds: f64,
    /// Largest resident set of the process, bytes.
    pub peak_rss_bytes: u64,
}

/// A running measurement. Processor time and memory are those of the whole process.
#[derive(Debug)]
pub struct Stopwatch {
    started: Instant,
    cpu_before: f64,
}

impl Stopwatch {
    /// Starts measuring.
    #[must_use]
    pub fn start() -> Self {
        Self { started: Instant::now(), cpu_before: process().0 }
    }

    /// The cost since the start.
    #[must_use]
    pub fn read(&self) -> Resources {
        let (cpu, peak_rss_bytes) = process();
        Resources {
            wall_seconds: self.started.elapsed().as_secs_f64(),
            cpu_seconds: cpu - self.cpu_before,
            peak_rss_bytes,
        }
    }
}

/// The clock of [`kernels::account`]: since it was read first, and of this process.
pub(crate) fn now() -> Time {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    Time { wall: FIRST.get_or_init(Instant::now).elapsed().as_secs_f64(), cpu: process().0 }
}

/// Processor seconds and peak resident bytes of this process; zero where the system does not tell.
fn process() -> (f64, u64) {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return (0.0, 0) };
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 * 1e-6;
    // Linux counts kibibytes, macOS bytes.
    let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
    let peak = u64::try_from(usage.max_rss()).unwrap_or(0) * unit;
    (seconds(usage.user_time()) + seconds(usage.system_time()), peak)
}
