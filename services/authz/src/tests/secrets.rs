//! No secret in what is logged, answered, or kept.

use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use clock::Entropy;
use http::StatusCode;
use serde_json::json;
use sqlx::Row;
use token::SigningKey;
use tracing_subscriber::{fmt::MakeWriter, prelude::*};

use super::harness::*;

/// Everything that was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;
    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

const CANARY: &str = "canary of a pass phrase in seven";
const WRONG_CANARY: &str = "wrong canary of a pass phrase";

/// One of everything that has a secret in it; the secrets.
async fn whole_path(authz: &Authz) -> Vec<String> {
    let mut body = sign_up("alice");
    body["password"] = json!(CANARY);
    let key = "canary-idempotency-key-1";
    let alice = Person::of(&authz.register_with(key, &body).await);
    authz.register_with(key, &body).await;
    body["password"] = json!(WRONG_CANARY);
    authz.register_with(key, &body).await;
    let login = authz.login("alice", CANARY, "192.0.2.1").await;
    assert_eq!(login.status, StatusCode::OK);
    authz.login("alice", WRONG_CANARY, "192.0.2.1").await;
    authz.login(WRONG_CANARY, WRONG_CANARY, "192.0.2.1").await;
    authz.session(&alice.token).await;
    authz.session("canary-of-a-made-up-session").await;
    let ask = json!({"session_token": alice.token, "slug": "alice", "purpose": "provider-test"});
    let assertion = authz.post("/portal/assertion", &ask).await.json::<serde_json::Value>();
    let initial = authz.initial_access_token(&alice).await;
    let signing = SigningKey::generate(&Entropy::system()).unwrap();
    authz.oauth_register(Some(&initial), &jwks(&signing)).await;
    authz.oauth_register(Some("canary-of-a-made-up-token"), &jwks(&signing)).await;
    let client = authz.client(&alice, &signing).await;
    let proof = authz.client_assertion(&signing, &client);
    let access = authz.token(&[("client_assertion", &proof)]).await.json::<serde_json::Value>();
    authz.token(&[("client_assertion", &proof)]).await;
    authz
        .post(
            "/portal/operator",
            &json!({"token": "canary-of-a-link", "email": "o@example.com", "password": WRONG_CANARY, "locale": "en", "browser": browser("192.0.2.1", None)}),
        )
        .await;
    authz
        .post(
            "/portal/operator",
            &json!({"token": OPERATOR_TOKEN, "email": "o@example.com", "password": CANARY, "locale": "en", "browser": browser("192.0.2.1", None)}),
        )
        .await;
    let operator = authz.login("o@example.com", CANARY, "192.0.2.1").await;
    assert_eq!(operator.status, StatusCode::OK, "{}", operator.text);
    let operator = Person::of(&operator);
    let body = json!({"session_token": operator.token, "slug": "alice", "suspended": true, "reason": "a test"});
    assert_eq!(authz.post("/portal/operator/suspend", &body).await.status, StatusCode::OK);
    authz.post("/portal/login", &json!({"login": 5, "password": WRONG_CANARY})).await;
    let carol = authz.person("carol").await;
    let new = "canary of a new pass phrase in eight";
    for old in [WRONG_CANARY, PASSWORD] {
        let body = json!({
            "session_token": carol.token, "old_password": old, "new_password": new,
            "browser": browser("192.0.2.1", Some(&carol.device)),
        });
        authz.post("/portal/password", &body).await;
    }
    authz.deploy.fail_with(503);
    let bob = authz.person("bob").await;
    authz.workspaces.answer_with(503);
    authz.post("/portal/logout", &json!({"session_token": bob.token, "everywhere": true})).await;
    let goodbye = authz.workspaces.heard(&bob).remove(0);
    [
        CANARY,
        WRONG_CANARY,
        new,
        key,
        INTERNAL_TOKEN,
        OPERATOR_TOKEN,
        DEPLOY_TOKEN,
        ROUTER_TOKEN,
        SEAL_KEY,
        PASSWORD,
        &alice.token,
        &carol.token,
        &operator.token,
        &bob.token,
        &initial,
        &proof,
        &goodbye,
    ]
    .into_iter()
    .chain(["canary-of-a-made-up-session", "canary-of-a-made-up-token", "canary-of-a-link"])
    .chain([&assertion["assertion"], &access["access_token"]].map(|value| value.as_str().unwrap()))
    .chain([Person::of(&login).token.as_str(), &alice.device, alice.device.split('.').next().unwrap()])
    .map(str::to_owned)
    .collect()
}

fn found<'a>(secrets: &'a [String], text: &str) -> Vec<&'a str> {
    secrets.iter().map(String::as_str).filter(|secret| text.contains(*secret)).collect()
}

#[tokio::test]
async fn no_secret_is_logged_at_any_level() {
    for authz in everywhere().await {
        let log = Log::default();
        // Our own crates at their most talkative; libraries as loud as an operator's `debug` makes them.
        let filter =
            tracing_subscriber::EnvFilter::new("debug,authz=trace,service=trace,token=trace,store=trace,sqlx=debug");
        let subscriber =
            tracing_subscriber::registry().with(filter).with(tracing_subscriber::fmt::layer().with_writer(log.clone()));
        // For everything on this thread, which is all there is in this test's runtime, tasks of the service included. A
        // second one beside it, because with a single one tracing asks the threads of other tests whether to log.
        let _second = tracing::Dispatch::new(tracing_subscriber::registry());
        let guard = tracing::subscriber::set_default(subscriber);
        let secrets = whole_path(&authz).await;
        tracing::info!(planted = secrets[0].as_str(), "the control");
        drop(guard);
        let text = log.text();
        let (before, control) = text.trim_end().rsplit_once('\n').unwrap();
        assert_eq!(found(&secrets, before), Vec::<&str>::new(), "{}", authz.name());
        assert_eq!(found(&secrets, control), [CANARY], "a planted leak is found");
        for said in ["signed up", "signed in", "registered a client", "answered", "it was not heard"] {
            assert!(before.contains(said), "{}: nothing was captured of {said:?}", authz.name());
        }
    }
}

#[tokio::test]
async fn no_secret_is_readable_in_the_database() {
    for authz in everywhere().await {
        let secrets = whole_path(&authz).await;
        let mut all = String::new();
        for sql in [
            "SELECT * FROM accounts",
            "SELECT * FROM slugs",
            "SELECT * FROM sign_ups",
            "SELECT * FROM first_operator",
            "SELECT * FROM sessions",
            "SELECT * FROM deliveries",
            "SELECT * FROM goodbyes",
            "SELECT * FROM operator_actions",
            "SELECT * FROM stops",
            "SELECT * FROM login_failures",
            "SELECT * FROM devices",
            "SELECT * FROM sign_ups_by_address",
            "SELECT * FROM initial_access_tokens",
            "SELECT * FROM clients",
            "SELECT * FROM spent_assertions",
            "SELECT * FROM signing_keys",
        ] {
            let rows = sqlx::query(sql).fetch_all(authz.store.pool()).await.unwrap();
            assert!(!rows.is_empty(), "{sql}: nothing to look at");
            for row in rows {
                for column in 0..row.len() {
                    if let Ok(text) = row.try_get::<String, _>(column) {
                        all.push_str(&text);
                        all.push('\n');
                    }
                }
            }
        }
        assert_eq!(found(&secrets, &all), Vec::<&str>::new(), "{}", authz.name());
        assert!(all.contains("alice@example.com"), "the control: what is there is seen");
    }
}

#[test]
fn debug_output_of_what_travels_has_no_secret() {
    use contracts::authz::*;
    let shown = format!(
        "{:?} {:?} {:?}",
        serde_json::from_value::<RegisterAccount>(
            json!({"slug": "a", "email": "e", "password": CANARY, "locale": "en", "browser": {"address": "x", "device": CANARY}})
        )
        .unwrap(),
        serde_json::from_value::<Login>(
            json!({"login": "a", "password": CANARY, "browser": {"address": "x", "device": CANARY}, "replaces": CANARY})
        )
        .unwrap(),
        serde_json::from_value::<SessionToken>(json!({"session_token": CANARY})).unwrap(),
    );
    assert!(!shown.contains("canary"), "{shown}");
}
