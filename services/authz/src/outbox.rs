//! What another part must hear, however long that takes: rows that are committed together with what they tell of, and tried
//! again and again until they are heard.
//!
//! A row is leased to whoever tries it, so that no two do at once. A lease runs out by itself: what a process that died
//! was about to tell is told by the next one.

use std::{collections::HashMap, sync::Arc, time::Duration};

use clock::Backoff;
use service::{CallError, Shutdown};
use sqlx::{AssertSqlSafe, FromRow, any::AnyRow};
use tokio::{
    sync::Notify,
    task::{Id, JoinSet},
};

use crate::app::App;

/// For how long nobody else tries what somebody is trying: longer than any attempt takes.
pub(crate) const LEASE_MS: i64 = 15_000;
/// How many are tried at once.
pub(crate) const AT_ONCE: usize = 8;
/// How long the worker rests at the most: another process may have left something.
const LONGEST_REST: Duration = Duration::from_secs(30);

/// Where an outbox keeps its rows: a table with an `instance_id`, and `attempts`, `next_attempt_at_ms` and `last_error`, which
/// are this module's.
pub(crate) struct Table {
    /// Its name.
    pub(crate) name: &'static str,
    /// The column that tells rows apart.
    pub(crate) key: &'static str,
    /// The columns that a row is made from.
    pub(crate) columns: &'static str,
    /// Which rows wait to be heard, in SQL.
    pub(crate) waiting: &'static str,
    /// The first and the longest pause between two attempts.
    pub(crate) pauses: (Duration, Duration),
}

/// A row of an outbox, leased to whoever holds it.
pub(crate) trait Outbox: Sized + Send + Unpin + 'static + for<'row> FromRow<'row, AnyRow> {
    /// What its rows are, for logs.
    const NAME: &'static str;
    /// Where they are.
    const TABLE: Table;

    /// The value of its [`Table::key`].
    fn key(&self) -> &str;

    /// The instance that it is about.
    fn instance_id(&self) -> &str;

    /// How often it was tried before.
    fn attempts(&self) -> i64;

    /// One attempt, and what came of it, written down.
    fn attempt(self, app: &App) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// What wakes the worker before its time.
    fn nudge(app: &App) -> &Notify;
}

/// Tries what is due, until `stop`; then waits for what is being tried.
pub(crate) async fn work<O: Outbox>(app: Arc<App>, stop: Shutdown) {
    let mut trying = Trying::default();
    while !stop.is_cancelled() {
        let rest = match trying.more::<O>(&app).await {
            Ok(rest) => rest,
            Err(error) => {
                tracing::warn!(outbox = O::NAME, %error, "an outbox cannot be read");
                LONGEST_REST
            }
        };
        tokio::select! {
            () = O::nudge(&app).notified() => {}
            () = tokio::time::sleep(rest) => {}
            () = trying.one_ends::<O>() => {}
            () = stop.cancelled() => {}
        }
    }
    while !trying.instances.is_empty() {
        trying.one_ends::<O>().await;
    }
}

/// What the worker tries at present: one row of an instance, so that one that takes its time holds up its own alone.
#[derive(Default)]
struct Trying {
    attempts: JoinSet<()>,
    instances: HashMap<Id, String>,
}

impl Trying {
    /// Begins what is due, as far as there is room; how long it is until more can be.
    async fn more<O: Outbox>(&mut self, app: &Arc<App>) -> Result<Duration, sqlx::Error> {
        loop {
            let room = AT_ONCE - self.instances.len();
            let busy: Vec<String> = self.instances.values().cloned().collect();
            let due = if room > 0 { lease::<O>(app, &busy, room).await? } else { vec![] };
            if due.is_empty() {
                // With no room there is more as soon as one ends.
                let next = if room > 0 { next_due::<O>(app, &busy).await? } else { None };
                let until = next.map(|next| u64::try_from(next - app.clock.now_ms()).unwrap_or(0).max(50));
                return Ok(until.map_or(LONGEST_REST, |ms| LONGEST_REST.min(Duration::from_millis(ms))));
            }
            for row in due {
                let instance = row.instance_id().to_owned();
                let task = self.attempts.spawn(attempt(Arc::clone(app), row));
                self.instances.insert(task.id(), instance);
            }
        }
    }

    /// Waits until one has ended; for ever while there is none.
    async fn one_ends<O: Outbox>(&mut self) {
        let id = match self.attempts.join_next_with_id().await {
            None => return std::future::pending().await,
            Some(Ok((id, ()))) => id,
            Some(Err(error)) => {
                tracing::error!(outbox = O::NAME, %error, "an attempt broke off");
                error.id()
            }
        };
        self.instances.remove(&id);
    }
}

/// Tries what is due, once, and waits for it; how many there were.
#[cfg(test)]
pub(crate) async fn send_due<O: Outbox>(app: &Arc<App>) -> Result<usize, sqlx::Error> {
    let due = lease::<O>(app, &[], AT_ONCE).await?;
    let tried = due.len();
    futures_util::future::join_all(due.into_iter().map(|row| attempt(Arc::clone(app), row))).await;
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

/// Leases up to `room` rows that are due: one of each instance, and none of those that are `busy`.
pub(crate) async fn lease<O: Outbox>(app: &App, busy: &[String], room: usize) -> Result<Vec<O>, sqlx::Error> {
    let Table { name, key, columns, waiting, .. } = O::TABLE;
    let now = app.clock.now_ms();
    let others = but(busy, 4);
    let mut query = sqlx::query_as(AssertSqlSafe(format!(
        "UPDATE {name} SET next_attempt_at_ms = $1
         WHERE {waiting} AND next_attempt_at_ms <= $2 AND {key} IN
             (SELECT MIN({key}) FROM {name} WHERE {waiting} AND next_attempt_at_ms <= $2 {others}
              GROUP BY instance_id ORDER BY MIN(next_attempt_at_ms) LIMIT $3)
         RETURNING {columns}"
    )))
    .bind(now + LEASE_MS)
    .bind(now)
    .bind(i64::try_from(room).unwrap_or(i64::MAX));
    for instance in busy {
        query = query.bind(instance.clone());
    }
    query.fetch_all(app.store.pool()).await
}

async fn next_due<O: Outbox>(app: &App, busy: &[String]) -> Result<Option<i64>, sqlx::Error> {
    let Table { name, waiting, .. } = O::TABLE;
    let others = but(busy, 1);
    let mut query = sqlx::query_scalar(AssertSqlSafe(format!(
        "SELECT MIN(next_attempt_at_ms) FROM {name} WHERE {waiting} {others}"
    )));
    for instance in busy {
        query = query.bind(instance.clone());
    }
    query.fetch_one(app.store.pool()).await
}

/// The condition that a row is of none of these instances, whose parameters begin with `$first`.
fn but(busy: &[String], first: usize) -> String {
    if busy.is_empty() {
        return String::new();
    }
    let places: Vec<String> = (first..first + busy.len()).map(|place| format!("${place}")).collect();
    format!("AND instance_id NOT IN ({})", places.join(", "))
}

/// Takes out a row that was heard, or never needs to be.
pub(crate) async fn remove<O: Outbox>(app: &App, row: &O) -> Result<(), sqlx::Error> {
    let Table { name, key, .. } = O::TABLE;
    sqlx::query(AssertSqlSafe(format!("DELETE FROM {name} WHERE {key} = $1")))
        .bind(row.key().to_owned())
        .execute(app.store.pool())
        .await
        .map(drop)
}

/// Puts off a row that was not heard, each time for longer.
pub(crate) async fn postpone<O: Outbox>(app: &App, row: &O, error: anyhow::Error) -> Result<(), sqlx::Error> {
    let (first, longest) = O::TABLE.pauses;
    let failures = u32::try_from(row.attempts() + 1).unwrap_or(u32::MAX);
    let pause = Backoff::wait(first, longest, failures, &app.entropy);
    let code = error.downcast_ref::<CallError>().and_then(CallError::code).unwrap_or("unreachable");
    tracing::warn!(
        outbox = O::NAME,
        row = row.key(),
        attempt = failures,
        again_in_ms = pause.as_millis(),
        cause = format!("{error:#}"),
        "it was not heard"
    );
    put_off(app, row, pause, code).await
}

/// Puts off a row that nobody is there to hear, for up to so long, as often as that takes.
pub(crate) async fn wait<O: Outbox>(app: &App, row: &O, longest: Duration, code: &str) -> Result<(), sqlx::Error> {
    let pause = Backoff::wait(longest, longest, 1, &app.entropy);
    tracing::debug!(outbox = O::NAME, row = row.key(), again_in_ms = pause.as_millis(), code, "nobody can hear it");
    put_off(app, row, pause, code).await
}

async fn put_off<O: Outbox>(app: &App, row: &O, pause: Duration, code: &str) -> Result<(), sqlx::Error> {
    let Table { name, key, .. } = O::TABLE;
    let pause_ms = i64::try_from(pause.as_millis()).unwrap_or(i64::MAX);
    sqlx::query(AssertSqlSafe(format!(
        "UPDATE {name} SET attempts = attempts + 1, next_attempt_at_ms = $1, last_error = $2 WHERE {key} = $3"
    )))
    .bind(app.clock.now_ms() + pause_ms)
    .bind(code.to_owned())
    .bind(row.key().to_owned())
    .execute(app.store.pool())
    .await
    .map(drop)
}
