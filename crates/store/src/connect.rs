//! Connections: their options, what is set on each, and the one that migrates.

use std::fmt::Write as _;
use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::ExposeSecret;
use sqlx::any::AnyConnectOptions;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{AnyConnection, AssertSqlSafe, ConnectOptions, Connection, Executor};

use crate::{Database, Error, Kind};

/// How long the first connection may take, PostgreSQL's start-up included.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// For how many milliseconds the migrating connection waits for another process that migrates.
const MIGRATION_WAIT_MS: u32 = 60_000;

/// How to connect, as sqlx wants it said. Installs the drivers, which must happen before any connection.
pub(crate) fn options(database: &Database) -> Result<AnyConnectOptions, Error> {
    sqlx::any::install_default_drivers();
    let options = match database {
        Database::Sqlite(path) => sqlite_url(path)?.parse::<AnyConnectOptions>(),
        Database::Postgres { url, schema } => {
            check_schema(schema)?;
            url.expose_secret().parse()
        }
    };
    options.map_err(Error::Connect)
}

/// Sets what is set by connection rather than by database.
pub(crate) async fn prepare(database: &Database, connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
    match database {
        Database::Sqlite(_) => {
            // First the wait: what comes after may meet a lock.
            connection.execute("PRAGMA busy_timeout = 5000").await?;
            connection.execute("PRAGMA journal_mode = WAL").await?;
            connection.execute("PRAGMA synchronous = FULL").await?;
            connection.execute("PRAGMA foreign_keys = ON").await?;
        }
        Database::Postgres { schema, .. } => {
            // The setting is a list of identifiers, so the name is quoted; `check_schema` has seen to it that it can be.
            sqlx::query("SELECT set_config('search_path', $1, false)")
                .bind(format!("\"{schema}\""))
                .execute(&mut *connection)
                .await?;
            connection.execute("SET lock_timeout = '5s'").await?;
        }
    }
    Ok(())
}

/// Whether a connection that is given back may be used again.
///
/// SQLite itself ends a transaction that meets a full or failing disk. sqlx's ROLLBACK then finds none, which it takes for a
/// failure, and counts that transaction as open for good: nobody could ever begin another one there.
pub(crate) async fn is_at_rest(kind: Kind, connection: &mut AnyConnection) -> Result<bool, sqlx::Error> {
    // Most are: then it need not be asked. A BEGIN that nobody waits for any more is taken back by SQLite's thread itself, before
    // it hears of anything else.
    if kind == Kind::Sqlite && connection.is_in_transaction() {
        // What was dropped is undone before this is answered.
        connection.ping().await?;
        return Ok(!connection.is_in_transaction());
    }
    Ok(true)
}

/// Makes the file or schema, and brings the tables up to date, on a connection that is closed afterwards: whatever lock an
/// error left behind goes with it.
pub(crate) async fn migrate(database: &Database, migrator: &Migrator) -> Result<(), Error> {
    if let Database::Sqlite(path) = database {
        create_file(path).map_err(|source| Error::Folder { path: path.clone(), source })?;
    }
    let options = options(database)?;
    let connecting = async {
        let mut connection = options.connect().await?;
        prepare(database, &mut connection).await?;
        Ok(connection)
    };
    let mut connection = tokio::time::timeout(CONNECT_LIMIT, connecting)
        .await
        .unwrap_or_else(|_| Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into())))
        .map_err(Error::Connect)?;

    let outcome = match database {
        Database::Sqlite(_) => migrate_sqlite(&mut connection, migrator).await,
        Database::Postgres { schema, .. } => migrate_postgres(&mut connection, migrator, schema).await,
    };
    // The migration is what counts; a connection that does not close properly is closed by force.
    if let Err(error) = connection.close().await {
        tracing::debug!(%error, "the migrating connection did not close cleanly");
    }
    outcome.map_err(Error::Migrate)
}

/// sqlx takes no lock on SQLite, so the migration is one transaction that is the writer from the start.
async fn migrate_sqlite(connection: &mut AnyConnection, migrator: &Migrator) -> Result<(), MigrateError> {
    connection.execute(AssertSqlSafe(format!("PRAGMA busy_timeout = {MIGRATION_WAIT_MS}"))).await?;
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    migrator.run_direct(None, &mut *transaction, false).await?;
    transaction.commit().await?;
    Ok(())
}

/// On PostgreSQL sqlx takes an advisory lock of its own; the schema is made under another, since `CREATE SCHEMA IF NOT EXISTS`
/// fails for one of two that run it at once.
async fn migrate_postgres(
    connection: &mut AnyConnection,
    migrator: &Migrator,
    schema: &str,
) -> Result<(), MigrateError> {
    connection.execute(AssertSqlSafe(format!("SET lock_timeout = {MIGRATION_WAIT_MS}"))).await?;
    // Asked first: the statement needs the right to create schemas even where there is nothing to create.
    if !schema_exists(connection, schema).await? {
        let mut transaction = connection.begin().await?;
        sqlx::query("SELECT pg_advisory_xact_lock(hashtext($1))")
            .bind(format!("beaver schema {schema}"))
            .execute(&mut *transaction)
            .await?;
        transaction.execute(AssertSqlSafe(format!("CREATE SCHEMA IF NOT EXISTS \"{schema}\""))).await?;
        transaction.commit().await?;
    }
    migrator.run_direct(None, connection, false).await
}

async fn schema_exists(connection: &mut AnyConnection, schema: &str) -> Result<bool, sqlx::Error> {
    let found: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM pg_catalog.pg_namespace WHERE nspname = $1")
        .bind(schema)
        .fetch_one(connection)
        .await?;
    Ok(found > 0)
}

/// The name goes into statements between double quotes, so it must have nothing in it that ends them.
fn check_schema(schema: &str) -> Result<(), Error> {
    let fits = (1..=63).contains(&schema.len())
        && schema.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
        && !schema.starts_with("pg_");
    if fits { Ok(()) } else { Err(Error::Schema(schema.to_owned())) }
}

/// Creates the file before SQLite does, which would make it readable by everybody; the log beside it takes the file's mode.
fn create_file(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).map(drop)
}

/// The file's path as a URL that sqlx decodes to the same path, whatever characters are in it.
fn sqlite_url(path: &Path) -> Result<String, Error> {
    let absolute = absolute(path).map_err(|source| Error::Folder { path: path.to_owned(), source })?;
    let mut url = "sqlite://".to_owned();
    for byte in absolute.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/.-_~".contains(byte) {
            url.push(char::from(*byte));
        } else {
            // Writing into a string cannot fail.
            let _ = write!(url, "%{byte:02X}");
        }
    }
    Ok(url)
}

/// The path with its folder's symlinks and dots resolved: it stays right when the working directory changes.
fn absolute(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(folder.canonicalize()?.join(name))
}
