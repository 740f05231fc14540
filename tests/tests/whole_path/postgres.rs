//! The path with accounts and registry in PostgreSQL, on the process engine.

use anyhow::Context;
use beaver_tests::{
    canary,
    people::{Person, by_form},
    provider::FakeProvider,
    stack::{Engine, Stack},
    steps::Steps,
};
use sqlx::{AnyConnection, AssertSqlSafe, Connection, Executor, Row};

use crate::{World, faults, journey, report};

/// A database of the test's own beside the one of `BEAVER_TEST_DATABASE_URL`.
struct Database {
    admin: String,
    name: String,
}

impl Database {
    async fn create() -> anyhow::Result<Option<Self>> {
        let admin = std::env::var("BEAVER_TEST_DATABASE_URL").unwrap_or_default();
        if admin.is_empty() {
            let required = std::env::var("BEAVER_TEST_POSTGRES").is_ok_and(|v| v == "required");
            anyhow::ensure!(!required, "BEAVER_TEST_POSTGRES=required, but BEAVER_TEST_DATABASE_URL is not set");
            beaver_tests::say("*** the whole path with PostgreSQL: NOT RUN: BEAVER_TEST_DATABASE_URL is not set");
            return Ok(None);
        }
        sqlx::any::install_default_drivers();
        let this = Self { admin, name: Stack::prefix_for("pg").replace('-', "_") };
        this.drop_it().await?;
        this.run(&format!("CREATE DATABASE {}", this.name)).await?;
        Ok(Some(this))
    }

    fn url(&self) -> anyhow::Result<String> {
        let (server, _) = self.admin.rsplit_once('/').context("the URL names no database")?;
        Ok(format!("{server}/{}", self.name))
    }

    async fn run(&self, statement: &str) -> anyhow::Result<()> {
        let mut connection = AnyConnection::connect(&self.admin).await?;
        connection.execute(AssertSqlSafe(statement.to_owned())).await?;
        Ok(connection.close().await?)
    }

    async fn drop_it(&self) -> anyhow::Result<()> {
        self.run(&format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name)).await
    }

    /// Every row of every table, as text.
    async fn dump(&self) -> anyhow::Result<String> {
        let mut connection = AnyConnection::connect(&self.url()?).await?;
        let tables = "SELECT CAST(table_schema AS TEXT), CAST(table_name AS TEXT) FROM information_schema.tables \
                      WHERE table_schema NOT IN ('pg_catalog', 'information_schema') AND table_type = 'BASE TABLE'";
        let mut text = String::new();
        for table in connection.fetch_all(tables).await? {
            let (schema, table): (String, String) = (table.try_get(0)?, table.try_get(1)?);
            let rows = format!("SELECT CAST(t AS TEXT) FROM \"{schema}\".\"{table}\" t");
            for row in connection.fetch_all(AssertSqlSafe(rows)).await? {
                text.push_str(&format!("{schema}.{table}: {}\n", row.try_get::<String, _>(0)?));
            }
        }
        connection.close().await?;
        Ok(text)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_the_process_engine_with_postgresql() {
    let Some(database) = Database::create().await.unwrap() else { return };
    let provider = FakeProvider::here().await.unwrap();
    let rule = journey::loopback_rule(provider.base_url());
    let url = database.url().unwrap();
    let settings = [("BEAVER_EGRESS_ALLOW", rule.as_str()), ("DATABASE_URL", &url)];
    let mut stack = Stack::up("pg", Engine::Process, &settings).await.unwrap();
    let mut steps = Steps::new("process engine with PostgreSQL");
    let result = run(&mut steps, &mut stack, &provider, &database).await;
    report(&stack, result.is_err() || steps.failures() > 0).await;
    let purged = stack.purge().await;
    let dropped = database.drop_it().await;
    steps.end(result.and(purged).and(dropped)).unwrap();
}

async fn run(steps: &mut Steps, stack: &mut Stack, provider: &FakeProvider, database: &Database) -> anyhow::Result<()> {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let before;
    {
        let world = World { stack, provider, alice: alice.clone(), bob: bob.clone() };
        for person in [&alice, &bob] {
            let signing_up = by_form::settle(stack, person, provider.base_url());
            steps.need(&format!("{} signs up and gives a provider", person.slug), signing_up).await?;
        }
        steps.need("alice chats", world.say_something("canary-prompt-on-postgresql")).await?;
        before = world.everything().await?;
    }
    steps.need("SIGKILL to everything, and up again", faults::killed_whole(stack)).await?;
    let world = World { stack, provider, alice, bob };
    steps.check("everything said before is there", world.whole_again(&before)).await;
    let looked = async {
        let dump = database.dump().await?;
        anyhow::ensure!(dump.contains("alice@example.com"), "the accounts are not in PostgreSQL");
        canary::none(&world.canaries(&[])?.look("the PostgreSQL database", dump.as_bytes()))
    };
    steps.check("no secret, password or prompt is in the database", looked).await;
    Ok(())
}
