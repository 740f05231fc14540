//! Which name leads to which instance: the table in memory, and where it comes from.

pub mod disk;
pub mod feed;

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use contracts::{
    InstanceId,
    routes::{Route, RouteSnapshot, RouteState},
};
use tokio::sync::watch;

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

    /// Replaces everything.
    pub fn replace(&self, snapshot: RouteSnapshot) {
        let by_slug = snapshot
            .routes
            .into_iter()
            .filter(|route| route.state != RouteState::Deleted)
            .map(|route| (route.slug.as_str().to_owned(), Arc::new(route)))
            .collect();
        *self.write() = Inner { known: true, epoch: snapshot.epoch, version: snapshot.version, by_slug };
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
            } else {
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
