//! Assertions for the hand-off into an instance, and who does not get one.

use http::StatusCode;
use serde_json::{Value, json};
use token::{Edge, EdgeClaims, Expected, Kind};

use super::harness::*;

/// base64url of some SHA-256.
const BIND: &str = "n4bQgYhMfWWaL-qgxVrQFaO_TxsrC4Is0V1sFbDwCgg";

fn ask(person: &Person, slug: &str, purpose: &str, bind: Option<&str>) -> Value {
    json!({"session_token": person.token, "slug": slug, "purpose": purpose, "bind": bind})
}

#[tokio::test]
async fn a_login_assertion_says_who_for_where_and_for_a_minute() {
    for authz in everywhere().await {
        let alice = authz.person("alice").await;
        let reply = authz.post("/portal/assertion", &ask(&alice, "alice", "login", Some(BIND))).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text);
        let body: Value = reply.json();
        assert_eq!(body["instance_id"], alice.instance_id.as_str());
        let claims = authz.verify_assertion(body["assertion"].as_str().unwrap(), "alice");
        assert_eq!((&claims.iss, &claims.aud), (&ISSUER.to_owned(), &"http://alice.localhost:8088".to_owned()));
        assert_eq!((&claims.sub, claims.exp - claims.iat), (&alice.account_id, 60));
        assert_eq!(claims.extra.purpose, token::Purpose::Login);
        assert_eq!((claims.extra.sid.as_ref(), claims.extra.bind.as_deref()), (Some(&alice.sid), Some(BIND)));
        let again: Value = authz.post("/portal/assertion", &ask(&alice, "alice", "login", Some(BIND))).await.json();
        assert_ne!(authz.verify_assertion(again["assertion"].as_str().unwrap(), "alice").jti, claims.jti);

        let edge = body["edge_token"].as_str().unwrap();
        let expected = authz.expected("http://alice.localhost:8088");
        let edge: EdgeClaims = token::verify::<Edge>(Kind::Edge, edge, &expected, &authz.app.keys.published()).unwrap();
        assert_eq!((edge.sub, edge.extra.sid), (alice.account_id, alice.sid));
        assert_eq!(edge.exp, START_MS / 1000 + 7 * 24 * 3600, "as long as the session");
    }
}

#[tokio::test]
async fn one_kind_of_token_is_no_other() {
    let authz = Authz::simple().await;
    let alice = authz.person("alice").await;
    let body: Value = authz.post("/portal/assertion", &ask(&alice, "alice", "login", Some(BIND))).await.json();
    let keys = authz.app.keys.published();
    for (token, kind) in [("edge_token", Kind::Assertion), ("assertion", Kind::Edge), ("assertion", Kind::AccessToken)]
    {
        let origin = "http://alice.localhost:8088";
        let refused = token::verify::<Value>(kind, body[token].as_str().unwrap(), &authz.expected(origin), &keys);
        assert!(matches!(refused, Err(token::Error::WrongType)), "{token} as {kind:?}: {refused:?}");
    }
    let elsewhere = authz.expected("http://bob.localhost:8088");
    let refused = token::verify::<Value>(Kind::Assertion, body["assertion"].as_str().unwrap(), &elsewhere, &keys);
    assert!(matches!(refused, Err(token::Error::Audience)));
    let later = Expected { now_s: START_MS / 1000 + 66, ..authz.expected("http://alice.localhost:8088") };
    let refused = token::verify::<Value>(Kind::Assertion, body["assertion"].as_str().unwrap(), &later, &keys);
    assert!(matches!(refused, Err(token::Error::Expired)));
}

#[tokio::test]
async fn a_provider_test_has_no_bind_and_gives_no_edge_token() {
    let authz = Authz::simple().await;
    let alice = authz.person("alice").await;
    let body: Value = authz.post("/portal/assertion", &ask(&alice, "alice", "provider-test", None)).await.json();
    let claims = authz.verify_assertion(body["assertion"].as_str().unwrap(), "alice");
    assert_eq!((claims.extra.purpose, claims.extra.bind), (token::Purpose::ProviderTest, None));
    assert!(body.get("edge_token").is_none());
}

#[tokio::test]
async fn nobody_gets_an_assertion_for_what_is_not_theirs() {
    for authz in everywhere().await {
        let (alice, bob) = (authz.person("alice").await, authz.person("bob").await);
        let reply = authz.post("/portal/assertion", &ask(&bob, "alice", "login", Some(BIND))).await;
        assert_eq!(reply.problem(), (404, "instance_not_found".into()), "{}", authz.name());
        let missing = authz.post("/portal/assertion", &ask(&bob, "nobody", "login", Some(BIND))).await;
        assert_eq!(missing.problem(), reply.problem(), "what is not there and what is somebody else's look the same");
        for (purpose, bind, field) in [
            ("login", None, "bind"),
            ("login", Some(""), "bind"),
            ("login", Some("short"), "bind"),
            ("login", Some(&*format!("{BIND}A")), "bind"),
            ("provider-test", Some(BIND), "bind"),
            ("register", None, "purpose"),
            ("register", Some(BIND), "purpose"),
            ("logout", None, "purpose"),
        ] {
            let reply = authz.post("/portal/assertion", &ask(&alice, "alice", purpose, bind)).await;
            assert_eq!(reply.field(), (400, "invalid_request".into(), field.into()), "{purpose} {bind:?}");
        }
        authz.post("/portal/logout", &json!({"session_token": alice.token})).await;
        let ended = authz.post("/portal/assertion", &ask(&alice, "alice", "login", Some(BIND))).await;
        assert_eq!(ended.problem(), (401, "session_ended".into()));
        let stranger = Person { token: "made up".into(), ..bob };
        let refused = authz.post("/portal/assertion", &ask(&stranger, "bob", "login", Some(BIND))).await;
        assert_eq!(refused.problem(), (401, "session_ended".into()));
    }
}

#[tokio::test]
async fn an_assertion_asked_for_while_everything_ends_comes_before_the_end_or_not_at_all() {
    for authz in everywhere().await {
        let alice = authz.person("alice").await;
        let account = crate::accounts::by_id(authz.store.pool(), &alice.account_id).await.unwrap().unwrap();
        // As a change of the password has it in the middle of its transaction.
        let mut transaction = authz.app.store.begin().await.unwrap();
        crate::sessions::end_all(&mut transaction, &account).await.unwrap();
        crate::goodbyes::insert(&mut transaction, &authz.app, &account, None).await.unwrap();
        authz.hand.advance_ms(1_000);
        let asked = ask(&alice, "alice", "login", Some(BIND));
        let asking = authz.post("/portal/assertion", &asked);
        let mut asking = std::pin::pin!(asking);
        // Many times as long as an answer takes that waits for nobody.
        let meanwhile = async {
            for _ in 0..200 {
                authz.session("of nobody").await;
            }
        };
        tokio::select! {
            biased;
            early = asking.as_mut() => panic!("{}: answered before it was decided: {}", authz.name(), early.text),
            () = meanwhile => {}
        }
        transaction.commit().await.unwrap();
        assert_eq!(asking.await.problem(), (401, "session_ended".into()), "{}", authz.name());
    }
}
