//! What holds on SQLite and on PostgreSQL alike.

mod common;

use std::borrow::Cow;

use common::{MIGRATOR, child, count, from_argument, insert, is_sqlite, said, to_argument};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{Row, SqlSafeStr};
use store::testing::{REQUIRED_VARIABLE, URL_VARIABLE, databases, left_off};
use store::{Error, Store, is_unavailable, is_unique_violation};

/// What the child processes of a test are to open.
const DATABASE_VARIABLE: &str = "STORE_TEST_CHILD_DATABASE";

#[tokio::test]
async fn text_and_bigint_come_back_as_they_went_in() {
    for store in databases(&MIGRATOR).await {
        for (id, amount, used_at) in [
            ("plain", 1, None),
            ("'; DROP TABLE items; --", i64::MAX, Some(0)),
            ("简体 \u{1f9ab}\n", i64::MIN, Some(-1)),
        ] {
            let statement = sqlx::query("INSERT INTO items (id, amount, used_at, owner) VALUES ($1, $2, $3, $4)");
            statement
                .bind(id)
                .bind(amount)
                .bind::<Option<i64>>(used_at)
                .bind(None::<String>)
                .execute(store.pool())
                .await
                .expect("inserted");
            let row = sqlx::query("SELECT id, amount, used_at, owner FROM items WHERE id = $1")
                .bind(id)
                .fetch_one(store.pool())
                .await
                .expect("found");
            assert_eq!(row.get::<String, _>("id"), id, "{}", store.name());
            assert_eq!(row.get::<i64, _>("amount"), amount, "{}", store.name());
            assert_eq!(row.get::<Option<i64>, _>("used_at"), used_at, "{}", store.name());
            assert_eq!(row.get::<Option<String>, _>("owner"), None, "{}", store.name());
        }
    }
}

#[tokio::test]
async fn of_fifty_at_once_one_wins() {
    for store in databases(&MIGRATOR).await {
        insert(&store, "ticket", 1).await.expect("inserted");
        let mut spenders = tokio::task::JoinSet::new();
        let mut inserters = tokio::task::JoinSet::new();
        for n in 0..50_i64 {
            let spender = Store::clone(&store);
            spenders.spawn(async move {
                let statement = "UPDATE items SET used_at = $1 WHERE id = 'ticket' AND used_at IS NULL RETURNING id";
                let row = sqlx::query(statement).bind(n).fetch_optional(spender.pool()).await;
                row.expect("an answer").is_some()
            });
            let inserter = Store::clone(&store);
            inserters.spawn(async move {
                let statement = "INSERT INTO items (id, amount) VALUES ('new', $1) ON CONFLICT DO NOTHING";
                let mut transaction = inserter.begin().await.expect("begun");
                let done = sqlx::query(statement).bind(100 + n).execute(&mut *transaction).await.expect("an answer");
                transaction.commit().await.expect("committed");
                done.rows_affected() == 1
            });
        }
        for mut tasks in [spenders, inserters] {
            let mut winners = 0;
            while let Some(won) = tasks.join_next().await {
                winners += u32::from(won.expect("a task"));
            }
            assert_eq!(winners, 1, "{}", store.name());
        }
        assert_eq!(count(&store).await, 2, "{}", store.name());
    }
}

#[tokio::test]
async fn a_transaction_is_all_or_nothing() {
    for store in databases(&MIGRATOR).await {
        let add = async |id: &str, amount: i64| {
            let mut transaction = store.begin().await.expect("begun");
            let statement = sqlx::query("INSERT INTO items (id, amount) VALUES ($1, $2)").bind(id).bind(amount);
            statement.execute(&mut *transaction).await.expect("inserted");
            transaction
        };
        add("committed", 1).await.commit().await.expect("committed");
        add("rolled back", 2).await.rollback().await.expect("rolled back");
        drop(add("dropped", 3).await);
        // The next one gets its turn, and sees the first alone.
        drop(add("dropped", 3).await);
        assert_eq!(count(&store).await, 1, "{}", store.name());
    }
}

#[tokio::test]
async fn what_is_left_off_anywhere_takes_nothing_of_anybody_elses_with_it() {
    for store in databases(&MIGRATOR).await {
        // So that whoever comes next has the same connection.
        let one = Store::open_with(store.database(), &MIGRATOR, 1).await.expect("opened");
        let mut polls = 0;
        loop {
            polls += 1;
            let work = async {
                let mut transaction = one.begin().await?;
                let statement = sqlx::query("INSERT INTO items (id, amount) VALUES ($1, $2)");
                let statement = statement.bind(format!("left {polls}")).bind(-polls);
                statement.execute(&mut *transaction).await?;
                transaction.commit().await
            };
            let outcome = left_off(polls, work).await;
            insert(&one, &format!("other {polls}"), polls).await.expect("inserted");
            let others = "SELECT COUNT(*) FROM items WHERE amount > 0";
            let others: i64 = sqlx::query_scalar(others).fetch_one(store.pool()).await.expect("a count");
            assert_eq!(others, polls, "{}: seen from elsewhere", store.name());
            if let Some(outcome) = outcome {
                outcome.expect("committed");
                break;
            }
        }
        assert!(polls > 1, "{}: {polls}", store.name());
    }
}

#[tokio::test]
async fn a_unique_violation_is_told_from_other_refusals() {
    for store in databases(&MIGRATOR).await {
        insert(&store, "a", 1).await.expect("inserted");
        for (id, amount) in [("a", 2), ("b", 1)] {
            let refusal = insert(&store, id, amount).await.expect_err("there already");
            assert!(is_unique_violation(&refusal) && !is_unavailable(&refusal), "{}: {refusal}", store.name());
        }
        for statement in [
            "INSERT INTO items (id, amount) VALUES ('c', NULL)",
            "INSERT INTO items (id, amount, owner) VALUES ('c', 3, 'nobody')",
            "INSERT INTO nowhere (id) VALUES ('c')",
            "SELECT FROM WHERE",
        ] {
            let refusal = sqlx::query(statement).execute(store.pool()).await.expect_err("refused");
            assert!(!is_unique_violation(&refusal) && !is_unavailable(&refusal), "{}: {refusal}", store.name());
        }
        assert_eq!(count(&store).await, 1, "the control");
    }
}

#[tokio::test]
async fn eight_processes_may_migrate_at_once() {
    for store in databases(&MIGRATOR).await {
        // A place of its own, which none of them finds made.
        let database = match store.database() {
            store::Database::Sqlite(path) => store::Database::Sqlite(path.with_file_name("folder/new.db")),
            store::Database::Postgres { url, schema } => {
                store::Database::Postgres { url: url.clone(), schema: format!("{schema}-new") }
            }
        };
        let argument = to_argument(&database);
        let children: Vec<_> = (0..8)
            .map(|_| {
                child("opens_what_it_is_told")
                    .env(DATABASE_VARIABLE, &argument)
                    .stdout(std::process::Stdio::piped())
                    .stderr(std::process::Stdio::piped())
                    .spawn()
                    .expect("a process")
            })
            .collect();
        for child in children {
            let output = child.wait_with_output().expect("an end");
            assert!(output.status.success(), "{}: {}", store.name(), said(&output));
        }
        let opened = Store::open(&database, &MIGRATOR).await.expect("opened");
        assert_eq!(count(&opened).await, 8, "{}: each of them wrote", store.name());
        opened.close().await;
        if let store::Database::Postgres { schema, .. } = &database {
            let statement = sqlx::AssertSqlSafe(format!("DROP SCHEMA \"{schema}\" CASCADE"));
            sqlx::query(statement).execute(store.pool()).await.expect("dropped");
        }
    }
}

#[tokio::test]
#[ignore = "a process of eight_processes_may_migrate_at_once"]
async fn opens_what_it_is_told() {
    let Ok(argument) = std::env::var(DATABASE_VARIABLE) else { return };
    let store = Store::open(&from_argument(&argument), &MIGRATOR).await.expect("opened");
    let me = std::process::id();
    insert(&store, &me.to_string(), me.into()).await.expect("inserted");
}

fn migrator(migrations: &[(i64, &'static str)]) -> Migrator {
    let migrations = migrations.iter().map(|(version, sql)| {
        Migration::new(*version, Cow::Borrowed("test"), MigrationType::Simple, sql.into_sql_str(), false)
    });
    Migrator::with_migrations(migrations.collect())
}

#[tokio::test]
async fn a_migration_that_fails_leaves_nothing_behind_and_nobody_waiting() {
    let first = (1, "CREATE TABLE first (id TEXT PRIMARY KEY)");
    for store in databases(&migrator(&[first])).await {
        let broken =
            migrator(&[first, (2, "CREATE TABLE second (id TEXT PRIMARY KEY); INSERT INTO nowhere VALUES (1)")]);
        let refusal = Store::open(store.database(), &broken).await.expect_err("broken");
        assert!(matches!(refusal, Error::Migrate(_)) && !refusal.is_unavailable(), "{}: {refusal:?}", store.name());

        let mended = migrator(&[first, (2, "CREATE TABLE second (id TEXT PRIMARY KEY)")]);
        let opened = Store::open(store.database(), &mended).await.expect("mended");
        sqlx::query("INSERT INTO second (id) VALUES ('x')").execute(opened.pool()).await.expect("the table is there");
        opened.close().await;

        // An older program finds tables that it does not know, a changed one finds that history was rewritten.
        let changed = migrator(&[first, (2, "CREATE TABLE second (id TEXT)")]);
        for other in [&migrator(&[first]), &changed] {
            let refusal = Store::open(store.database(), other).await.expect_err("another history");
            assert!(matches!(refusal, Error::Migrate(_)) && !refusal.is_unavailable(), "{}: {refusal:?}", store.name());
        }
        // One that can do without what it does not know goes on; a rewritten history it refuses as well.
        let (mut older, mut changed) = (migrator(&[first]), changed);
        let opened =
            Store::open(store.database(), older.set_ignore_missing(true)).await.expect("what it knows is there");
        opened.close().await;
        let refusal = Store::open(store.database(), changed.set_ignore_missing(true)).await.expect_err("rewritten");
        assert!(matches!(refusal, Error::Migrate(_)) && !refusal.is_unavailable(), "{}: {refusal:?}", store.name());
    }
}

#[tokio::test]
async fn ping_answers_until_the_store_is_closed() {
    for store in databases(&MIGRATOR).await {
        store.ping().await.expect("it answers");
        store.close().await;
        let refusal = store.ping().await.expect_err("closed");
        assert!(is_unavailable(&refusal), "{}: {refusal}", store.name());
        let refusal = store.begin().await.expect_err("closed");
        assert!(is_unavailable(&refusal), "{}: {refusal}", store.name());
    }
}

#[tokio::test]
async fn ping_and_begin_do_not_wait_for_ever() {
    for store in databases(&MIGRATOR).await {
        let mut held = Vec::new();
        let most = store.pool().options().get_max_connections();
        for _ in 0..most {
            held.push(store.pool().acquire().await.expect("a connection"));
        }
        // Nothing else goes on, so the clock leaps to the limits.
        tokio::time::pause();
        let began = tokio::time::Instant::now();
        assert!(is_unavailable(&store.ping().await.expect_err("no connection")), "{}", store.name());
        assert_eq!(began.elapsed().as_secs(), 2, "{}", store.name());
        assert!(is_unavailable(&store.begin().await.expect_err("no connection")), "{}", store.name());
        assert!(began.elapsed() <= 3 * store::WAIT_LIMIT, "{}", store.name());
        tokio::time::resume();
        held.clear();
        store.ping().await.expect("the control");
    }
}

#[tokio::test]
async fn a_lock_is_waited_for_and_not_for_ever() {
    for store in databases(&MIGRATOR).await {
        insert(&store, "a", 1).await.expect("inserted");
        let statement = "UPDATE items SET amount = 2 WHERE id = 'a'";
        let mut first = store.begin().await.expect("begun");
        sqlx::query(statement).execute(&mut *first).await.expect("the lock");
        // The limit is the connection's own: shortened here so that nobody waits.
        let mut second = store.pool().acquire().await.expect("a connection");
        let limit = if is_sqlite(&store) { "PRAGMA busy_timeout = 10" } else { "SET lock_timeout = '10ms'" };
        sqlx::query(limit).execute(&mut *second).await.expect("set");
        let refusal = sqlx::query(statement).execute(&mut *second).await.expect_err("locked");
        assert!(is_unavailable(&refusal), "{}: {refusal}", store.name());
        // Who only reads does not wait at all.
        assert_eq!(count(&store).await, 1, "{}", store.name());
        first.commit().await.expect("committed");
        sqlx::query(statement).execute(&mut *second).await.expect("the control");
        // So changed, it must not go back among the others.
        second.close().await.expect("closed");
    }
}

#[test]
fn a_run_that_requires_postgresql_fails_without_it_and_another_says_so() {
    let run = |required: Option<&str>| {
        let mut command = child("opens_the_test_databases");
        command.env_remove(URL_VARIABLE).env_remove(REQUIRED_VARIABLE);
        if let Some(required) = required {
            command.env(REQUIRED_VARIABLE, required);
        }
        command.output().expect("a process")
    };
    let (lax, strict) = (run(None), run(Some("required")));
    assert!(lax.status.success() && said(&lax).contains("PostgreSQL was not tested"), "{}", said(&lax));
    assert!(!strict.status.success() && said(&strict).contains(URL_VARIABLE), "{}", said(&strict));
}

#[tokio::test]
#[ignore = "a process of a_run_that_requires_postgresql_fails_without_it_and_another_says_so"]
async fn opens_the_test_databases() {
    assert_eq!(databases(&MIGRATOR).await.len(), 1);
}
