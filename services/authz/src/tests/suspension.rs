//! Suspended accounts: what ends, what is refused, who did it.

use clock::Entropy;
use http::StatusCode;
use serde_json::{Value, json};
use token::SigningKey;

use super::harness::*;
use crate::{
    goodbyes::Goodbye,
    outbox::{Outbox, lease, send_due},
    stops::Stop,
};

const WRONG: &str = "certainly not the right one";

async fn operator(authz: &Authz) -> Person {
    let body = json!({
        "token": OPERATOR_TOKEN, "email": "op@example.com", "password": PASSWORD, "locale": "en",
        "browser": browser("192.0.2.250", None),
    });
    Person::of(&authz.post("/portal/operator", &body).await)
}

async fn suspend(authz: &Authz, by: &Person, slug: &str, suspended: bool, reason: &str) -> Reply {
    let body = json!({"session_token": by.token, "slug": slug, "suspended": suspended, "reason": reason});
    authz.post("/portal/operator/suspend", &body).await
}

async fn waiting(authz: &Authz) -> i64 {
    authz.count("SELECT COUNT(*) FROM stops").await
}

#[tokio::test]
async fn a_suspended_account_has_no_session_no_token_and_a_stopped_instance() {
    for authz in everywhere().await {
        let (alice, bob, operator) = (authz.person("alice").await, authz.person("bob").await, operator(&authz).await);
        let key = SigningKey::generate(&Entropy::system()).unwrap();
        let client = authz.client(&alice, &key).await;
        let token = async || authz.token(&[("client_assertion", &authz.client_assertion(&key, &client))]).await;
        assert_eq!(token().await.status, StatusCode::OK, "the control");
        let reply = suspend(&authz, &operator, "alice", true, " spam ").await;
        assert_eq!(reply.status, StatusCode::OK, "{}: {}", authz.name(), reply.text);
        assert_eq!(authz.session(&alice.token).await.problem(), (401, "session_ended".into()));
        assert_eq!(token().await.error(), "invalid_client");
        let heard = authz.workspaces.heard(&alice);
        assert_eq!(authz.verify_assertion(&heard[0], "alice").extra.sid, None, "all that the workspace has");
        assert_eq!(authz.deploy.stopped(), [alice.instance_id.as_str()], "{}", authz.name());
        assert_eq!(authz.deploy.stopped_for(), [Some("spam".into())], "{}", authz.name());

        // The right password is told why, with no session; a wrong one learns nothing of it.
        let reply = authz.login("alice", PASSWORD, "192.0.2.1").await;
        assert_eq!(reply.problem(), (403, "account_suspended".into()), "{}", authz.name());
        assert!(!reply.text.contains("token"), "{}", reply.text);
        assert_eq!(authz.login("alice", WRONG, "192.0.2.1").await.problem(), (401, "bad_credentials".into()));
        assert_eq!(authz.count("SELECT COUNT(*) FROM sessions").await, 2, "bob's and the operator's");
        assert_eq!(authz.session(&bob.token).await.status, StatusCode::OK);

        assert_eq!(suspend(&authz, &operator, "alice", false, "").await.status, StatusCode::OK);
        assert_eq!(authz.session(&alice.token).await.problem(), (401, "session_ended".into()), "what ended has ended");
        assert_eq!(token().await.status, StatusCode::OK);
        assert_eq!(authz.login("alice", PASSWORD, "192.0.2.1").await.status, StatusCode::OK, "{}", authz.name());
    }
}

#[tokio::test]
async fn a_sign_up_that_is_sent_again_is_no_way_in() {
    let authz = Authz::simple().await;
    let key = "the-same-key-twice-0001";
    authz.register_with(key, &sign_up("alice")).await;
    let operator = operator(&authz).await;
    suspend(&authz, &operator, "alice", true, "spam").await;
    assert_eq!(authz.register_with(key, &sign_up("alice")).await.problem(), (403, "account_suspended".into()));
}

#[tokio::test]
async fn a_session_that_a_sign_in_under_way_began_is_none() {
    for authz in everywhere().await {
        let (alice, operator) = (authz.person("alice").await, operator(&authz).await);
        suspend(&authz, &operator, "alice", true, "spam").await;
        // As a sign-in leaves it that had looked at the account before.
        let account = crate::accounts::by_id(authz.store.pool(), &alice.account_id).await.unwrap().unwrap();
        let asked = serde_json::from_value(browser("192.0.2.1", None)).unwrap();
        let visitor = crate::devices::Visitor::read(&authz.app, &asked).unwrap();
        let mut transaction = authz.app.store.begin().await.unwrap();
        let late = crate::sessions::begin(&mut transaction, &authz.app, &account, &visitor).await.unwrap();
        transaction.commit().await.unwrap();
        let token = secrecy::ExposeSecret::expose_secret(&late.session_token).to_owned();
        assert_eq!(authz.session(&token).await.problem(), (401, "session_ended".into()), "{}", authz.name());
        suspend(&authz, &operator, "alice", false, "").await;
        assert_eq!(authz.session(&token).await.problem(), (401, "session_ended".into()), "nor does it come to life");
    }
}

#[tokio::test]
async fn the_instance_is_stopped_however_long_that_takes_and_once_more_after_a_minute() {
    for authz in everywhere().await {
        let (alice, operator) = (authz.person("alice").await, operator(&authz).await);
        authz.deploy.fail_with(503);
        assert_eq!(suspend(&authz, &operator, "alice", true, "spam").await.status, StatusCode::OK);
        for _ in 0..3 {
            authz.hand.advance_ms(120_000);
            assert_eq!(send_due::<Stop>(&authz.app).await.unwrap(), 1);
            assert_eq!((waiting(&authz).await, authz.deploy.stopped().len()), (1, 0), "{}", authz.name());
        }
        authz.deploy.fail_with(0);
        // The process is another by now, and knows why as well.
        send_due::<Stop>(&authz.another_process(120_000).await).await.unwrap();
        assert_eq!((waiting(&authz).await, authz.deploy.stopped().len()), (1, 1), "{}", authz.name());
        authz.hand.advance_ms(120_000);
        // A start that was under way is undone; then it is over.
        assert_eq!(send_due::<Stop>(&authz.app).await.unwrap(), 0);
        authz.hand.advance_ms(60_000);
        send_due::<Stop>(&authz.app).await.unwrap();
        assert_eq!((waiting(&authz).await, authz.deploy.stopped().len()), (0, 2), "{}", authz.name());
        assert!(authz.deploy.stopped().iter().all(|id| *id == alice.instance_id));
        assert!(authz.deploy.stopped_for().iter().all(|reason| reason.as_deref() == Some("spam")));
    }
}

#[tokio::test]
async fn an_instance_that_deploy_control_has_yet_to_take_is_stopped_once_it_has() {
    for authz in everywhere().await {
        authz.deploy.fail_with(503);
        authz.person("alice").await;
        let operator = operator(&authz).await;
        // It answers again, and knows of no such instance so far.
        authz.deploy.fail_with(0);
        suspend(&authz, &operator, "alice", true, "spam").await;
        assert_eq!((waiting(&authz).await, authz.deploy.stopped().len()), (1, 0), "{}", authz.name());
        authz.hand.advance_ms(120_000);
        send_due::<crate::deliveries::Delivery>(&authz.app).await.unwrap();
        send_due::<Stop>(&authz.app).await.unwrap();
        assert_eq!(authz.deploy.stopped().len(), 1, "{}", authz.name());
        // One that is gone for good is nothing to stop.
        authz.deploy.forget();
        authz.hand.advance_ms(120_000);
        send_due::<Stop>(&authz.app).await.unwrap();
        assert_eq!(waiting(&authz).await, 0, "{}", authz.name());
    }
}

#[tokio::test]
async fn an_instance_that_deploy_control_refused_is_nothing_to_stop() {
    for authz in everywhere().await {
        authz.deploy.fail_with(409);
        authz.person("alice").await;
        let operator = operator(&authz).await;
        authz.deploy.fail_with(0);
        suspend(&authz, &operator, "alice", true, "spam").await;
        assert_eq!((waiting(&authz).await, authz.deploy.stopped().len()), (0, 0), "{}", authz.name());
    }
}

#[tokio::test]
async fn restoring_takes_back_a_stop_that_was_not_done() {
    for authz in everywhere().await {
        authz.person("alice").await;
        let operator = operator(&authz).await;
        authz.deploy.fail_with(503);
        suspend(&authz, &operator, "alice", true, "spam").await;
        suspend(&authz, &operator, "alice", false, "").await;
        assert_eq!(waiting(&authz).await, 0, "{}", authz.name());
        authz.deploy.fail_with(0);
        authz.hand.advance_ms(120_000);
        send_due::<Stop>(&authz.app).await.unwrap();
        send_due::<Goodbye>(&authz.app).await.unwrap();
        assert!(authz.deploy.stopped().is_empty());
    }
}

#[tokio::test]
async fn a_stop_that_is_tried_while_the_account_is_restored_is_not_asked_for_and_the_next_has_its_own_reason() {
    for authz in everywhere().await {
        authz.person("alice").await;
        let operator = operator(&authz).await;
        authz.deploy.fail_with(503);
        suspend(&authz, &operator, "alice", true, "spam").await;
        authz.hand.advance_ms(120_000);
        let leased = lease::<Stop>(&authz.app, &[], 1).await.unwrap().pop().expect("it is due");
        suspend(&authz, &operator, "alice", false, "").await;
        authz.deploy.fail_with(0);
        leased.attempt(&authz.app).await.unwrap();
        assert!(authz.deploy.stopped().is_empty(), "{}", authz.name());
        suspend(&authz, &operator, "alice", true, "mining").await;
        assert_eq!(authz.deploy.stopped_for(), [Some("mining".into())], "{}", authz.name());
    }
}

#[tokio::test]
async fn who_did_what_when_and_why_is_kept_and_what_is_so_already_is_not_done_again() {
    for authz in everywhere().await {
        let (alice, operator) = (authz.person("alice").await, operator(&authz).await);
        suspend(&authz, &operator, "alice", true, "  sends spam <b> ").await;
        suspend(&authz, &operator, "alice", true, "again").await;
        authz.hand.advance_ms(1_000);
        suspend(&authz, &operator, "alice", false, "it was a mistake").await;
        suspend(&authz, &operator, "alice", false, "").await;
        let body = json!({"session_token": operator.token, "slug": "Alice"});
        let view: Value = authz.post("/portal/operator/account", &body).await.json();
        let expected = json!({
            "account_id": alice.account_id, "instance_id": alice.instance_id, "slug": "alice",
            "email": "alice@example.com", "created_at_ms": START_MS,
            "actions": [
                {"at_ms": START_MS + 1_000, "actor": "op@example.com", "action": "restored", "reason": "it was a mistake"},
                {"at_ms": START_MS, "actor": "op@example.com", "action": "suspended", "reason": "sends spam <b>"},
            ],
        });
        assert_eq!(view, expected, "{}", authz.name());
        assert_eq!(authz.deploy.stopped().len(), 1);
    }
}

#[tokio::test]
async fn only_operators_may_and_only_persons_can_be_suspended() {
    for authz in everywhere().await {
        let (alice, bob, operator) = (authz.person("alice").await, authz.person("bob").await, operator(&authz).await);
        let ask = |who: &Person, slug: &str| json!({"session_token": who.token, "slug": slug});
        assert_eq!(suspend(&authz, &bob, "alice", true, "x").await.problem(), (403, "operator_required".into()));
        let reply = authz.post("/portal/operator/account", &ask(&bob, "alice")).await;
        assert_eq!(reply.problem(), (403, "operator_required".into()));
        let nobody = Person { token: "x".into(), ..bob };
        assert_eq!(suspend(&authz, &nobody, "alice", true, "x").await.problem(), (401, "session_ended".into()));
        for slug in ["nobody-at-all", "op@example.com", "alice@example.com", "", "' OR 1=1 --"] {
            let reply = suspend(&authz, &operator, slug, true, "x").await;
            assert_eq!(reply.problem(), (404, "account_not_found".into()), "{slug}");
        }
        for (reason, code) in
            [("", "reason_missing"), (" \n", "reason_missing"), (&*"x".repeat(501), "reason_too_long")]
        {
            let reply = suspend(&authz, &operator, "alice", true, reason).await;
            assert_eq!(reply.field(), (422, code.into(), "reason".into()));
        }
        assert_eq!(authz.session(&alice.token).await.status, StatusCode::OK, "{}", authz.name());
        assert_eq!(authz.count("SELECT COUNT(*) FROM operator_actions").await, 0);
    }
}

#[tokio::test]
async fn operators_see_who_is_suspended() {
    for authz in everywhere().await {
        let alice = authz.person("alice").await;
        authz.person("bob").await;
        authz.person("carol").await;
        let operator = operator(&authz).await;
        for slug in ["carol", "alice"] {
            authz.hand.advance_ms(1);
            suspend(&authz, &operator, slug, true, "spam").await;
        }
        let list = async || authz.post("/portal/operator/suspended", &json!({"session_token": operator.token})).await;
        assert_eq!(list().await.json::<Value>(), json!({"slugs": ["alice", "carol"]}), "{}", authz.name());
        suspend(&authz, &operator, "alice", false, "").await;
        assert_eq!(list().await.json::<Value>(), json!({"slugs": ["carol"]}), "{}", authz.name());
        let bob = Person::of(&authz.login("bob", PASSWORD, "192.0.2.1").await);
        let reply = authz.post("/portal/operator/suspended", &json!({"session_token": bob.token})).await;
        assert_eq!(reply.problem(), (403, "operator_required".into()));
        let reply = authz.post("/portal/operator/suspended", &json!({"session_token": alice.token})).await;
        assert_eq!(reply.problem(), (401, "session_ended".into()));
    }
}
