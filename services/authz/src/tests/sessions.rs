//! Sessions: how long they last, how they end, and who may ask.

use http::{Request, StatusCode};
use serde_json::{Value, json};

use super::harness::*;

const HOUR_MS: i64 = 3_600_000;

#[tokio::test]
async fn a_session_lasts_twelve_hours_unused_and_seven_days_at_the_most() {
    for authz in everywhere().await {
        let (used, unused) = (authz.person("alice").await, authz.person("bob").await);
        for _ in 0..15 {
            authz.hand.advance_ms(11 * HOUR_MS);
            assert_eq!(authz.session(&used.token).await.status, StatusCode::OK, "{}", authz.name());
        }
        assert_eq!(authz.session(&unused.token).await.problem(), (401, "session_ended".into()));
        // 15 times 11 hours are 165; the seventh day ends at 168.
        authz.hand.advance_ms(3 * HOUR_MS - 1);
        assert_eq!(authz.session(&used.token).await.status, StatusCode::OK);
        authz.hand.advance_ms(1);
        assert_eq!(authz.session(&used.token).await.problem(), (401, "session_ended".into()), "{}", authz.name());
    }
}

#[tokio::test]
async fn use_is_written_down_once_a_minute_at_the_most() {
    for authz in everywhere().await {
        let alice = authz.person("alice").await;
        let last_seen = || authz.count("SELECT last_seen_ms FROM sessions");
        for (advance, expected) in [(0, 0), (59_999, 0), (1, 60_000), (59_999, 60_000), (1, 120_000)] {
            authz.hand.advance_ms(advance);
            assert_eq!(authz.session(&alice.token).await.status, StatusCode::OK);
            assert_eq!(last_seen().await, START_MS + expected, "{}", authz.name());
        }
    }
}

#[tokio::test]
async fn only_the_hash_of_a_token_is_kept_and_the_hash_opens_nothing() {
    for authz in everywhere().await {
        let alice = authz.person("alice").await;
        let hash: String =
            sqlx::query_scalar("SELECT token_hash FROM sessions").fetch_one(authz.store.pool()).await.unwrap();
        assert_ne!(hash, alice.token);
        for token in [hash.as_str(), "", "x", &"a".repeat(100_000), alice.sid.as_str(), "' OR 1=1 --"] {
            assert_eq!(authz.session(token).await.problem(), (401, "session_ended".into()), "{}", authz.name());
        }
        assert_eq!(authz.session(&alice.token).await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn signing_out_ends_one_session_or_all_here_and_in_the_workspace() {
    for authz in everywhere().await {
        let alice = authz.person("alice").await;
        let bob = authz.person("bob").await;
        let more: Vec<_> = [
            authz.login("alice", PASSWORD, "192.0.2.1").await,
            authz.login("alice@example.com", PASSWORD, "192.0.2.1").await,
        ]
        .iter()
        .map(Person::of)
        .collect();

        let body = json!({"session_token": more[0].token});
        assert_eq!(authz.post("/portal/logout", &body).await.status, StatusCode::NO_CONTENT);
        let heard = authz.workspaces.heard(&alice);
        assert_eq!(heard.len(), 1, "{}", authz.name());
        let claims = authz.verify_assertion(&heard[0], "alice");
        assert_eq!((claims.extra.sid, claims.extra.purpose), (Some(more[0].sid.clone()), token::Purpose::Logout));
        assert_eq!(authz.session(&more[0].token).await.status, StatusCode::UNAUTHORIZED);
        assert_eq!(authz.session(&more[1].token).await.status, StatusCode::OK);
        // Again: as good as done, and nothing more to say.
        assert_eq!(authz.post("/portal/logout", &body).await.status, StatusCode::NO_CONTENT);
        assert_eq!(authz.workspaces.heard(&alice).len(), 1);

        let body = json!({"session_token": alice.token, "everywhere": true});
        assert_eq!(authz.post("/portal/logout", &body).await.status, StatusCode::NO_CONTENT);
        // Without a sid: it ends whatever the instance has, also what is not known here any more.
        let heard = authz.workspaces.heard(&alice);
        assert_eq!(heard.len(), 2, "{}", authz.name());
        let claims = authz.verify_assertion(&heard[1], "alice");
        assert_eq!((claims.extra.sid, claims.extra.purpose), (None, token::Purpose::Logout), "{}", authz.name());
        for token in [&alice.token, &more[1].token] {
            assert_eq!(authz.session(token).await.status, StatusCode::UNAUTHORIZED);
        }
        assert_eq!(authz.count("SELECT COUNT(*) FROM goodbyes").await, 0);
        assert!(authz.workspaces.heard(&bob).is_empty());
        assert_eq!(authz.session(&bob.token).await.status, StatusCode::OK, "somebody else stays signed in");
    }
}

#[tokio::test]
async fn a_sign_in_has_a_session_of_its_own_and_ends_the_one_it_replaces() {
    for authz in everywhere().await {
        let alice = authz.person("alice").await;
        let mut body = json!({"login": "alice", "password": PASSWORD, "browser": browser("192.0.2.1", None)});
        body["replaces"] = json!(alice.token);
        // A failed sign-in ends nothing.
        let mut wrong = body.clone();
        wrong["password"] = json!("not the right pass phrase");
        assert_eq!(authz.post("/portal/login", &wrong).await.status, StatusCode::UNAUTHORIZED);
        assert_eq!(authz.session(&alice.token).await.status, StatusCode::OK);
        let reply = authz.post("/portal/login", &body).await;
        let next = Person::of(&reply);
        // Its own instance hears of it, whoever signed in now.
        let heard = authz.workspaces.heard(&alice);
        assert_eq!(heard.len(), 1, "{}", authz.name());
        let claims = authz.verify_assertion(&heard[0], "alice");
        assert_eq!((claims.extra.sid.as_ref(), claims.extra.purpose), (Some(&alice.sid), token::Purpose::Logout));
        assert!(next.token != alice.token && next.sid != alice.sid);
        assert_eq!(authz.session(&alice.token).await.status, StatusCode::UNAUTHORIZED, "{}", authz.name());
        assert_eq!(authz.session(&next.token).await.status, StatusCode::OK);
        // A token that somebody made up and planted does not become a session.
        body["replaces"] = json!("planted-by-somebody-else");
        let reply = authz.post("/portal/login", &body).await;
        let after = Person::of(&reply);
        assert_eq!(authz.workspaces.heard(&alice).len(), 1);
        assert_ne!(after.token, "planted-by-somebody-else");
        assert_eq!(authz.session("planted-by-somebody-else").await.status, StatusCode::UNAUTHORIZED);
    }
}

#[tokio::test]
async fn what_is_over_is_removed_and_nothing_else() {
    for authz in everywhere().await {
        let alice = authz.person("alice").await;
        authz.login("nobody", "not the right pass phrase", "192.0.2.9").await;
        authz.initial_access_token(&alice).await;
        assert_eq!(crate::cleanup::sweep(&authz.app).await.unwrap(), 0, "{}", authz.name());
        authz.hand.advance_ms(8 * 24 * HOUR_MS);
        let bob = authz.person("bob").await;
        // A session, a key, three counters, an initial access token, an address that signed up (again counted since).
        assert_eq!(crate::cleanup::sweep(&authz.app).await.unwrap(), 6, "{}", authz.name());
        assert_eq!(authz.session(&bob.token).await.status, StatusCode::OK);
        assert_eq!(authz.count("SELECT COUNT(*) FROM slugs").await, 2);
        assert_eq!(authz.count("SELECT COUNT(*) FROM accounts").await, 2);
    }
}

#[tokio::test]
async fn the_internal_api_opens_to_the_service_token_alone() {
    let authz = Authz::simple().await;
    for path in [
        "/portal/register",
        "/portal/login",
        "/portal/session",
        "/portal/logout",
        "/portal/sessions",
        "/portal/sessions/end",
        "/portal/password",
        "/portal/retry-delivery",
        "/portal/assertion",
        "/portal/operator",
        "/portal/operator/account",
        "/portal/operator/suspend",
        "/portal/operator/suspended",
        "/backends/register",
    ] {
        for shown in [None, Some("Bearer "), Some("Bearer wrong"), Some(INTERNAL_TOKEN), Some("Basic YTpi")] {
            let mut request = Request::post(path).header("content-type", "application/json");
            if let Some(shown) = shown {
                request = request.header("authorization", shown);
            }
            let reply = authz.send(request.body("{}".into()).unwrap()).await;
            assert_eq!(reply.problem(), (401, "service_token_required".into()), "{path} {shown:?}");
        }
        // The control: with the token it is the body that is wrong.
        let code = authz.post(path, &json!({"unknown": 1})).await.problem();
        assert_eq!(code.0, 400, "{path}");
    }
    let reply = authz.send(Request::get("/portal/issuer").body("".into()).unwrap()).await;
    assert_eq!(reply.problem(), (401, "service_token_required".into()));
    for path in ["/healthz", "/readyz", "/metrics", "/openapi.json", "/.well-known/jwks.json"] {
        let reply = authz.send(Request::get(path).body("".into()).unwrap()).await;
        assert_eq!(reply.status, StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn readiness_says_when_the_database_is_away() {
    let authz = Authz::simple().await;
    authz.store.close().await;
    let reply = authz.get("/readyz").await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    let reply = authz.session("x").await;
    assert_eq!(reply.problem(), (503, "unavailable".into()));
    assert!(reply.retry_after().is_some());
    assert_eq!(authz.get("/healthz").await.status, StatusCode::OK);
}

#[tokio::test]
async fn the_description_names_every_internal_endpoint() {
    let described: Value = Authz::simple().await.get("/openapi.json").await.json();
    let mut paths: Vec<_> = described["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    paths.sort_unstable();
    assert_eq!(
        paths,
        [
            "/backends/register",
            "/backends/revoke",
            "/portal/assertion",
            "/portal/issuer",
            "/portal/login",
            "/portal/logout",
            "/portal/new-instance",
            "/portal/operator",
            "/portal/operator/account",
            "/portal/operator/suspend",
            "/portal/operator/suspended",
            "/portal/password",
            "/portal/register",
            "/portal/retry-delivery",
            "/portal/session",
            "/portal/sessions",
            "/portal/sessions/end",
            "/portal/slugs/{text}",
        ]
    );
    assert!(described["components"]["schemas"]["SignedIn"].is_object());
}
