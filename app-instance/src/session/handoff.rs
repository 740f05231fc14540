//! The hand-off from the portal: an assertion becomes a one-time code, and the code, in the browser that began it, a session.

use clock::{Clock, Entropy};
use http::StatusCode;
use service::Problem;
use store::Store;
use token::Purpose;

use super::{Sessions, fingerprint};
use crate::identity::Assertions;

/// How long a code lasts.
const CODE_MS: i64 = 30_000;
/// How long a used code is remembered, so that its second use can be told from a code that never was.
const USED_MS: i64 = 24 * 60 * 60 * 1000;
/// The longest edge token that is made a cookie: a browser keeps 4096 bytes, name and attributes included.
const MAX_EDGE_TOKEN: usize = 3500;

/// The hand-offs under way.
#[derive(Clone)]
pub struct HandOffs {
    store: Store,
    assertions: Assertions,
    sessions: Sessions,
    clock: Clock,
    entropy: Entropy,
}

/// What a code was exchanged for.
#[derive(Debug)]
pub struct Entered {
    /// The session cookie's value.
    pub session: String,
    /// The edge token, and when it ends in Unix milliseconds.
    pub edge: Option<(String, i64)>,
    /// Where to go.
    pub rd: String,
}

/// The hand-off of a code that is taken.
#[derive(sqlx::FromRow)]
struct Taken {
    sid: String,
    rd: String,
    edge_token: Option<String>,
    edge_until_ms: Option<i64>,
    asserted_at_ms: i64,
}

/// Why a code was not taken.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// Unknown, expired, used, or another browser's.
    #[error("the code is not valid in this browser, or not any more")]
    Invalid,
    /// The database failed.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

impl HandOffs {
    /// Hand-offs that end in `sessions`.
    pub fn new(store: Store, assertions: Assertions, sessions: Sessions, clock: Clock, entropy: Entropy) -> Self {
        Self { store, assertions, sessions, clock, entropy }
    }

    /// Takes a login assertion, once, and gives a code for the browser whose bind is in it. `rd` has been checked.
    ///
    /// # Errors
    /// As [`Assertions::verify`] and [`Assertions::spend`]; 400 without `bind` or `sid`; 401 when that portal session
    /// has ended.
    pub async fn begin(&self, assertion: &str, edge_token: Option<&str>, rd: &str) -> Result<String, Problem> {
        let claims = self.assertions.verify(Purpose::Login, assertion).await?;
        let missing = |what| Problem::bad_request(format!("The assertion has no {what}."));
        let bind = claims.extra.bind.as_deref().filter(|b| !b.is_empty()).ok_or_else(|| missing("bind"))?;
        let sid = claims.extra.sid.as_deref().filter(|s| !s.is_empty()).ok_or_else(|| missing("sid"))?;
        let edge = self.edge(edge_token).await;

        let (code, now_ms) = (self.entropy.token(), self.clock.now_ms());
        let mut transaction = self.store.begin().await.map_err(Problem::unavailable)?;
        self.assertions.spend(&mut transaction, &claims).await?;
        if self.sessions.has_ended(&mut transaction, sid, claims.at_ms()).await.map_err(Problem::unavailable)? {
            return Err(Problem::new(StatusCode::UNAUTHORIZED, "session_ended", "That portal session has ended."));
        }
        let (edge_token, edge_until_ms) = edge.unzip();
        sqlx::query(
            "INSERT INTO hand_offs (code_hash, bind, sid, rd, edge_token, edge_until_ms, expires_at_ms, asserted_at_ms) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(fingerprint(&code))
        .bind(bind)
        .bind(sid)
        .bind(rd)
        .bind(edge_token)
        .bind(edge_until_ms)
        .bind(now_ms + CODE_MS)
        .bind(claims.at_ms())
        .execute(&mut *transaction)
        .await
        .map_err(Problem::unavailable)?;
        transaction.commit().await.map_err(Problem::unavailable)?;
        Ok(code)
    }

    /// Exchanges a code for a session, in the browser whose bind cookie this is. A second use ends what came of the first.
    ///
    /// # Errors
    /// Each [`EnterError`].
    pub async fn finish(&self, code: &str, bind_cookie: Option<&str>) -> Result<Entered, EnterError> {
        let (code_hash, now_ms) = (fingerprint(code), self.clock.now_ms());
        // Anybody may try codes: what never was one is not worth the database's one writer.
        let known: Option<i64> = sqlx::query_scalar("SELECT expires_at_ms FROM hand_offs WHERE code_hash = $1")
            .bind(&code_hash)
            .fetch_optional(self.store.pool())
            .await?;
        if known.is_none() {
            return Err(EnterError::Invalid);
        }
        let mut transaction = self.store.begin().await?;
        if let Some(bind_cookie) = bind_cookie {
            let taken: Option<Taken> = sqlx::query_as(
                "UPDATE hand_offs SET used_at_ms = $1 \
                 WHERE code_hash = $2 AND bind = $3 AND used_at_ms IS NULL AND expires_at_ms > $1 \
                 RETURNING sid, rd, edge_token, edge_until_ms, asserted_at_ms",
            )
            .bind(now_ms)
            .bind(&code_hash)
            .bind(fingerprint(bind_cookie))
            .fetch_optional(&mut *transaction)
            .await?;
            if let Some(Taken { sid, rd, edge_token, edge_until_ms, asserted_at_ms }) = taken {
                sqlx::query("UPDATE hand_offs SET edge_token = NULL WHERE code_hash = $1")
                    .bind(&code_hash)
                    .execute(&mut *transaction)
                    .await?;
                let session = self.sessions.begin(&mut transaction, &sid, &code_hash, asserted_at_ms).await?;
                transaction.commit().await?;
                return Ok(Entered { session, edge: edge_token.zip(edge_until_ms), rd });
            }
        }
        let revoked = sqlx::query(
            "DELETE FROM sessions WHERE code_hash = $1 \
             AND EXISTS (SELECT 1 FROM hand_offs WHERE code_hash = $1 AND used_at_ms IS NOT NULL)",
        )
        .bind(&code_hash)
        .execute(&mut *transaction)
        .await?
        .rows_affected();
        transaction.commit().await?;
        if revoked > 0 {
            tracing::warn!("a sign-in code came twice; what came of its first use has ended");
        }
        Err(EnterError::Invalid)
    }

    /// Removes codes that are over.
    ///
    /// # Errors
    /// Any database error.
    pub async fn sweep(&self) -> Result<(), sqlx::Error> {
        let now_ms = self.clock.now_ms();
        sqlx::query("DELETE FROM hand_offs WHERE (used_at_ms IS NULL AND expires_at_ms < $1) OR used_at_ms < $2")
            .bind(now_ms)
            .bind(now_ms - USED_MS)
            .execute(self.store.pool())
            .await
            .map(drop)
    }

    /// The edge token when it is good for a cookie. Signing in works without it.
    async fn edge(&self, edge_token: Option<&str>) -> Option<(String, i64)> {
        let token = edge_token?;
        let shape = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if token.len() <= MAX_EDGE_TOKEN
            && token.bytes().all(shape)
            && let Some(until_ms) = self.assertions.edge_until_ms(token).await
        {
            return Some((token.to_owned(), until_ms));
        }
        tracing::warn!("the portal's edge token is not valid here and was left out");
        None
    }
}
