//! Taking the owner, the hand-off, and every way to misuse it.

use http::{Method, StatusCode};
use serde_json::{Value, json};
use token::Purpose;

use crate::{
    fakes::ORIGIN,
    house::{House, cookie},
};

async fn register(house: &House, assertion: &str) -> (StatusCode, Value) {
    let body = json!({ "assertion": assertion });
    let response = house.internal(Method::POST, "/api/auth/register").json(&body).send().await.unwrap();
    (response.status(), response.json().await.unwrap())
}

#[tokio::test]
async fn it_takes_its_owner_once_however_often_it_is_told() {
    let mut house = House::build().await;
    house.start().await;
    let ready = async |house: &House| -> Value {
        house.internal(Method::GET, "/readyz").send().await.unwrap().json().await.unwrap()
    };
    assert_eq!(ready(&house).await, json!({ "registered": false, "config_generation": 1 }));
    let assertion = house.authz.assertion(Purpose::Register, "sid", None);
    for _ in 0..3 {
        assert_eq!(register(&house, &assertion).await, (StatusCode::OK, json!({ "client_id": "client-1" })));
    }
    assert_eq!(house.authz.registrations(), 1);
    let key = std::fs::metadata(house.path("data/identity.key")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&key.permissions()) & 0o777, 0o600);
    house.stop().await;
    house.start().await;
    assert_eq!(ready(&house).await["registered"], true);
    assert_eq!(register(&house, &assertion).await.0, StatusCode::OK);
    assert_eq!(house.authz.registrations(), 1);

    let mut other = house.authz.claims(Purpose::Register, "sid", None);
    other.sub = "a-00000000000000000000000000000009".into();
    assert_eq!(register(&house, &house.authz.sign(&other)).await.0, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn one_whose_identity_was_taken_away_gets_another_and_nobody_is_signed_in_any_more() {
    let mut house = House::build().await;
    house.start().await;
    let register = async |house: &House| {
        let assertion = house.authz.assertion(Purpose::Register, "sid", None);
        let body = json!({ "assertion": assertion });
        house.internal(Method::POST, "/api/auth/register").json(&body).send().await.unwrap().status()
    };
    assert_eq!(register(&house).await, StatusCode::OK);
    let browser = house.sign_in().await;
    // The same token again, as when an answer was lost, and none at all.
    assert_eq!(register(&house).await, StatusCode::OK);
    std::fs::remove_file(house.path("config/registration.json")).unwrap();
    assert_eq!(register(&house).await, StatusCode::OK);
    assert!(browser.signed_in().await);
    assert_eq!(house.authz.registrations(), 1);

    house.authz.revoke("another-token");
    let registration = json!({ "initial_access_token": "another-token", "expires_at_ms": 1 });
    std::fs::write(house.path("config/registration.json"), registration.to_string()).unwrap();
    for _ in 0..2 {
        assert_eq!(register(&house).await, StatusCode::OK);
        assert_eq!(house.authz.registrations(), 2);
    }
    assert!(!browser.signed_in().await);
    assert!(house.sign_in().await.signed_in().await, "who signs in now is in");
}

#[tokio::test]
async fn a_refused_one_time_token_is_said_to_be_refused() {
    let mut house = House::build().await;
    let registration = json!({ "initial_access_token": "used", "expires_at_ms": 1 });
    std::fs::write(house.path("config/registration.json"), registration.to_string()).unwrap();
    house.start().await;
    let (status, problem) = register(&house, &house.authz.assertion(Purpose::Register, "sid", None)).await;
    assert_eq!((status, problem["code"].as_str()), (StatusCode::CONFLICT, Some("registration_token_refused")));
    std::fs::remove_file(house.path("config/registration.json")).unwrap();
    let (status, problem) = register(&house, &house.authz.assertion(Purpose::Register, "sid", None)).await;
    assert_eq!((status, problem["code"].as_str()), (StatusCode::CONFLICT, Some("registration_token_missing")));
}

#[tokio::test]
async fn an_identity_socket_that_comes_late_is_waited_for() {
    let mut house = House::build().await;
    std::fs::rename(house.path("out/identity.sock"), house.path("out/later.sock")).unwrap();
    house.start().await;
    let assertion = house.authz.assertion(Purpose::Register, "sid", None);
    let (answer, ()) = tokio::join!(register(&house, &assertion), async {
        // The first try has failed by the time the runtime is here again and the file is moved back.
        tokio::task::yield_now().await;
        std::fs::rename(house.path("out/later.sock"), house.path("out/identity.sock")).unwrap();
    });
    assert_eq!(answer.0, StatusCode::OK);
}

#[tokio::test]
async fn internal_calls_from_the_public_edge_are_not_there() {
    let mut house = House::build().await;
    house.start().await;
    for (method, path) in [
        (Method::POST, "/api/auth/register"),
        (Method::POST, "/api/auth/login"),
        (Method::POST, "/api/auth/logout"),
        (Method::POST, "/api/provider/test"),
        (Method::GET, "/healthz"),
        (Method::GET, "/readyz"),
    ] {
        let response = house.edge(method, path).json(&json!({})).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::NOT_FOUND, "{path}");
    }
}

#[tokio::test]
async fn a_browser_is_handed_over_and_signs_out() {
    let mut house = House::build().await;
    house.start().await;
    let page = house.edge(Method::GET, "/settings?a=b").send().await.unwrap();
    assert_eq!(page.status(), StatusCode::SEE_OTHER);
    assert_eq!(page.headers()["location"], "/auth/start?rd=%2Fsettings%3Fa%3Db");
    assert_eq!(house.edge(Method::GET, "/api/chats").send().await.unwrap().status(), StatusCode::UNAUTHORIZED);

    let (secret, bind) = house.begin().await;
    let code = house.code(&bind).await;
    let finished = house.finish(&code, &format!("beaver_bind={secret}")).await;
    assert_eq!(finished.status(), StatusCode::SEE_OTHER);
    for (name, value) in [("location", "/settings"), ("referrer-policy", "no-referrer"), ("cache-control", "no-store")]
    {
        assert_eq!(finished.headers()[name], value);
    }
    assert!(cookie(&finished, "beaver_bind").is_none(), "the bind cookie is taken away");
    let edge =
        finished.headers().get_all("set-cookie").iter().find(|l| l.to_str().unwrap().starts_with("beaver_edge="));
    let edge = edge.unwrap().to_str().unwrap();
    assert!(edge.contains("Max-Age=3") && edge.contains("HttpOnly") && edge.contains("SameSite=Lax"), "{edge}");

    let browser = house.sign_in().await;
    assert!(browser.signed_in().await);
    let twice = format!("beaver_workspace={0}; beaver_workspace={0}", browser.session);
    let doubled = house.edge(Method::GET, "/api/chats").header("cookie", twice).send().await.unwrap();
    assert_eq!(doubled.status(), StatusCode::UNAUTHORIZED, "two cookies of the name mean signed out");

    let by_get = browser.request(Method::GET, "/auth/signout").send().await.unwrap();
    assert_eq!(by_get.status(), StatusCode::METHOD_NOT_ALLOWED);
    for origin in ["http://bob.localhost:8088", "null"] {
        let cookie = format!("beaver_workspace={}", browser.session);
        let foreign = house.edge(Method::POST, "/auth/signout").header("cookie", cookie).header("origin", origin);
        assert_eq!(foreign.send().await.unwrap().status(), StatusCode::FORBIDDEN);
    }
    assert!(browser.signed_in().await);
    let out = browser.request(Method::POST, "/auth/signout").send().await.unwrap();
    assert_eq!(out.status(), StatusCode::SEE_OTHER);
    assert_eq!(out.headers()["location"], "/auth/signed-out");
    assert!(!browser.signed_in().await);
}

#[tokio::test]
async fn of_fifty_with_the_same_jti_one_wins_and_none_after_a_restart() {
    let mut house = House::build().await;
    house.start().await;
    let (_, bind) = house.begin().await;
    let assertion = house.authz.assertion(Purpose::Login, "sid", Some(&bind));
    let answers = futures_util::future::join_all((0..50).map(|_| house.log_in(&assertion))).await;
    let won = answers.iter().filter(|answer| answer.status() == StatusCode::OK).count();
    let refused = answers.iter().filter(|answer| answer.status() == StatusCode::UNAUTHORIZED).count();
    assert_eq!((won, refused), (1, 49));
    house.stop().await;
    house.start().await;
    assert_eq!(house.log_in(&assertion).await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn assertions_that_prove_nothing_here_are_refused() {
    let mut house = House::build().await;
    house.start().await;
    let (_, bind) = house.begin().await;
    let good = || house.authz.claims(Purpose::Login, "sid", Some(&bind));
    let mut cases = vec![(StatusCode::UNAUTHORIZED, "x.y.z".to_owned()), (StatusCode::BAD_REQUEST, "x".repeat(9000))];
    let mut spoil = |status, change: &dyn Fn(&mut token::AssertionClaims)| {
        let mut claims = good();
        change(&mut claims);
        cases.push((status, house.authz.sign(&claims)));
    };
    spoil(StatusCode::FORBIDDEN, &|c| c.sub = "a-00000000000000000000000000000009".into());
    spoil(StatusCode::UNAUTHORIZED, &|c| c.aud = "http://bob.localhost:8088".into());
    spoil(StatusCode::UNAUTHORIZED, &|c| c.iss = ORIGIN.into());
    spoil(StatusCode::UNAUTHORIZED, &|c| (c.iat, c.exp) = (c.iat - 120, c.exp - 120));
    spoil(StatusCode::UNAUTHORIZED, &|c| (c.iat, c.exp) = (c.iat + 60, c.exp + 60));
    spoil(StatusCode::UNAUTHORIZED, &|c| c.extra.purpose = Purpose::Register);
    spoil(StatusCode::BAD_REQUEST, &|c| c.extra.bind = None);
    spoil(StatusCode::BAD_REQUEST, &|c| c.extra.sid = None);
    cases.push((StatusCode::UNAUTHORIZED, house.authz.edge_token()));
    let stranger = crate::fakes::FakeAuthz::new(clock::Clock::system());
    cases.push((StatusCode::UNAUTHORIZED, stranger.sign(&good())));
    for (status, assertion) in cases {
        let answer = house.log_in(&assertion).await;
        assert_eq!(answer.status(), status, "{:?}", token::unverified_issuer(&assertion));
    }
    let body = json!({ "assertion": house.authz.sign(&good()), "password": "p" });
    let answer = house.internal(Method::POST, "/api/auth/login").json(&body).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    assert_eq!(house.log_in(&house.authz.sign(&good())).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_code_opens_once_in_the_browser_that_began_and_its_second_use_ends_what_came_of_it() {
    let mut house = House::build().await;
    house.start().await;
    let (secret, bind) = house.begin().await;
    let (other_secret, _) = house.begin().await;
    let code = house.code(&bind).await;
    let own = format!("beaver_bind={secret}");
    for cookies in ["", "beaver_bind=", &format!("beaver_bind={other_secret}"), &format!("{own}; {own}")] {
        let answer = house.finish(&code, cookies).await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{cookies}");
        assert!(cookie(&answer, "beaver_workspace").is_none());
    }
    assert_eq!(house.finish("no-such-code", &own).await.status(), StatusCode::BAD_REQUEST);

    let entered = house.finish(&code, &own).await;
    assert_eq!(entered.status(), StatusCode::SEE_OTHER);
    let session = cookie(&entered, "beaver_workspace").unwrap();
    let signed_in = async || {
        let request = house.edge(Method::GET, "/api/chats").header("cookie", format!("beaver_workspace={session}"));
        request.send().await.unwrap().status() == StatusCode::OK
    };
    let bystander = house.sign_in().await;
    assert!(signed_in().await);
    assert_eq!(house.finish(&code, &own).await.status(), StatusCode::BAD_REQUEST);
    assert!(!signed_in().await, "what came of the code has ended");
    assert!(bystander.signed_in().await, "and nothing else");
}

#[tokio::test]
async fn of_fifty_with_the_same_code_at_most_one_enters() {
    let mut house = House::build().await;
    house.start().await;
    let (secret, bind) = house.begin().await;
    let (code, own) = (house.code(&bind).await, format!("beaver_bind={secret}"));
    let answers = futures_util::future::join_all((0..50).map(|_| house.finish(&code, &own))).await;
    let entered = answers.iter().filter(|answer| answer.status() == StatusCode::SEE_OTHER).count();
    assert_eq!(entered, 1);
}

#[tokio::test]
async fn a_code_lasts_thirty_seconds() {
    let house = House::with_manual_clock().await;
    let (secret, bind) = house.begin().await;
    let own = format!("beaver_bind={secret}");
    let hand = house.hand.as_ref().unwrap();
    let code = house.code(&bind).await;
    hand.advance_ms(29_999);
    assert_eq!(house.finish(&code, &own).await.status(), StatusCode::SEE_OTHER);
    let code = house.code(&bind).await;
    hand.advance_ms(30_000);
    assert_eq!(house.finish(&code, &own).await.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn the_portals_sign_out_ends_the_session_and_what_is_on_its_way() {
    let mut house = House::build().await;
    house.start().await;
    let browser = house.sign_in().await;
    let (secret, bind) = house.begin().await;
    let code = house.code(&bind).await;
    let late = house.authz.assertion(Purpose::Login, "sid-1", Some(&bind));
    let out = async |sid: &str| {
        let body = json!({ "assertion": house.authz.assertion(Purpose::Logout, sid, None) });
        house.internal(Method::POST, "/api/auth/logout").json(&body).send().await.unwrap().status()
    };
    assert_eq!(out("sid-of-another").await, StatusCode::NO_CONTENT);
    assert!(browser.signed_in().await);
    assert_eq!(out("sid-1").await, StatusCode::NO_CONTENT);
    assert!(!browser.signed_in().await);
    assert_eq!(house.finish(&code, &format!("beaver_bind={secret}")).await.status(), StatusCode::BAD_REQUEST);
    assert_eq!(house.log_in(&late).await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_sign_out_of_no_session_in_particular_ends_them_all() {
    let mut house = House::build().await;
    house.start().await;
    let (one, other) = (house.sign_in().await, house.sign_in().await);
    let (secret, bind) = house.begin().await;
    let code = house.code(&bind).await;
    let mut claims = house.authz.claims(Purpose::Logout, "sid-1", None);
    claims.extra.sid = None;
    let body = json!({ "assertion": house.authz.sign(&claims) });
    let out = house.internal(Method::POST, "/api/auth/logout").json(&body).send().await.unwrap();
    assert_eq!(out.status(), StatusCode::NO_CONTENT);
    assert!(!one.signed_in().await && !other.signed_in().await);
    assert_eq!(house.finish(&code, &format!("beaver_bind={secret}")).await.status(), StatusCode::BAD_REQUEST);
    assert!(house.sign_in().await.signed_in().await, "one may sign in again");
}

#[tokio::test]
async fn a_sign_out_of_all_that_comes_late_ends_what_began_before_it_and_nothing_since() {
    let house = House::with_manual_clock().await;
    let hand = house.hand.as_ref().unwrap();
    let before = house.sign_in().await;
    let (secret, bind) = house.begin().await;
    let code = house.code(&bind).await;
    let on_its_way = house.authz.assertion(Purpose::Login, "sid-2", Some(&bind));
    hand.advance_ms(1_000);
    let mut ended = house.authz.claims(Purpose::Logout, "sid-1", None);
    hand.advance_ms(1_000);
    let since = house.sign_in().await;
    // Said twenty seconds later: what it is about stays what it was.
    hand.advance_ms(20_000);
    ended.extra.sid = None;
    let now = house.authz.claims(Purpose::Logout, "sid-1", None);
    (ended.iat, ended.exp) = (now.iat, now.exp);
    let body = json!({ "assertion": house.authz.sign(&ended) });
    let out = house.internal(Method::POST, "/api/auth/logout").json(&body).send().await.unwrap();
    assert_eq!(out.status(), StatusCode::NO_CONTENT);
    assert!(!before.signed_in().await && since.signed_in().await);
    assert_eq!(house.finish(&code, &format!("beaver_bind={secret}")).await.status(), StatusCode::BAD_REQUEST);
    assert_eq!(house.log_in(&on_its_way).await.status(), StatusCode::UNAUTHORIZED);
    assert!(house.sign_in().await.signed_in().await, "one may sign in again");
}

#[tokio::test]
async fn the_way_back_is_always_a_path_of_this_workspace() {
    let mut house = House::build().await;
    house.start().await;
    for (rd, expected) in
        [("/settings", "/settings"), ("//evil.example", "/"), ("https://evil.example", "/"), ("/\\evil.example", "/")]
    {
        let (secret, bind) = house.begin().await;
        let assertion = house.authz.assertion(Purpose::Login, "sid", Some(&bind));
        let body = json!({ "assertion": assertion, "rd": rd });
        let answer = house.internal(Method::POST, "/api/auth/login").json(&body).send().await.unwrap();
        let code = answer.json::<Value>().await.unwrap()["code"].as_str().unwrap().to_owned();
        let finished = house.finish(&code, &format!("beaver_bind={secret}")).await;
        assert_eq!(finished.headers()["location"], expected, "{rd}");
    }
}

#[tokio::test]
async fn people_get_refusals_as_pages_and_programs_as_json() {
    let mut house = House::build().await;
    house.start().await;
    let refused = async |accept: &str| {
        let request = house.edge(Method::GET, "/nowhere").header("accept", accept).header("accept-language", "zh");
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        let policy = response.headers()["content-security-policy"].to_str().unwrap();
        assert!(policy.contains("default-src 'none'") && policy.contains("form-action 'self' http://localhost:3081;"));
        (response.headers()["content-type"].to_str().unwrap().to_owned(), response.text().await.unwrap())
    };
    let (kind, page) = refused("text/html,application/xhtml+xml").await;
    assert!(kind.starts_with("text/html") && page.contains("这个地址没有内容") && page.contains("not_found"), "{page}");
    let (kind, problem) = refused("*/*").await;
    assert_eq!(kind, "application/problem+json");
    assert_eq!(serde_json::from_str::<Value>(&problem).unwrap()["code"], "not_found");
}
