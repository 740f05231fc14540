//! The first operator.

use futures_util::future::join_all;
use http::StatusCode;
use serde_json::{Value, json};

use super::harness::*;

fn operator(token: &str, email: &str) -> Value {
    json!({
        "token": token, "email": email, "password": "a lodge needs many long sticks", "locale": "en",
        "browser": browser("192.0.2.1", None),
    })
}

#[tokio::test]
async fn the_link_makes_one_operator_who_has_no_instance() {
    for authz in everywhere().await {
        assert_eq!(authz.get("/portal/operator").await.json::<Value>(), json!({"exists": false}));
        for wrong in ["", "x", &OPERATOR_TOKEN[1..], &format!("{OPERATOR_TOKEN}x"), INTERNAL_TOKEN] {
            let reply = authz.post("/portal/operator", &operator(wrong, "op@example.com")).await;
            assert_eq!(reply.problem(), (403, "operator_link_invalid".into()));
        }
        let mut weak = operator(OPERATOR_TOKEN, "op@example.com");
        weak["password"] = json!("op@example.comop@example.com");
        assert_eq!(authz.post("/portal/operator", &weak).await.field().1, "password_weak");
        let reply = authz.post("/portal/operator", &operator(OPERATOR_TOKEN, "op@example.com")).await;
        assert_eq!(reply.status, StatusCode::CREATED, "{}: {}", authz.name(), reply.text);
        let session = &reply.json::<Value>()["session"];
        assert_eq!(session["role"], "operator");
        assert!(session.get("slug").is_none() && session.get("instance_id").is_none(), "{session}");
        assert_eq!(authz.get("/portal/operator").await.json::<Value>(), json!({"exists": true}));
        let second = authz.post("/portal/operator", &operator(OPERATOR_TOKEN, "second@example.com")).await;
        assert_eq!(second.problem(), (409, "operator_exists".into()));
        assert_eq!(authz.post("/portal/operator", &operator("x", "x@example.com")).await.status, StatusCode::FORBIDDEN);
        let login = authz.login("op@example.com", "a lodge needs many long sticks", "192.0.2.1").await;
        assert_eq!(login.json::<Value>()["session"]["role"], "operator");
        let body = json!({"session_token": Person::of(&login).token, "slug": "alice", "purpose": "provider-test"});
        assert_eq!(authz.post("/portal/assertion", &body).await.problem(), (404, "instance_not_found".into()));
        assert_eq!(authz.deploy.calls(), 0);
    }
}

#[tokio::test]
async fn of_twenty_with_the_link_at_once_one_becomes_operator() {
    for authz in everywhere().await {
        let bodies: Vec<_> = (0..20).map(|i| operator(OPERATOR_TOKEN, &format!("op{i}@example.com"))).collect();
        let replies = join_all(bodies.iter().map(|body| authz.post("/portal/operator", body))).await;
        let won = replies.iter().filter(|reply| reply.status == StatusCode::CREATED).count();
        assert_eq!(won, 1, "{}", authz.name());
        for reply in replies.iter().filter(|reply| reply.status != StatusCode::CREATED) {
            assert_eq!(reply.problem(), (409, "operator_exists".into()));
        }
        assert_eq!(authz.count("SELECT COUNT(*) FROM accounts").await, 1);
    }
}

#[tokio::test]
async fn an_address_that_has_an_account_leaves_the_link_good() {
    let authz = Authz::simple().await;
    authz.person("alice").await;
    let reply = authz.post("/portal/operator", &operator(OPERATOR_TOKEN, "alice@example.com")).await;
    assert_eq!(reply.field(), (409, "email_taken".into(), "email".into()));
    let reply = authz.post("/portal/operator", &operator(OPERATOR_TOKEN, "op@example.com")).await;
    assert_eq!(reply.status, StatusCode::CREATED);
}
