//! What is told at once to those who listen: the router (every route, versioned) and people who watch their instance.
//!
//! Everything in here comes from rows that are already written, and is built anew from them after a start.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use contracts::{
    InstanceId,
    deploy::Phase,
    routes::{Route, RouteMessage, RouteSnapshot, RouteState},
};
use tokio::sync::{Notify, broadcast, watch};

use crate::registry::{self, Row};

/// How many changes a slow reader may be behind before it is made to connect again.
const BACKLOG: usize = 1024;

/// The place where changes are told.
pub struct Hub {
    epoch: String,
    state: Mutex<State>,
    changes: broadcast::Sender<RouteMessage>,
    /// Somebody follows the routes now who did not before.
    joined: Notify,
}

#[derive(Default)]
struct State {
    version: u64,
    engine_away: bool,
    known: BTreeMap<InstanceId, Known>,
    watchers: HashMap<InstanceId, watch::Sender<i64>>,
}

struct Known {
    row_version: i64,
    phase: Phase,
    route: Option<Route>,
}

impl Hub {
    /// A hub that counts versions under this epoch, and begins with these rows.
    pub fn new(epoch: String, rows: &[Row]) -> Self {
        let hub =
            Self { epoch, state: Mutex::default(), changes: broadcast::channel(BACKLOG).0, joined: Notify::new() };
        rows.iter().for_each(|row| hub.publish(row));
        hub
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change under the lock is whole, so a panic elsewhere has spoilt nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of a row. One that is older than what was told already is passed over.
    pub fn publish(&self, row: &Row) {
        let mut state = self.state();
        let before = state.known.get(&row.id);
        if before.is_some_and(|known| known.row_version >= row.version) {
            return;
        }
        let route = row.route();
        let route_changed = before.map_or(route.is_some(), |known| known.route != route);
        count(before.map(|known| known.phase), row.phase);
        state.known.insert(row.id, Known { row_version: row.version, phase: row.phase, route: route.clone() });
        if route_changed && let Some(route) = route {
            state.version += 1;
            // Sent under the lock, so that versions arrive in order. Nobody listening is fine.
            let _ = self.changes.send(RouteMessage::Change { version: state.version, route });
        }
        if let Some(watcher) = state.watchers.get(&row.id)
            && watcher.send(row.version).is_err()
        {
            state.watchers.remove(&row.id);
        }
    }

    /// Tells whether the engine can be asked.
    pub fn engine_is_away(&self, away: bool) {
        let mut state = self.state();
        if std::mem::replace(&mut state.engine_away, away) != away {
            let _ = self.changes.send(RouteMessage::Engine { away });
        }
    }

    /// Has those who watch these instances told again, though nothing of their rows has changed.
    pub fn tell_again(&self, ids: &[InstanceId]) {
        let state = self.state();
        for id in ids {
            if let Some(watcher) = state.watchers.get(id) {
                watcher.send_modify(|_| {});
            }
        }
    }

    /// Every route there is, whether the engine is away, and the changes from then on without a gap.
    pub fn routes(&self) -> (RouteSnapshot, bool, broadcast::Receiver<RouteMessage>) {
        let state = self.state();
        let routes = state.known.values().filter_map(|known| known.route.clone());
        let snapshot = RouteSnapshot {
            epoch: self.epoch.clone(),
            version: state.version,
            routes: routes.filter(|route| route.state != RouteState::Deleted).collect(),
        };
        let changes = self.changes.subscribe();
        self.joined.notify_waiters();
        (snapshot, state.engine_away, changes)
    }

    /// Waits until somebody follows the routes. What is published after that is passed on before anybody can ask about it.
    pub async fn followed(&self) {
        loop {
            let joined = self.joined.notified();
            if self.changes.receiver_count() > 0 {
                return;
            }
            joined.await;
        }
    }

    /// Something that changes whenever this instance's row does.
    pub fn watch(&self, id: InstanceId) -> watch::Receiver<i64> {
        let mut state = self.state();
        // Instances that nobody looks at any more, gone ones among them, may never change again.
        state.watchers.retain(|_, watcher| watcher.receiver_count() > 0);
        state.watchers.entry(id).or_insert_with(|| watch::channel(0).0).subscribe()
    }
}

/// Keeps the number of instances in each phase.
fn count(before: Option<Phase>, now: Phase) {
    let gauge = |phase: Phase| metrics::gauge!("beaver_instances", "phase" => registry::word(&phase));
    if before == Some(now) {
        return;
    }
    if let Some(before) = before {
        gauge(before).decrement(1.0);
    }
    gauge(now).increment(1.0);
}
