//! Portal sessions: a random token in the browser, its SHA-256 here.

use std::sync::Arc;

use contracts::authz::{Session, SessionEntry, SignedIn};
use secrecy::{ExposeSecret, SecretString};
use service::Problem;
use sqlx::AnyConnection;

use crate::{
    accounts::{self, Account},
    app::App,
    devices::{self, Visitor},
    digest::sha256,
    goodbyes,
    refused::Answer,
};

/// How long a session lasts that nobody uses.
const IDLE_MS: i64 = 12 * 60 * 60 * 1000;
/// How long a session lasts at the most.
const ABSOLUTE_MS: i64 = 7 * 24 * 60 * 60 * 1000;
/// How often its use is written down.
const TOUCH_MS: i64 = 60 * 1000;

/// How many sessions a list has at the most.
const LISTED: i64 = 100;

/// A session that holds, and whose it is.
pub(crate) struct Live {
    pub sid: String,
    pub expires_at_ms: i64,
    pub account: Account,
}

impl Live {
    /// What callers may know of it.
    pub fn view(&self) -> Session {
        Session {
            sid: self.sid.clone(),
            account_id: self.account.id,
            role: self.account.role,
            email: self.account.email.clone(),
            slug: self.account.slug.clone(),
            instance_id: self.account.instance_id,
            instance_error: None,
            locale: self.account.locale.clone(),
            expires_at_ms: self.expires_at_ms,
        }
    }
}

#[derive(sqlx::FromRow)]
struct Row {
    sid: String,
    account_id: String,
    last_seen_ms: i64,
    expires_at_ms: i64,
}

#[derive(sqlx::FromRow)]
struct ListRow {
    sid: String,
    created_at_ms: i64,
    last_seen_ms: i64,
    address: String,
    user_agent: String,
}

/// Begins a session for an account, on a device that is known from now on.
pub(crate) async fn begin(
    db: &mut AnyConnection,
    app: &App,
    account: &Account,
    visitor: &Visitor,
) -> Result<SignedIn, sqlx::Error> {
    let now = app.clock.now_ms();
    let token = app.entropy.token();
    let live = Live { sid: app.id(), expires_at_ms: now + ABSOLUTE_MS, account: account.clone() };
    sqlx::query(
        "INSERT INTO sessions
             (token_hash, sid, account_id, created_at_ms, last_seen_ms, expires_at_ms, address, user_agent)
         VALUES ($1, $2, $3, $4, $4, $5, $6, $7)",
    )
    .bind(sha256(&token))
    .bind(live.sid.clone())
    .bind(account.id.to_string())
    .bind(now)
    .bind(live.expires_at_ms)
    .bind(visitor.address.to_string())
    .bind(visitor.user_agent.clone())
    .execute(&mut *db)
    .await?;
    let device_token = devices::remember(db, app, visitor, account).await?;
    Ok(SignedIn { session_token: token.into(), device_token, session: live.view() })
}

/// The session of a token, which this keeps alive.
///
/// # Errors
/// 401 `session_ended` when there is none, or none any more.
pub(crate) async fn require(app: &App, token: &SecretString) -> Answer<Live> {
    let now = app.clock.now_ms();
    let hash = sha256(token.expose_secret());
    let row: Option<Row> = sqlx::query_as(
        "SELECT sid, account_id, last_seen_ms, expires_at_ms FROM sessions
         WHERE token_hash = $1 AND expires_at_ms > $2 AND last_seen_ms > $3",
    )
    .bind(hash.clone())
    .bind(now)
    .bind(now - IDLE_MS)
    .fetch_optional(app.store.pool())
    .await?;
    let row = row.ok_or_else(gone)?;
    let account = unless_suspended(accounts::by_id(app.store.pool(), &row.account_id).await?)?;
    if row.last_seen_ms <= now - TOUCH_MS {
        // The condition again, so that of many requests at once one writes.
        let touched = sqlx::query("UPDATE sessions SET last_seen_ms = $1 WHERE token_hash = $2 AND last_seen_ms <= $3")
            .bind(now)
            .bind(hash)
            .bind(now - TOUCH_MS)
            .execute(app.store.pool())
            .await;
        if let Err(error) = touched {
            // Whoever can be recognised shall not be turned away because a disk is full.
            tracing::warn!(%error, "a session's use was not written down");
        }
    }
    Ok(Live { sid: row.sid, expires_at_ms: row.expires_at_ms, account })
}

/// As [`require`], for what is to outlast this answer: the session's row is written, so that this waits for an end of the
/// session that is under way, and then finds none, or comes before it. Sessions are deleted before the moment of their end is
/// read ([`goodbyes::insert`]): a moment that the caller read before this is an earlier one.
///
/// # Errors
/// As [`require`].
pub(crate) async fn require_before_any_end(app: &App, token: &SecretString) -> Answer<Live> {
    let now = app.clock.now_ms();
    let mut transaction = app.store.begin().await?;
    let row: Option<Row> = sqlx::query_as(
        "UPDATE sessions SET last_seen_ms = $2 WHERE token_hash = $1 AND expires_at_ms > $2 AND last_seen_ms > $3
         RETURNING sid, account_id, last_seen_ms, expires_at_ms",
    )
    .bind(sha256(token.expose_secret()))
    .bind(now)
    .bind(now - IDLE_MS)
    .fetch_optional(&mut *transaction)
    .await?;
    let row = row.ok_or_else(gone)?;
    let account = unless_suspended(accounts::by_id(&mut *transaction, &row.account_id).await?)?;
    transaction.commit().await?;
    Ok(Live { sid: row.sid, expires_at_ms: row.expires_at_ms, account })
}

/// A sign-in that was under way may have begun a session after all others were ended.
fn unless_suspended(account: Option<Account>) -> Result<Account, Problem> {
    account.filter(|account| account.suspended_at_ms == 0).ok_or_else(gone)
}

/// Ends the session of a token. Gives the account and the session's id; nothing when the token has no session.
pub(crate) async fn end(db: &mut AnyConnection, token: &SecretString) -> Answer<Option<(Account, String)>> {
    let found: Option<(String, String)> =
        sqlx::query_as("DELETE FROM sessions WHERE token_hash = $1 RETURNING account_id, sid")
            .bind(sha256(token.expose_secret()))
            .fetch_optional(&mut *db)
            .await?;
    let Some((account_id, sid)) = found else { return Ok(None) };
    let account = accounts::by_id(db, &account_id).await?.ok_or_else(gone)?;
    Ok(Some((account, sid)))
}

/// Ends the session of a token, or all sessions of its account, and what the account's instance made of them. A token
/// without a session is as good as ended.
pub(crate) async fn sign_out(app: &Arc<App>, token: &SecretString, everywhere: bool) -> Answer<()> {
    let mut transaction = app.store.begin().await?;
    let Some((account, sid)) = end(&mut transaction, token).await? else { return Ok(()) };
    if everywhere {
        end_all(&mut transaction, &account).await?;
    }
    let goodbye = goodbyes::insert(&mut transaction, app, &account, (!everywhere).then_some(sid.as_str())).await?;
    transaction.commit().await?;
    tracing::info!(account_id = %account.id, everywhere, "signed out");
    goodbyes::say_now(app, goodbye).await;
    Ok(())
}

/// Ends every session of an account; how many there were.
pub(crate) async fn end_all(db: &mut AnyConnection, account: &Account) -> Result<u64, sqlx::Error> {
    // No session has an empty id.
    end_others(db, account, "").await
}

/// Ends every session of an account but one; how many there were.
pub(crate) async fn end_others(db: &mut AnyConnection, account: &Account, sid: &str) -> Result<u64, sqlx::Error> {
    sqlx::query("DELETE FROM sessions WHERE account_id = $1 AND sid <> $2")
        .bind(account.id.to_string())
        .bind(sid.to_owned())
        .execute(db)
        .await
        .map(|done| done.rows_affected())
}

/// Ends the account's session with this id; how many there were.
pub(crate) async fn end_by_sid(db: &mut AnyConnection, account: &Account, sid: &str) -> Result<u64, sqlx::Error> {
    sqlx::query("DELETE FROM sessions WHERE account_id = $1 AND sid = $2")
        .bind(account.id.to_string())
        .bind(sid.to_owned())
        .execute(db)
        .await
        .map(|done| done.rows_affected())
}

/// The sessions of a session's account that hold, the last used first.
pub(crate) async fn list(app: &App, own: &Live) -> Result<Vec<SessionEntry>, sqlx::Error> {
    let now = app.clock.now_ms();
    let rows: Vec<ListRow> = sqlx::query_as(
        "SELECT sid, created_at_ms, last_seen_ms, address, user_agent FROM sessions
         WHERE account_id = $1 AND expires_at_ms > $2 AND last_seen_ms > $3
         ORDER BY last_seen_ms DESC, created_at_ms DESC, sid LIMIT $4",
    )
    .bind(own.account.id.to_string())
    .bind(now)
    .bind(now - IDLE_MS)
    .bind(LISTED)
    .fetch_all(app.store.pool())
    .await?;
    let entry = |row: ListRow| SessionEntry {
        current: row.sid == own.sid,
        sid: row.sid,
        began_at_ms: row.created_at_ms,
        last_seen_ms: row.last_seen_ms,
        address: row.address,
        user_agent: row.user_agent,
    };
    Ok(rows.into_iter().map(entry).collect())
}

fn gone() -> Problem {
    Problem::new(http::StatusCode::UNAUTHORIZED, "session_ended", "This session has ended. Sign in again.")
}

/// Sessions that are over: the latest end, and the latest last use, of those that may be removed.
pub(crate) fn over(now_ms: i64) -> (i64, i64) {
    (now_ms, now_ms - IDLE_MS)
}
