//! Which database.

use std::fmt;
use std::path::PathBuf;

use secrecy::SecretString;

/// Where a service keeps its tables. What `Debug` shows has no password in it.
#[derive(Clone, Debug)]
pub enum Database {
    /// A file of its own, which is created where it is missing.
    Sqlite(PathBuf),
    /// One schema of a PostgreSQL database, so that several services can share the database.
    Postgres {
        /// `postgres://user:password@host:port/database`, as sqlx reads it. As with libpq, `?sslmode=` says whether to speak
        /// TLS (`prefer`, where nothing is said) and what to check: `require` nothing, `verify-full` the certificate and
        /// its name, against the public authorities and those in the file `sslrootcert=`.
        url: SecretString,
        /// The schema, created where it is missing: up to 63 letters, digits, `_` and `-`, not beginning with `pg_`.
        schema: String,
    },
}

impl Database {
    /// Which kind of database it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Sqlite(_) => Kind::Sqlite,
            Self::Postgres { .. } => Kind::Postgres,
        }
    }
}

/// The kinds of database there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// SQLite, in this process.
    Sqlite,
    /// PostgreSQL, over a socket.
    Postgres,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sqlite => "SQLite",
            Self::Postgres => "PostgreSQL",
        })
    }
}
