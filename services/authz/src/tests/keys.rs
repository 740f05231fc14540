//! The issuer's keys over months, restarts and two processes at once.

use std::{collections::BTreeSet, sync::Arc};

use clock::{Clock, Entropy};
use futures_util::future::join_all;
use secrecy::SecretString;

use super::harness::*;
use crate::{
    MIGRATOR,
    app::App,
    keys::{Error, KeyRing},
    seal::Seal,
};

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;

async fn ring(store: &store::Store, clock: &Clock) -> KeyRing {
    let seal = Arc::new(Seal::new(&SecretString::from(SEAL_KEY)));
    KeyRing::open(store.clone(), clock.clone(), Entropy::system(), seal).await.unwrap()
}

fn published(ring: &KeyRing) -> BTreeSet<String> {
    ring.published().keys().iter().map(|key| key.kid().to_owned()).collect()
}

/// The kid in use.
fn active(ring: &KeyRing, clock: &Clock) -> String {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    let iat = clock.now_s();
    let claims = token::Claims {
        iss: "i".into(),
        sub: "s".into(),
        aud: "a".into(),
        iat,
        exp: iat + 1,
        jti: "j".into(),
        extra: token::NoExtra {},
    };
    let token = ring.sign(token::Kind::AccessToken, &claims).unwrap();
    let header = URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap();
    serde_json::from_slice::<serde_json::Value>(&header).unwrap()["kid"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn processes_that_start_at_once_have_the_same_key() {
    for store in store::testing::databases(&MIGRATOR).await {
        let (clock, _hand) = Clock::manual(START_MS);
        let rings = join_all((0..10).map(|_| ring(&store, &clock))).await;
        let kids: BTreeSet<_> = rings.iter().flat_map(published).collect();
        assert_eq!(kids.len(), 1, "{}", store.name());
        // And a start later on.
        assert_eq!(published(&ring(&store, &clock).await), kids);
    }
}

#[tokio::test]
async fn a_key_is_published_a_day_before_and_a_day_after_it_is_used_for_thirty() {
    for store in store::testing::databases(&MIGRATOR).await {
        let (clock, hand) = Clock::manual(START_MS);
        let (here, there) = (ring(&store, &clock).await, ring(&store, &clock).await);
        let first = active(&here, &clock);
        let mut seen_published = std::collections::BTreeMap::<String, (i64, i64)>::new();
        let mut seen_active = seen_published.clone();
        for hour in 0..(95 * 24) {
            hand.set_ms(START_MS + hour * HOUR_MS);
            // Each process looks at its own time; the other is a while behind.
            let (now, later) = if hour % 2 == 0 { (&here, &there) } else { (&there, &here) };
            now.maintain().await.unwrap();
            if hour % 12 == 11 {
                later.maintain().await.unwrap();
            }
            for kid in published(now) {
                let seen = seen_published.entry(kid).or_insert((hour, hour));
                seen.1 = hour;
            }
            let kid = active(now, &clock);
            assert!(published(now).contains(&kid));
            seen_active.entry(kid).or_insert((hour, hour)).1 = hour;
        }
        assert_eq!(seen_active.len(), 4, "{}: {seen_active:?}", store.name());
        assert!(seen_active.contains_key(&first));
        for (kid, (from, to)) in seen_active.iter().filter(|(_, (from, to))| *from > 0 && *to < 95 * 24 - 1) {
            assert_eq!(to - from + 1, 30 * 24, "used for 30 days");
            let (first_seen, last_seen) = seen_published[kid];
            assert_eq!(from - first_seen, 24, "published a day before");
            assert!((24..=25).contains(&(last_seen - to)), "published a day after: {}", last_seen - to);
        }
        let rows: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM signing_keys").fetch_one(store.pool()).await.unwrap();
        assert!(rows <= 2, "old keys are gone: {rows}");
    }
}

#[tokio::test]
async fn after_a_long_standstill_nobody_meets_a_key_that_was_not_published_for_a_day() {
    for store in store::testing::databases(&MIGRATOR).await {
        let (clock, hand) = Clock::manual(START_MS);
        let first = active(&ring(&store, &clock).await, &clock);
        hand.advance_ms(100 * DAY_MS);
        let ring = ring(&store, &clock).await;
        assert_eq!(active(&ring, &clock), first, "{}", store.name());
        assert_eq!(published(&ring).len(), 2);
        hand.advance_ms(DAY_MS);
        ring.maintain().await.unwrap();
        assert_ne!(active(&ring, &clock), first);
        assert!(published(&ring).contains(&first));
        hand.advance_ms(DAY_MS);
        ring.maintain().await.unwrap();
        assert!(!published(&ring).contains(&first));
    }
}

#[tokio::test]
async fn the_database_alone_signs_nothing_and_another_seal_key_stops_the_start() {
    for store in store::testing::databases(&MIGRATOR).await {
        let (clock, _hand) = Clock::manual(START_MS);
        let ring = ring(&store, &clock).await;
        let sealed: String =
            sqlx::query_scalar("SELECT sealed FROM signing_keys").fetch_one(store.pool()).await.unwrap();
        // Neither PKCS #8 nor the seed stands in it: they cannot, being another length and encrypted; the header tells.
        use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
        let bytes = URL_SAFE_NO_PAD.decode(&sealed).unwrap();
        let prefix = [0x2b, 0x65, 0x70];
        assert!(!bytes.windows(3).any(|window| window == prefix), "the OID of Ed25519 is readable");
        let other = Arc::new(Seal::new(&SecretString::from("another-seal-key-0123456789-0123456789")));
        let refused = KeyRing::open(store.clone(), clock.clone(), Entropy::system(), other).await;
        assert!(matches!(refused, Err(Error::Sealed { seq: 1, .. })), "{}", store.name());
        let mut config = config("http://127.0.0.1:1", "http://127.0.0.1:1");
        config.seal_key = "another-seal-key-0123456789-0123456789".into();
        let error = App::new(config, (*store).clone(), clock.clone(), Entropy::system()).await.err().unwrap();
        assert!(error.downcast_ref::<settings::Error>().is_some(), "{error:#}");
        assert!(error.to_string().starts_with("BEAVER_SEAL_KEY is not usable"), "{error:#}");
        assert_eq!(published(&ring).len(), 1);
    }
}
