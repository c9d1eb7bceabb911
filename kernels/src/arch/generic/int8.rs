//! Products of arranged codes with rounded activations in plain Rust: the definition of the results.

use crate::packed::arranged::kernel::{DWORDS, Int8Kernel, Panel, Tokens};
use crate::packed::arranged::planes;
use crate::packed::kernel::LANES;

/// No special instructions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

impl Int8Kernel for Portable {
    fn multiply(self, panel: Panel<'_>, x: Tokens<'_>, out: &mut [[f32; LANES]]) {
        assert!(out.len() == x.count() && x.fit(panel));
        let bits = panel.bits();
        out.as_flattened_mut().fill(0.0);
        for (number, piece) in panel.pieces().iter().enumerate() {
            let start = |token| -panel.zero_point() * x.sum(token, number);
            let mut dots: Vec<[i32; LANES]> = (0..x.count()).map(|token| [start(token); LANES]).collect();
            for unit in piece.first_unit..piece.first_unit + piece.units {
                let words = &panel.words()[unit * bits * LANES..][..bits * LANES];
                for dword in 0..DWORDS {
                    let codes: [[u8; 4]; LANES] = std::array::from_fn(|lane| {
                        planes::load(bits, dword, |word| words[word * LANES + lane])
                    });
                    for (token, dots) in dots.iter_mut().enumerate() {
                        let x = x.codes()[token * x.stride() + unit * DWORDS + dword].to_le_bytes();
                        for (dot, codes) in dots.iter_mut().zip(&codes) {
                            for (&code, x) in codes.iter().zip(x) {
                                *dot += i32::from(code) * i32::from(x as i8);
                            }
                        }
                    }
                }
            }
            for (token, (out, dots)) in out.iter_mut().zip(&dots).enumerate() {
                let (step, sum) = (x.step(token, number), x.sum(token, number) as f32);
                for lane in 0..LANES {
                    let at = piece.group * LANES + lane;
                    let below = panel.zero_points().map_or(0.0, |zeros| zeros[at] * sum);
                    out[lane] += panel.scales()[at] * ((dots[lane] as f32 - below) * step);
                }
            }
        }
    }
}
