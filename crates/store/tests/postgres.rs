//! What is PostgreSQL's alone. Without a URL there is nothing to test, and `databases` says so.

mod common;

use common::{MIGRATOR, count, insert, postgres_url};
use sqlx::{Executor, Row};
use store::testing::{TestStore, databases};
use store::{Database, Error, Kind, Store, is_unavailable};

async fn postgres() -> Option<TestStore> {
    databases(&MIGRATOR).await.into_iter().find(|store| store.kind() == Kind::Postgres)
}

fn with_schema(schema: &str) -> Database {
    // A URL that leads nowhere: names are refused before anything is connected.
    let url = "postgres://beaver:canary-7f3a@127.0.0.1:1/beaver?sslmode=disable".to_owned();
    Database::Postgres { url: url.into(), schema: schema.to_owned() }
}

#[test]
fn the_password_is_never_shown() {
    let shown = format!("{:?}", with_schema("authz"));
    assert!(shown.contains("authz") && !shown.contains("canary"), "{shown}");
}

#[tokio::test]
async fn a_server_that_is_not_there_may_come_and_its_password_is_not_told() {
    let refusal = Store::open(&with_schema("authz"), &MIGRATOR).await.expect_err("nobody listens");
    assert!(matches!(refusal, Error::Connect(_)) && refusal.is_unavailable(), "{refusal:?}");
    for url in ["postgres://beaver:canary-7f3a@host:port/x", "canary-7f3a", "mysql://beaver:canary-7f3a@127.0.0.1/x"] {
        let database = Database::Postgres { url: url.to_owned().into(), schema: "authz".into() };
        let refusal = Store::open(&database, &MIGRATOR).await.expect_err("no such URL");
        assert!(!refusal.is_unavailable() && !format!("{refusal} {refusal:?}").contains("canary"), "{refusal:?}");
    }
}

#[tokio::test]
async fn names_that_would_break_out_are_refused() {
    let long = "a".repeat(64);
    for schema in ["", "a\"; DROP SCHEMA public; --", "a b", "a.b", "数", "pg_temp", &long, "a\0"] {
        let refusal = Store::open(&with_schema(schema), &MIGRATOR).await.expect_err("no name");
        assert!(matches!(refusal, Error::Schema(_)) && !refusal.is_unavailable(), "{schema:?}: {refusal:?}");
    }
    // The control: these get as far as connecting.
    for schema in ["authz", "deploy-control", "A_1", "1"] {
        assert!(matches!(Store::open(&with_schema(schema), &MIGRATOR).await, Err(Error::Connect(_))), "{schema:?}");
    }
}

#[tokio::test]
async fn a_schema_is_made_once_by_sixteen_at_once() {
    let Some(store) = postgres().await else { return };
    let Database::Postgres { url, schema } = store.database().clone() else { panic!("a schema") };
    for round in 0..5 {
        let schema = format!("{schema}_{round}");
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..16 {
            let database = Database::Postgres { url: url.clone(), schema: schema.clone() };
            tasks.spawn(async move { Store::open_with(&database, &MIGRATOR, 1).await.map(drop) });
        }
        let outcomes = tasks.join_all().await;
        let statement = sqlx::AssertSqlSafe(format!("DROP SCHEMA \"{schema}\" CASCADE"));
        sqlx::query(statement).execute(store.pool()).await.expect("dropped");
        for outcome in outcomes {
            outcome.expect("opened");
        }
    }
}

#[tokio::test]
async fn services_that_share_a_database_do_not_see_each_other() {
    let (Some(one), Some(other)) = (postgres().await, postgres().await) else { return };
    insert(&one, "a", 1).await.expect("inserted");
    assert_eq!((count(&one).await, count(&other).await), (1, 0));

    let mut connections = Vec::new();
    for _ in 0..one.pool().options().get_max_connections() {
        connections.push(one.pool().acquire().await.expect("a connection"));
    }
    let Database::Postgres { schema, .. } = one.database() else { panic!("a schema") };
    for connection in &mut connections {
        let row = connection.fetch_one("SELECT current_setting('search_path')").await.expect("a path");
        assert_eq!(row.get::<String, _>(0), format!("\"{schema}\""));
        let row = connection.fetch_one("SELECT current_setting('lock_timeout')").await.expect("a limit");
        assert_eq!(row.get::<String, _>(0), "5s");
    }
}

#[tokio::test]
async fn a_server_that_hangs_up_is_noticed_and_forgiven() {
    let Some(store) = postgres().await else { return };
    let mut connection = store.pool().acquire().await.expect("a connection");
    let pid: i32 = connection.fetch_one("SELECT pg_backend_pid()").await.expect("an id").get(0);
    let end = async || {
        let statement = sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1");
        statement.bind(pid).execute(store.pool()).await.expect("ended");
    };
    // While it is in use, the statement fails as something that passes.
    end().await;
    let refusal = connection.execute("SELECT 1").await.expect_err("hung up");
    assert!(is_unavailable(&refusal), "{refusal:?}");
    drop(connection);
    // Whoever comes next gets another connection.
    store.ping().await.expect("it answers");

    // While nobody uses them, nobody notices, though every one of them was ended.
    let Some(other) = postgres().await else { return };
    let mut held = Vec::new();
    let mut pids: Vec<i32> = Vec::new();
    for _ in 0..store.pool().options().get_max_connections() {
        let mut connection = store.pool().acquire().await.expect("a connection");
        pids.push(connection.fetch_one("SELECT pg_backend_pid()").await.expect("an id").get(0));
        held.push(connection);
    }
    for mut connection in held {
        connection.return_to_pool().await;
    }
    for pid in pids {
        let statement = sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1");
        statement.bind(pid).execute(other.pool()).await.expect("ended");
    }
    assert_eq!(count(&store).await, 0);
}

#[tokio::test]
async fn a_user_who_may_create_nothing_uses_a_schema_that_is_there() {
    let Some(store) = postgres().await else { return };
    let Database::Postgres { schema, .. } = store.database() else { panic!("a schema") };
    let role = format!("{schema}_role");
    let owner = format!("{schema}_owned");
    for statement in [
        format!("CREATE ROLE \"{role}\" LOGIN PASSWORD 'x'"),
        format!("CREATE SCHEMA \"{owner}\" AUTHORIZATION \"{role}\""),
    ] {
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(store.pool()).await.expect("prepared");
    }
    let url = postgres_url().expect("a URL");
    let (_, host) = url.split_once('@').expect("postgres://user@host");
    let database = |schema: &str| Database::Postgres {
        url: format!("postgres://{role}:x@{host}").into(),
        schema: schema.to_owned(),
    };
    let allowed = Store::open(&database(&owner), &MIGRATOR).await;
    let denied = Store::open(&database(&format!("{schema}_other")), &MIGRATOR).await;
    for statement in [format!("DROP SCHEMA \"{owner}\" CASCADE"), format!("DROP ROLE \"{role}\"")] {
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(store.pool()).await.expect("removed");
    }
    assert!(allowed.is_ok(), "{allowed:?}");
    assert!(matches!(&denied, Err(error @ Error::Migrate(_)) if !error.is_unavailable()), "{denied:?}");
}

#[tokio::test]
async fn a_test_schema_goes_with_its_store() {
    let (Some(store), Some(watcher)) = (postgres().await, postgres().await) else { return };
    let Database::Postgres { schema, .. } = store.database().clone() else { panic!("a schema") };
    let exists = async || {
        let statement = sqlx::query_scalar("SELECT COUNT(*) FROM pg_catalog.pg_namespace WHERE nspname = $1");
        let found: i64 = statement.bind(&schema).fetch_one(watcher.pool()).await.expect("a count");
        found
    };
    assert_eq!(exists().await, 1, "the control");
    // Even with a transaction that is still open, and one whose undoing nobody has come to yet.
    let mut open = store.begin().await.expect("begun");
    open.execute("INSERT INTO items (id, amount) VALUES ('open', 1)").await.expect("inserted");
    let mut dropped = store.begin().await.expect("begun");
    dropped.execute("INSERT INTO items (id, amount) VALUES ('dropped', 2)").await.expect("inserted");
    drop(dropped);
    drop(store);
    assert_eq!(exists().await, 0);
}
