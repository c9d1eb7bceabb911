//! From ideal scales and minimums to those that a scheme can store, a row at a time.

use crate::nested;
use crate::scheme::{SUPER_COLUMNS, ScaleDtype, Scheme, Symmetry};
use crate::two_level::Integers;

/// What is stored of one row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StoredRow {
    /// `[groups]`, values of the scale type.
    pub(crate) scales: Vec<f32>,
    /// `[groups]`, where the scheme has them.
    pub(crate) minimums: Option<Vec<f32>>,
    /// What scales are made of, ...
    pub(crate) scale_parts: Option<Parts>,
    /// ... and minimums, before the sign.
    pub(crate) minimum_parts: Option<Parts>,
}

/// Coarse numbers of a row, and a fine one for each group.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Parts {
    pub(crate) coarse: Vec<f32>,
    pub(crate) fine: Vec<f32>,
}

/// Where the coarse parts of products come from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Coarse<'a> {
    /// They are chosen too, but for those that depend on other rows, which are given.
    Free(&'a [f32]),
    /// They stay as this row has them.
    As(&'a StoredRow),
}

/// How the rows of a matrix are stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Storage {
    scheme: Scheme,
    /// Groups that share a coarse number.
    together: usize,
}

/// Coarse numbers of a row; of nested scales one for each group, and the offset.
pub(crate) fn coarse_numbers(scheme: Scheme, in_features: usize) -> usize {
    match scheme.scale_dtype {
        ScaleDtype::Integers { .. } => in_features.div_ceil(SUPER_COLUMNS),
        _ => in_features / scheme.granularity.columns_per_scale(in_features).max(1) + 1,
    }
}

impl Storage {
    pub(crate) fn new(scheme: Scheme, in_features: usize) -> Self {
        let size = scheme.granularity.columns_per_scale(in_features).max(1);
        Self { scheme, together: (SUPER_COLUMNS / size).max(1) }
    }

    /// The fine parts of scales that integers can have; none where scales are not made of integers.
    pub(crate) fn scale_integers(self) -> Option<Integers> {
        match self.scheme.scale_dtype {
            ScaleDtype::Integers { least, most } => Some(Integers { least, most, zero: false }),
            _ => None,
        }
    }

    /// The same of minimums.
    pub(crate) fn minimum_integers(self) -> Option<Integers> {
        self.scale_integers().map(|scales| Integers { least: 0, zero: true, ..scales })
    }

    /// The closest to `scales` and, if the scheme has them, `minimums`, each `[groups]`; an error in a scale costs by `weights`.
    pub(crate) fn row(
        self,
        scales: &[f32],
        minimums: &[f32],
        weights: &[f64],
        coarse: Coarse<'_>,
    ) -> StoredRow {
        let dtype = self.scheme.scale_dtype;
        let has_minimums = self.scheme.symmetry == Symmetry::Minimum;
        let mut row = StoredRow {
            scales: scales.iter().map(|&scale| dtype.round(scale)).collect(),
            minimums: has_minimums.then(|| minimums.iter().map(|&m| dtype.round_minimum(m)).collect()),
            scale_parts: None,
            minimum_parts: None,
        };
        let before = match coarse {
            Coarse::As(row) => Some(row),
            Coarse::Free(_) => None,
        };
        if let Some(integers) = self.scale_integers() {
            let kept = before.and_then(|row| row.scale_parts.as_ref());
            let parts = self.products(integers, &row.scales, weights, kept);
            row.scale_parts = Some(parts);
        } else if dtype == ScaleDtype::Nested {
            let coarse = match coarse {
                Coarse::Free(given) => given.to_vec(),
                Coarse::As(row) => {
                    row.scale_parts.as_ref().map(|parts| parts.coarse.clone()).unwrap_or_default()
                }
            };
            let offset = coarse.last().copied().unwrap_or_default();
            let ideal = row.scales.iter().zip(&coarse);
            let fine = ideal.map(|(&scale, &coarse)| nested::nearest(scale, coarse, offset)).collect();
            row.scale_parts = Some(Parts { coarse, fine });
        }
        if let (Some(integers), Some(minimums)) = (self.minimum_integers(), &row.minimums) {
            let depths: Vec<f32> = minimums.iter().map(|minimum| (-minimum).max(0.0)).collect();
            let kept = before.and_then(|row| row.minimum_parts.as_ref());
            row.minimum_parts = Some(self.products(integers, &depths, weights, kept));
        }
        self.multiply(&mut row);
        row
    }

    /// Scales and minimums from their parts.
    pub(crate) fn multiply(self, row: &mut StoredRow) {
        let groups = row.scales.len();
        let product = |parts: &Parts, group: usize| parts.coarse[self.coarse_of(group)] * parts.fine[group];
        if let Some(Parts { coarse, fine }) =
            row.scale_parts.as_ref().filter(|_| self.scheme.scale_dtype == ScaleDtype::Nested)
        {
            let scale = |group: usize| nested::scale(fine[group], coarse[group], coarse[groups]);
            row.scales = (0..groups).map(scale).collect();
        } else if let Some(parts) = &row.scale_parts {
            row.scales = (0..groups).map(|group| product(parts, group)).collect();
        }
        if let Some(parts) = &row.minimum_parts {
            row.minimums = Some((0..groups).map(|group| -product(parts, group)).collect());
        }
    }

    /// The coarse number of a group.
    pub(crate) fn coarse_of(self, group: usize) -> usize {
        group / self.together
    }

    fn products(self, integers: Integers, ideal: &[f32], weights: &[f64], kept: Option<&Parts>) -> Parts {
        let mut parts = Parts { coarse: Vec::new(), fine: Vec::with_capacity(ideal.len()) };
        for (place, (ideal, weights)) in
            ideal.chunks(self.together).zip(weights.chunks(self.together)).enumerate()
        {
            match kept {
                Some(kept) => {
                    let coarse = kept.coarse[place];
                    parts.coarse.push(coarse);
                    parts.fine.extend(ideal.iter().map(|x| integers.nearest(x / coarse)));
                }
                None => {
                    let found = integers.fit(ideal, weights);
                    parts.coarse.push(found.coarse);
                    parts.fine.extend(found.fine);
                }
            }
        }
        parts
    }
}
