//! What the router itself says, to whom, and in which form.

use contracts::routes::RouteState;

use crate::harness::*;

const HTML: &str = "accept: text/html,application/xhtml+xml,*/*;q=0.8\r\n";
const STATES: [(&str, u128, RouteState); 3] =
    [("starting", 1, RouteState::Starting), ("stopped", 2, RouteState::Stopped), ("failed", 3, RouteState::Failed)];

async fn house() -> House {
    let mut routes: Vec<_> = STATES.iter().map(|(slug, n, state)| route(slug, *n, *state)).collect();
    routes.push(route("running", 4, RouteState::Running));
    House::with(Plan { routes, ..Plan::default() }).await
}

/// The cookie of the n-th account's browser at this workspace.
fn cookie(house: &House, n: u128, slug: &str) -> String {
    let token = house.authz.edge_token(n, &format!("http://{slug}.localhost:8088"));
    format!("cookie: beaver_edge={token}\r\n")
}

#[tokio::test]
async fn the_owner_is_told_what_is_the_matter_in_both_languages() {
    let house = house().await;
    for (slug, n, english, chinese, status, portal) in [
        ("starting", 1, "Your workspace is starting", "你的工作区正在启动", 503, false),
        ("stopped", 2, "Your workspace is stopped", "你的工作区已停止", 503, true),
        ("failed", 3, "Your workspace could not be started", "你的工作区未能启动", 503, true),
        ("running", 4, "Your workspace is not answering", "你的工作区没有响应", 502, true),
    ] {
        for (language, title, lang) in [("en", english, "en"), ("zh-CN,zh;q=0.9", chinese, "zh-Hans")] {
            let lines = format!("{HTML}accept-language: {language}\r\n{}", cookie(&house, n, slug));
            let answer = house.get(&format!("{slug}.localhost"), "/", &lines).await;
            assert_eq!(answer.status, status, "{slug}");
            assert!(answer.body.contains(&format!("<h1>{title}</h1>")), "{slug} {language}: {}", answer.body);
            assert!(answer.body.contains(&format!("<html lang=\"{lang}\">")), "{slug}");
            assert_eq!(answer.body.contains("href=\"http://localhost:3081/\""), portal, "{slug}");
            assert!(answer.body.contains(&answer.headers["x-request-id"]), "the page names its request");
            let waits = matches!(slug, "starting" | "running");
            assert_eq!(answer.body.contains("/.well-known/beaver/wait.js"), waits, "{slug}");
            assert_eq!(answer.body.contains("http-equiv=\"refresh\""), waits, "{slug}");
            assert_eq!(answer.headers.contains_key("retry-after"), waits, "{slug}");
        }
    }
}

#[tokio::test]
async fn a_stranger_learns_that_the_name_is_taken_and_nothing_more() {
    let house = house().await;
    let strangers = [
        String::new(),
        "cookie: beaver_edge=garbage\r\n".into(),
        // Another person's, right audience; the owner's, another workspace's audience.
        cookie(&house, 77, "stopped"),
        cookie(&house, 2, "failed"),
        format!("cookie: beaver_edge=a\r\n{}", cookie(&house, 2, "stopped")),
    ];
    let mut said = Vec::new();
    for (slug, ..) in STATES.iter().chain([&("running", 4, RouteState::Running)]) {
        for language in ["en", "zh"] {
            let lines = format!("{HTML}accept-language: {language}\r\n");
            let answer = house.get(&format!("{slug}.localhost"), "/", &lines).await;
            assert_eq!(answer.status, 503);
            let id = answer.headers["x-request-id"].clone();
            let mut headers: Vec<_> = answer.headers.into_iter().filter(|(name, _)| name != "date").collect();
            headers.retain(|(name, _)| name != "x-request-id");
            headers.sort();
            said.push((language, answer.body.replace(&id, ""), headers));
        }
    }
    for (language, ..) in &said {
        let of_language: Vec<_> = said.iter().filter(|(l, ..)| l == language).collect();
        assert!(of_language.windows(2).all(|two| two[0] == two[1]), "the states differ: {of_language:?}");
    }
    assert!(said[0].1.contains("This workspace is not available right now"), "{}", said[0].1);
    assert!(said[1].1.contains("这个工作区暂时无法使用"), "{}", said[1].1);
    for lines in strangers {
        let answer = house.get("stopped.localhost", "/", &format!("{HTML}{lines}")).await;
        assert!(answer.body.contains("not available right now"), "{lines}: {}", answer.body);
    }
    // The control: the owner is told.
    let owner = format!("{HTML}{}", cookie(&house, 2, "stopped"));
    assert!(house.get("stopped.localhost", "/", &owner).await.body.contains("is stopped"));
}

#[tokio::test]
async fn programs_are_answered_in_their_form() {
    let house = house().await;
    let problem = house.get("stopped.localhost", "/x", "accept: application/json\r\n").await;
    assert_eq!(problem.headers["content-type"], "application/problem+json");
    assert_eq!(problem.json()["code"], "workspace_unavailable");
    assert_eq!(problem.json()["status"], 503);
    assert_eq!(problem.json()["request_id"].as_str(), Some(problem.headers["x-request-id"].as_str()));
    let api = house.get("stopped.localhost", "/api/x", HTML).await;
    assert_eq!(api.headers["content-type"], "application/problem+json");
    let owner = house.get("stopped.localhost", "/x", &cookie(&house, 2, "stopped")).await;
    assert_eq!(owner.json()["code"], "workspace_stopped");

    let openai = house.get("stopped.localhost", "/v1/chat/completions", "authorization: Bearer k\r\n").await;
    assert_eq!((openai.status, openai.headers["content-type"].as_str()), (503, "application/json"));
    let error = &openai.json()["error"];
    assert_eq!((error["type"].as_str(), error["code"].as_str()), (Some("server_error"), Some("workspace_unavailable")));
    assert!(error["message"].is_string() && error["param"].is_null());
    let missing = house.get("nobody.localhost", "/v1/models", "").await;
    assert_eq!((missing.status, missing.json()["error"]["type"].as_str()), (404, Some("invalid_request_error")));
}

#[tokio::test]
async fn pages_bring_nothing_from_elsewhere() {
    let house = house().await;
    let page = house.get("nobody.localhost", "/", HTML).await;
    assert_eq!(page.status, 404);
    assert!(page.body.contains("There is nothing at this address"));
    let policy = &page.headers["content-security-policy"];
    assert!(
        policy.starts_with("default-src 'none'") && !policy.contains("unsafe") && !policy.contains("http"),
        "{policy}"
    );
    assert_eq!(
        (page.headers["cache-control"].as_str(), page.headers["x-content-type-options"].as_str()),
        ("no-store", "nosniff")
    );
    assert!(!page.body.contains("<style") && !page.body.contains("onclick"), "{}", page.body);
    for (host, name, media_type) in [
        ("nobody.localhost", "page.css", "text/css; charset=utf-8"),
        ("stopped.localhost", "page.css", "text/css; charset=utf-8"),
        ("starting.localhost", "wait.js", "text/javascript; charset=utf-8"),
    ] {
        let answer = house.get(host, &format!("/.well-known/beaver/{name}"), "").await;
        assert_eq!((answer.status, answer.headers["content-type"].as_str()), (200, media_type), "{host} {name}");
    }
}

#[tokio::test]
async fn the_waiting_page_is_told_when_to_go_on() {
    let house = house().await;
    let owner = cookie(&house, 1, "starting");
    let ready = "/.well-known/beaver/ready";
    assert_eq!(house.get("starting.localhost", ready, &owner).await.json()["waiting"], true);
    assert_eq!(house.get("starting.localhost", ready, "").await.status, 404, "not for strangers");
    house.deploy.change(route("starting", 1, RouteState::Running));
    until("it runs", async || house.get("starting.localhost", "/", &owner).await.status == 502).await;
    assert_eq!(house.get("starting.localhost", ready, &owner).await.json()["waiting"], true, "it does not answer yet");
    let _instance = house.instance(1, echo());
    assert_eq!(house.get("starting.localhost", ready, &owner).await.json()["waiting"], false);
    assert_eq!(house.get("starting.localhost", "/", &owner).await.status, 200);
}

#[tokio::test]
async fn owners_are_known_while_authz_is_away() {
    let house = house().await;
    let owner = cookie(&house, 2, "stopped");
    assert!(house.get("stopped.localhost", "/", &format!("{HTML}{owner}")).await.body.contains("is stopped"));
    until("the keys are on disk", async || house.data.path().join("router/jwks.json").exists()).await;
    let data = house.end().await;
    let away = vec![("BEAVER_AUTHZ_URL", "http://127.0.0.1:1".to_owned())];
    let routes = vec![route("stopped", 2, RouteState::Stopped)];
    let house = House::with(Plan { routes, env: away, data: Some(data), ..Plan::default() }).await;
    assert!(house.get("stopped.localhost", "/", &format!("{HTML}{owner}")).await.body.contains("is stopped"));
}
