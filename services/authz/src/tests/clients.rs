//! How an instance gets its client, and who does not.

use clock::Entropy;
use futures_util::future::join_all;
use http::{Request, StatusCode};
use serde_json::{Value, json};
use token::SigningKey;

use super::harness::*;

fn key() -> SigningKey {
    SigningKey::generate(&Entropy::system()).unwrap()
}

fn backend(person: &Person) -> Value {
    json!({
        "instance_id": person.instance_id, "account_id": person.account_id, "slug": person.slug,
        "redirect_uri": format!("http://{}.localhost:8088/auth/callback", person.slug),
    })
}

#[tokio::test]
async fn an_instance_registers_itself_with_its_one_time_token() {
    for authz in everywhere().await {
        let alice = authz.person("alice").await;
        let reply = authz.post("/backends/register", &backend(&alice)).await;
        assert_eq!(
            (reply.status, &reply.headers["cache-control"]),
            (StatusCode::CREATED, &"no-store".parse().unwrap())
        );
        let given: Value = reply.json();
        assert_eq!(given["expires_at_ms"], START_MS + 600_000);
        let assertion = authz.verify_assertion(given["register_assertion"].as_str().unwrap(), "alice");
        assert_eq!((assertion.extra.purpose, assertion.sub), (token::Purpose::Register, alice.account_id.clone()));

        let key = key();
        let reply = authz.oauth_register(given["initial_access_token"].as_str(), &jwks(&key)).await;
        assert_eq!(reply.status, StatusCode::CREATED, "{}: {}", authz.name(), reply.text);
        assert_eq!(reply.headers["cache-control"], "no-store");
        let client: Value = reply.json();
        assert!(client["client_id"].as_str().unwrap().starts_with("client-"));
        // The server says what the client is.
        assert_eq!(client["redirect_uris"], json!(["http://alice.localhost:8088/auth/callback"]));
        assert_eq!(client["grant_types"], json!(["client_credentials"]));
        assert_eq!(client["token_endpoint_auth_method"], "private_key_jwt");
        assert_eq!(client["scope"], "mcp");
        assert_eq!(client["jwks"]["keys"][0]["kid"], key.kid());
        assert!(client.get("client_secret").is_none());
    }
}

#[tokio::test]
async fn a_lying_caller_gets_no_token_for_what_does_not_belong_together() {
    for authz in everywhere().await {
        let (alice, bob) = (authz.person("alice").await, authz.person("bob").await);
        for (field, value) in [
            ("account_id", bob.account_id.as_str()),
            ("instance_id", &bob.instance_id),
            ("slug", "bob"),
            ("slug", "nobody"),
            ("account_id", "a-00000000000000000000000000000000"),
        ] {
            let mut body = backend(&alice);
            body[field] = json!(value);
            let reply = authz.post("/backends/register", &body).await;
            assert_eq!(reply.problem(), (404, "instance_not_found".into()), "{} {field} {value}", authz.name());
        }
        for uri in [
            "http://alice.localhost:8088/auth/callback/",
            "http://alice.localhost:8088/auth/../auth/callback",
            "http://alice.localhost:8088/auth/%63allback",
            "http://alice.localhost:8088/auth/%2e%2e/auth/callback",
            "http://Alice.localhost:8088/auth/callback",
            "http://alice.localhost.:8088/auth/callback",
            "http://alice.localhost/auth/callback",
            "http://user@alice.localhost:8088/auth/callback",
            "http://alice.localhost:8088\\@evil.example/auth/callback",
            "http://alice.localhost:8088/auth/callback#x",
            "http://alice.localhost:8088/auth/callback?x",
            "https://alice.localhost:8088/auth/callback",
            "http://evil.example/auth/callback",
            "",
        ] {
            let mut body = backend(&alice);
            body["redirect_uri"] = json!(uri);
            let reply = authz.post("/backends/register", &body).await;
            assert_eq!(reply.field(), (422, "redirect_uri_invalid".into(), "redirect_uri".into()), "{uri}");
        }
        assert_eq!(authz.count("SELECT COUNT(*) FROM initial_access_tokens").await, 0);
        assert_eq!(authz.post("/backends/register", &backend(&alice)).await.status, StatusCode::CREATED);
    }
}

#[tokio::test]
async fn no_used_or_expired_token_registers_anything() {
    for authz in everywhere().await {
        let alice = authz.person("alice").await;
        let metadata = jwks(&key());
        let none = authz.oauth_register(None, &metadata).await;
        assert_eq!(
            (none.status, &none.headers["www-authenticate"]),
            (StatusCode::UNAUTHORIZED, &"Bearer".parse().unwrap())
        );
        for made_up in ["x", "", INTERNAL_TOKEN, "' OR used_at_ms = 0 --"] {
            let reply = authz.oauth_register(Some(made_up), &metadata).await;
            assert_eq!((reply.status, reply.error()), (StatusCode::UNAUTHORIZED, "invalid_token".into()), "{made_up}");
        }
        // The row's own content is no token.
        let token = authz.initial_access_token(&alice).await;
        let hash: String = sqlx::query_scalar("SELECT token_hash FROM initial_access_tokens")
            .fetch_one(authz.store.pool())
            .await
            .unwrap();
        assert_eq!(authz.oauth_register(Some(&hash), &metadata).await.status, StatusCode::UNAUTHORIZED);
        // One for alice does not become one for bob, whatever the metadata say.
        authz.hand.advance_ms(600_000);
        let expired = authz.oauth_register(Some(&token), &metadata).await;
        assert_eq!((expired.status, expired.error()), (StatusCode::UNAUTHORIZED, "invalid_token".into()));
        // A new one takes the place of the one before, and is good once.
        let (first, second) = (authz.initial_access_token(&alice).await, authz.initial_access_token(&alice).await);
        assert_eq!(authz.oauth_register(Some(&first), &metadata).await.status, StatusCode::UNAUTHORIZED);
        assert_eq!(authz.oauth_register(Some(&second), &metadata).await.status, StatusCode::CREATED);
        let stolen = authz.oauth_register(Some(&second), &jwks(&key())).await;
        assert_eq!(
            (stolen.status, stolen.error()),
            (StatusCode::UNAUTHORIZED, "invalid_token".into()),
            "{}",
            authz.name()
        );
    }
}

#[tokio::test]
async fn a_lost_answer_can_be_asked_for_again_with_the_same_key() {
    for authz in everywhere().await {
        let alice = authz.person("alice").await;
        let (token, key) = (authz.initial_access_token(&alice).await, key());
        let first: Value = authz.oauth_register(Some(&token), &jwks(&key)).await.json();
        authz.hand.advance_ms(599_999);
        let again: Value = authz.oauth_register(Some(&token), &jwks(&key)).await.json();
        assert_eq!(again, first, "{}", authz.name());
        authz.hand.advance_ms(1);
        assert_eq!(authz.oauth_register(Some(&token), &jwks(&key)).await.status, StatusCode::UNAUTHORIZED);
    }
}

#[tokio::test]
async fn an_instance_that_lost_its_key_gets_back_in_and_the_lost_key_is_void() {
    for authz in everywhere().await {
        let alice = authz.person("alice").await;
        let (lost, new) = (key(), key());
        let before = authz.client(&alice, &lost).await;
        let after = authz.client(&alice, &new).await;
        assert_eq!(before, after, "an instance has one client");
        let with =
            async |key: &SigningKey| authz.token(&[("client_assertion", &authz.client_assertion(key, &before))]).await;
        assert_eq!(with(&new).await.status, StatusCode::OK);
        assert_eq!(with(&lost).await.status, StatusCode::UNAUTHORIZED, "{}", authz.name());
    }
}

#[tokio::test]
async fn of_fifty_with_one_token_one_key_wins() {
    for authz in everywhere().await {
        let alice = authz.person("alice").await;
        let token = authz.initial_access_token(&alice).await;
        let keys: Vec<_> = (0..50).map(|_| key()).collect();
        let bodies: Vec<_> = keys.iter().map(jwks).collect();
        let replies = join_all(bodies.iter().map(|body| authz.oauth_register(Some(&token), body))).await;
        let won: Vec<_> = replies.iter().filter(|reply| reply.status == StatusCode::CREATED).collect();
        assert_eq!(won.len(), 1, "{}", authz.name());
        assert!(replies.iter().filter(|r| r.status != StatusCode::CREATED).all(|r| r.error() == "invalid_token"));
        let stored: String = sqlx::query_scalar("SELECT jwk FROM clients").fetch_one(authz.store.pool()).await.unwrap();
        let answered = &won[0].json::<Value>()["jwks"]["keys"][0];
        assert_eq!(serde_json::from_str::<Value>(&stored).unwrap(), *answered);
    }
}

#[tokio::test]
async fn metadata_that_would_weaken_the_client_are_refused_and_burn_nothing() {
    let authz = Authz::simple().await;
    let alice = authz.person("alice").await;
    let token = authz.initial_access_token(&alice).await;
    let key = key();
    let jwk = jwks(&key)["jwks"]["keys"][0].clone();
    let with = |name: &str, value: Value| {
        let mut metadata = jwks(&key);
        metadata[name] = value;
        metadata
    };
    let with_key = |change: Value| {
        let mut jwk = jwk.clone();
        jwk.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        json!({ "jwks": { "keys": [jwk] } })
    };
    for (metadata, error) in [
        (json!({}), "invalid_client_metadata"),
        (json!([]), "invalid_client_metadata"),
        (json!({"jwks": {"keys": []}}), "invalid_client_metadata"),
        (json!({"jwks": {"keys": [jwk, jwk]}}), "invalid_client_metadata"),
        (with("jwks_uri", json!("http://169.254.169.254/keys")), "invalid_client_metadata"),
        (json!({"jwks_uri": "http://169.254.169.254/keys"}), "invalid_client_metadata"),
        (with("token_endpoint_auth_method", json!("none")), "invalid_client_metadata"),
        (with("token_endpoint_auth_method", json!("client_secret_basic")), "invalid_client_metadata"),
        (with("redirect_uris", json!(["http://evil.example/auth/callback"])), "invalid_redirect_uri"),
        (with("redirect_uris", json!([])), "invalid_redirect_uri"),
        (with("software_statement", json!("e30.e30.")), "unapproved_software_statement"),
        (with_key(json!({"d": "AAAA"})), "invalid_client_metadata"),
        (with_key(json!({"kty": "RSA"})), "invalid_client_metadata"),
        (with_key(json!({"alg": "HS256"})), "invalid_client_metadata"),
        (with_key(json!({"use": "enc"})), "invalid_client_metadata"),
        (with_key(json!({"x": "AAAA"})), "invalid_client_metadata"),
        (with_key(json!({"kid": "../../etc/passwd"})), "invalid_client_metadata"),
    ] {
        let reply = authz.oauth_register(Some(&token), &metadata).await;
        assert_eq!((reply.status, reply.error().as_str()), (StatusCode::BAD_REQUEST, error), "{metadata}");
    }
    let huge = with("client_name", json!("x".repeat(64 * 1024)));
    assert_eq!(authz.oauth_register(Some(&token), &huge).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    // What the server decides is ignored, not refused; and the token is still good.
    let mut ambitious = with("grant_types", json!(["password", "authorization_code"]));
    ambitious["scope"] = json!("admin");
    ambitious["redirect_uris"] = json!(["http://alice.localhost:8088/auth/callback"]);
    let client: Value = authz.oauth_register(Some(&token), &ambitious).await.json();
    assert_eq!((&client["grant_types"], &client["scope"]), (&json!(["client_credentials"]), &json!("mcp")));
}

#[tokio::test]
async fn two_authorizations_are_none() {
    let authz = Authz::simple().await;
    let alice = authz.person("alice").await;
    let token = format!("Bearer {}", authz.initial_access_token(&alice).await);
    let request = Request::post("/oauth/register").header("authorization", &token).header("authorization", &token);
    let reply = authz.send(request.body(jwks(&key()).to_string().into()).unwrap()).await;
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn an_identity_that_is_taken_away_is_good_for_nothing_until_there_is_another() {
    for authz in everywhere().await {
        let (alice, bob) = (authz.person("alice").await, authz.person("bob").await);
        let (hers, his) = (key(), key());
        let (client, other) = (authz.client(&alice, &hers).await, authz.client(&bob, &his).await);
        let unused = authz.initial_access_token(&alice).await;
        let token = async |key: &SigningKey, client: &str| {
            authz.token(&[("client_assertion", &authz.client_assertion(key, client))]).await.status
        };
        assert_eq!(token(&hers, &client).await, StatusCode::OK, "the control");
        let revoke = async |account: &Person| {
            let body = json!({ "instance_id": alice.instance_id, "account_id": account.account_id });
            authz.post("/backends/revoke", &body).await.status
        };
        assert_eq!(revoke(&bob).await, StatusCode::NO_CONTENT);
        assert_eq!(token(&hers, &client).await, StatusCode::OK, "it is not bob's to take");
        for _ in 0..2 {
            assert_eq!(revoke(&alice).await, StatusCode::NO_CONTENT, "{}", authz.name());
            assert_eq!(token(&hers, &client).await, StatusCode::UNAUTHORIZED, "{}", authz.name());
            assert_eq!(authz.oauth_register(Some(&unused), &jwks(&hers)).await.status, StatusCode::UNAUTHORIZED);
        }
        assert_eq!(token(&his, &other).await, StatusCode::OK, "bob's is his still");
        let left = "SELECT (SELECT COUNT(*) FROM clients) + (SELECT COUNT(*) FROM initial_access_tokens)
                    + (SELECT COUNT(DISTINCT client_id) FROM spent_assertions)";
        assert_eq!(authz.count(left).await, 3, "bob's: {}", authz.name());

        let again = authz.client(&alice, &hers).await;
        assert_ne!(again, client);
        assert_eq!(token(&hers, &again).await, StatusCode::OK, "{}", authz.name());
    }
}
