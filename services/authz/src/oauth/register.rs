//! Dynamic client registration (RFC 7591) with a one-time initial access token: how an instance gets its client.

use std::sync::Arc;

use ::token::Jwk;
use axum::{body::Bytes, extract::State, response::IntoResponse};
use http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{SCOPE, error::OauthError};
use crate::{app::App, digest::sha256};

/// The members of client metadata that count here. Others are ignored, as RFC 7591, section 2, demands: the server says
/// what the client is, and its answer holds.
#[derive(Deserialize)]
struct Metadata {
    jwks: Option<Jwks>,
    jwks_uri: Option<Value>,
    redirect_uris: Option<Vec<String>>,
    token_endpoint_auth_method: Option<String>,
    software_statement: Option<Value>,
}

#[derive(Deserialize)]
struct Jwks {
    keys: Vec<Value>,
}

#[derive(sqlx::FromRow)]
struct InitialAccess {
    instance_id: String,
    account_id: String,
    redirect_uri: String,
    used_for: String,
}

/// Registers the instance's key as its client.
///
/// The token is spent in the transaction that makes the client. The same token with the same key gives the same client
/// again until the token is over: an answer that was lost harms nobody, and only the owner of the key can use it. With
/// another key a spent token is refused. A new token for an instance that has a client puts the new key in the old one's
/// place: that is how an instance that lost its data gets back in.
pub(super) async fn register(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<impl IntoResponse, OauthError> {
    let shown = service::bearer::token(&headers).filter(|token| !token.is_empty()).ok_or(OauthError::bearer(false))?;
    let token_hash = sha256(shown);
    let access = find(&app, &token_hash).await?.ok_or(OauthError::bearer(true))?;
    let metadata: Metadata = serde_json::from_slice(&body)
        .map_err(|_| OauthError::bad("invalid_client_metadata", "the body is not client metadata in JSON"))?;
    let key = metadata.check(&access.redirect_uri)?;
    let (client_id, issued_at_ms) = commit(&app, &token_hash, &access, &key).await?;
    tracing::info!(instance_id = access.instance_id, client_id, "registered a client");
    let answer = json!({
        "client_id": client_id,
        "client_id_issued_at": issued_at_ms.div_euclid(1000),
        "token_endpoint_auth_method": "private_key_jwt",
        "grant_types": ["client_credentials"],
        "response_types": [],
        "redirect_uris": [access.redirect_uri],
        "scope": SCOPE,
        "jwks": { "keys": [key] },
    });
    Ok((StatusCode::CREATED, [(header::CACHE_CONTROL, "no-store")], axum::Json(answer)))
}

impl Metadata {
    /// The one key in it.
    fn check(self, redirect_uri: &str) -> Result<Jwk, OauthError> {
        let invalid = |what: &str| OauthError::bad("invalid_client_metadata", what);
        if self.jwks_uri.is_some() {
            return Err(invalid("jwks_uri is not supported: put the key into jwks"));
        }
        if self.software_statement.is_some() {
            return Err(OauthError::bad("unapproved_software_statement", "software statements are not supported"));
        }
        if self.token_endpoint_auth_method.is_some_and(|method| method != "private_key_jwt") {
            return Err(invalid("token_endpoint_auth_method must be private_key_jwt"));
        }
        // Compared as bytes, before anything parses them.
        if self.redirect_uris.is_some_and(|uris| uris != [redirect_uri]) {
            return Err(OauthError::bad(
                "invalid_redirect_uri",
                "redirect_uris must be the one that was given, or absent",
            ));
        }
        let keys = self.jwks.ok_or_else(|| invalid("jwks is missing"))?.keys;
        let [key] = <[Value; 1]>::try_from(keys).map_err(|_| invalid("jwks must have exactly one key"))?;
        Jwk::deserialize(key).map_err(|_| invalid("the key is not a public Ed25519 key for signing"))
    }
}

async fn find(app: &App, token_hash: &str) -> Result<Option<InitialAccess>, sqlx::Error> {
    sqlx::query_as(
        "SELECT instance_id, account_id, redirect_uri, used_for FROM initial_access_tokens
         WHERE token_hash = $1 AND expires_at_ms > $2",
    )
    .bind(token_hash.to_owned())
    .bind(app.clock.now_ms())
    .fetch_optional(app.store.pool())
    .await
}

/// Spends the token and makes the client, or finds the one that the same token and key made. Its id, and since when it is.
async fn commit(app: &App, token_hash: &str, access: &InitialAccess, key: &Jwk) -> Result<(String, i64), OauthError> {
    let now = app.clock.now_ms();
    let mut transaction = app.store.begin().await?;
    let spent = sqlx::query(
        "UPDATE initial_access_tokens SET used_at_ms = $1, used_for = $2
         WHERE token_hash = $3 AND used_at_ms = 0 AND expires_at_ms > $1",
    )
    .bind(now)
    .bind(key.thumbprint())
    .bind(token_hash.to_owned())
    .execute(&mut *transaction)
    .await?;
    if spent.rows_affected() == 1 {
        sqlx::query(
            "INSERT INTO clients (client_id, instance_id, account_id, redirect_uri, jwk, issued_at_ms)
             VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (instance_id) DO UPDATE SET account_id = $3, redirect_uri = $4, jwk = $5",
        )
        .bind(format!("client-{}", app.id()))
        .bind(access.instance_id.clone())
        .bind(access.account_id.clone())
        .bind(access.redirect_uri.clone())
        .bind(serde_json::to_string(key).map_err(OauthError::internal)?)
        .bind(now)
        .execute(&mut *transaction)
        .await?;
    } else {
        // Read again: who spent it may have done so after the first look.
        let used: Option<InitialAccess> = sqlx::query_as(
            "SELECT instance_id, account_id, redirect_uri, used_for FROM initial_access_tokens
             WHERE token_hash = $1 AND expires_at_ms > $2",
        )
        .bind(token_hash.to_owned())
        .bind(now)
        .fetch_optional(&mut *transaction)
        .await?;
        if used.is_none_or(|used| used.used_for != key.thumbprint()) {
            return Err(OauthError::bearer(true));
        }
    }
    let client = sqlx::query_as("SELECT client_id, issued_at_ms FROM clients WHERE instance_id = $1")
        .bind(access.instance_id.clone())
        .fetch_one(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(client)
}
