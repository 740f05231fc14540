//! Randomness: the operating system's, or a repeatable one for tests.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

use crate::Clock;

/// A source of random bytes. Cloning is cheap; clones of a seeded source draw from the same sequence.
#[derive(Clone)]
pub struct Entropy(Source);

#[derive(Clone)]
enum Source {
    System,
    Seeded(Arc<AtomicU64>),
}

impl Entropy {
    /// The operating system's generator, fit for keys and tokens.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A sequence that is the same for the same seed. Anybody can predict it, so it is for tests alone.
    pub fn seeded(seed: u64) -> Self {
        Self(Source::Seeded(Arc::new(AtomicU64::new(seed))))
    }

    /// Fills `buffer` with random bytes.
    ///
    /// # Panics
    ///
    /// When the operating system has no randomness to give. Nothing that needs a secret may go on without it.
    pub fn fill(&self, buffer: &mut [u8]) {
        match &self.0 {
            Source::System => {
                if let Err(error) = getrandom::fill(buffer) {
                    panic!("the operating system gave no randomness: {error}");
                }
            }
            Source::Seeded(state) => {
                for chunk in buffer.chunks_mut(8) {
                    chunk.copy_from_slice(&split_mix(state).to_le_bytes()[..chunk.len()]);
                }
            }
        }
    }

    /// `N` random bytes.
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill(&mut bytes);
        bytes
    }

    /// A bearer secret: 32 random bytes in base64url without padding (RFC 4648 section 5), 43 characters.
    pub fn token(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.bytes::<32>())
    }

    /// A version 7 UUID (RFC 9562): the clock's milliseconds, then random bits, so that newer ones sort later.
    pub fn uuid_v7(&self, clock: &Clock) -> Uuid {
        let ms = u64::try_from(clock.now_ms()).unwrap_or(0);
        uuid::Builder::from_unix_timestamp_millis(ms, &self.bytes::<10>()).into_uuid()
    }

    /// A number from 0 up to but without `n`, each as likely as the next; 0 when `n` is 0.
    pub fn below(&self, n: u64) -> u64 {
        if n <= 1 {
            return 0;
        }
        // Numbers under this threshold would make the low results likelier: draw again (at most every other time).
        let threshold = n.wrapping_neg() % n;
        loop {
            let drawn = u64::from_le_bytes(self.bytes());
            if drawn >= threshold {
                return drawn % n;
            }
        }
    }
}

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Source::System => f.write_str("Entropy::system"),
            Source::Seeded(_) => f.write_str("Entropy::seeded"),
        }
    }
}

/// The next number of SplitMix64: small, even, and safe to draw from several threads.
fn split_mix(state: &AtomicU64) -> u64 {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut z = state.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_seed_repeats_itself_and_another_differs() {
        let draw = |seed| Entropy::seeded(seed).bytes::<20>();
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        let entropy = Entropy::seeded(7);
        assert_ne!(entropy.bytes::<20>(), entropy.bytes::<20>(), "a sequence goes on");
    }

    #[test]
    fn split_mix_gives_the_published_numbers() {
        let state = AtomicU64::new(1_234_567);
        let drawn: Vec<u64> = (0..3).map(|_| split_mix(&state)).collect();
        assert_eq!(drawn, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn the_system_never_repeats_and_leaves_no_byte_unfilled() {
        let entropy = Entropy::system();
        let tokens: HashSet<String> = (0..1_000).map(|_| entropy.token()).collect();
        assert_eq!(tokens.len(), 1_000);
        let mut seen = [0_u8; 33];
        for _ in 0..64 {
            for (all, byte) in seen.iter_mut().zip(entropy.bytes::<33>()) {
                *all |= byte;
            }
        }
        assert!(seen.iter().all(|byte| *byte != 0));
    }

    #[test]
    fn a_token_is_43_characters_of_base64url() {
        let token = Entropy::seeded(1).token();
        assert_eq!(token.len(), 43);
        assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
    }

    #[test]
    fn uuid_v7_sorts_by_the_clock() {
        let (clock, hand) = Clock::manual(1_767_323_045_678);
        let entropy = Entropy::seeded(3);
        let first = entropy.uuid_v7(&clock);
        hand.advance_ms(1);
        let second = entropy.uuid_v7(&clock);
        assert_eq!(first.get_version_num(), 7);
        assert!(first.to_string() < second.to_string());
        assert_eq!(first.get_timestamp().map(|t| t.to_unix().0), Some(1_767_323_045));
    }

    #[test]
    fn below_is_even_and_in_range() {
        let entropy = Entropy::seeded(11);
        assert_eq!((entropy.below(0), entropy.below(1)), (0, 0));
        let mut counts = [0_u32; 6];
        for _ in 0..6_000 {
            counts[usize::try_from(entropy.below(6)).expect("small")] += 1;
        }
        assert!(counts.iter().all(|count| (850..1_150).contains(count)), "{counts:?}");
        assert!((0..100).all(|_| entropy.below(u64::MAX / 2 + 2) < u64::MAX / 2 + 2));
    }
}
