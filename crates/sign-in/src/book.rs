//! What is known of one workspace's sign-ins, and the rules for it. No randomness, input or output is in here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::fingerprint;

/// How long a session lasts in all.
pub const ABSOLUTE_MS: i64 = 7 * 24 * 60 * 60 * 1000;
/// How long it lasts unused.
const IDLE_MS: i64 = 12 * 60 * 60 * 1000;
/// How often its use is written down: not at every request.
const TOUCH_MS: i64 = 60_000;
/// How long a code lasts.
const CODE_MS: i64 = 30_000;
/// How long a portal session that ended is remembered: longer than any assertion and code made under it can live.
const ENDED_MS: i64 = 10 * 60 * 1000;
/// How many sessions one person has, and how many hand-offs are under way: the oldest makes room.
const MAX_EACH: usize = 100;

/// The sign-ins of one workspace. Every moment is in Unix milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Book {
    /// By the fingerprint of the cookie's value.
    sessions: BTreeMap<String, Kept>,
    /// By the fingerprint of the code.
    hand_offs: BTreeMap<String, Pending>,
    /// Assertions that were used: their `jti`, and until when they might be shown again.
    spent: BTreeMap<String, i64>,
    /// Portal sessions that ended, and until when that is remembered.
    ended: BTreeMap<String, i64>,
    /// What the portal asserted before this moment of its clock had to end; 0 when nothing ever had to.
    ended_before_ms: i64,
}

/// A session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Kept {
    sid: String,
    /// The fingerprint of the code that it came of: that code's second use ends it.
    code: String,
    asserted_at_ms: i64,
    seen_at_ms: i64,
    expires_at_ms: i64,
}

/// A hand-off whose code was not used yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Pending {
    hand_off: HandOff,
    expires_at_ms: i64,
}

/// What the portal asserted, and what goes with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HandOff {
    /// The portal session.
    pub sid: String,
    /// When the portal asserted it, by its clock.
    pub asserted_at_ms: i64,
    /// The fingerprint of the bind cookie in the browser that began.
    pub bind: String,
    /// Where to go after it; checked.
    pub rd: String,
    /// The edge token for that browser, and when it ends.
    pub edge: Option<(String, i64)>,
}

/// Why a hand-off does not begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Its assertion was used before.
    Spent,
    /// Its portal session has ended.
    Ended,
}

impl Book {
    /// Spends an assertion, which might be shown again until `until_ms`; whether this was the first time.
    pub fn spend(&mut self, jti: &str, until_ms: i64) -> bool {
        if self.spent.contains_key(jti) {
            return false;
        }
        self.spent.insert(jti.to_owned(), until_ms);
        true
    }

    /// Spends a hand-off's assertion and remembers it under the code of this fingerprint.
    pub fn begin(
        &mut self,
        (jti, until_ms): (&str, i64),
        code: String,
        hand_off: HandOff,
        now_ms: i64,
    ) -> Result<(), Refused> {
        if hand_off.asserted_at_ms < self.ended_before_ms || self.ended.contains_key(&hand_off.sid) {
            return Err(Refused::Ended);
        }
        if !self.spend(jti, until_ms) {
            return Err(Refused::Spent);
        }
        make_room(&mut self.hand_offs, |pending| pending.expires_at_ms);
        self.hand_offs.insert(code, Pending { hand_off, expires_at_ms: now_ms + CODE_MS });
        Ok(())
    }

    /// Exchanges a code for the session of this fingerprint, in the browser whose bind cookie this is. A code that was used
    /// ends what came of it.
    pub fn finish(&mut self, code: &str, bind_cookie: Option<&str>, session: String, now_ms: i64) -> Option<HandOff> {
        let code = fingerprint(code);
        let bind = bind_cookie.map(fingerprint);
        let takes = |pending: &Pending| pending.expires_at_ms > now_ms && Some(&pending.hand_off.bind) == bind.as_ref();
        if !self.hand_offs.get(&code).is_some_and(takes) {
            let before = self.sessions.len();
            self.sessions.retain(|_, kept| kept.code != code);
            if self.sessions.len() < before {
                tracing::warn!("a sign-in code came twice; what came of its first use has ended");
            }
            return None;
        }
        let HandOff { sid, asserted_at_ms, .. } = self.hand_offs.get(&code)?.hand_off.clone();
        make_room(&mut self.sessions, |kept| kept.seen_at_ms);
        let kept =
            Kept { sid, code: code.clone(), asserted_at_ms, seen_at_ms: now_ms, expires_at_ms: now_ms + ABSOLUTE_MS };
        self.sessions.insert(session, kept);
        self.hand_offs.remove(&code).map(|pending| pending.hand_off)
    }

    /// Whether the session of this fingerprint is valid: `Some`, with whether its use was written down. Its use keeps it alive.
    pub fn touch(&mut self, session: &str, now_ms: i64) -> Option<bool> {
        let kept = self.sessions.get_mut(session).filter(|kept| kept.is_valid(now_ms))?;
        let due = now_ms - kept.seen_at_ms > TOUCH_MS;
        if due {
            kept.seen_at_ms = now_ms;
        }
        Some(due)
    }

    /// Whether there is such a session.
    pub fn has(&self, session: &str) -> bool {
        self.sessions.contains_key(session)
    }

    /// Ends one session.
    pub fn end(&mut self, session: &str) {
        self.sessions.remove(session);
    }

    /// Ends what was begun under a portal session, and whatever may still arrive from it.
    pub fn end_by_sid(&mut self, sid: &str, now_ms: i64) {
        self.sessions.retain(|_, kept| kept.sid != sid);
        self.hand_offs.retain(|_, pending| pending.hand_off.sid != sid);
        self.ended.entry(sid.to_owned()).or_insert(now_ms + ENDED_MS);
    }

    /// Ends everything that the portal asserted no later than `at_ms`, and refuses what of it is still on its way.
    pub fn end_all(&mut self, at_ms: i64) {
        self.sessions.retain(|_, kept| kept.asserted_at_ms > at_ms);
        self.hand_offs.retain(|_, pending| pending.hand_off.asserted_at_ms > at_ms);
        // Of two that overtake one another, the later moment stays.
        self.ended_before_ms = self.ended_before_ms.max(at_ms.saturating_add(1));
    }

    /// Removes what is over.
    pub fn sweep(&mut self, now_ms: i64) {
        self.sessions.retain(|_, kept| kept.is_valid(now_ms));
        self.hand_offs.retain(|_, pending| pending.expires_at_ms > now_ms);
        self.spent.retain(|_, until_ms| *until_ms >= now_ms);
        self.ended.retain(|_, until_ms| *until_ms >= now_ms);
    }
}

impl Kept {
    fn is_valid(&self, now_ms: i64) -> bool {
        self.expires_at_ms > now_ms && self.seen_at_ms > now_ms - IDLE_MS
    }
}

/// Makes room for one more, at the cost of the one that is the oldest by `age`.
fn make_room<T>(all: &mut BTreeMap<String, T>, age: impl Fn(&T) -> i64) {
    while all.len() >= MAX_EACH {
        let Some(oldest) = all.iter().min_by_key(|(_, one)| age(one)).map(|(key, _)| key.clone()) else { return };
        all.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: i64 = 60 * 60 * 1000;

    fn hand_off(sid: &str, asserted_at_ms: i64) -> HandOff {
        HandOff { sid: sid.into(), asserted_at_ms, bind: fingerprint("bind"), rd: "/".into(), edge: None }
    }

    fn signed_in(book: &mut Book, name: &str, now_ms: i64) {
        book.begin((name, now_ms), fingerprint(name), hand_off("sid", now_ms), now_ms).unwrap();
        assert!(book.finish(name, Some("bind"), name.to_owned(), now_ms).is_some());
    }

    #[test]
    fn a_session_ends_unused_after_twelve_hours_and_used_after_seven_days() {
        let mut book = Book::default();
        signed_in(&mut book, "idle", 0);
        assert_eq!(book.touch("idle", 12 * HOUR_MS - 1), Some(true));
        signed_in(&mut book, "unused", 0);
        assert_eq!(book.touch("unused", 12 * HOUR_MS), None);
        signed_in(&mut book, "used", 0);
        for n in 1..=16 {
            assert_eq!(book.touch("used", n * 10 * HOUR_MS), Some(true));
        }
        assert_eq!(book.touch("used", 160 * HOUR_MS + TOUCH_MS), Some(false), "not at every request");
        assert_eq!(book.touch("used", 168 * HOUR_MS), None);
        book.sweep(168 * HOUR_MS);
        assert_eq!(book, Book::default(), "nothing of it is left");
    }

    #[test]
    fn the_oldest_makes_room_and_nothing_grows_without_end() {
        let mut book = Book::default();
        for n in 0..2 * MAX_EACH as i64 {
            signed_in(&mut book, &n.to_string(), n);
            book.begin((&format!("open-{n}"), n), n.to_string(), hand_off("sid", n), n).unwrap();
        }
        assert_eq!((book.sessions.len(), book.hand_offs.len()), (MAX_EACH, MAX_EACH));
        assert!(book.has("199") && !book.has("99"));
    }

    #[test]
    fn what_was_asserted_in_the_moment_of_the_end_has_ended_whenever_it_arrives() {
        let mut book = Book::default();
        signed_in(&mut book, "in time", 5);
        book.end_all(5);
        assert!(!book.has("in time"));
        assert_eq!(book.begin(("late", 9), fingerprint("late"), hand_off("sid", 5), 9), Err(Refused::Ended));
        signed_in(&mut book, "after", 6);
        assert!(book.has("after"));
    }

    #[test]
    fn a_used_code_ends_what_came_of_it_and_nothing_else() {
        let mut book = Book::default();
        signed_in(&mut book, "one", 0);
        signed_in(&mut book, "other", 0);
        assert_eq!(book.finish("never given", Some("bind"), "x".into(), 0), None);
        assert!(book.has("one") && book.has("other"));
        assert_eq!(book.finish("one", None, "x".into(), 0), None, "in whichever browser");
        assert!(!book.has("one") && book.has("other") && !book.has("x"));
    }
}
