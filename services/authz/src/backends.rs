//! The first identity of an instance: `POST /backends/register`, asked for by deploy-control.

use std::sync::Arc;

use axum::extract::State;
use contracts::{
    ProblemDetails,
    authz::{BackendRegistered, RegisterBackend, RevokeBackend},
};
use http::StatusCode;
use service::{Json, Problem};

use crate::{accounts, app::App, assertions, digest::sha256, refused::Answer};

/// How long the one-time token holds.
const LIFETIME_MS: i64 = 10 * 60 * 1000;

/// Takes an instance's identity away: its client, and the token for one. What it was given before ends by itself within five
/// minutes. That it has none is fine.
#[utoipa::path(post, path = "/backends/revoke", tag = "backends", request_body = RevokeBackend, responses((status = 204)))]
pub(crate) async fn revoke(State(app): State<Arc<App>>, Json(body): Json<RevokeBackend>) -> Answer<StatusCode> {
    let mut transaction = app.store.begin().await?;
    // The token first: a registration under way has it, and is over before its client is looked for.
    for sql in [
        "DELETE FROM initial_access_tokens WHERE instance_id = $1 AND account_id = $2",
        "DELETE FROM spent_assertions WHERE client_id IN
             (SELECT client_id FROM clients WHERE instance_id = $1 AND account_id = $2)",
        "DELETE FROM clients WHERE instance_id = $1 AND account_id = $2",
    ] {
        sqlx::query(sql)
            .bind(body.instance_id.to_string())
            .bind(body.account_id.to_string())
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await?;
    tracing::info!(instance_id = %body.instance_id, "took an identity away");
    Ok(StatusCode::NO_CONTENT)
}

/// Gives a one-time initial access token (RFC 7591, section 1.2) and the assertion that makes the owner the owner.
///
/// Asking again gives new ones, and the token before is void: an instance has one at a time.
#[utoipa::path(post, path = "/backends/register", tag = "backends", request_body = RegisterBackend,
    responses(
        (status = 201, body = BackendRegistered),
        (status = 404, description = "instance_not_found: instance, owner and name do not belong together", body = ProblemDetails),
        (status = 422, description = "redirect_uri_invalid", body = ProblemDetails)))]
pub(crate) async fn register(
    State(app): State<Arc<App>>,
    Json(body): Json<RegisterBackend>,
) -> Answer<(StatusCode, Json<BackendRegistered>)> {
    let account = accounts::by_id(app.store.pool(), &body.account_id.to_string()).await?;
    // Checked here and not believed: a mistake over there must not give one person's instance to another.
    let theirs = account.is_some_and(|account| {
        account.instance_id == Some(body.instance_id) && account.slug.as_ref() == Some(&body.slug)
    });
    if !theirs {
        return Err(Problem::not_found("instance_not_found").into());
    }
    // Compared as bytes: parsing would make equal what is not.
    if body.redirect_uri != app.redirect_uri(&body.slug) {
        return Err(Problem::field(
            "redirect_uri",
            "redirect_uri_invalid",
            "It must be the instance's origin followed by /auth/callback.",
        )
        .into());
    }
    let token = app.entropy.token();
    let expires_at_ms = app.clock.now_ms() + LIFETIME_MS;
    sqlx::query(
        "INSERT INTO initial_access_tokens
             (instance_id, token_hash, account_id, slug, redirect_uri, expires_at_ms, used_at_ms, used_for)
         VALUES ($1, $2, $3, $4, $5, $6, 0, '')
         ON CONFLICT (instance_id) DO UPDATE SET
             token_hash = $2, account_id = $3, slug = $4, redirect_uri = $5, expires_at_ms = $6, used_at_ms = 0, used_for = ''",
    )
    .bind(body.instance_id.to_string())
    .bind(sha256(&token))
    .bind(body.account_id.to_string())
    .bind(body.slug.to_string())
    .bind(body.redirect_uri)
    .bind(expires_at_ms)
    .execute(app.store.pool())
    .await?;
    let register_assertion = assertions::assertion(
        &app,
        body.account_id,
        &body.slug,
        token::Purpose::Register,
        None,
        None,
        app.clock.now_ms(),
    )?;
    tracing::info!(instance_id = %body.instance_id, "gave an initial access token");
    Ok((
        StatusCode::CREATED,
        Json(BackendRegistered { initial_access_token: token.into(), expires_at_ms, register_assertion }),
    ))
}
