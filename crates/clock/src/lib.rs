//! Time and randomness as values that are handed in.
//!
//! Whatever reads the time takes a [`Clock`], whatever needs randomness takes an [`Entropy`]. In production both are the
//! operating system's; in a test they are set by hand, so that expiry, rotation and back-off are tested without waiting and
//! a failing case can be run again.

mod backoff;
mod entropy;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

pub use backoff::Backoff;
pub use entropy::Entropy;

/// Where the time comes from: the operating system, or a test. Cloning is cheap and every clone shows the same time.
#[derive(Clone)]
pub struct Clock(Source);

#[derive(Clone)]
enum Source {
    System,
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// The operating system's wall clock.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands still at `start_ms` (Unix milliseconds) until the [`ManualClock`] beside it is moved.
    pub fn manual(start_ms: i64) -> (Self, ManualClock) {
        let now = Arc::new(AtomicI64::new(start_ms));
        (Self(Source::Manual(Arc::clone(&now))), ManualClock(now))
    }

    /// The time in Unix milliseconds. Before 1970 it is negative.
    pub fn now_ms(&self) -> i64 {
        match &self.0 {
            Source::System => system_ms(),
            Source::Manual(now) => now.load(Ordering::SeqCst),
        }
    }

    /// The time in whole Unix seconds, rounded down, as RFC 7519 `NumericDate` wants it.
    pub fn now_s(&self) -> i64 {
        self.now_ms().div_euclid(1000)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::System => f.write_str("Clock::system"),
            Source::Manual(now) => write!(f, "Clock::manual({} ms)", now.load(Ordering::SeqCst)),
        }
    }
}

/// The hand that moves a [`Clock::manual`]. Clones move the same clock.
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<AtomicI64>);

impl ManualClock {
    /// Moves the clock by `by` milliseconds; a negative number moves it back, as a corrected wall clock does.
    pub fn advance_ms(&self, by: i64) {
        self.0.fetch_add(by, Ordering::SeqCst);
    }

    /// Sets the clock to `to`, in Unix milliseconds.
    pub fn set_ms(&self, to: i64) {
        self.0.store(to, Ordering::SeqCst);
    }
}

/// Writes Unix milliseconds as an RFC 3339 date and time in UTC, such as `2026-01-02T03:04:05.678Z`.
///
/// A time outside the years −9999 to 9999 is written as the nearest one inside.
pub fn rfc3339(ms: i64) -> String {
    let timestamp = jiff::Timestamp::from_millisecond(ms).unwrap_or(if ms < 0 {
        jiff::Timestamp::MIN
    } else {
        jiff::Timestamp::MAX
    });
    format!("{timestamp:.3}")
}

// The one place that reads the wall clock; everything else is given a Clock.
#[allow(clippy::disallowed_methods)]
fn system_ms() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |ms| -ms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_by_hand_and_for_every_clone() {
        let (clock, hand) = Clock::manual(1_000);
        let other = clock.clone();
        assert_eq!(clock.now_ms(), 1_000);
        hand.advance_ms(1_999);
        assert_eq!((other.now_ms(), other.now_s()), (2_999, 2));
        hand.set_ms(-1);
        assert_eq!((clock.now_ms(), clock.now_s()), (-1, -1));
    }

    #[test]
    fn the_system_clock_is_past_2026() {
        let clock = Clock::system();
        assert!(clock.now_ms() > 1_760_000_000_000);
        assert_eq!(clock.now_s().to_string().len(), 10);
    }

    #[test]
    fn rfc3339_has_milliseconds_and_utc() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(1_767_323_045_678), "2026-01-02T03:04:05.678Z");
        assert_eq!(rfc3339(-1), "1969-12-31T23:59:59.999Z");
        assert!(rfc3339(i64::MAX).starts_with("9999-12-"));
    }
}
