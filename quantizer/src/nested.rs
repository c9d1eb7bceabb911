//! Scales that are quantized again, as bitsandbytes does it ("double quantization", QLoRA, arXiv 2305.14314, section 3).
//!
//! ```text
//! scale = table[code] * coarse + offset       offset: the mean of all scales       coarse: of 256 groups the furthest from it
//! ```
//!
//! The table has 64 steps from 0.1 to 1, 32 from 0.01 to 0.1, and so on; of both signs, with zero and one. Groups are counted row after row, so that
//! a coarse number may end within a row. It and the offset are chosen once, from the scales that the original weights ask for; later fits choose codes.

use std::sync::LazyLock;

use ndarray::ArrayView2;

use crate::scheme::NESTED_GROUPS;

/// What the numbers of each stretch of the table are multiplied by.
const UNITS: [f32; 7] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];

/// The table, ascending.
pub static TABLE: LazyLock<Vec<f32>> = LazyLock::new(|| {
    let mut table = vec![0.0, 1.0];
    for (power, unit) in UNITS.into_iter().enumerate() {
        let steps = 1_usize << power;
        let step = (1.0_f32 - 0.1) / steps as f32;
        // From both ends and rounded once, as PyTorch's `linspace` counts.
        let bound = |k: usize| {
            if 2 * k < steps + 1 {
                step.mul_add(k as f32, 0.1)
            } else {
                step.mul_add(-((steps - k) as f32), 1.0)
            }
        };
        let means = (0..steps).map(|k| unit * ((bound(k) + bound(k + 1)) / 2.0));
        table.extend(means.flat_map(|mean| [mean, -mean]));
    }
    table.sort_by(f32::total_cmp);
    table
});

/// The numbers of a matrix that its scales are made with, beside their codes.
pub(crate) struct Nested {
    offset: f32,
    coarse: Vec<f32>,
}

impl Nested {
    /// For ideal scales `[out_features, groups]`.
    pub(crate) fn of(scales: ArrayView2<'_, f32>) -> Self {
        let all: Vec<f32> = scales.iter().copied().collect();
        let offset =
            (all.iter().map(|&scale| f64::from(scale)).sum::<f64>() / all.len().max(1) as f64) as f32;
        let furthest =
            |scales: &[f32]| scales.iter().fold(0.0_f32, |most, scale| most.max((scale - offset).abs()));
        // Where all are the same, the offset is the scale.
        let coarse =
            all.chunks(NESTED_GROUPS).map(|scales| Some(furthest(scales)).filter(|&most| most > 0.0));
        Self {
            offset: offset.max(f32::MIN_POSITIVE),
            coarse: coarse.map(|most| most.unwrap_or(1.0)).collect(),
        }
    }

    /// The coarse number of each group of a row, then the offset.
    pub(crate) fn of_row(&self, row: usize, groups: usize) -> Vec<f32> {
        let places = row * groups..(row + 1) * groups;
        places.map(|place| self.coarse[place / NESTED_GROUPS]).chain([self.offset]).collect()
    }
}

/// The scale that a number of the table gives.
#[must_use]
pub fn scale(fine: f32, coarse: f32, offset: f32) -> f32 {
    fine * coarse + offset
}

/// The number of the table whose scale is nearest to `ideal`, and positive.
pub(crate) fn nearest(ideal: f32, coarse: f32, offset: f32) -> f32 {
    let wanted = (ideal - offset) / coarse;
    let above = TABLE.partition_point(|&fine| fine < wanted);
    let usable = |&place: &usize| scale(TABLE[place], coarse, offset) >= f32::MIN_POSITIVE;
    let near = above.saturating_sub(1)..(above + 1).min(TABLE.len());
    let distance = |place: &usize| (scale(TABLE[*place], coarse, offset) - ideal).abs();
    let nearest = near.filter(usable).min_by(|a, b| distance(a).total_cmp(&distance(b)));
    let place = nearest.or_else(|| (above..TABLE.len()).find(usable));
    place.map_or(1.0, |place| TABLE[place])
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;

    #[test]
    fn the_table_is_the_librarys() {
        // `bitsandbytes.functional.create_dynamic_map()` of 0.50.2, as numpy writes it: 256 numbers behind 128 bytes.
        let golden = include_bytes!("../tests/data/bnb_dynamic_map.npy");
        let numbers: Vec<f32> =
            golden[128..].as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        assert_eq!(*TABLE, numbers);
    }

    #[test]
    fn the_nearest_scale_is_positive_and_none_is_nearer() {
        let scales =
            Array2::from_shape_fn((7, 60), |(row, group)| 0.01 + 0.003 * ((row * 60 + group) % 11) as f32);
        let nested = Nested::of(scales.view());
        for (row, ideal) in scales.rows().into_iter().enumerate() {
            let numbers = nested.of_row(row, 60);
            for (group, &ideal) in ideal.iter().enumerate() {
                let (coarse, offset) = (numbers[group], numbers[60]);
                let found = (scale(nearest(ideal, coarse, offset), coarse, offset) - ideal).abs();
                assert!(TABLE.iter().all(|&fine| found <= (scale(fine, coarse, offset) - ideal).abs()));
                assert!(found < 0.01 * ideal);
            }
        }
        assert!(scale(nearest(1e-30, 1.0, 0.5), 1.0, 0.5) > 0.0);
        let same = Nested::of(Array2::from_elem((2, 3), 0.25).view()).of_row(1, 3);
        assert_eq!(scale(nearest(0.25, same[1], same[3]), same[1], same[3]), 0.25);
        let nothing = Nested::of(Array2::zeros((2, 3)).view()).of_row(1, 3);
        assert!(scale(nearest(0.0, nothing[0], nothing[3]), nothing[0], nothing[3]) > 0.0);
    }
}
