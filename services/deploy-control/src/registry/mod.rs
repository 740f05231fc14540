//! The registry: one row an instance, and its events, written together or not at all.
//!
//! The API writes wishes, the reconciler writes what came of them. Each write says which version of the row it was made
//! from and changes nothing when that has passed: a wish is then made again on the newer row, and the reconciler looks
//! again at what is wanted.

mod pool;
mod progress;
mod row;
mod sleep;
mod together;
mod wishes;

use clock::Clock;
use contracts::{
    AccountId, InstanceId, Slug,
    deploy::{EVENT_PAGE, Event, EventCode, Phase},
};
use sqlx::{AssertSqlSafe, migrate::Migrator};
use store::Store;

use crate::strikes::Strikes;

pub use pool::{Ahead, Made};
pub use progress::Progress;
pub use row::Row;
pub use wishes::{Registered, Wish};

#[cfg(test)]
pub(crate) use self::{
    sleep::{asleep, awake},
    wishes::wished,
};

pub(crate) use row::word;

use row::{Columns, EventColumns};
use together::Together;

/// The tables.
pub static MIGRATOR: Migrator = sqlx::migrate!("../../migrations/deploy-control");

/// Why the registry did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such instance, or it is another person's.
    #[error("no such instance")]
    NotFound,
    /// The id is another person's or another slug's instance.
    #[error("the id belongs to another instance")]
    IdTaken,
    /// The slug is, or was, another instance's.
    #[error("the slug is taken")]
    SlugTaken,
    /// It is stopped or failed, and not by itself: nothing wakes it.
    #[error("it does not sleep, but is down")]
    Down,
    /// It has, or once had, its owner.
    #[error("somebody has or had it")]
    HadOwner,
    /// It is deleted: first that has to be taken back.
    #[error("it is deleted")]
    Deleted,
    /// The time in which its deletion could be taken back is over.
    #[error("its deletion is final")]
    DeletionFinal,
    /// What was made ahead under this id is being removed just now.
    #[error("it is being removed")]
    Busy,
    /// A column holds something that this program did not write.
    #[error("the column {column} holds something unreadable")]
    Corrupt {
        /// Which.
        column: &'static str,
    },
    /// The database failed.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

impl Error {
    /// Whether it is certain that nothing was written down: the database said so, or was not even asked.
    pub fn is_certain(&self) -> bool {
        use sqlx::Error::{Database, PoolClosed, PoolTimedOut};
        match self {
            Self::Database(error) => matches!(error, Database(_) | PoolTimedOut | PoolClosed),
            _ => true,
        }
    }
}

/// Something to be told of an instance, before it has a number and a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// What.
    pub code: EventCode,
    /// Who.
    pub actor: String,
    /// More of it.
    pub detail: Option<String>,
}

impl NewEvent {
    /// Something Beaver did by itself.
    pub fn of(code: EventCode) -> Self {
        Self { code, actor: "beaver".into(), detail: None }
    }

    /// The same, with more of it.
    #[must_use]
    pub fn detail(self, detail: impl ToString) -> Self {
        Self { detail: Some(detail.to_string()), ..self }
    }
}

/// The instances and their events. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Registry {
    store: Store,
    clock: Clock,
    strikes: Strikes,
    together: Together,
}

impl Registry {
    /// The registry in this database. User ids are given from the one after `uid_base` on, or after the newest that was
    /// given or [passed over](Self::pass_over_uid) already.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub async fn open(store: Store, clock: Clock, uid_base: u32) -> Result<Self, Error> {
        // Rows from before user ids were written down: until then this was their rule.
        sqlx::query("UPDATE instances SET uid = number + $1 WHERE uid IS NULL")
            .bind(i64::from(uid_base))
            .execute(store.pool())
            .await?;
        let this = Self { store, clock, strikes: Strikes::default(), together: Together::default() };
        let greatest: i64 =
            sqlx::query_scalar("SELECT COALESCE(MAX(uid), 0) FROM instances").fetch_one(this.store.pool()).await?;
        this.pass_over(greatest.max(uid_base.into())).await?;
        Ok(this)
    }

    /// The same, with a seam at which tests strike.
    #[must_use]
    pub fn with_strikes(self, strikes: Strikes) -> Self {
        Self { strikes, ..self }
    }

    /// Gives no user id up to this one to anybody new: somebody's files have it, though no row here says whose.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub async fn pass_over_uid(&self, uid: u32) -> Result<(), Error> {
        self.pass_over(uid.into()).await
    }

    async fn pass_over(&self, uid: i64) -> Result<(), Error> {
        sqlx::query("UPDATE numbers SET newest = $1 WHERE name = 'uid' AND newest < $1")
            .bind(uid)
            .execute(self.store.pool())
            .await?;
        Ok(())
    }

    /// The database, for readiness.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What time it is, in Unix milliseconds.
    pub fn now_ms(&self) -> i64 {
        self.clock.now_ms()
    }

    /// An instance.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Database`].
    pub async fn get(&self, id: InstanceId) -> Result<Row, Error> {
        let found = sqlx::query_as::<_, Columns>("SELECT * FROM instances WHERE id = $1")
            .bind(id.to_string())
            .fetch_optional(self.store.pool())
            .await?;
        found.ok_or(Error::NotFound)?.try_into()
    }

    /// A person's instance.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] also when it is another person's; [`Error::Database`].
    pub async fn get_owned(&self, id: InstanceId, account: AccountId) -> Result<Row, Error> {
        self.get(id).await.and_then(|row| owned(row, account))
    }

    /// A person's instance, by its name.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] also when it is another person's; [`Error::Database`].
    pub async fn by_slug(&self, slug: &Slug, account: AccountId) -> Result<Row, Error> {
        let found = sqlx::query_as::<_, Columns>("SELECT * FROM instances WHERE slug = $1")
            .bind(slug.as_str())
            .fetch_optional(self.store.pool())
            .await?;
        owned(found.ok_or(Error::NotFound)?.try_into()?, account)
    }

    /// Up to `limit` instances after another, oldest first, without those that are gone.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when there is no instance `after`; [`Error::Database`].
    pub async fn page(&self, after: Option<InstanceId>, limit: i64) -> Result<Vec<Row>, Error> {
        let after = match after {
            Some(id) => self.get(id).await?.number,
            None => 0,
        };
        let sql = "SELECT * FROM instances WHERE number > $1 AND phase <> $2 ORDER BY number LIMIT $3";
        let rows = sqlx::query_as::<_, Columns>(sql)
            .bind(after)
            .bind(word(&Phase::Deleted))
            .bind(limit)
            .fetch_all(self.store.pool())
            .await?;
        rows.into_iter().map(Row::try_from).collect()
    }

    /// Every instance, oldest first.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub async fn all(&self) -> Result<Vec<Row>, Error> {
        self.page(None, i64::MAX).await
    }

    /// The oldest [`EVENT_PAGE`] events after `after`.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub async fn events(&self, id: InstanceId, after: i64) -> Result<Vec<Event>, Error> {
        let sql = "SELECT seq, at_ms, code, actor, detail FROM events WHERE instance_id = $1 AND seq > $2 \
                   ORDER BY seq LIMIT $3";
        let events = sqlx::query_as::<_, EventColumns>(sql)
            .bind(id.to_string())
            .bind(after)
            .bind(EVENT_PAGE)
            .fetch_all(self.store.pool())
            .await?;
        events.into_iter().map(Event::try_from).collect()
    }

    /// The newest `last` events after `after` and before `before`, at most [`EVENT_PAGE`], oldest first.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub async fn last_events(&self, id: InstanceId, after: i64, before: i64, last: i64) -> Result<Vec<Event>, Error> {
        let sql = "SELECT seq, at_ms, code, actor, detail FROM events WHERE instance_id = $1 AND seq > $2 AND seq < $3 \
                   ORDER BY seq DESC LIMIT $4";
        let events = sqlx::query_as::<_, EventColumns>(sql)
            .bind(id.to_string())
            .bind(after)
            .bind(before)
            .bind(last.clamp(0, EVENT_PAGE))
            .fetch_all(self.store.pool())
            .await?;
        events.into_iter().rev().map(Event::try_from).collect()
    }
}

fn owned(row: Row, account: AccountId) -> Result<Row, Error> {
    if row.account_id == account { Ok(row) } else { Err(Error::NotFound) }
}

impl Registry {
    /// As [`write`], at this time.
    async fn write(&self, row: Row, events: &[NewEvent]) -> Result<Option<Row>, Error> {
        let id = row.id;
        self.strikes.pass("registry.write", id, write(&self.store, row, events, self.now_ms())).await
    }

    /// The same, perhaps in one transaction with what others write: for what waits behind many of its kind.
    async fn write_together(&self, row: Row, events: &[NewEvent]) -> Result<Option<Row>, Error> {
        let id = row.id;
        let writing = self.together.write(&self.store, row, events, self.now_ms());
        self.strikes.pass("registry.write", id, writing).await
    }
}

/// Writes the whole row, and the events after its `last_event`, in one transaction; the row as it is then.
///
/// `None` when the row is no longer the one that `row` was made from: then nothing is written.
async fn write(store: &Store, row: Row, events: &[NewEvent], now_ms: i64) -> Result<Option<Row>, Error> {
    let mut transaction = store.begin().await?;
    let written = write_in(&mut transaction, row, events, now_ms).await?;
    if written.is_some() {
        transaction.commit().await?;
    } else {
        transaction.rollback().await?;
    }
    Ok(written)
}

/// The same, in a transaction that others may have part in.
async fn write_in(
    transaction: &mut store::Transaction,
    mut row: Row,
    events: &[NewEvent],
    now_ms: i64,
) -> Result<Option<Row>, Error> {
    let (read_version, read_event) = (row.version, row.last_event);
    row.version += 1;
    row.last_event += events.len() as i64;
    row.updated_at_ms = now_ms;
    let changed = sqlx::query(
        "UPDATE instances SET desired = $1, generation = $2, restart_generation = $3, config_generation = $4, \
         observed_generation = $5, applied_restart_generation = $6, applied_config_generation = $7, \
         refused_config_generation = $8, phase = $9, route = $10, registered = $11, ready_run = $12, ready_at_ms = $13, \
         attempts = $14, next_attempt_at_ms = $15, error_code = $16, error_detail = $17, version = $18, \
         last_event = $19, updated_at_ms = $20, disk_full = $21, plan = $22, before_deletion = $23, deleted_at_ms = $24, \
         data_until_ms = $25, archive_generation = $26, applied_archive_generation = $27, \
         refused_archive_generation = $28, release = $29, refused_release = $30, sleep = $31, wake_keys = $32, \
         error_cause = $33, error_log = $34 WHERE id = $35 AND version = $36",
    )
    .bind(word(&row.desired))
    .bind(row.generation)
    .bind(row.restart_generation)
    .bind(row.config_generation)
    .bind(row.observed_generation)
    .bind(row.applied_restart_generation)
    .bind(row.applied_config_generation)
    .bind(row.refused_config_generation)
    .bind(word(&row.phase))
    .bind(row.route.as_ref().map(word).unwrap_or_default())
    .bind(i64::from(row.registered))
    .bind(&row.ready_run)
    .bind(row.ready_at_ms)
    .bind(row.attempts)
    .bind(row.next_attempt_at_ms)
    .bind(row.error.as_ref().map(|error| &error.code))
    .bind(row.error.as_ref().map(|error| &error.detail))
    .bind(row.version)
    .bind(row.last_event)
    .bind(row.updated_at_ms)
    .bind(i64::from(row.disk_full))
    .bind(row.plan.as_str())
    .bind(row.before_deletion.as_ref().map(word).unwrap_or_default())
    .bind(row.deletion.map(|deletion| deletion.asked_at_ms))
    .bind(row.deletion.map(|deletion| deletion.data_until_ms))
    .bind(row.archive_generation)
    .bind(row.applied_archive_generation)
    .bind(row.refused_archive_generation)
    .bind(&row.release)
    .bind(&row.refused_release)
    .bind(word(&row.sleep))
    .bind(row.wake_keys.join(" "))
    .bind(row.error.as_ref().and_then(|error| error.cause.as_ref()))
    .bind(row.error.as_ref().map(|error| error.log.join("\n")).filter(|log| !log.is_empty()))
    .bind(row.id.to_string())
    .bind(read_version)
    .execute(&mut **transaction)
    .await?
    .rows_affected();
    if changed == 0 {
        return Ok(None);
    }
    insert_events(transaction, &row, read_event, events, now_ms).await?;
    Ok(Some(row))
}

async fn insert_events(
    transaction: &mut store::Transaction,
    row: &Row,
    after: i64,
    events: &[NewEvent],
    now_ms: i64,
) -> Result<(), Error> {
    if events.is_empty() {
        return Ok(());
    }
    // One statement: each is a round trip, and on SQLite a turn of the one writer.
    let tuples: Vec<String> = (0..events.len())
        .map(|n| (1..=6).map(|c| format!("${}", n * 6 + c)).collect::<Vec<_>>().join(", "))
        .map(|placeholders| format!("({placeholders})"))
        .collect();
    let sql = format!("INSERT INTO events (instance_id, seq, at_ms, code, actor, detail) VALUES {}", tuples.join(", "));
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for (seq, event) in (after + 1..).zip(events) {
        query = query
            .bind(row.id.to_string())
            .bind(seq)
            .bind(now_ms)
            .bind(word(&event.code))
            .bind(&event.actor)
            .bind(&event.detail);
    }
    query.execute(&mut **transaction).await?;
    Ok(())
}

#[cfg(test)]
mod tests;
