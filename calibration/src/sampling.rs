//! The next token from logits: the likeliest, or drawn from the model's distribution, warmed, cooled or cut.

use kernels::elementwise;
use kernels::random::SplitMix;

/// How tokens are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the likeliest token.
    pub temperature: f32,
    /// Only the likeliest tokens that together have this probability are drawn from (nucleus sampling, arXiv 1904.09751); 1 cuts nothing.
    pub top_p: f32,
}

/// Draws tokens, the same ones for the same seed.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: SplitMix,
}

impl Sampler {
    /// Draws as `sampling` says.
    #[must_use]
    pub fn new(sampling: Sampling, seed: u64) -> Self {
        Self { sampling, random: SplitMix::new(seed) }
    }

    /// A token; `logits` are used up.
    pub fn next(&mut self, logits: &mut [f32]) -> u32 {
        let Sampling { temperature, top_p } = self.sampling;
        if temperature <= 0.0 {
            return likeliest(logits);
        }
        logits.iter_mut().for_each(|logit| *logit /= temperature);
        if top_p < 1.0 {
            keep_nucleus(logits, top_p);
        }
        draw(logits, self.random.unit())
    }
}

/// Puts all but the likeliest tokens that have `share` of the probability out of reach.
fn keep_nucleus(logits: &mut [f32], share: f32) {
    let highest = elementwise::max(logits);
    let wanted = f64::from(share) * elementwise::sum_of_exponentials(logits, highest);
    let likelier = |&a: &usize, &b: &usize| logits[b].total_cmp(&logits[a]).then(a.cmp(&b));
    let mut order: Vec<usize> = (0..logits.len()).collect();
    let (mut kept, mut gathered) = (0, 0.0);
    // Few tokens hold most of the probability: the others need no order among themselves.
    let mut part = FIRST_SORTED;
    while kept < order.len() && gathered < wanted {
        let rest = &mut order[kept..];
        let count = part.min(rest.len());
        if count < rest.len() {
            rest.select_nth_unstable_by(count, likelier);
        }
        rest[..count].sort_unstable_by(likelier);
        for &token in &rest[..count] {
            if gathered >= wanted {
                break;
            }
            gathered += f64::from(elementwise::exp(logits[token] - highest));
            kept += 1;
        }
        part *= 8;
    }
    order[kept..].iter().for_each(|&token| logits[token] = f32::NEG_INFINITY);
}

/// Tokens that are put in order at first.
const FIRST_SORTED: usize = 64;

/// The largest logit's token, the first of equals.
pub(crate) fn likeliest(logits: &[f32]) -> u32 {
    let highest = elementwise::max(logits);
    logits.iter().position(|&logit| logit == highest).unwrap_or(0) as u32
}

/// The token whose stretch of the cumulative distribution holds `point`, which is from 0 to 1; `logits` become probabilities, not normalized.
pub(crate) fn draw(logits: &mut [f32], point: f64) -> u32 {
    let highest = elementwise::max(logits);
    elementwise::exponentiate(logits, highest);
    let total: f64 = logits.iter().map(|&share| f64::from(share)).sum();
    let mut left = point * total;
    for (token, &share) in logits.iter().enumerate() {
        left -= f64::from(share);
        if left < 0.0 {
            return token as u32;
        }
    }
    // Rounding left a little: the last token that can be drawn.
    logits.iter().rposition(|&share| share > 0.0).unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_the_distribution() {
        let logits = [0.0_f32, 1.0, -2.0, f32::ln(4.0)];
        let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
        let mut counts = [0.0; 4];
        let mut random = SplitMix::new(3);
        for _ in 0..20_000 {
            counts[draw(&mut logits.clone(), random.unit()) as usize] += 1.0 / 20_000.0;
        }
        for (count, logit) in counts.iter().zip(logits) {
            assert!((count - f64::from(logit).exp() / total).abs() < 0.015, "{counts:?}");
        }
        assert_eq!(draw(&mut [0.0, 0.0, -200.0], 1.0), 1);
        assert_eq!(likeliest(&[1.0, 3.0, 3.0]), 1);
    }

    #[test]
    fn a_nucleus_holds_the_likeliest_tokens_and_no_more_than_it_must() {
        // Probabilities 0.5, 0.3, 0.15 and 0.05.
        let logits = [0.05_f32, 0.5, 0.15, 0.3].map(f32::ln);
        for (share, expected) in [(0.4, vec![1]), (0.49, vec![1]), (0.7, vec![1, 3]), (0.9, vec![1, 2, 3])] {
            let mut kept = logits;
            keep_nucleus(&mut kept, share);
            let found: Vec<usize> = (0..4).filter(|&token| kept[token].is_finite()).collect();
            assert_eq!(found, expected, "{share}");
        }
        // More tokens than are put in order at first, and equals, of which the first are kept.
        for share in [0.1, 0.5, 0.95, 0.999] {
            let mut random = SplitMix::new(5);
            let logits: Vec<f32> = (0..5000).map(|_| (random.unit() * 20.0).round() as f32 / 10.0).collect();
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
            let mut kept = logits.clone();
            keep_nucleus(&mut kept, share);
            let count = kept.iter().filter(|logit| logit.is_finite()).count();
            assert!(order[..count].iter().all(|&token| kept[token] == logits[token]), "{share}");
            let weight =
                |tokens: &[usize]| tokens.iter().map(|&token| f64::from(logits[token]).exp()).sum::<f64>();
            let wanted = f64::from(share) * weight(&order);
            assert!(weight(&order[..count]) > wanted * (1.0 - 1e-5), "{share}");
            assert!(weight(&order[..count - 1]) < wanted * (1.0 + 1e-5), "{share}");
        }
        let mut cold = Sampler::new(Sampling { temperature: 0.0, top_p: 1.0 }, 1);
        assert_eq!(cold.next(&mut logits.clone()), 1);
        let draws = |seed| {
            let mut sampler = Sampler::new(Sampling { temperature: 1.5, top_p: 0.9 }, seed);
            (0..20).map(|_| sampler.next(&mut logits.clone())).collect::<Vec<_>>()
        };
        assert_eq!(draws(7), draws(7));
        assert!(draws(7).iter().all(|&token| token != 0) && draws(7) != draws(8));
    }
}
