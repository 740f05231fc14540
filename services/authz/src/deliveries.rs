//! The outbox of sign-ups: every one tells deploy-control of its instance, now or as soon as it can.
//!
//! The row is committed with the account, so no crash between the two can lose an instance. deploy-control takes the same
//! instance twice as once, so a delivery whose answer was lost is simply repeated. A refusal that would be the same tomorrow
//! (409, 422) ends the attempts until the person asks for another: the row stays as `refused`, is logged, logged again at
//! each start, and counted in the metric `authz_deliveries_refused`.

use std::{sync::Arc, time::Duration};

use contracts::{
    InstanceId,
    deploy::{Instance, RegisterInstance, Reserved},
};
use http::Method;
use service::{CallError, Problem, Shutdown};
use sqlx::AnyConnection;
use tokio::sync::Notify;

use crate::{
    accounts::Account,
    app::App,
    outbox::{self, Outbox, Table},
    refused::{Answer, Refused},
};

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(10);
/// How long it may take to be told of one that is made ahead.
const RESERVING: Duration = Duration::from_secs(1);
/// How long a sign-up's answer waits for the first attempt.
const PATIENCE: Duration = Duration::from_secs(2);

/// An instance that deploy-control has yet to take.
#[derive(sqlx::FromRow)]
pub(crate) struct Delivery {
    instance_id: String,
    account_id: String,
    slug: String,
    attempts: i64,
}

/// The id for somebody's instance: where workspaces are made ahead, of one that waits for its owner. Only that makes it
/// faster, so nobody waits for the answer for long.
pub(crate) async fn instance_id(app: &App) -> InstanceId {
    if app.config.has_pool {
        let nothing = serde_json::json!({});
        let asked = app.deploy.post::<Reserved>("/api/instances/reserve", &nothing);
        match tokio::time::timeout(RESERVING, asked).await {
            Ok(Ok(reserved)) => return reserved.instance_id,
            Ok(Err(error)) => tracing::info!(%error, "no workspace that is made ahead could be had"),
            Err(_) => tracing::info!("deploy-control did not say in time which workspace is made ahead"),
        }
    }
    InstanceId::from_uuid(app.entropy.uuid_v7(&app.clock))
}

/// Adds the delivery of an account's instance, leased to the caller.
pub(crate) async fn insert(db: &mut AnyConnection, app: &App, account: &Account) -> Answer<()> {
    let (Some(instance_id), Some(slug)) = (account.instance_id, &account.slug) else {
        return Err(Problem::internal(anyhow::anyhow!("an account without an instance has nothing to deliver")).into());
    };
    let now = app.clock.now_ms();
    sqlx::query(
        "INSERT INTO deliveries (instance_id, account_id, slug, state, attempts, next_attempt_at_ms, last_error, created_at_ms)
         VALUES ($1, $2, $3, 'pending', 0, $4, '', $5)",
    )
    .bind(instance_id.to_string())
    .bind(account.id.to_string())
    .bind(slug.to_string())
    .bind(now + outbox::LEASE_MS)
    .bind(now)
    .execute(db)
    .await?;
    Ok(())
}

/// Why deploy-control refused the account's instance, if it did.
pub(crate) async fn refusal(app: &App, account: &Account) -> Result<Option<String>, sqlx::Error> {
    let Some(instance_id) = account.instance_id else { return Ok(None) };
    sqlx::query_scalar("SELECT last_error FROM deliveries WHERE instance_id = $1 AND state = 'refused'")
        .bind(instance_id.to_string())
        .fetch_optional(app.store.pool())
        .await
}

/// Tries a refused delivery once more, now, and from then on like a new one.
pub(crate) async fn retry(app: &Arc<App>, account: &Account) -> Result<(), sqlx::Error> {
    let Some(instance_id) = account.instance_id else { return Ok(()) };
    let leased = sqlx::query(
        "UPDATE deliveries SET state = 'pending', attempts = 0, next_attempt_at_ms = $1
         WHERE instance_id = $2 AND state = 'refused'",
    )
    .bind(app.clock.now_ms() + outbox::LEASE_MS)
    .bind(instance_id.to_string())
    .execute(app.store.pool())
    .await?;
    if leased.rows_affected() == 1 {
        deliver_now(app, account).await;
        count(app).await?;
    }
    Ok(())
}

/// Tries a delivery that [`insert`] leased to the caller, and waits a moment for it; it goes on when the caller does not.
pub(crate) async fn deliver_now(app: &Arc<App>, account: &Account) {
    let (Some(instance_id), Some(slug)) = (account.instance_id, &account.slug) else { return };
    let row = Delivery {
        instance_id: instance_id.to_string(),
        account_id: account.id.to_string(),
        slug: slug.to_string(),
        attempts: 0,
    };
    outbox::send_now(app, row, PATIENCE).await;
}

/// Delivers what is due, until `stop`.
pub(crate) async fn work(app: Arc<App>, stop: Shutdown) {
    if let Err(Refused(problem)) = say_refused(&app).await {
        tracing::warn!(?problem, "the refused deliveries cannot be read");
    }
    outbox::work::<Delivery>(app, stop).await;
}

impl Outbox for Delivery {
    const NAME: &'static str = "sign-ups";

    const TABLE: Table = Table {
        name: "deliveries",
        key: "instance_id",
        columns: "instance_id, account_id, slug, attempts",
        waiting: "state = 'pending'",
        // Somebody watches a page and waits, and an attempt is one small request.
        pauses: (Duration::from_millis(500), Duration::from_secs(5)),
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
        match offer(app, &self).await {
            Ok(()) => {
                tracing::info!(
                    instance_id = self.instance_id,
                    attempts = self.attempts + 1,
                    "deploy-control took the instance"
                );
                outbox::remove(app, &self).await
            }
            Err(error) if matches!(error.status(), Some(409 | 422)) => refuse(app, &self, error).await,
            Err(error) => outbox::postpone(app, &self, error.into()).await,
        }
    }

    fn nudge(app: &App) -> &Notify {
        &app.deliveries_nudge
    }
}

async fn offer(app: &App, row: &Delivery) -> Result<(), CallError> {
    let odd = CallError::Unexpected { service: "authz", status: 500 };
    let (Ok(instance_id), Ok(account_id), Ok(slug)) =
        (row.instance_id.parse(), row.account_id.parse(), row.slug.parse())
    else {
        return Err(odd);
    };
    let body = RegisterInstance { instance_id, account_id, slug, plan: None };
    let request = app.deploy.request(Method::POST, "/api/instances/register").timeout(ATTEMPT).json(&body);
    let taken: Instance = app.deploy.json(request).await?;
    tracing::debug!(instance_id = %taken.id, phase = ?taken.phase, "deploy-control answered");
    Ok(())
}

async fn refuse(app: &App, row: &Delivery, error: CallError) -> Result<(), sqlx::Error> {
    let code = error.code().unwrap_or("unknown").to_owned();
    tracing::error!(
        instance_id = row.instance_id,
        account_id = row.account_id,
        code,
        "deploy-control refuses an instance for good"
    );
    sqlx::query(
        "UPDATE deliveries SET state = 'refused', attempts = attempts + 1, last_error = $1 WHERE instance_id = $2",
    )
    .bind(code)
    .bind(row.instance_id.clone())
    .execute(app.store.pool())
    .await?;
    count(app).await
}

/// Counts the refused ones for the metrics.
async fn count(app: &App) -> Result<(), sqlx::Error> {
    let refused: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM deliveries WHERE state = 'refused'")
        .fetch_one(app.store.pool())
        .await?;
    metrics::gauge!("authz_deliveries_refused").set(refused as f64);
    Ok(())
}

async fn say_refused(app: &App) -> Answer<()> {
    let refused: Vec<(String, String)> = sqlx::query_as(
        "SELECT instance_id, last_error FROM deliveries WHERE state = 'refused' ORDER BY created_at_ms LIMIT 100",
    )
    .fetch_all(app.store.pool())
    .await?;
    for (instance_id, code) in refused {
        tracing::error!(instance_id, code, "deploy-control refused this instance for good; its owner has none");
    }
    Ok(count(app).await?)
}
