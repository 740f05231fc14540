//! The outbox of suspensions: deploy-control stops the account's instance, now or as soon as it can, and is told why, in the
//! operator's words.
//!
//! It stays stopped because nobody can ask for its start: that takes a session, and a suspended account has none. A start that
//! was under way at that moment is undone by saying it once more a minute later.

use std::{sync::Arc, time::Duration};

use contracts::deploy::{Instance, StopInstance};
use http::Method;
use service::CallError;
use sqlx::AnyConnection;
use tokio::sync::Notify;

use crate::{
    accounts::Account,
    app::App,
    outbox::{self, Outbox, Table},
};

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(10);
/// How long the operator's page waits for the first attempt.
const PATIENCE: Duration = Duration::from_secs(1);
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

    const TABLE: Table = Table {
        name: "stops",
        key: "instance_id",
        columns: "instance_id, account_id, taken, attempts",
        waiting: "TRUE",
        pauses: (Duration::from_secs(1), Duration::from_secs(60)),
    };

    fn key(&self) -> &str {
        &self.instance_id
    }

    fn instance_id(&self) -> &str {
        &self.instance_id
    }

    fn attempts(&self) -> i64 {
        self.attempts
    }

    async fn attempt(self, app: &App) -> Result<(), sqlx::Error> {
        // Before it is asked: what deploy-control hears of in between, it may not have known when it answered.
        let is_on_its_way = self.is_on_its_way(app).await?;
        // Restored since this one was leased. A row that is here by now is a later suspension's, and not this one's to remove.
        let Some(reason) = self.reason(app).await? else { return Ok(()) };
        match self.ask(app, reason).await {
            Ok(()) if self.taken > 0 => {
                tracing::info!(instance_id = self.instance_id, "a suspended account's instance is stopped");
                outbox::remove(app, &self).await
            }
            Ok(()) => self.say_again(app).await,
            // deploy-control may be about to hear of it, and would make and start it then.
            Err(error) if error.code() == Some("instance_not_found") && !is_on_its_way => {
                outbox::remove(app, &self).await
            }
            Err(error) => outbox::postpone(app, &self, error.into()).await,
        }
    }

    fn nudge(app: &App) -> &Notify {
        &app.stops_nudge
    }
}

impl Stop {
    async fn ask(&self, app: &App, reason: String) -> Result<(), CallError> {
        let Ok(account_id) = self.account_id.parse() else {
            return Err(CallError::Unexpected { service: "authz", status: 500 });
        };
        let path = format!("/api/instances/{}/stop", self.instance_id);
        let body = StopInstance { account_id, suspended_for: Some(reason) };
        let request = app.deploy.request(Method::POST, &path).timeout(ATTEMPT).json(&body);
        app.deploy.json::<Instance>(request).await.map(drop)
    }

    /// Why the account is suspended; `None` when it is not any more.
    async fn reason(&self, app: &App) -> Result<Option<String>, sqlx::Error> {
        sqlx::query_scalar(
            "SELECT operator_actions.reason FROM accounts
             JOIN operator_actions ON operator_actions.account_id = accounts.id AND operator_actions.action = 'suspended'
                 AND operator_actions.at_ms = accounts.suspended_at_ms
             WHERE accounts.id = $1",
        )
        .bind(self.account_id.clone())
        .fetch_optional(app.store.pool())
        .await
    }

    async fn is_on_its_way(&self, app: &App) -> Result<bool, sqlx::Error> {
        let pending: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM deliveries WHERE instance_id = $1 AND state = 'pending'")
                .bind(self.instance_id.clone())
                .fetch_one(app.store.pool())
                .await?;
        Ok(pending > 0)
    }

    async fn say_again(&self, app: &App) -> Result<(), sqlx::Error> {
        sqlx::query("UPDATE stops SET taken = 1, next_attempt_at_ms = $1, last_error = '' WHERE instance_id = $2")
            .bind(app.clock.now_ms() + AGAIN_MS)
            .bind(self.instance_id.clone())
            .execute(app.store.pool())
            .await
            .map(drop)
    }
}
