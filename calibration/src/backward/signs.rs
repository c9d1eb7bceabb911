//! Random signs for every position and token, the same wherever the vocabulary is cut, and their product with the roots of a softmax.

use kernels::signs::sum_of_signed_roots;

use crate::evaluation::softmax::Softmax;

/// The signs of one position from one token on, 32 to a word, the first token's in the lowest bit of the first word; a bit that is set is a minus.
#[derive(Clone, Debug, Default)]
pub(super) struct Signs(Vec<u32>);

impl Signs {
    /// Those of `count` tokens from `first` on.
    pub(super) fn draw(&mut self, seed: u64, position: usize, first: usize, count: usize) -> &[u32] {
        let state = mix(mix(seed) ^ position as u64);
        let (word, shift) = (first / 64, first % 64);
        let mut next = mix(state ^ word as u64);
        self.0.clear();
        for word in (word as u64 + 1..).take(count.div_ceil(64)) {
            let low = next >> shift;
            next = mix(state ^ word);
            let signs = if shift == 0 { low } else { low | next << (64 - shift) };
            self.0.extend([signs as u32, (signs >> 32) as u32]);
        }
        self.0.truncate(count.div_ceil(32));
        &self.0
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
    /// Takes in a slice of logits, from the token `first` on, and so does `softmax`. The logits are overwritten.
    pub(super) fn add(&mut self, softmax: &mut Softmax, logits: &mut [f32], first: usize, signs: &[u32]) {
        let shrunk = softmax.add_exponentials(logits, first);
        self.0 *= shrunk.sqrt();
        self.0 += sum_of_signed_roots(logits, signs);
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
        let draw = |seed, position, first: usize| -> Vec<bool> {
            let mut signs = Signs::default();
            let words = signs.draw(seed, position, first, 300 - first);
            (0..300 - first).map(|place| words[place / 32] >> (place % 32) & 1 == 1).collect()
        };
        let whole = draw(7, 3, 0);
        for first in [1, 31, 32, 63, 64, 65, 200] {
            assert_eq!(draw(7, 3, first), whole[first..]);
        }
        for other in [draw(7, 4, 0), draw(8, 3, 0)] {
            let agree = other.iter().zip(&whole).filter(|(a, b)| a == b).count();
            assert!((100..200).contains(&agree), "{agree}");
        }
    }
}
