//! What can go wrong, and which of it passes by itself.

use std::io;
use std::path::PathBuf;

use sqlx::migrate::MigrateError;
use sqlx::postgres::PgDatabaseError;
use sqlx::sqlite::SqliteError;

/// Why a database could not be opened. No message has the database's URL in it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The SQLite file or its folder could not be made.
    #[error("cannot create the database file {path}")]
    Folder {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The schema's name is not one we can use.
    #[error("{0:?} cannot name a schema: use up to 63 letters, digits, _ and -, not beginning with pg_")]
    Schema(String),
    /// The database could not be reached, or refused us.
    #[error("cannot connect to the database")]
    Connect(#[source] sqlx::Error),
    /// A migration failed, or the tables are newer or other than this program's.
    #[error("cannot bring the database's tables up to date")]
    Migrate(#[source] MigrateError),
}

impl Error {
    /// Whether trying again later may succeed without anybody changing anything: see [`is_unavailable`].
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Folder { .. } | Self::Schema(_) => false,
            Self::Connect(error)
            | Self::Migrate(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) => {
                is_unavailable(error)
            }
            Self::Migrate(_) => false,
        }
    }
}

/// Whether a statement failed because a unique index or primary key already has such a row.
pub fn is_unique_violation(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.is_unique_violation())
}

/// Whether a statement failed because the database cannot be used at the moment (the answer is 503 and "try again"), rather
/// than because of what was asked: no connection, locked or busy, deadlock, disk full or failing, shutting down.
pub fn is_unavailable(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(error) => {
            let code = error.code().unwrap_or_default();
            if error.try_downcast_ref::<SqliteError>().is_some() {
                code.parse().is_ok_and(sqlite_unavailable)
            } else if error.try_downcast_ref::<PgDatabaseError>().is_some() {
                postgres_unavailable(&code)
            } else {
                false
            }
        }
        _ => false,
    }
}

/// By SQLite's result codes (<https://www.sqlite.org/rescode.html>); the low byte of an extended code is its primary one.
fn sqlite_unavailable(extended: u32) -> bool {
    const BUSY: u32 = 5;
    const LOCKED: u32 = 6;
    const NOMEM: u32 = 7;
    // A file system that met an error goes on read-only.
    const READONLY: u32 = 8;
    const IOERR: u32 = 10;
    const FULL: u32 = 13;
    const CANTOPEN: u32 = 14;
    const PROTOCOL: u32 = 15;
    matches!(extended & 0xff, BUSY | LOCKED | NOMEM | READONLY | IOERR | FULL | CANTOPEN | PROTOCOL)
}

/// By SQLSTATE (PostgreSQL's manual, appendix A).
fn postgres_unavailable(code: &str) -> bool {
    // Connection exception, insufficient resources (disk, memory, connections), operator intervention, system error.
    ["08", "53", "57", "58"].iter().any(|class| code.starts_with(class))
        // Serialisation failure, deadlock, lock timeout, and a server that became a standby.
        || ["40001", "40P01", "55P03", "25006"].contains(&code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_that_pass_by_themselves() {
        for code in [5, 261, 517, 6, 262, 10, 266, 778, 3338, 13, 14, 8, 1032] {
            assert!(sqlite_unavailable(code), "{code}");
        }
        for code in [0, 1, 11, 19, 787, 1555, 2067, 20, 26] {
            assert!(!sqlite_unavailable(code), "{code}");
        }
        for code in ["08006", "53100", "53300", "57P01", "57P03", "58030", "40001", "40P01", "55P03"] {
            assert!(postgres_unavailable(code), "{code}");
        }
        for code in ["", "23505", "42P01", "22021", "25P02", "28P01"] {
            assert!(!postgres_unavailable(code), "{code}");
        }
    }

    #[test]
    fn errors_that_pass_by_themselves() {
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert!(is_unavailable(&sqlx::Error::Io(refused)));
        assert!(is_unavailable(&sqlx::Error::PoolTimedOut));
        assert!(!is_unavailable(&sqlx::Error::RowNotFound));
        assert!(!is_unique_violation(&sqlx::Error::RowNotFound));
        assert!(Error::Connect(sqlx::Error::PoolClosed).is_unavailable());
        assert!(!Error::Migrate(MigrateError::VersionMismatch(1)).is_unavailable());
    }
}
