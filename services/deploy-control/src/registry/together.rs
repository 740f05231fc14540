//! What waits for its turn at the database is written together: a transaction is a wait for the disk, and with many instances
//! that are brought up at once most of what is done.

use std::sync::{Arc, Mutex, PoisonError};

use store::{Store, Transaction};
use tokio::sync::oneshot;

use super::{Error, NewEvent, Row, write, write_in};

/// So many rows are written in one transaction at most: nobody shall wait for long for others' rows.
const MOST: usize = 64;

/// Rows that wait. Whoever has a turn first writes those of everybody who waits then. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Together(Arc<Mutex<Vec<Waiting>>>);

#[derive(Debug)]
struct Waiting {
    row: Row,
    events: Vec<NewEvent>,
    /// Told once it is written; dropped where that did not work, or nobody knows.
    written: oneshot::Sender<Option<Row>>,
}

impl Together {
    /// As [`write`], perhaps with others' rows. What becomes of those means nothing to this one.
    pub(super) async fn write(
        &self,
        store: &Store,
        row: Row,
        events: &[NewEvent],
        now_ms: i64,
    ) -> Result<Option<Row>, Error> {
        let (written, mut mine) = oneshot::channel();
        self.lock().push(Waiting { row: row.clone(), events: events.to_vec(), written });
        tokio::select! {
            biased;
            told = &mut mine => return alone_or(told, store, row, events, now_ms).await,
            transaction = store.begin() => {
                let transaction = transaction?;
                if let Err(error) = write_all(transaction, self.take(), now_ms).await {
                    tracing::debug!(error = crate::chain(&error), "rows could not be written together");
                }
            }
        }
        // It was among them, or somebody else has it.
        alone_or(mine.await, store, row, events, now_ms).await
    }

    /// The oldest of those that somebody still waits for.
    fn take(&self) -> Vec<Waiting> {
        let mut waiting = self.lock();
        waiting.retain(|one| !one.written.is_closed());
        let most = waiting.len().min(MOST);
        waiting.drain(..most).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was told; else it is written by itself. Where it was written all the same, that finds another version and writes
/// nothing.
async fn alone_or(
    told: Result<Option<Row>, oneshot::error::RecvError>,
    store: &Store,
    row: Row,
    events: &[NewEvent],
    now_ms: i64,
) -> Result<Option<Row>, Error> {
    match told {
        Ok(written) => Ok(written),
        Err(_) => write(store, row, events, now_ms).await,
    }
}

async fn write_all(mut transaction: Transaction, all: Vec<Waiting>, now_ms: i64) -> Result<(), Error> {
    let mut done = Vec::with_capacity(all.len());
    for one in all {
        let row = write_in(&mut transaction, one.row, &one.events, now_ms).await?;
        done.push((one.written, row));
    }
    transaction.commit().await?;
    for (written, row) in done {
        // Whoever does not wait any more reads it again.
        let _ = written.send(row);
    }
    Ok(())
}
