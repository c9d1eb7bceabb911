//! The proof: reopen the output, check every file's hash, decode every tensor, compare it with what was solved, run the packed
//! kernel on the written bytes against a dense reference in f64, and check the loaders' rules.

use std::collections::BTreeSet;
use std::path::Path;

use formats::side_files;
use formats::target::{self, PlannedLinear, TargetFormat};
use kernels::{PackedMatrix, reference_product};
use model::linear::Linear;
use ndarray::Array2;
use quantizer::scheme::{Scheme, Symmetry};
use serde::Serialize;

use crate::error::Error;
use crate::memory::Memory;
use crate::progress::{Progress, go_on};
use crate::record::{self, FileRecord, LinearRecord, Record, digest_in_pieces, solution_digest};
use crate::render::html;
use crate::stored::{self, StoredModel};

/// Largest difference between the packed kernel and f64, relative to the largest output.
const MOST_KERNEL_ERROR: f64 = 1e-5;
/// Rows of random inputs that the kernel multiplies: fewer and more than its paths for small batches.
const KERNEL_TOKENS: usize = 3;
/// Outputs that are compared for each linear.
const KERNEL_OUTPUTS: usize = 256;

/// What reopening an output found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verification {
    /// Files whose SHA-256 was compared.
    pub files: usize,
    /// Linears that were decoded and compared with the digest of the solution.
    pub linears: usize,
    /// Other tensors compared with their digests.
    pub tensors: usize,
    /// Linears that the packed kernel multiplied with; it knows the grids of equal steps.
    pub multiplied: usize,
    /// Largest difference of the packed kernel from the f64 reference, relative to the largest output of its linear.
    pub kernel_error: f64,
    /// What is wrong, if anything.
    pub problems: Vec<String>,
}

/// Verifies an output directory of `quantize`; one linear is in memory at a time.
///
/// # Errors
/// A directory without a record, or one that cannot be read at all; less `memory` than the largest linear takes. What does not match is no error but a
/// [`Verification::problems`] entry.
pub fn verify(directory: &Path, memory: Option<u64>, progress: &dyn Progress) -> Result<Verification, Error> {
    if !directory.is_dir() {
        return Err(stored::no_directory(directory));
    }
    let record = Record::read(directory)?;
    let mut found = Verification::default();
    // What does not open is told once the hashes are compared.
    let stored = StoredModel::open(directory);
    if let (Some(memory), Ok(stored)) = (memory, &stored) {
        Memory::demand_verifying(memory, &stored.model, |linear| record.linears.contains_key(&linear.name))?;
    }
    for (name, expected) in &record.files {
        // Names are the record's word: one that leads elsewhere is not followed.
        let found_file = formats::files::below(directory, name).map_err(Error::from);
        match found_file.and_then(|path| FileRecord::of(&path)) {
            Ok(actual) if actual == *expected => found.files += 1,
            Ok(actual) if actual.bytes != expected.bytes => found
                .problems
                .push(format!("`{name}` has {} bytes, expected {}", actual.bytes, expected.bytes)),
            Ok(actual) => found
                .problems
                .push(format!("SHA-256 of `{name}` is {}, expected {}", actual.sha256, expected.sha256)),
            Err(error) => found.problems.push(error.to_string()),
        }
    }
    for name in &record.dated {
        let path = directory.join(name);
        match std::fs::read(&path) {
            Ok(page) if html::is_whole(&page) => found.files += 1,
            Ok(_) => found.problems.push(format!("`{name}` is not what its own SHA-256 says")),
            Err(error) => found.problems.push(Error::io(&path)(error).to_string()),
        }
    }
    // What a loader would read, but nobody solved: a second file of weights may hide the first one.
    for name in record::file_names(directory)? {
        if side_files::is_read_by_loaders(&name) && !record.files.contains_key(&name) {
            found.problems.push(format!("`{name}` is not part of what was written"));
        }
    }
    // A file that cannot be opened as a model is one more problem, which the hashes have usually named already.
    match stored {
        Ok(stored) => check_tensors(&stored, &record, &mut found, progress)?,
        Err(error) => found.problems.push(error.to_string()),
    }
    Ok(found)
}

fn check_tensors(
    stored: &StoredModel,
    record: &Record,
    found: &mut Verification,
    progress: &dyn Progress,
) -> Result<(), Error> {
    progress.phase("verifying", record.linears.len());
    let mut plan = Vec::new();
    let outer: Vec<Linear> =
        stored.model.outer_linears().filter(|linear| record.linears.contains_key(&linear.name)).collect();
    let stages = stored.model.layers.iter().flat_map(|layer| &layer.stages).map(|stage| &stage.linears[..]);
    for (fused_group, linears) in stages.chain(outer.chunks(1)).enumerate() {
        for linear in linears {
            let expected = record.linears.get(&linear.name);
            let scheme = expected.map(|expected| expected.scheme);
            plan.push(PlannedLinear { linear: linear.clone(), fused_group, scheme });
            let Some(expected) = expected else { continue };
            progress.at(&linear.name);
            match check_linear(stored, linear, expected) {
                Ok(error) => {
                    found.linears += 1;
                    found.multiplied += usize::from(error.is_some());
                    let error = error.unwrap_or(0.0);
                    found.kernel_error = found.kernel_error.max(error);
                    if error.is_nan() || error > MOST_KERNEL_ERROR {
                        let problem = format!("the packed kernel is {error:.1e} from the f64 reference");
                        found.problems.push(format!("`{}`: {problem}", linear.name));
                    }
                }
                Err(problem) => found.problems.push(format!("`{}`: {problem}", linear.name)),
            }
            progress.step("");
            go_on(progress)?;
        }
    }
    progress.finish();
    let known: BTreeSet<String> = stored.matrices().map(|linear| linear.name).collect();
    for name in record.linears.keys().filter(|name| !known.contains(*name)) {
        found.problems.push(format!("`{name}` was solved, but the model has no such linear"));
    }
    for (name, expected) in &record.tensors {
        let bytes = stored.checkpoint.info(name).map(|info| info.bytes);
        let read = |first, piece: &mut [u8]| stored.checkpoint.read_bytes_at(name, first, piece);
        match bytes.and_then(|bytes| digest_in_pieces(bytes, read)) {
            Ok(digest) if digest == *expected => found.tensors += 1,
            Ok(digest) => {
                found.problems.push(format!("SHA-256 of tensor `{name}` is {digest}, expected {expected}"));
            }
            Err(error) => found.problems.push(error.to_string()),
        }
    }
    // Of two formats that write the same, reading names one.
    let read = stored.format.as_ref().map_or("", |format| format.id());
    if !target::alike(read, &record.format) {
        found.problems.push(format!("what was written does not say that its format is {}", record.format));
    }
    let loaders = target::all().filter(|format| format.id() == record.format).flat_map(TargetFormat::loaders);
    let verdicts: Vec<_> = loaders.map(|rule| rule.check(&plan)).collect();
    if !verdicts.iter().any(|verdict| verdict.loads) {
        found.problems.push("no runtime's rules are met".to_owned());
    }
    Ok(())
}

/// Compares one linear with its record; returns the kernel's error, if the kernels have such a grid.
fn check_linear(
    stored: &StoredModel,
    linear: &Linear,
    expected: &LinearRecord,
) -> Result<Option<f64>, String> {
    let Some((format, scheme)) = stored.format.as_ref().zip(stored.scheme(linear)) else {
        return Err("was solved, but is not stored as quantized".to_owned());
    };
    // A format that always stores zero points or minimums holds symmetric grids too.
    let holds = scheme.symmetry == expected.scheme.symmetry || scheme.symmetry != Symmetry::Symmetric;
    if scheme.bits != expected.scheme.bits || !holds {
        return Err(format!("config.json gives it {scheme:?}, it was solved for {:?}", expected.scheme));
    }
    let scheme = Scheme { symmetry: expected.scheme.symmetry, ..scheme };
    let tensor = format.decode(linear, scheme, &stored.checkpoint).map_err(|e| e.to_string())?;
    let digest = solution_digest(&tensor);
    if digest != expected.digest {
        return Err(format!(
            "decodes to other codes or scales than were solved (SHA-256 {digest}, expected {})",
            expected.digest
        ));
    }
    let packed = format.packed(linear, scheme, &stored.checkpoint).map_err(|e| e.to_string())?;
    Ok(packed.map(|packed| kernel_error(&packed, &tensor.dequantize())))
}

/// Largest difference of the packed product from the dense one in f64, relative to the largest output.
fn kernel_error(packed: &PackedMatrix, dense: &Array2<f32>) -> f64 {
    let mut state = 0x9e37_79b9_u32;
    let x = Array2::from_shape_fn((KERNEL_TOKENS, dense.ncols()), |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state as f32 / u32::MAX as f32) * 2.0 - 1.0
    });
    let mut out = Array2::zeros((KERNEL_TOKENS, dense.nrows()));
    packed.product(x.view(), out.view_mut());
    // The f64 reference is slow on purpose; a spread of outputs touches every tile of the kernel.
    let step = dense.nrows().div_ceil(KERNEL_OUTPUTS);
    let rows: Vec<usize> = (0..dense.nrows()).step_by(step).collect();
    let exact = reference_product(x.view(), dense.select(ndarray::Axis(0), &rows).view());
    let found = out.select(ndarray::Axis(1), &rows);
    let most = exact.iter().fold(f64::MIN_POSITIVE, |most, value| most.max(value.abs()));
    found.iter().zip(&exact).fold(0.0, |worst: f64, (found, exact)| {
        let difference = (f64::from(*found) - exact).abs() / most;
        if difference.is_nan() { f64::NAN } else { worst.max(difference) }
    })
}
