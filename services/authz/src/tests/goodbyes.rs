//! Workspaces hear that sessions ended: at once, or when they can.

use std::{collections::HashSet, sync::Arc, time::Duration};

use contracts::deploy::Phase;
use futures_util::future::join_all;
use http::StatusCode;
use serde_json::json;

use super::harness::*;
use crate::{
    goodbyes::Goodbye,
    outbox::{self, send_due},
};

const DAY_MS: i64 = 24 * 3_600_000;

async fn sign_out(authz: &Authz, token: &str, everywhere: bool) {
    let reply = authz.post("/portal/logout", &json!({"session_token": token, "everywhere": everywhere})).await;
    assert_eq!(reply.status, StatusCode::NO_CONTENT, "{}", reply.text);
    assert_eq!(authz.session(token).await.status, StatusCode::UNAUTHORIZED, "{}", authz.name());
}

async fn waiting(authz: &Authz) -> i64 {
    authz.count("SELECT COUNT(*) FROM goodbyes").await
}

/// The session ids that a workspace heard of, in their order; every assertion was good when it came.
fn sids(authz: &Authz, person: &Person, from: usize) -> Vec<Option<String>> {
    let heard = authz.workspaces.heard(person);
    heard[from..].iter().map(|said| authz.verify_assertion(said, &person.slug).extra.sid).collect()
}

#[tokio::test]
async fn a_stopped_workspace_hears_it_when_it_is_back_by_an_assertion_of_that_moment() {
    for authz in everywhere().await {
        let alice = authz.person("alice").await;
        authz.workspaces.answer_with(503);
        sign_out(&authz, &alice.token, false).await;
        assert_eq!((waiting(&authz).await, authz.workspaces.heard(&alice).len()), (1, 1), "{}", authz.name());
        // Not before its time.
        assert_eq!(send_due::<Goodbye>(&authz.app).await.unwrap(), 0);
        for attempt in 2..=8 {
            authz.hand.advance_ms(120_000);
            assert_eq!(send_due::<Goodbye>(&authz.app).await.unwrap(), 1, "attempt {attempt}");
            // Verified with the clock of this moment: the first one would have ended long ago.
            assert_eq!(sids(&authz, &alice, attempt - 1), [Some(alice.sid.clone())], "{}", authz.name());
        }
        authz.workspaces.answer_with(0);
        authz.hand.advance_ms(120_000);
        assert_eq!(send_due::<Goodbye>(&authz.app).await.unwrap(), 1);
        assert_eq!(waiting(&authz).await, 0, "{}", authz.name());
        let all: HashSet<_> = authz.workspaces.heard(&alice).into_iter().collect();
        assert_eq!(all.len(), 9, "no assertion twice");
    }
}

#[tokio::test]
async fn only_a_204_ends_the_attempts() {
    for authz in everywhere().await {
        let alice = authz.person("alice").await;
        authz.workspaces.answer_with(200);
        sign_out(&authz, &alice.token, false).await;
        for status in [401, 404, 409, 422, 500, 202] {
            authz.workspaces.answer_with(status);
            authz.hand.advance_ms(120_000);
            assert_eq!(send_due::<Goodbye>(&authz.app).await.unwrap(), 1, "{status}");
            assert_eq!(waiting(&authz).await, 1, "{}: {status}", authz.name());
        }
        authz.workspaces.answer_with(204);
        authz.hand.advance_ms(120_000);
        assert_eq!(send_due::<Goodbye>(&authz.app).await.unwrap(), 1);
        assert_eq!(waiting(&authz).await, 0, "{}", authz.name());
    }
}

#[tokio::test]
async fn a_workspace_that_never_answers_holds_up_neither_the_page_nor_another_workspace() {
    let authz = Authz::simple().await;
    let (alice, bob) = (authz.person("alice").await, authz.person("bob").await);
    authz.workspaces.hang(&alice);
    // Four attempts, one after the other and each to its limit, would take 20 s.
    tokio::time::timeout(Duration::from_secs(8), async {
        sign_out(&authz, &alice.token, false).await;
        for _ in 0..3 {
            let again = Person::of(&authz.login("alice", PASSWORD, "192.0.2.1").await);
            sign_out(&authz, &again.token, false).await;
        }
        sign_out(&authz, &bob.token, false).await;
    })
    .await
    .unwrap();
    assert_eq!(sids(&authz, &bob, 0), [Some(bob.sid.clone())]);
    // Of one workspace, one at a time is leased.
    authz.hand.advance_ms(60_000);
    let leased = outbox::lease::<Goodbye>(&authz.app, &[], outbox::AT_ONCE).await.unwrap();
    assert_eq!((leased.len(), waiting(&authz).await), (1, 4));
}

#[tokio::test]
async fn what_a_dead_process_was_about_to_say_is_said_by_the_next() {
    for authz in everywhere().await {
        let alice = authz.person("alice").await;
        // As kill -9 right after the commit leaves it: the row, leased to nobody who lives.
        left_behind(&authz, &alice).await;
        assert_eq!(send_due::<Goodbye>(&authz.app).await.unwrap(), 0, "leased");
        let stop = service::Shutdown::new();
        let next = authz.another_process(outbox::LEASE_MS).await;
        let worker = tokio::spawn(outbox::work::<Goodbye>(next, stop.clone()));
        let said = async {
            while waiting(&authz).await > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), said).await.unwrap();
        stop.cancel();
        worker.await.unwrap();
        authz.hand.advance_ms(outbox::LEASE_MS);
        assert_eq!(sids(&authz, &alice, 0), [Some(alice.sid.clone())], "{}", authz.name());
    }
}

#[tokio::test]
async fn a_sign_out_that_is_rolled_back_says_nothing() {
    for authz in everywhere().await {
        let alice = authz.person("alice").await;
        let account = crate::accounts::by_id(authz.store.pool(), &alice.account_id).await.unwrap().unwrap();
        let mut transaction = authz.app.store.begin().await.unwrap();
        crate::goodbyes::insert(&mut transaction, &authz.app, &account, None).await.unwrap();
        transaction.rollback().await.unwrap();
        assert_eq!(waiting(&authz).await, 0, "{}", authz.name());
    }
}

#[tokio::test]
async fn everywhere_takes_the_place_of_what_waits_and_so_does_one_too_many() {
    for authz in everywhere().await {
        let alice = authz.person("alice").await;
        authz.workspaces.answer_with(503);
        let sign_in_and_out = async |everywhere| {
            let session = Person::of(&authz.login("alice", PASSWORD, "192.0.2.1").await);
            sign_out(&authz, &session.token, everywhere).await;
        };
        for _ in 0..3 {
            sign_in_and_out(false).await;
        }
        assert_eq!(waiting(&authz).await, 3);
        sign_in_and_out(true).await;
        assert_eq!(waiting(&authz).await, 1);
        authz.workspaces.answer_with(0);
        authz.hand.advance_ms(120_000);
        let before = authz.workspaces.heard(&alice).len();
        assert_eq!(send_due::<Goodbye>(&authz.app).await.unwrap(), 1);
        assert_eq!(sids(&authz, &alice, before), [None], "{}", authz.name());

        authz.workspaces.answer_with(503);
        for _ in 0..21 {
            sign_in_and_out(false).await;
        }
        assert_eq!(waiting(&authz).await, 1);
        let before = authz.workspaces.heard(&alice).len();
        authz.hand.advance_ms(120_000);
        send_due::<Goodbye>(&authz.app).await.unwrap();
        assert_eq!(sids(&authz, &alice, before), [None], "{}", authz.name());
    }
}

#[tokio::test]
async fn a_workspace_that_is_gone_is_told_nothing_more_and_one_that_may_be_there_is() {
    for authz in everywhere().await {
        let alice = authz.person("alice").await;
        authz.workspaces.answer_with(503);
        sign_out(&authz, &alice.token, false).await;
        let again = async || {
            authz.hand.advance_ms(120_000);
            send_due::<Goodbye>(&authz.app).await.unwrap();
            waiting(&authz).await
        };
        // deploy-control away is no answer.
        authz.deploy.fail_with(503);
        assert_eq!(again().await, 1, "{}", authz.name());
        authz.deploy.fail_with(0);
        assert_eq!(again().await, 1, "the control: it is there");
        authz.deploy.forget();
        assert_eq!(again().await, 0, "{}", authz.name());
    }
}

#[tokio::test]
async fn after_seven_days_no_session_can_be_left() {
    for authz in everywhere().await {
        let alice = authz.person("alice").await;
        authz.workspaces.answer_with(503);
        sign_out(&authz, &alice.token, false).await;
        authz.hand.advance_ms(7 * DAY_MS - 1);
        send_due::<Goodbye>(&authz.app).await.unwrap();
        assert_eq!(waiting(&authz).await, 1, "{}", authz.name());
        authz.hand.advance_ms(120_000);
        send_due::<Goodbye>(&authz.app).await.unwrap();
        assert_eq!(waiting(&authz).await, 0, "{}", authz.name());
    }
}

#[tokio::test]
async fn an_operator_has_no_workspace_to_tell() {
    let authz = Authz::simple().await;
    let body = json!({
        "token": OPERATOR_TOKEN, "email": "op@example.com", "password": PASSWORD, "locale": "en",
        "browser": browser("192.0.2.1", None),
    });
    let operator = Person::of(&authz.post("/portal/operator", &body).await);
    authz.workspaces.answer_with(503);
    sign_out(&authz, &operator.token, true).await;
    assert_eq!(waiting(&authz).await, 0);
}

#[tokio::test]
async fn two_workers_say_each_once() {
    for authz in everywhere().await {
        let mut people = vec![];
        for n in 0..6 {
            people.push(authz.person(&format!("person-{n}")).await);
        }
        authz.workspaces.answer_with(503);
        for person in &people {
            sign_out(&authz, &person.token, false).await;
        }
        authz.workspaces.answer_with(0);
        authz.hand.advance_ms(60_000);
        let tried = join_all((0..4).map(|_| send_due::<Goodbye>(&authz.app))).await;
        assert_eq!(tried.into_iter().map(Result::unwrap).sum::<usize>(), 6, "{}", authz.name());
        assert!(people.iter().all(|person| authz.workspaces.heard(person).len() == 2), "{}", authz.name());
    }
}

#[tokio::test]
async fn a_workspace_that_is_known_not_to_run_is_not_called_until_it_does() {
    for authz in everywhere().await {
        let alice = authz.person("alice").await;
        authz.workspaces.answer_with(503);
        sign_out(&authz, &alice.token, false).await;
        let calls = async |phase| {
            authz.deploy.say(phase);
            let before = authz.workspaces.heard(&alice).len();
            authz.hand.advance_ms(60_000);
            assert_eq!(send_due::<Goodbye>(&authz.app).await.unwrap(), 1);
            authz.workspaces.heard(&alice).len() - before
        };
        for (phase, expected) in [(Phase::Stopped, 0), (Phase::Failed, 0), (Phase::Unknown, 1), (Phase::Starting, 1)] {
            assert_eq!((calls(phase).await, waiting(&authz).await), (expected, 1), "{}: {phase:?}", authz.name());
        }
        authz.workspaces.answer_with(0);
        assert_eq!((calls(Phase::Ready).await, waiting(&authz).await), (1, 0), "{}", authz.name());
    }
}

#[tokio::test]
async fn a_workspace_that_does_not_run_is_asked_after_about_once_a_minute() {
    for authz in everywhere().await {
        let alice = authz.person("alice").await;
        authz.workspaces.answer_with(503);
        sign_out(&authz, &alice.token, false).await;
        authz.deploy.say(Phase::Stopped);
        let mut asked = 0;
        for _ in 0..60 {
            authz.hand.advance_ms(10_000);
            asked += send_due::<Goodbye>(&authz.app).await.unwrap();
        }
        assert!((9..=21).contains(&asked), "{}: {asked} times in ten minutes", authz.name());
    }
}

/// What the next process finds of a sign-out whose process died.
async fn left_behind(authz: &Authz, person: &Person) {
    let account = crate::accounts::by_id(authz.store.pool(), &person.account_id).await.unwrap().unwrap();
    let mut transaction = authz.app.store.begin().await.unwrap();
    let row = crate::goodbyes::insert(&mut transaction, &authz.app, &account, Some(&person.sid)).await.unwrap();
    transaction.commit().await.unwrap();
    drop(row.unwrap());
}

#[tokio::test]
async fn one_that_takes_its_time_holds_up_only_its_own() {
    for authz in everywhere().await {
        let (alice, bob) = (authz.person("alice").await, authz.person("bob").await);
        authz.workspaces.hang(&alice);
        left_behind(&authz, &alice).await;
        left_behind(&authz, &alice).await;
        let stop = service::Shutdown::new();
        let next = authz.another_process(outbox::LEASE_MS).await;
        let worker = tokio::spawn(outbox::work::<Goodbye>(Arc::clone(&next), stop.clone()));
        let until = async |what: &dyn Fn() -> bool| {
            let waiting = async {
                while !what() {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap();
        };
        until(&|| !authz.workspaces.heard(&alice).is_empty()).await;
        left_behind(&authz, &bob).await;
        next.goodbyes_nudge.notify_one();
        until(&|| !authz.workspaces.heard(&bob).is_empty()).await;
        // The first attempt at alice's is still under way, and there is no second one beside it.
        assert_eq!(authz.count("SELECT COUNT(*) FROM goodbyes WHERE attempts > 0").await, 0, "{}", authz.name());
        assert_eq!(authz.workspaces.heard(&alice).len(), 1, "{}", authz.name());
        stop.cancel();
        worker.await.unwrap();
    }
}

#[tokio::test]
async fn before_the_person_is_let_in_again_what_was_to_end_ends() {
    for authz in everywhere().await {
        let (alice, bob) = (authz.person("alice").await, authz.person("bob").await);
        authz.workspaces.answer_with(503);
        sign_out(&authz, &alice.token, true).await;
        sign_out(&authz, &bob.token, true).await;
        let again = Person::of(&authz.login("alice", PASSWORD, "192.0.2.1").await);
        let hand_off =
            json!({"session_token": again.token, "slug": "alice", "purpose": "login", "bind": "A".repeat(43)});
        // As long as it does not answer, that holds nobody up.
        assert_eq!(authz.post("/portal/assertion", &hand_off).await.status, StatusCode::OK);
        authz.workspaces.answer_with(0);
        let before = authz.workspaces.heard(&alice).len();
        assert_eq!(authz.post("/portal/assertion", &hand_off).await.status, StatusCode::OK);
        assert_eq!(sids(&authz, &alice, before), [None], "{}", authz.name());
        assert_eq!(waiting(&authz).await, 1, "bob's still waits");
        assert_eq!(authz.post("/portal/assertion", &hand_off).await.status, StatusCode::OK);
        assert_eq!(authz.workspaces.heard(&alice).len(), before + 1, "once");
    }
}

#[tokio::test]
async fn a_workspace_that_was_away_for_long_hears_it_within_seconds_of_being_back() {
    for authz in everywhere().await {
        let alice = authz.person("alice").await;
        authz.workspaces.answer_with(503);
        sign_out(&authz, &alice.token, false).await;
        for attempt in 2..=12 {
            // Five seconds, and half as many that chance adds.
            authz.hand.advance_ms(7_500);
            assert_eq!(send_due::<Goodbye>(&authz.app).await.unwrap(), 1, "{}: attempt {attempt}", authz.name());
        }
        authz.workspaces.answer_with(0);
        authz.hand.advance_ms(7_500);
        send_due::<Goodbye>(&authz.app).await.unwrap();
        assert_eq!(waiting(&authz).await, 0, "{}", authz.name());
    }
}

#[tokio::test]
async fn what_is_said_late_is_of_the_moment_when_the_sessions_ended() {
    for authz in everywhere().await {
        let alice = authz.person("alice").await;
        authz.workspaces.answer_with(503);
        let ended_at_ms = authz.app.clock.now_ms();
        sign_out(&authz, &alice.token, true).await;
        authz.hand.advance_ms(120_000);
        send_due::<Goodbye>(&authz.app).await.unwrap();
        let said = authz.workspaces.heard(&alice).pop().unwrap();
        let claims = authz.verify_assertion(&said, &alice.slug);
        assert_eq!((claims.at_ms(), claims.iat), (ended_at_ms, authz.app.clock.now_s()), "{}", authz.name());
        let again = Person::of(&authz.login("alice", PASSWORD, "192.0.2.1").await);
        let hand_off =
            json!({"session_token": again.token, "slug": "alice", "purpose": "login", "bind": "A".repeat(43)});
        let issued: serde_json::Value = authz.post("/portal/assertion", &hand_off).await.json();
        let claims = authz.verify_assertion(issued["assertion"].as_str().unwrap(), &alice.slug);
        assert_eq!(claims.at_ms(), authz.app.clock.now_ms(), "{}", authz.name());
    }
}
