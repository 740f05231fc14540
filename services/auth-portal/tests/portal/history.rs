//! Why something did not work, and what happened before: who did it, what more there is to say, and the pages of it.

use contracts::{
    AccountId,
    deploy::{EventCode, InstanceError, Phase},
};

use crate::{PASSWORD, alice, browser::Browser, fakes::House, html};

/// The id of the person who has the one instance.
fn owner(house: &House) -> AccountId {
    house.deploy.only().account_id
}

/// The address of the page of older events, when a page leads to one.
fn older(page: &str) -> Option<String> {
    let (_, rest) = page.split_once("id=\"older\" href=\"")?;
    rest.split_once("#events\"").map(|(path, _)| path.to_owned())
}

/// How many events a page shows.
fn count(page: &str) -> usize {
    page.matches("<li><time").count()
}

#[tokio::test]
async fn what_was_taken_back_is_told_with_its_reason() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    let fields =
        [("kind", "openai"), ("base_url", ""), ("model", "m"), ("api_key", "sk-0123456789"), ("action", "save")];
    browser.post("/onboarding", &fields).await;
    let taken_back = |code: &str, cause: Option<&str>, event| {
        let (code, cause) = (code.to_owned(), cause.map(str::to_owned));
        let error = InstanceError { code, cause, ..InstanceError::default() };
        house.deploy.change(|i| (i.phase, i.error) = (Phase::Ready, Some(error.clone())), &[event]);
    };
    taken_back("config_not_accepted", Some("not_healthy_in_time"), EventCode::ConfigRolledBack);
    for path in ["/applying", "/instance"] {
        let page = browser.get(path).await;
        page.shows("did not come up with the new provider settings");
        page.shows("The reason: It started but did not answer in time.");
        page.shows("config_not_accepted not_healthy_in_time");
        let page = browser.clone().chinese().get(path).await;
        page.shows("原因：它已启动，但没有及时响应。");
    }
    taken_back("restore_not_accepted", Some("crash_loop"), EventCode::RestoreRolledBack);
    let page = browser.get("/instance").await;
    page.shows("its own data is back in place");
    page.shows("The reason: It kept coming down right after its start.");
    browser.clone().chinese().get("/instance").await.shows("原因：它启动后反复退出。");
    // A cause for which there are no words is still one to quote.
    taken_back("restore_not_accepted", Some("brand_new"), EventCode::RestoreRolledBack);
    let page = browser.get("/instance").await;
    page.shows("restore_not_accepted brand_new");
    assert!(!page.text().contains("The reason"), "{}", page.text());
    // The control: none.
    taken_back("restore_not_accepted", None, EventCode::RestoreRolledBack);
    let page = browser.get("/instance").await;
    page.shows("its own data is back in place");
    assert!(!page.text().contains("The reason"), "{}", page.text());
}

#[tokio::test]
async fn the_last_lines_that_a_program_wrote_are_shown_as_it_wrote_them() {
    let house = House::new().await;
    let mut browser = Browser::new(&house);
    browser.register("alice", "alice@example.com", PASSWORD).await;
    house.deploy.fail("crash_loop");
    for path in ["/progress", "/instance"] {
        assert!(!browser.get(path).await.body.contains("<pre"), "the control: it wrote nothing");
    }
    let log = vec!["  opening <script>alert(1)</script>".to_owned(), "out of \"memory\" & time".to_owned()];
    house.deploy.fail_with(&InstanceError { code: "crash_loop".into(), log: log.clone(), ..InstanceError::default() });
    for path in ["/progress", "/instance"] {
        let page = browser.get(path).await;
        page.shows("kept coming down");
        page.shows("The last lines it wrote");
        assert!(!page.body.contains("<script>alert"), "what it wrote is no markup: {}", page.body);
        let (_, rest) = page.body.split_once("<pre ").unwrap();
        let (attributes, rest) = rest.split_once("><code>").unwrap();
        assert!(attributes.contains("tabindex=\"0\"") && attributes.contains("aria-labelledby=\"log-title\""));
        assert_eq!(html::of_id(&page.body, "log-title"), "The last lines it wrote");
        let (written, _) = rest.split_once("</code></pre>").unwrap();
        assert_eq!(html::unescape(written), log.join("\n"));
        browser.clone().chinese().get(path).await.shows("它最后写下的几行");
    }
}

#[tokio::test]
async fn every_event_says_who_did_it_and_what_more_there_is_to_say() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    let you = owner(&house).to_string();
    let mut chinese = browser.clone().chinese();
    for (code, actor, detail, english, in_chinese) in [
        (EventCode::StopRequested, &*you, None, "Stop requested · You", "请求停止 · 你"),
        (EventCode::StartRequested, "operator", None, "Start requested · The operator", "请求启动 · 管理员"),
        (EventCode::Ready, "beaver", None, "Ready · Beaver", "已就绪 · 系统"),
        (EventCode::Exported, "a-0198f000000070008000000000000001", None, "· Somebody else", "· 其他人"),
        (
            EventCode::AttemptFailed,
            "beaver",
            Some("not_healthy_in_time"),
            "another follows · Beaver It started but did not answer in time.",
            "将再次尝试 · 系统 它已启动，但没有及时响应。",
        ),
        (
            EventCode::Failed,
            "beaver",
            Some("brand_new"),
            "Could not be started · Beaver brand_new",
            "未能启动 · 系统 brand_new",
        ),
        (
            EventCode::EgressRefused,
            "beaver",
            Some("10.0.0.1:80 address"),
            "does not let out: 10.0.0.1:80 · The workspace It leads to an address that is not let out",
            "10.0.0.1:80 · 工作区 指向不放行的地址",
        ),
        (
            EventCode::RenewalBegun,
            "beaver",
            Some("release 4f2a91bc0d3e"),
            "together anew · Beaver 4f2a91bc0d3e : There is a new version",
            "重新组装 · 系统 4f2a91bc0d3e : 有新版本",
        ),
        (
            EventCode::RenewalBegun,
            "beaver",
            Some("settings"),
            "together anew · Beaver The operator changed",
            "重新组装 · 系统 管理员更改了",
        ),
        (EventCode::RenewalBegun, "beaver", Some("brand_new"), "together anew · Beaver", "重新组装 · 系统"),
        (
            EventCode::Upgraded,
            "beaver",
            Some("4f2a91bc0d3e"),
            "new version · Beaver 4f2a91bc0d3e",
            "新版本 · 系统 4f2a91bc0d3e",
        ),
        (
            EventCode::PlanRequested,
            "operator",
            Some("notes"),
            "what it runs · The operator notes",
            "程序 · 管理员 notes",
        ),
        (
            EventCode::ReleaseRolledBack,
            "beaver",
            Some("9c01d2e3f4a5 crash_loop"),
            "is back · Beaver 9c01d2e3f4a5 : It kept coming down",
            "之前的版本 · 系统 9c01d2e3f4a5 : 它启动后反复退出。",
        ),
        (
            EventCode::ReleaseRolledBack,
            "beaver",
            Some("9c01d2e3f4a5"),
            "is back · Beaver 9c01d2e3f4a5",
            "· 系统 9c01d2e3f4a5",
        ),
        (
            EventCode::ConfigRolledBack,
            "beaver",
            Some("7 registration_failed"),
            "are back · Beaver It could not be linked",
            "之前的设置 · 系统 它未能与你的账号绑定。",
        ),
        (EventCode::ConfigRolledBack, "beaver", Some("7"), "are back · Beaver", "之前的设置 · 系统"),
        (
            EventCode::RestoreRolledBack,
            "beaver",
            Some("crash_loop"),
            "is back · Beaver It kept coming",
            "系统 它启动后",
        ),
        (EventCode::RestoreRolledBack, "beaver", Some("2 internal"), "· Beaver Something went wrong", "服务器出现问题"),
        (
            EventCode::DeleteRequested,
            &you,
            Some("1795604800000"),
            "Deleted · You Its data is kept until 2026-11-25 11:06 UTC",
            "已删除 · 你 数据保留到 2026-11-25",
        ),
        (EventCode::DeleteRequested, &you, Some("soon"), "Deleted · You", "已删除 · 你"),
    ] {
        house.deploy.tell(code, actor, detail);
        for (page, words) in [(browser.get("/instance").await, english), (chinese.get("/instance").await, in_chinese)] {
            page.shows(words);
            let newest = page.body.split("<li><time").nth(1).unwrap().split("</li>").next().unwrap().to_owned();
            assert!(!newest.contains(">7<") && !newest.contains("soon"), "{newest}");
        }
    }
}

#[tokio::test]
async fn why_an_operator_stopped_it_is_for_operators() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    house.deploy.tell(EventCode::StopRequested, "operator", Some("reason-canary of an operator"));
    let page = browser.get("/instance").await;
    page.shows("Stop requested · The operator");
    assert!(!page.body.contains("canary"), "{}", page.body);
}

#[tokio::test]
async fn the_pages_of_older_events_have_every_event_once() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    for at in 0..130 {
        house.deploy.tell(EventCode::Upgraded, "beaver", Some(&format!("release-{at:03}")));
    }
    let mut page = browser.get("/instance").await;
    page.shows("Recent events");
    let (mut sizes, mut releases) = (vec![], vec![]);
    loop {
        assert_eq!(page.status.as_u16(), 200);
        // What else the page has stays.
        for kept in ["id=\"open\"", "id=\"stop\"", "id=\"data\"", "http://alice.localhost:8088"] {
            assert!(page.body.contains(kept), "{kept}: {}", page.body);
        }
        sizes.push(count(&page.body));
        releases.extend(page.body.match_indices("release-").map(|(at, _)| page.body[at + 8..at + 11].to_owned()));
        let Some(path) = older(&page.body) else { break };
        page = browser.get(&path).await;
        page.shows("Older events");
        assert!(page.body.contains("href=\"/instance#events\"") && !page.text().contains("Recent events"));
        assert!(page.body.contains("data-live=\"/events?view=past\""), "what changes does not bring the newest back");
        assert_eq!(page.value("back").as_deref(), Some(&*path), "the language is changed on this page");
        browser.clone().chinese().get(&path).await.shows("更早的动态");
    }
    // Those of the bring-up, with the sign-up, come before.
    assert_eq!(sizes, [10, 50, 50, 27]);
    page.shows("Sign-up received");
    let expected: Vec<String> = (0..130).rev().map(|at| format!("{at:03}")).collect();
    assert_eq!(releases, expected);
    let page = browser.get("/instance?before=1").await;
    page.shows("There is nothing older.");
    assert!(older(&page.body).is_none() && page.body.contains("href=\"/instance#events\""));
    // From beyond the newest one on there are all of them.
    assert_eq!(count(&browser.get("/instance?before=4000000000").await.body), 50);
}

#[tokio::test]
async fn events_that_are_not_told_leave_no_page_empty() {
    use EventCode::{Paused, SleepRequested, WakeRequested, Woken};
    let house = House::new().await;
    let mut browser = alice(&house).await;
    house.deploy.step(Phase::Ready, &[SleepRequested, Paused, WakeRequested, Woken].repeat(100));
    let page = browser.get("/instance").await;
    assert_eq!(count(&page.body), 0, "none of the last ones is told");
    let path = older(&page.body).expect("but there are some");
    let before = house.deploy.inner.lock().event_lists;
    let page = browser.get(&path).await;
    assert_eq!(count(&page.body), 7);
    page.shows("Sign-up received");
    assert!(older(&page.body).is_none());
    // What is read for what is above them, and two questions for the rest.
    assert_eq!(house.deploy.inner.lock().event_lists - before, 3);
    // Where there are very many, one page is not all there is to ask.
    house.deploy.step(Phase::Ready, &[Paused; 2000]);
    let before = house.deploy.inner.lock().event_lists;
    let page = browser.get("/instance?before=2000").await;
    assert_eq!(house.deploy.inner.lock().event_lists - before, 6);
    assert_eq!((count(&page.body), older(&page.body).as_deref()), (0, Some("/instance?before=1000")));
}

#[tokio::test]
async fn what_is_no_event_is_refused() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    for before in ["", "x", "0", "-1", "1.5", "99999999999999999999", "1&before=2"] {
        let page = browser.get(&format!("/instance?before={before}")).await;
        assert_eq!(page.status.as_u16(), 400, "{before}");
        page.shows("invalid_request");
    }
}

#[tokio::test]
async fn older_events_that_cannot_be_read_leave_the_page_whole() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    house.deploy.inner.lock().refuse_events = true;
    let page = browser.get("/instance?before=5").await;
    assert_eq!(page.status.as_u16(), 200);
    page.shows("Everything is fine");
    page.shows("They cannot be read right now");
    assert!(page.body.contains("href=\"/instance#events\""));
    browser.clone().chinese().get("/instance?before=5").await.shows("暂时无法读取");
    // The control: they can.
    house.deploy.inner.lock().refuse_events = false;
    assert_eq!(count(&browser.get("/instance?before=5").await.body), 4);
    // Nobody's are shown to anybody else.
    let mut bob = Browser::new(&house);
    bob.register("bob", "bob@example.com", PASSWORD).await;
    assert_eq!(count(&bob.get("/instance?before=100").await.body), 1);
    let mut stranger = Browser::new(&house);
    assert_eq!(stranger.get("/instance?before=5").await.location.as_deref(), Some("/login"));
}

#[tokio::test]
async fn an_open_page_of_older_events_stays_one() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    let page = browser.get("/instance?before=4").await;
    let (_, rest) = page.body.split_once("data-live=\"").unwrap();
    let path = rest.split_once('"').unwrap().0.to_owned();
    let response = browser.raw(http::Request::get(path), String::new()).await;
    assert_eq!(response.status(), 200);
    let mut stream = futures_util::StreamExt::boxed(response.into_body().into_data_stream());
    let mut said = String::new();
    house.deploy.step(Phase::Stopped, &[EventCode::Stopped]);
    while !said.contains("Your data is kept") {
        let next = futures_util::StreamExt::next(&mut stream);
        let chunk = tokio::time::timeout(std::time::Duration::from_secs(10), next).await.expect("a message in time");
        said.push_str(std::str::from_utf8(&chunk.expect("not the end yet").unwrap()).unwrap());
    }
    assert!(!said.contains("class=\\\"events\\\"") && !said.contains("Recent events"), "{said}");
}
