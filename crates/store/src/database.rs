//! Which database.

use std::fmt;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use settings::Env;
use sqlx::postgres::PgConnectOptions;

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
    /// The one that `DATABASE_URL` names, in a schema of this name; without it, the file `path` under `BEAVER_DATA_DIR`.
    ///
    /// # Errors
    /// [`settings::Error`] when `DATABASE_URL` is no address of a PostgreSQL: waiting would not help.
    pub fn from_env(env: &Env, schema: &str, data_dir: &Path, path: &str) -> Result<Self, settings::Error> {
        const KEY: &str = "DATABASE_URL";
        let Some(url) = env.sensitive(KEY)? else { return Ok(Self::Sqlite(data_dir.join(path))) };
        let given = url.expose_secret();
        let foreign = !["postgres://", "postgresql://"].iter().any(|scheme| given.starts_with(scheme));
        let why = if foreign {
            Some("it does not begin with postgres://".to_owned())
        } else {
            // The error tells what is wrong with it, and nothing of what is in it.
            given.parse::<PgConnectOptions>().err().map(|error| format!("it cannot be read ({error})"))
        };
        match why {
            None => Ok(Self::Postgres { url, schema: schema.into() }),
            Some(why) => Err(settings::Error::Invalid {
                key: KEY.into(),
                why,
                cure: "write it as postgres://user:password@host:5432/database, each part percent-encoded; empty means SQLite"
                    .into(),
            }),
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_address_of_a_postgresql_is_refused_by_name_and_not_shown() {
        let of = |url: &str| {
            Database::from_env(&Env::from_pairs([("DATABASE_URL", url)]), "authz", Path::new("/data"), "authz/authz.db")
        };
        for good in ["postgres://u:p@h/d", "postgresql://u:p%40@h:5433/d?sslmode=verify-full"] {
            assert!(matches!(of(good), Ok(Database::Postgres { schema, .. }) if schema == "authz"), "{good}");
        }
        assert!(matches!(of(""), Ok(Database::Sqlite(path)) if path == Path::new("/data/authz/authz.db")));
        for bad in [
            "mysql://u:canary@h/d",
            "sqlite:///canary.db",
            "canary",
            "host=canary",
            "postgres://u:canary@h:port/d",
            "postgres://u:canary@[::1/d",
            "postgres://u:canary@h/d?sslmode=perhaps",
        ] {
            let error = of(bad).unwrap_err().to_string();
            assert!(error.starts_with("DATABASE_URL") && error.contains("postgres://user:password"), "{error}");
            assert!(!error.contains("canary"), "{error}");
        }
    }
}
