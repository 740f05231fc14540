//! A database of its own for every test, on each kind there is.
//!
//! ```no_run
//! # static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate::Migrator::DEFAULT;
//! #[tokio::test]
//! async fn works_on_both() {
//!     for store in store::testing::databases(&MIGRATOR).await {
//!         let answer: i64 = sqlx::query_scalar("SELECT CAST($1 AS BIGINT)").bind(1_i64).fetch_one(store.pool()).await.unwrap();
//!         assert_eq!(answer, 1, "{}", store.name());
//!     }
//! }
//! ```

mod volume;

use std::env;
use std::future::poll_fn;
use std::io::{self, Write as _};
use std::ops::Deref;
use std::pin::pin;
use std::sync::Once;
use std::task::Poll;
use std::thread;

use clock::Entropy;
use secrecy::SecretString;
use sqlx::migrate::Migrator;
use sqlx::{AnyConnection, AssertSqlSafe, Connection, Executor};
use tempfile::TempDir;

use crate::{Database, Store, connect};

pub use volume::Volume;

/// The PostgreSQL database to test on; its user must be allowed to create schemas.
pub const URL_VARIABLE: &str = "BEAVER_TEST_DATABASE_URL";
/// `required` makes a missing URL a failure, so that a complete run cannot forget PostgreSQL.
pub const REQUIRED_VARIABLE: &str = "BEAVER_TEST_POSTGRES";

/// A fresh, migrated store, whose data goes when it is dropped.
#[derive(Debug)]
pub struct TestStore {
    store: Store,
    database: Database,
    _folder: Option<TempDir>,
}

/// One fresh store on SQLite, and one on PostgreSQL where `BEAVER_TEST_DATABASE_URL` says how to reach it.
///
/// # Panics
///
/// When a store cannot be made; and when `BEAVER_TEST_POSTGRES` is `required` but there is no URL.
pub async fn databases(migrator: &Migrator) -> Vec<TestStore> {
    let mut stores = vec![sqlite(migrator).await];
    match env::var(URL_VARIABLE) {
        Ok(url) if !url.is_empty() => stores.push(postgres(url.into(), migrator).await),
        _ if env::var(REQUIRED_VARIABLE).is_ok_and(|value| value == "required") => panic!(
            "{REQUIRED_VARIABLE}=required, but {URL_VARIABLE} is not set: start a PostgreSQL and set it, for example to \
             postgres://postgres@localhost:5433/postgres"
        ),
        _ => {
            static SAID: Once = Once::new();
            // Not with eprintln!, which a test that passes keeps to itself; that nobody reads it is no reason to fail.
            SAID.call_once(|| {
                let _ = writeln!(io::stderr(), "PostgreSQL was not tested: {URL_VARIABLE} is not set");
            });
        }
    }
    stores
}

/// One fresh store on SQLite, for tests in which the kind of database makes no difference.
///
/// # Panics
///
/// When it cannot be made.
pub async fn sqlite(migrator: &Migrator) -> TestStore {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let database = Database::Sqlite(folder.path().join("test.db"));
    TestStore::open(database, migrator, Some(folder)).await
}

/// One fresh store on SQLite in this folder.
///
/// # Panics
///
/// When it cannot be made.
pub async fn sqlite_in(folder: &std::path::Path, migrator: &Migrator) -> TestStore {
    TestStore::open(Database::Sqlite(folder.join("test.db")), migrator, None).await
}

async fn postgres(url: SecretString, migrator: &Migrator) -> TestStore {
    let schema = format!("test_{:016x}", u64::from_le_bytes(Entropy::system().bytes()));
    TestStore::open(Database::Postgres { url, schema }, migrator, None).await
}

impl TestStore {
    async fn open(database: Database, migrator: &Migrator, folder: Option<TempDir>) -> Self {
        let store = Store::open(&database, migrator).await.expect("a test database");
        Self { store, database, _folder: folder }
    }

    /// The kind of database, for the message of an assertion: `SQLite` or `PostgreSQL`.
    pub fn name(&self) -> String {
        self.kind().to_string()
    }

    /// Where it is, to open it a second time as a restarted service would.
    pub fn database(&self) -> &Database {
        &self.database
    }
}

impl Deref for TestStore {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

impl Drop for TestStore {
    fn drop(&mut self) {
        let Database::Postgres { schema, .. } = &self.database else { return };
        let database = self.database.clone();
        let name = schema.clone();
        // A drop cannot wait inside the test's runtime, so another thread does, with one of its own.
        let dropped = thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
            runtime.block_on(drop_schema(&database, &name)).map_err(|e| e.to_string())
        })
        .join();
        if !matches!(dropped, Ok(Ok(()))) {
            eprintln!("the test schema {schema} could not be dropped: {dropped:?}");
        }
    }
}

async fn drop_schema(database: &Database, schema: &str) -> Result<(), Box<dyn std::error::Error>> {
    let mut connection = AnyConnection::connect_with(&connect::options(database)?).await?;
    // The test may have left a transaction open, or dropped one that its runtime, which stands still now, never came to roll
    // back: whoever holds a lock in the schema is ended.
    let statement = "SELECT COUNT(pg_terminate_backend(l.pid)) FROM pg_catalog.pg_locks l
        JOIN pg_catalog.pg_class c ON c.oid = l.relation
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
        WHERE n.nspname = $1 AND a.usename = current_user AND l.pid <> pg_backend_pid()";
    sqlx::query(statement).bind(schema).execute(&mut connection).await?;
    connection.execute("SET lock_timeout = '5s'").await?;
    connection.execute(AssertSqlSafe(format!("DROP SCHEMA IF EXISTS \"{schema}\" CASCADE"))).await?;
    connection.close().await?;
    Ok(())
}

/// What work came to, unless it was left off after it was polled so many times.
pub async fn left_off<T>(polls: i64, work: impl Future<Output = T>) -> Option<T> {
    let (mut work, mut polled) = (pin!(work), 0);
    poll_fn(|context| {
        polled += 1;
        match work.as_mut().poll(context) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if polled == polls => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
