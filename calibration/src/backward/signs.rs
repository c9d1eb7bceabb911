//! Random signs for every position and token, the same wherever the vocabulary is cut, and their product with the roots of a softmax.

use crate::evaluation::softmax::Softmax;

/// The signs of one position from one token on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Signs {
    state: u64,
    token: u64,
    word: u64,
}

impl Signs {
    pub(super) fn new(seed: u64, position: usize, first: usize) -> Self {
        let state = mix(mix(seed) ^ position as u64);
        let token = first as u64;
        Self { state, token, word: mix(state ^ (token / 64)) }
    }
}

impl Iterator for Signs {
    type Item = f32;

    fn next(&mut self) -> Option<f32> {
        if self.token.is_multiple_of(64) {
            self.word = mix(self.state ^ (self.token / 64));
        }
        let sign = if self.word >> (self.token % 64) & 1 == 0 { 1.0 } else { -1.0 };
        self.token += 1;
        Some(sign)
    }
}

/// The finalizer of SplitMix64 (doi 10.1145/2660193.2660195).
fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// `Σ √exp(logit - highest) sign`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SignedRoots(f64);

impl SignedRoots {
    /// Takes in a slice of logits, and so does `softmax`. The logits are overwritten.
    pub(super) fn add(&mut self, softmax: &mut Softmax, logits: &mut [f32], signs: Signs) {
        let shrunk = softmax.add_exponentials(logits, signs.token as usize);
        self.0 *= shrunk.sqrt();
        self.0 += logits.iter().zip(signs).map(|(x, sign)| f64::from(sign * x.sqrt())).sum::<f64>();
    }

    /// `√q · ξ`, when the whole vocabulary was seen.
    pub(super) fn finish(&self, softmax: &Softmax) -> f32 {
        (self.0 / softmax.total().sqrt()) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::Signs;

    #[test]
    fn signs_do_not_depend_on_the_cut_and_differ_by_position_and_seed() {
        let whole: Vec<f32> = Signs::new(7, 3, 0).take(300).collect();
        for first in [1, 63, 64, 65, 200] {
            let part: Vec<f32> = Signs::new(7, 3, first).take(300 - first).collect();
            assert_eq!(part, whole[first..]);
        }
        for other in [Signs::new(7, 4, 0), Signs::new(8, 3, 0)] {
            let agree = other.zip(&whole).filter(|(a, b)| a == *b).count();
            assert!((100..200).contains(&agree), "{agree}");
        }
    }
}
