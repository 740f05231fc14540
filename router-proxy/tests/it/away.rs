//! While the engine is out of reach: what still answers is passed on, and what does not waits for its host.

use contracts::routes::{Route, RouteMessage, RouteState};

use crate::harness::*;

const HTML: &str = "accept: text/html,application/xhtml+xml,*/*;q=0.8\r\n";
const KEY: &str = "sk-0123456789abcdefghijklmnopqrstuvwxyzABCDEFG";
const READY: &str = "/.well-known/beaver/ready";
/// What waits for the host, when nobody answers: slug, number, state.
const WAITING: [(&str, u128, RouteState); 4] = [
    ("running", 1, RouteState::Running),
    ("starting", 2, RouteState::Starting),
    ("paused", 3, RouteState::Paused),
    ("asleep", 4, RouteState::Asleep),
];

fn routes() -> Vec<Route> {
    let waiting = WAITING.map(|(slug, n, state)| {
        let wake_keys = if state == RouteState::Running { Vec::new() } else { vec![sign_in::fingerprint(KEY)] };
        Route { wake_keys, ..route(slug, n, state) }
    });
    let down = [route("stopped", 5, RouteState::Stopped), route("failed", 6, RouteState::Failed)];
    waiting.into_iter().chain(down).collect()
}

async fn house() -> House {
    let house = House::with(Plan { routes: routes(), ..Plan::default() }).await;
    until("the keys are on disk", async || house.data.path().join("router/jwks.json").exists()).await;
    house
}

/// The cookie of the n-th account's browser at this workspace.
fn cookie(house: &House, n: u128, slug: &str) -> String {
    let token = house.authz.edge_token(n, &format!("http://{slug}.localhost:8088"));
    format!("cookie: beaver_edge={token}\r\n")
}

/// What a program of its owner's is told at a workspace that nobody answers for.
async fn code(house: &House, n: u128, slug: &str) -> String {
    let answer = house.get(&format!("{slug}.localhost"), "/", &cookie(house, n, slug)).await;
    answer.json()["code"].as_str().unwrap().to_owned()
}

/// Says it, and waits until the router goes by it.
async fn say(house: &House, away: bool) {
    house.deploy.say(&RouteMessage::Engine { away });
    let expected = if away { "host_restarting" } else { "workspace_unreachable" };
    until(expected, async || code(house, 1, "running").await == expected).await;
}

#[tokio::test]
async fn what_cannot_be_reached_waits_for_its_host() {
    let house = house().await;
    assert_eq!(code(&house, 1, "running").await, "workspace_unreachable");
    for n in [2, 3, 4] {
        assert_eq!(code(&house, n, WAITING[n as usize - 1].0).await, "workspace_starting");
    }
    say(&house, true).await;
    for (slug, n, _) in WAITING {
        let (host, owner) = (format!("{slug}.localhost"), cookie(&house, n, slug));
        for (language, lang, words) in [
            ("en", "en", ["<h1>The host is restarting</h1>", "Nothing is lost", "this page continues by itself"]),
            ("zh-CN,zh;q=0.9", "zh-Hans", ["<h1>主机正在重新启动</h1>", "不会丢失任何内容", "页面会自动继续"]),
        ] {
            let page = house.get(&host, "/", &format!("{HTML}accept-language: {language}\r\n{owner}")).await;
            assert_eq!((page.status, page.headers["retry-after"].as_str()), (503, "10"), "{slug}");
            assert!(page.body.contains(&format!("<html lang=\"{lang}\">")), "{slug}: {}", page.body);
            for word in words.into_iter().chain(["host_restarting", "/.well-known/beaver/wait.js"]) {
                assert!(page.body.contains(word), "{word} is not for {slug}: {}", page.body);
            }
            assert!(page.body.contains("http-equiv=\"refresh\""), "it goes on without scripts too: {}", page.body);
            assert!(
                !page.body.contains("http://localhost:3081"),
                "there is nothing to do in the portal: {}",
                page.body
            );
        }
        assert_eq!(house.get(&host, READY, &owner).await.json()["waiting"], true, "{slug}");

        let problem = house.get(&host, "/", &owner).await;
        assert_eq!((problem.status, problem.headers["retry-after"].as_str()), (503, "10"), "{slug}");
        assert_eq!(problem.headers["content-type"], "application/problem+json");
        assert_eq!(
            (problem.json()["code"].as_str(), problem.json()["status"].as_u64()),
            (Some("host_restarting"), Some(503))
        );
        let openai = house.get(&host, "/v1/models", &owner).await;
        assert_eq!((openai.status, openai.headers["retry-after"].as_str()), (503, "10"), "{slug}");
        let error = &openai.json()["error"];
        assert_eq!((error["type"].as_str(), error["code"].as_str()), (Some("server_error"), Some("host_restarting")));
    }
    let program = house.get("asleep.localhost", "/v1/models", &format!("x-api-key: {KEY}\r\n")).await;
    assert_eq!((program.status, program.json()["error"]["code"].as_str()), (503, Some("host_restarting")));

    // The host is back, and what was said before is right again.
    say(&house, false).await;
    for (slug, n, _) in &WAITING[1..] {
        assert_eq!(code(&house, *n, slug).await, "workspace_starting");
    }
}

#[tokio::test]
async fn what_answers_is_passed_on_and_what_is_down_for_a_reason_says_so() {
    let house = house().await;
    house.deploy.change(route("answering", 7, RouteState::Running));
    let _instance = house.instance(7, echo());
    until("it answers", async || house.get("answering.localhost", "/", "").await.status == 200).await;
    say(&house, true).await;
    let owner = cookie(&house, 7, "answering");
    for lines in [String::new(), owner.clone(), format!("{HTML}{owner}")] {
        let answer = house.get("answering.localhost", "/here", &lines).await;
        assert!(answer.status == 200 && answer.body.starts_with("GET /here\n"), "{lines}: {}", answer.body);
    }
    assert_eq!(code(&house, 5, "stopped").await, "workspace_stopped");
    assert_eq!(code(&house, 6, "failed").await, "workspace_failed");

    // One that comes back while the engine is still away is passed on too, and its page goes on.
    let owner = cookie(&house, 1, "running");
    assert_eq!(house.get("running.localhost", READY, &owner).await.json()["waiting"], true);
    let _instance = house.instance(1, echo());
    assert_eq!(house.get("running.localhost", READY, &owner).await.json()["waiting"], false);
    assert_eq!(house.get("running.localhost", "/", &owner).await.status, 200);
}

#[tokio::test]
async fn a_stranger_hears_what_strangers_always_hear() {
    let house = house().await;
    say(&house, true).await;
    for slug in WAITING.map(|(slug, ..)| slug).into_iter().chain(["stopped", "failed"]) {
        for lines in [String::new(), HTML.to_owned(), cookie(&house, 77, slug)] {
            let answer = house.get(&format!("{slug}.localhost"), "/", &lines).await;
            assert_eq!((answer.status, answer.headers["retry-after"].as_str()), (503, "10"), "{slug} {lines}");
            assert!(answer.body.contains("workspace_unavailable"), "{slug} {lines}: {}", answer.body);
        }
    }
}

#[tokio::test]
async fn a_new_snapshot_takes_it_back_and_a_lost_feed_does_not() {
    let house = house().await;
    say(&house, true).await;
    // A route that changes says nothing of the engine.
    house.deploy.change(route("bob", 8, RouteState::Running));
    until("bob waits for the host", async || {
        house.get("bob.localhost", "/", &cookie(&house, 8, "bob")).await.body.contains("host_restarting")
    })
    .await;
    house.deploy.restart("two", routes());
    until("it is taken back", async || code(&house, 1, "running").await == "workspace_unreachable").await;
    assert_eq!(code(&house, 2, "starting").await, "workspace_starting");

    say(&house, true).await;
    let before = house.deploy.connections();
    house.deploy.lose();
    until("the feed is lost", async || house.deploy.connections() > before).await;
    assert_eq!(code(&house, 1, "running").await, "host_restarting");
}
