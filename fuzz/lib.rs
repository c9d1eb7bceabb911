//! One target for each reader: `fuzz/run MINUTES` runs them all, one after the other; docs/reliability.md says what they found.

use std::path::PathBuf;
use std::sync::{Once, OnceLock};

#[path = "../tests/hostile/readers.rs"]
mod readers;

/// Formats whose sound model the file of a reader of packed models is laid among; the first byte chooses.
const VARIANTS: [&str; 6] = ["gptq", "awq", "compressed-tensors", "mlx", "w8a8-fp8", "nf4"];

/// Lays the bytes out as the file that `reader` reads, and reads it. Only a panic, memory without bound or time without end is a finding.
pub fn run(reader: &str, bytes: &[u8]) {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        // The fuzzer's own hook ends the process at any panic, also at one that becomes an error.
        let ends = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !calibration::foreign::is_inside() {
                ends(panic);
            }
        }));
    });
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        // Memory, not a disk, where there is such a thing.
        let parent = PathBuf::from("/dev/shm");
        let parent = if parent.is_dir() { parent } else { std::env::temp_dir() };
        tempfile::Builder::new().prefix("quantc-fuzz-").tempdir_in(parent).expect("there is room").keep()
    });
    let (variant, bytes) = match reader {
        "packed" | "quantization" | "record" => match bytes.split_first() {
            Some((first, rest)) => (VARIANTS[usize::from(*first) % VARIANTS.len()], rest),
            None => return,
        },
        _ => ("", bytes),
    };
    readers::lay_out(reader, variant, bytes, folder);
    let _ = readers::read(reader, folder);
}
