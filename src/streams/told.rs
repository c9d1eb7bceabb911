//! What ranks tell each other of their windows at a stage: as much as is added up of it, rounded as it will be, to those that do.

use kernels::bf16::Precision;
use kernels::ranks::{Ranks, put, put_factors, take, take_factors};
use ndarray::Array2;

use super::{Lacks, See, Seen, Wanted};
use crate::error::Error;

/// Tells the others of `own`, this rank's windows, where it is the `owner`, or hears of the owner's.
pub(super) fn tell(
    ranks: &dyn Ranks,
    owner: usize,
    own: &[Seen<'_>],
    wanted: Wanted<'_>,
    precision: Precision,
) -> Result<Vec<u8>, Error> {
    let tells = owner == ranks.rank();
    let mut all = Vec::new();
    if tells && (0..wanted.sharers).any(|rank| rank != owner) {
        own.iter().for_each(|seen| put_for_sharer(&mut all, seen, wanted, precision));
    }
    if wanted.sharers == ranks.size() {
        return Ok(ranks.broadcast(owner, all)?);
    }
    let mut heard = Vec::new();
    for to in (0..ranks.size()).filter(|&to| to != owner) {
        let message = match (tells, to < wanted.sharers) {
            (false, _) => Vec::new(),
            (true, true) => all.clone(),
            (true, false) => counts(own),
        };
        let message = ranks.pass(owner, to, message)?;
        if to == ranks.rank() {
            heard = message;
        }
    }
    Ok(heard)
}

/// Shows the next window of another rank's message.
pub(super) fn see(
    ranks: &dyn Ranks,
    message: &mut &[u8],
    wanted: Wanted<'_>,
    precision: Precision,
    see: &mut See<'_>,
) -> Result<(), Error> {
    let shares = ranks.rank() < wanted.sharers;
    let input = if shares { take_factors(message, precision)? } else { take::<f32>(message)? };
    let mut lack = |wanted: bool| (wanted && shares).then(|| take_factors(message, precision)).transpose();
    let (of_input, of_residual) = (lack(wanted.input)?, lack(wanted.residual)?);
    let none = Array2::zeros((input.nrows(), 0));
    see(&[Seen {
        input: input.view(),
        residual: none.view(),
        original: None,
        lacks: Some(Lacks {
            input: of_input.as_ref().map(|lack| lack.view()),
            residual: of_residual.as_ref().map(|lack| lack.view()),
        }),
    }])
}

/// For a rank that has a share of the sums.
fn put_for_sharer(message: &mut Vec<u8>, seen: &Seen<'_>, wanted: Wanted<'_>, precision: Precision) {
    put_factors(message, seen.input, precision);
    if let Some(lack) = wanted.through.and_then(|through| through.lack(seen)) {
        put_factors(message, lack.view(), precision);
    } else if let Some((input, residual)) = seen.original {
        if wanted.input {
            put_factors(message, (&input - &seen.input).view(), precision);
        }
        if wanted.residual {
            put_factors(message, (&residual - &seen.residual).view(), precision);
        }
    }
}

/// For a rank that counts tokens alone.
fn counts(own: &[Seen<'_>]) -> Vec<u8> {
    let mut message = Vec::new();
    for seen in own {
        put(&mut message, Array2::<f32>::zeros((seen.input.nrows(), 0)).view());
    }
    message
}
