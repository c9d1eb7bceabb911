//! Tells the program what it is built of: a journal of another build is not gone on from, since its solver may have been another.

use std::fs;
use std::path::{Path, PathBuf};

const SOURCES: [&str; 7] =
    ["src", "kernels/src", "model/src", "quantizer/src", "formats/src", "calibration/src", "Cargo.lock"];

fn main() {
    // FNV-1a, 64 bits: nobody is to be deceived here.
    let mut digest = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            digest = (digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for source in SOURCES {
        println!("cargo:rerun-if-changed={source}");
        let mut files = Vec::new();
        gather(Path::new(source), &mut files);
        files.sort();
        for file in files {
            add(file.to_string_lossy().as_bytes());
            add(&fs::read(&file).unwrap_or_default());
        }
    }
    println!("cargo:rustc-env=QUANTC_SOURCES={digest:016x}");
}

fn gather(path: &Path, files: &mut Vec<PathBuf>) {
    match fs::read_dir(path) {
        Ok(entries) => entries.flatten().for_each(|entry| gather(&entry.path(), files)),
        Err(_) => files.push(path.to_owned()),
    }
}
