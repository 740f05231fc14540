//! What waits for its turn at the database is written together: a transaction is a wait for the disk, and with many instances
//! that are brought up at once most of what is done.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use store::{Store, Transaction};
use tokio::sync::oneshot;

use super::{Error, NewEvent, Row, write, write_in};

/// So many rows are written in one transaction at most: nobody shall wait for long for others' rows.
const MOST: usize = 64;

/// Rows that wait. Whoever has a turn first writes those of everybody who waits then. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Together(Arc<Mutex<Line>>);

#[derive(Debug, Default)]
struct Line {
    newest: u64,
    waiting: BTreeMap<u64, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    row: Row,
    events: Vec<NewEvent>,
    now_ms: i64,
    /// Told what came of it; dropped where nothing was written because something is wrong with another.
    written: oneshot::Sender<Result<Option<Row>, Error>>,
}

impl Together {
    /// As [`write`], perhaps with others' rows. What becomes of those means nothing to this one, nor does it end their writing
    /// that this one is left off.
    pub(super) async fn write(
        &self,
        store: &Store,
        row: Row,
        events: &[NewEvent],
        now_ms: i64,
    ) -> Result<Option<Row>, Error> {
        let (written, mut mine) = oneshot::channel();
        let number = self.join(Waiting { row: row.clone(), events: events.to_vec(), now_ms, written });
        let told = tokio::select! {
            biased;
            told = &mut mine => told,
            begun = store.begin() => {
                match begun {
                    Ok(transaction) => {
                        let all = self.take(number);
                        if !all.is_empty() {
                            // Some of them are others', who wait for it whatever becomes of this one.
                            let _ = tokio::spawn(write_all(transaction, all)).await;
                        }
                    }
                    Err(error) if self.leave(number) => return Err(error.into()),
                    // Somebody writes it just now.
                    Err(_) => {}
                }
                mine.await
            }
        };
        match told {
            Ok(outcome) => outcome,
            Err(_) => write(store, row, events, now_ms).await,
        }
    }

    fn join(&self, one: Waiting) -> u64 {
        let mut line = self.lock();
        line.newest += 1;
        let number = line.newest;
        line.waiting.insert(number, one);
        number
    }

    /// Whether it still waited.
    fn leave(&self, number: u64) -> bool {
        self.lock().waiting.remove(&number).is_some()
    }

    /// This one, where it still waits, and the oldest of the others that somebody waits for; in the order in which everybody
    /// locks rows.
    fn take(&self, number: u64) -> Vec<Waiting> {
        let mut line = self.lock();
        line.waiting.retain(|_, one| !one.written.is_closed());
        let mut all: Vec<_> = line.waiting.remove(&number).into_iter().collect();
        while all.len() < MOST
            && let Some((_, one)) = line.waiting.pop_first()
        {
            all.push(one);
        }
        all.sort_by_key(|one| one.row.number);
        all
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn write_all(mut transaction: Transaction, all: Vec<Waiting>) {
    let mut done = Vec::with_capacity(all.len());
    for one in all {
        match write_in(&mut transaction, one.row, &one.events, one.now_ms).await {
            Ok(row) => done.push((one.written, row)),
            Err(error) => {
                tracing::debug!(error = crate::chain(&error), "nothing is written together; each is by itself");
                return;
            }
        }
    }
    match transaction.commit().await {
        Ok(()) => {
            for (written, row) in done {
                // Whoever does not wait any more reads it again.
                let _ = written.send(Ok(row));
            }
        }
        // Nobody knows whether it was written: once more would tell of it twice.
        Err(error) => {
            let error = Arc::new(error);
            for (written, _) in done {
                let _ = written.send(Err(sqlx::Error::Io(io::Error::other(error.clone())).into()));
            }
        }
    }
}
