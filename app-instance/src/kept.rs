//! Named values that the instance keeps: the table `settings`.

use sqlx::{Any, Executor};

/// The person's provider, as JSON.
pub const PROVIDER: &str = "provider";
/// The provider, or `null`, that the one of `GENERATION` took the place of; absent when that generation brought none.
pub const PROVIDER_BEFORE: &str = "provider_before";
/// The generation of `config.json` that was looked at last.
pub const GENERATION: &str = "config_generation";
/// Its OAuth client's id.
pub const CLIENT_ID: &str = "client_id";
/// The fingerprint of the one-time token that its client was made with.
pub const REGISTERED_WITH: &str = "registered_with";
/// The issuer's keys as last fetched, as JSON.
pub const ISSUER_KEYS: &str = "issuer_keys";
/// Who is signed in, and what of the portal's was used up.
pub const SIGN_INS: &str = "sign_ins";

/// The value of `name`.
///
/// # Errors
/// Any database error.
pub async fn get<'e>(from: impl Executor<'e, Database = Any>, name: &str) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar("SELECT value FROM settings WHERE name = $1").bind(name).fetch_optional(from).await
}

/// Sets `name` to `value`.
///
/// # Errors
/// Any database error.
pub async fn set<'e>(to: impl Executor<'e, Database = Any>, name: &str, value: &str) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
    )
    .bind(name)
    .bind(value)
    .execute(to)
    .await
    .map(drop)
}

/// Forgets `name`.
///
/// # Errors
/// Any database error.
pub async fn remove<'e>(from: impl Executor<'e, Database = Any>, name: &str) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM settings WHERE name = $1").bind(name).execute(from).await.map(drop)
}
