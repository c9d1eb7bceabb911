//! The same values on another grid: what one format holds, said in another's terms.
//!
//! Codes move by whole steps, scales and minimums stay as they are, and a group may be cut into smaller ones; so what comes back holds
//! exactly the values that were there, or it does not come back. The end compares all of them, whatever the rules before it say.

use ndarray::{Array2, ArrayView1, s};

use crate::levels::Levels;
use crate::scheme::{Granularity, Scheme, Symmetry};
use crate::tensor::{Offsets, QuantizedTensor};

/// Why values cannot be had on a grid.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Inexact {
    /// Levels of one grid are none of the other's.
    #[error("{from} levels are no {to} levels")]
    Levels {
        /// The levels that there are.
        from: &'static str,
        /// The levels that there should be.
        to: &'static str,
    },
    /// Weights that are to share a scale have different ones.
    #[error("{columns} columns are to share a scale, and have several at row {row}, group {group}")]
    Groups {
        /// Columns of a group of the new grid.
        columns: usize,
        /// Where.
        row: usize,
        /// Where.
        group: usize,
    },
    /// A scale or minimum is no number of the new type.
    #[error("the scale {scale} at row {row}, group {group} cannot be stored")]
    Scale {
        /// The scale.
        scale: f32,
        /// Where.
        row: usize,
        /// Where.
        group: usize,
    },
    /// Codes and their zero are too far apart.
    #[error("codes of row {row}, group {group} do not fit {bits} bit with their zero")]
    Codes {
        /// Width of the new codes.
        bits: u8,
        /// Where.
        row: usize,
        /// Where.
        group: usize,
    },
    /// A zero point is no whole number of steps.
    #[error("zero is between two codes of row {row}, group {group}")]
    Zero {
        /// Where.
        row: usize,
        /// Where.
        group: usize,
    },
    /// Scales that are products have to be solved for.
    #[error("scales are to be products of two numbers, which they are not")]
    Products,
    /// Something else is not the same.
    #[error("the value at row {row}, column {column} would be {found}, is {expected}")]
    Value {
        /// Where.
        row: usize,
        /// Where.
        column: usize,
        /// The new value.
        found: f32,
        /// The old one.
        expected: f32,
    },
}

/// `tensor` on the grid of `scheme`, with exactly the same values.
///
/// # Errors
/// The first reason why it cannot be.
pub fn express(tensor: &QuantizedTensor, scheme: Scheme) -> Result<QuantizedTensor, Inexact> {
    let from = tensor.scheme();
    if from.levels != scheme.levels {
        return Err(Inexact::Levels { from: from.levels.name(), to: scheme.levels.name() });
    }
    if scheme.scale_dtype.is_product() {
        return in_products(tensor, scheme);
    }
    let (rows, columns) = (tensor.out_features(), tensor.in_features());
    let old = Groups::of(tensor);
    let size = scheme.granularity.columns_per_scale(columns).max(1);
    let per_row = (rows, columns.div_ceil(size));
    let mut codes = tensor.codes().to_owned();
    let (mut scales, mut zeros) = (Array2::zeros(per_row), Array2::<u8>::zeros(per_row));
    let mut minimums = Array2::zeros(per_row);
    for row in 0..rows {
        for group in 0..per_row.1 {
            let members = group * size..((group + 1) * size).min(columns);
            let found = old.shared(row, members.clone());
            let found = found.ok_or(Inexact::Groups { columns: size, row, group })?;
            let part = codes.slice(s![row, members.clone()]);
            let moved = found.moved(scheme, part, row, group)?;
            if moved.scale != 0.0 && !scheme.scale_dtype.holds(moved.scale) {
                return Err(Inexact::Scale { scale: moved.scale, row, group });
            }
            scales[[row, group]] = moved.scale;
            zeros[[row, group]] = moved.zero;
            minimums[[row, group]] = moved.minimum;
            for (code, new) in codes.slice_mut(s![row, members]).iter_mut().zip(moved.codes) {
                *code = new;
            }
        }
    }
    if scheme.granularity == Granularity::PerTensor {
        let rest = scales.iter().zip(&zeros).zip(&minimums);
        if let Some(at) = rest.clone().position(|found| Some(found) != rest.clone().next()) {
            return Err(Inexact::Groups { columns, row: at, group: 0 });
        }
        (scales, zeros) = (scales.slice_move(s![..1, ..]), zeros.slice_move(s![..1, ..]));
        minimums = minimums.slice_move(s![..1, ..]);
    }
    let offsets = match scheme.symmetry {
        Symmetry::Symmetric => Offsets::None,
        Symmetry::Asymmetric => Offsets::ZeroPoints(zeros),
        Symmetry::Minimum => Offsets::Minimums(minimums),
    };
    let scale = tensor.scales()[[0, 0]];
    let expressed = QuantizedTensor::with_offsets(scheme, codes, scales, offsets)
        .map_err(|_| Inexact::Scale { scale, row: 0, group: 0 })?;
    same_values(tensor, expressed)
}

/// Products stay what they are or come from nowhere.
fn in_products(tensor: &QuantizedTensor, scheme: Scheme) -> Result<QuantizedTensor, Inexact> {
    let Some(parts) = tensor.scale_parts().filter(|_| tensor.scheme() == scheme) else {
        return Err(Inexact::Products);
    };
    let offsets = tensor.minimums().map_or(Offsets::None, |found| Offsets::Minimums(found.to_owned()));
    QuantizedTensor::with_offsets(scheme, tensor.codes().to_owned(), tensor.scales().to_owned(), offsets)
        .and_then(|found| found.in_parts(parts.clone(), tensor.minimum_parts().cloned()))
        .map_err(|_| Inexact::Products)
}

fn same_values(tensor: &QuantizedTensor, expressed: QuantizedTensor) -> Result<QuantizedTensor, Inexact> {
    let (new, old) = (expressed.dequantize(), tensor.dequantize());
    match new.indexed_iter().zip(&old).find(|((_, found), expected)| found != expected) {
        None => Ok(expressed),
        Some((((row, column), &found), &expected)) => Err(Inexact::Value { row, column, found, expected }),
    }
}

/// Scales and offsets of a tensor, spread over rows and groups.
struct Groups {
    size: usize,
    levels: Levels,
    scales: Array2<f32>,
    zeros: Array2<u8>,
    minimums: Option<Array2<f32>>,
}

/// What the codes of one group mean: `scale * (level - zero)`, or `scale * level + minimum`.
#[derive(Clone, Copy, PartialEq)]
struct Meaning {
    levels: Levels,
    scale: f32,
    zero: u8,
    minimum: Option<f32>,
}

/// A group on its new grid.
struct Moved {
    codes: Vec<u8>,
    scale: f32,
    zero: u8,
    minimum: f32,
}

impl Groups {
    fn of(tensor: &QuantizedTensor) -> Self {
        let scales = tensor.scales_by_row();
        let minimums = tensor.minimums().map(|found| {
            Array2::from_shape_fn(scales.dim(), |(row, group)| found[[row.min(found.nrows() - 1), group]])
        });
        Self {
            size: tensor.scheme().granularity.columns_per_scale(tensor.in_features()).max(1),
            levels: tensor.scheme().levels,
            scales,
            zeros: tensor.zero_points_by_row(),
            minimums,
        }
    }

    /// What all of the columns have in common; none where they differ.
    fn shared(&self, row: usize, columns: std::ops::Range<usize>) -> Option<Meaning> {
        let meaning = |group: usize| Meaning {
            levels: self.levels,
            scale: self.scales[[row, group]],
            zero: self.zeros[[row, group]],
            minimum: self.minimums.as_ref().map(|minimums| minimums[[row, group]]),
        };
        let (first, last) = (columns.start / self.size, (columns.end - 1) / self.size);
        let found = meaning(first);
        (first..=last).all(|group| meaning(group) == found).then_some(found)
    }
}

impl Meaning {
    /// The same on the grid of `scheme`.
    fn moved(
        self,
        scheme: Scheme,
        codes: ArrayView1<'_, u8>,
        row: usize,
        group: usize,
    ) -> Result<Moved, Inexact> {
        let (scale, most) = (self.scale, i32::from(scheme.max_code()));
        let too_far = Inexact::Codes { bits: scheme.bits.get(), row, group };
        let moved_by = |steps: i32, sign: i32| -> Option<Vec<u8>> {
            let code = |&code: &u8| {
                let code = steps + sign * i32::from(code);
                (0..=most).contains(&code).then_some(code as u8)
            };
            codes.iter().map(code).collect()
        };
        if self.levels != Levels::Uniform {
            let codes = codes.to_vec();
            return Ok(Moved { codes, scale, zero: 0, minimum: 0.0 });
        }
        if scheme.symmetry == Symmetry::Minimum {
            let minimum = self.minimum.unwrap_or(-(scale * f32::from(self.zero)));
            let held = scheme.scale_dtype.round_minimum(minimum) == minimum;
            if !held {
                return Err(Inexact::Scale { scale: minimum, row, group });
            }
            let codes = moved_by(0, 1).ok_or(too_far)?;
            return Ok(Moved { codes, scale, zero: 0, minimum });
        }
        let zero = match self.minimum {
            None => i32::from(self.zero),
            Some(minimum) => {
                let zero = (-minimum / scale).round_ties_even();
                if -(scale * zero) != minimum || zero.abs() > 1024.0 {
                    return Err(Inexact::Zero { row, group });
                }
                zero as i32
            }
        };
        if scheme.symmetry == Symmetry::Symmetric {
            let middle = scheme.middle() as i32;
            // A range that is longer on the other side fits with its sign turned.
            let straight = moved_by(middle - zero, 1).map(|codes| (codes, scale));
            let found = straight.or_else(|| moved_by(middle + zero, -1).map(|codes| (codes, -scale)));
            let (codes, scale) = found.ok_or(too_far)?;
            return Ok(Moved { codes, scale, zero: 0, minimum: 0.0 });
        }
        let least = codes.iter().copied().min().map_or(0, i32::from).min(zero);
        let steps = [0, -least].into_iter().find_map(|steps| {
            let zero = u8::try_from(zero + steps).ok().filter(|&zero| i32::from(zero) <= most)?;
            Some((moved_by(steps, 1)?, zero))
        });
        let (codes, zero) = steps.ok_or(too_far)?;
        Ok(Moved { codes, scale, zero, minimum: 0.0 })
    }
}
