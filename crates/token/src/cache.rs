//! An issuer's public keys, fetched when needed and kept when the issuer is out.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::Duration;

use clock::Clock;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::{BoxError, Claims, Error, Expected, KeySet, Kind, verify};

/// How long a set is used without asking again.
const MAX_AGE_MS: i64 = 300_000;
/// How long the last good set is used when the issuer does not answer.
const MAX_STALE_MS: i64 = 24 * 60 * 60 * 1000;
/// How often a token with an unknown `kid` may cause a fetch: anybody can send one.
const UNKNOWN_KID_INTERVAL_MS: i64 = 60_000;
/// How long after a failed fetch the next one is tried, so that an issuer that is out does not slow every request down.
const RETRY_INTERVAL_MS: i64 = 5_000;
/// How long one fetch may take. Real time, since it bounds real waiting.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

type Fetch = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Result<KeySet, BoxError>> + Send>> + Send + Sync>;

/// Verifies tokens offline with an issuer's keys, which it fetches and caches. Clones share one cache.
///
/// - A set is used for 300 s, then fetched again; one fetch is under way at a time, and whoever has an older set at hand
///   goes on with that meanwhile.
/// - A `kid` that is not in the set causes a fetch at most once a minute.
/// - When the issuer does not answer, the last good set serves for 24 h after it was fetched.
/// - An answer without any usable key counts as a failure: it would lock everybody out.
#[derive(Clone)]
pub struct JwksCache {
    inner: Arc<Inner>,
    /// Held by the one that fetches.
    fetching: Arc<Mutex<()>>,
}

struct Inner {
    clock: Clock,
    fetch: Fetch,
    state: StdMutex<State>,
}

#[derive(Default)]
struct State {
    kept: Option<Kept>,
    /// When a fetch last failed, if none has succeeded since.
    failed_at_ms: Option<i64>,
    /// When an unknown `kid` last caused a fetch.
    unknown_kid_at_ms: Option<i64>,
}

#[derive(Clone)]
struct Kept {
    keys: Arc<KeySet>,
    fetched_at_ms: i64,
}

/// A key set and when it was fetched, in a form that can be kept on disk over a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The keys.
    pub keys: KeySet,
    /// When they were fetched from the issuer, in Unix milliseconds.
    pub fetched_at_ms: i64,
}

impl JwksCache {
    /// A cache that gets the issuer's key set from `fetch`, when it first needs it.
    pub fn new<F, Fut, E>(clock: Clock, fetch: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<KeySet, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let fetch: Fetch = Box::new(move || {
            let answer = fetch();
            Box::pin(async move { answer.await.map_err(Into::into) })
        });
        Self { inner: Arc::new(Inner { clock, fetch, state: StdMutex::default() }), fetching: Arc::default() }
    }

    /// Verifies a token as [`verify`](crate::verify()) does, with the issuer's keys and the time of the cache's clock.
    ///
    /// # Errors
    ///
    /// As [`verify`](crate::verify()), and [`Error::KeysUnavailable`] (an answer of 503, not 401) when the issuer does not
    /// answer and no set is kept that is young enough.
    pub async fn verify<T: DeserializeOwned>(
        &self,
        kind: Kind,
        token: &str,
        issuer: &str,
        audience: &str,
    ) -> Result<Claims<T>, Error> {
        let (kept, just_fetched) = self.keys().await?;
        match self.verify_with(kind, token, issuer, audience, &kept.keys) {
            Err(Error::UnknownKid) if !just_fetched => match self.after_unknown_kid(&kept.keys).await {
                Some(keys) => self.verify_with(kind, token, issuer, audience, &keys),
                None => Err(Error::UnknownKid),
            },
            outcome => outcome,
        }
    }

    /// Starts from a set that was kept on disk. It serves only while the issuer does not answer, for 24 h after it was
    /// fetched; a set that is fetched goes before it.
    pub fn preload(&self, snapshot: Snapshot) {
        let now = self.inner.clock.now_ms();
        let mut state = self.inner.state();
        if state.kept.is_none() && !snapshot.keys.is_empty() {
            // Whatever its age, it is due to be fetched again; and a time in the future would keep it for ever.
            let fetched_at_ms = snapshot.fetched_at_ms.min(now - MAX_AGE_MS);
            state.kept = Some(Kept { keys: Arc::new(snapshot.keys), fetched_at_ms });
        }
    }

    /// The set that is kept, to be put on disk; nothing when none was ever fetched.
    pub fn current(&self) -> Option<Snapshot> {
        let kept = self.inner.state().kept.clone()?;
        Some(Snapshot { keys: KeySet::clone(&kept.keys), fetched_at_ms: kept.fetched_at_ms })
    }

    fn verify_with<T: DeserializeOwned>(
        &self,
        kind: Kind,
        token: &str,
        issuer: &str,
        audience: &str,
        keys: &KeySet,
    ) -> Result<Claims<T>, Error> {
        verify(kind, token, &Expected { issuer, audience, now_s: self.inner.clock.now_s() }, keys)
    }

    /// The keys to verify with, and whether this very call has already tried to fetch newer ones.
    async fn keys(&self) -> Result<(Kept, bool), Error> {
        if let Some(fresh) = self.inner.fresh() {
            return Ok((fresh, false));
        }
        // Whoever still has a usable set does not wait for somebody else's fetch.
        let turn = match self.inner.usable() {
            Some(stale) => match Arc::clone(&self.fetching).try_lock_owned() {
                Ok(turn) => turn,
                Err(_) => return Ok((stale, false)),
            },
            None => Arc::clone(&self.fetching).lock_owned().await,
        };
        if let Some(fresh) = self.inner.fresh() {
            return Ok((fresh, true));
        }
        let failure: BoxError = if self.inner.may_retry() {
            match self.fetch(turn).await {
                Ok(kept) => return Ok((kept, true)),
                Err(error) => error,
            }
        } else {
            "the last attempt failed moments ago".into()
        };
        self.inner.usable().map(|stale| (stale, true)).ok_or(Error::KeysUnavailable(failure))
    }

    /// The keys after a fetch that an unknown `kid` caused; nothing when none was due, or it failed.
    async fn after_unknown_kid(&self, seen: &Arc<KeySet>) -> Option<Arc<KeySet>> {
        let turn = Arc::clone(&self.fetching).lock_owned().await;
        let now = self.inner.clock.now_ms();
        {
            let mut state = self.inner.state();
            // Somebody else fetched while this call waited for its turn.
            if let Some(kept) = state.kept.as_ref().filter(|kept| !Arc::ptr_eq(&kept.keys, seen)) {
                return Some(Arc::clone(&kept.keys));
            }
            if state.unknown_kid_at_ms.is_some_and(|last| within(now, last, UNKNOWN_KID_INTERVAL_MS)) {
                return None;
            }
            state.unknown_kid_at_ms = Some(now);
        }
        self.fetch(turn).await.ok().map(|kept| kept.keys)
    }

    /// Fetches in a task of its own: a caller that hangs up half-way must neither waste the minute's one fetch nor leave
    /// the others without it.
    async fn fetch(&self, turn: OwnedMutexGuard<()>) -> Result<Kept, BoxError> {
        let inner = Arc::clone(&self.inner);
        let task = tokio::spawn(async move {
            let outcome = inner.fetch_and_keep().await;
            drop(turn);
            outcome
        });
        task.await?
    }
}

impl Inner {
    async fn fetch_and_keep(&self) -> Result<Kept, BoxError> {
        let answer = match tokio::time::timeout(FETCH_TIMEOUT, (self.fetch)()).await {
            Ok(Ok(keys)) if keys.is_empty() => Err("the key set has no key that can be used".into()),
            Ok(answer) => answer,
            Err(elapsed) => Err(elapsed.into()),
        };
        let now = self.clock.now_ms();
        let mut state = self.state();
        match answer {
            Ok(keys) => {
                let kept = Kept { keys: Arc::new(keys), fetched_at_ms: now };
                state.kept = Some(kept.clone());
                state.failed_at_ms = None;
                Ok(kept)
            }
            Err(error) => {
                state.failed_at_ms = Some(now);
                Err(error)
            }
        }
    }

    /// The kept set, if it needs no fetch.
    fn fresh(&self) -> Option<Kept> {
        let now = self.clock.now_ms();
        self.state().kept.clone().filter(|kept| within(now, kept.fetched_at_ms, MAX_AGE_MS))
    }

    /// The kept set, if it may serve while there is no newer one. A clock that was set back makes no difference here.
    fn usable(&self) -> Option<Kept> {
        let now = self.clock.now_ms();
        self.state().kept.clone().filter(|kept| now.abs_diff(kept.fetched_at_ms) < MAX_STALE_MS.unsigned_abs())
    }

    fn may_retry(&self) -> bool {
        let now = self.clock.now_ms();
        !self.state().failed_at_ms.is_some_and(|last| within(now, last, RETRY_INTERVAL_MS))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held, and if it did the state would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether `then` is less than `limit_ms` ago. A moment in the future, which a corrected clock leaves behind, is not.
fn within(now_ms: i64, then_ms: i64, limit_ms: i64) -> bool {
    (0..limit_ms).contains(&now_ms.saturating_sub(then_ms))
}

impl fmt::Debug for JwksCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwksCache").field("clock", &self.inner.clock).finish_non_exhaustive()
    }
}
