//! All weights or all codes of a packed matrix, by the same steps that decode a tile of a product.

use ndarray::{ArrayViewMut2, Axis};
use rayon::prelude::*;

use super::kernel::{LANES, PackedKernel, UNIT};
use super::stage::{Aligned, Chunk, MOST_UNITS, Panel, Scratch, Stored, chunks};

/// `out`, `[out_features, in_features]`, becomes the weights.
pub(super) fn weights<K: PackedKernel>(kernel: K, stored: Stored<'_>, out: ArrayViewMut2<'_, f32>) {
    let decode = |panel: Panel<'_>, chunk: &Chunk, scratch: &mut Scratch, values: &mut [f32]| {
        panel.decode(kernel, chunk, scratch, values, STRIP_COLUMNS * K::STRIP);
    };
    by_panel::<K, f32>(stored, out, decode, |weight| weight);
}

/// `out`, `[out_features, in_features]`, becomes the codes.
pub(super) fn codes<K: PackedKernel>(kernel: K, stored: Stored<'_>, out: ArrayViewMut2<'_, u8>) {
    let decode = |panel: Panel<'_>, chunk: &Chunk, scratch: &mut Scratch, values: &mut [f32]| {
        panel.decode_codes(kernel, chunk, scratch, values, STRIP_COLUMNS * K::STRIP);
    };
    by_panel::<K, u8>(stored, out, decode, |code| code as u8);
}

const STRIP_COLUMNS: usize = MOST_UNITS * UNIT;

fn by_panel<K: PackedKernel, T: Send>(
    stored: Stored<'_>,
    mut out: ArrayViewMut2<'_, T>,
    decode: impl Fn(Panel<'_>, &Chunk, &mut Scratch, &mut [f32]) + Sync,
    convert: impl Fn(f32) -> T + Sync,
) {
    let chunks = chunks(stored.shape, MOST_UNITS);
    let panels: Vec<_> = out.axis_chunks_iter_mut(Axis(0), LANES).enumerate().collect();
    let buffers = || (Scratch::default(), Aligned::zeros(LANES * STRIP_COLUMNS));
    panels.into_par_iter().for_each_init(buffers, |(scratch, values), (index, mut rows)| {
        let values = values.as_mut();
        for chunk in &chunks {
            decode(stored.panel(index), chunk, scratch, values);
            for (lane, mut row) in rows.axis_iter_mut(Axis(0)).enumerate() {
                let values = &values[lane / K::STRIP * STRIP_COLUMNS * K::STRIP + lane % K::STRIP..];
                let row = row.iter_mut().skip(chunk.first_unit * UNIT).take(chunk.columns);
                for (to, &value) in row.zip(values.iter().step_by(K::STRIP)) {
                    *to = convert(value);
                }
            }
        }
    });
}
