//! The outbox of suspensions: deploy-control stops the account's instance, now or as soon as it can.
//!
//! It stays stopped because nobody can ask for its start: that takes a session, and a suspended account has none. A start that
//! was under way at that moment is undone by saying it once more a minute later.

use std::{sync::Arc, time::Duration};

use contracts::deploy::{Instance, OnBehalfOf};
use http::Method;
use service::CallError;
use sqlx::AnyConnection;
use tokio::sync::Notify;

use crate::{
    accounts::Account,
    app::App,
    outbox::{self, Outbox},
};

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(10);
/// How long the operator's page waits for the first attempt.
const PATIENCE: Duration = Duration::from_secs(1);
/// The first and the longest pause between two attempts.
const PAUSES_MS: (i64, i64) = (1_000, 60_000);
/// After how long it is said again: longer than anything that was under way.
const AGAIN_MS: i64 = 60_000;

/// An instance that has yet to be stopped.
#[derive(sqlx::FromRow)]
pub(crate) struct Stop {
    instance_id: String,
    account_id: String,
    taken: i64,
    attempts: i64,
}

/// Adds the stop of an account's instance, leased to the caller. `None` when it has none.
pub(crate) async fn insert(db: &mut AnyConnection, app: &App, account: &Account) -> Result<Option<Stop>, sqlx::Error> {
    let Some(instance_id) = account.instance_id else { return Ok(None) };
    let stop = Stop { instance_id: instance_id.to_string(), account_id: account.id.to_string(), taken: 0, attempts: 0 };
    sqlx::query(
        "INSERT INTO stops (instance_id, account_id, taken, attempts, next_attempt_at_ms, last_error)
         VALUES ($1, $2, 0, 0, $3, '')
         ON CONFLICT (instance_id) DO UPDATE SET taken = 0, attempts = 0, next_attempt_at_ms = $3, last_error = ''",
    )
    .bind(stop.instance_id.clone())
    .bind(stop.account_id.clone())
    .bind(app.clock.now_ms() + outbox::LEASE_MS)
    .execute(db)
    .await?;
    Ok(Some(stop))
}

/// Takes back what was not done yet.
pub(crate) async fn withdraw(db: &mut AnyConnection, account: &Account) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM stops WHERE account_id = $1").bind(account.id.to_string()).execute(db).await.map(drop)
}

/// Tries what [`insert`] leased to the caller, and waits a moment for it.
pub(crate) async fn stop_now(app: &Arc<App>, stop: Option<Stop>) {
    if let Some(stop) = stop {
        outbox::send_now(app, stop, PATIENCE).await;
    }
}

impl Outbox for Stop {
    const NAME: &'static str = "suspensions";

    async fn lease(app: &App, now_ms: i64, until_ms: i64) -> Result<Vec<Self>, sqlx::Error> {
        sqlx::query_as(
            "UPDATE stops SET next_attempt_at_ms = $1
             WHERE next_attempt_at_ms <= $2 AND instance_id IN
                 (SELECT instance_id FROM stops WHERE next_attempt_at_ms <= $2 ORDER BY next_attempt_at_ms LIMIT $3)
             RETURNING instance_id, account_id, taken, attempts",
        )
        .bind(until_ms)
        .bind(now_ms)
        .bind(outbox::AT_ONCE)
        .fetch_all(app.store.pool())
        .await
    }

    async fn next_due(app: &App) -> Result<Option<i64>, sqlx::Error> {
        sqlx::query_scalar("SELECT MIN(next_attempt_at_ms) FROM stops").fetch_one(app.store.pool()).await
    }

    async fn attempt(self, app: &App) -> Result<(), sqlx::Error> {
        match self.ask(app).await {
            Ok(()) if self.taken > 0 => {
                tracing::info!(instance_id = self.instance_id, "a suspended account's instance is stopped");
                self.remove(app).await
            }
            Ok(()) => self.write(app, 1, AGAIN_MS, "").await,
            // deploy-control may be about to hear of it, and would make and start it then.
            Err(error) if error.code() == Some("instance_not_found") && !self.is_on_its_way(app).await? => {
                self.remove(app).await
            }
            Err(error) => {
                let pause = outbox::pause_ms(self.attempts, PAUSES_MS.0, PAUSES_MS.1, app.entropy.below(1_000));
                let code = error.code().unwrap_or("unreachable").to_owned();
                let cause = format!("{:#}", anyhow::Error::from(error));
                tracing::warn!(
                    instance_id = self.instance_id,
                    attempt = self.attempts + 1,
                    again_in_ms = pause,
                    cause,
                    "a suspended account's instance could not be stopped"
                );
                self.write(app, self.taken, pause, &code).await
            }
        }
    }

    fn nudge(app: &App) -> &Notify {
        &app.stops_nudge
    }
}

impl Stop {
    async fn ask(&self, app: &App) -> Result<(), CallError> {
        let Ok(account_id) = self.account_id.parse() else {
            return Err(CallError::Unexpected { service: "authz", status: 500 });
        };
        let path = format!("/api/instances/{}/stop", self.instance_id);
        let request = app.deploy.request(Method::POST, &path).timeout(ATTEMPT).json(&OnBehalfOf { account_id });
        app.deploy.json::<Instance>(request).await.map(drop)
    }

    async fn is_on_its_way(&self, app: &App) -> Result<bool, sqlx::Error> {
        let pending: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM deliveries WHERE instance_id = $1")
            .bind(self.instance_id.clone())
            .fetch_one(app.store.pool())
            .await?;
        Ok(pending > 0)
    }

    async fn write(&self, app: &App, taken: i64, pause_ms: i64, code: &str) -> Result<(), sqlx::Error> {
        sqlx::query(
            "UPDATE stops SET taken = $1, attempts = attempts + 1, next_attempt_at_ms = $2, last_error = $3
             WHERE instance_id = $4",
        )
        .bind(taken)
        .bind(app.clock.now_ms() + pause_ms)
        .bind(code.to_owned())
        .bind(self.instance_id.clone())
        .execute(app.store.pool())
        .await
        .map(drop)
    }

    async fn remove(&self, app: &App) -> Result<(), sqlx::Error> {
        sqlx::query("DELETE FROM stops WHERE instance_id = $1")
            .bind(self.instance_id.clone())
            .execute(app.store.pool())
            .await
            .map(drop)
    }
}
