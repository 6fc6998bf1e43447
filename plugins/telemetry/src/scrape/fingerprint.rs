//! Numbers that stand for label sets.
//!
//! A label set's number is the sum of its labels' numbers, so that their order is of no account and a label
//! can be left out by subtraction. The multipliers are random for each process: a page cannot be written so
//! that two of its series share a number.

use std::{
    collections::HashSet,
    hash::{BuildHasher as _, BuildHasherDefault, Hasher, RandomState},
};

/// Numbers that are hashed already.
pub(super) type Numbers = HashSet<u64, BuildHasherDefault<Taken>>;

/// A hasher that takes a number as it is.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Taken(u64);

impl Hasher for Taken {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

/// The secret of one process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fingerprint {
    seed: u64,
    factor: u64,
}

impl Fingerprint {
    pub(super) fn new() -> Self {
        let random = RandomState::new();
        Self { seed: random.hash_one(1_u8), factor: random.hash_one(2_u8) | 1 }
    }

    /// The number of one label.
    pub(super) fn label(self, name: &str, value: &str) -> u64 {
        self.mix(self.bytes(self.seed, name.as_bytes()), self.bytes(self.factor, value.as_bytes()))
    }

    /// The number of a word in a place.
    pub(super) fn word(self, place: u64, word: &str) -> u64 {
        self.mix(self.seed ^ place, self.bytes(self.factor, word.as_bytes()))
    }

    /// A number of two.
    pub(super) fn mix(self, a: u64, b: u64) -> u64 {
        fold(a ^ self.factor, b ^ self.seed.rotate_left(23))
    }

    fn bytes(self, seed: u64, bytes: &[u8]) -> u64 {
        let mut state = seed ^ bytes.len() as u64;
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            let mut word = [0; 8];
            word.copy_from_slice(chunk);
            state = fold(state ^ u64::from_le_bytes(word), self.factor);
        }
        let rest = chunks.remainder();
        let mut word = [0; 8];
        word[..rest.len()].copy_from_slice(rest);
        fold(state ^ u64::from_le_bytes(word), self.factor.rotate_left(32) | 1)
    }
}

/// Both halves of the product: every bit of either factor moves half of the result's.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    #[expect(clippy::cast_possible_truncation, reason = "the halves are wanted")]
    let (low, high) = (product as u64, (product >> 64) as u64);
    low ^ high
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_sets_that_differ_have_numbers_that_differ() {
        let fingerprint = Fingerprint::new();
        let mut seen = HashSet::new();
        for n in 0..20_000 {
            assert!(seen.insert(fingerprint.label("path", &format!("/{n}"))), "{n}");
            assert!(seen.insert(fingerprint.label(&format!("l{n}"), "")), "{n}");
        }
        assert_ne!(fingerprint.label("ab", "c"), fingerprint.label("a", "bc"));
        assert_ne!(fingerprint.label("a", "b"), fingerprint.label("b", "a"));
    }
}
