//! MLX's modes whose codes are floats.
//!
//! | tensor | type | shape | content |
//! |---|---|---|---|
//! | `P.weight` | U32 | `[N, K*bits/32]` | patterns of floats, the first in the lowest bits |
//! | `P.scales` | U8 | `[N, G]` | `w = scale * number`; `e` of the scale `2^(e-127)`, or in `nvfp4` an eight-bit float |
//!
//! A number for the whole matrix (`global_scale`) is read, and not written: mlx-lm 0.32 has a place for it in experts alone.

use quantizer::levels::Levels;
use quantizer::scheme::{BitWidth, Granularity, GroupSize, ScaleDtype, Scheme, Symmetry};

/// A mode.
#[derive(Debug)]
pub(super) struct Mode {
    /// As configurations spell it.
    pub(super) name: &'static str,
    levels: Levels,
    /// Width of a code.
    pub(super) bits: u8,
    /// Columns that share a scale.
    pub(super) columns: usize,
    /// What scales are.
    pub(super) scales: ScaleDtype,
}

pub(super) static MXFP4: Mode =
    Mode { name: "mxfp4", levels: Levels::E2m1, bits: 4, columns: 32, scales: ScaleDtype::E8m0 };
pub(super) static MXFP8: Mode =
    Mode { name: "mxfp8", levels: Levels::E4m3, bits: 8, columns: 32, scales: ScaleDtype::E8m0 };
pub(super) static NVFP4: Mode =
    Mode { name: "nvfp4", levels: Levels::E2m1, bits: 4, columns: 16, scales: ScaleDtype::E4m3 };

static ALL: [&Mode; 3] = [&MXFP4, &MXFP8, &NVFP4];

impl Mode {
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        ALL.into_iter().find(|mode| mode.name == name)
    }

    /// The mode of a grid; none where codes are whole numbers.
    pub(super) fn of(scheme: Scheme) -> Option<&'static Self> {
        ALL.into_iter().find(|mode| mode.holds(scheme))
    }

    /// Its only grid, with scales of this type.
    pub(super) fn scheme(&self, scale_dtype: ScaleDtype) -> Option<Scheme> {
        Some(Scheme {
            bits: BitWidth::new(self.bits).ok()?,
            levels: self.levels,
            granularity: Granularity::PerGroup(GroupSize::new(self.columns).ok()?),
            symmetry: Symmetry::Symmetric,
            scale_dtype,
        })
    }

    /// Whether a grid is that, whatever its scales are.
    pub(super) fn holds(&self, scheme: Scheme) -> bool {
        self.scheme(scheme.scale_dtype) == Some(scheme)
    }
}
