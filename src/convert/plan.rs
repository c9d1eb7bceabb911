//! What a conversion writes: the closest form of the linears, all other tensors, and what of it will not be the same.

use std::collections::BTreeSet;

use formats::Dtype;
use formats::container::TensorSpec;
use formats::model_writer::Contents;
use formats::target::{DESCRIPTIONS, PlannedLinear, TargetFormat};
use model::linear::Linear;
use quantizer::express::express;
use quantizer::scheme::Scheme;
use serde_json::Value;

use super::beside::Beside;
use super::forms::{Form, forms};
use super::nearest::{self, Difference};
use crate::error::Error;
use crate::progress::{Progress, go_on};
use crate::stored::StoredModel;

/// The decisions of a conversion.
pub(super) struct Conversion<'s> {
    source: &'s StoredModel,
    pub(super) beside: Beside,
    pub(super) format: &'static dyn TargetFormat,
    pub(super) form: Form,
    /// Every tensor that is not packed, with its type in the output.
    pub(super) carried: Vec<TensorSpec>,
    pub(super) notes: Vec<String>,
    /// Linears whose values are none of the form's.
    inexact: Vec<Linear>,
    /// config.json without a word of how the source is quantized.
    config: Value,
    runtime: Dtype,
}

impl<'s> Conversion<'s> {
    /// Decides, or says why the format cannot hold the model at all.
    pub(super) fn make(
        source: &'s StoredModel,
        format: &'static dyn TargetFormat,
        beside: Beside,
        progress: &dyn Progress,
    ) -> Result<Self, Error> {
        let runtime = source.dtype()?;
        let grids = grids(source, format)?;
        let forms = forms(&grids, format, runtime, source.model.layers.len())?;
        let (mut form, inexact) = closest(source, forms, progress)?;
        share_exponents(source, &mut form.linears)?;
        let packed = |name: &str| {
            let mut linears = form.linears.iter().filter(|planned| planned.scheme.is_some());
            linears.any(|planned| planned.linear.weight_name() == name)
        };
        let mut carried = source.dense_tensors(runtime)?;
        carried.retain(|spec| !packed(&spec.name));
        let left_out = format.settle_carried(&source.model, &mut carried)?;
        let mut notes = form.notes.clone();
        if !left_out.is_empty() {
            let names = left_out.join(", ");
            notes.push(format!("left out, since {} has no place for them: {names}", format.id()));
        }
        if source.tokenizer()?.is_none() {
            notes.push("there is no tokenizer.json beside the weights, so the output has none".to_owned());
        }
        let unknown = source.unknown_tensors();
        let copied = carried.iter().map(|spec| spec.name.as_str());
        let copied: Vec<&str> = copied.filter(|name| unknown.iter().any(|known| known == name)).collect();
        if !copied.is_empty() {
            let names = copied.join(", ");
            notes.push(format!("copied unchanged, not part of the architecture's description: {names}"));
        }
        let mut config = source.config.clone();
        if let Some(config) = config.as_object_mut() {
            config.retain(|key, _| !DESCRIPTIONS.contains(&key.as_str()));
        }
        Ok(Self { source, beside, format, form, carried, notes, inexact, config, runtime })
    }

    /// What the output will hold.
    pub(super) fn contents(&self, max_shard_bytes: Option<u64>) -> Contents<'_> {
        Contents {
            source: self.beside.path(),
            config: &self.config,
            model: &self.source.model,
            linears: &self.form.linears,
            carried: &self.carried,
            runtime: self.runtime,
            untied: false,
            max_shard_bytes,
        }
    }

    /// The carried tensors that the source has under the same names, not packed.
    pub(super) fn copied(&self) -> Vec<TensorSpec> {
        let unpacked: BTreeSet<String> = self.unpacked().iter().map(Linear::weight_name).collect();
        self.carried.iter().filter(|spec| !unpacked.contains(&spec.name)).cloned().collect()
    }

    /// Linears that the source packs and the output does not.
    pub(super) fn unpacked(&self) -> Vec<Linear> {
        let packed = self.form.linears.iter().filter(|planned| planned.scheme.is_some());
        let linears = self.source.matrices().filter(|linear| self.source.scheme(linear).is_some());
        linears.filter(|linear| packed.clone().all(|planned| planned.linear.id != linear.id)).collect()
    }

    /// The values of a linear that the output does not pack, as it has them.
    pub(super) fn unpack(&self, linear: &Linear) -> Result<(Vec<u8>, Option<Difference>), Error> {
        let name = linear.weight_name();
        let spec = self.carried.iter().find(|spec| spec.name == name);
        let spec = spec.ok_or_else(|| Error::Internal(format!("`{name}` has no place in the output")))?;
        let values = nearest::flat(self.source.values(linear)?);
        nearest::in_type(&linear.name, &values, spec.dtype)
    }

    /// Copied tensors that the output has in a type that does not hold them.
    pub(super) fn rounded_copies(&self) -> Result<Vec<Difference>, Error> {
        let mut found = Vec::new();
        for spec in self.copied() {
            let dtype = self.source.checkpoint.info(&spec.name)?.dtype;
            if spec.dtype == dtype {
                continue;
            }
            if let Some(values) = dtype.decode(&self.source.checkpoint.read(&spec.name)?) {
                found.extend(nearest::in_type(&spec.name, &values, spec.dtype)?.1);
            }
        }
        Ok(found)
    }

    /// Fails where anything would not be the same, and says by how much.
    pub(super) fn demand_exact(&self, progress: &dyn Progress) -> Result<(), Error> {
        let mut differences = Vec::new();
        for planned in &self.form.linears {
            let (Some(scheme), true) = (planned.scheme, self.inexact.contains(&planned.linear)) else {
                continue;
            };
            let tensor = self.source.decode(&planned.linear)?;
            differences.extend(nearest::on_grid(&planned.linear.name, &tensor, scheme)?.1);
            go_on(progress)?;
        }
        for linear in self.unpacked() {
            differences.extend(self.unpack(&linear)?.1);
            go_on(progress)?;
        }
        differences.extend(self.rounded_copies()?);
        if differences.is_empty() {
            return Ok(());
        }
        Err(Error::NotTheSame { path: self.beside.model().to_owned(), format: self.format.id(), differences })
    }
}

/// Settles exponents that linears share which runtimes fuse: the source's, where all of its scales are such products, or else what the largest
/// value asks for.
fn share_exponents(source: &StoredModel, linears: &mut [PlannedLinear]) -> Result<(), Error> {
    for stage in linears.chunk_by_mut(|first, second| first.fused_group == second.fused_group) {
        let open = |scheme: Scheme| scheme.sharing(1.0) != scheme;
        if !stage.iter().any(|planned| planned.scheme.is_some_and(open)) {
            continue;
        }
        let mut own: Option<Scheme> = None;
        let (mut exact, mut most) = (true, 0.0_f32);
        for planned in stage.iter() {
            let Some(scheme) = planned.scheme else { continue };
            let tensor = source.decode(&planned.linear)?;
            let from = tensor.scheme();
            let found = if from.unsettled() == scheme { from } else { scheme };
            exact &= *own.get_or_insert(found) == found && express(&tensor, found).is_ok();
            most = tensor.dequantize().iter().fold(most, |most, value| most.max(value.abs()));
        }
        for scheme in stage.iter_mut().filter_map(|planned| planned.scheme.as_mut()) {
            *scheme = own.filter(|_| exact).unwrap_or_else(|| scheme.sharing(most));
        }
    }
    Ok(())
}

/// Every linear with the grid that the source has it on.
fn grids(source: &StoredModel, format: &dyn TargetFormat) -> Result<Vec<PlannedLinear>, Error> {
    let stages = source.model.layers.iter().flat_map(|layer| &layer.stages).enumerate();
    let linears = stages.flat_map(|(number, stage)| stage.linears.iter().map(move |linear| (number, linear)));
    let mut grids: Vec<PlannedLinear> = linears
        .map(|(fused_group, linear)| {
            // Some formats say how large groups are beside the tensor only.
            let scheme = match source.scheme(linear) {
                None => None,
                Some(_) => Some(source.decode(linear)?.scheme()),
            };
            Ok(PlannedLinear { linear: linear.clone(), fused_group, scheme })
        })
        .collect::<Result<_, Error>>()?;
    let tied = source.model.hyperparameters.tied_head;
    for linear in source.model.outer_linears().filter(|linear| source.scheme(linear).is_some()) {
        let scheme = source.decode(&linear)?.scheme();
        // What the format has in 16 bit alone is unpacked.
        if format.quantizes() && format.outer_grid(&linear, tied, scheme).is_ok() {
            grids.push(PlannedLinear { linear, fused_group: usize::MAX - grids.len(), scheme: Some(scheme) });
        }
    }
    Ok(grids)
}

/// The first form that holds all linears exactly, or the closest of those that hold most; and the linears that it does not.
fn closest(
    source: &StoredModel,
    forms: Vec<Form>,
    progress: &dyn Progress,
) -> Result<(Form, Vec<Linear>), Error> {
    let mut best: Option<(Form, Vec<Linear>)> = None;
    for form in forms {
        let least = best.as_ref().map_or(usize::MAX, |(_, inexact)| inexact.len());
        progress.phase("comparing grids", form.linears.len());
        let mut inexact = Vec::new();
        for planned in &form.linears {
            if let Some(scheme) = planned.scheme.filter(|_| inexact.len() <= least)
                && express(&source.decode(&planned.linear)?, scheme).is_err()
            {
                inexact.push(planned.linear.clone());
            }
            progress.step(&planned.linear.name);
            go_on(progress)?;
        }
        progress.finish();
        let better = |(known, found): &(Form, Vec<Linear>)| {
            (inexact.len(), form.distance) < (found.len(), known.distance)
        };
        if best.as_ref().is_none_or(better) {
            best = Some((form, inexact));
        }
        if best.as_ref().is_some_and(|(_, inexact)| inexact.is_empty()) {
            break;
        }
    }
    best.ok_or_else(|| Error::Internal("no form of the linears".to_owned()))
}
