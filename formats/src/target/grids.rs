//! What formats demand of grids: one grid for all, one for linears that a runtime fuses, groups that divide rows.

use std::collections::BTreeMap;

use quantizer::levels::Levels;
use quantizer::scheme::{Granularity, GroupSize, ScaleDtype, Scheme, Symmetry};

use super::PlannedLinear;
use crate::error::FormatsError;

/// For formats of uniform codes, one number a scale and whole zero points.
pub(super) fn demand_whole_codes(format: &'static str, plan: &[PlannedLinear]) -> Result<(), FormatsError> {
    let holds = |scheme: &Scheme| {
        scheme.levels == Levels::Uniform
            && scheme.symmetry != Symmetry::Minimum
            && !scheme.scale_dtype.is_product()
            && scheme.scale_dtype != ScaleDtype::E8m0
    };
    match plan.iter().find(|planned| planned.scheme.is_some_and(|scheme| !holds(&scheme))) {
        None => Ok(()),
        Some(planned) => Err(FormatsError::Unsupported {
            format,
            linear: planned.linear.name.clone(),
            problem: "its grid is not of equal steps with whole zero points".to_owned(),
            remedy: "choose a format that has such grids",
        }),
    }
}

/// For formats of one grid, whose groups have so many columns where not whole rows share a scale.
pub(super) fn demand_own_grid(
    format: &'static str,
    plan: &[PlannedLinear],
    holds: impl Fn(Scheme) -> bool,
    columns: Option<usize>,
) -> Result<(), FormatsError> {
    for planned in plan {
        let (linear, Some(scheme)) = (&planned.linear, planned.scheme) else { continue };
        let refuse = |problem: String, remedy| {
            Err(FormatsError::Unsupported { format, linear: linear.name.clone(), problem, remedy })
        };
        if !holds(scheme) {
            return refuse("its grid is another than the format's".to_owned(), "choose another format");
        }
        if let Some(columns) = columns.filter(|&columns| !linear.in_features.is_multiple_of(columns)) {
            let problem = format!("{columns} does not divide its {} input features", linear.in_features);
            return refuse(problem, "leave it in 16 bit with --exclude, or choose another format");
        }
    }
    Ok(())
}

/// The scheme of most linears; of two that are as common the one that comes first.
pub(super) fn most_common(schemes: &[Scheme]) -> Option<Scheme> {
    let mut counts: Vec<(Scheme, usize)> = Vec::new();
    for scheme in schemes {
        match counts.iter_mut().find(|(known, _)| known == scheme) {
            Some((_, count)) => *count += 1,
            None => counts.push((*scheme, 1)),
        }
    }
    counts.iter().rev().max_by_key(|(_, count)| count).map(|(scheme, _)| *scheme)
}

/// A group size as most configurations spell it: -1 for whole rows.
pub(super) fn group_size(scheme: Scheme) -> i64 {
    match scheme.granularity {
        Granularity::PerGroup(size) => size.get() as i64,
        Granularity::PerChannel | Granularity::PerTensor => -1,
    }
}

/// Linears that a runtime fuses must be quantized alike.
pub(super) fn demand_fused_alike(format: &'static str, plan: &[PlannedLinear]) -> Result<(), FormatsError> {
    for pair in plan.windows(2) {
        let [first, second] = pair else { continue };
        if first.fused_group == second.fused_group && first.scheme != second.scheme {
            let problem = format!(
                "runtimes fuse it with `{}`, so both need the same scheme or none",
                first.linear.name
            );
            return Err(FormatsError::Unsupported {
                format,
                linear: second.linear.name.clone(),
                problem,
                remedy: "treat all linears of a fused group alike: q, k and v; gate and up",
            });
        }
    }
    Ok(())
}

/// The largest size that divides every width, of `columns`, `columns / 2`, `columns / 4`, ... and the powers of two below: the sizes that
/// runtimes have kernels for.
fn dividing_group(columns: usize, widths: impl Iterator<Item = usize> + Clone) -> Option<GroupSize> {
    let halves = std::iter::successors(Some(columns), |size| size.is_multiple_of(2).then_some(size / 2));
    let powers = (4..=10).map(|power| 1 << power).filter(|&size| size < columns);
    halves
        .chain(powers)
        .filter(|&size| widths.clone().all(|width| width.is_multiple_of(size)))
        .filter_map(|size| GroupSize::new(size).ok())
        .max()
}

/// [`lower_groups`] for each set of linears that share an input; returns a note for each kind of change.
pub(super) fn lower_groups_by_stage(
    format: &'static str,
    plan: &mut [PlannedLinear],
) -> Result<Vec<String>, FormatsError> {
    let mut notes: BTreeMap<String, usize> = BTreeMap::new();
    for stage in plan.chunk_by_mut(|first, second| first.fused_group == second.fused_group) {
        if let Some(note) = lower_groups(format, stage.iter_mut())? {
            *notes.entry(note).or_default() += 1;
        }
    }
    let told = |(note, count)| if count > 1 { format!("{note} ({count} times)") } else { note };
    Ok(notes.into_iter().map(told).collect())
}

/// Lowers group sizes to one for each set of linears, so that it divides the width of all of them. Returns a note for each change.
pub(super) fn lower_groups<'a>(
    format: &'static str,
    linears: impl Iterator<Item = &'a mut PlannedLinear>,
) -> Result<Option<String>, FormatsError> {
    let mut linears: Vec<&mut PlannedLinear> = linears.filter(|planned| planned.scheme.is_some()).collect();
    let asked = linears.iter().filter_map(|planned| match planned.scheme?.granularity {
        Granularity::PerGroup(size) => Some(size.get()),
        _ => None,
    });
    let sizes: Vec<usize> = asked.collect();
    let (Some(&least), Some(&most)) = (sizes.iter().min(), sizes.iter().max()) else { return Ok(None) };
    let first = linears[0].linear.clone();
    if sizes.len() < linears.len() {
        let problem = "groups and whole rows cannot be mixed here".to_owned();
        let remedy = "give all linears a group size, or none";
        return Err(FormatsError::Unsupported { format, linear: first.name, problem, remedy });
    }
    let widths: Vec<usize> = linears.iter().map(|planned| planned.linear.in_features).collect();
    let Some(size) = dividing_group(least, widths.iter().copied()) else {
        let misfit = linears
            .iter()
            .find(|planned| dividing_group(least, std::iter::once(planned.linear.in_features)).is_none());
        let linear = misfit.map_or(&first, |planned| &planned.linear);
        let problem = format!(
            "no group size from {least} down to 16 divides its {} input features; whole rows (`channel`) always fit",
            linear.in_features
        );
        let remedy = "use --group-size channel, or leave the linear in 16 bit with --exclude";
        return Err(FormatsError::Unsupported { format, linear: linear.name.clone(), problem, remedy });
    };
    for planned in &mut linears {
        if let Some(scheme) = &mut planned.scheme {
            scheme.granularity = Granularity::PerGroup(size);
        }
    }
    let size = size.get();
    Ok((size != most).then(|| {
        let misfit = widths.iter().find(|width| !width.is_multiple_of(most));
        let reason = misfit.map_or_else(
            || "all of them share one".to_owned(),
            |width| format!("{most} does not divide {width} input features"),
        );
        format!("group size lowered from {most} to {size} for {} linears: {reason}", linears.len())
    }))
}
