//! One tensor in another format's terms: the same values, or the nearest there are and how far they are.

use formats::Dtype;
use ndarray::Array2;
use quantizer::SolverSettings;
use quantizer::express::express;
use quantizer::scheme::Scheme;
use quantizer::settings::Range;
use quantizer::solver::{self, Problem};
use quantizer::tensor::QuantizedTensor;
use serde::Serialize;

use crate::error::Error;

/// A tensor that is not the same in the other format.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    /// Module path of a linear, or the tensor's name.
    pub name: String,
    /// Why it cannot be the same.
    pub reason: String,
    /// `‖nearest - values‖ / ‖values‖`, Frobenius.
    pub relative_difference: f64,
    /// Largest difference of one value.
    pub largest_difference: f64,
}

impl Difference {
    fn between(name: &str, reason: String, old: &[f32], new: &[f32]) -> Self {
        let (mut errors, mut norm, mut largest) = (0.0, 0.0, 0.0_f64);
        for (&old, &new) in old.iter().zip(new) {
            let error = f64::from(new) - f64::from(old);
            errors += error * error;
            norm += f64::from(old) * f64::from(old);
            largest = largest.max(error.abs());
        }
        let relative_difference = (errors / f64::max(norm, f64::MIN_POSITIVE)).sqrt();
        Self { name: name.to_owned(), reason, relative_difference, largest_difference: largest }
    }
}

/// A linear on the grid of `scheme`: exactly, or rounded to nearest.
pub(super) fn on_grid(
    name: &str,
    tensor: &QuantizedTensor,
    scheme: Scheme,
) -> Result<(QuantizedTensor, Option<Difference>), Error> {
    let reason = match express(tensor, scheme) {
        Ok(expressed) => return Ok((expressed, None)),
        Err(reason) => reason.to_string(),
    };
    let plain = solver::ALL.iter().find(|solver| !solver.needs_hessian());
    let plain = plain.ok_or_else(|| Error::Internal("every solver needs data".to_owned()))?;
    let settings = SolverSettings { range: Range::Plain, ..SolverSettings::default() };
    let values = tensor.dequantize();
    let problem = Problem { weight: values.view(), hessian: None, output: None, scheme };
    let solution = plain.solve(&problem, &settings);
    let solution = solution.map_err(|source| Error::Solve { linear: name.to_owned(), source })?.tensor;
    let difference = Difference::between(name, reason, &flat(values), &flat(solution.dequantize()));
    Ok((solution, Some(difference)))
}

/// Numbers in a type that is not quantized, as bytes.
pub(super) fn in_type(
    name: &str,
    values: &[f32],
    dtype: Dtype,
) -> Result<(Vec<u8>, Option<Difference>), Error> {
    let coded = dtype.encode(values).and_then(|bytes| Some((dtype.decode(&bytes)?, bytes)));
    let (held, bytes) =
        coded.ok_or_else(|| Error::Internal(format!("`{name}` is to be numbers in {}", dtype.name())))?;
    let difference = (held != values).then(|| {
        let reason = format!("its values are no {} numbers", dtype.name());
        Difference::between(name, reason, values, &held)
    });
    Ok((bytes, difference))
}

/// The values of a matrix, row by row.
pub(super) fn flat(matrix: Array2<f32>) -> Vec<f32> {
    matrix.into_iter().collect()
}
