//! What another part must hear, however long that takes: rows that are committed together with what they tell of, and tried
//! again and again until they are heard.
//!
//! A row is leased to whoever tries it, so that no two do at once. A lease runs out by itself: what a process that died
//! was about to tell is told by the next one.

use std::{sync::Arc, time::Duration};

use service::Shutdown;
use tokio::sync::Notify;

use crate::app::App;

/// For how long nobody else tries what somebody is trying: longer than any attempt takes.
pub(crate) const LEASE_MS: i64 = 15_000;
/// How many are leased and tried at once.
pub(crate) const AT_ONCE: i64 = 8;
/// How long the worker rests at the most: another process may have left something.
const LONGEST_REST: Duration = Duration::from_secs(30);

/// A row of an outbox, leased to whoever holds it.
pub(crate) trait Outbox: Sized + Send + 'static {
    /// What its rows are, for logs.
    const NAME: &'static str;

    /// Leases up to [`AT_ONCE`] rows that are due at `now_ms`: nobody else gets them before `until_ms`.
    fn lease(app: &App, now_ms: i64, until_ms: i64) -> impl Future<Output = Result<Vec<Self>, sqlx::Error>> + Send;

    /// When the next row is due.
    fn next_due(app: &App) -> impl Future<Output = Result<Option<i64>, sqlx::Error>> + Send;

    /// One attempt, and what came of it, written down.
    fn attempt(self, app: &App) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// What wakes the worker before its time.
    fn nudge(app: &App) -> &Notify;
}

/// Tries what is due, until `stop`.
pub(crate) async fn work<O: Outbox>(app: Arc<App>, stop: Shutdown) {
    while !stop.is_cancelled() {
        let rest = match send_and_rest::<O>(&app).await {
            Ok(rest) => rest,
            Err(error) => {
                tracing::warn!(outbox = O::NAME, %error, "an outbox cannot be read");
                LONGEST_REST
            }
        };
        tokio::select! {
            () = O::nudge(&app).notified() => {}
            () = tokio::time::sleep(rest) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// Tries everything that is due; how long it is until something is again.
async fn send_and_rest<O: Outbox>(app: &Arc<App>) -> Result<Duration, sqlx::Error> {
    while send_due::<O>(app).await? > 0 {}
    let until = O::next_due(app).await?.map(|next| u64::try_from(next - app.clock.now_ms()).unwrap_or(0).max(50));
    Ok(until.map_or(LONGEST_REST, |ms| LONGEST_REST.min(Duration::from_millis(ms))))
}

/// Leases and tries rows that are due; how many it tried.
pub(crate) async fn send_due<O: Outbox>(app: &Arc<App>) -> Result<usize, sqlx::Error> {
    let now = app.clock.now_ms();
    let due = O::lease(app, now, now + LEASE_MS).await?;
    let tried = due.len();
    let attempts: Vec<_> = due.into_iter().map(|row| tokio::spawn(attempt(Arc::clone(app), row))).collect();
    for one in attempts {
        if let Err(error) = one.await {
            tracing::error!(outbox = O::NAME, %error, "an attempt broke off");
        }
    }
    Ok(tried)
}

/// Tries a row that is leased to the caller, and waits `patience` for it. It goes on when the caller does not.
pub(crate) async fn send_now<O: Outbox>(app: &Arc<App>, row: O, patience: Duration) {
    let app = Arc::clone(app);
    let trying = tokio::spawn(async move {
        attempt(Arc::clone(&app), row).await;
        // What did not succeed is due sooner than the worker knows.
        O::nudge(&app).notify_one();
    });
    // What became of it is in the row; the caller goes on either way.
    let _ = tokio::time::timeout(patience, trying).await;
}

async fn attempt<O: Outbox>(app: Arc<App>, row: O) {
    if let Err(error) = row.attempt(&app).await {
        // The lease runs out and it is tried again, which does no harm.
        tracing::warn!(outbox = O::NAME, %error, "what became of an attempt was not written down");
    }
}

/// `first` milliseconds, doubled with each attempt up to `longest`, and up to half as much again (`permille`, 0–999), so that
/// many that failed together do not come back together.
pub(crate) fn pause_ms(attempts: i64, first: i64, longest: i64, permille: u64) -> i64 {
    let base = longest.min(first << attempts.clamp(0, 20));
    base + base * i64::try_from(permille).unwrap_or(0) / 2_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest_and_differ() {
        let pauses = [0, 1, 2, 7, 60].map(|attempts| pause_ms(attempts, 500, 5_000, 0));
        assert_eq!(pauses, [500, 1_000, 2_000, 5_000, 5_000]);
        let jittered = pause_ms(0, 500, 5_000, 999);
        assert!((500..=750).contains(&jittered) && jittered > pause_ms(0, 500, 5_000, 1));
    }
}
