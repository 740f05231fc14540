//! Into a workspace, without its password.

use contracts::{
    authz::Purpose,
    deploy::{EventCode, Phase},
};

use crate::{PASSWORD, alice, browser::Browser, fakes::House};

const BIND: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

fn link(slug: &str) -> String {
    format!("/open/{slug}?bind={BIND}&rd=%2Fchat%2F1%3Fa%3Db")
}

#[tokio::test]
async fn the_owner_is_handed_on_with_a_code() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    let page = browser.get(&link("alice")).await;
    assert_eq!(page.status.as_u16(), 303);
    assert_eq!(page.location.as_deref(), Some("http://alice.localhost:8088/auth/finish?code=one-time-code"));
    assert_eq!(page.headers["referrer-policy"], "no-referrer");
    assert_eq!(page.headers["cache-control"], "no-store");
    let (slug, purpose, bind) = house.authz.inner.lock().assertions[0].clone();
    assert_eq!((slug.as_str(), purpose, bind.as_deref()), ("alice", Purpose::Login, Some(BIND)));
    let (id, path, body) = house.workspace.inner.lock().calls[0].clone();
    assert_eq!((id, &*path), (house.deploy.only().id, "api/auth/login"));
    let expected =
        serde_json::json!({ "assertion": "an-assertion", "edge_token": "an-edge-token", "rd": "/chat/1?a=b" });
    assert_eq!(body, expected, "no password, nothing else");
}

#[tokio::test]
async fn a_stranger_signs_in_first_and_goes_on() {
    let house = House::new().await;
    alice(&house).await;
    let mut browser = Browser::new(&house);
    let login = browser.get(&link("alice")).await.location.unwrap();
    assert!(login.starts_with("/login?next=open&slug=alice"), "{login}");
    let page = browser.get(&login).await;
    let policy = page.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("form-action 'self' http://*.localhost:8088;"), "a browser checks redirects too: {policy}");
    let hidden: Vec<String> = ["next", "slug", "bind", "rd"].map(|name| page.value(name).unwrap()).to_vec();
    let fields = [
        ("login", "alice"),
        ("password", PASSWORD),
        ("next", &*hidden[0]),
        ("slug", &hidden[1]),
        ("bind", &hidden[2]),
        ("rd", &hidden[3]),
    ];
    let wrong = [&[("login", "alice"), ("password", "wrong")], &fields[2..]].concat();
    assert_eq!(browser.post("/login", &wrong).await.value("bind").as_deref(), Some(BIND), "a slip loses nothing");
    let on = browser.post("/login", &fields).await.location.unwrap();
    assert_eq!(on, link("alice"));
    assert!(browser.get(&on).await.location.unwrap().ends_with("/auth/finish?code=one-time-code"));
}

#[tokio::test]
async fn another_persons_name_looks_like_nobodys() {
    let house = House::new().await;
    alice(&house).await;
    let mut bob = Browser::new(&house);
    bob.register("bob", "bob@example.com", PASSWORD).await;
    house.deploy.ready();
    let (hers, nobodys) = (bob.get(&link("alice")).await, bob.get(&link("nobody")).await);
    assert_eq!((hers.status.as_u16(), nobodys.status.as_u16()), (404, 404));
    let without_id = |page: &crate::browser::Page| {
        page.body.replace(page.headers["x-request-id"].to_str().unwrap(), "").replace("nobody", "alice")
    };
    assert_eq!(without_id(&hers), without_id(&nobodys));
    assert!(house.authz.inner.lock().assertions.is_empty() && house.workspace.inner.lock().calls.is_empty());
}

#[tokio::test]
async fn nothing_leads_elsewhere_and_damaged_links_are_refused() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    for rd in ["https%3A%2F%2Fevil.example", "%2F%2Fevil.example", "%2F%5Cevil.example", "%2F%09%2Fevil.example"] {
        browser.get(&format!("/open/alice?bind={BIND}&rd={rd}")).await;
        let call = house.workspace.inner.lock().calls.pop().unwrap();
        assert_eq!(call.2["rd"], "/", "{rd}");
    }
    for slug in ["Alice", "..%2Fx", "a", "alice.evil.example"] {
        assert_eq!(browser.get(&link(slug)).await.status.as_u16(), 404, "{slug}");
    }
    assert_eq!(browser.get("/open/alice?bind=short").await.status.as_u16(), 400);
    let begin = browser.get("/open/alice").await.location.unwrap();
    assert_eq!(begin, "http://alice.localhost:8088/auth/start?rd=%2F", "the workspace has to begin");
}

#[tokio::test]
async fn a_workspace_that_is_not_there_says_so() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    house.deploy.step(Phase::Stopped, &[]);
    let page = browser.get(&link("alice")).await;
    assert_eq!(page.status.as_u16(), 503);
    page.shows("alice is not running");
    assert!(!page.headers.contains_key("retry-after"), "it does not come back by itself");
    assert!(page.body.contains("action=\"/instance/start\"") && !page.body.contains("http-equiv"));
    assert_eq!(page.headers["referrer-policy"], "same-origin", "the form on it needs its Origin");
    house.deploy.step(Phase::Starting, &[]);
    let page = browser.get(&link("alice")).await;
    assert!(page.body.contains("http-equiv=\"refresh\"") && page.body.contains("data-reload"));
    house.deploy.fail("crash_loop");
    browser.get(&link("alice")).await.shows("could not be started");
    house.deploy.step(Phase::Ready, &[]);
    house.workspace.inner.lock().away = true;
    assert_eq!(browser.get(&link("alice")).await.headers["retry-after"], "3");
    house.deploy.inner.lock().away = true;
    browser.get(&link("alice")).await.shows("Not available right now");
}

#[tokio::test]
async fn a_workspace_that_sleeps_is_shown_as_what_it_is_and_opens_all_the_same() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    for phase in [Phase::Paused, Phase::Asleep] {
        house.deploy.step(phase, &[EventCode::SleepRequested, EventCode::Paused, EventCode::Asleep]);
        let page = browser.get("/instance").await;
        page.shows("It wakes by itself as soon as you open it");
        page.shows("Fell asleep, since nobody used it");
        assert!(!page.body.contains("Nobody uses it; it goes to sleep"), "of a pause nothing is told: {}", page.body);
        assert!(page.body.contains("href=\"/open/alice\"") && page.body.contains("id=\"stop\""), "{}", page.body);
        assert!(!page.body.contains("id=\"start\"") && !page.body.contains("http-equiv"), "{}", page.body);
        browser.clone().chinese().get("/instance").await.shows("打开时会自动唤醒");

        // One that already has its hand-off: whoever lets it in wakes it.
        let on = browser.get(&link("alice")).await;
        assert!(on.location.unwrap().ends_with("/auth/finish?code=one-time-code"), "{phase:?}");

        // One that has not been there yet, and so could not wake it.
        house.deploy.inner.lock().actions.clear();
        let opened = browser.get("/open/alice");
        let woken = async {
            while house.deploy.inner.lock().actions != ["wake"] {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            house.deploy.step(Phase::Ready, &[]);
        };
        let (page, ()) = tokio::join!(opened, woken);
        assert_eq!(page.location.as_deref(), Some("http://alice.localhost:8088/auth/start?rd=%2F"), "{phase:?}");
    }
    // Nobody else wakes it, and nobody is let in by it.
    house.deploy.step(Phase::Asleep, &[]);
    house.deploy.inner.lock().actions.clear();
    let mut stranger = Browser::new(&house);
    stranger.get("/open/alice").await;
    stranger.register("bob", "bob@example.com", PASSWORD).await;
    stranger.get("/open/alice").await;
    assert!(house.deploy.inner.lock().actions.is_empty());
}
