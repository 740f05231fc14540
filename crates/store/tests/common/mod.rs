//! What the tests of the store share.

// Each test file is a program of its own and uses a part of this.
#![allow(dead_code)]

use std::process::{Command, Output};

use sqlx::migrate::Migrator;
use store::{Database, Kind, Store};

pub static MIGRATOR: Migrator = sqlx::migrate!("tests/migrations");

/// This test program again, running one of its tests (an ignored one) in a process of its own.
pub fn child(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--ignored", "--exact", "--nocapture", test]);
    command
}

/// What a process said on both of its outputs.
pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The PostgreSQL URL of the tests, if there is one.
pub fn postgres_url() -> Option<String> {
    std::env::var(store::testing::URL_VARIABLE).ok().filter(|url| !url.is_empty())
}

pub async fn insert(store: &Store, id: &str, amount: i64) -> Result<u64, sqlx::Error> {
    let statement = sqlx::query("INSERT INTO items (id, amount) VALUES ($1, $2)").bind(id).bind(amount);
    statement.execute(store.pool()).await.map(|done| done.rows_affected())
}

pub async fn count(store: &Store) -> i64 {
    sqlx::query_scalar("SELECT COUNT(*) FROM items").fetch_one(store.pool()).await.expect("a count")
}

/// The database as one string that another process can be given.
pub fn to_argument(database: &Database) -> String {
    match database {
        Database::Sqlite(path) => path.to_str().expect("UTF-8").to_owned(),
        Database::Postgres { schema, .. } => format!("schema:{schema}"),
    }
}

/// The database of [`to_argument`].
pub fn from_argument(argument: &str) -> Database {
    match argument.strip_prefix("schema:") {
        Some(schema) => Database::Postgres { url: postgres_url().expect("a URL").into(), schema: schema.to_owned() },
        None => Database::Sqlite(argument.into()),
    }
}

pub fn is_sqlite(store: &Store) -> bool {
    store.kind() == Kind::Sqlite
}
