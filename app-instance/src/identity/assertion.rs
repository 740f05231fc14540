//! authz's assertions: verified offline, about the owner alone, for one purpose, and spent once where that counts.

use clock::Clock;
use contracts::AccountId;
use http::StatusCode;
use service::Problem;
use store::Store;
use token::{Assertion, AssertionClaims, Claims, Edge, Error, JwksCache, KeySet, Kind, LEEWAY_S, Purpose};

use super::Door;
use crate::kept;

/// Verifies assertions for this instance.
#[derive(Clone)]
pub struct Assertions {
    issuer: String,
    origin: String,
    owner: AccountId,
    keys: JwksCache,
    store: Store,
    clock: Clock,
}

impl Assertions {
    /// For the instance at `origin`, whose owner and issuer are these. The keys last fetched serve while authz is out.
    ///
    /// # Errors
    /// Any database error.
    pub async fn new(
        issuer: String,
        origin: String,
        owner: AccountId,
        door: Door,
        store: Store,
        clock: Clock,
    ) -> Result<Self, sqlx::Error> {
        let keys = JwksCache::new(clock.clone(), move || {
            let door = door.clone();
            async move { door.call::<KeySet>(|client, base| client.get(format!("{base}/.well-known/jwks.json"))).await }
        });
        let text = kept::get(store.pool(), kept::ISSUER_KEYS).await?;
        if let Some(snapshot) = text.and_then(|text| serde_json::from_str(&text).ok()) {
            keys.preload(snapshot);
        }
        Ok(Self { issuer, origin, owner, keys, store, clock })
    }

    /// The claims of an assertion about the owner for this purpose.
    ///
    /// # Errors
    /// 400 when it is too long, 401 when it proves nothing or is for something else, 403 when it is about somebody else,
    /// 503 when authz's keys cannot be had.
    pub async fn verify(&self, purpose: Purpose, assertion: &str) -> Result<AssertionClaims, Problem> {
        let claims: Claims<Assertion> =
            self.keys.verify(Kind::Assertion, assertion, &self.issuer, &self.origin).await.map_err(refusal)?;
        self.keep_keys().await;
        if claims.extra.purpose != purpose {
            return Err(Problem::new(
                StatusCode::UNAUTHORIZED,
                "assertion_purpose",
                "This assertion was made for something else.",
            ));
        }
        if claims.sub != self.owner.to_string() {
            return Err(Problem::new(
                StatusCode::FORBIDDEN,
                "not_the_owner",
                "This workspace belongs to somebody else.",
            ));
        }
        Ok(claims)
    }

    /// When this edge token ends, in Unix milliseconds; `None` when it is none of the owner's.
    pub async fn edge_until_ms(&self, edge_token: &str) -> Option<i64> {
        let claims: Claims<Edge> = self.keys.verify(Kind::Edge, edge_token, &self.issuer, &self.origin).await.ok()?;
        (claims.sub == self.owner.to_string()).then(|| claims.exp.saturating_mul(1000))
    }

    /// Spends the assertion: the first caller with its `jti` wins, for as long as it could be valid.
    ///
    /// # Errors
    /// 401 `assertion_spent` for everybody after the first; 503 when the database does not answer.
    pub async fn spend(&self, transaction: &mut store::Transaction, claims: &AssertionClaims) -> Result<(), Problem> {
        let until_ms = claims.exp.saturating_add(2 * LEEWAY_S).saturating_mul(1000);
        let first = sqlx::query(
            "INSERT INTO spent_assertions (jti, expires_at_ms) VALUES ($1, $2) ON CONFLICT (jti) DO NOTHING",
        )
        .bind(&claims.jti)
        .bind(until_ms)
        .execute(&mut **transaction)
        .await
        .map_err(Problem::unavailable)?
        .rows_affected();
        if first == 1 {
            return Ok(());
        }
        Err(Problem::new(StatusCode::UNAUTHORIZED, "assertion_spent", "This assertion has been used already."))
    }

    /// Forgets spent assertions that have expired.
    ///
    /// # Errors
    /// Any database error.
    pub async fn sweep(&self) -> Result<(), sqlx::Error> {
        sqlx::query("DELETE FROM spent_assertions WHERE expires_at_ms < $1")
            .bind(self.clock.now_ms())
            .execute(self.store.pool())
            .await
            .map(drop)
    }

    /// Puts a newly fetched key set into the database, so that a restart while authz is out locks nobody out.
    async fn keep_keys(&self) {
        let Some(snapshot) = self.keys.current() else { return };
        let Ok(text) = serde_json::to_string(&snapshot) else { return };
        let attempt = async {
            if kept::get(self.store.pool(), kept::ISSUER_KEYS).await?.as_deref() != Some(&text) {
                kept::set(self.store.pool(), kept::ISSUER_KEYS, &text).await?;
            }
            Ok::<_, sqlx::Error>(())
        };
        if let Err(error) = attempt.await {
            tracing::warn!(%error, "the issuer's keys could not be kept");
        }
    }
}

fn refusal(error: Error) -> Problem {
    match error {
        Error::TooLarge => Problem::bad_request("The assertion is longer than 8 KB."),
        Error::KeysUnavailable(cause) => Problem::unavailable(anyhow::Error::from_boxed(cause)),
        other => Problem::new(
            StatusCode::UNAUTHORIZED,
            "assertion_invalid",
            "The assertion is not valid here, or not any more.",
        )
        .cause(other),
    }
}
