//! A checkpoint's grids in a format's terms: forms that its values may take there.
//!
//! Two orders count. Where several forms hold the same values, the simplest serves most runtimes: each linear's own width and groups, and
//! a fixed zero rather than zero points that all are the same. Where none does, the closest is best to round to.

use formats::Dtype;
use formats::target::{PlannedLinear, TargetFormat};
use quantizer::levels::Levels;
use quantizer::scheme::{BitWidth, Granularity, ScaleDtype, Scheme, Symmetry};

use crate::error::Error;
use crate::plan::runtimes;
use crate::report::RuntimeRow;

/// A grid for each linear that the format can hold and a runtime loads.
pub(super) struct Form {
    pub(super) linears: Vec<PlannedLinear>,
    pub(super) notes: Vec<String>,
    pub(super) runtimes: Vec<RuntimeRow>,
    /// How far its grids are from the source's: the lower, the closer.
    pub(super) distance: usize,
}

/// Which linears keep grids that differ.
#[derive(Clone, Copy)]
enum Sharing {
    /// Each its own.
    Own,
    /// Those that runtimes fuse have one: the widest codes and the smallest groups among them.
    Fused,
    /// All have the commonest.
    Common,
}

/// What becomes of levels and of the place of zero.
#[derive(Clone, Copy)]
enum Zero {
    Own,
    /// Equal steps with this zero.
    Uniform(Symmetry),
}

/// Every form that the format can hold, the simplest first; `source` has the grids that were read.
///
/// # Errors
/// The reason why the first cannot be, where none can.
pub(super) fn forms(
    source: &[PlannedLinear],
    format: &dyn TargetFormat,
    runtime: Dtype,
    layers: usize,
) -> Result<Vec<Form>, Error> {
    // Exact in the model's own type and, where values are not, as the file stores them.
    let mut scales = vec![format.scale_dtype(runtime), format.scale_dtype(Dtype::F16)];
    scales.dedup();
    let zeros =
        [(Zero::Uniform(Symmetry::Symmetric), 2), (Zero::Own, 0), (Zero::Uniform(Symmetry::Asymmetric), 1)];
    let mut forms: Vec<Form> = Vec::new();
    let mut refusal = None;
    let mut distance = 0;
    for sharing in [Sharing::Own, Sharing::Fused, Sharing::Common] {
        let shared = shared(source, sharing, format.mixed_widths());
        for &scale_dtype in &scales {
            for (zero, further) in zeros {
                let linears = shared.iter().map(|planned| {
                    let asked = planned.scheme.filter(|_| format.quantizes());
                    let scheme = asked.map(|own| {
                        let wanted = Scheme { scale_dtype, ..zero.of(own) };
                        match planned.linear.is_outer() {
                            // Tied or not, its grid is the same.
                            true => format.outer_grid(&planned.linear, false, wanted).unwrap_or(wanted),
                            false => format.grid(&planned.linear, layers, wanted),
                        }
                    });
                    PlannedLinear { scheme, ..planned.clone() }
                });
                match settled(linears.collect(), format, scale_dtype == scales[0]) {
                    Err(error) => refusal = refusal.or(Some(error)),
                    Ok(form) => {
                        let distance = distance + further;
                        match forms.iter_mut().find(|known| known.linears == form.linears) {
                            Some(known) => known.distance = known.distance.min(distance),
                            None => forms.push(Form { distance, ..form }),
                        }
                    }
                }
            }
            distance += zeros.len();
        }
    }
    match refusal {
        Some(error) if forms.is_empty() => Err(error),
        _ => Ok(forms),
    }
}

/// What the format makes of these grids; `native` where scales are exact in the type that the model runs in.
fn settled(mut linears: Vec<PlannedLinear>, format: &dyn TargetFormat, native: bool) -> Result<Form, Error> {
    let mut notes = format.settle(&mut linears)?;
    if !native && !format.fixes_grid() {
        notes.push("scales are half-precision numbers, which runtimes round that run the model in its own type, bfloat16".to_owned());
    }
    let runtimes = runtimes(format, &linears)?;
    Ok(Form { linears, notes, runtimes, distance: 0 })
}

impl Zero {
    fn of(self, scheme: Scheme) -> Scheme {
        match self {
            Self::Own => scheme,
            Self::Uniform(symmetry) => Scheme { levels: Levels::Uniform, symmetry, ..scheme },
        }
    }
}

/// The source's grids, with what linears share.
fn shared(source: &[PlannedLinear], sharing: Sharing, widths: &[u8]) -> Vec<PlannedLinear> {
    let mut linears = source.to_vec();
    match sharing {
        Sharing::Own => return linears,
        Sharing::Fused => {
            for stage in linears.chunk_by_mut(|first, second| first.fused_group == second.fused_group) {
                let scheme = stage.iter().filter_map(|planned| planned.scheme).reduce(finer);
                set_all(stage, scheme);
            }
        }
        Sharing::Common => {
            let mut counts: Vec<(Scheme, usize)> = Vec::new();
            for scheme in linears.iter().filter_map(|planned| planned.scheme) {
                match counts.iter_mut().find(|(known, _)| *known == scheme) {
                    Some((_, count)) => *count += 1,
                    None => counts.push((scheme, 1)),
                }
            }
            let commonest = counts.into_iter().rev().max_by_key(|(_, count)| *count);
            set_all(&mut linears, commonest.map(|(scheme, _)| scheme));
        }
    }
    // Narrower codes fit wider ones.
    for scheme in linears.iter_mut().filter_map(|planned| planned.scheme.as_mut()) {
        let wide = widths.iter().copied().filter(|&width| width >= scheme.bits.get()).min();
        if let Some(bits) = wide.and_then(|width| BitWidth::new(width).ok()) {
            // A table goes with its own width.
            if bits != scheme.bits && scheme.levels == Levels::Uniform {
                scheme.bits = bits;
            }
        }
    }
    linears
}

fn set_all(linears: &mut [PlannedLinear], scheme: Option<Scheme>) {
    for planned in linears.iter_mut().filter(|planned| planned.scheme.is_some()) {
        planned.scheme = scheme;
    }
}

/// A grid as fine as both.
fn finer(first: Scheme, second: Scheme) -> Scheme {
    let granularity = match (first.granularity, second.granularity) {
        (Granularity::PerGroup(one), Granularity::PerGroup(other)) => Granularity::PerGroup(one.min(other)),
        (group @ Granularity::PerGroup(_), _) | (_, group @ Granularity::PerGroup(_)) => group,
        (Granularity::PerChannel, _) | (_, Granularity::PerChannel) => Granularity::PerChannel,
        (Granularity::PerTensor, Granularity::PerTensor) => Granularity::PerTensor,
    };
    let alike = first.levels == second.levels && first.symmetry == second.symmetry;
    Scheme {
        bits: first.bits.max(second.bits),
        levels: if alike { first.levels } else { Levels::Uniform },
        granularity,
        symmetry: if alike { first.symmetry } else { Symmetry::Asymmetric },
        scale_dtype: ScaleDtype::F32,
    }
}
