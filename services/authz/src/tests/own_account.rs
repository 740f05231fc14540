//! Where people are signed in, and their passwords.

use futures_util::future::join_all;
use http::StatusCode;
use serde_json::{Value, json};

use super::harness::*;

const NEW: &str = "nine otters cross a frozen lake";
const WRONG: &str = "certainly not the right one";

async fn sessions(authz: &Authz, token: &str) -> Vec<Value> {
    let reply = authz.post("/portal/sessions", &json!({ "session_token": token })).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text);
    reply.json::<Value>()["sessions"].as_array().unwrap().clone()
}

async fn end(authz: &Authz, token: &str, sid: Option<&str>) -> Reply {
    authz.post("/portal/sessions/end", &json!({ "session_token": token, "sid": sid })).await
}

async fn sign_in(authz: &Authz, login: &str, address: &str) -> Person {
    let reply = authz.login(login, PASSWORD, address).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text);
    Person::of(&reply)
}

async fn holds(authz: &Authz, person: &Person) -> bool {
    authz.session(&person.token).await.status == StatusCode::OK
}

async fn change(authz: &Authz, who: &Person, old: &str, new: &str, address: &str) -> Reply {
    let body = json!({
        "session_token": who.token, "old_password": old, "new_password": new,
        "browser": browser(address, Some(&who.device)),
    });
    authz.post("/portal/password", &body).await
}

/// The session ids of what a workspace heard, from the `from`th on.
fn heard(authz: &Authz, person: &Person, from: usize) -> Vec<Option<String>> {
    let all = authz.workspaces.heard(person);
    all[from..].iter().map(|said| authz.verify_assertion(said, &person.slug).extra.sid).collect()
}

#[tokio::test]
async fn the_list_has_ones_own_live_sessions_with_what_one_knows_them_by() {
    for authz in everywhere().await {
        let first = authz.person("alice").await;
        authz.person("bob").await;
        authz.hand.advance_ms(60_000);
        let second = sign_in(&authz, "alice", "2001:db8::7").await;
        let list = sessions(&authz, &second.token).await;
        let agent = "Mozilla/5.0 (X11; Linux x86_64) Test/1.0";
        let expected = json!([
            {"sid": second.sid, "current": true, "began_at_ms": START_MS + 60_000, "last_seen_ms": START_MS + 60_000,
             "address": "2001:db8::7", "user_agent": agent},
            {"sid": first.sid, "current": false, "began_at_ms": START_MS, "last_seen_ms": START_MS,
             "address": "203.0.113.1", "user_agent": agent},
        ]);
        assert_eq!(json!(list), expected, "{}", authz.name());
        // Unused for twelve hours, and it is none any more.
        authz.hand.advance_ms(12 * 3_600_000 - 60_000);
        assert!(holds(&authz, &second).await);
        assert_eq!(sessions(&authz, &second.token).await.len(), 1, "{}", authz.name());
        let reply = authz.post("/portal/sessions", &json!({ "session_token": first.token })).await;
        assert_eq!(reply.problem(), (401, "session_ended".into()));
    }
}

#[tokio::test]
async fn what_a_browser_calls_itself_is_cut_and_has_no_control_characters() {
    let authz = Authz::simple().await;
    authz.person("alice").await;
    let mut odd = browser("192.0.2.1", None);
    odd["user_agent"] = json!(format!("a\u{1b}[31mb\n{}", "é".repeat(1000)));
    let person = Person::of(&authz.login_with("alice", PASSWORD, odd).await);
    let list = sessions(&authz, &person.token).await;
    let kept = list.iter().find(|one| one["current"] == true).unwrap()["user_agent"].as_str().unwrap().to_owned();
    assert!(kept.starts_with("a[31mbé") && kept.chars().count() == 256, "{kept}");
}

#[tokio::test]
async fn one_ends_one_of_ones_own_sessions_or_all_others_and_nobody_elses() {
    for authz in everywhere().await {
        let (alice, bob) = (authz.person("alice").await, authz.person("bob").await);
        let others = [sign_in(&authz, "alice", "192.0.2.1").await, sign_in(&authz, "alice", "192.0.2.2").await];
        assert_eq!(end(&authz, &alice.token, Some(&others[0].sid)).await.status, StatusCode::NO_CONTENT);
        assert_eq!(heard(&authz, &alice, 0), [Some(others[0].sid.clone())], "{}", authz.name());
        // What is not there, and what is somebody else's, looks the same and is left alone.
        for sid in [others[0].sid.as_str(), &bob.sid, "", "' OR 1=1 --"] {
            assert_eq!(end(&authz, &alice.token, Some(sid)).await.status, StatusCode::NO_CONTENT, "{sid}");
        }
        assert!(holds(&authz, &bob).await && holds(&authz, &others[1]).await && !holds(&authz, &others[0]).await);
        assert_eq!((authz.workspaces.heard(&alice).len(), authz.workspaces.heard(&bob).len()), (1, 0));
        assert_eq!(end(&authz, &alice.token, None).await.status, StatusCode::NO_CONTENT);
        assert!(holds(&authz, &alice).await && !holds(&authz, &others[1]).await && holds(&authz, &bob).await);
        assert_eq!(heard(&authz, &alice, 1), [None], "{}: whatever the workspace has", authz.name());
        assert_eq!(end(&authz, &others[1].token, None).await.problem(), (401, "session_ended".into()));
    }
}

#[tokio::test]
async fn a_change_of_the_password_ends_every_other_session_and_gives_a_new_one() {
    for authz in everywhere().await {
        let alice = authz.person("alice").await;
        let thief = sign_in(&authz, "alice", "198.51.100.1").await;
        let reply = change(&authz, &alice, PASSWORD, NEW, "192.0.2.1").await;
        assert_eq!(reply.status, StatusCode::OK, "{}: {}", authz.name(), reply.text);
        let next = Person::of(&reply);
        assert!(next.token != alice.token && next.sid != alice.sid);
        assert!(holds(&authz, &next).await && !holds(&authz, &alice).await && !holds(&authz, &thief).await);
        assert_eq!(heard(&authz, &alice, 0), [None], "{}", authz.name());
        assert_eq!(authz.login("alice", PASSWORD, "192.0.2.1").await.problem(), (401, "bad_credentials".into()));
        assert_eq!(authz.login("alice", NEW, "192.0.2.1").await.status, StatusCode::OK);
        // The thief's device is no longer known, this one is.
        for _ in 0..5 {
            authz.login("alice", WRONG, "192.0.2.1").await;
        }
        for (device, expected) in [(&thief.device, 429), (&alice.device, 429), (&next.device, 200)] {
            let reply = authz.login_with("alice", NEW, browser("192.0.2.1", Some(device))).await;
            assert_eq!(reply.status.as_u16(), expected, "{}", authz.name());
        }
    }
}

#[tokio::test]
async fn a_change_needs_the_old_password_and_a_good_new_one() {
    for authz in everywhere().await {
        let alice = authz.person("alice").await;
        let other = sign_in(&authz, "alice", "198.51.100.1").await;
        for (old, new, expected) in [
            (WRONG, NEW, (422, "password_wrong", "old_password")),
            (PASSWORD, "short", (422, "password_too_short", "password")),
            (PASSWORD, "alice@example.com", (422, "password_weak", "password")),
            (PASSWORD, "correct horse battery staple", (422, "password_breached", "password")),
        ] {
            let reply = change(&authz, &alice, old, new, "192.0.2.1").await;
            let (status, code, field) = reply.field();
            assert_eq!((status, code.as_str(), field.as_str()), expected, "{}", authz.name());
        }
        assert!(holds(&authz, &alice).await && holds(&authz, &other).await);
        assert_eq!(authz.login("alice", PASSWORD, "192.0.2.1").await.status, StatusCode::OK, "nothing was changed");
        assert!(authz.workspaces.heard(&alice).is_empty());
        let ended = Person { token: "x".into(), ..alice };
        let reply = change(&authz, &ended, PASSWORD, NEW, "192.0.2.1").await;
        assert_eq!(reply.problem(), (401, "session_ended".into()));
    }
}

#[tokio::test]
async fn guessing_the_old_password_is_slowed_down_like_signing_in_and_locks_nobody_out() {
    for authz in everywhere().await {
        let alice = authz.person("alice").await;
        let mut codes = vec![];
        for _ in 0..6 {
            codes.push(change(&authz, &alice, WRONG, NEW, "192.0.2.1").await.status.as_u16());
        }
        assert_eq!(codes, [422, 422, 422, 422, 422, 429], "{}", authz.name());
        let refused = change(&authz, &alice, PASSWORD, NEW, "192.0.2.1").await;
        assert_eq!(refused.problem(), (429, "too_many_attempts".into()));
        assert!(refused.retry_after().is_some());
        // Signing in has counters of its own.
        assert_eq!(authz.login("alice", PASSWORD, "192.0.2.1").await.status, StatusCode::OK);
        authz.hand.advance_ms(2_000);
        assert_eq!(change(&authz, &alice, PASSWORD, NEW, "192.0.2.1").await.status, StatusCode::OK, "{}", authz.name());
    }
}

#[tokio::test]
async fn of_five_changes_at_once_one_wins_and_leaves_one_session() {
    for authz in everywhere().await {
        let alice = authz.person("alice").await;
        let news: Vec<String> = (0..5).map(|n| format!("{NEW} number {n}")).collect();
        let replies = join_all(news.iter().map(|new| change(&authz, &alice, PASSWORD, new, "192.0.2.1"))).await;
        let won: Vec<_> = replies.iter().zip(&news).filter(|(reply, _)| reply.status == StatusCode::OK).collect();
        assert_eq!(won.len(), 1, "{}: {replies:?}", authz.name());
        assert!(holds(&authz, &Person::of(won[0].0)).await);
        assert_eq!(authz.count("SELECT COUNT(*) FROM sessions").await, 1);
        assert_eq!(authz.login("alice", won[0].1, "192.0.2.9").await.status, StatusCode::OK);
    }
}
