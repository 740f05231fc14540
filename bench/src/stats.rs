//! What is said of many measurements.

use std::time::Duration;

use serde::Serialize;

/// A number of measurements in short, in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// How many.
    pub count: usize,
    /// The middle one.
    pub median_ms: f64,
    /// The one that 95 of 100 do not exceed (nearest rank).
    pub p95_ms: f64,
    /// The least.
    pub min_ms: f64,
    /// The greatest.
    pub max_ms: f64,
}

impl Summary {
    /// Of at least one measurement.
    ///
    /// # Errors
    /// When there is none.
    pub fn of(measured: &[Duration]) -> anyhow::Result<Self> {
        let mut ms: Vec<f64> = measured.iter().map(|d| d.as_secs_f64() * 1000.0).collect();
        ms.sort_by(f64::total_cmp);
        let (Some(&min_ms), Some(&max_ms)) = (ms.first(), ms.last()) else {
            anyhow::bail!("nothing was measured");
        };
        let count = ms.len();
        let median_ms = (ms[(count - 1) / 2] + ms[count / 2]) / 2.0;
        let p95_ms = ms[(count * 95).div_ceil(100) - 1];
        // A microsecond is far below what is measured.
        let [median_ms, p95_ms, min_ms, max_ms] =
            [median_ms, p95_ms, min_ms, max_ms].map(|ms| (ms * 1e3).round() / 1e3);
        Ok(Self { count, median_ms, p95_ms, min_ms, max_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_and_the_nearest_rank() {
        let of = |ms: &[u64]| Summary::of(&ms.iter().map(|&m| Duration::from_millis(m)).collect::<Vec<_>>()).unwrap();
        assert_eq!(of(&[5]), Summary { count: 1, median_ms: 5.0, p95_ms: 5.0, min_ms: 5.0, max_ms: 5.0 });
        let twenty: Vec<u64> = (1..=20).rev().collect();
        let summary = of(&twenty);
        assert_eq!((summary.median_ms, summary.p95_ms, summary.max_ms), (10.5, 19.0, 20.0));
        assert!(Summary::of(&[]).is_err());
    }
}
