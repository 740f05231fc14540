//! Progress, "my workspace", and the stream behind them.

use std::time::Duration;

use contracts::deploy::{EventCode, InstanceError, Phase};
use futures_util::StreamExt;
use http::Request;
use serde_json::Value;

use crate::{PASSWORD, alice, browser::Browser, fakes::House};

/// The messages of a stream, one by one, each within ten seconds.
struct Stream(futures_util::stream::BoxStream<'static, Result<bytes::Bytes, axum::Error>>, String);

impl Stream {
    async fn open(browser: &mut Browser, view: &str) -> Self {
        let response = browser.raw(Request::get(format!("/events?view={view}")), String::new()).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["x-accel-buffering"], "no");
        Self(response.into_body().into_data_stream().boxed(), String::new())
    }

    /// The next message; `None` at the stream's end.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some((message, rest)) = self.1.split_once("\n\n") {
                let data = message.lines().find_map(|line| line.strip_prefix("data: ")).map(str::to_owned);
                self.1 = rest.to_owned();
                if let Some(data) = data {
                    return Some(serde_json::from_str(&data).unwrap());
                }
                continue;
            }
            let chunk = tokio::time::timeout(Duration::from_secs(10), self.0.next()).await.expect("a message in time");
            self.1.push_str(std::str::from_utf8(&chunk?.unwrap()).unwrap());
        }
    }

    /// Reads until a message says this.
    async fn until(&mut self, words: &str) -> Value {
        loop {
            let message = self.next().await.expect("not the end yet");
            if message["say"].as_str().unwrap().contains(words) || message["go"] == words {
                return message;
            }
        }
    }
}

#[tokio::test]
async fn a_sign_up_that_is_refused_for_good_says_so_on_every_page_until_a_retry_works() {
    let house = House::new().await;
    house.authz.inner.lock().refuse_delivery = Some("slug_taken");
    let mut browser = Browser::new(&house);
    let page = browser.register("alice", "alice@example.com", PASSWORD).await;
    assert_eq!(page.location.as_deref(), Some("/progress"), "the account is there all the same");
    let page = browser.get("/progress").await;
    page.shows("Your workspace could not be started.");
    page.shows("did not accept your new workspace");
    page.shows("slug_taken");
    page.shows("Try again");
    assert!(!page.body.contains("http-equiv=\"refresh\""), "nothing follows by itself");
    let chinese = browser.clone().chinese().get("/progress").await;
    chinese.shows("工作区未能启动");
    chinese.shows("服务器没有接受你的新工作区");
    for path in ["/instance", "/applying", "/onboarding"] {
        assert_eq!(browser.get(path).await.location.as_deref(), Some("/progress"), "{path}");
    }
    let save = [("kind", "openai"), ("base_url", ""), ("model", "m"), ("api_key", "sk-0123456789"), ("action", "save")];
    assert_eq!(browser.post("/onboarding", &save).await.location.as_deref(), Some("/progress"));
    // The same in a new session, and after signing in elsewhere.
    let mut elsewhere = Browser::new(&house);
    elsewhere.login("alice", PASSWORD).await;
    elsewhere.get("/progress").await.shows("could not be started");

    let mut stream = Stream::open(&mut browser, "progress").await;
    stream.until("could not be started").await;
    let retry = [("from", "progress")];
    // authz away, then refused once more: each is said, and nothing is lost.
    house.authz.refuse(("/portal/retry-delivery", 503, "unavailable", None, Some(5)));
    let page = browser.post("/instance/retry", &retry).await;
    assert_eq!(page.status.as_u16(), 503);
    page.shows("Not available right now");
    house.authz.inner.lock().refuse_delivery = Some("instance_id_taken");
    assert_eq!(browser.post("/instance/retry", &retry).await.location.as_deref(), Some("/progress"));
    browser.get("/progress").await.shows("instance_id_taken");
    assert!(house.deploy.inner.lock().instances.is_empty());

    house.authz.inner.lock().refuse_delivery = None;
    assert_eq!(browser.post("/instance/retry", &retry).await.location.as_deref(), Some("/progress"));
    assert_eq!(house.deploy.only().slug.as_str(), "alice");
    // The page that was open all the time goes on by itself, and so does a second press.
    stream.until("waiting for its turn").await;
    let again = browser.post("/instance/retry", &retry).await;
    assert_eq!((again.status.as_u16(), again.location.as_deref()), (303, Some("/progress")));
    assert_eq!(house.authz.inner.lock().retries, 2, "the third press was for deploy-control");
    house.deploy.ready();
    assert_eq!(stream.until("/onboarding").await["go"], "/onboarding");
    elsewhere.get("/instance").await.shows("Everything is fine");
}

#[tokio::test]
async fn whoever_waits_in_line_sees_where_and_about_how_long() {
    use contracts::deploy::{Waiting, WaitsFor};
    let house = House::new().await;
    let mut browser = Browser::new(&house);
    browser.register("alice", "alice@example.com", PASSWORD).await;
    let place = |position, waits_for, seconds| {
        move |instance: &mut contracts::deploy::Instance| {
            instance.waiting = Some(Waiting { position, waits_for, seconds });
        }
    };
    house.deploy.change(place(41, WaitsFor::Turn, Some(130)), &[EventCode::Queued]);
    let page = browser.get("/progress").await;
    page.shows("Your workspace is number 41 in line. It should take about 3 min, and goes on by itself.");
    browser.clone().chinese().get("/progress").await.shows("你的工作区排在第 41 位，预计约 3 分钟，届时会自动继续。");
    let mut stream = Stream::open(&mut browser, "progress").await;
    house.deploy.change(place(2, WaitsFor::Turn, Some(9)), &[]);
    stream.until("number 2 in line. It should be its turn within a minute").await;
    house.deploy.change(place(1, WaitsFor::Room, None), &[]);
    stream.until("The server is full at present. It goes on by itself as soon as there is room.").await;
    house.deploy.change(place(3, WaitsFor::Room, Some(59)), &[]);
    stream.until("Going by the last ones, there is room within a minute.").await;
    house.deploy.change(place(3, WaitsFor::Room, Some(61)), &[]);
    stream
        .until("number 3 in line. The server is full at present. Going by the last ones, there is room in about 2 min.")
        .await;
    browser
        .clone()
        .chinese()
        .get("/progress")
        .await
        .shows("排在第 3 位。服务器目前已满，按最近的情况，预计约 2 分钟后有空位");
    house.deploy.change(place(1, WaitsFor::Room, None), &[]);
    let page = browser.get("/instance").await;
    page.shows("Your workspace is number 1 in line.");
    page.shows("Waiting in line");
    assert!(!page.body.contains("id=\"start\""), "there is nothing to press: {}", page.body);
    house.deploy.change(|instance| instance.waiting = None, &[]);
    house.deploy.ready();
    assert_eq!(stream.until("/onboarding").await["go"], "/onboarding");
}

#[tokio::test]
async fn a_program_that_takes_no_provider_is_never_asked_for_one() {
    let house = House::new().await;
    let mut browser = Browser::new(&house);
    browser.register("alice", "alice@example.com", PASSWORD).await;
    let notes = |instance: &mut contracts::deploy::Instance| {
        (instance.plan, instance.takes_provider) = ("notes".parse().unwrap(), false);
    };
    house.deploy.change(notes, &[EventCode::PlanRequested]);
    let progress = browser.get("/progress").await;
    assert_eq!(progress.body.matches("<li class=\"step ").count(), 6, "it takes no owner: {}", progress.body);
    let mut stream = Stream::open(&mut browser, "progress").await;
    house.deploy.ready();
    assert_eq!(stream.until("/instance").await["go"], "/instance");
    assert_eq!(browser.get("/progress").await.location.as_deref(), Some("/instance"));
    assert_eq!(browser.get("/onboarding").await.location.as_deref(), Some("/instance"));
    let page = browser.get("/instance").await;
    assert!(page.body.contains("id=\"open\""), "{}", page.body);
    page.shows("The operator changed what it runs");
    assert!(!page.body.contains("id=\"provider") && !page.body.contains("/onboarding"), "{}", page.body);
    browser.clone().chinese().get("/instance").await.shows("管理员更换了运行的程序");

    // A form that was open before it got this plan.
    house.deploy.inner.lock().refuse_provider = Some((409, "plan_has_no_provider", None));
    let save = [("kind", "openai"), ("base_url", ""), ("model", "m"), ("api_key", "sk-0123456789"), ("action", "save")];
    assert_eq!(browser.post("/onboarding", &save).await.location.as_deref(), Some("/instance"));

    // The control: another plan, and both are there again.
    house.deploy.change(|instance| instance.takes_provider = true, &[]);
    assert_eq!(browser.get("/onboarding").await.status.as_u16(), 200);
    let page = browser.get("/instance").await;
    assert!(page.body.contains("id=\"provider\"") && page.body.contains("id=\"provider-first\""), "{}", page.body);
}

#[tokio::test]
async fn a_retry_before_deploy_control_has_heard_of_it_leads_to_the_progress() {
    let house = House::new().await;
    house.authz.inner.lock().refuse_delivery = Some("slug_taken");
    let mut browser = Browser::new(&house);
    browser.register("alice", "alice@example.com", PASSWORD).await;
    // The retry is taken, and deploy-control is told later.
    {
        let mut inner = house.authz.inner.lock();
        (inner.refuse_delivery, inner.hold) = (None, true);
    }
    for press in 1..=2 {
        let page = browser.post("/instance/retry", &[("from", "progress")]).await;
        assert_eq!((page.status.as_u16(), page.location.as_deref()), (303, Some("/progress")), "press {press}");
    }
    browser.get("/progress").await.shows("waiting for its turn");
}

#[tokio::test]
async fn an_open_page_hears_of_a_refusal_that_comes_later() {
    let house = House::new().await;
    house.authz.inner.lock().hold = true;
    let mut browser = Browser::new(&house);
    browser.register("alice", "alice@example.com", PASSWORD).await;
    let mut stream = Stream::open(&mut browser, "progress").await;
    stream.until("waiting for its turn").await;
    let token = browser.session().unwrap().to_owned();
    house.authz.inner.lock().sessions.get_mut(&token).unwrap().instance_error = Some("slug_taken".into());
    let message = stream.until("could not be started").await;
    assert!(message["html"].as_str().unwrap().contains("slug_taken"));
}

#[tokio::test]
async fn what_was_refused_and_is_there_all_the_same_gets_its_provider() {
    let house = House::new().await;
    let mut browser = Browser::new(&house);
    browser.register("alice", "alice@example.com", PASSWORD).await;
    house.deploy.ready();
    let token = browser.session().unwrap().to_owned();
    house.authz.inner.lock().sessions.get_mut(&token).unwrap().instance_error = Some("slug_taken".into());
    assert_eq!(browser.get("/progress").await.location.as_deref(), Some("/onboarding"));
    assert!(browser.get("/onboarding").await.body.contains("id=\"base_url\""), "not back where it came from");
}

#[tokio::test]
async fn progress_is_told_from_the_first_second_to_the_end() {
    let house = House::new().await;
    house.authz.inner.lock().hold = true;
    let mut browser = Browser::new(&house);
    browser.register("alice", "alice@example.com", PASSWORD).await;
    let page = browser.get("/progress").await;
    page.shows("waiting for its turn");
    page.shows("http://alice.localhost:8088");
    assert!(page.body.contains("<noscript><meta http-equiv=\"refresh\" content=\"3\"></noscript>"));
    let mut stream = Stream::open(&mut browser, "progress").await;
    assert!(stream.next().await.unwrap()["say"].as_str().unwrap().contains("waiting for its turn"));

    let session = house.authz.inner.lock().sessions.values().next().unwrap().clone();
    house.deploy.accept(session.account_id, session.instance_id.unwrap(), session.slug.unwrap());
    use EventCode::*;
    for (phase, events, words, done) in [
        (Phase::Preparing, &[][..], "place for your data", 1),
        (Phase::Creating, &[Prepared], "put together", 2),
        (Phase::Starting, &[Created], "is starting", 3),
        (Phase::Registering, &[Started, Healthy], "getting to know you", 5),
    ] {
        house.deploy.step(phase, events);
        let message = stream.until(words).await;
        let html = message["html"].as_str().unwrap();
        assert_eq!(html.matches("class=\"step done\"").count(), done, "{phase:?}");
        assert_eq!(html.matches("class=\"step now\"").count(), 1);
        // A reload, and another tab, tell the same.
        browser.get("/progress").await.shows(words);
    }
    house.deploy.step(Phase::Ready, &[Registered, Ready]);
    assert_eq!(stream.until("/onboarding").await["go"], "/onboarding");
    assert_eq!(browser.get("/progress").await.location.as_deref(), Some("/onboarding"));
}

#[tokio::test]
async fn a_started_container_is_a_step_of_its_own_within_a_phase() {
    let house = House::new().await;
    let mut browser = Browser::new(&house);
    browser.register("alice", "alice@example.com", PASSWORD).await;
    house.deploy.step(Phase::Starting, &[EventCode::Prepared, EventCode::Created]);
    let before = browser.get("/progress").await.body.matches("class=\"step done\"").count();
    house.deploy.step(Phase::Starting, &[EventCode::Started]);
    let after = browser.get("/progress").await.body.matches("class=\"step done\"").count();
    assert_eq!((before, after), (3, 4));
}

#[tokio::test]
async fn a_failure_says_why_with_a_code_and_a_retry_that_works() {
    let house = House::new().await;
    let mut browser = Browser::new(&house);
    browser.register("alice", "alice@example.com", PASSWORD).await;
    let mut stream = Stream::open(&mut browser, "progress").await;
    for (code, english, chinese) in [
        ("engine_unavailable", "does not answer", "没有响应"),
        ("engine_capacity", "no room", "容纳不下"),
        ("engine_rejected", "refused to run", "拒绝运行"),
        ("image_missing", "program is missing", "缺少工作区的程序"),
        ("plan_missing", "not set up on the server", "已没有这个工作区要运行的程序"),
        ("plan_needs_images", "needs containers", "需要容器"),
        ("not_healthy_in_time", "did not answer in time", "没有及时响应"),
        ("crash_loop", "kept coming down", "反复退出"),
        ("registration_failed", "could not be linked", "未能与你的账号绑定"),
        ("storage_failed", "storage could not", "存储未能准备好"),
        ("disk_exceeded", "far more disk space", "远远超过上限"),
        ("sockets_blocked", "cannot run workspaces", "无法运行工作区"),
        ("internal", "went wrong on the server", "服务器出现问题"),
        ("never_heard_of", "the code below", "下面的代码"),
    ] {
        house.deploy.fail(code);
        let message = stream.until("could not be started").await;
        assert!(message["html"].as_str().unwrap().contains(code));
        let page = browser.get("/progress").await;
        page.shows(english);
        page.shows(code);
        assert!(!page.body.contains("in English") && !page.body.contains("http-equiv=\"refresh\""));
        browser.clone().chinese().get("/progress").await.shows(chinese);
        browser.get("/instance").await.shows(english);
        let retry = browser.post("/instance/retry", &[("from", "progress")]).await;
        assert_eq!(retry.location.as_deref(), Some("/progress"));
        stream.until("place for your data").await;
    }
}

#[tokio::test]
async fn why_it_takes_longer_is_told_while_it_goes_on() {
    let house = House::new().await;
    let mut browser = Browser::new(&house);
    browser.register("alice", "alice@example.com", PASSWORD).await;
    let error = InstanceError { code: "engine_capacity".into(), detail: String::new(), ..Default::default() };
    house.deploy.change(|i| (i.phase, i.error) = (Phase::Creating, Some(error.clone())), &[EventCode::AttemptFailed]);
    let page = browser.get("/progress").await;
    page.shows("no room");
    assert!(!page.body.contains("/instance/retry") && page.body.contains("http-equiv=\"refresh\""));
}

#[tokio::test]
async fn while_deploy_control_is_away_the_pages_wait_and_go_on() {
    let house = House::new().await;
    let mut browser = Browser::new(&house);
    browser.register("alice", "alice@example.com", PASSWORD).await;
    let mut stream = Stream::open(&mut browser, "progress").await;
    stream.until("waiting for its turn").await;
    house.deploy.inner.lock().away = true;
    house.deploy.step(Phase::Accepted, &[]);
    stream.until("cannot be reached right now").await;
    browser.get("/progress").await.shows("cannot be reached right now");
    browser.get("/instance").await.shows("cannot be reached right now");
    house.deploy.inner.lock().away = false;
    house.deploy.ready();
    stream.until("/onboarding").await;
}

#[tokio::test]
async fn my_workspace_shows_state_address_events_and_what_can_be_done() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    let page = browser.get("/instance").await;
    page.shows("Running");
    page.shows("http://alice.localhost:8088");
    page.shows("Linked to your account");
    page.shows("no AI provider");
    assert!(page.body.contains("href=\"http://alice.localhost:8088/auth/start?rd=%2F\""));
    assert!(page.body.contains("<time datetime=\"2026-11-18T"), "{}", page.body);
    assert!(page.body.contains("action=\"/instance/stop\"") && !page.body.contains("action=\"/instance/start\""));

    let mut stream = Stream::open(&mut browser, "instance").await;
    stream.until("Everything is fine").await;
    for (action, word, then, events) in [
        ("stop", "being stopped", Some((Phase::Stopped, "Your data is kept")), &[EventCode::Stopped][..]),
        ("start", "in a few seconds", Some((Phase::Ready, "Everything is fine")), &[EventCode::Ready]),
        ("restart", "in a few seconds", None, &[]),
    ] {
        let page = browser.post(&format!("/instance/{action}"), &[]).await;
        assert_eq!(page.location.as_deref(), Some("/instance"));
        stream.until(word).await;
        let page = browser.get("/instance").await;
        page.shows(word);
        assert!(page.body.contains("http-equiv=\"refresh\""), "without JavaScript the page asks again");
        if let Some((phase, words)) = then {
            house.deploy.step(phase, events);
            stream.until(words).await;
        }
    }
    assert_eq!(house.deploy.inner.lock().actions, ["stop", "start", "restart"]);
    assert_eq!(browser.post("/instance/remove", &[]).await.status.as_u16(), 404);
}

#[tokio::test]
async fn a_stopped_workspace_can_be_started_and_not_opened() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    house.deploy.step(Phase::Stopped, &[EventCode::Stopped]);
    let page = browser.get("/instance").await;
    assert!(page.body.contains("action=\"/instance/start\"") && !page.body.contains("/auth/start"));
    assert!(!page.body.contains("action=\"/instance/stop\""));
}

#[tokio::test]
async fn only_the_last_events_are_shown_however_many_there_are() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    house.deploy.step(Phase::Ready, &[EventCode::Recovered; 450]);
    house.deploy.step(Phase::Ready, &[EventCode::EngineBack]);
    let before = house.deploy.inner.lock().event_lists;
    let page = browser.get("/instance").await;
    assert_eq!(house.deploy.inner.lock().event_lists - before, 1, "one question, however many there are");
    assert_eq!(page.body.matches("<time").count(), 10);
    let first = page.body.split("<time").nth(1).unwrap();
    assert!(first.contains("The host machine answers again"), "{first}");
}

#[tokio::test]
async fn another_persons_workspace_is_never_in_ones_stream() {
    let house = House::new().await;
    let mut alice = alice(&house).await;
    let mut bob = Browser::new(&house);
    bob.register("bob", "bob@example.com", PASSWORD).await;
    bob.get("/progress").await.shows("http://bob.localhost:8088");
    assert!(!alice.get("/instance").await.body.contains("bob"));
    let mut stranger = Browser::new(&house);
    let page = stranger.get("/events?view=instance").await;
    assert_eq!(page.status.as_u16(), 401);
    assert!(page.body.contains("session_ended"));
    alice.headers.push(("sec-fetch-site", "same-site".into()));
    assert_eq!(alice.get("/events?view=instance").await.status.as_u16(), 403);
}

#[tokio::test]
async fn one_person_holds_only_so_many_streams() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    let mut open = Vec::new();
    for _ in 0..16 {
        let mut stream = Stream::open(&mut browser, "instance").await;
        stream.next().await;
        open.push(stream);
    }
    assert_eq!(browser.get("/events?view=instance").await.status.as_u16(), 429);
    let mut bob = Browser::new(&house);
    bob.register("bob", "bob@example.com", PASSWORD).await;
    Stream::open(&mut bob, "progress").await.next().await;
    open.pop();
    Stream::open(&mut browser, "instance").await.next().await;
}

#[tokio::test]
async fn streams_end_with_the_portal_and_when_nobody_listens() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    let mut left = Stream::open(&mut browser, "instance").await;
    left.next().await;
    let mut kept = Stream::open(&mut browser, "instance").await;
    kept.next().await;
    let wait = async |count: usize| {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while house.deploy.inner.lock().streams != count {
            assert!(tokio::time::Instant::now() < deadline, "{count} streams are wanted");
            tokio::task::yield_now().await;
        }
    };
    wait(2).await;
    drop(left);
    wait(1).await;
    house.stop.cancel();
    assert!(kept.next().await.is_none());
}

#[tokio::test]
async fn a_stream_ends_soon_after_its_session() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    let mut ended = Stream::open(&mut browser, "instance").await;
    ended.next().await;
    house.authz.inner.lock().away = true;
    tokio::time::pause();
    // That authz is away for a while ends nothing.
    let minute = tokio::time::timeout(Duration::from_secs(60), async { while ended.0.next().await.is_some() {} });
    assert!(minute.await.is_err(), "the control: it goes on");
    house.authz.inner.lock().away = false;
    house.authz.inner.lock().sessions.clear();
    let minute = tokio::time::timeout(Duration::from_secs(60), async { while ended.0.next().await.is_some() {} });
    minute.await.expect("the stream ends");
}
