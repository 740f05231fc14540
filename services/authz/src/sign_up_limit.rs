//! How many accounts one address may make in an hour (`BEAVER_SIGN_UPS_PER_HOUR`), and how often it may try.
//!
//! Asking whether an e-mail address has an account counts like making one, whatever the answer: else the form would tell anybody
//! of any number of addresses. Every try counts by itself too, generously: a password is judged and hashed for it, whatever the
//! try comes to. The hour begins with the first.

use std::net::IpAddr;

use http::StatusCode;
use service::Problem;
use sqlx::AnyConnection;

use crate::{app::App, refused::Answer, throttle::network};

/// How long what an address did is remembered.
pub(crate) const HOUR_MS: i64 = 60 * 60 * 1000;

/// How many tries there are to one account.
const TRIES: i64 = 10;

fn scope(app: &App, address: IpAddr) -> String {
    app.seal.name(&["sign-ups", &network(address)])
}

/// Counts a try, before anything is done for it.
///
/// # Errors
/// 429 `too_many_sign_ups` with Retry-After.
pub(crate) async fn try_once(app: &App, address: IpAddr) -> Answer<()> {
    let Some(accounts) = app.config.sign_ups_per_hour else { return Ok(()) };
    let tries = app.seal.name(&["sign-up-tries", &network(address)]);
    let mut transaction = app.store.begin().await?;
    add(&mut transaction, app, tries, accounts.saturating_mul(TRIES)).await?;
    Ok(transaction.commit().await?)
}

/// Refuses when the address has had its share already, before anything expensive is done.
///
/// # Errors
/// 429 `too_many_sign_ups` with Retry-After.
pub(crate) async fn check(app: &App, address: IpAddr) -> Answer<()> {
    let now = app.clock.now_ms();
    let since: Option<i64> = sqlx::query_scalar(
        "SELECT since_ms FROM sign_ups_by_address WHERE scope = $1 AND since_ms > $2 AND sign_ups >= $3",
    )
    .bind(scope(app, address))
    .bind(now - HOUR_MS)
    .bind(app.config.sign_ups_per_hour.unwrap_or(i64::MAX))
    .fetch_optional(app.store.pool())
    .await?;
    match since {
        Some(since) => Err(too_many(since + HOUR_MS - now).into()),
        None => Ok(()),
    }
}

/// Counts one.
///
/// # Errors
/// 429 `too_many_sign_ups` with Retry-After when it is one too many; the caller rolls back.
pub(crate) async fn count(db: &mut AnyConnection, app: &App, address: IpAddr) -> Answer<()> {
    add(db, app, scope(app, address), app.config.sign_ups_per_hour.unwrap_or(i64::MAX)).await
}

async fn add(db: &mut AnyConnection, app: &App, scope: String, limit: i64) -> Answer<()> {
    let now = app.clock.now_ms();
    let (sign_ups, since): (i64, i64) = sqlx::query_as(
        "INSERT INTO sign_ups_by_address (scope, sign_ups, since_ms) VALUES ($1, 1, $2)
         ON CONFLICT (scope) DO UPDATE SET
             sign_ups = CASE WHEN sign_ups_by_address.since_ms <= $3 THEN 1 ELSE sign_ups_by_address.sign_ups + 1 END,
             since_ms = CASE WHEN sign_ups_by_address.since_ms <= $3 THEN $2 ELSE sign_ups_by_address.since_ms END
         RETURNING sign_ups, since_ms",
    )
    .bind(scope)
    .bind(now)
    .bind(now - HOUR_MS)
    .fetch_one(db)
    .await?;
    if sign_ups > limit {
        return Err(too_many(since + HOUR_MS - now).into());
    }
    Ok(())
}

fn too_many(wait_ms: i64) -> Problem {
    metrics::counter!("authz_sign_ups_refused_total").increment(1);
    Problem::new(
        StatusCode::TOO_MANY_REQUESTS,
        "too_many_sign_ups",
        "Too many accounts were made from this address. Wait as long as Retry-After says, then try again.",
    )
    .retry_after(u64::try_from(wait_ms.div_euclid(1000) + 1).unwrap_or(1))
}
