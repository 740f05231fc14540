//! How many connections there are, in all and from one client.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::egress::address::{Class, classify};

/// Gives out places.
#[derive(Clone)]
pub struct Places {
    all: Arc<Semaphore>,
    each: u32,
    clients: Arc<Mutex<HashMap<IpAddr, u32>>>,
}

/// One connection's place; given back when it is dropped.
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

    /// Gives it to this client, if that has not too many.
    ///
    /// Only public addresses are counted: a private one is a proxy in front or Docker's own, which stands for everybody.
    pub fn give(&self, one_of_all: OwnedSemaphorePermit, peer: IpAddr) -> Option<Place> {
        let peer = peer.to_canonical();
        let client = (classify(peer) == Class::Public).then(|| network(peer));
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

/// What one client can choose addresses from: with IPv6 that is a /64.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => IpAddr::from((u128::from(v6) & !u128::from(u64::MAX)).to_be_bytes()),
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
