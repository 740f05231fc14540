//! Which name leads to which instance: the table in memory, and where it comes from.

pub mod disk;
pub mod feed;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use contracts::{
    InstanceId,
    routes::{Route, RouteSnapshot, RouteState},
};
use tokio::{sync::watch, time::Instant};

/// The routes in memory. Looking one up takes no longer than a hash.
pub struct Table {
    inner: RwLock<Inner>,
    /// Counts changes; the doors and the snapshot on disk follow it.
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    known: bool,
    epoch: String,
    version: u64,
    by_slug: HashMap<String, Arc<Route>>,
    /// Whether deploy-control last said that the engine is out of reach.
    engine_away: bool,
    /// When each began to run, the last time that it did so.
    runs_since: HashMap<InstanceId, Instant>,
}

impl Inner {
    /// Takes note of what becomes of a route: `before` it was this.
    fn note(&mut self, route: &Route, before: Option<RouteState>) {
        if route.state == RouteState::Running && before != Some(RouteState::Running) {
            self.runs_since.insert(route.instance_id, Instant::now());
        }
    }
}

impl Default for Table {
    fn default() -> Self {
        Self { inner: RwLock::default(), changes: watch::Sender::new(0) }
    }
}

impl Table {
    /// The route of a name, whatever its state.
    pub fn get(&self, slug: &str) -> Option<Arc<Route>> {
        self.read().by_slug.get(slug).cloned()
    }

    /// The route to an instance, whatever its state. It looks through all of them: for what is asked rarely.
    pub fn find(&self, id: InstanceId) -> Option<Arc<Route>> {
        self.read().by_slug.values().find(|route| route.instance_id == id).cloned()
    }

    /// When the instance began to run, the last time that it did so.
    pub fn runs_since(&self, id: InstanceId) -> Option<Instant> {
        self.read().runs_since.get(&id).copied()
    }

    /// Every route.
    pub fn all(&self) -> Vec<Arc<Route>> {
        self.read().by_slug.values().cloned().collect()
    }

    /// How many routes there are.
    pub fn len(&self) -> usize {
        self.read().by_slug.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether routes were ever learned, from disk or from the feed; an empty list counts.
    pub fn is_known(&self) -> bool {
        self.read().known
    }

    /// Whether the engine is out of reach, as far as was said: an instance that does not answer then waits for its host.
    pub fn is_engine_away(&self) -> bool {
        self.read().engine_away
    }

    /// Takes note of whether the engine is out of reach. No route changes by it.
    pub fn set_engine_away(&self, away: bool) {
        let before = std::mem::replace(&mut self.write().engine_away, away);
        if before != away {
            tracing::info!(away, "deploy-control says whether the engine is out of reach");
        }
    }

    /// Replaces everything; the engine is within reach until it is said again that it is not.
    pub fn replace(&self, snapshot: RouteSnapshot) {
        let by_slug = snapshot
            .routes
            .into_iter()
            .filter(|route| route.state != RouteState::Deleted)
            .map(|route| (route.slug.as_str().to_owned(), Arc::new(route)))
            .collect();
        {
            let mut inner = self.write();
            let before = std::mem::take(&mut *inner);
            *inner = Inner {
                known: true,
                epoch: snapshot.epoch,
                version: snapshot.version,
                by_slug,
                engine_away: false,
                runs_since: before.runs_since,
            };
            for route in inner.by_slug.values().cloned().collect::<Vec<_>>() {
                inner.note(&route, before.by_slug.get(route.slug.as_str()).map(|before| before.state));
            }
            let there: HashSet<InstanceId> = inner.by_slug.values().map(|route| route.instance_id).collect();
            inner.runs_since.retain(|id, _| there.contains(id));
        }
        self.changed();
    }

    /// Puts in or takes out one route.
    pub fn change(&self, version: u64, route: Route) {
        {
            let mut inner = self.write();
            inner.version = version;
            let slug = route.slug.as_str().to_owned();
            if route.state == RouteState::Deleted {
                inner.by_slug.remove(&slug);
                inner.runs_since.remove(&route.instance_id);
            } else {
                let before = inner.by_slug.get(&slug).map(|before| before.state);
                inner.note(&route, before);
                inner.by_slug.insert(slug, Arc::new(route));
            }
        }
        self.changed();
    }

    /// The table as it is put on disk, sorted so that equal tables are equal files.
    pub fn snapshot(&self) -> RouteSnapshot {
        let inner = self.read();
        let mut routes: Vec<Route> = inner.by_slug.values().map(|route| Route::clone(route)).collect();
        routes.sort_by(|a, b| a.slug.cmp(&b.slug));
        RouteSnapshot { epoch: inner.epoch.clone(), version: inner.version, routes }
    }

    /// Told of every change from now on.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    // No panic happens under the lock, and the table would be whole if one did.
    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}
