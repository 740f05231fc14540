//! Removing what is over, a bounded number of rows at a time.

use std::{sync::Arc, time::Duration};

use service::Shutdown;

use crate::{app::App, devices, sessions, sign_up, sign_up_limit, throttle};

/// How often.
const EVERY: Duration = Duration::from_secs(60);
/// How many rows of one table a statement removes, so that nobody waits long for the writer.
const BATCH: i64 = 500;
/// How many statements a table gets each time.
const ROUNDS: usize = 40;

/// Removes what is over, every minute until `stop`.
pub(crate) async fn work(app: Arc<App>, stop: Shutdown) {
    let mut ticks = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return,
        }
        match sweep(&app).await {
            Ok(0) => {}
            Ok(rows) => tracing::debug!(rows, "removed what was over"),
            Err(error) => tracing::warn!(%error, "what is over could not be removed"),
        }
    }
}

/// Removes what is over now; how many rows.
pub(crate) async fn sweep(app: &App) -> Result<u64, sqlx::Error> {
    let now = app.clock.now_ms();
    let (ended, unused) = sessions::over(now);
    let mut removed = 0;
    for (sql, before) in [
        (
            "DELETE FROM sessions WHERE token_hash IN (SELECT token_hash FROM sessions WHERE expires_at_ms <= $1 LIMIT $2)",
            ended,
        ),
        (
            "DELETE FROM sessions WHERE token_hash IN (SELECT token_hash FROM sessions WHERE last_seen_ms <= $1 LIMIT $2)",
            unused,
        ),
        (
            "DELETE FROM sign_ups WHERE key_hash IN (SELECT key_hash FROM sign_ups WHERE created_at_ms <= $1 LIMIT $2)",
            now - sign_up::REMEMBERED_MS,
        ),
        (
            "DELETE FROM login_failures WHERE scope IN (SELECT scope FROM login_failures WHERE last_failed_at_ms <= $1 LIMIT $2)",
            now - throttle::FORGOTTEN_MS,
        ),
        (
            "DELETE FROM devices WHERE (device_hash, account_id) IN (SELECT device_hash, account_id FROM devices WHERE last_seen_ms <= $1 LIMIT $2)",
            now - devices::KNOWN_MS,
        ),
        (
            "DELETE FROM sign_ups_by_address WHERE scope IN (SELECT scope FROM sign_ups_by_address WHERE since_ms <= $1 LIMIT $2)",
            now - sign_up_limit::HOUR_MS,
        ),
        (
            "DELETE FROM initial_access_tokens WHERE instance_id IN (SELECT instance_id FROM initial_access_tokens WHERE expires_at_ms <= $1 LIMIT $2)",
            now,
        ),
        (
            "DELETE FROM spent_assertions WHERE (client_id, jti_hash) IN (SELECT client_id, jti_hash FROM spent_assertions WHERE expires_at_ms <= $1 LIMIT $2)",
            now,
        ),
    ] {
        for _ in 0..ROUNDS {
            let rows = sqlx::query(sql).bind(before).bind(BATCH).execute(app.store.pool()).await?.rows_affected();
            removed += rows;
            if rows < BATCH.unsigned_abs() {
                break;
            }
        }
    }
    Ok(removed)
}
