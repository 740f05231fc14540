//! The person's API keys: `sk-` and 43 random characters, shown once, SHA-256 at rest, revocable.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use clock::{Clock, Entropy};
use secrecy::SecretString;
use sign_in::fingerprint;
use sqlx::{Any, Executor};
use store::Store;

/// How often a key's use is written down.
const TOUCH_MS: i64 = 60_000;
/// The longest name, in characters.
pub const MAX_NAME: usize = 60;
/// The most keys that are live at once.
pub const MAX_LIVE: usize = 100;

/// The keys, with the live ones in memory: every call of the gateway looks one up.
pub struct Keys {
    store: Store,
    clock: Clock,
    entropy: Entropy,
    /// By fingerprint.
    live: RwLock<HashMap<String, Live>>,
}

struct Live {
    id: String,
    used_at_ms: i64,
}

/// A key as its owner sees it.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct KeyRow {
    /// What it is revoked by.
    pub id: String,
    /// What its owner calls it.
    pub name: String,
    /// Its first and last characters.
    pub hint: String,
    /// When it was made.
    pub created_at_ms: i64,
    /// When it was last used, to the minute.
    pub last_used_at_ms: Option<i64>,
}

/// Revokes every key in a database for good, before it is [loaded](Keys::load); how many there were.
///
/// # Errors
/// Any database error.
pub async fn revoke_all<'e>(to: impl Executor<'e, Database = Any>, now_ms: i64) -> Result<u64, sqlx::Error> {
    let revoked = sqlx::query("UPDATE api_keys SET revoked_at_ms = $1 WHERE revoked_at_ms IS NULL").bind(now_ms);
    Ok(revoked.execute(to).await?.rows_affected())
}

impl Keys {
    /// The keys in this database.
    ///
    /// # Errors
    /// Any database error.
    pub async fn load(store: Store, clock: Clock, entropy: Entropy) -> Result<Self, sqlx::Error> {
        let rows: Vec<(String, String, Option<i64>)> =
            sqlx::query_as("SELECT key_hash, id, last_used_at_ms FROM api_keys WHERE revoked_at_ms IS NULL")
                .fetch_all(store.pool())
                .await?;
        let live = rows.into_iter().map(|(hash, id, used)| (hash, Live { id, used_at_ms: used.unwrap_or(0) }));
        let live = RwLock::new(live.collect());
        Ok(Self { store, clock, entropy, live })
    }

    /// Makes a key; the only time it is seen. `None` when there are too many already.
    ///
    /// # Errors
    /// Any database error.
    pub async fn create(&self, name: &str) -> Result<Option<SecretString>, sqlx::Error> {
        if self.read().len() >= MAX_LIVE {
            return Ok(None);
        }
        let key = format!("sk-{}", self.entropy.token());
        let (id, now_ms) = (self.entropy.uuid_v7(&self.clock).simple().to_string(), self.clock.now_ms());
        let name: String = name.trim().chars().filter(|c| !c.is_control()).take(MAX_NAME).collect();
        let hash = fingerprint(&key);
        sqlx::query("INSERT INTO api_keys (id, name, hint, key_hash, created_at_ms) VALUES ($1, $2, $3, $4, $5)")
            .bind(&id)
            .bind(name)
            .bind(format!("{}…{}", &key[..6], &key[key.len() - 4..]))
            .bind(&hash)
            .bind(now_ms)
            .execute(self.store.pool())
            .await?;
        self.write().insert(hash, Live { id, used_at_ms: 0 });
        Ok(Some(key.into()))
    }

    /// The live keys, newest first.
    ///
    /// # Errors
    /// Any database error.
    pub async fn list(&self) -> Result<Vec<KeyRow>, sqlx::Error> {
        sqlx::query_as(
            "SELECT id, name, hint, created_at_ms, last_used_at_ms FROM api_keys WHERE revoked_at_ms IS NULL ORDER BY id DESC",
        )
        .fetch_all(self.store.pool())
        .await
    }

    /// Revokes a key at once and for good; whether there was one.
    ///
    /// # Errors
    /// Any database error; then it stays live.
    pub async fn revoke(&self, id: &str) -> Result<bool, sqlx::Error> {
        let rows = sqlx::query("UPDATE api_keys SET revoked_at_ms = $1 WHERE id = $2 AND revoked_at_ms IS NULL")
            .bind(self.clock.now_ms())
            .bind(id)
            .execute(self.store.pool())
            .await?
            .rows_affected();
        self.write().retain(|_, live| live.id != id);
        Ok(rows > 0)
    }

    /// The fingerprints of the live ones.
    pub fn fingerprints(&self) -> Vec<String> {
        self.read().keys().cloned().collect()
    }

    /// Whether this is a live key; its use is written down in the background.
    pub fn is_live(&self, key: &str) -> bool {
        let (hash, now_ms) = (fingerprint(key), self.clock.now_ms());
        let due = match self.read().get(&hash) {
            None => return false,
            Some(live) => now_ms - live.used_at_ms > TOUCH_MS,
        };
        if due && let Some(live) = self.write().get_mut(&hash) {
            live.used_at_ms = now_ms;
            let (store, id) = (self.store.clone(), live.id.clone());
            tokio::spawn(async move {
                let written = sqlx::query("UPDATE api_keys SET last_used_at_ms = $1 WHERE id = $2")
                    .bind(now_ms)
                    .bind(id)
                    .execute(store.pool())
                    .await;
                if let Err(error) = written {
                    tracing::debug!(%error, "a key's use was not written down");
                }
            });
        }
        true
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<String, Live>> {
        self.live.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<String, Live>> {
        self.live.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[tokio::test]
    async fn a_key_is_seen_once_kept_as_a_hash_and_revoked_for_good() {
        let store = store::testing::sqlite(&crate::MIGRATOR).await;
        let load = async || Keys::load(store.clone(), Clock::system(), Entropy::system()).await.unwrap();
        let keys = load().await;
        let key = keys.create(" laptop\n").await.unwrap().unwrap();
        let key = key.expose_secret();
        assert!(key.starts_with("sk-") && key.len() >= 35);
        let row: (String, String, String) =
            sqlx::query_as("SELECT name, hint, key_hash FROM api_keys").fetch_one(store.pool()).await.unwrap();
        assert_eq!(row.0, "laptop");
        assert!(!row.1.contains(&key[10..30]) && row.2 == fingerprint(key));
        let again = load().await;
        assert!(keys.is_live(key) && again.is_live(key));
        assert!(!keys.is_live("sk-") && !keys.is_live("") && !keys.is_live(&fingerprint(key)));
        let id = keys.list().await.unwrap()[0].id.clone();
        assert!(keys.revoke(&id).await.unwrap() && !keys.is_live(key) && !load().await.is_live(key));
        assert!(!keys.revoke(&id).await.unwrap() && keys.list().await.unwrap().is_empty());
    }
}
