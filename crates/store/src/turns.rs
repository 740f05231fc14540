//! Whose turn it is to have a transaction.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::WAIT_LIMIT;

/// So many may have one at once; the others wait in line, first come, first served, for as long as it moves.
#[derive(Clone, Debug)]
pub(crate) struct Turns {
    free: Arc<Semaphore>,
    /// How many transactions have begun.
    begun: Arc<AtomicU64>,
}

impl Turns {
    pub(crate) fn new(at_once: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(at_once)), begun: Arc::default() }
    }

    /// A turn, which is given back when it is dropped.
    ///
    /// # Errors
    ///
    /// [`sqlx::Error::PoolTimedOut`] when not one transaction has begun for 5 s: what is long may be the line alone, but what
    /// does not move is locked.
    pub(crate) async fn take(&self) -> Result<OwnedSemaphorePermit, sqlx::Error> {
        let mut turn = pin!(Arc::clone(&self.free).acquire_owned());
        loop {
            let before = self.begun.load(Ordering::Relaxed);
            match timeout(WAIT_LIMIT, &mut turn).await {
                Ok(turn) => return turn.map_err(|_| sqlx::Error::PoolClosed),
                Err(_) if self.begun.load(Ordering::Relaxed) != before => {}
                Err(_) => return Err(sqlx::Error::PoolTimedOut),
            }
        }
    }

    /// Somebody's transaction has begun.
    pub(crate) fn has_begun(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_long_line_is_waited_in_for_as_long_as_it_moves() {
        let turns = Turns::new(1);
        // Five who take nearly as long as anybody waits for one of them.
        let works = async || {
            let _turn = turns.take().await?;
            turns.has_begun();
            tokio::time::sleep(WAIT_LIMIT * 4 / 5).await;
            Ok::<_, sqlx::Error>(())
        };
        let all = tokio::join!(works(), works(), works(), works(), works());
        assert!([all.0, all.1, all.2, all.3, all.4].iter().all(Result::is_ok));
    }

    #[tokio::test(start_paused = true)]
    async fn behind_turns_that_come_to_nothing_nobody_waits_for_long() {
        let turns = Turns::new(1);
        // Each has its turn, and the database is locked.
        let fails = async || {
            let turn = turns.take().await;
            tokio::time::sleep(WAIT_LIMIT * 4 / 5).await;
            turn.map(drop)
        };
        let all = tokio::join!(fails(), fails(), fails(), fails());
        assert!(all.0.is_ok() && all.1.is_ok());
        for late in [all.2, all.3] {
            assert!(matches!(late, Err(sqlx::Error::PoolTimedOut)), "{late:?}");
        }
    }
}
