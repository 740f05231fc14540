//! What holds for every page: headers, Origin, errors, languages, assets.

use axum::body::Body;
use http::Request;
use tower::ServiceExt;

use crate::{
    PASSWORD, alice,
    browser::Browser,
    fakes::{House, authz::OPERATOR_TOKEN},
};

const POSTS: [&str; 12] = [
    "/register",
    "/login",
    "/logout",
    "/logout/everywhere",
    "/account/sessions/end",
    "/account/password",
    "/language",
    "/onboarding",
    "/operator/setup",
    "/operator/accounts/alice/suspend",
    "/instance/stop",
    "/instance/restart",
];

#[tokio::test]
async fn every_change_must_come_from_the_portals_own_pages() {
    let house = House::new().await;
    let signed_in = alice(&house).await;
    for path in POSTS {
        for foreign in [
            &[("origin", "http://bob.localhost:8088")][..],
            &[("origin", "http://localhost:3081"), ("sec-fetch-site", "same-site")],
            &[("origin", "null")],
            &[],
        ] {
            let mut browser = signed_in.clone();
            browser.headers = foreign.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
            let page = browser.post(path, &[("login", "alice"), ("password", PASSWORD), ("lang", "en")]).await;
            assert_eq!(page.status.as_u16(), 403, "{path} {foreign:?}");
            page.shows("wrong_origin");
            assert!(page.headers.get("set-cookie").is_none());
        }
    }
    assert!(house.authz.inner.lock().logouts.is_empty() && house.deploy.inner.lock().actions.is_empty());
    let mut browser = Browser::new(&house);
    browser.headers = vec![("sec-fetch-site", "same-origin".into())];
    assert_eq!(browser.login("alice", PASSWORD).await.location.as_deref(), Some("/instance"));
}

#[tokio::test]
async fn nothing_is_changed_by_looking() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    for path in
        ["/logout", "/logout/everywhere", "/account/sessions/end", "/language", "/instance/stop", "/instance/start"]
    {
        let page = browser.get(path).await;
        assert_eq!(page.status.as_u16(), 405, "{path}");
        page.shows("method_not_allowed");
        assert!(page.headers.get("allow").is_some());
    }
    assert!(house.deploy.inner.lock().actions.is_empty() && house.authz.inner.lock().logouts.is_empty());
}

#[tokio::test]
async fn every_answer_carries_the_security_headers() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    for path in
        ["/", "/login", "/instance", "/account", "/onboarding", "/nothing", "/logout", "/api/slugs/x", "/healthz"]
    {
        let page = browser.get(path).await;
        let policy = page.headers["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        assert!(policy.contains("frame-ancestors 'none'") && policy.contains("base-uri 'none'"), "{policy}");
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "same-origin"),
            ("cache-control", "no-store"),
        ] {
            assert_eq!(page.headers[name], value, "{path}");
        }
        assert!(page.headers.get("strict-transport-security").is_none(), "not on plain http");
    }
}

#[tokio::test]
async fn errors_are_pages_that_say_what_to_do_in_both_languages() {
    let house = House::new().await;
    for (path, status, english, chinese, code) in [
        ("/nothing", 404, "There is nothing here", "页面不存在", "not_found"),
        ("/logout", 405, "That is not how this works", "访问方式不正确", "method_not_allowed"),
        ("/operator?after=x", 400, "That did not work", "操作未成功", "invalid_request"),
    ] {
        for (mut browser, words) in [(Browser::new(&house), english), (Browser::new(&house).chinese(), chinese)] {
            let page = browser.get(path).await;
            assert_eq!(page.status.as_u16(), status);
            page.shows(words);
            page.shows(code);
            page.shows(page.headers["x-request-id"].to_str().unwrap());
        }
    }
    let mut browser = alice(&house).await;
    let page = browser.post("/register", &[("slug", &*"x".repeat(2 << 20))]).await;
    assert_eq!(page.status.as_u16(), 413);
    page.shows("payload_too_large");
    house.authz.inner.lock().away = true;
    let page = browser.get("/instance").await;
    assert_eq!(page.status.as_u16(), 503);
    page.shows("Not available right now");
    assert!(!page.body.contains("secret internals") && !page.body.contains("authz"), "nothing of the inside");
    browser.clone().chinese().get("/instance").await.shows("暂时不可用");
    // Programs get problem details.
    let page = browser.get("/api/slugs/free").await;
    assert_eq!(page.headers["content-type"], "application/problem+json");
}

#[tokio::test]
async fn what_was_asked_for_never_becomes_markup() {
    let house = House::new().await;
    let mut browser = Browser::new(&house);
    for path in ["/%3Cscript%3Ealert(1)%3C/script%3E", "/login?next=%22%3E%3Cscript%3E", "/open/%3Cb%3E?bind=%22%3E"] {
        let page = browser.get(path).await;
        assert!(!page.body.contains("<script>") && !page.body.contains("<b>"), "{path}");
    }
}

#[tokio::test]
async fn the_language_is_the_browsers_until_somebody_chooses() {
    let house = House::new().await;
    let mut browser = Browser::new(&house).chinese();
    let page = browser.get("/login?next=onboarding").await;
    page.shows("登录");
    assert_eq!(page.value("back").as_deref(), Some("/login?next=onboarding"));
    let page = browser.post("/language", &[("lang", "en"), ("back", "/login?next=onboarding")]).await;
    assert_eq!(page.location.as_deref(), Some("/login?next=onboarding"));
    browser.get("/login").await.shows("Sign in");
    for back in ["https://evil.example", "//evil.example", "/\\evil.example", ""] {
        let page = browser.post("/language", &[("lang", "zh-CN"), ("back", back)]).await;
        assert_eq!(page.location.as_deref(), Some("/"), "{back}");
    }
    browser.get("/login").await.shows("登录");
    assert_eq!(browser.post("/language", &[("lang", "fr")]).await.status.as_u16(), 400);
}

#[tokio::test]
async fn assets_are_named_by_their_content_and_kept_for_good() {
    let house = House::new().await;
    let mut browser = Browser::new(&house);
    let page = browser.get("/").await;
    let paths: Vec<String> =
        page.body.split('"').filter(|part| part.starts_with("/assets/")).map(str::to_owned).collect();
    assert_eq!(paths.len(), 3, "{paths:?}");
    for path in paths {
        let asset = browser.get(&path).await;
        assert_eq!(asset.status.as_u16(), 200);
        assert_eq!(asset.headers["cache-control"], "public, max-age=31536000, immutable");
        assert!(
            !asset.body.contains("http://") || asset.body.contains("www.w3.org/2000/svg"),
            "nothing from elsewhere"
        );
    }
    for path in ["/assets/portal.0000000000000000.css", "/assets/../x", "/assets/portal.css"] {
        assert_eq!(browser.get(path).await.status.as_u16(), 404, "{path}");
    }
}

#[tokio::test]
async fn what_is_internal_stays_internal() {
    let house = House::new().await;
    let mut browser = Browser::new(&house);
    assert_eq!(browser.get("/metrics").await.status.as_u16(), 404);
    assert_eq!(browser.get("/readyz").await.status.as_u16(), 404);
    assert_eq!(browser.get("/healthz").await.body, "ok");
    let internal = auth_portal::internal_router(&house.portal);
    for (path, words) in [("/readyz", "\"authz\":\"ok\""), ("/healthz", "version"), ("/metrics", "")] {
        let response = internal.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        assert!(String::from_utf8_lossy(&body).contains(words), "{path}");
    }
}

#[tokio::test]
async fn the_public_issuers_documents_are_authzs() {
    let house = House::new().await;
    let mut browser = Browser::new(&house);
    for (path, words) in
        [("/.well-known/jwks.json", "keys"), ("/.well-known/oauth-authorization-server", "{\"issuer\":\"public\"}")]
    {
        let page = browser.get(path).await;
        assert_eq!((page.status.as_u16(), page.headers["content-type"].as_bytes()), (200, &b"application/json"[..]));
        assert!(page.body.contains(words) && page.headers["access-control-allow-origin"] == "*");
    }
}

#[tokio::test]
async fn after_a_form_the_language_can_be_changed_too() {
    let house = House::new().await;
    let (alice, stranger) = (alice(&house).await, Browser::new(&house));
    let mut operator = Browser::new(&house);
    operator.get(&format!("/operator/setup?token={OPERATOR_TOKEN}")).await;
    let setup = operator.post("/operator/setup", &[("email", "op"), ("password", PASSWORD)]).await;
    assert_eq!((setup.status.as_u16(), setup.value("back").as_deref()), (422, Some("/operator/setup")));
    operator.post("/operator/setup", &[("email", "op@example.com"), ("password", PASSWORD)]).await;
    house.deploy.inner.lock().away = true;
    for (browser, path, fields, back) in [
        (&stranger, "/login", &[("login", "alice"), ("password", "wrong")][..], "/login"),
        (&stranger, "/login", &[("login", ""), ("password", "x"), ("next", "onboarding")], "/login?next=onboarding"),
        (&stranger, "/register", &[("slug", "a"), ("email", "a"), ("password", "b")], "/register"),
        (&alice, "/onboarding", &[("kind", "ollama"), ("api_key", "")], "/onboarding"),
        (&alice, "/account/password", &[("old_password", ""), ("password", "")], "/account/password"),
        (&alice, "/instance/stop", &[], "/"),
        (&operator, "/operator/accounts/alice/suspend", &[("reason", "")], "/operator/accounts/alice"),
    ] {
        let page = browser.clone().post(path, fields).await;
        assert!(page.status.is_client_error() || page.status.is_server_error(), "{path}: {}", page.status);
        assert_eq!(page.value("back").as_deref(), Some(back), "{path}");
        let status = browser.clone().get(back).await.status;
        assert!(status.is_success() || status.is_redirection(), "{back}: {status}");
    }
}
