//! One bit of a file that changes.

use std::io::{Seek, SeekFrom, Write};

use crate::parts::{checkpoints, group, linear, planned, quantization, scheme, solution, write};
use formats::target::{self, TargetFormat};
use formats::{Checkpoint, Dtype};
use model::linear::Role;
use quantizer::scheme::{Scheme, Symmetry};

#[test]
fn a_single_changed_bit_is_seen() {
    for format in checkpoints() {
        let other = if format.mixed_widths().is_empty() { 4 } else { 3 };
        for (bits, symmetry) in [(4, Symmetry::Symmetric), (other, Symmetry::Asymmetric)] {
            // 37 outputs and 48 inputs of 3 or 4 bits leave bits unused at the end of a stream, where the format allows it.
            let shape = if format.id() == "compressed-tensors" { (37, 48) } else { (32, 32) };
            let linear = linear(0, Role::Output, shape);
            let schemes = [16, 32].map(|columns| scheme(format, bits, group(columns), symmetry, Dtype::F16));
            let holds = |scheme: &Scheme| format.settle(&mut [planned(&linear, *scheme)]).is_ok();
            let Some(scheme) = schemes.into_iter().find(holds) else { continue };
            let plan = [planned(&linear, scheme)];
            let solution = solution(&linear, scheme);
            let folder = tempfile::tempdir().unwrap();
            write(folder.path(), format, &plan, std::slice::from_ref(&solution));
            let stored = target::open(&quantization(folder.path())).unwrap();
            let path = folder.path().join("model.safetensors");
            let bytes = std::fs::read(&path).unwrap();
            let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            let mut file = std::fs::File::options().write(true).open(&path).unwrap();
            let mut put = |place: usize, byte: u8| {
                file.seek(SeekFrom::Start(place as u64)).unwrap();
                file.write_all(&[byte]).unwrap();
            };
            // Of a table of 256 numbers some.
            let step = if format.id().ends_with(":double") { 11 } else { 1 };
            for bit in (8 * data..8 * bytes.len()).step_by(step) {
                put(bit / 8, bytes[bit / 8] ^ 1 << (bit % 8));
                match stored.decode(&linear, scheme, &checkpoint) {
                    Err(error) => assert!(error.to_string().contains("o_proj"), "{error}"),
                    Ok(decoded) => {
                        let same = decoded == solution && !changes_no_value(format, &bytes, bit);
                        assert!(!same, "{} bit {bit}", format.id());
                    }
                }
                put(bit / 8, bytes[bit / 8]);
            }
        }
    }
}

/// Whether that bit is the sign of a float that is zero, or of a digit of an offset that rounds to the same number.
fn changes_no_value(format: &dyn TargetFormat, bytes: &[u8], bit: usize) -> bool {
    let (byte, id) = (bytes[bit / 8], format.id());
    if id.ends_with(":double") {
        let key = b"\"nested_offset\": ";
        let digits = bytes.windows(key.len()).position(|part| part == key).unwrap() + key.len();
        if (digits..digits + 26).contains(&(bit / 8)) && byte.is_ascii_digit() {
            return true;
        }
    }
    match (id.trim_end_matches(":double").rsplit(':').next().unwrap(), bit % 8) {
        ("fp8" | "w8a8-fp8" | "mxfp8", 7) => byte & 0x7F == 0,
        ("mxfp4" | "nvfp4" | "fp4", 7) => byte & 0x70 == 0,
        ("mxfp4" | "nvfp4" | "fp4", 3) => byte & 0x07 == 0,
        _ => false,
    }
}
