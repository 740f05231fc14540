//! How many connections there are, in all and from one client.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::address::{network, stands_for_many};

/// Gives out places.
#[derive(Debug, Clone)]
pub struct Places {
    all: Arc<Semaphore>,
    each: u32,
    clients: Arc<Mutex<HashMap<IpAddr, u32>>>,
}

/// One connection's place; given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    client: Option<IpAddr>,
    clients: Arc<Mutex<HashMap<IpAddr, u32>>>,
    _one_of_all: OwnedSemaphorePermit,
}

impl Places {
    /// So many in all, and so many for each client.
    pub fn new(all: usize, each: u32) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), each, clients: Arc::default() }
    }

    /// Waits until there is a place for anybody.
    pub async fn any(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.all).acquire_owned().await.expect("this semaphore is never closed")
    }

    /// Gives it to this client, if that has not too many. A peer that [`stands_for_many`] is not counted.
    pub fn give(&self, one_of_all: OwnedSemaphorePermit, peer: IpAddr) -> Option<Place> {
        let client = (!stands_for_many(peer)).then(|| network(peer));
        if let Some(client) = client {
            let mut clients = lock(&self.clients);
            let count = clients.entry(client).or_default();
            if *count >= self.each {
                return None;
            }
            *count += 1;
        }
        Some(Place { client, clients: Arc::clone(&self.clients), _one_of_all: one_of_all })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(client) = self.client else { return };
        let mut clients = lock(&self.clients);
        if let Some(count) = clients.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                clients.remove(&client);
            }
        }
    }
}

fn lock(clients: &Mutex<HashMap<IpAddr, u32>>) -> MutexGuard<'_, HashMap<IpAddr, u32>> {
    // Nothing panics under the lock.
    clients.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_client_cannot_take_all_places() {
        let places = Places::new(10, 2);
        let take = async |peer: &str| places.give(places.any().await, peer.parse().unwrap());
        let first = take("1.1.1.1").await;
        let second = take("::ffff:1.1.1.1").await;
        assert!(first.is_some() && second.is_some());
        assert!(take("1.1.1.1").await.is_none());
        assert!(take("1.1.1.2").await.is_some());
        drop(second);
        assert!(take("1.1.1.1").await.is_some());

        let held = [take("2606:4700::1").await, take("2606:4700::2").await];
        assert!(held.iter().all(Option::is_some) && take("2606:4700::ffff:3").await.is_none(), "one /64 is one client");
        assert!(take("2606:4700:0:1::1").await.is_some());

        let behind: Vec<_> = [take("172.17.0.1").await, take("172.17.0.1").await, take("172.17.0.1").await].into();
        assert!(behind.iter().all(Option::is_some), "a private address stands for everybody");
        drop((first, held, behind));
        assert!(lock(&places.clients).is_empty(), "nothing is kept of who has left");
    }
}
