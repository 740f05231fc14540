//! Who sleeps, and when: instances that nobody has used for long enough.
//!
//! Whether one is used is judged by what the router sees – requests and WebSockets, bytes of its own on their way out – and
//! by the instance's own word, never by its processor time. What follows is a wish like any other. Should somebody come in
//! between, the wake wins: the router is told first, and nothing is done before it says that it has heard and that nothing is
//! under way.

use std::{collections::HashMap, sync::Arc, time::Duration};

use contracts::{
    InstanceId,
    activity::Activity,
    deploy::{Desired, Phase, Sleep},
    instance::MAX_WAKE_KEYS,
    routes::RouteState,
};
use futures_util::{StreamExt, stream};
use service::Shutdown;
use tokio::time::Instant;

use crate::{
    chain,
    config::Idle,
    engine::Engine,
    hub::Hub,
    peers::Peers,
    plans::Plans,
    reconcile::Reconciler,
    registry::{Registry, Row},
};

/// How often it is looked where nobody sleeps soon.
const SELDOM: Duration = Duration::from_secs(15);
/// How often at the most.
const OFTEN: Duration = Duration::from_millis(250);
/// How often it is written down who is used, and by how much that must be newer than what is written.
const NOTED: Duration = Duration::from_secs(60);
/// What is idle since its start, or since the router's, give or take this, was not used since.
const SINCE_START_MS: i64 = 10_000;
/// How many instances are asked at once whether they have something to do.
const ASKED: usize = 8;
/// The length of a key's fingerprint: base64url of a SHA-256.
const FINGERPRINT: usize = 43;

/// How deep an instance is to sleep that has not been used for so long, when that is deeper than it does.
pub fn due(idle: &Idle, pauses: bool, now: Sleep, unused: Duration) -> Option<Sleep> {
    let over = |limit: Option<Duration>| limit.is_some_and(|limit| unused >= limit);
    match now {
        Sleep::Awake | Sleep::Paused if over(idle.stop_after) => Some(Sleep::Stopped),
        Sleep::Awake if pauses && over(idle.pause_after) => Some(Sleep::Paused),
        _ => None,
    }
}

/// Puts to sleep.
pub struct Keeper {
    /// Who there is, and where it is wished.
    pub registry: Registry,
    /// Who is told.
    pub hub: Arc<Hub>,
    /// The router, and through it the instances.
    pub peers: Peers,
    /// After how long each sleeps.
    pub plans: Plans,
    /// Who does it.
    pub reconciler: Reconciler,
    /// Whether it can freeze.
    pub engine: Arc<dyn Engine>,
}

impl Keeper {
    /// Looks again and again, until `stop`.
    pub async fn run(self, stop: Shutdown) {
        // Whether the engine freezes, once it has said so.
        let mut pauses = None;
        let mut noted = Instant::now();
        loop {
            let soonest = self.plans.soonest_sleep();
            let wait = soonest.map_or(SELDOM, |soonest| (soonest / 4).clamp(OFTEN, SELDOM));
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            if noted.elapsed() >= NOTED {
                noted = Instant::now();
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.note_used() => {}
                }
            }
            if soonest.is_none() {
                continue;
            }
            if pauses.is_none() {
                pauses = self.engine.capabilities().await.ok().map(|can| can.pauses);
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.pass(pauses.unwrap_or(false)) => {}
            }
        }
    }

    /// Writes down who was used since that was done last.
    async fn note_used(&self) {
        let (rows, list) = match (self.registry.all().await, self.peers.activities().await) {
            (Ok(rows), Ok(list)) => (rows, list),
            // The next time is soon enough.
            _ => return,
        };
        let (now_ms, up_ms) = (self.registry.now_ms(), list.up_ms);
        let seen: HashMap<_, _> = list.instances.into_iter().map(|activity| (activity.instance_id, activity)).collect();
        let used = rows.iter().filter_map(|row| {
            Some((row.id, newly_used((row.ready_at_ms, row.last_used_ms), seen.get(&row.id)?, now_ms, up_ms)?))
        });
        let used: Vec<_> = used.collect();
        if !used.is_empty()
            && let Err(error) = self.registry.used(&used).await
        {
            tracing::info!(error = chain(&error), "who was used is not written down");
        }
    }

    async fn pass(&self, pauses: bool) {
        let rows = match self.registry.all().await {
            Ok(rows) => rows,
            Err(error) => {
                tracing::warn!(error = chain(&error), "instances cannot be read; nobody is put to sleep");
                return;
            }
        };
        let seen: HashMap<InstanceId, Activity> = match self.peers.activities().await {
            Ok(list) => list.instances.into_iter().map(|activity| (activity.instance_id, activity)).collect(),
            Err(error) => {
                tracing::debug!(error = chain(&error), "the router does not say who is used; nobody is put to sleep");
                return;
            }
        };
        let due = rows.into_iter().filter_map(|row| {
            let (depth, unused) = self.due(&row, seen.get(&row.id)?, pauses)?;
            Some((row, depth, unused))
        });
        stream::iter(due)
            .for_each_concurrent(ASKED, |(row, depth, unused)| self.put_to_sleep(row, depth, unused))
            .await;
    }

    /// How deep it is to sleep, and for how long it has not been used.
    fn due(&self, row: &Row, seen: &Activity, pauses: bool) -> Option<(Sleep, Duration)> {
        let settled = row.desired == Desired::Running && row.observed_generation == row.generation;
        let fits = match row.phase {
            Phase::Ready => row.sleep == Sleep::Awake && seen.state == RouteState::Running,
            Phase::Paused => row.sleep == Sleep::Paused && seen.state == RouteState::Paused,
            _ => false,
        };
        if !settled || !fits || seen.in_flight > 0 {
            return None;
        }
        // A router that has been there for long may not have met one that is new.
        let up_ms = row.ready_at_ms.map_or(0, |since| self.registry.now_ms().saturating_sub(since));
        let unused = Duration::from_millis(seen.idle_ms.min(u64::try_from(up_ms).unwrap_or(0)));
        // Without its plan it goes on as it is.
        let plan = self.plans.get(&row.plan).ok()?;
        Some((due(&plan.idle, pauses, row.sleep, unused)?, unused))
    }

    async fn put_to_sleep(&self, row: Row, depth: Sleep, unused: Duration) {
        let wake_keys = match row.phase {
            // It has done nothing since it was asked.
            Phase::Paused => row.wake_keys.clone(),
            // It knows nothing of being asked; its owner's browser is all that wakes it.
            _ if !row.plan.is_workspace() => Vec::new(),
            _ => match self.peers.own_activity(row.id).await {
                Ok(own) if own.busy => return,
                Ok(own) => own.wake_keys.into_iter().filter(|key| is_fingerprint(key)).take(MAX_WAKE_KEYS).collect(),
                Err(error) => {
                    tracing::debug!(instance = %row.id, error = chain(&error), "it does not say whether it is busy");
                    return;
                }
            },
        };
        match self.registry.sleep(&row, depth, wake_keys, unused.as_secs()).await {
            Ok(Some(row)) => {
                tracing::info!(instance = %row.id, ?depth, unused_s = unused.as_secs(), "nobody uses it; it sleeps");
                let depth = if depth == Sleep::Paused { "paused" } else { "stopped" };
                metrics::counter!("beaver_sleeps_total", "depth" => depth).increment(1);
                // The router first: from then on it asks.
                self.hub.publish(&row);
                self.reconciler.wished(&row);
            }
            // It has changed meanwhile: the next look decides.
            Ok(None) => {}
            Err(error) => tracing::warn!(instance = %row.id, error = chain(&error), "it cannot be put to sleep"),
        }
    }
}

/// When one was used that was healthy and used at these times, where that is worth writing down.
fn newly_used(
    (ready_at_ms, last_used_ms): (Option<i64>, Option<i64>),
    seen: &Activity,
    now_ms: i64,
    up_ms: u64,
) -> Option<i64> {
    let ms = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let (idle_ms, ready_at_ms) = (ms(seen.idle_ms), ready_at_ms?);
    let at_ms = now_ms.saturating_sub(if seen.in_flight > 0 { 0 } else { idle_ms });
    let since_start = at_ms < ready_at_ms.saturating_add(SINCE_START_MS) || idle_ms > ms(up_ms) - SINCE_START_MS;
    let noted_ms = i64::try_from(NOTED.as_millis()).unwrap_or(i64::MAX);
    let is_news = last_used_ms.is_none_or(|last| at_ms >= last.saturating_add(noted_ms));
    (is_news && (seen.in_flight > 0 || !since_start)).then_some(at_ms)
}

fn is_fingerprint(text: &str) -> bool {
    text.len() == FINGERPRINT && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn idle() -> impl Strategy<Value = Idle> {
        let limit = || proptest::option::of((1_u64..100).prop_map(Duration::from_secs));
        (limit(), limit()).prop_map(|(pause_after, stop_after)| Idle { pause_after, stop_after })
    }

    proptest! {
        #[test]
        fn sleep_only_deepens_and_never_before_its_time(idle in idle(), pauses: bool, unused in 0_u64..200) {
            let unused = Duration::from_secs(unused);
            let over = |limit: Option<Duration>| limit.is_some_and(|limit| unused >= limit);
            let awake = due(&idle, pauses, Sleep::Awake, unused);
            prop_assert_eq!(awake == Some(Sleep::Stopped), over(idle.stop_after));
            prop_assert_eq!(awake == Some(Sleep::Paused), pauses && over(idle.pause_after) && !over(idle.stop_after));
            let paused = due(&idle, pauses, Sleep::Paused, unused);
            prop_assert_eq!(paused, over(idle.stop_after).then_some(Sleep::Stopped));
            prop_assert_eq!(due(&idle, pauses, Sleep::Stopped, unused), None);
        }
    }

    #[test]
    fn a_use_is_what_the_router_saw_of_somebody_and_not_a_start() {
        let instance_id = InstanceId::from_uuid(uuid::Uuid::nil());
        let seen = |in_flight, idle_ms| Activity { instance_id, state: RouteState::Running, in_flight, idle_ms };
        const HOUR: i64 = 3_600_000;
        const NOW: i64 = 10 * HOUR;
        for (times, seen, up_ms, at_ms) in [
            ((Some(HOUR), None), seen(0, 60_000), 5 * HOUR as u64, Some(NOW - 60_000)),
            ((Some(HOUR), None), seen(1, 60_000), 5 * HOUR as u64, Some(NOW)),
            ((None, None), seen(1, 0), 5 * HOUR as u64, None),
            // As long ago as its start, or as the router's.
            ((Some(NOW - 60_000), None), seen(0, 59_000), 5 * HOUR as u64, None),
            ((Some(HOUR), None), seen(0, 60_000), 61_000, None),
            // Written down already, or nearly.
            ((Some(HOUR), Some(NOW - 90_000)), seen(0, 60_000), 5 * HOUR as u64, None),
            ((Some(HOUR), Some(NOW - 120_000)), seen(0, 60_000), 5 * HOUR as u64, Some(NOW - 60_000)),
        ] {
            assert_eq!(newly_used(times, &seen, NOW, up_ms), at_ms, "{times:?} {seen:?} {up_ms}");
        }
    }

    #[test]
    fn what_is_no_fingerprint_is_nothing_to_wake_by() {
        assert!(is_fingerprint(&"a-_Z9".repeat(9)[..FINGERPRINT]));
        for text in ["", "a", &"a".repeat(44), &"a b".repeat(15)[..FINGERPRINT], &"é".repeat(22)[..42]] {
            assert!(!is_fingerprint(text), "{text}");
        }
    }
}
