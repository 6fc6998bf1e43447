//! The engine's only source of chance: seeded, so that the same seed gives the same run.

/// `SplitMix64` (Steele, Lea, Flood 2014). Jitter only spreads restarts; nothing secret comes from here.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    /// A generator of its own for each `stream`. Each plugin has one, so that the restarts of one plugin do
    /// not shift the jitter of another.
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        let mut base = Self(seed);
        Self(base.next() ^ Self(stream).next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Uniform from 0 to `max`, both included.
    pub(super) fn up_to(&mut self, max: u32) -> u32 {
        let scaled = ((self.next() >> 32) * (u64::from(max) + 1)) >> 32;
        u32::try_from(scaled).expect("invariant: a 32-bit fraction of max + 1 is at most max")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_the_published_one_and_streams_differ() {
        // The reference implementation's first outputs for the seed 1234567.
        let mut random = Random(1_234_567);
        assert_eq!(
            [(); 3].map(|()| random.next()),
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
        let [mut one, mut other] = [0, 1].map(|stream| Random::new(7, stream));
        assert_ne!([(); 3].map(|()| one.next()), [(); 3].map(|()| other.next()));
    }
}
