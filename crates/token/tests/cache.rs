//! The cache of an issuer's keys: when it fetches, when it does not, and what it does when the issuer is out.

mod common;

use std::future::pending;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use clock::{Clock, ManualClock};
use common::{AUDIENCE, ISSUER, NOW_S, key, keys};
use token::{Access, Claims, Error, JwksCache, KeySet, Kind, SigningKey, Snapshot};
use tokio::sync::Semaphore;

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;

/// An issuer that counts, can be out, and can be made to keep its callers waiting.
#[derive(Clone)]
struct Issuer {
    answer: Arc<Mutex<Option<KeySet>>>,
    asked: Arc<AtomicU32>,
    /// A permit for every answer it may give.
    gate: Arc<Semaphore>,
}

impl Issuer {
    fn with(key: &SigningKey) -> Self {
        let gate = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        Self { answer: Arc::new(Mutex::new(Some(keys(key)))), asked: Arc::default(), gate }
    }

    fn now_answers(&self, answer: Option<KeySet>) {
        *self.answer.lock().expect("a lock") = answer;
    }

    fn asked(&self) -> u32 {
        self.asked.load(Ordering::SeqCst)
    }

    fn cache(&self) -> (JwksCache, ManualClock) {
        let (clock, hand) = Clock::manual(NOW_S * 1000);
        let issuer = self.clone();
        let cache = JwksCache::new(clock, move || {
            let issuer = issuer.clone();
            async move {
                issuer.asked.fetch_add(1, Ordering::SeqCst);
                issuer.gate.acquire().await.expect("open").forget();
                issuer.answer.lock().expect("a lock").clone().ok_or("the issuer is out")
            }
        });
        (cache, hand)
    }
}

/// A token of this moment of the cache's life.
fn fresh(key: &SigningKey, since_start_ms: i64) -> String {
    let mut claims = common::claims();
    (claims.iat, claims.exp) = (NOW_S + since_start_ms / 1000, NOW_S + since_start_ms / 1000 + 60);
    key.sign(Kind::AccessToken, &claims).expect("a token")
}

async fn check(cache: &JwksCache, token: &str) -> Result<Claims<Access>, Error> {
    cache.verify(Kind::AccessToken, token, ISSUER, AUDIENCE).await
}

#[tokio::test]
async fn a_set_is_fetched_once_and_again_after_five_minutes() {
    let key = key(1);
    let issuer = Issuer::with(&key);
    let (cache, hand) = issuer.cache();
    assert_eq!((issuer.asked(), cache.current()), (0, None), "nothing before the first token");
    for _ in 0..3 {
        check(&cache, &fresh(&key, 0)).await.expect("valid");
    }
    assert_eq!(issuer.asked(), 1);
    hand.advance_ms(5 * MINUTE - 1);
    check(&cache, &fresh(&key, 5 * MINUTE - 1)).await.expect("valid");
    assert_eq!(issuer.asked(), 1);
    hand.advance_ms(1);
    check(&cache, &fresh(&key, 5 * MINUTE)).await.expect("valid");
    assert_eq!(issuer.asked(), 2);
}

#[tokio::test]
async fn a_key_that_was_withdrawn_ends_with_the_sets_age() {
    let (old, new) = (key(1), key(2));
    let issuer = Issuer::with(&old);
    let (cache, hand) = issuer.cache();
    check(&cache, &fresh(&old, 0)).await.expect("valid");
    issuer.now_answers(Some(keys(&new)));
    check(&cache, &fresh(&old, 0)).await.expect("still in the kept set");
    hand.advance_ms(5 * MINUTE);
    assert!(matches!(check(&cache, &fresh(&old, 5 * MINUTE)).await, Err(Error::UnknownKid)));
    check(&cache, &fresh(&new, 5 * MINUTE)).await.expect("the control");
}

#[tokio::test]
async fn an_unknown_kid_fetches_at_most_once_a_minute() {
    let (old, new, strange) = (key(1), key(2), key(3));
    let issuer = Issuer::with(&old);
    let (cache, hand) = issuer.cache();
    check(&cache, &fresh(&old, 0)).await.expect("valid");

    // A key that came meanwhile is found at once.
    issuer.now_answers(Some(KeySet::new([old.public(), new.public()])));
    check(&cache, &fresh(&new, 0)).await.expect("valid");
    assert_eq!(issuer.asked(), 2);
    // A flood of strange ones fetches nothing more.
    for _ in 0..100 {
        assert!(matches!(check(&cache, &fresh(&strange, 0)).await, Err(Error::UnknownKid)));
    }
    hand.advance_ms(MINUTE - 1);
    assert!(matches!(check(&cache, &fresh(&strange, MINUTE)).await, Err(Error::UnknownKid)));
    assert_eq!(issuer.asked(), 2);
    hand.advance_ms(1);
    assert!(matches!(check(&cache, &fresh(&strange, MINUTE)).await, Err(Error::UnknownKid)));
    assert_eq!(issuer.asked(), 3);
    check(&cache, &fresh(&old, MINUTE)).await.expect("the control");
}

#[tokio::test]
async fn only_an_unknown_kid_is_a_reason_to_fetch() {
    let (right, other) = (key(1), key(2));
    let issuer = Issuer::with(&right);
    let (cache, _hand) = issuer.cache();
    check(&cache, &fresh(&right, 0)).await.expect("valid");
    let header = serde_json::json!({"alg": "EdDSA", "typ": "at+jwt", "kid": "../../etc/passwd"}).to_string();
    let odd = common::signed(&other, &header, &common::payload().to_string());
    let forged =
        common::signed(&other, &common::header(&right, Kind::AccessToken).to_string(), &common::payload().to_string());
    for token in [odd, forged, "x".repeat(9_000), "a.b.c".into()] {
        assert!(check(&cache, &token).await.is_err());
    }
    assert_eq!(issuer.asked(), 1);
}

#[tokio::test]
async fn a_strange_kid_as_the_very_first_token_fetches_once() {
    let issuer = Issuer::with(&key(1));
    let (cache, _hand) = issuer.cache();
    assert!(matches!(check(&cache, &fresh(&key(2), 0)).await, Err(Error::UnknownKid)));
    assert_eq!(issuer.asked(), 1, "the set is as new as can be");
}

#[tokio::test]
async fn the_last_good_set_serves_a_day_while_the_issuer_is_out() {
    let key = key(1);
    let issuer = Issuer::with(&key);
    let (cache, hand) = issuer.cache();
    check(&cache, &fresh(&key, 0)).await.expect("valid");
    issuer.now_answers(None);

    hand.advance_ms(10 * MINUTE);
    for _ in 0..50 {
        check(&cache, &fresh(&key, 10 * MINUTE)).await.expect("the last good set");
    }
    assert_eq!(issuer.asked(), 2, "an issuer that is out is not asked at every request");
    hand.advance_ms(5_000);
    check(&cache, &fresh(&key, 10 * MINUTE)).await.expect("the last good set");
    assert_eq!(issuer.asked(), 3);

    hand.set_ms(NOW_S * 1000 + 24 * HOUR - 1);
    check(&cache, &fresh(&key, 24 * HOUR - 1_000)).await.expect("the last good set");
    hand.advance_ms(1);
    let refusal = check(&cache, &fresh(&key, 24 * HOUR)).await.expect_err("too old");
    assert!(matches!(refusal, Error::KeysUnavailable(_)), "{refusal:?}");

    issuer.now_answers(Some(keys(&key)));
    hand.advance_ms(5_000);
    check(&cache, &fresh(&key, 24 * HOUR)).await.expect("it is back");
}

#[tokio::test]
async fn without_a_set_the_cause_is_told() {
    let key = key(1);
    let issuer = Issuer::with(&key);
    issuer.now_answers(None);
    let (cache, hand) = issuer.cache();
    let refusal = check(&cache, &fresh(&key, 0)).await.expect_err("no keys");
    assert_eq!(std::error::Error::source(&refusal).expect("a cause").to_string(), "the issuer is out");
    assert!(matches!(check(&cache, &fresh(&key, 0)).await, Err(Error::KeysUnavailable(_))));
    assert_eq!(issuer.asked(), 1);
    issuer.now_answers(Some(keys(&key)));
    hand.advance_ms(5_000);
    check(&cache, &fresh(&key, 5_000)).await.expect("valid");
}

#[tokio::test]
async fn a_set_without_keys_is_no_answer() {
    let key = key(1);
    let issuer = Issuer::with(&key);
    let (cache, hand) = issuer.cache();
    check(&cache, &fresh(&key, 0)).await.expect("valid");
    issuer.now_answers(Some(KeySet::default()));
    hand.advance_ms(6 * MINUTE);
    check(&cache, &fresh(&key, 6 * MINUTE)).await.expect("the last good set");
    assert_eq!(cache.current().expect("kept").keys, keys(&key));
}

#[tokio::test]
async fn fifty_at_once_are_one_fetch() {
    let key = key(1);
    let issuer = Issuer::with(&key);
    let (cache, _hand) = issuer.cache();
    let token = fresh(&key, 0);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let (cache, token) = (cache.clone(), token.clone());
        tasks.spawn(async move { check(&cache, &token).await.is_ok() });
    }
    assert!(tasks.join_all().await.into_iter().all(|valid| valid));
    assert_eq!(issuer.asked(), 1);

    // And so are fifty with a new key.
    let new = common::key(2);
    issuer.now_answers(Some(KeySet::new([key.public(), new.public()])));
    let token = fresh(&new, 0);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let (cache, token) = (cache.clone(), token.clone());
        tasks.spawn(async move { check(&cache, &token).await.is_ok() });
    }
    let valid = tasks.join_all().await.into_iter().filter(|valid| *valid).count();
    assert_eq!((valid, issuer.asked()), (50, 2));
}

#[tokio::test]
async fn whoever_has_a_set_does_not_wait_for_anothers_fetch() {
    let key = key(1);
    let issuer = Issuer::with(&key);
    let (cache, hand) = issuer.cache();
    check(&cache, &fresh(&key, 0)).await.expect("valid");
    hand.advance_ms(6 * MINUTE);

    // The issuer accepts and does not answer.
    issuer.gate.forget_permits(Semaphore::MAX_PERMITS);
    let slow = tokio::spawn({
        let (cache, token) = (cache.clone(), fresh(&key, 6 * MINUTE));
        async move { check(&cache, &token).await.is_ok() }
    });
    while issuer.asked() < 2 {
        tokio::task::yield_now().await;
    }
    check(&cache, &fresh(&key, 6 * MINUTE)).await.expect("goes on with the older set");
    assert!(!slow.is_finished());
    issuer.gate.add_permits(10);
    assert!(slow.await.expect("a task"));
    assert_eq!(issuer.asked(), 2);
}

#[tokio::test]
async fn a_caller_that_hangs_up_wastes_no_fetch() {
    let (old, new) = (key(1), key(2));
    let issuer = Issuer::with(&old);
    let (cache, _hand) = issuer.cache();
    check(&cache, &fresh(&old, 0)).await.expect("valid");
    issuer.now_answers(Some(KeySet::new([old.public(), new.public()])));
    issuer.gate.forget_permits(Semaphore::MAX_PERMITS);
    let caller = tokio::spawn({
        let (cache, token) = (cache.clone(), fresh(&new, 0));
        async move { check(&cache, &token).await.is_ok() }
    });
    while issuer.asked() < 2 {
        tokio::task::yield_now().await;
    }
    caller.abort();
    assert!(caller.await.expect_err("aborted").is_cancelled());
    issuer.gate.add_permits(10);
    // The minute's one fetch is spent, but its answer came.
    check(&cache, &fresh(&new, 0)).await.expect("valid");
    assert_eq!(issuer.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_never_answers_is_given_up() {
    let key = key(1);
    let (clock, _hand) = Clock::manual(NOW_S * 1000);
    let cache = JwksCache::new(clock, || async {
        pending::<()>().await;
        Err::<KeySet, _>("never")
    });
    assert!(matches!(check(&cache, &fresh(&key, 0)).await, Err(Error::KeysUnavailable(_))));
    cache.preload(Snapshot { keys: keys(&key), fetched_at_ms: NOW_S * 1000 });
    check(&cache, &fresh(&key, 0)).await.expect("the set from the disk");
}

#[tokio::test]
async fn a_set_from_the_disk_serves_for_the_rest_of_its_day_alone() {
    let (old, new) = (key(1), key(2));
    let issuer = Issuer::with(&new);
    issuer.now_answers(None);
    let start_ms = NOW_S * 1000;

    for (fetched_at_ms, serves) in
        [(start_ms - 23 * HOUR, true), (start_ms - 24 * HOUR, false), (start_ms, true), (start_ms + 1_000 * HOUR, true)]
    {
        let (cache, hand) = issuer.cache();
        let kept = serde_json::to_string(&Snapshot { keys: keys(&old), fetched_at_ms }).expect("JSON");
        cache.preload(serde_json::from_str(&kept).expect("a snapshot"));
        assert_eq!(check(&cache, &fresh(&old, 0)).await.is_ok(), serves, "{fetched_at_ms}");
        // However new it claims to be, its day ends.
        hand.advance_ms(24 * HOUR);
        assert!(check(&cache, &fresh(&old, 24 * HOUR)).await.is_err());
    }

    // The issuer goes before the disk, and a set that was fetched is not replaced by an older one.
    issuer.now_answers(Some(keys(&new)));
    let (cache, _hand) = issuer.cache();
    cache.preload(Snapshot { keys: keys(&old), fetched_at_ms: start_ms });
    check(&cache, &fresh(&new, 0)).await.expect("fetched");
    cache.preload(Snapshot { keys: keys(&old), fetched_at_ms: start_ms });
    assert_eq!(cache.current(), Some(Snapshot { keys: keys(&new), fetched_at_ms: start_ms }));
}

#[tokio::test]
async fn a_clock_that_is_set_back_locks_nobody_out() {
    let key = key(1);
    let issuer = Issuer::with(&key);
    let (cache, hand) = issuer.cache();
    hand.advance_ms(HOUR);
    check(&cache, &fresh(&key, HOUR)).await.expect("valid");
    issuer.now_answers(None);
    hand.advance_ms(-HOUR);
    check(&cache, &fresh(&key, 0)).await.expect("the last good set");
    assert_eq!(issuer.asked(), 2);
}
