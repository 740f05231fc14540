//! The outbox of sign-outs: the person's workspace hears that sessions ended, now or as soon as it can.
//!
//! The row is committed with the end of the sessions themselves. An assertion holds for a minute and a workspace may be
//! stopped for days, so each attempt makes a new one. A row goes when the workspace has answered 204, when the workspace is
//! gone for good, or after [`GIVEN_UP_MS`]: no session of a workspace lives longer than that.

use std::{sync::Arc, time::Duration};

use contracts::{
    AccountId, InstanceId, Slug,
    deploy::{Desired, Instance, Phase, ResolveInstance},
    instance::{EndSessions, internal_path},
};
use http::{Method, StatusCode};
use sqlx::{AnyConnection, AssertSqlSafe};
use tokio::sync::Notify;

use crate::{
    accounts::Account,
    app::App,
    assertions,
    outbox::{self, Outbox, Table},
};

/// How long a workspace may take to hear it.
const ATTEMPT: Duration = Duration::from_secs(5);
/// How often, at least, it is asked whether a workspace that does not run does so again.
const DOWN: Duration = Duration::from_secs(60);
/// How long a sign-out's answer waits for the first attempt.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a session of a workspace lasts at the most: afterwards there is nothing left to end.
const GIVEN_UP_MS: i64 = 7 * 24 * 60 * 60 * 1000;
/// How many of one workspace wait; one more, and a single one that ends everything there takes their place.
const WAITING: i64 = 20;

/// Sessions that a workspace has yet to end.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct Goodbye {
    id: String,
    instance_id: String,
    account_id: String,
    slug: String,
    /// Empty: every session the workspace has.
    sid: String,
    attempts: i64,
    created_at_ms: i64,
}

/// Adds what an account's workspace must hear, leased to the caller: that the sessions made under `sid` ended, or, without
/// one, all it has. `None` when the account has no workspace.
///
/// The sessions are deleted before, in the same transaction: what was asserted under them was asserted before this moment.
pub(crate) async fn insert(
    db: &mut AnyConnection,
    app: &App,
    account: &Account,
    sid: Option<&str>,
) -> Result<Option<Goodbye>, sqlx::Error> {
    let (Some(instance_id), Some(slug)) = (account.instance_id, &account.slug) else { return Ok(None) };
    let now = app.clock.now_ms();
    let mut goodbye = Goodbye {
        id: app.id(),
        instance_id: instance_id.to_string(),
        account_id: account.id.to_string(),
        slug: slug.to_string(),
        sid: sid.unwrap_or_default().to_owned(),
        attempts: 0,
        created_at_ms: now,
    };
    if !goodbye.sid.is_empty() {
        let waiting: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM goodbyes WHERE instance_id = $1")
            .bind(goodbye.instance_id.clone())
            .fetch_one(&mut *db)
            .await?;
        if waiting >= WAITING {
            goodbye.sid.clear();
        }
    }
    if goodbye.sid.is_empty() {
        // It says all that the others say. One that is on its way has an id of its own and takes nothing of this along.
        sqlx::query("DELETE FROM goodbyes WHERE instance_id = $1")
            .bind(goodbye.instance_id.clone())
            .execute(&mut *db)
            .await?;
    }
    sqlx::query(
        "INSERT INTO goodbyes (id, instance_id, account_id, slug, sid, attempts, next_attempt_at_ms, last_error, created_at_ms)
         VALUES ($1, $2, $3, $4, $5, 0, $6, '', $7)",
    )
    .bind(goodbye.id.clone())
    .bind(goodbye.instance_id.clone())
    .bind(goodbye.account_id.clone())
    .bind(goodbye.slug.clone())
    .bind(goodbye.sid.clone())
    .bind(now + outbox::LEASE_MS)
    .bind(now)
    .execute(db)
    .await?;
    Ok(Some(goodbye))
}

/// Says what [`insert`] leased to the caller, and waits a moment for it; it goes on when the caller does not.
pub(crate) async fn say_now(app: &Arc<App>, goodbye: Option<Goodbye>) {
    if let Some(goodbye) = goodbye {
        outbox::send_now(app, goodbye, PATIENCE).await;
    }
}

/// Says what an account's workspace has yet to hear, and waits a moment for it: before its person is let in again, so that it
/// does not end the session that begins.
pub(crate) async fn say_before_hand_off(app: &Arc<App>, instance: InstanceId) -> Result<(), sqlx::Error> {
    let waiting: Vec<Goodbye> = sqlx::query_as(AssertSqlSafe(format!(
        "UPDATE goodbyes SET next_attempt_at_ms = $1 WHERE instance_id = $2 RETURNING {}",
        Goodbye::TABLE.columns
    )))
    .bind(app.clock.now_ms() + outbox::LEASE_MS)
    .bind(instance.to_string())
    .fetch_all(app.store.pool())
    .await?;
    let saying = async {
        for goodbye in waiting {
            outbox::send_now(app, goodbye, PATIENCE).await;
        }
    };
    // What there was no time for is tried when its lease is over.
    let _ = tokio::time::timeout(PATIENCE, saying).await;
    Ok(())
}

impl Outbox for Goodbye {
    const NAME: &'static str = "sign-outs";

    const TABLE: Table = Table {
        name: "goodbyes",
        key: "id",
        columns: "id, instance_id, account_id, slug, sid, attempts, created_at_ms",
        waiting: "TRUE",
        // Until a workspace that can be reached again has heard it, who was signed out is still in there.
        pauses: (Duration::from_secs(1), Duration::from_secs(5)),
    };

    fn key(&self) -> &str {
        &self.id
    }

    fn instance_id(&self) -> &str {
        &self.instance_id
    }

    fn attempts(&self) -> i64 {
        self.attempts
    }

    async fn attempt(self, app: &App) -> Result<(), sqlx::Error> {
        // Once it did not answer, its state is asked first: one that is stopped can wait for weeks.
        let state = if self.attempts == 0 { State::Unknown } else { self.state(app).await };
        let said = match state {
            State::Unknown => self.say(app).await.map_err(Some),
            State::Down => Err(None),
            State::Gone => {
                tracing::info!(instance_id = self.instance_id, "a workspace is gone, and its sessions with it");
                return outbox::remove(app, &self).await;
            }
        };
        let Err(error) = said else {
            tracing::info!(
                instance_id = self.instance_id,
                attempts = self.attempts + 1,
                "a workspace ended its sessions"
            );
            return outbox::remove(app, &self).await;
        };
        if app.clock.now_ms() - self.created_at_ms >= GIVEN_UP_MS {
            tracing::warn!(
                instance_id = self.instance_id,
                cause = error.map_or_else(|| "it does not run".into(), |error| format!("{error:#}")),
                "a workspace was not told that sessions ended in time"
            );
            return outbox::remove(app, &self).await;
        }
        match error {
            Some(error) => outbox::postpone(app, &self, error).await,
            None => outbox::wait(app, &self, DOWN, "instance_down").await,
        }
    }

    fn nudge(app: &App) -> &Notify {
        &app.goodbyes_nudge
    }
}

/// What is known of a workspace that has something to hear.
enum State {
    /// It may run.
    Unknown,
    /// It does not run, and may again.
    Down,
    /// There is none, or will be none.
    Gone,
}

impl Goodbye {
    fn parts(&self) -> anyhow::Result<(InstanceId, AccountId, Slug)> {
        Ok((self.instance_id.parse()?, self.account_id.parse()?, self.slug.parse()?))
    }

    async fn say(&self, app: &App) -> anyhow::Result<()> {
        let (instance, account, slug) = self.parts()?;
        let sid = Some(self.sid.clone()).filter(|sid| !sid.is_empty());
        let assertion =
            assertions::assertion(app, account, &slug, token::Purpose::Logout, sid, None, self.created_at_ms)?;
        let request = app
            .router
            .request(Method::POST, &internal_path(instance, "/api/auth/logout"))
            .timeout(ATTEMPT)
            .json(&EndSessions { assertion });
        let answer = app.router.send(request).await?;
        // Nothing else says that they ended: what answers is a tenant's own program.
        anyhow::ensure!(answer.status() == StatusCode::NO_CONTENT, "it answers {}", answer.status());
        Ok(())
    }

    /// What deploy-control says of the workspace. When it says nothing, there may be one that runs.
    async fn state(&self, app: &App) -> State {
        let Ok((_, account_id, slug)) = self.parts() else { return State::Unknown };
        let body = ResolveInstance { account_id, slug };
        let request = app.deploy.request(Method::POST, "/api/instances/resolve").timeout(ATTEMPT).json(&body);
        match app.deploy.json::<Instance>(request).await {
            Ok(instance) if instance.desired == Desired::Deleted => State::Gone,
            Ok(instance) if matches!(instance.phase, Phase::Stopped | Phase::Failed) => State::Down,
            Err(error) if error.code() == Some("instance_not_found") => State::Gone,
            _ => State::Unknown,
        }
    }
}
