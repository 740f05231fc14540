//! What the proxy keeps of each instance: its share of what all of them need, and what came of it.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    fmt::Write,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use clock::Clock;
use contracts::{
    InstanceId,
    egress::{EgressRefusal, EgressUsage, ReportedRefusal},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::{
    refusal::Refusal,
    report::{Outbox, Told},
    throttle::Allowance,
};

/// Names of one instance that are resolved at once; more wait, and nobody else with them.
pub const RESOLVING: usize = 8;
/// Refusals that are remembered of each instance.
const MAX_REFUSALS: usize = 50;

/// What each instance may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections to the outside at once.
    pub connections: usize,
    /// Bytes a second, in each direction; 0 is no limit.
    pub bytes_per_second: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 256, bytes_per_second: 0 }
    }
}

/// One instance, as the proxy knows it.
pub struct Tenant {
    /// Which.
    pub id: InstanceId,
    /// Its turns at resolving names.
    pub resolving: Semaphore,
    /// What it sends.
    pub outward: Direction,
    /// What it receives.
    pub inward: Direction,
    connections: Arc<Semaphore>,
    limits: Limits,
    since_ms: i64,
    clock: Clock,
    opened: AtomicU64,
    refusals: Mutex<Refusals>,
    told: Told,
    outbox: Outbox,
}

/// What an instance was refused.
#[derive(Default)]
struct Refusals {
    /// How often, by code.
    counts: BTreeMap<&'static str, u64>,
    /// The latest last.
    latest: VecDeque<EgressRefusal>,
}

/// What passes in one direction.
pub struct Direction {
    /// What still may.
    pub allowance: Allowance,
    bytes: AtomicU64,
    begun: Instant,
    /// Milliseconds from then until the last of them passed.
    last_ms: AtomicU64,
}

impl Direction {
    fn new(limits: Limits) -> Self {
        Self {
            allowance: Allowance::new(limits.bytes_per_second),
            bytes: AtomicU64::new(0),
            begun: Instant::now(),
            last_ms: AtomicU64::new(0),
        }
    }

    /// So many more have passed.
    pub fn count(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.last_ms.store(self.begun.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// When the last of them passed; `None` when none has.
    pub fn last(&self) -> Option<Instant> {
        (self.bytes() > 0).then(|| self.begun + Duration::from_millis(self.last_ms.load(Ordering::Relaxed)))
    }

    /// How many have passed.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// One of an instance's connections to the outside; given back when it is dropped.
pub type Connection = OwnedSemaphorePermit;

impl Tenant {
    fn new(id: InstanceId, limits: Limits, clock: Clock, outbox: Outbox) -> Self {
        Self {
            id,
            told: Told::default(),
            outbox,
            resolving: Semaphore::new(RESOLVING),
            outward: Direction::new(limits),
            inward: Direction::new(limits),
            connections: Arc::new(Semaphore::new(limits.connections)),
            limits,
            since_ms: clock.now_ms(),
            clock,
            opened: AtomicU64::new(0),
            refusals: Mutex::default(),
        }
    }

    /// A connection, if it has not too many.
    ///
    /// # Errors
    /// How many it may have.
    pub fn connection(&self) -> Result<Connection, usize> {
        Arc::clone(&self.connections).try_acquire_owned().map_err(|_| self.limits.connections)
    }

    /// A connection to the outside is there.
    pub fn opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    /// Something was refused.
    pub fn refused(&self, target: &str, refusal: &Refusal) {
        let (code, reason) = (refusal.code, refusal.reason());
        let at_ms = self.clock.now_ms();
        if let Some(rule) = refusal.rule {
            self.outbox.offer(
                &self.told,
                ReportedRefusal { instance_id: self.id, target: target.to_owned(), reason: rule },
                at_ms,
            );
        }
        let mut refusals = self.refusals();
        *refusals.counts.entry(code).or_default() += 1;
        let latest = &mut refusals.latest;
        let same = |known: &EgressRefusal| known.target == target && known.code == code && known.reason == reason;
        let before = latest.iter().position(same).and_then(|place| latest.remove(place));
        let count = before.map_or(0, |known| known.count) + 1;
        if latest.len() == MAX_REFUSALS {
            latest.pop_front();
        }
        let (target, code, reason) = (target.to_owned(), code.to_owned(), reason.to_owned());
        latest.push_back(EgressRefusal { target, code, reason, count, at_ms });
    }

    /// What it has used.
    pub fn usage(&self) -> EgressUsage {
        let limit = |n: u64| (n > 0).then_some(n);
        let refusals = self.refusals();
        EgressUsage {
            instance_id: self.id,
            since_ms: self.since_ms,
            bytes_out: self.outward.bytes(),
            bytes_in: self.inward.bytes(),
            connections: self.opened.load(Ordering::Relaxed),
            open_connections: (self.limits.connections - self.connections.available_permits()) as u64,
            connection_limit: self.limits.connections as u64,
            bytes_per_second_limit: limit(self.limits.bytes_per_second),
            refused: refusals.counts.values().sum(),
            refusals: refusals.latest.iter().rev().cloned().collect(),
        }
    }

    fn refusals(&self) -> MutexGuard<'_, Refusals> {
        // Nothing panics under the lock.
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All instances whose doors are open.
#[derive(Clone)]
pub struct Tenants {
    limits: Limits,
    clock: Clock,
    /// What deploy-control is to hear of.
    pub outbox: Outbox,
    all: Arc<Mutex<HashMap<InstanceId, Arc<Tenant>>>>,
}

impl Tenants {
    /// None yet; each will have these limits.
    pub fn new(limits: Limits, clock: Clock) -> Self {
        Self { limits, clock, outbox: Outbox::default(), all: Arc::default() }
    }

    /// This instance: the same one for as long as it is not forgotten.
    pub fn get(&self, id: InstanceId) -> Arc<Tenant> {
        let new = || Arc::new(Tenant::new(id, self.limits, self.clock.clone(), self.outbox.clone()));
        Arc::clone(self.lock().entry(id).or_insert_with(new))
    }

    /// This instance, if it is known.
    pub fn find(&self, id: InstanceId) -> Option<Arc<Tenant>> {
        self.lock().get(&id).cloned()
    }

    /// All of them, in no order.
    pub fn all(&self) -> Vec<Arc<Tenant>> {
        self.lock().values().cloned().collect()
    }

    /// All others are gone for good, and with them what was counted of them.
    pub fn keep_only(&self, there: &HashSet<InstanceId>) {
        self.lock().retain(|id, _| there.contains(id));
    }

    /// The counters of those that are there, as Prometheus reads them. Not among the other metrics, which never forget a
    /// series: an instance that is gone would be told of for ever.
    pub fn metrics(&self) -> String {
        let mut all = self.all();
        all.sort_by_key(|tenant| tenant.id);
        let (mut bytes, mut refused) = (String::new(), String::new());
        for tenant in all {
            let id = tenant.id;
            for (name, direction) in [("out", &tenant.outward), ("in", &tenant.inward)] {
                // Writing to a text does not fail; nor does it below.
                let _ = writeln!(
                    bytes,
                    "router_egress_bytes_total{{instance=\"{id}\",direction=\"{name}\"}} {}",
                    direction.bytes()
                );
            }
            for (code, count) in &tenant.refusals().counts {
                let _ = writeln!(refused, "router_egress_refused_total{{instance=\"{id}\",code=\"{code}\"}} {count}");
            }
        }
        format!(
            "# TYPE router_egress_bytes_total counter\n{bytes}\n# TYPE router_egress_refused_total counter\n{refused}\n"
        )
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<InstanceId, Arc<Tenant>>> {
        // Nothing panics under the lock.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::{address::Class, rules::Reason};

    #[test]
    fn refusals_are_counted_together_and_the_latest_are_kept() {
        let (clock, time) = Clock::manual(1000);
        let tenants = Tenants::new(Limits::default(), clock);
        let tenant = tenants.get(InstanceId::from_uuid(uuid::Uuid::from_u128(1)));
        for n in 0..MAX_REFUSALS + 5 {
            tenant.refused(&format!("{n}.test:80"), &Refusal::by_rule(Reason::Kind(Class::Private), "x"));
        }
        time.advance_ms(500);
        tenant.refused("20.test:80", &Refusal::by_rule(Reason::Kind(Class::Loopback), "x"));
        tenant.refused("20.test:80", &Refusal::by_rule(Reason::Denied, "x"));
        let usage = tenant.usage();
        assert_eq!((usage.refused, usage.refusals.len()), (57, MAX_REFUSALS));
        let newest: Vec<_> = usage.refusals[..3].iter().map(|r| (&*r.target, &*r.reason, r.count, r.at_ms)).collect();
        assert_eq!(
            newest,
            [("20.test:80", "denied", 1, 1500), ("20.test:80", "address", 2, 1500), ("54.test:80", "address", 1, 1000)]
        );
    }

    #[test]
    fn of_who_is_gone_nothing_is_told() {
        let tenants = Tenants::new(Limits::default(), Clock::system());
        let [one, other] = [1, 2].map(|n| tenants.get(InstanceId::from_uuid(uuid::Uuid::from_u128(n))));
        for tenant in [&one, &other] {
            tenant.inward.count(7);
            tenant.refused("x.test:80", &Refusal::by_rule(Reason::Denied, "x"));
        }
        let told = tenants.metrics();
        for tenant in [&one, &other] {
            let id = tenant.id;
            for line in [
                format!("router_egress_bytes_total{{instance=\"{id}\",direction=\"in\"}} 7\n"),
                format!("router_egress_bytes_total{{instance=\"{id}\",direction=\"out\"}} 0\n"),
                format!("router_egress_refused_total{{instance=\"{id}\",code=\"egress_refused\"}} 1\n"),
            ] {
                assert!(told.contains(&line), "{told}");
            }
        }
        tenants.keep_only(&HashSet::from([other.id]));
        // A connection of its own that has not ended yet counts on, for nobody.
        one.inward.count(1);
        let told = tenants.metrics();
        assert!(!told.contains(&one.id.to_string()) && told.contains(&other.id.to_string()), "{told}");
        assert!(tenants.find(one.id).is_none());
        assert_eq!(tenants.get(one.id).usage().bytes_in, 0, "another of the same name begins anew");
    }
}
