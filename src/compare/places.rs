//! Where a model and the reference differ most: single tokens and stretches of text, with what is around them.

use calibration::evaluation::Favourite;
use calibration::evaluation::comparison::{Compared, Distance};
use calibration::tokenizer::TextTokenizer;
use serde::Serialize;

use crate::error::Error;

/// Tokens that are shown.
const TOKENS: usize = 8;
/// Tokens before one, as its context.
const BEFORE: usize = 12;
/// Stretches that are shown.
const PASSAGES: usize = 3;
/// Tokens of a stretch.
const STRETCH: usize = 32;
/// From the beginning of one stretch that is looked at to the next.
const STRIDE: usize = 8;
/// Tokens of a stretch that are named.
const NAMED: usize = 3;

/// A token that two models disagree about.
#[derive(Clone, Debug, Serialize)]
pub struct TokenDifference {
    /// The window, from 0.
    pub window: usize,
    /// The token's place in it, from 0.
    pub position: usize,
    /// KL divergence at the token, nats.
    pub kl: f64,
    /// Text before it.
    pub context: String,
    /// What the text goes on with.
    pub text: String,
    /// What the reference would have said.
    pub reference: Guess,
    /// What the model would have said.
    pub model: Guess,
}

/// The token that a model ranks first.
#[derive(Clone, Debug, Serialize)]
pub struct Guess {
    /// Its text.
    pub text: String,
    /// Its probability.
    pub probability: f32,
}

/// A stretch of text.
#[derive(Clone, Debug, Serialize)]
pub struct Passage {
    /// The window, from 0.
    pub window: usize,
    /// Place of its first token in it, from 0.
    pub position: usize,
    /// Mean KL divergence over its tokens, nats.
    pub kl: f64,
    /// Mean negative log-likelihood that the reference gives it, nats a token.
    pub reference_nll: f64,
    /// The same of the model.
    pub model_nll: f64,
    /// Its text.
    pub text: String,
    /// The tokens in it that are farthest apart, farthest first.
    pub worst: Vec<String>,
}

/// What is needed to find and to show places.
pub(super) struct Places<'p> {
    windows: &'p [Vec<u32>],
    reference: &'p Compared,
    model: &'p Compared,
    distance: Option<&'p Distance>,
    tokenizer: Option<&'p TextTokenizer>,
}

impl<'p> Places<'p> {
    pub(super) fn new(
        windows: &'p [Vec<u32>],
        reference: &'p Compared,
        model: &'p Compared,
        tokenizer: Option<&'p TextTokenizer>,
    ) -> Self {
        Self { windows, reference, model, distance: model.distance.as_ref(), tokenizer }
    }

    /// Tokens with the largest divergence, largest first; none where there is no divergence at all.
    pub(super) fn tokens(&self) -> Result<Vec<TokenDifference>, Error> {
        let Some(distance) = self.distance else { return Ok(Vec::new()) };
        let all = distance.divergence.iter().enumerate().flat_map(|(window, values)| {
            values.iter().enumerate().map(move |(position, &kl)| (kl, window, position))
        });
        let mut all: Vec<(f32, usize, usize)> = all.filter(|(kl, ..)| *kl > 0.0).collect();
        all.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        all.truncate(TOKENS);
        let shown = all.into_iter().map(|(kl, window, position)| {
            let tokens = &self.windows[window];
            let known = &tokens[..=position];
            let context = &known[known.len().saturating_sub(BEFORE)..];
            let guess = |first: &[Vec<Favourite>]| {
                let Favourite { token, probability } = first[window][position];
                Ok::<_, Error>(Guess { text: self.after(context, token)?, probability })
            };
            Ok(TokenDifference {
                window,
                position: position + 1,
                kl: f64::from(kl),
                context: self.text(context)?,
                text: self.after(context, tokens[position + 1])?,
                reference: guess(&self.reference.first)?,
                model: guess(&self.model.first)?,
            })
        });
        shown.collect()
    }

    /// Stretches with the largest mean divergence, largest first; no two overlap.
    pub(super) fn passages(&self) -> Result<Vec<Passage>, Error> {
        let Some(distance) = self.distance else { return Ok(Vec::new()) };
        let mean = |values: &[f32]| {
            values.iter().map(|&value| f64::from(value)).sum::<f64>() / values.len().max(1) as f64
        };
        let mut all: Vec<(f64, usize, usize)> = Vec::new();
        for (window, values) in distance.divergence.iter().enumerate() {
            let length = STRETCH.min(values.len());
            for first in (0..=values.len() - length).step_by(STRIDE) {
                all.push((mean(&values[first..first + length]), window, first));
            }
        }
        all.retain(|(kl, ..)| *kl > 0.0);
        all.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        let mut taken: Vec<(f64, usize, usize)> = Vec::new();
        for (kl, window, first) in all {
            let apart = |&(_, other, place): &(f64, usize, usize)| {
                other != window || place.abs_diff(first) >= STRETCH
            };
            if taken.iter().all(apart) {
                taken.push((kl, window, first));
            }
            if taken.len() == PASSAGES {
                break;
            }
        }
        let shown = taken.into_iter().map(|(kl, window, first)| {
            let values = &distance.divergence[window];
            let positions = first..(first + STRETCH).min(values.len());
            let nll = |model: &Compared| {
                model.nll[window][positions.clone()].iter().sum::<f64>() / positions.len().max(1) as f64
            };
            let tokens = &self.windows[window];
            let mut worst: Vec<usize> = positions.clone().collect();
            worst.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
            let named = worst.into_iter().take(NAMED).map(|position| {
                let known = &tokens[..=position];
                self.after(&known[known.len().saturating_sub(BEFORE)..], tokens[position + 1])
            });
            Ok(Passage {
                window,
                position: first + 1,
                kl,
                reference_nll: nll(self.reference),
                model_nll: nll(self.model),
                text: self.text(&tokens[first + 1..=positions.end])?,
                worst: named.collect::<Result<_, Error>>()?,
            })
        });
        shown.collect()
    }

    fn text(&self, tokens: &[u32]) -> Result<String, Error> {
        let Some(tokenizer) = self.tokenizer else { return Ok(ids(tokens)) };
        let mut stream = tokenizer.stream();
        let pieces = tokens.iter().map(|&token| stream.push(token));
        Ok(pieces.collect::<Result<String, _>>()?)
    }

    /// What `token` adds to the text of `context`; its name where that is nothing, as of special tokens and parts of characters.
    fn after(&self, context: &[u32], token: u32) -> Result<String, Error> {
        let Some(tokenizer) = self.tokenizer else { return Ok(ids(&[token])) };
        let mut stream = tokenizer.stream();
        for &known in context {
            stream.push(known)?;
        }
        let text = stream.push(token)?;
        let whole = !text.is_empty() && !text.contains(char::REPLACEMENT_CHARACTER);
        Ok(if whole { text } else { tokenizer.name_of(token).unwrap_or_else(|| ids(&[token])) })
    }
}

fn ids(tokens: &[u32]) -> String {
    let ids: Vec<String> = tokens.iter().map(|token| format!("<{token}>")).collect();
    ids.concat()
}
