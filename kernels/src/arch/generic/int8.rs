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
        for (token, out) in out.iter_mut().enumerate() {
            *out = [0.0; LANES];
            for (number, group) in panel.groups().iter().enumerate() {
                let mut products = [0.0_f32; LANES];
                for unit in group.first_unit..group.first_unit + group.units {
                    let dots = dots(panel, x, token, unit);
                    for (product, dot) in products.iter_mut().zip(dots) {
                        *product += dot as f32 * x.step(token, unit);
                    }
                }
                for lane in 0..LANES {
                    let below = panel.zero_point(number, lane) * x.sum(token, number);
                    out[lane] += panel.scale(number, lane) * (products[lane] - below);
                }
            }
        }
    }
}

/// The products of a unit's codes with a token's activations.
fn dots(panel: Panel<'_>, x: Tokens<'_>, token: usize, unit: usize) -> [i32; LANES] {
    let mut dots = [0; LANES];
    for dword in 0..DWORDS {
        let x = x.codes(token, unit, dword).to_le_bytes();
        for (lane, dot) in dots.iter_mut().enumerate() {
            let codes = planes::load(panel.bits(), dword, |word| panel.word(unit, word, lane));
            for (code, x) in codes.into_iter().zip(x) {
                *dot += i32::from(code) * i32::from(x as i8);
            }
        }
    }
    dots
}
