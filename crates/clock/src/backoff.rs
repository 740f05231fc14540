//! Waiting longer after each failure, and never all at the same time.

use std::time::Duration;

use crate::Entropy;

/// Waits that double from one to another, each shortened by up to a half at random.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits from `first` to `longest`, before they are shortened.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// Begins from the first again: something succeeded.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// The wait after one more failure.
    pub fn next(&mut self, entropy: &Entropy) -> Duration {
        self.failures = self.failures.saturating_add(1);
        Self::wait(self.first, self.longest, self.failures, entropy)
    }

    /// The wait after the n-th failure in a row, counted from 1, for those who keep count themselves.
    pub fn wait(first: Duration, longest: Duration, failures: u32, entropy: &Entropy) -> Duration {
        let full = first.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX)).min(longest);
        let half = full / 2;
        half + Duration::from_millis(entropy.below(u64::try_from(half.as_millis()).unwrap_or(0).saturating_add(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_within_their_bounds() {
        let entropy = Entropy::seeded(1);
        for (failures, full_ms) in [(1, 1_000), (2, 2_000), (3, 4_000), (20, 60_000), (u32::MAX, 60_000)] {
            for _ in 0..50 {
                let ms = Backoff::wait(Duration::from_secs(1), Duration::from_secs(60), failures, &entropy).as_millis();
                assert!((full_ms / 2..=full_ms).contains(&ms), "{failures}: {ms}");
            }
        }
    }
}
