//! The issuer's keys, by which its assertions are verified offline.

use clock::Clock;
use sign_in::Verifier;
use store::Store;
use token::{JwksCache, KeySet, Snapshot};

use super::{Door, DoorError};
use crate::kept;

/// Verifies what the issuer of this name says. The keys last fetched are kept, so that a restart while authz is out locks
/// nobody out.
///
/// # Errors
/// Any database error.
pub async fn verifier(issuer: &str, door: Door, store: Store, clock: Clock) -> Result<Verifier, sqlx::Error> {
    let text = kept::get(store.pool(), kept::ISSUER_KEYS).await?;
    let fetched_by = clock.clone();
    let keys = JwksCache::new(clock, move || {
        let (door, store, clock) = (door.clone(), store.clone(), fetched_by.clone());
        async move {
            let keys: KeySet = door.call(|client, base| client.get(format!("{base}/.well-known/jwks.json"))).await?;
            keep(&store, Snapshot { keys: keys.clone(), fetched_at_ms: clock.now_ms() }).await;
            Ok::<_, DoorError>(keys)
        }
    });
    if let Some(snapshot) = text.and_then(|text| serde_json::from_str(&text).ok()) {
        keys.preload(snapshot);
    }
    Ok(Verifier::new(keys, issuer))
}

async fn keep(store: &Store, snapshot: Snapshot) {
    let Ok(text) = serde_json::to_string(&snapshot) else { return };
    if let Err(error) = kept::set(store.pool(), kept::ISSUER_KEYS, &text).await {
        tracing::warn!(%error, "the issuer's keys could not be kept");
    }
}
