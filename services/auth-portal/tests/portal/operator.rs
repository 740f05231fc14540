//! The first operator, and the console.

use crate::{
    PASSWORD, alice,
    browser::Browser,
    fakes::{House, authz::OPERATOR_TOKEN},
    html,
};

async fn operator(house: &House) -> Browser {
    let mut browser = Browser::new(house);
    browser.get(&format!("/operator/setup?token={OPERATOR_TOKEN}")).await;
    let page = browser.post("/operator/setup", &[("email", "op@example.com"), ("password", PASSWORD)]).await;
    assert_eq!(page.location.as_deref(), Some("/operator"));
    browser
}

#[tokio::test]
async fn the_links_token_leaves_the_address_at_once_and_never_shows() {
    let house = House::new().await;
    let mut browser = Browser::new(&house);
    let page = browser.get(&format!("/operator/setup?token={OPERATOR_TOKEN}")).await;
    assert_eq!((page.status.as_u16(), page.location.as_deref()), (303, Some("/operator/setup")));
    let cookie = page.headers["set-cookie"].to_str().unwrap();
    assert!(cookie.contains("; Max-Age=600; HttpOnly; SameSite=Lax"), "{cookie}");
    let page = browser.get("/operator/setup").await;
    assert!(!page.body.contains(OPERATOR_TOKEN));
    let page = browser.post("/operator/setup", &[("email", "op"), ("password", "short")]).await;
    assert_eq!(page.status.as_u16(), 422);
    assert!(html::of_id(&page.body, "email-error").contains("e-mail"));
    let page = browser.post("/operator/setup", &[("email", "op@example.com"), ("password", PASSWORD)]).await;
    assert_eq!(page.location.as_deref(), Some("/operator"));
    assert!(!browser.cookies.contains_key("beaver_setup"), "spent");
    assert!(browser.session().is_some());
    browser.get("/operator/setup").await.shows("There is an operator account already");
}

#[tokio::test]
async fn without_the_right_link_there_is_no_operator() {
    let house = House::new().await;
    let mut browser = Browser::new(&house);
    browser.get("/operator/setup").await.shows("Open the one-time link");
    let fields = [("email", "op@example.com"), ("password", PASSWORD)];
    assert_eq!(browser.post("/operator/setup", &fields).await.status.as_u16(), 403);
    browser.get("/operator/setup?token=wrong").await;
    let page = browser.post("/operator/setup", &fields).await;
    assert_eq!(page.status.as_u16(), 403);
    page.shows("This link is not valid");
    operator(&house).await;
    browser.get(&format!("/operator/setup?token={OPERATOR_TOKEN}")).await;
    let page = browser.post("/operator/setup", &fields).await;
    assert_eq!(page.status.as_u16(), 409);
    page.shows("There is an operator account already");
    let page = browser.get("/operator/setup?token=%0d%0aset-cookie:x").await;
    assert!(page.headers.get("set-cookie").is_none());
}

#[tokio::test]
async fn the_console_is_for_operators_alone() {
    let house = House::new().await;
    let mut alice = alice(&house).await;
    assert_eq!(alice.get("/operator").await.status.as_u16(), 404);
    let mut stranger = Browser::new(&house);
    assert_eq!(stranger.get("/operator").await.location.as_deref(), Some("/login?next=operator"));
    let mut operator = operator(&house).await;
    let page = operator.get("/operator").await;
    page.shows("alice");
    page.shows("Running");
    assert_eq!(operator.get("/instance").await.location.as_deref(), Some("/operator"), "an operator has none");
    let mut again = Browser::new(&house);
    assert_eq!(again.login("op@example.com", PASSWORD).await.location.as_deref(), Some("/operator"));
    again.clone().chinese().get("/operator").await.shows("管理控制台");
    house.deploy.fail("crash_loop");
    operator.get("/operator").await.shows("crash_loop");
    house.deploy.inner.lock().away = true;
    let page = operator.get("/operator").await;
    assert_eq!(page.status.as_u16(), 503);
    assert_eq!(page.headers["retry-after"], "5");
    page.shows("deploy-control cannot be reached");
}

#[tokio::test]
async fn many_instances_come_in_pages() {
    let house = House::new().await;
    for n in 0..60 {
        let mut browser = Browser::new(&house);
        browser.register(&format!("name-{n}"), &format!("{n}@example.com"), PASSWORD).await;
    }
    let mut operator = operator(&house).await;
    let page = operator.get("/operator").await;
    assert_eq!(page.body.matches("<th scope=\"row\">").count(), 50);
    let more = page.body.split("href=\"").find_map(|part| part.strip_prefix("/operator?after=")).unwrap();
    let page = operator.get(&format!("/operator?after={}", more.split('"').next().unwrap())).await;
    assert_eq!(page.body.matches("<th scope=\"row\">").count(), 10);
    assert!(!page.body.contains("href=\"/operator?after="), "the last page");
    assert_eq!(operator.get("/operator?after=../x").await.status.as_u16(), 400);
}

#[tokio::test]
async fn an_account_is_suspended_with_a_reason_and_restored_and_that_is_kept() {
    let house = House::new().await;
    let mut alice = alice(&house).await;
    let mut operator = operator(&house).await;
    assert!(operator.get("/operator").await.body.contains("href=\"/operator/accounts/alice\""));
    let page = operator.get("/operator/accounts/alice").await;
    page.shows("alice@example.com");
    page.shows("Running");
    let page = operator.post("/operator/accounts/alice/suspend", &[("reason", " ")]).await;
    assert_eq!(page.status.as_u16(), 422);
    assert!(html::of_id(&page.body, "reason-error").contains("Say why"));
    assert_eq!(html::focused(&page.body).as_deref(), Some("reason"));
    assert!(page.body.contains("<details id=\"suspend-ask\" open>"));
    assert_eq!(alice.get("/instance").await.status.as_u16(), 200);

    let page = operator.post("/operator/accounts/alice/suspend", &[("reason", "sends <b>spam</b>")]).await;
    assert_eq!(page.location.as_deref(), Some("/operator/accounts/alice"));
    let page = operator.get("/operator/accounts/alice").await;
    page.shows("This account has been suspended since");
    let badge = "<span class=\"badge bad\">Suspended</span>";
    assert_eq!(operator.get("/operator").await.body.matches(badge).count(), 1);
    page.shows("Suspended by op@example.com");
    page.shows("sends <b>spam</b>");
    assert!(!page.body.contains("<b>spam"), "never markup");
    operator.clone().chinese().get("/operator/accounts/alice").await.shows("由 op@example.com 停用");
    assert_eq!(alice.get("/instance").await.location.as_deref(), Some("/login"));
    for (mut browser, words) in
        [(Browser::new(&house), "This account is suspended"), (Browser::new(&house).chinese(), "该账号已被停用")]
    {
        let page = browser.login("alice", PASSWORD).await;
        assert_eq!(page.status.as_u16(), 403);
        page.shows(words);
        assert!(browser.session().is_none());
    }
    operator.post("/operator/accounts/alice/restore", &[]).await;
    operator.get("/operator/accounts/alice").await.shows("Restored by op@example.com");
    assert!(!operator.get("/operator").await.body.contains(badge));
    assert_eq!(alice.login("alice", PASSWORD).await.location.as_deref(), Some("/instance"));
}

#[tokio::test]
async fn accounts_are_for_operators_alone() {
    let house = House::new().await;
    let mut alice = alice(&house).await;
    let mut operator = operator(&house).await;
    let mut stranger = Browser::new(&house);
    for path in ["/operator/accounts/alice", "/operator/accounts/nobody"] {
        assert_eq!(alice.get(path).await.status.as_u16(), 404, "{path}");
        assert_eq!(stranger.get(path).await.location.as_deref(), Some("/login?next=operator"));
    }
    let suspend = "/operator/accounts/alice/suspend";
    assert_eq!(alice.post(suspend, &[("reason", "x")]).await.status.as_u16(), 404);
    assert_eq!(stranger.post(suspend, &[("reason", "x")]).await.location.as_deref(), Some("/login?next=operator"));
    for path in ["/operator/accounts/nobody", "/operator/accounts/..%2Fx", "/operator/accounts/%3Cb%3E"] {
        let page = operator.get(path).await;
        assert_eq!(page.status.as_u16(), 404, "{path}");
        assert!(!page.body.contains("<b>"));
    }
    assert_eq!(operator.post("/operator/accounts/alice/delete", &[]).await.status.as_u16(), 404);
    house.deploy.inner.lock().away = true;
    assert_eq!(operator.get("/operator/accounts/alice").await.status.as_u16(), 200, "all but the workspace's state");
    house.authz.inner.lock().away = true;
    assert_eq!(operator.get("/operator/accounts/alice").await.status.as_u16(), 503);
}
