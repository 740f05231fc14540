//! What a person's workspace exchanged with the internet and was refused, as the router counts it. An extra: without it
//! the page is still right.

use std::time::Duration;

use contracts::{
    InstanceId,
    egress::{EgressRefusal, EgressUsage, usage_path},
};
use http::Method;

use crate::{Portal, texts::Texts, view::utc};

/// How long the page waits for the router's numbers.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many refusals are shown.
const SHOWN: usize = 5;

/// The numbers, in the reader's words.
pub struct Traffic {
    /// Since when they are counted: for programs, and for readers without JavaScript.
    pub since: (String, String),
    /// What it sent.
    pub sent: String,
    /// What it received.
    pub received: String,
    /// Connections that are open, and how many may be.
    pub open: u64,
    /// How many may be.
    pub limit: u64,
    /// How often it was refused.
    pub refused: u64,
    /// The latest refusals, the newest first.
    pub refusals: Vec<Refused>,
}

/// Something that was refused, or could not be had.
pub struct Refused {
    /// When last.
    pub when: String,
    /// The same, for readers without JavaScript.
    pub shown: String,
    /// What was asked for, as the workspace wrote it.
    pub target: String,
    /// Why, and how often.
    pub why: String,
}

impl Traffic {
    /// Of this instance; `None` when its way out is not open, or the router does not say.
    pub async fn of(portal: &Portal, id: InstanceId, t: Texts) -> Option<Self> {
        let router = portal.router();
        match router.json::<EgressUsage>(router.request(Method::GET, &usage_path(id)).timeout(PATIENCE)).await {
            Ok(usage) => Some(Self::new(usage, t)),
            // It is down, or not there yet.
            Err(error) if error.status() == Some(404) => None,
            Err(error) => {
                tracing::info!(cause = format!("{:#}", anyhow::Error::from(error)), "the router tells no numbers");
                None
            }
        }
    }

    fn new(usage: EgressUsage, t: Texts) -> Self {
        Self {
            since: (clock::rfc3339(usage.since_ms), utc(usage.since_ms)),
            sent: bytes(usage.bytes_out),
            received: bytes(usage.bytes_in),
            open: usage.open_connections,
            limit: usage.connection_limit,
            refused: usage.refused,
            refusals: usage.refusals.into_iter().take(SHOWN).map(|refusal| Refused::new(refusal, t)).collect(),
        }
    }
}

impl Refused {
    fn new(refusal: EgressRefusal, t: Texts) -> Self {
        let why = t.get(&format!("egress_reason.{}", refusal.reason)).unwrap_or_else(|| t.t("egress_reason.other"));
        let why = match refusal.count {
            0 | 1 => why.into(),
            count => format!("{why} {}", t.with("traffic.times", "count", count)),
        };
        Self { when: clock::rfc3339(refusal.at_ms), shown: utc(refusal.at_ms), target: refusal.target, why }
    }
}

/// So many bytes, for people.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let (mut tenths, mut unit) = (count / 100, 0);
    while tenths >= 10_000 && unit + 1 < UNITS.len() {
        (tenths, unit) = (tenths / 1000, unit + 1);
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_told_in_the_unit_that_fits() {
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (999_999, "999.9 kB"),
            (1_000_000, "1.0 MB"),
            (12_345_678_901, "12.3 GB"),
            (u64::MAX, "18446744.0 TB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }
}
