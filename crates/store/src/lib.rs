//! A service's database: a SQLite file by default, a schema in PostgreSQL when the operator has one.
//!
//! Both are reached through sqlx's `Any` driver with one set of SQL: parameters are `$1`, `$2`, …, columns are `TEXT` and
//! `BIGINT` alone (times in Unix milliseconds, truth as 0 and 1, ids as text).
//!
//! What is read once goes through [`Store::pool`]. What reads and then writes goes through [`Store::begin`], and is safe
//! against its own like on both: by SQLite's one writer at a time, and on PostgreSQL (read committed) by saying what it
//! relies on in the statement that writes, such as `UPDATE … WHERE used_at IS NULL RETURNING` or `ON CONFLICT DO NOTHING`.

mod connect;
mod database;
mod error;
mod transaction;
mod turns;

#[cfg(feature = "testing")]
pub mod testing;

use std::time::Duration;

use sqlx::AnyPool;
use sqlx::any::AnyPoolOptions;
use sqlx::migrate::Migrator;
use tokio::sync::OwnedSemaphorePermit;

pub use database::{Database, Kind};
pub use error::{Error, is_unavailable, is_unique_violation};
pub use transaction::Transaction;
use turns::Turns;

/// How long a call waits for a connection or a lock before it fails as unavailable.
pub const WAIT_LIMIT: Duration = Duration::from_secs(5);

/// How long [`Store::ping`] waits.
const PING_LIMIT: Duration = Duration::from_secs(2);

/// SQLite readers run side by side, up to this many; the writer is one of them.
const SQLITE_CONNECTIONS: u32 = 8;

/// PostgreSQL allows 100 connections by default, and several services share it.
const POSTGRES_CONNECTIONS: u32 = 10;

/// An open database. Clones share its connections.
#[derive(Clone, Debug)]
pub struct Store {
    pool: AnyPool,
    kind: Kind,
    /// SQLite has one writer: waiting for it here is fair, and keeps the connections free for readers. On PostgreSQL there are as
    /// many as there are connections.
    turns: Turns,
}

impl Store {
    /// Opens the database and brings its tables up to date.
    ///
    /// On SQLite it creates the file (mode 0600) and its folder (0700) where they are missing; every connection uses the
    /// write-ahead log, full synchronisation, foreign keys, and waits 5 s for a lock. On PostgreSQL it creates the schema
    /// where it is missing; every connection has it as its only search path, and waits 5 s for a lock. Two processes may do
    /// this at once: one migrates, the other waits and finds it done.
    ///
    /// # Errors
    ///
    /// [`Error::Folder`], [`Error::Schema`], [`Error::Connect`] and [`Error::Migrate`]; whether it is worth trying again later
    /// says [`Error::is_unavailable`].
    pub async fn open(database: &Database, migrator: &Migrator) -> Result<Self, Error> {
        let connections = match database.kind() {
            Kind::Sqlite => SQLITE_CONNECTIONS,
            Kind::Postgres => POSTGRES_CONNECTIONS,
        };
        Self::open_with(database, migrator, connections).await
    }

    /// As [`Store::open`], with at most this many connections: each is a thread and a cache of up to 2 MB, which counts
    /// where a host has many such processes.
    ///
    /// # Errors
    ///
    /// As [`Store::open`].
    pub async fn open_with(database: &Database, migrator: &Migrator, connections: u32) -> Result<Self, Error> {
        connect::migrate(database, migrator).await?;

        let kind = database.kind();
        let after = database.clone();
        let pool = AnyPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(WAIT_LIMIT)
            // A file does not hang up; a server does, and then the first query after it would fail.
            .test_before_acquire(kind == Kind::Postgres)
            .after_connect(move |connection, _| {
                let database = after.clone();
                Box::pin(async move { connect::prepare(&database, connection).await })
            })
            .after_release(move |connection, _| Box::pin(connect::is_at_rest(kind, connection)))
            .connect_lazy_with(connect::options(database)?);
        let at_once = if kind == Kind::Sqlite { 1 } else { connections as usize };
        Ok(Self { pool, kind, turns: Turns::new(at_once) })
    }

    /// The connections, for single statements.
    pub fn pool(&self) -> &AnyPool {
        &self.pool
    }

    /// Which database it is. SQL is the same on both; this is for messages and for back-ups.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Begins a transaction. On SQLite it is the writer from the start (`BEGIN IMMEDIATE`), so that it never fails half-way
    /// because another wrote in between; on PostgreSQL it is a plain `BEGIN`.
    ///
    /// Do not begin a second one while holding the first: on SQLite it would wait for itself until the limit.
    ///
    /// # Errors
    ///
    /// Any [`sqlx::Error`]; one that [`is_unavailable`] after 5 s of waiting for a connection or a lock, or for its turn while
    /// nobody's transaction began.
    pub async fn begin(&self) -> Result<Transaction, sqlx::Error> {
        let turn = self.turns.take().await?;
        let inner = match self.kind {
            Kind::Sqlite => self.pool.begin_with("BEGIN IMMEDIATE").await?,
            Kind::Postgres => return self.begin_whole(turn).await,
        };
        self.turns.has_begun();
        Ok(Transaction::new(inner, turn))
    }

    /// Begins one on PostgreSQL, in a task of its own: sqlx counts it as begun only once the server has answered. One that was left
    /// off before was not undone, and whoever had the connection next wrote in it what never lasted. So it is begun, and then
    /// dropped, which undoes it.
    async fn begin_whole(&self, turn: OwnedSemaphorePermit) -> Result<Transaction, sqlx::Error> {
        let this = self.clone();
        let beginning = tokio::spawn(async move {
            let inner = this.pool.begin().await?;
            this.turns.has_begun();
            Ok(Transaction::new(inner, turn))
        });
        // It does not panic, and is cancelled with the runtime alone.
        beginning.await.unwrap_or(Err(sqlx::Error::PoolClosed))
    }

    /// Whether the database answers, for `/readyz`: reads its catalogue, within 2 s.
    ///
    /// # Errors
    ///
    /// What the database said, or [`sqlx::Error::PoolTimedOut`] when it said nothing in time.
    pub async fn ping(&self) -> Result<(), sqlx::Error> {
        // `SELECT 1` would not touch a SQLite file at all.
        let query = match self.kind {
            Kind::Sqlite => sqlx::query("SELECT COUNT(*) FROM sqlite_master"),
            Kind::Postgres => sqlx::query("SELECT 1"),
        };
        match tokio::time::timeout(PING_LIMIT, query.execute(&self.pool)).await {
            Ok(answer) => answer.map(drop),
            Err(_) => Err(sqlx::Error::PoolTimedOut),
        }
    }

    /// Closes every connection, waiting for those in use. Afterwards each call fails with [`sqlx::Error::PoolClosed`].
    pub async fn close(&self) {
        self.pool.close().await;
    }
}
