//! The token endpoint, and everybody who must not get a token from it.

use aws_lc_rs::hmac;
use axum::body::Body;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use clock::Entropy;
use futures_util::future::join_all;
use http::{Request, StatusCode};
use serde_json::{Value, json};
use token::{Access, AccessClaims, Claims, Expected, Kind, SigningKey};

use super::harness::*;

const RESOURCE: &str = "https://mcp.example.com/outlook";

async fn client(authz: &Authz, slug: &str) -> (SigningKey, String) {
    let person = authz.person(slug).await;
    let key = SigningKey::generate(&Entropy::system()).unwrap();
    let id = authz.client(&person, &key).await;
    (key, id)
}

fn refused(reply: &Reply) -> (u16, String) {
    assert_eq!(reply.headers["cache-control"], "no-store");
    assert_eq!(reply.headers["content-type"], "application/json");
    (reply.status.as_u16(), reply.error())
}

#[tokio::test]
async fn a_client_gets_an_access_token_for_one_audience_and_five_minutes() {
    for authz in everywhere().await {
        let (key, id) = client(&authz, "alice").await;
        let reply = authz.token(&[("client_assertion", &authz.client_assertion(&key, &id))]).await;
        assert_eq!(reply.status, StatusCode::OK, "{}: {}", authz.name(), reply.text);
        assert_eq!(
            (&reply.headers["cache-control"], &reply.headers["pragma"]),
            (&"no-store".parse().unwrap(), &"no-cache".parse().unwrap())
        );
        let body: Value = reply.json();
        assert_eq!(
            (&body["token_type"], &body["expires_in"], &body["scope"]),
            (&json!("Bearer"), &json!(300), &json!("mcp"))
        );
        assert!(body.get("refresh_token").is_none());
        // As a resource server would: by the published keys.
        let keys = authz.send(Request::get("/.well-known/jwks.json").body("".into()).unwrap()).await;
        assert_eq!(keys.headers["cache-control"], "public, max-age=300");
        let claims: AccessClaims = token::verify::<Access>(
            Kind::AccessToken,
            body["access_token"].as_str().unwrap(),
            &Expected { issuer: PUBLIC_ISSUER, ..authz.expected(RESOURCE) },
            &keys.json(),
        )
        .unwrap();
        assert_eq!((&claims.sub, &claims.extra.client_id, claims.exp - claims.iat), (&id, &id, 300));
        assert!(claims.extra.has_scope("mcp") && !claims.extra.has_scope("admin"));
    }
}

#[tokio::test]
async fn metadata_lead_to_the_endpoints() {
    let authz = Authz::simple().await;
    let reply = authz.send(Request::get("/.well-known/oauth-authorization-server").body("".into()).unwrap()).await;
    let metadata: Value = reply.json();
    assert_eq!(metadata["issuer"], ISSUER);
    for (name, path) in [
        ("token_endpoint", "/oauth/token"),
        ("registration_endpoint", "/oauth/register"),
        ("jwks_uri", "/.well-known/jwks.json"),
    ] {
        assert_eq!(metadata[name], format!("{ISSUER}{path}"));
    }
    assert_eq!(metadata["token_endpoint_auth_methods_supported"], json!(["private_key_jwt"]));
}

#[tokio::test]
async fn outside_the_issuer_has_its_public_name_and_nothing_but_its_keys() {
    let authz = Authz::simple().await;
    let metadata: Value = authz.get("/portal/issuer").await.json();
    let expected = json!({
        "issuer": PUBLIC_ISSUER,
        "jwks_uri": format!("{PUBLIC_ISSUER}/.well-known/jwks.json"),
        "response_types_supported": [],
        "grant_types_supported": [],
        "scopes_supported": ["mcp"],
    });
    assert_eq!(metadata, expected);
}

#[tokio::test]
async fn a_token_has_the_issuers_name_that_its_audience_knows() {
    let authz = Authz::simple().await;
    let (key, id) = client(&authz, "alice").await;
    for (resource, issuer) in [
        ("http://outlook_mcp:8000/mcp", ISSUER),
        ("http://outlook-mcp/", ISSUER),
        ("https://mcp.example.com/outlook", PUBLIC_ISSUER),
        ("http://192.168.1.10:8000/mcp", PUBLIC_ISSUER),
        ("http://[::1]:8000/mcp", PUBLIC_ISSUER),
        ("http://localhost:8000/mcp", PUBLIC_ISSUER),
    ] {
        let assertion = authz.client_assertion(&key, &id);
        let reply = authz.token(&[("client_assertion", &assertion), ("resource", resource)]).await;
        let token = reply.json::<Value>()["access_token"].as_str().unwrap().to_owned();
        let verify = |issuer: &str| {
            let expected = Expected { issuer, ..authz.expected(resource) };
            token::verify::<Access>(Kind::AccessToken, &token, &expected, &authz.app.keys.published())
        };
        assert!(verify(issuer).is_ok(), "{resource}");
        let other = if issuer == ISSUER { PUBLIC_ISSUER } else { ISSUER };
        assert!(verify(other).is_err(), "{resource}: the control");
    }
}

#[tokio::test]
async fn an_assertion_is_spent_once_even_fifty_at_once_and_over_a_restart() {
    for authz in everywhere().await {
        let (key, id) = client(&authz, "alice").await;
        let assertion = authz.client_assertion(&key, &id);
        let change = [("client_assertion", assertion.as_str())];
        let replies = join_all((0..50).map(|_| authz.token(&change))).await;
        let won = replies.iter().filter(|reply| reply.status == StatusCode::OK).count();
        assert_eq!(won, 1, "{}", authz.name());
        assert!(
            replies.iter().filter(|r| r.status != StatusCode::OK).all(|r| refused(r) == (401, "invalid_client".into()))
        );
        // Another process on the same database, and after a sweep.
        authz.hand.advance_ms(65_000);
        crate::cleanup::sweep(&authz.app).await.unwrap();
        let clock = clock::Clock::manual(START_MS + 64_999).0;
        let restarted = crate::app::App::new(
            config(&authz.deploy.url, &authz.workspaces.url),
            authz.store.clone(),
            clock,
            Entropy::system(),
        )
        .await;
        let form = format!(
            "grant_type=client_credentials&resource=https%3A%2F%2Fx.example&client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer&client_assertion={assertion}"
        );
        let request = Request::post("/oauth/token").header("content-type", "application/x-www-form-urlencoded");
        let again = tower::ServiceExt::oneshot(restarted.unwrap().router(), request.body(Body::from(form)).unwrap())
            .await
            .unwrap();
        assert_eq!(again.status(), StatusCode::UNAUTHORIZED, "{}", authz.name());
        // The control: a new one is good.
        assert_eq!(
            authz.token(&[("client_assertion", &authz.client_assertion(&key, &id))]).await.status,
            StatusCode::OK
        );
    }
}

/// A compact JWS of this header and these claims, signed by `sign`.
fn forge(header: &Value, claims: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let message =
        format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
    let signature = URL_SAFE_NO_PAD.encode(sign(message.as_bytes()));
    format!("{message}.{signature}")
}

#[tokio::test]
async fn forged_assertions_are_refused() {
    let authz = Authz::simple().await;
    let ((key, id), (other_key, other)) = (client(&authz, "alice").await, client(&authz, "bob").await);
    let good = || serde_json::to_value(authz.client_claims(&id)).unwrap();
    let header = json!({"alg": "EdDSA", "typ": "JWT", "kid": key.kid()});
    let pair = {
        let pkcs8 = key.to_pkcs8();
        aws_lc_rs::signature::Ed25519KeyPair::from_pkcs8(secrecy::ExposeSecret::expose_secret(&pkcs8)).unwrap()
    };
    let eddsa = |message: &[u8]| pair.sign(message).as_ref().to_vec();
    let hs256 = |message: &[u8]| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key.public().as_bytes());
        hmac::sign(&key, message).as_ref().to_vec()
    };
    let claims = |change: Value| {
        let mut claims = good();
        for (name, value) in change.as_object().unwrap() {
            match value {
                Value::Null => claims.as_object_mut().unwrap().remove(name),
                value => claims.as_object_mut().unwrap().insert(name.clone(), value.clone()),
            };
        }
        claims
    };
    let headed = |change: Value| {
        let mut header = header.clone();
        header.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        header
    };
    let now = START_MS / 1000;
    let mut cases = vec![
        ("alg none", forge(&headed(json!({"alg": "none"})), &good(), |_| vec![])),
        ("HS256 keyed with the public key", forge(&headed(json!({"alg": "HS256"})), &good(), hs256)),
        ("embedded jwk", forge(&headed(json!({"jwk": key.public()})), &good(), eddsa)),
        ("jku", forge(&headed(json!({"jku": "http://evil.example"})), &good(), eddsa)),
        ("x5u", forge(&headed(json!({"x5u": "http://evil.example"})), &good(), eddsa)),
        ("crit", forge(&headed(json!({"crit": ["x"], "x": 1})), &good(), eddsa)),
        ("another kind's typ", forge(&headed(json!({"typ": "at+jwt"})), &good(), eddsa)),
        ("unknown kid", forge(&headed(json!({"kid": "../../x' OR 1=1"})), &good(), eddsa)),
        ("another client's key", authz.client_assertion(&other_key, &id)),
        (
            "another client as subject",
            key.sign(Kind::ClientAssertion, &Claims { sub: other.clone(), ..authz.client_claims(&id) }).unwrap(),
        ),
        ("no such client", authz.client_assertion(&key, "client-nobody")),
        ("not a token", "a.b.c".into()),
        ("empty parts", "..".into()),
    ];
    for (name, change) in [
        ("wrong aud", json!({"aud": "http://evil.example"})),
        ("aud is the endpoint, not the issuer", json!({"aud": format!("{ISSUER}/oauth/token")})),
        ("missing aud", json!({"aud": null})),
        ("several aud", json!({"aud": [ISSUER, "http://evil.example"]})),
        ("missing iss", json!({"iss": null})),
        ("missing jti", json!({"jti": null})),
        ("missing exp", json!({"exp": null})),
        ("expired", json!({"iat": now - 66, "exp": now - 6})),
        ("iat in the future", json!({"iat": now + 6, "exp": now + 60})),
        ("nbf in the future", json!({"nbf": now + 6})),
        ("longer than a minute", json!({"exp": now + 61})),
        ("ten years", json!({"exp": now + 315_360_000})),
        ("NUL in jti", json!({"jti": "a\0b"})),
    ] {
        cases.push((name, forge(&header, &claims(change), eddsa)));
    }
    for (name, assertion) in cases {
        let reply = authz.token(&[("client_assertion", &assertion)]).await;
        assert_eq!(refused(&reply), (401, "invalid_client".into()), "{name}: {}", reply.text);
        assert!(reply.text.contains("the client assertion is not valid"), "one text for all: {}", reply.text);
    }
    let huge = forge(&header, &claims(json!({"x": "x".repeat(8192)})), eddsa);
    assert_eq!(refused(&authz.token(&[("client_assertion", &huge)]).await), (400, "invalid_request".into()));
    // The controls: the same forge makes good ones, also within the leeway.
    for change in [
        json!({}),
        json!({"aud": [ISSUER]}),
        json!({"iat": now - 64, "exp": now - 4}),
        json!({"iat": now + 5, "exp": now + 65}),
    ] {
        let reply = authz.token(&[("client_assertion", &forge(&header, &claims(change.clone()), eddsa))]).await;
        // A claim set is used once each.
        assert_eq!(reply.status, StatusCode::OK, "{change}: {}", reply.text);
    }
}

#[tokio::test]
async fn requests_that_are_not_as_the_standards_have_them() {
    let authz = Authz::simple().await;
    let (key, id) = client(&authz, "alice").await;
    let fresh = || authz.client_assertion(&key, &id);
    for (change, status, error) in [
        (vec![("grant_type", "")], 400, "invalid_request"),
        (vec![("grant_type", "password")], 400, "unsupported_grant_type"),
        (vec![("grant_type", "authorization_code")], 400, "unsupported_grant_type"),
        (vec![("grant_type", "refresh_token")], 400, "unsupported_grant_type"),
        (vec![("client_assertion_type", "")], 401, "invalid_client"),
        (
            vec![("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:saml2-bearer")],
            400,
            "invalid_request",
        ),
        (vec![("client_secret", "x")], 400, "invalid_request"),
        (vec![("client_id", "client-somebody-else")], 401, "invalid_client"),
        (vec![("scope", "admin")], 400, "invalid_scope"),
        (vec![("scope", "mcp admin")], 400, "invalid_scope"),
        (vec![("resource", "")], 400, "invalid_target"),
        (vec![("resource", "outlook_mcp")], 400, "invalid_target"),
        (vec![("resource", "https://mcp.example.com/#x")], 400, "invalid_target"),
        (vec![("resource", "https://u:p@mcp.example.com/")], 400, "invalid_target"),
        (vec![("resource", "file:///etc/passwd")], 400, "invalid_target"),
        (vec![("resource", "https://mcp.example.com/a b")], 400, "invalid_target"),
        (vec![("resource", "https://a.example"), ("resource", "https://b.example")], 400, "invalid_request"),
        (vec![("grant_type", "client_credentials"), ("grant_type", "client_credentials")], 400, "invalid_request"),
        (vec![("scope", ""), ("scope", "mcp")], 400, "invalid_request"),
    ] {
        let assertion = fresh();
        let mut form = change.clone();
        form.push(("client_assertion", &assertion));
        let reply = authz.token(&form).await;
        assert_eq!(refused(&reply), (status, error.into()), "{change:?}: {}", reply.text);
    }
    let two = [("client_assertion", fresh()), ("client_assertion", fresh())];
    let two: Vec<_> = two.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(refused(&authz.token(&two).await), (400, "invalid_request".into()));
    assert_eq!(refused(&authz.token(&[]).await), (400, "invalid_request".into()));
    for content_type in ["application/json", "text/plain", "multipart/form-data"] {
        let request = Request::post("/oauth/token").header("content-type", content_type);
        let reply = authz.send(request.body("grant_type=client_credentials".into()).unwrap()).await;
        assert_eq!(refused(&reply), (400, "invalid_request".into()), "{content_type}");
    }
    let get = authz.send(Request::get("/oauth/token").body("".into()).unwrap()).await;
    assert_eq!(get.status, StatusCode::METHOD_NOT_ALLOWED);
    // The control, with everything that may be there.
    let assertion = fresh();
    let reply =
        authz.token(&[("client_assertion", &assertion), ("client_id", &id), ("scope", "mcp"), ("unknown", "1")]).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text);
}

#[tokio::test]
async fn a_client_that_asks_without_end_is_told_to_wait_and_others_are_not() {
    for authz in everywhere().await {
        let ((key, id), (other_key, other)) = (client(&authz, "alice").await, client(&authz, "bob").await);
        let ask = async |key: &SigningKey, id: &str| {
            authz.token(&[("client_assertion", &authz.client_assertion(key, id))]).await
        };
        for _ in 0..120 {
            assert_eq!(ask(&key, &id).await.status, StatusCode::OK);
        }
        let reply = ask(&key, &id).await;
        assert_eq!((refused(&reply), reply.retry_after()), ((429, "temporarily_unavailable".into()), Some(60)));
        assert_eq!(ask(&other_key, &other).await.status, StatusCode::OK, "{}", authz.name());
        authz.hand.advance_ms(66_000);
        assert_eq!(ask(&key, &id).await.status, StatusCode::OK, "{}", authz.name());
    }
}
