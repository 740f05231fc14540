//! Waking instances that sleep, and holding the requests that wait for it.
//!
//! However many requests come, deploy-control is asked once; that an instance runs is learned from the route feed. Who may
//! wake one is not decided here.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use clock::{Backoff, Entropy};
use contracts::{
    InstanceId,
    deploy::{Instance, WakeInstance, WakeReason},
    routes::{Route, RouteState},
};
use service::{CallError, ServiceClient, Shutdown};
use tokio::time::{Instant, timeout, timeout_at};

use crate::{routes::Table, uses::Uses};

/// How long deploy-control is tried for, and for how long somebody who was woken is followed.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long after a call it may be asked for again.
const AGAIN: Duration = Duration::from_secs(1);
/// Between attempts to reach deploy-control: the first pause, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// How requests are held.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How long a program's request is.
    pub program: Duration,
    /// How long a browser's is, until it gets a page that goes on by itself: most instances are there before it would be
    /// read.
    pub page: Duration,
    /// How many of one instance are at once.
    pub each: usize,
    /// How many altogether.
    pub all: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { program: Duration::from_secs(30), page: Duration::from_secs(2), each: 64, all: 2048 }
    }
}

/// Why a request is not held any longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// The instance is not on its way any more: it runs, or somebody stopped it, or it could not be brought up.
    Over,
    /// Its patience is over, or too many wait.
    GivenUp,
}

/// Who is being woken, and who waits.
pub struct Wakes {
    deploy: ServiceClient,
    table: Arc<Table>,
    entropy: Entropy,
    limits: Limits,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    /// Requests that are held, by instance.
    held: HashMap<InstanceId, usize>,
    /// Instances for which deploy-control has been asked, until they are up.
    woken: HashMap<InstanceId, Woken>,
}

struct Woken {
    /// What it was before.
    from: Option<RouteState>,
    /// Since when somebody waits.
    since: Instant,
    /// A call is under way.
    asking: bool,
    /// When the last one ended.
    asked: Option<Instant>,
}

/// A request's place among those that are held.
struct Place<'a> {
    wakes: &'a Wakes,
    id: InstanceId,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.wakes.waiting();
        if let Some(count) = waiting.held.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                waiting.held.remove(&self.id);
            }
        }
        metrics::gauge!("router_held_requests").decrement(1.0);
    }
}

impl Wakes {
    /// Nobody waits yet.
    pub fn new(deploy: ServiceClient, table: Arc<Table>, limits: Limits) -> Arc<Self> {
        Arc::new(Self { deploy, table, entropy: Entropy::system(), limits, waiting: Mutex::default() })
    }

    /// How requests are held.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Has an instance woken, unless that was asked for a moment ago.
    pub fn ask(self: &Arc<Self>, id: InstanceId, why: WakeReason) {
        {
            let (mut waiting, now) = (self.waiting(), Instant::now());
            let woken = waiting.woken.entry(id).or_insert_with(|| {
                let from = self.table.find(id).map(|route| route.state);
                Woken { from, since: now, asking: false, asked: None }
            });
            if woken.asking || woken.asked.is_some_and(|at| at.elapsed() < AGAIN) {
                return;
            }
            woken.asking = true;
        }
        let this = Arc::clone(self);
        tokio::spawn(async move {
            match timeout(PATIENCE, this.until_taken(id, why)).await {
                Ok(Ok(())) => tracing::info!(instance = %id, why = why.as_str(), "woken"),
                Ok(Err(error)) => tracing::info!(instance = %id, cause = format!("{error:#}"), "it is not to be woken"),
                Err(_) => {}
            }
            if let Some(woken) = this.waiting().woken.get_mut(&id) {
                (woken.asking, woken.asked) = (false, Some(Instant::now()));
            }
        });
    }

    /// Holds a request until its instance is not on its way any more, or its patience is over; where it sleeps, it is woken.
    pub async fn hold(self: &Arc<Self>, route: &Route, why: WakeReason, patience: Duration) -> Held {
        let deadline = Instant::now() + patience;
        let Some(_place) = self.place(route.instance_id) else { return Held::GivenUp };
        let mut changes = self.table.watch();
        loop {
            changes.mark_unchanged();
            match self.table.get(route.slug.as_str()).map(|route| route.state) {
                Some(RouteState::Paused | RouteState::Asleep) => self.ask(route.instance_id, why),
                Some(RouteState::Starting) => {}
                _ => return Held::Over,
            }
            let now = Instant::now();
            if now >= deadline {
                return Held::GivenUp;
            }
            // Asked again now and then: it may have fallen asleep again meanwhile, unseen.
            if matches!(timeout_at(deadline.min(now + AGAIN), changes.changed()).await, Ok(Err(_))) {
                return Held::GivenUp;
            }
        }
    }

    /// Whether it was woken and has not come up yet.
    pub fn is_waking(&self, id: InstanceId) -> bool {
        self.waiting().woken.contains_key(&id)
    }

    /// Follows what becomes of those that were woken, and wakes what sleeps though something is under way with it, since it
    /// was passed on before the router had heard; until `stop`.
    pub async fn keep(self: Arc<Self>, uses: Arc<Uses>, stop: Shutdown) {
        let mut changes = self.table.watch();
        changes.mark_changed();
        loop {
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(PATIENCE) => {}
                () = stop.cancelled() => return,
            }
            self.follow();
            for route in self.table.all() {
                if sleeps(route.state) && uses.in_flight(route.instance_id) > 0 {
                    self.ask(route.instance_id, WakeReason::Visit);
                }
            }
        }
    }

    fn follow(&self) {
        self.waiting().woken.retain(|id, woken| match self.table.find(*id).map(|route| route.state) {
            Some(RouteState::Running) => {
                let from = if woken.from == Some(RouteState::Paused) { "paused" } else { "stopped" };
                metrics::histogram!("router_wake_seconds", "from" => from).record(woken.since.elapsed().as_secs_f64());
                false
            }
            Some(state) if sleeps(state) || state == RouteState::Starting => {
                woken.asking || woken.since.elapsed() < PATIENCE
            }
            _ => false,
        });
    }

    /// Asks until deploy-control has taken it, or refused it for good.
    async fn until_taken(&self, id: InstanceId, why: WakeReason) -> Result<(), CallError> {
        let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
        let body = WakeInstance { account_id: None, why };
        loop {
            match self.deploy.post::<Instance>(&format!("/api/instances/{id}/wake"), &body).await {
                Ok(_) => return Ok(()),
                Err(error) if error.status().is_some_and(|status| status < 500 && status != 401) => return Err(error),
                Err(error) => {
                    let cause = format!("{:#}", anyhow::Error::from(error));
                    tracing::info!(instance = %id, cause, "deploy-control cannot be asked to wake it; trying again");
                }
            }
            tokio::time::sleep(backoff.next(&self.entropy)).await;
        }
    }

    fn place(&self, id: InstanceId) -> Option<Place<'_>> {
        let mut waiting = self.waiting();
        let all: usize = waiting.held.values().sum();
        let of_this = waiting.held.get(&id).copied().unwrap_or(0);
        if all >= self.limits.all || of_this >= self.limits.each {
            metrics::counter!("router_held_refused_total").increment(1);
            return None;
        }
        waiting.held.insert(id, of_this + 1);
        metrics::gauge!("router_held_requests").increment(1.0);
        Some(Place { wakes: self, id })
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics under the lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an instance in this state sleeps because nobody used it.
pub fn sleeps(state: RouteState) -> bool {
    matches!(state, RouteState::Paused | RouteState::Asleep)
}
