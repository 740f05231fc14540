//! Sessions of the owner's browsers: 32 random bytes in a cookie, SHA-256 at rest, 12 h idle, 7 days in all.

use clock::{Clock, Entropy};
use store::Store;

use super::fingerprint;
use crate::kept;

/// How long a session lasts in all.
pub const ABSOLUTE_MS: i64 = 7 * 24 * 60 * 60 * 1000;
/// How long it lasts unused.
const IDLE_MS: i64 = 12 * 60 * 60 * 1000;
/// How often its use is written down: not at every request.
const TOUCH_MS: i64 = 60_000;
/// How long a portal session that ended is remembered: longer than any assertion and code made under it can live.
const ENDED_MS: i64 = 10 * 60 * 1000;

/// A session that is valid now.
#[derive(Debug, Clone)]
pub struct Session {
    token_hash: String,
}

/// The sessions of this workspace.
#[derive(Debug, Clone)]
pub struct Sessions {
    store: Store,
    clock: Clock,
    entropy: Entropy,
}

impl Sessions {
    /// The sessions in this database.
    pub fn new(store: Store, clock: Clock, entropy: Entropy) -> Self {
        Self { store, clock, entropy }
    }

    /// Begins a session under a portal session and a hand-off that the portal asserted at `asserted_at_ms`; the cookie's value.
    ///
    /// # Errors
    /// Any database error.
    pub async fn begin(
        &self,
        transaction: &mut store::Transaction,
        sid: &str,
        code_hash: &str,
        asserted_at_ms: i64,
    ) -> Result<String, sqlx::Error> {
        let (token, now_ms) = (self.entropy.token(), self.clock.now_ms());
        sqlx::query(
            "INSERT INTO sessions (token_hash, sid, code_hash, seen_at_ms, expires_at_ms, asserted_at_ms) \
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(fingerprint(&token))
        .bind(sid)
        .bind(code_hash)
        .bind(now_ms)
        .bind(now_ms + ABSOLUTE_MS)
        .bind(asserted_at_ms)
        .execute(&mut **transaction)
        .await?;
        Ok(token)
    }

    /// The session of this cookie's value, when it is valid; its use keeps it alive.
    ///
    /// # Errors
    /// Any database error.
    pub async fn find(&self, token: &str) -> Result<Option<Session>, sqlx::Error> {
        let (token_hash, now_ms) = (fingerprint(token), self.clock.now_ms());
        let seen_at_ms: Option<i64> = sqlx::query_scalar(
            "SELECT seen_at_ms FROM sessions WHERE token_hash = $1 AND expires_at_ms > $2 AND seen_at_ms > $3",
        )
        .bind(&token_hash)
        .bind(now_ms)
        .bind(now_ms - IDLE_MS)
        .fetch_optional(self.store.pool())
        .await?;
        let Some(seen_at_ms) = seen_at_ms else { return Ok(None) };
        if now_ms - seen_at_ms > TOUCH_MS {
            sqlx::query("UPDATE sessions SET seen_at_ms = $1 WHERE token_hash = $2")
                .bind(now_ms)
                .bind(&token_hash)
                .execute(self.store.pool())
                .await?;
        }
        Ok(Some(Session { token_hash }))
    }

    /// Ends one session.
    ///
    /// # Errors
    /// Any database error.
    pub async fn end(&self, session: &Session) -> Result<(), sqlx::Error> {
        sqlx::query("DELETE FROM sessions WHERE token_hash = $1")
            .bind(&session.token_hash)
            .execute(self.store.pool())
            .await
            .map(drop)
    }

    /// Ends what was begun under a portal session, and whatever may still arrive from it.
    ///
    /// # Errors
    /// Any database error; then nothing has ended.
    pub async fn end_by_sid(&self, sid: &str) -> Result<(), sqlx::Error> {
        let mut transaction = self.store.begin().await?;
        for sql in
            ["DELETE FROM sessions WHERE sid = $1", "DELETE FROM hand_offs WHERE sid = $1 AND used_at_ms IS NULL"]
        {
            sqlx::query(sql).bind(sid).execute(&mut *transaction).await?;
        }
        sqlx::query("INSERT INTO ended_sids (sid, expires_at_ms) VALUES ($1, $2) ON CONFLICT (sid) DO NOTHING")
            .bind(sid)
            .bind(self.clock.now_ms() + ENDED_MS)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await
    }

    /// Ends every session and every hand-off that the portal asserted no later than `at_ms`, and refuses those it asserted before
    /// and that are still on their way.
    ///
    /// # Errors
    /// Any database error; then nothing has ended.
    pub async fn end_all(&self, at_ms: i64) -> Result<(), sqlx::Error> {
        let mut transaction = self.store.begin().await?;
        for sql in [
            "DELETE FROM sessions WHERE asserted_at_ms <= $1",
            "DELETE FROM hand_offs WHERE asserted_at_ms <= $1 AND used_at_ms IS NULL",
        ] {
            sqlx::query(sql).bind(at_ms).execute(&mut *transaction).await?;
        }
        // Two that overtake one another: the later moment stays.
        let before = ended_before_ms(&mut transaction).await?;
        kept::set(&mut *transaction, kept::ENDED_BEFORE, &before.max(at_ms).to_string()).await?;
        transaction.commit().await
    }

    /// Whether this portal session has ended, or all had to since the portal asserted it at `asserted_at_ms`.
    ///
    /// # Errors
    /// Any database error.
    pub async fn has_ended(
        &self,
        transaction: &mut store::Transaction,
        sid: &str,
        asserted_at_ms: i64,
    ) -> Result<bool, sqlx::Error> {
        if asserted_at_ms < ended_before_ms(transaction).await? {
            return Ok(true);
        }
        let found: Option<i64> = sqlx::query_scalar("SELECT expires_at_ms FROM ended_sids WHERE sid = $1")
            .bind(sid)
            .fetch_optional(&mut **transaction)
            .await?;
        Ok(found.is_some())
    }

    /// Removes what has expired.
    ///
    /// # Errors
    /// Any database error.
    pub async fn sweep(&self) -> Result<(), sqlx::Error> {
        let now_ms = self.clock.now_ms();
        sqlx::query("DELETE FROM sessions WHERE expires_at_ms <= $1 OR seen_at_ms <= $2")
            .bind(now_ms)
            .bind(now_ms - IDLE_MS)
            .execute(self.store.pool())
            .await?;
        sqlx::query("DELETE FROM ended_sids WHERE expires_at_ms < $1")
            .bind(now_ms)
            .execute(self.store.pool())
            .await
            .map(drop)
    }
}

/// Up to when everything had to end, in Unix milliseconds by the portal's clock; 0 when it never had to.
async fn ended_before_ms(transaction: &mut store::Transaction) -> Result<i64, sqlx::Error> {
    let text = kept::get(&mut **transaction, kept::ENDED_BEFORE).await?;
    Ok(text.and_then(|text| text.parse().ok()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: i64 = 60 * 60 * 1000;

    #[tokio::test]
    async fn a_session_ends_unused_after_twelve_hours_and_used_after_seven_days() {
        let store = store::testing::sqlite(&crate::MIGRATOR).await;
        let (clock, hand) = Clock::manual(0);
        let sessions = Sessions::new(store.clone(), clock, Entropy::seeded(1));
        let begin = async || {
            let mut transaction = store.begin().await.unwrap();
            let token = sessions.begin(&mut transaction, "sid", "code", 0).await.unwrap();
            transaction.commit().await.unwrap();
            token
        };
        let idle = begin().await;
        hand.advance_ms(12 * HOUR_MS);
        assert!(sessions.find(&idle).await.unwrap().is_none());
        let used = begin().await;
        for _ in 0..16 {
            hand.advance_ms(10 * HOUR_MS);
            assert!(sessions.find(&used).await.unwrap().is_some());
        }
        hand.advance_ms(8 * HOUR_MS);
        assert!(sessions.find(&used).await.unwrap().is_none());
        sessions.sweep().await.unwrap();
        let left: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM sessions").fetch_one(store.pool()).await.unwrap();
        assert_eq!(left, 0);
    }
}
