//! What ranks tell each other of a job beyond moments: solutions, that they do the same, and what it cost each of them.

use std::io;

use formats::packing;
use kernels::ranks::{Ranks, put, take};
use quantizer::scheme::Scheme;
use quantizer::solver::{Solution, SolveReport};
use quantizer::tensor::{Offsets, QuantizedTensor, ScaleParts};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::journal::Fingerprint;
use crate::report::RankCost;
use crate::resources::Resources;

/// What a message with a solution begins with; its arrays follow in this order.
#[derive(Serialize, Deserialize)]
struct SolutionHead {
    scheme: Scheme,
    report: SolveReport,
    columns: usize,
    zero_points: bool,
    minimums: bool,
    scale_parts: bool,
    minimum_parts: bool,
}

/// Gives everyone the solution of rank `owner`, which has it.
pub(crate) fn solution(ranks: &dyn Ranks, owner: usize, own: Option<Solution>) -> Result<Solution, Error> {
    let message = own.as_ref().map(encoded).transpose()?.unwrap_or_default();
    let message = ranks.broadcast(owner, message)?;
    own.map_or_else(|| decoded(&message), Ok)
}

fn encoded(solution: &Solution) -> Result<Vec<u8>, Error> {
    let tensor = &solution.tensor;
    let head = SolutionHead {
        scheme: tensor.scheme(),
        report: solution.report,
        columns: tensor.in_features(),
        zero_points: tensor.zero_points().is_some(),
        minimums: tensor.minimums().is_some(),
        scale_parts: tensor.scale_parts().is_some(),
        minimum_parts: tensor.minimum_parts().is_some(),
    };
    let mut message = Vec::new();
    put_json(&mut message, &head)?;
    let words = packing::pack_rows(tensor.codes(), head.scheme.bits.get());
    let (rows, words_of_row) = words.dim();
    let bytes = ndarray::Array2::from_shape_vec((rows, 4 * words_of_row), packing::to_bytes(words.view()));
    put(&mut message, bytes.map_err(|e| Error::Internal(e.to_string()))?.view());
    put(&mut message, tensor.scales());
    if let Some(zeros) = tensor.zero_points() {
        put(&mut message, zeros);
    }
    if let Some(minimums) = tensor.minimums() {
        put(&mut message, minimums);
    }
    for parts in tensor.scale_parts().into_iter().chain(tensor.minimum_parts()) {
        put(&mut message, parts.coarse.view());
        put(&mut message, parts.fine.view());
    }
    Ok(message)
}

fn decoded(mut message: &[u8]) -> Result<Solution, Error> {
    let message = &mut message;
    let head: SolutionHead = take_json(message)?;
    let wrong = |problem: String| Error::Internal(format!("a solution of another rank: {problem}"));
    let bytes = take::<u8>(message)?;
    let (rows, bytes_of_row) = bytes.dim();
    let words = packing::from_bytes(bytes.as_slice().unwrap_or_default());
    let words = ndarray::Array2::from_shape_vec((rows, bytes_of_row / 4), words);
    let words = words.map_err(|error| wrong(error.to_string()))?;
    let codes = packing::unpack_rows(words.view(), head.scheme.bits.get(), head.columns);
    let scales = take(message)?;
    let offsets = match (head.zero_points, head.minimums) {
        (true, _) => Offsets::ZeroPoints(take(message)?),
        (false, true) => Offsets::Minimums(take(message)?),
        (false, false) => Offsets::None,
    };
    let tensor = QuantizedTensor::with_offsets(head.scheme, codes, scales, offsets);
    let mut tensor = tensor.map_err(|error| wrong(error.to_string()))?;
    let mut both = || Ok::<_, io::Error>(ScaleParts { coarse: take(message)?, fine: take(message)? });
    if head.scale_parts {
        let scales = both()?;
        let minimums = head.minimum_parts.then(both).transpose()?;
        tensor = tensor.in_parts(scales, minimums).map_err(|error| wrong(error.to_string()))?;
    }
    Ok(Solution { tensor, report: head.report })
}

/// Fails on a rank whose job is not rank 0's, saying how.
pub(crate) fn demand_same(ranks: &dyn Ranks, job: &Fingerprint) -> Result<(), Error> {
    if ranks.is_alone() {
        return Ok(());
    }
    let mut message = Vec::new();
    put_json(&mut message, job)?;
    let message = ranks.broadcast(0, message)?;
    let changes = take_json::<Fingerprint>(&mut &message[..])?.differences(job);
    if changes.is_empty() {
        // Nobody goes on before all have agreed.
        return everyone_is_here(ranks);
    }
    let problem = format!("does not do what rank 0 does: {}", changes.join("; "));
    Err(Error::Ranks(io::Error::other(problem)))
}

/// Lets rank 0 do something that the others then find done.
pub(crate) fn first<T>(ranks: &dyn Ranks, mut work: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    let mut done = None;
    if ranks.is_first() {
        done = Some(work()?);
    }
    ranks.broadcast(0, Vec::new())?;
    done.map_or_else(work, Ok)
}

/// What each rank has spent so far; empty where there is but one.
pub(crate) fn costs(ranks: &dyn Ranks, spent: Resources) -> Result<Vec<RankCost>, Error> {
    if ranks.is_alone() {
        return Ok(Vec::new());
    }
    let traffic = ranks.traffic();
    let own = RankCost {
        rank: ranks.rank(),
        wall_seconds: spent.wall_seconds,
        cpu_seconds: spent.cpu_seconds,
        peak_rss_bytes: spent.peak_rss_bytes,
        sent_bytes: traffic.sent,
        received_bytes: traffic.received,
    };
    let mut message = Vec::new();
    put_json(&mut message, &own)?;
    let told = (0..ranks.size()).map(|rank| {
        let message = ranks.broadcast(rank, message.clone())?;
        take_json(&mut &message[..])
    });
    told.collect()
}

fn everyone_is_here(ranks: &dyn Ranks) -> Result<(), Error> {
    (0..ranks.size()).try_for_each(|rank| Ok(ranks.broadcast(rank, Vec::new()).map(drop)?))
}

fn put_json(message: &mut Vec<u8>, value: &impl Serialize) -> Result<(), Error> {
    let json = serde_json::to_vec(value).map_err(|e| Error::Internal(e.to_string()))?;
    put(
        message,
        ndarray::ArrayView2::from_shape((1, json.len()), &json[..])
            .map_err(|e| Error::Internal(e.to_string()))?,
    );
    Ok(())
}

fn take_json<T: DeserializeOwned>(message: &mut &[u8]) -> Result<T, Error> {
    let json = take::<u8>(message)?;
    serde_json::from_slice(json.as_slice().unwrap_or_default())
        .map_err(|error| Error::Internal(format!("a message of another rank: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;
    use quantizer::levels::Levels;
    use quantizer::prepared::{DampingReport, Rung};
    use quantizer::scheme::{BitWidth, Granularity, GroupSize, ScaleDtype, Symmetry};

    #[test]
    fn solutions_come_back_as_they_were() {
        for symmetry in [Symmetry::Symmetric, Symmetry::Asymmetric, Symmetry::Minimum] {
            let scheme = Scheme {
                bits: BitWidth::new(3).expect("a width"),
                levels: Levels::Uniform,
                granularity: Granularity::PerGroup(GroupSize::new(16).expect("a size")),
                symmetry,
                scale_dtype: ScaleDtype::F32,
            };
            let codes = Array2::from_shape_fn((3, 48), |(row, column)| ((row * 5 + column * 7) % 8) as u8);
            let scales = Array2::from_shape_fn((3, 3), |(row, group)| 0.1 - 0.3 * (row * group) as f32);
            let offsets = match symmetry {
                Symmetry::Symmetric => Offsets::None,
                Symmetry::Asymmetric => Offsets::ZeroPoints(Array2::from_elem((3, 3), 2)),
                Symmetry::Minimum => Offsets::Minimums(Array2::from_elem((3, 3), -0.7)),
            };
            let tensor = QuantizedTensor::with_offsets(scheme, codes, scales, offsets).expect("it fits");
            let damping =
                DampingReport { damping: 0.1 + 0.2, rung: Rung::Raised, made_up_for: None, dead_inputs: 3 };
            let report = SolveReport {
                loss: 1.0 / 3.0,
                relative_loss: 1e-300,
                relative_loss_unrefined: -0.0,
                coupled: None,
                held_out: None,
                damping: (symmetry != Symmetry::Minimum).then_some(damping),
            };
            let message = encoded(&Solution { tensor: tensor.clone(), report }).expect("it can be told");
            let found = decoded(&message).expect("it is whole");
            assert_eq!((found.tensor, found.report), (tensor, report));
            assert!(decoded(&message[..message.len() - 1]).is_err());
        }
    }
}
