//! One workspace's sign-ins in memory: looked up without waiting, and written down before a change counts.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Context;
use clock::{Clock, Entropy};
use futures_util::future::BoxFuture;
use http::StatusCode;
use service::Problem;
use token::{AssertionClaims, LEEWAY_S};
use tokio_util::sync::CancellationToken;

use crate::{
    book::{Book, HandOff, Refused},
    fingerprint,
};

/// Writes what is to be kept, in the place of what was written before.
type Keep = Box<dyn Fn(String) -> BoxFuture<'static, anyhow::Result<()>> + Send + Sync>;

/// A session that was valid when it was looked up.
#[derive(Clone)]
pub struct Session {
    fingerprint: String,
    of: Sessions,
    /// Cancelled as soon as the session is over, however it ended.
    pub over: CancellationToken,
}

impl Session {
    /// Keeps it alive, as being looked up again does: for what was asked once and goes on.
    pub fn is_used(&self) {
        self.of.touch(&self.fingerprint);
    }
}

/// The sessions of one workspace, and the hand-offs under way to it. Clones are the same ones.
///
/// A cookie's value is 32 random bytes, of which only the fingerprint is kept. What a change takes away is gone at once, even
/// when it could not be written; what it gives is given once it is.
#[derive(Clone)]
pub struct Sessions(Arc<Inner>);

struct Inner {
    clock: Clock,
    entropy: Entropy,
    keep: Keep,
    state: Mutex<State>,
    /// The version of the state that was written last; held by whoever writes.
    written: Arc<tokio::sync::Mutex<u64>>,
}

#[derive(Default)]
struct State {
    book: Book,
    /// Counts the changes.
    version: u64,
    /// For the sessions that were looked up: their end.
    over: HashMap<String, CancellationToken>,
}

impl Sessions {
    /// Goes on with what was `kept`, and has every change written by `keep`.
    pub fn new<F, Fut>(kept: Option<&str>, clock: Clock, entropy: Entropy, keep: F) -> Self
    where
        F: Fn(String) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let book = kept.map(serde_json::from_str).transpose().unwrap_or_else(|error| {
            tracing::warn!(%error, "the kept sign-ins are not readable; everybody signs in again");
            None
        });
        let state = State { book: book.unwrap_or_default(), ..State::default() };
        let keep: Keep = Box::new(move |text| Box::pin(keep(text)));
        Self(Arc::new(Inner { clock, entropy, keep, state: Mutex::new(state), written: Arc::default() }))
    }

    /// The session of this cookie's value, when it is valid; its use keeps it alive.
    pub fn find(&self, cookie: &str) -> Option<Session> {
        let fingerprint = fingerprint(cookie);
        let over = self.touch(&fingerprint)?;
        Some(Session { fingerprint, of: self.clone(), over })
    }

    /// Keeps the session of this fingerprint alive, when it is valid; its end.
    fn touch(&self, fingerprint: &str) -> Option<CancellationToken> {
        let now_ms = self.now_ms();
        let mut state = self.0.state();
        let touched = state.book.touch(fingerprint, now_ms)?;
        let over = state.over.entry(fingerprint.to_owned()).or_default().clone();
        if touched {
            state.version += 1;
            let this = self.clone();
            tokio::spawn(async move {
                if let Err(error) = this.written().await {
                    tracing::warn!(cause = format!("{error:#}"), "a session's use could not be written down");
                }
            });
        }
        Some(over)
    }

    /// Spends an assertion: the first caller with its `jti` wins, for as long as it could be valid.
    ///
    /// # Errors
    /// 401 `assertion_spent` for everybody after the first; 503 when it could not be written down.
    pub async fn spend(&self, claims: &AssertionClaims) -> Result<(), Problem> {
        let first = self.change(|book, _| book.spend(&claims.jti, spent_until_ms(claims))).await;
        if first.map_err(Problem::unavailable)? { Ok(()) } else { Err(refusal(Refused::Spent)) }
    }

    /// Spends an assertion and gives a code for what it asserts.
    pub(crate) async fn begin(&self, claims: &AssertionClaims, hand_off: HandOff) -> Result<String, Problem> {
        let code = self.0.entropy.token();
        let spent = (&*claims.jti, spent_until_ms(claims));
        let begun = self.change(|book, now_ms| book.begin(spent, fingerprint(&code), hand_off, now_ms)).await;
        begun.map_err(Problem::unavailable)?.map_err(refusal)?;
        Ok(code)
    }

    /// Exchanges a code for a session, and gives its cookie's value. A second use ends what came of the first.
    pub(crate) async fn finish(
        &self,
        code: &str,
        bind_cookie: Option<&str>,
    ) -> anyhow::Result<Option<(String, HandOff)>> {
        let cookie = self.0.entropy.token();
        let finish = |book: &mut Book, now_ms| book.finish(code, bind_cookie, fingerprint(&cookie), now_ms);
        let hand_off = self.change(finish).await?;
        Ok(hand_off.map(|hand_off| (cookie, hand_off)))
    }

    /// Ends one session.
    ///
    /// # Errors
    /// When it could not be written down; it has ended all the same.
    pub async fn end(&self, session: &Session) -> anyhow::Result<()> {
        self.change(|book, _| book.end(&session.fingerprint)).await
    }

    /// Ends what was begun under a portal session, and whatever may still arrive from it.
    ///
    /// # Errors
    /// As [`Sessions::end`].
    pub async fn end_by_sid(&self, sid: &str) -> anyhow::Result<()> {
        self.change(|book, now_ms| book.end_by_sid(sid, now_ms)).await
    }

    /// Ends everything that the portal asserted no later than `at_ms`, and refuses what of it is still on its way.
    ///
    /// # Errors
    /// As [`Sessions::end`].
    pub async fn end_all(&self, at_ms: i64) -> anyhow::Result<()> {
        self.change(|book, _| book.end_all(at_ms)).await
    }

    /// Removes what is over.
    ///
    /// # Errors
    /// When it could not be written down.
    pub async fn sweep(&self) -> anyhow::Result<()> {
        self.change(Book::sweep).await
    }

    /// Ends all there is, for a workspace that is gone: nothing is written any more.
    pub fn forget(&self) {
        self.0.change(|book| *book = Book::default());
    }

    pub(crate) fn now_ms(&self) -> i64 {
        self.0.clock.now_ms()
    }

    pub(crate) fn secret(&self) -> String {
        self.0.entropy.token()
    }

    async fn change<T>(&self, change: impl FnOnce(&mut Book, i64) -> T) -> anyhow::Result<T> {
        let now_ms = self.now_ms();
        let outcome = self.0.change(|book| change(book, now_ms));
        // Also when this changed nothing: what was to be written before may not have been.
        self.written().await?;
        Ok(outcome)
    }

    /// Waits until everything up to now is written.
    async fn written(&self) -> anyhow::Result<()> {
        let wanted = self.0.state().version;
        let mut written = Arc::clone(&self.0.written).lock_owned().await;
        if *written >= wanted {
            return Ok(());
        }
        // A task of its own: a caller that hangs up leaves no write behind that a later one could overtake.
        let inner = Arc::clone(&self.0);
        let writing = tokio::spawn(async move {
            let (text, version) = {
                let state = inner.state();
                (serde_json::to_string(&state.book)?, state.version)
            };
            (inner.keep)(text).await?;
            *written = version;
            anyhow::Ok(())
        });
        writing.await?.context("the sign-ins could not be written down")
    }
}

impl Inner {
    fn change<T>(&self, change: impl FnOnce(&mut Book) -> T) -> T {
        let mut state = self.state();
        let State { book, version, over } = &mut *state;
        let before = book.clone();
        let outcome = change(book);
        if *book != before {
            *version += 1;
            over.retain(|session, over| {
                let there = book.has(session);
                if !there {
                    over.cancel();
                }
                there
            });
        }
        outcome
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Until when an assertion might be shown again, by clocks that differ as much as is allowed.
fn spent_until_ms(claims: &AssertionClaims) -> i64 {
    claims.exp.saturating_add(2 * LEEWAY_S).saturating_mul(1000)
}

fn refusal(refused: Refused) -> Problem {
    let (code, detail) = match refused {
        Refused::Spent => ("assertion_spent", "This assertion has been used already."),
        Refused::Ended => ("session_ended", "That portal session has ended."),
    };
    Problem::new(StatusCode::UNAUTHORIZED, code, detail)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// Somewhere to keep things that fails when it is told to.
    #[derive(Clone, Default)]
    struct Paper {
        text: Arc<Mutex<Option<String>>>,
        full: Arc<AtomicBool>,
    }

    impl Paper {
        fn sessions(&self) -> Sessions {
            let paper = self.clone();
            let kept = self.text.lock().unwrap().clone();
            Sessions::new(kept.as_deref(), Clock::manual(0).0, Entropy::seeded(1), move |text| {
                let paper = paper.clone();
                async move {
                    anyhow::ensure!(!paper.full.load(Ordering::SeqCst), "no room");
                    *paper.text.lock().unwrap() = Some(text);
                    Ok(())
                }
            })
        }
    }

    fn claims(jti: &str) -> AssertionClaims {
        token::Claims {
            iss: String::new(),
            sub: String::new(),
            aud: String::new(),
            iat: 0,
            exp: 60,
            jti: jti.into(),
            extra: token::Assertion { sid: None, purpose: token::Purpose::Login, bind: None, at_ms: None },
        }
    }

    async fn sign_in(sessions: &Sessions, sid: &str) -> String {
        let hand_off =
            HandOff { sid: sid.into(), asserted_at_ms: 0, bind: fingerprint("bind"), rd: "/".into(), edge: None };
        let code = sessions.begin(&claims(sid), hand_off).await.unwrap();
        sessions.finish(&code, Some("bind")).await.unwrap().unwrap().0
    }

    #[tokio::test]
    async fn a_session_outlives_the_program_and_its_end_is_told_at_once() {
        let paper = Paper::default();
        let cookie = sign_in(&paper.sessions(), "sid-1").await;
        let again = paper.sessions();
        let session = again.find(&cookie).expect("it was kept");
        assert!(!paper.text.lock().unwrap().as_ref().unwrap().contains(&cookie), "its fingerprint alone");
        again.end_by_sid("sid-2").await.unwrap();
        assert!(!session.over.is_cancelled());
        again.end_by_sid("sid-1").await.unwrap();
        assert!(session.over.is_cancelled() && again.find(&cookie).is_none());
        assert!(paper.sessions().find(&cookie).is_none());
    }

    #[tokio::test]
    async fn what_cannot_be_written_gives_nothing_and_ends_all_the_same() {
        let paper = Paper::default();
        let sessions = paper.sessions();
        let cookie = sign_in(&sessions, "sid-1").await;
        paper.full.store(true, Ordering::SeqCst);
        assert!(sessions.spend(&claims("x")).await.is_err());
        assert!(sessions.end_by_sid("sid-1").await.is_err(), "who asked asks again");
        assert!(sessions.find(&cookie).is_none());
        assert!(sessions.end_by_sid("sid-1").await.is_err(), "and is not told that it is done before it is");
        paper.full.store(false, Ordering::SeqCst);
        sessions.end_by_sid("sid-1").await.unwrap();
        let again = paper.sessions();
        assert!(again.find(&cookie).is_none());
        assert!(again.spend(&claims("x")).await.is_err(), "it was spent, though nothing was given for it");
    }

    #[tokio::test]
    async fn what_is_kept_and_makes_no_sense_is_nothing() {
        let paper = Paper::default();
        *paper.text.lock().unwrap() = Some("{".into());
        sign_in(&paper.sessions(), "sid-1").await;
    }
}
