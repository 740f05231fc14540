//! The issuer's signing keys: made, sealed, rotated, published.
//!
//! A key is published 24 h before it is used, used for 30 d, and published 24 h longer: whoever caches the set for less
//! than that never meets a token it cannot verify. The keys of several processes are those in the database: a key has a
//! number, and of two processes that make the next one at once, one inserts it and both read it.

use std::sync::Arc;

use arc_swap::ArcSwap;
use clock::{Clock, Entropy};
use secrecy::ExposeSecret;
use serde::Serialize;
use store::Store;
use token::{Claims, KeySet, Kind, SigningKey};

use crate::seal::{Seal, SealBroken};

const HOUR_MS: i64 = 60 * 60 * 1000;
const DAY_MS: i64 = 24 * HOUR_MS;
/// How long a key is used.
const USE_MS: i64 = 30 * DAY_MS;
/// How long it is published before and after.
const MARGIN_MS: i64 = DAY_MS;

/// Why the keys cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The database failed.
    #[error("the signing keys cannot be read or written")]
    Database(#[from] sqlx::Error),
    /// `BEAVER_SEAL_KEY` is not the one they were sealed with.
    #[error("signing key {seq} cannot be opened")]
    Sealed {
        /// The key's number.
        seq: i64,
        /// Why.
        #[source]
        source: SealBroken,
    },
    /// Making, reading or sealing a key failed.
    #[error("a signing key cannot be made")]
    Key(#[source] token::BoxError),
}

/// The issuer's keys, as of the last [`KeyRing::maintain`].
pub(crate) struct KeyRing {
    store: Store,
    clock: Clock,
    entropy: Entropy,
    seal: Arc<Seal>,
    keys: ArcSwap<Vec<Kept>>,
}

#[derive(Clone)]
struct Kept {
    seq: i64,
    key: SigningKey,
    active_from_ms: i64,
}

#[derive(sqlx::FromRow)]
struct Row {
    seq: i64,
    kid: String,
    sealed: String,
    active_from_ms: i64,
}

impl KeyRing {
    /// Opens the keys in the database; makes the first one where there is none.
    ///
    /// # Errors
    /// Each [`Error`].
    pub async fn open(store: Store, clock: Clock, entropy: Entropy, seal: Arc<Seal>) -> Result<Self, Error> {
        let ring = Self { store, clock, entropy, seal, keys: ArcSwap::default() };
        ring.maintain().await?;
        Ok(ring)
    }

    /// Makes the next key when it is due, removes the ones that are over, and takes over what other processes did.
    /// To be called at least every hour.
    ///
    /// # Errors
    /// Each [`Error`]; the keys known before stay in use.
    pub async fn maintain(&self) -> Result<(), Error> {
        loop {
            let keys = self.load().await?;
            let now = self.clock.now_ms();
            let next = match keys.last() {
                None => Some((1, now)),
                // After a long standstill the last key goes on until the next has been published for long enough.
                Some(last) if now >= last.active_from_ms + USE_MS - MARGIN_MS => {
                    Some((last.seq + 1, (last.active_from_ms + USE_MS).max(now + MARGIN_MS)))
                }
                Some(_) => None,
            };
            match next {
                Some((seq, active_from_ms)) => self.make(seq, active_from_ms).await?,
                None => {
                    self.remove_old(&keys).await?;
                    self.keys.store(Arc::new(keys));
                    return Ok(());
                }
            }
        }
    }

    /// Signs with the key in use.
    ///
    /// # Errors
    /// As [`SigningKey::sign`].
    pub fn sign<T: Serialize>(&self, kind: Kind, claims: &Claims<T>) -> Result<String, token::Error> {
        let keys = self.keys.load();
        let active = self.active(&keys).ok_or(token::Error::Key("there is none yet"))?;
        keys[active].key.sign(kind, claims)
    }

    /// Until when what is signed now can be verified, in Unix milliseconds: a token should not outlive its key.
    pub fn verifiable_until_ms(&self) -> i64 {
        let keys = self.keys.load();
        let Some(active) = self.active(&keys) else { return 0 };
        // Where the next key is not made yet, it comes at the earliest when this one's time is over.
        published_until(&keys, active).unwrap_or(keys[active].active_from_ms + USE_MS + MARGIN_MS)
    }

    /// The public halves that verifiers must know now.
    pub fn published(&self) -> KeySet {
        let (keys, now) = (self.keys.load(), self.clock.now_ms());
        let live = (0..keys.len()).filter(|at| published_until(&keys, *at).is_none_or(|end| end > now));
        KeySet::new(live.map(|at| keys[at].key.public()))
    }

    fn active(&self, keys: &[Kept]) -> Option<usize> {
        let now = self.clock.now_ms();
        // With a clock set back to before the first key, the first one is still better than none.
        keys.iter().rposition(|key| key.active_from_ms <= now).or((!keys.is_empty()).then_some(0))
    }

    async fn load(&self) -> Result<Vec<Kept>, Error> {
        let rows: Vec<Row> = sqlx::query_as("SELECT seq, kid, sealed, active_from_ms FROM signing_keys ORDER BY seq")
            .fetch_all(self.store.pool())
            .await?;
        let known = self.keys.load();
        let open = |row: Row| {
            if let Some(kept) = known.iter().find(|kept| kept.key.kid() == row.kid) {
                return Ok(kept.clone());
            }
            let pkcs8 = self
                .seal
                .open(&context(row.seq, &row.kid), &row.sealed)
                .map_err(|source| Error::Sealed { seq: row.seq, source })?;
            let key = SigningKey::from_pkcs8(pkcs8.expose_secret()).map_err(|e| Error::Key(e.into()))?;
            Ok(Kept { seq: row.seq, key, active_from_ms: row.active_from_ms })
        };
        rows.into_iter().map(open).collect()
    }

    async fn make(&self, seq: i64, active_from_ms: i64) -> Result<(), Error> {
        let key = SigningKey::generate(&self.entropy).map_err(|e| Error::Key(e.into()))?;
        let sealed = self
            .seal
            .seal(&self.entropy, &context(seq, key.kid()), &key.to_pkcs8())
            .map_err(|_| Error::Key("sealing failed".into()))?;
        let made = sqlx::query(
            "INSERT INTO signing_keys (seq, kid, sealed, active_from_ms, created_at_ms) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (seq) DO NOTHING",
        )
        .bind(seq)
        .bind(key.kid())
        .bind(sealed)
        .bind(active_from_ms)
        .bind(self.clock.now_ms())
        .execute(self.store.pool())
        .await?;
        if made.rows_affected() == 1 {
            tracing::info!(kid = key.kid(), seq, from = clock::rfc3339(active_from_ms), "made a signing key");
        }
        Ok(())
    }

    async fn remove_old(&self, keys: &[Kept]) -> Result<(), Error> {
        let now = self.clock.now_ms();
        for (at, kept) in keys.iter().enumerate() {
            if published_until(keys, at).is_some_and(|end| end <= now) {
                sqlx::query("DELETE FROM signing_keys WHERE seq = $1")
                    .bind(kept.seq)
                    .execute(self.store.pool())
                    .await?;
                tracing::info!(kid = kept.key.kid(), seq = kept.seq, "removed a signing key that is over");
            }
        }
        Ok(())
    }
}

/// Removes every key, for whoever can open none of them; how many.
///
/// # Errors
/// Any database error.
pub(crate) async fn forget(store: &Store) -> Result<u64, sqlx::Error> {
    sqlx::query("DELETE FROM signing_keys").execute(store.pool()).await.map(|done| done.rows_affected())
}

/// What a sealed key is bound to, so that rows cannot be exchanged for one another.
fn context(seq: i64, kid: &str) -> String {
    format!("{seq} {kid}")
}

/// The end of publication of `keys[at]`: a day after the next one is in use. `None` while there is no next one.
fn published_until(keys: &[Kept], at: usize) -> Option<i64> {
    keys.get(at + 1).map(|next| next.active_from_ms + MARGIN_MS)
}
