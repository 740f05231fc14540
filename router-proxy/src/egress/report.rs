//! Telling deploy-control what the rules refused, for the event log of the instance.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use contracts::egress::{EgressReport, MAX_REPORTED, REFUSALS_PATH, RefusalReason, ReportedRefusal};
use service::{CallError, ServiceClient, Shutdown};
use tokio::sync::Notify;

/// How long the same is not told again of an instance.
const WINDOW_MS: i64 = 3_600_000;
/// What is told of an instance in that time.
const MAX_TOLD: usize = 10;
/// What waits to be told, of all instances; beyond that the oldest goes untold, and stays in the numbers.
const MAX_WAITING: usize = 1000;
/// How long more is waited for, so that what comes together is told together.
const GATHER: Duration = Duration::from_secs(2);
/// How long until deploy-control is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// What has been told of one instance lately.
#[derive(Default)]
pub struct Told(Mutex<(i64, HashSet<(String, RefusalReason)>)>);

impl Told {
    /// Whether this is worth telling, which it is not for a while thereafter.
    fn is_new(&self, refusal: &ReportedRefusal, now_ms: i64) -> bool {
        let mut told = lock(&self.0);
        if now_ms - told.0 >= WINDOW_MS || now_ms < told.0 {
            *told = (now_ms, HashSet::new());
        }
        told.1.len() < MAX_TOLD && told.1.insert((refusal.target.clone(), refusal.reason))
    }
}

/// What waits to be told. Cloning is cheap.
#[derive(Clone, Default)]
pub struct Outbox(Arc<(Mutex<VecDeque<ReportedRefusal>>, Notify)>);

impl Outbox {
    /// Takes a refusal in, unless `told` shows that its like was told lately.
    pub fn offer(&self, told: &Told, refusal: ReportedRefusal, now_ms: i64) {
        if told.is_new(&refusal, now_ms) {
            self.put([refusal]);
            self.0.1.notify_one();
        }
    }

    fn put(&self, refusals: impl IntoIterator<Item = ReportedRefusal>) {
        let mut waiting = lock(&self.0.0);
        waiting.extend(refusals);
        let over = waiting.len().saturating_sub(MAX_WAITING);
        waiting.drain(..over);
    }

    fn take(&self) -> Vec<ReportedRefusal> {
        let mut waiting = lock(&self.0.0);
        let n = waiting.len().min(MAX_REPORTED);
        waiting.drain(..n).collect()
    }
}

/// Tells deploy-control, until `stop`.
pub async fn send(client: ServiceClient, outbox: Outbox, stop: Shutdown) {
    let sending = async {
        loop {
            outbox.0.1.notified().await;
            tokio::time::sleep(GATHER).await;
            loop {
                let refusals = outbox.take();
                if refusals.is_empty() {
                    break;
                }
                if !send_once(&client, &EgressReport { refusals: refusals.clone() }).await {
                    outbox.put(refusals);
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    };
    tokio::select! {
        () = sending => {}
        () = stop.cancelled() => {}
    }
}

/// Whether it need not be sent again.
async fn send_once(client: &ServiceClient, report: &EgressReport) -> bool {
    match client.post::<()>(REFUSALS_PATH, report).await {
        Ok(()) => true,
        Err(error @ CallError::Refused { .. }) if error.status().is_some_and(|status| status < 500) => {
            tracing::warn!(cause = format!("{:#}", anyhow::Error::from(error)), "refusals were not taken as events");
            true
        }
        Err(error) => {
            tracing::debug!(cause = format!("{:#}", anyhow::Error::from(error)), "refusals are told later");
            false
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics under the lock.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use contracts::InstanceId;

    use super::*;

    fn refusal(instance: u128, target: &str) -> ReportedRefusal {
        let instance_id = InstanceId::from_uuid(uuid::Uuid::from_u128(instance));
        ReportedRefusal { instance_id, target: target.into(), reason: RefusalReason::Address }
    }

    #[test]
    fn nobody_fills_a_log_at_will() {
        let (outbox, told) = (Outbox::default(), Told::default());
        for _ in 0..5 {
            outbox.offer(&told, refusal(1, "a.test:80"), 1000);
        }
        assert_eq!(outbox.take(), [refusal(1, "a.test:80")]);
        for n in 0..100 {
            outbox.offer(&told, refusal(1, &format!("{n}.test:80")), 1001);
        }
        assert_eq!(outbox.take().len(), MAX_TOLD - 1);
        outbox.offer(&told, refusal(1, "a.test:80"), 1000 + WINDOW_MS);
        assert_eq!(outbox.take().len(), 1, "after an hour it is told again");
    }

    #[test]
    fn what_waits_is_bounded_and_the_newest_is_kept() {
        let outbox = Outbox::default();
        outbox.put((0..MAX_WAITING as u128 + 5).map(|n| refusal(n, "a.test:80")));
        let first = outbox.take();
        assert_eq!((first.len(), &first[0]), (MAX_REPORTED, &refusal(5, "a.test:80")));
    }
}
