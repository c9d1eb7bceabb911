//! Second moments of outputs' gradients, and weights of tokens, of all ranks' windows: added up in the order of windows, as in one process.

use std::collections::BTreeMap;

use kernels::bf16::Precision;
use kernels::ranks::{self, Ranks};
use model::linear::{Linear, LinearId};
use ndarray::{Array2, ArrayView1, ArrayView2, Axis};
use quantizer::output::{OutputHessian, OutputHessianAccumulator};
use rayon::prelude::*;

use crate::error::Error;

/// Second moments of outputs' gradients, each with the rank whose it is.
#[derive(Default)]
pub(super) struct Moments(BTreeMap<LinearId, (usize, Option<OutputHessianAccumulator>)>);

impl Moments {
    /// Of these linears, which are dealt in turn.
    pub(super) fn of<'l>(
        linears: impl Iterator<Item = &'l Linear>,
        precision: Precision,
        ranks: &dyn Ranks,
    ) -> Self {
        let moment = |(number, linear): (usize, &Linear)| {
            let new = || OutputHessianAccumulator::new(linear.out_features).with_precision(precision);
            (linear.id, (number % ranks.size(), ranks.owns(number).then(new)))
        };
        Self(linears.enumerate().map(moment).collect())
    }

    /// Adds the gradients of some linears in all windows of a batch, in order, of which this rank has some; the linears side by side.
    pub(super) fn observe(
        &mut self,
        linears: Vec<(&Linear, Vec<Array2<f32>>)>,
        (batch, ranks): (usize, &dyn Ranks),
    ) -> Result<(), Error> {
        let mut gathered = BTreeMap::new();
        for (linear, own) in linears {
            let Some(&(owner, _)) = self.0.get(&linear.id) else { continue };
            let windows = all_windows(own, owner, (batch, ranks))?;
            gathered.insert(linear.id, (linear, windows));
        }
        let added = self.0.par_iter_mut().map(|(id, (_, moment))| {
            let (Some(moment), Some((linear, windows))) = (moment, gathered.get(id)) else { return Ok(()) };
            let fail = |source| Error::Statistics { linear: linear.name.clone(), source };
            windows.iter().try_for_each(|gradients| moment.observe(gradients.view()).map_err(fail))
        });
        added.collect::<Vec<_>>().into_iter().collect()
    }

    /// The mean of one linear's, where it was asked for, on every rank.
    pub(super) fn finish<'l>(
        &mut self,
        linear: &'l Linear,
        ranks: &dyn Ranks,
    ) -> Result<Option<(&'l Linear, OutputHessian)>, Error> {
        let Some((owner, moment)) = self.0.remove(&linear.id) else { return Ok(None) };
        let fail = |source| Error::Statistics { linear: linear.name.clone(), source };
        let own = moment.map(OutputHessianAccumulator::finish).transpose().map_err(fail)?;
        let mut message = Vec::new();
        for triangle in own.iter().filter(|_| !ranks.is_alone()).flat_map(OutputHessian::triangles) {
            ranks::put(&mut message, row(triangle));
        }
        let message = ranks.broadcast(owner, message)?;
        if let Some(own) = own {
            return Ok(Some((linear, own)));
        }
        let (mut rest, mut triangles) = (&message[..], Vec::new());
        while !rest.is_empty() {
            triangles.push(ranks::take(&mut rest)?.into_raw_vec_and_offset().0);
        }
        let wrong = || Error::Internal(format!("gradients of `{}` have other outputs", linear.name));
        Ok(Some((linear, OutputHessian::from_triangles(linear.out_features, triangles).ok_or_else(wrong)?)))
    }
}

/// A linear's gradients in the windows of a batch that have any, in order, for the rank whose its moment is.
fn all_windows(
    own: Vec<Array2<f32>>,
    owner: usize,
    (batch, ranks): (usize, &dyn Ranks),
) -> Result<Vec<Array2<f32>>, Error> {
    let mut of_ranks = Vec::with_capacity(ranks.size());
    let mut own = Some(own);
    for from in 0..ranks.size() {
        if from == owner && from == ranks.rank() {
            of_ranks.push(own.take().unwrap_or_default().into_iter());
            continue;
        }
        let mut message = Vec::new();
        for gradients in own.iter().flatten().filter(|_| from == ranks.rank()) {
            ranks::put(&mut message, gradients.view());
        }
        let message = ranks.pass(from, owner, message)?;
        let mut rest = &message[..];
        let mut found = Vec::new();
        while !rest.is_empty() {
            found.push(ranks::take(&mut rest)?);
        }
        of_ranks.push(found.into_iter());
    }
    // Batches begin with rank 0's.
    let windows = (0..batch).filter_map(|window| of_ranks[window % ranks.size()].next());
    Ok(windows.filter(|gradients| gradients.nrows() > 0).collect())
}

/// Rank 0's number.
pub(super) fn agreed(ranks: &dyn Ranks, own: usize) -> Result<usize, Error> {
    let message = ranks.broadcast(0, (own as u64).to_le_bytes().to_vec())?;
    let wrong = |_| Error::Internal("rank 0 sent no number".to_owned());
    message.try_into().map(|bytes| u64::from_le_bytes(bytes) as usize).map_err(wrong)
}

/// Of `count` windows what their ranks have of each, in order.
pub(super) fn of_all_windows(
    ranks: &dyn Ranks,
    own: Vec<Vec<f32>>,
    count: usize,
) -> Result<Vec<Vec<f32>>, Error> {
    if ranks.is_alone() {
        return Ok(own);
    }
    let mut message = Vec::new();
    for roots in &own {
        ranks::put(&mut message, row(roots));
    }
    let mut messages = Vec::with_capacity(ranks.size());
    for rank in 0..ranks.size() {
        messages.push(ranks.broadcast(rank, message.clone())?);
    }
    let mut rest: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
    let next = |window: usize| {
        let rank = window % ranks.size();
        Ok(ranks::take(&mut rest[rank])?.into_raw_vec_and_offset().0)
    };
    (0..count).map(next).collect()
}

fn row(numbers: &[f32]) -> ArrayView2<'_, f32> {
    ArrayView1::from(numbers).insert_axis(Axis(0))
}
