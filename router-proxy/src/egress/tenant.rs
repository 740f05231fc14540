//! What the proxy keeps of each instance: its share of what all of them need.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use contracts::InstanceId;
use tokio::sync::Semaphore;

/// Names of one instance that are resolved at once; more wait, and nobody else with them.
pub const RESOLVING: usize = 8;

/// One instance, as the proxy knows it.
pub struct Tenant {
    /// Which.
    pub id: InstanceId,
    /// Its turns at resolving names.
    pub resolving: Semaphore,
}

/// All instances whose doors are open.
#[derive(Clone, Default)]
pub struct Tenants(Arc<Mutex<HashMap<InstanceId, Arc<Tenant>>>>);

impl Tenants {
    /// This instance: the same one for as long as it is not forgotten.
    pub fn get(&self, id: InstanceId) -> Arc<Tenant> {
        let new = || Arc::new(Tenant { id, resolving: Semaphore::new(RESOLVING) });
        Arc::clone(self.lock().entry(id).or_insert_with(new))
    }

    /// It is gone for good.
    pub fn forget(&self, id: InstanceId) {
        self.lock().remove(&id);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<InstanceId, Arc<Tenant>>> {
        // Nothing panics under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
