//! What is SQLite's alone.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use common::{MIGRATOR, count, insert};
use sqlx::{Executor, Row};
use store::{Database, Error, Store, is_unavailable};

#[tokio::test]
async fn the_file_and_its_folder_are_for_us_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("authz/deeper/authz.db");
    let store = Store::open(&Database::Sqlite(path.clone()), &MIGRATOR).await.expect("opened");
    insert(&store, "a", 1).await.expect("inserted");
    let mode = |path: &std::path::Path| fs::metadata(path).expect("it").mode() & 0o777;
    assert_eq!(mode(path.parent().expect("a folder")), 0o700);
    assert_eq!(mode(&folder.path().join("authz")), 0o700);
    let mut files = 0;
    for file in fs::read_dir(path.parent().expect("a folder")).expect("files") {
        assert_eq!(mode(&file.expect("a file").path()), 0o600);
        files += 1;
    }
    assert_eq!(files, 3, "the database, its log and its index");
}

#[tokio::test]
async fn any_path_will_do() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("real")).expect("a folder");
    symlink("real", folder.path().join("link")).expect("a link");
    for name in [
        "plain.db",
        "a b.db",
        "100%.db",
        "%41.db",
        "q?mode=memory.db",
        "h#h.db",
        "数据.db",
        "..db",
        "a..b",
        ":memory:",
        "link/x.db",
        "real/../y.db",
    ] {
        let path = folder.path().join(name);
        let store = Store::open(&Database::Sqlite(path.clone()), &MIGRATOR).await.expect(name);
        insert(&store, "a", 1).await.expect(name);
        store.close().await;
        assert!(fs::metadata(&path).expect(name).len() > 0, "{name} is the file");
        let again = Store::open(&Database::Sqlite(path), &MIGRATOR).await.expect(name);
        assert_eq!(count(&again).await, 1, "{name}");
        again.close().await;
    }
}

#[tokio::test]
async fn what_cannot_be_a_file_is_said_to_be_so() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("file"), "").expect("a file");
    fs::write(folder.path().join("text"), "this is no database, but long enough to be looked at ".repeat(40))
        .expect("a file");
    for name in ["file/x.db", "."] {
        let refusal = Store::open(&Database::Sqlite(folder.path().join(name)), &MIGRATOR).await.expect_err(name);
        assert!(matches!(refusal, Error::Folder { .. }), "{name}: {refusal:?}");
        assert!(std::error::Error::source(&refusal).is_some(), "{name}");
    }
    let refusal = Store::open(&Database::Sqlite(folder.path().join("text")), &MIGRATOR).await.expect_err("no database");
    assert!(matches!(refusal, Error::Connect(_)) && !refusal.is_unavailable(), "{refusal:?}");
}

#[tokio::test]
async fn every_connection_is_set_up_alike() {
    let store = store::testing::sqlite(&MIGRATOR).await;
    let mut connections = Vec::new();
    for _ in 0..store.pool().options().get_max_connections() {
        connections.push(store.pool().acquire().await.expect("a connection"));
    }
    assert_eq!(connections.len(), 8);
    for connection in &mut connections {
        for (pragma, expected) in [("busy_timeout", 5000), ("synchronous", 2), ("foreign_keys", 1)] {
            let statement = sqlx::AssertSqlSafe(format!("PRAGMA {pragma}"));
            let row = connection.fetch_one(statement).await.expect(pragma);
            assert_eq!(row.get::<i64, _>(0), expected, "{pragma}");
        }
        let row = connection.fetch_one("PRAGMA journal_mode").await.expect("a mode");
        assert_eq!(row.get::<String, _>(0), "wal");
    }
}

/// Without the lock from the start, two that read and then write would both read the same, and one of them fail.
#[tokio::test]
async fn what_is_read_in_a_transaction_still_holds_when_it_writes() {
    let store = store::testing::sqlite(&MIGRATOR).await;
    insert(&store, "counter", 0).await.expect("inserted");
    // Another process knows nothing of this one's turns: a store opened twice is as good.
    let other_process = Store::open(store.database(), &MIGRATOR).await.expect("opened");
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..50 {
        let store = if n % 2 == 0 { Store::clone(&store) } else { other_process.clone() };
        tasks.spawn(async move {
            let mut transaction = store.begin().await.expect("begun");
            let read = sqlx::query_scalar::<_, i64>("SELECT amount FROM items WHERE id = 'counter'");
            let amount = read.fetch_one(&mut *transaction).await.expect("read");
            tokio::task::yield_now().await;
            let write = sqlx::query("UPDATE items SET amount = $1 WHERE id = 'counter'").bind(amount + 1);
            write.execute(&mut *transaction).await.expect("written");
            transaction.commit().await.expect("committed");
        });
    }
    tasks.join_all().await;
    let total: i64 = sqlx::query_scalar("SELECT amount FROM items").fetch_one(store.pool()).await.expect("a total");
    assert_eq!(total, 50);

    // The control: a plain BEGIN does fail, at once and however long the others wait.
    let mut one = store.pool().begin().await.expect("begun");
    let mut other = store.pool().begin().await.expect("begun");
    for transaction in [&mut one, &mut other] {
        transaction.fetch_all("SELECT amount FROM items").await.expect("read");
    }
    one.execute("UPDATE items SET amount = 51").await.expect("written");
    one.commit().await.expect("committed");
    let refusal = other.execute("UPDATE items SET amount = 51").await.expect_err("it read what is no longer so");
    assert!(is_unavailable(&refusal), "{refusal}");
}

#[tokio::test]
async fn waiting_for_the_writer_is_bounded_and_takes_no_connection() {
    let store = store::testing::sqlite(&MIGRATOR).await;
    let turn = store.begin().await.expect("begun");
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    let refusal = store.begin().await.expect_err("the writer is busy");
    assert!(is_unavailable(&refusal), "{refusal}");
    assert_eq!(began.elapsed().as_secs(), 5);
    tokio::time::resume();

    let waiting = tokio::spawn({
        let store = Store::clone(&store);
        async move { store.begin().await.is_ok() }
    });
    tokio::task::yield_now().await;
    assert_eq!(store.pool().size() as usize - store.pool().num_idle(), 1, "the writer's alone");
    turn.commit().await.expect("committed");
    assert!(waiting.await.expect("a task"), "the turn passes on");
}

#[tokio::test]
async fn a_full_disk_is_unavailable_and_passes() {
    let store = store::testing::sqlite(&MIGRATOR).await;
    insert(&store, "a", 1).await.expect("inserted");
    let mut connection = store.pool().acquire().await.expect("a connection");
    let pages: i64 = connection.fetch_one("PRAGMA page_count").await.expect("a count").get(0);
    connection.execute(sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {pages}"))).await.expect("set");
    let statement = "INSERT INTO items (id, amount) VALUES ($1, $2)";
    let big = "x".repeat(100_000);
    let refusal = sqlx::query(statement).bind(&big).bind(2_i64).execute(&mut *connection).await.expect_err("full");
    assert!(is_unavailable(&refusal), "{refusal}");
    connection.execute("PRAGMA max_page_count = 4294967294").await.expect("set");
    sqlx::query(statement).bind(&big).bind(2_i64).execute(&mut *connection).await.expect("the control");
}
