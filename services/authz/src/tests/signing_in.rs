//! Signing in, and everybody who tries to without the password.

use std::{collections::HashSet, time::Duration};

use clock::Entropy;
use futures_util::future::join_all;
use http::StatusCode;
use serde_json::{Value, json};

use super::harness::*;
use crate::password::Purpose;

const WRONG: &str = "certainly not the right one";

#[tokio::test]
async fn by_name_or_by_address_in_any_case() {
    for authz in everywhere().await {
        let alice = authz.person("alice").await;
        for login in ["alice", " Alice ", "alice@example.com", "ALICE@Example.COM "] {
            let reply = authz.login(login, PASSWORD, "192.0.2.1").await;
            assert_eq!(reply.status, StatusCode::OK, "{login}: {}", reply.text);
            assert_eq!(Person::of(&reply).account_id, alice.account_id, "{}", authz.name());
        }
        let bad = authz.login("alice", PASSWORD, "not an address").await;
        assert_eq!(bad.field(), (400, "invalid_request".into(), "browser.address".into()));
    }
}

#[tokio::test]
async fn nobody_and_a_wrong_password_are_told_the_same_after_the_same_work() {
    for authz in everywhere().await {
        authz.person("alice").await;
        let mut answers = HashSet::new();
        for (i, login) in
            ["alice", "alice@example.com", "nobody", "nobody@example.com", "no such\0name", ""].iter().enumerate()
        {
            let before = authz.app.passwords.checked();
            let reply = authz.login(login, WRONG, &format!("192.0.2.{i}")).await;
            assert_eq!(reply.problem(), (401, "bad_credentials".into()), "{login:?}");
            assert_eq!(authz.app.passwords.checked() - before, 1, "{login:?} costs one hash");
            let mut body: Value = reply.json();
            body.as_object_mut().unwrap().remove("request_id");
            let mut names: Vec<_> = reply.headers.keys().map(ToString::to_string).collect();
            names.sort();
            answers.insert(format!("{body} {names:?}"));
        }
        assert_eq!(answers.len(), 1, "{}: {answers:#?}", authz.name());
        // Being throttled is no different either.
        for login in ["alice", "nobody"] {
            let codes = guess(&authz, login, "198.51.100.1", 8).await;
            assert_eq!(codes, [401, 401, 401, 401, 401, 429, 429, 429], "{login}");
        }
    }
}

async fn guess(authz: &Authz, login: &str, address: &str, times: usize) -> Vec<u16> {
    let mut codes = vec![];
    for _ in 0..times {
        codes.push(authz.login(login, WRONG, address).await.status.as_u16());
    }
    codes
}

#[tokio::test]
async fn after_five_failures_the_pauses_double_and_a_right_password_waits_too() {
    for authz in everywhere().await {
        authz.person("alice").await;
        assert_eq!(guess(&authz, "alice", "192.0.2.1", 5).await, [401; 5]);
        for pause_s in [1, 2, 4, 8] {
            let refused = authz.login("alice", PASSWORD, "192.0.2.1").await;
            assert_eq!(refused.problem(), (429, "too_many_attempts".into()), "{}", authz.name());
            assert!(
                refused.retry_after().is_some_and(|s| s >= pause_s && s <= pause_s + 1),
                "{:?}",
                refused.retry_after()
            );
            // Being refused prolongs nothing.
            authz.hand.advance_ms(pause_s as i64 * 1000);
            assert_eq!(guess(&authz, "alice", "192.0.2.1", 1).await, [401], "after {pause_s} s");
        }
        authz.hand.advance_ms(16_000);
        assert_eq!(authz.login("alice", PASSWORD, "192.0.2.1").await.status, StatusCode::OK);
        // Anew: five are free again.
        assert_eq!(guess(&authz, "alice", "192.0.2.1", 6).await, [401, 401, 401, 401, 401, 429]);
    }
}

/// What ten thousand failures would have left, everywhere: the hashing is what takes long.
async fn ten_thousand_failures(authz: &Authz) {
    sqlx::query("UPDATE login_failures SET failures = 10000, blocked_until_ms = $1, last_failed_at_ms = $2")
        .bind(authz.app.clock.now_ms() + 900_000)
        .bind(authz.app.clock.now_ms())
        .execute(authz.store.pool())
        .await
        .unwrap();
}

#[tokio::test]
async fn ten_thousand_failures_from_everywhere_do_not_lock_out_a_device_of_the_person() {
    for authz in everywhere().await {
        authz.person("alice").await;
        let device = Person::of(&authz.login("alice", PASSWORD, "192.0.2.1").await).device;
        for address in ["192.0.2.1", "198.51.100.1"] {
            assert_eq!(guess(&authz, "alice", address, 1).await, [401]);
        }
        ten_thousand_failures(&authz).await;
        // Where the person has been is no proof: a whole network may be at that address.
        for stranger in ["192.0.2.1", "198.51.100.1", "198.51.100.2", "2001:db8::1"] {
            let refused = authz.login("alice", PASSWORD, stranger).await;
            assert_eq!(refused.problem(), (429, "too_many_attempts".into()), "{stranger}");
        }
        // The device is known wherever it is, by either name; and it has another id each time.
        let mut device = device;
        for (login, address) in [("alice", "198.51.100.1"), ("alice@example.com", "192.0.2.9")] {
            let reply = authz.login_with(login, PASSWORD, browser(address, Some(&device))).await;
            assert_eq!(reply.status, StatusCode::OK, "{}: {}", authz.name(), reply.text);
            let next = Person::of(&reply).device;
            assert_ne!(next, device);
            let before = std::mem::replace(&mut device, next);
            let copied = authz.login_with("alice", PASSWORD, browser("198.51.100.1", Some(&before))).await;
            assert_eq!(copied.status, StatusCode::TOO_MANY_REQUESTS, "the id before is worth nothing");
        }
        // On it guesses are counted too.
        let mut codes = vec![];
        for _ in 0..6 {
            let reply = authz.login_with("alice", WRONG, browser("192.0.2.9", Some(&device))).await;
            codes.push(reply.status.as_u16());
        }
        assert_eq!(codes, [401, 401, 401, 401, 401, 429], "{}", authz.name());
    }
}

#[tokio::test]
async fn a_device_is_known_to_its_own_accounts_and_by_our_own_ids_alone() {
    for authz in everywhere().await {
        let (alice, _bob) = (authz.person("alice").await, authz.person("bob").await);
        assert_eq!(guess(&authz, "bob", "192.0.2.1", 1).await, [401]);
        ten_thousand_failures(&authz).await;
        let made_up = format!("{}.{}", Entropy::system().token(), alice.device.split_once('.').unwrap().1);
        let stem = alice.device.split_once('.').unwrap().0;
        for device in [alice.device.as_str(), stem, &format!("{stem}."), ".", "", &made_up] {
            let reply = authz.login_with("bob", PASSWORD, browser("192.0.2.1", Some(device))).await;
            assert_eq!(reply.problem(), (429, "too_many_attempts".into()), "{}: {device}", authz.name());
        }
        authz.hand.advance_ms(crate::throttle::FORGOTTEN_MS);
        // Two people, one after the other, on one device: both stay known on it.
        let reply = authz.login_with("bob", PASSWORD, browser("192.0.2.7", Some(&alice.device))).await;
        let both = Person::of(&reply).device;
        for login in ["alice", "bob"] {
            assert_eq!(guess(&authz, login, "198.51.100.1", 1).await, [401]);
        }
        ten_thousand_failures(&authz).await;
        let reply = authz.login_with("alice", PASSWORD, browser("198.51.100.1", Some(&both))).await;
        let both = Person::of(&reply).device;
        let reply = authz.login_with("bob", PASSWORD, browser("198.51.100.1", Some(&both))).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", authz.name());
        // Ninety days unused, and it is a stranger's.
        authz.hand.advance_ms(crate::devices::KNOWN_MS);
        assert_eq!(guess(&authz, "bob", "198.51.100.1", 1).await, [401]);
        ten_thousand_failures(&authz).await;
        let last = Person::of(&reply).device;
        let reply = authz.login_with("bob", PASSWORD, browser("198.51.100.1", Some(&last))).await;
        assert_eq!(reply.status, StatusCode::TOO_MANY_REQUESTS, "{}", authz.name());
    }
}

#[tokio::test]
async fn a_sign_in_of_ones_own_does_not_reset_what_was_guessed_on_a_shared_device() {
    for authz in everywhere().await {
        let victim = authz.person("victim").await;
        authz.person("attacker").await;
        let on = async |device: &str, login: &str, password: &str| {
            authz.login_with(login, password, browser("192.0.2.1", Some(device))).await
        };
        let mut device = Person::of(&on(&victim.device, "attacker", PASSWORD).await).device;
        // Five are free, with a sign-in of one's own after each, and no more.
        for expected in [401, 401, 401, 401, 401, 429] {
            assert_eq!(on(&device, "victim", WRONG).await.status.as_u16(), expected, "{}", authz.name());
            device = Person::of(&on(&device, "attacker", PASSWORD).await).device;
        }
        // The victim's own sign-in, when the pause is over, does.
        authz.hand.advance_ms(1_000);
        device = Person::of(&on(&device, "victim", PASSWORD).await).device;
        for expected in [401, 401, 401, 401, 401, 429] {
            assert_eq!(on(&device, "victim", WRONG).await.status.as_u16(), expected, "{}", authz.name());
        }
    }
}

#[tokio::test]
async fn an_account_has_ten_devices_and_the_one_used_longest_ago_goes_first() {
    for authz in everywhere().await {
        let mut devices = vec![authz.person("alice").await.device];
        for _ in 0..10 {
            authz.hand.advance_ms(1);
            devices.push(Person::of(&authz.login("alice", PASSWORD, "192.0.2.1").await).device);
        }
        assert_eq!(authz.count("SELECT COUNT(*) FROM devices").await, 10, "{}", authz.name());
        assert_eq!(guess(&authz, "alice", "192.0.2.1", 1).await, [401]);
        ten_thousand_failures(&authz).await;
        for (device, expected) in [(&devices[0], 429), (&devices[1], 200), (&devices[10], 200)] {
            let reply = authz.login_with("alice", PASSWORD, browser("192.0.2.1", Some(device))).await;
            assert_eq!(reply.status.as_u16(), expected, "{}", authz.name());
        }
    }
}

#[tokio::test]
async fn being_throttled_does_not_tell_which_name_and_address_are_one_persons() {
    for authz in everywhere().await {
        authz.person("alice").await;
        authz.person("bob").await;
        // Every spelling of a name is that name.
        for login in ["alice", "Alice", " alice ", "ALICE", "alice"] {
            assert_eq!(guess(&authz, login, "198.51.100.1", 1).await, [401], "{login:?}");
        }
        assert_eq!(guess(&authz, "aLice", "198.51.100.1", 1).await, [429], "{}", authz.name());
        // The same person's address is as free as anybody's.
        for login in ["alice@example.com", "ALICE@example.com", "bob@example.com", "bob", "nobody@example.com"] {
            assert_eq!(guess(&authz, login, "198.51.100.1", 1).await, [401], "{}: {login}", authz.name());
        }
    }
}

#[tokio::test]
async fn own_successes_in_between_do_not_reset_what_an_address_has_failed() {
    for authz in everywhere().await {
        for slug in ["victim", "attacker"] {
            authz.person(slug).await;
        }
        sqlx::query(
            "INSERT INTO login_failures (scope, failures, last_failed_at_ms, blocked_until_ms) VALUES ($1, 97, $2, 0)",
        )
        .bind(authz.app.seal.name(&["address", "198.51.100.1"]))
        .bind(START_MS)
        .execute(authz.store.pool())
        .await
        .unwrap();
        // Three more guesses at three people, with a sign-in of one's own after each.
        for (guessed, expected) in [("victim", 401), ("nobody-1", 401), ("nobody-2", 401)] {
            assert_eq!(guess(&authz, guessed, "198.51.100.1", 1).await, [expected], "{guessed}");
            if guessed != "nobody-2" {
                assert_eq!(authz.login("attacker", PASSWORD, "198.51.100.1").await.status, StatusCode::OK);
            }
        }
        assert_eq!(authz.login("attacker", PASSWORD, "198.51.100.1").await.status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(guess(&authz, "nobody-3", "198.51.100.1", 1).await, [429], "{}", authz.name());
        assert_eq!(guess(&authz, "nobody-3", "198.51.100.2", 1).await, [401], "the control: another address");
    }
}

#[tokio::test]
async fn fifty_guesses_at_once_are_not_fifty_free_ones() {
    for authz in everywhere().await {
        authz.person("alice").await;
        let replies = join_all((0..50).map(|_| authz.login("alice", WRONG, "192.0.2.1"))).await;
        let looked_at = replies.iter().filter(|reply| reply.status == StatusCode::UNAUTHORIZED).count();
        let refused = replies.iter().filter(|reply| reply.status == StatusCode::TOO_MANY_REQUESTS).count();
        assert_eq!((looked_at, refused), (5, 45), "{}", authz.name());
    }
}

#[tokio::test]
async fn counters_are_forgotten_after_an_hour_of_peace() {
    for authz in everywhere().await {
        authz.person("alice").await;
        assert_eq!(guess(&authz, "alice", "192.0.2.1", 6).await, [401, 401, 401, 401, 401, 429]);
        authz.hand.advance_ms(crate::throttle::FORGOTTEN_MS);
        assert_eq!(guess(&authz, "alice", "192.0.2.1", 6).await, [401, 401, 401, 401, 401, 429], "{}", authz.name());
    }
}

#[tokio::test]
async fn a_success_an_hour_does_not_keep_what_an_address_failed_alive() {
    for authz in everywhere().await {
        authz.person("alice").await;
        guess(&authz, "nobody", "192.0.2.1", 3).await;
        authz.hand.advance_ms(50 * 60_000);
        assert_eq!(authz.login("alice", PASSWORD, "192.0.2.1").await.status, StatusCode::OK);
        // An hour after the failures, but not after the success.
        authz.hand.advance_ms(10 * 60_000);
        guess(&authz, "nobody", "192.0.2.1", 1).await;
        let failures: i64 = sqlx::query_scalar("SELECT failures FROM login_failures WHERE scope = $1")
            .bind(authz.app.seal.name(&["address", "192.0.2.1"]))
            .fetch_one(authz.store.pool())
            .await
            .unwrap();
        assert_eq!(failures, 1, "{}", authz.name());
    }
}

/// Five hundred at once: those beyond the cores wait in line until the throttle has had enough of them; health answers meanwhile,
/// and so does the other lane.
#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_sign_ins_at_once_leave_the_service_standing() {
    let authz = Authz::simple().await;
    authz.person("alice").await;
    let addresses: Vec<_> = (0..500).map(|i| format!("10.0.{}.{}", i / 250, i % 250)).collect();
    let flood = join_all(addresses.iter().map(|address| authz.login("nobody", WRONG, address)));
    let meanwhile = async {
        for _ in 0..20 {
            let health = tokio::time::timeout(Duration::from_secs(5), authz.get("/healthz")).await.unwrap();
            assert_eq!(health.status, StatusCode::OK);
        }
        let reply = authz.register(&sign_up("bob")).await;
        assert_eq!(reply.status, StatusCode::CREATED, "{}", reply.text);
    };
    let (replies, ()) = tokio::join!(flood, meanwhile);
    let mut codes = std::collections::BTreeMap::<String, usize>::new();
    for reply in &replies {
        *codes.entry(reply.problem().1).or_default() += 1;
        if reply.status == StatusCode::SERVICE_UNAVAILABLE {
            assert!(reply.retry_after().is_some());
        }
    }
    assert!(
        codes.keys().all(|code| ["bad_credentials", "too_many_attempts", "unavailable"].contains(&code.as_str())),
        "{codes:?}"
    );
    assert!(codes.contains_key("bad_credentials"), "{codes:?}");
    let alice = authz.login("alice", PASSWORD, "192.0.2.1").await;
    assert_eq!(alice.status, StatusCode::OK, "afterwards all is as before: {}", alice.text);
}

#[tokio::test]
async fn nothing_typed_is_kept_with_the_failures() {
    for authz in everywhere().await {
        // People do type their password into the name's field.
        authz.login("canary-typed-as-a-name", WRONG, "192.0.2.77").await;
        let rows: Vec<(String,)> =
            sqlx::query_as("SELECT scope FROM login_failures").fetch_all(authz.store.pool()).await.unwrap();
        assert_eq!(rows.len(), 3, "{}", authz.name());
        assert!(rows.iter().all(|(scope,)| scope.len() == 64 && !scope.contains("canary") && !scope.contains("192.0")));
    }
}

#[tokio::test]
async fn an_unknown_member_is_refused() {
    let authz = Authz::simple().await;
    let body = json!({"login": "a", "password": "b", "browser": browser("192.0.2.1", None), "role": "operator"});
    assert_eq!(authz.post("/portal/login", &body).await.problem(), (400, "invalid_request".into()));
}

/// Changes the person's password while something that shows the old one is on its way to be compared; what that is answered.
async fn overtaken(authz: &Authz, account_id: &str, purpose: Purpose, under_way: impl Future<Output = Reply>) -> Reply {
    let passwords = &authz.app.passwords;
    let new = passwords.set("quite another long pass phrase".into(), vec![]).await.unwrap();
    let (held, places) = (passwords.hold(purpose).await, passwords.places(purpose));
    let change = async {
        let queued = async {
            while passwords.places(purpose) == places {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), queued).await.unwrap();
        let store = &authz.store;
        let changed = sqlx::query("UPDATE accounts SET password_hash = $1 WHERE id = $2");
        changed.bind(new.clone()).bind(account_id.to_owned()).execute(store.pool()).await.unwrap();
        let ended = sqlx::query("DELETE FROM sessions WHERE account_id = $1");
        ended.bind(account_id.to_owned()).execute(store.pool()).await.unwrap();
        drop(held);
    };
    tokio::join!(under_way, change).0
}

#[tokio::test]
async fn a_sign_in_with_the_old_password_does_not_outlive_a_change_of_it() {
    for authz in everywhere().await {
        let key = "the-key-of-the-sign-up-0001";
        let alice = Person::of(&authz.register_with(key, &sign_up("alice")).await);
        let under_way = authz.login("alice", PASSWORD, "192.0.2.1");
        let reply = overtaken(&authz, &alice.account_id, Purpose::SignIn, under_way).await;
        assert_eq!(reply.problem(), (401, "bad_credentials".into()), "{}", authz.name());
        assert_eq!(authz.count("SELECT COUNT(*) FROM sessions").await, 0, "{}", authz.name());
        // It counts as the failure that it is.
        assert_eq!(guess(&authz, "alice", "192.0.2.1", 5).await, [401, 401, 401, 401, 429], "{}", authz.name());

        let key = "the-key-of-the-sign-up-0002";
        let bob = Person::of(&authz.register_with(key, &sign_up("bob")).await);
        let body = sign_up("bob");
        let under_way = authz.register_with(key, &body);
        let reply = overtaken(&authz, &bob.account_id, Purpose::SignUp, under_way).await;
        assert_eq!(reply.problem(), (422, "idempotency_key_reused".into()), "{}", authz.name());
        assert_eq!(authz.count("SELECT COUNT(*) FROM sessions").await, 0, "{}", authz.name());
    }
}
