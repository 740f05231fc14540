//! Signing up, names, and what deploy-control hears of it.

use futures_util::future::join_all;
use http::StatusCode;
use serde_json::{Value, json};

use super::harness::*;
use crate::{
    deliveries::{self, Delivery},
    outbox::send_due,
    password::Purpose,
};

#[tokio::test]
async fn a_sign_up_makes_an_account_a_session_and_an_instance() {
    for authz in everywhere().await {
        let reply = authz.register(&sign_up("alice")).await;
        assert_eq!(reply.status, StatusCode::CREATED, "{}: {}", authz.name(), reply.text);
        assert_eq!(reply.headers["cache-control"], "no-store");
        let alice = Person::of(&reply);
        assert_eq!(alice.token.len(), 43);
        let session: Value = authz.session(&alice.token).await.json();
        assert_eq!(session["sid"], alice.sid.as_str());
        assert_eq!((&session["slug"], &session["role"]), (&json!("alice"), &json!("person")));
        assert_eq!((&session["email"], &session["locale"]), (&json!("alice@example.com"), &json!("zh-CN")));
        assert_eq!(session["expires_at_ms"], START_MS + 7 * 24 * 3600 * 1000);
        let taken = authz.deploy.taken();
        assert_eq!(taken.len(), 1, "{}", authz.name());
        assert_eq!(taken[0].instance_id.to_string(), alice.instance_id);
        assert_eq!((taken[0].account_id.to_string(), taken[0].slug.as_str()), (alice.account_id, "alice"));
        assert_eq!(authz.count("SELECT COUNT(*) FROM deliveries").await, 0, "{}", authz.name());
    }
}

#[tokio::test]
async fn whoever_signs_up_is_told_of_what_was_made_ahead_and_waits_for_nobody_who_cannot_say() {
    let store = store::testing::sqlite(&crate::MIGRATOR).await;
    let authz = Authz::with(store, |config| crate::config::Config { has_pool: true, ..config }).await;
    let ahead = contracts::InstanceId::from_uuid(authz.app.entropy.uuid_v7(&authz.app.clock));
    authz.deploy.make_ahead(Some(ahead));
    // What is refused takes none away.
    let mut refused = sign_up("alice");
    refused["password"] = json!("short");
    assert_eq!(authz.register(&refused).await.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(Person::of(&authz.register(&sign_up("alice")).await).instance_id, ahead.to_string());
    assert_eq!(authz.deploy.taken()[0].instance_id, ahead);
    // With none there, and with nobody to ask.
    let bob = Person::of(&authz.register(&sign_up("bob")).await);
    assert_ne!(bob.instance_id, ahead.to_string());
    authz.deploy.hang(true);
    let carol = authz.register(&sign_up("carol")).await;
    assert_eq!(carol.status, StatusCode::CREATED, "{}", carol.text);
    // Without a pool nobody is asked.
    let without = Authz::simple().await;
    without.deploy.make_ahead(Some(ahead));
    assert_ne!(Person::of(&without.register(&sign_up("alice")).await).instance_id, ahead.to_string());
}

#[tokio::test]
async fn every_refusal_names_its_field_and_makes_nothing() {
    for authz in everywhere().await {
        authz.person("alice").await;
        let with = |field: &str, value: &str| {
            let mut body = sign_up("bob");
            body[field] = json!(value);
            body
        };
        for (body, expected) in [
            (with("slug", "alice"), (409, "slug_taken", "slug")),
            (with("slug", "admin"), (409, "slug_reserved", "slug")),
            (with("slug", "ab"), (422, "slug_too_short", "slug")),
            (with("slug", &"a".repeat(64)), (422, "slug_too_long", "slug")),
            (with("slug", "Bob"), (422, "slug_characters", "slug")),
            (with("slug", "bоb"), (422, "slug_characters", "slug")),
            (with("slug", "-bob"), (422, "slug_hyphen", "slug")),
            (with("slug", "bob-"), (422, "slug_hyphen", "slug")),
            (with("slug", "xn--bob"), (422, "slug_hyphen", "slug")),
            (with("email", "bob"), (422, "email_invalid", "email")),
            (with("email", " ALICE@Example.com"), (409, "email_taken", "email")),
            (with("password", "short"), (422, "password_too_short", "password")),
            (with("password", &"x".repeat(257)), (422, "password_too_long", "password")),
            (with("password", "bob@example.com1"), (422, "password_weak", "password")),
            (with("password", "correct horse battery staple"), (422, "password_breached", "password")),
            (with("locale", "fr"), (422, "locale_unknown", "locale")),
        ] {
            let reply = authz.register(&body).await;
            let (status, code, field) = reply.field();
            assert_eq!((status, code.as_str(), field.as_str()), expected, "{}", authz.name());
        }
        let mut extra = sign_up("bob");
        extra["role"] = json!("operator");
        assert_eq!(authz.register(&extra).await.status, StatusCode::BAD_REQUEST);
        for key in ["", "short", &"k".repeat(65), "with a space in the key"] {
            let reply = authz.register_with(key, &sign_up("bob")).await;
            assert_eq!(reply.problem(), (400, "idempotency_key_required".into()), "{key}");
        }
        assert_eq!(authz.count("SELECT COUNT(*) FROM accounts").await, 1);
        assert_eq!(authz.count("SELECT COUNT(*) FROM slugs").await, 1);
        // The control: bob as he is gets in.
        authz.person("bob").await;
    }
}

#[tokio::test]
async fn the_form_can_ask_whether_a_name_can_be_had() {
    for authz in everywhere().await {
        authz.person("alice").await;
        for (text, expected) in [
            ("bob", json!({"available": true})),
            ("alice", json!({"available": false, "code": "slug_taken"})),
            ("admin", json!({"available": false, "code": "slug_reserved"})),
            ("a", json!({"available": false, "code": "slug_too_short"})),
            ("%E6%B2%B3%E7%8B%B8", json!({"available": false, "code": "slug_characters"})),
        ] {
            let reply = authz.get(&format!("/portal/slugs/{text}")).await;
            assert_eq!((reply.status, reply.json::<Value>()), (StatusCode::OK, expected), "{}", authz.name());
        }
    }
}

#[tokio::test]
async fn a_name_is_never_given_twice_not_even_after_its_account() {
    for authz in everywhere().await {
        authz.person("alice").await;
        for sql in ["DELETE FROM sessions", "DELETE FROM devices", "DELETE FROM accounts"] {
            sqlx::query(sql).execute(authz.store.pool()).await.unwrap();
        }
        let reply = authz.register(&sign_up("alice")).await;
        assert_eq!(reply.problem(), (409, "slug_taken".into()), "{}", authz.name());
        assert_eq!(authz.get("/portal/slugs/alice").await.json::<Value>()["code"], "slug_taken");
        // The control: it is the name that is refused, not the address.
        let mut other = sign_up("alice");
        other["slug"] = json!("alice-again");
        assert_eq!(authz.register(&other).await.status, StatusCode::CREATED);
    }
}

#[tokio::test]
async fn a_repeated_sign_up_is_the_same_one_and_another_body_is_refused() {
    for authz in everywhere().await {
        let key = "the-same-key-twice-0001";
        let first = Person::of(&authz.register_with(key, &sign_up("alice")).await);
        let again = authz.register_with(key, &sign_up("alice")).await;
        assert_eq!(again.status, StatusCode::CREATED, "{}", again.text);
        let again = Person::of(&again);
        assert_eq!((&again.account_id, &again.instance_id), (&first.account_id, &first.instance_id));
        assert!(again.token != first.token && again.sid != first.sid);
        for token in [&first.token, &again.token] {
            assert_eq!(authz.session(token).await.status, StatusCode::OK);
        }
        for (field, value) in [
            ("password", "another long pass phrase here"),
            ("email", "a@example.com"),
            ("slug", "alicia"),
            ("locale", "en"),
        ] {
            let mut other = sign_up("alice");
            other[field] = json!(value);
            let reply = authz.register_with(key, &other).await;
            assert_eq!(reply.problem(), (422, "idempotency_key_reused".into()), "{field}");
        }
        assert_eq!(authz.count("SELECT COUNT(*) FROM accounts").await, 1, "{}", authz.name());
        // A day later the key is forgotten, and the name is not.
        authz.hand.advance_ms(crate::sign_up::REMEMBERED_MS + 1);
        assert_eq!(authz.register_with(key, &sign_up("alice")).await.problem(), (409, "slug_taken".into()));
        assert_eq!(authz.register_with(key, &sign_up("carol")).await.status, StatusCode::CREATED);
    }
}

#[tokio::test]
async fn of_fifty_who_want_one_name_one_gets_it() {
    for authz in everywhere().await {
        let replies = join_all((0..50).map(|i| {
            let mut body = sign_up("alice");
            body["email"] = json!(format!("person{i}@example.com"));
            let authz = &authz;
            async move { authz.register(&body).await }
        }))
        .await;
        let won = replies.iter().filter(|reply| reply.status == StatusCode::CREATED).count();
        assert_eq!(won, 1, "{}", authz.name());
        for reply in replies.iter().filter(|reply| reply.status != StatusCode::CREATED) {
            assert_eq!(reply.problem(), (409, "slug_taken".into()), "{}", authz.name());
        }
        assert_eq!(authz.count("SELECT COUNT(*) FROM accounts").await, 1);
        assert_eq!(authz.count("SELECT COUNT(*) FROM sessions").await, 1);
    }
}

#[tokio::test]
async fn of_fifty_with_one_key_all_get_the_same_account() {
    for authz in everywhere().await {
        let body = sign_up("alice");
        let replies = join_all((0..50).map(|_| authz.register_with("one-key-for-all-fifty", &body))).await;
        let people: Vec<_> = replies
            .iter()
            .map(|reply| {
                assert_eq!(reply.status, StatusCode::CREATED, "{}: {}", authz.name(), reply.text);
                Person::of(reply)
            })
            .collect();
        assert!(people.iter().all(|person| person.account_id == people[0].account_id));
        assert_eq!(authz.count("SELECT COUNT(*) FROM accounts").await, 1);
        assert_eq!(authz.deploy.taken().len(), 1);
    }
}

#[tokio::test]
async fn a_sign_up_that_the_same_one_overtook_gets_the_same_account() {
    for authz in everywhere().await {
        let (key, body) = ("one-key-for-two-processes", sign_up("alice"));
        let (other, passwords) = (authz.another_process(0).await, &authz.app.passwords);
        let (held, places) = (passwords.hold(Purpose::SignUp).await, passwords.places(Purpose::SignUp));
        let overtakes = async {
            let queued = async {
                while passwords.places(Purpose::SignUp) == places {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(std::time::Duration::from_secs(10), queued).await.unwrap();
            let first = Authz::register_at(&other, key, &body).await;
            drop(held);
            first
        };
        let (late, first) = tokio::join!(authz.register_with(key, &body), overtakes);
        assert_eq!((first.status, late.status), (StatusCode::CREATED, StatusCode::CREATED), "{}", late.text);
        assert_eq!(Person::of(&late).account_id, Person::of(&first).account_id, "{}", authz.name());
    }
}

#[tokio::test]
async fn a_sign_up_survives_a_deploy_control_that_is_down_and_is_delivered_later() {
    for authz in everywhere().await {
        authz.deploy.fail_with(503);
        let alice = authz.person("alice").await;
        assert!(authz.deploy.taken().is_empty());
        assert_eq!(authz.count("SELECT COUNT(*) FROM deliveries WHERE attempts = 1 AND state = 'pending'").await, 1);
        // Not before its time.
        assert_eq!(send_due::<Delivery>(&authz.app).await.unwrap(), 0);
        for attempt in 2..=4 {
            authz.hand.advance_ms(60_000);
            assert_eq!(send_due::<Delivery>(&authz.app).await.unwrap(), 1, "attempt {attempt}");
        }
        authz.deploy.fail_with(0);
        authz.hand.advance_ms(60_000);
        assert_eq!(send_due::<Delivery>(&authz.app).await.unwrap(), 1);
        assert_eq!(authz.deploy.taken()[0].instance_id.to_string(), alice.instance_id);
        assert_eq!(authz.count("SELECT COUNT(*) FROM deliveries").await, 0, "{}", authz.name());
    }
}

#[tokio::test]
async fn a_slow_deploy_control_does_not_hold_the_sign_up_up() {
    let authz = Authz::simple().await;
    authz.deploy.hang(true);
    let begun = std::time::Instant::now();
    authz.person("alice").await;
    assert!(begun.elapsed() < std::time::Duration::from_secs(8), "{:?}", begun.elapsed());
    assert_eq!(authz.count("SELECT COUNT(*) FROM deliveries WHERE state = 'pending'").await, 1);
}

#[tokio::test]
async fn a_refusal_for_good_stays_visible_and_ends_the_attempts() {
    for authz in everywhere().await {
        for (status, slug) in [(409, "alice"), (422, "bob")] {
            authz.deploy.fail_with(status);
            authz.person(slug).await;
        }
        let calls = authz.deploy.calls();
        authz.deploy.fail_with(0);
        authz.hand.advance_ms(3_600_000);
        assert_eq!(send_due::<Delivery>(&authz.app).await.unwrap(), 0);
        assert_eq!(authz.deploy.calls(), calls);
        let refused = "SELECT COUNT(*) FROM deliveries WHERE state = 'refused' AND last_error = 'fake_refusal'";
        assert_eq!(authz.count(refused).await, 2, "{}", authz.name());
    }
}

#[tokio::test]
async fn a_refused_instance_is_told_to_its_owner_and_offered_again_when_they_ask() {
    for authz in everywhere().await {
        authz.deploy.fail_with(409);
        let alice = authz.person("alice").await;
        let told = async || authz.session(&alice.token).await.json::<serde_json::Value>();
        assert_eq!(told().await["instance_error"], "fake_refusal", "{}", authz.name());
        let body = serde_json::json!({ "session_token": alice.token });
        let again: serde_json::Value = authz.post("/portal/retry-delivery", &body).await.json();
        assert_eq!(again["instance_error"], "fake_refusal", "{}", authz.name());
        authz.deploy.fail_with(0);
        let calls = authz.deploy.calls();
        for _ in 0..2 {
            let taken: serde_json::Value = authz.post("/portal/retry-delivery", &body).await.json();
            assert!(taken.get("instance_error").is_none(), "{}: {taken}", authz.name());
        }
        assert_eq!((authz.deploy.calls() - calls, authz.deploy.taken().len()), (1, 1), "{}", authz.name());
        assert!(told().await.get("instance_error").is_none());
    }
}

#[tokio::test]
async fn two_workers_deliver_an_instance_once() {
    for authz in everywhere().await {
        authz.deploy.fail_with(503);
        for i in 0..6 {
            authz.person(&format!("person-{i}")).await;
        }
        authz.deploy.fail_with(0);
        authz.hand.advance_ms(60_000);
        let before = authz.deploy.calls();
        let tried = join_all((0..4).map(|_| send_due::<Delivery>(&authz.app))).await;
        assert_eq!(tried.into_iter().map(Result::unwrap).sum::<usize>(), 6, "{}", authz.name());
        assert_eq!((authz.deploy.calls() - before, authz.deploy.taken().len()), (6, 6));
    }
}

#[tokio::test]
async fn the_worker_delivers_at_start_what_a_dead_process_left() {
    let authz = Authz::simple().await;
    authz.deploy.fail_with(503);
    authz.person("alice").await;
    authz.deploy.fail_with(0);
    authz.hand.advance_ms(60_000);
    let stop = service::Shutdown::new();
    let worker = tokio::spawn(deliveries::work(authz.another_process(60_000).await, stop.clone()));
    let delivered = async {
        while authz.count("SELECT COUNT(*) FROM deliveries").await > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), delivered).await.unwrap();
    assert_eq!(authz.deploy.taken().len(), 1);
    stop.cancel();
    worker.await.unwrap();
}

async fn sign_up_from(authz: &Authz, name: &str, address: &str) -> Reply {
    let mut body = sign_up(name);
    body["browser"]["address"] = json!(address);
    authz.register(&body).await
}

#[tokio::test]
async fn one_address_makes_sixty_accounts_an_hour() {
    for authz in everywhere().await {
        authz.person("taken").await;
        // What fifty-nine would have left: the hashing is what takes long.
        assert_eq!(sign_up_from(&authz, "first", "2001:db8:1:2::1").await.status, StatusCode::CREATED);
        sqlx::query("UPDATE sign_ups_by_address SET sign_ups = 59 WHERE scope = $1")
            .bind(authz.app.seal.name(&["sign-ups", "2001:db8:1:2::"]))
            .execute(authz.store.pool())
            .await
            .unwrap();
        // What is refused before its e-mail address is looked up is not counted.
        assert_eq!(sign_up_from(&authz, "taken", "2001:db8:1:2::2").await.problem(), (409, "slug_taken".into()));
        assert_eq!(sign_up_from(&authz, "ab", "2001:db8:1:2::2").await.status, StatusCode::UNPROCESSABLE_ENTITY);
        // A network of 64 bits is one address; of several at once, one is the sixtieth.
        let names = ["one", "two", "three", "four"];
        let replies = join_all(names.iter().map(|name| sign_up_from(&authz, name, "2001:db8:1:2:3::4"))).await;
        let made = replies.iter().filter(|reply| reply.status == StatusCode::CREATED).count();
        assert_eq!(made, 1, "{}", authz.name());
        for reply in replies.iter().filter(|reply| reply.status != StatusCode::CREATED) {
            assert_eq!(reply.problem(), (429, "too_many_sign_ups".into()));
            assert!(reply.retry_after().is_some_and(|s| (1..=3601).contains(&s)), "{:?}", reply.retry_after());
        }
        assert_eq!(authz.count("SELECT COUNT(*) FROM accounts").await, 3);
        assert_eq!(sign_up_from(&authz, "elsewhere", "2001:db8:1:3::1").await.status, StatusCode::CREATED);
        authz.hand.advance_ms(crate::sign_up_limit::HOUR_MS);
        assert_eq!(sign_up_from(&authz, "later", "2001:db8:1:2::1").await.status, StatusCode::CREATED);
    }
}

#[tokio::test]
async fn asking_who_has_an_account_counts_like_making_one() {
    for authz in everywhere().await {
        authz.person("alice").await;
        let mut ask = sign_up("somebody-else");
        ask["email"] = json!("alice@example.com");
        ask["browser"]["address"] = json!("192.0.2.1");
        for _ in 0..60 {
            assert_eq!(authz.register(&ask).await.problem(), (409, "email_taken".into()));
        }
        assert_eq!(authz.register(&ask).await.problem(), (429, "too_many_sign_ups".into()), "{}", authz.name());
        ask["email"] = json!("nobody@example.com");
        assert_eq!(authz.register(&ask).await.problem(), (429, "too_many_sign_ups".into()), "and is told no more");
    }
}

#[tokio::test]
async fn a_refused_password_tells_of_no_address_and_a_sign_up_that_comes_to_nothing_counts() {
    for authz in everywhere().await {
        authz.person("alice").await;
        let ask = |email: &str, password: &str| {
            let mut body = sign_up("somebody-else");
            body["email"] = json!(email);
            body["password"] = json!(password);
            body["browser"]["address"] = json!("192.0.2.1");
            body
        };
        for email in ["alice@example.com", "nobody@example.com"] {
            for (password, code) in [("short", "password_too_short"), ("aaaaaaaaaaaaaaaaaaaa", "password_weak")] {
                let reply = authz.register(&ask(email, password)).await;
                assert_eq!(reply.problem(), (422, code.into()), "{}: {email}", authz.name());
            }
        }
        // Nothing was looked up, so it is not counted as if it had been.
        let counted = async || {
            let asked: Option<i64> = sqlx::query_scalar("SELECT sign_ups FROM sign_ups_by_address WHERE scope = $1")
                .bind(authz.app.seal.name(&["sign-ups", "192.0.2.1"]))
                .fetch_optional(authz.store.pool())
                .await
                .unwrap();
            asked.unwrap_or(0)
        };
        assert_eq!(counted().await, 0, "{}", authz.name());
        // A free address whose sign-up comes to nothing, because somebody else has the name by then, is counted all the same.
        sqlx::query("DELETE FROM slugs").execute(authz.store.pool()).await.unwrap();
        let mut late = ask("nobody@example.com", PASSWORD);
        late["slug"] = json!("alice");
        for times in 1..=2 {
            assert_eq!(authz.register(&late).await.status, StatusCode::CONFLICT, "{}", authz.name());
            assert_eq!(counted().await, times, "{}", authz.name());
        }
        assert_eq!(authz.count("SELECT COUNT(*) FROM accounts").await, 1);
    }
}

#[tokio::test]
async fn whatever_a_try_comes_to_an_address_has_so_many_in_an_hour() {
    for authz in everywhere().await {
        let (key, mut repeated) = ("a-key-that-was-used-before", sign_up("alice"));
        repeated["browser"]["address"] = json!("192.0.2.1");
        authz.register_with(key, &repeated).await;
        let (mut weak, mut taken) = (repeated.clone(), repeated.clone());
        (weak["slug"], weak["password"]) = (json!("bob"), json!("aaaaaaaaaaaaaaaaaaaa"));
        taken["email"] = json!("bob@example.com");
        // What ten times sixty would have left, but for three.
        sqlx::query("UPDATE sign_ups_by_address SET sign_ups = 597 WHERE scope = $1")
            .bind(authz.app.seal.name(&["sign-up-tries", "192.0.2.1"]))
            .execute(authz.store.pool())
            .await
            .unwrap();
        assert_eq!(authz.register(&weak).await.problem(), (422, "password_weak".into()), "{}", authz.name());
        assert_eq!(authz.register(&taken).await.problem(), (409, "slug_taken".into()), "{}", authz.name());
        assert_eq!(authz.register_with(key, &repeated).await.status, StatusCode::CREATED, "{}", authz.name());
        for reply in
            [authz.register(&weak).await, authz.register(&taken).await, authz.register_with(key, &repeated).await]
        {
            assert_eq!(reply.problem(), (429, "too_many_sign_ups".into()), "{}", authz.name());
            assert!(reply.retry_after().is_some());
        }
        assert_eq!(sign_up_from(&authz, "carol", "192.0.2.2").await.status, StatusCode::CREATED, "{}", authz.name());
    }
}
