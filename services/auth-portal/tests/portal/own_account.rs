//! Where one is signed in, and the password.

use crate::{PASSWORD, alice, browser::Browser, fakes::House, html};

const NEW: &str = "another horse, another battery";

async fn change(browser: &mut Browser, old: &str, new: &str) -> crate::browser::Page {
    browser.post("/account/password", &[("old_password", old), ("password", new)]).await
}

#[tokio::test]
async fn the_page_tells_every_place_by_what_one_knows_it_by() {
    let house = House::new().await;
    house.authz.inner.lock().user_agent = "Mozilla/5.0 (X11; Linux x86_64; rv:1) Gecko/1 Firefox/128.0".into();
    let mut laptop = alice(&house).await;
    let page = laptop.get("/account").await;
    for words in ["alice@example.com", "Firefox, Linux", "This browser", "192.0.2.7", "2026-11-18 11:06 UTC"] {
        page.shows(words);
    }
    assert!(!page.body.contains("/account/sessions/end"), "there is nothing else to end");
    Browser::new(&house).login("alice", PASSWORD).await;
    let page = laptop.get("/account").await;
    assert_eq!(page.body.matches("name=\"sid\"").count(), 1, "not one's own");
    page.shows("Sign out everywhere else");
    assert!(page.body.contains("aria-label=\"Sign out: Firefox, Linux, 192.0.2.7, 2026-11-18"), "{}", page.body);
    house.authz.inner.lock().user_agent = "<script>alert(1)</script>".into();
    let page = laptop.clone().chinese().get("/account").await;
    page.shows("已登录的设备");
    page.shows("未知浏览器");
    assert!(!page.body.contains("<script>"));
    assert!(page.body.contains("href=\"/account\""), "the menu leads here");
}

#[tokio::test]
async fn one_place_or_all_others_can_be_ended_from_here() {
    let house = House::new().await;
    let mut laptop = alice(&house).await;
    let (mut phone, mut desk) = (Browser::new(&house), Browser::new(&house));
    phone.login("alice", PASSWORD).await;
    desk.login("alice", PASSWORD).await;
    let sid = laptop.get("/account").await.value("sid").unwrap();
    let page = laptop.post("/account/sessions/end", &[("sid", &sid)]).await;
    assert_eq!(page.location.as_deref(), Some("/account?done=ended"));
    laptop
        .get("/account?done=ended")
        .await
        .shows("That sign-in has ended; in your workspace as soon as it can be reached.");
    let left = house.authz.inner.lock().sessions.values().filter(|session| session.sid == sid).count();
    assert_eq!((left, house.authz.inner.lock().sessions.len()), (0, 2));
    let page = laptop.post("/account/sessions/end", &[]).await;
    assert_eq!(page.location.as_deref(), Some("/account?done=others"));
    laptop
        .get("/account?done=others")
        .await
        .shows("Every other sign-in has ended; in your workspace as soon as it can be reached.");
    for gone in [&mut phone, &mut desk] {
        assert_eq!(gone.get("/account").await.location.as_deref(), Some("/login?next=account"));
    }
    assert_eq!(laptop.get("/account").await.status.as_u16(), 200);
}

#[tokio::test]
async fn nobody_ends_what_is_another_persons() {
    let house = House::new().await;
    let mut alice = alice(&house).await;
    let mut bob = Browser::new(&house);
    bob.register("bob", "bob@example.com", PASSWORD).await;
    let sids: Vec<String> = house.authz.inner.lock().sessions.values().map(|session| session.sid.clone()).collect();
    for sid in &sids {
        bob.post("/account/sessions/end", &[("sid", sid)]).await;
    }
    assert_eq!(alice.get("/account").await.status.as_u16(), 200);
    let mut stranger = Browser::new(&house);
    for page in [stranger.get("/account").await, stranger.post("/account/sessions/end", &[("sid", &sids[0])]).await] {
        assert_eq!(page.location.as_deref(), Some("/login?next=account"));
    }
}

#[tokio::test]
async fn a_new_password_begins_a_new_session_and_ends_the_others() {
    let house = House::new().await;
    let mut laptop = alice(&house).await;
    let mut phone = Browser::new(&house);
    phone.login("alice", PASSWORD).await;
    let (session, device) = (laptop.session().unwrap().to_owned(), laptop.cookies["beaver_device"].clone());
    assert_eq!(laptop.get("/account/password").await.status.as_u16(), 200);
    let page = change(&mut laptop, PASSWORD, NEW).await;
    assert_eq!(page.location.as_deref(), Some("/account?done=password"));
    assert!(laptop.session().unwrap() != session && laptop.cookies["beaver_device"] != device);
    laptop.get("/account?done=password").await.shows("Your password is changed");
    assert_eq!(phone.get("/instance").await.location.as_deref(), Some("/login"));
    assert_eq!(Browser::new(&house).login("alice", PASSWORD).await.status.as_u16(), 401);
    assert_eq!(Browser::new(&house).login("alice", NEW).await.location.as_deref(), Some("/instance"));
}

#[tokio::test]
async fn every_refusal_of_a_new_password_stands_at_its_field_in_both_languages() {
    let house = House::new().await;
    let laptop = alice(&house).await;
    for (old, new, field, english, chinese) in [
        ("wrong", NEW, "old_password", "not your password so far", "当前密码不正确"),
        ("", NEW, "old_password", "Enter your password so far", "请输入当前密码"),
        (PASSWORD, "short", "password", "at least 15", "至少需要 15"),
    ] {
        for (mut browser, words) in [(laptop.clone(), english), (laptop.clone().chinese(), chinese)] {
            let page = change(&mut browser, old, new).await;
            assert_eq!(page.status.as_u16(), 422);
            let shown = html::of_id(&page.body, &format!("{field}-error"));
            assert!(shown.contains(words), "{shown}");
            assert_eq!(html::focused(&page.body).as_deref(), Some(field));
            assert!(!page.body.contains(NEW) && !page.body.contains(PASSWORD), "nothing typed comes back");
        }
    }
    for (code, words) in [("password_weak", "easy to guess"), ("password_breached", "known from data leaks")] {
        house.authz.refuse(("/portal/password", 422, code, Some("password"), None));
        let page = change(&mut laptop.clone(), PASSWORD, NEW).await;
        assert!(html::of_id(&page.body, "password-error").contains(words), "{code}");
    }
    house.authz.refuse(("/portal/password", 429, "too_many_attempts", None, Some(61)));
    let page = change(&mut laptop.clone(), PASSWORD, NEW).await;
    assert_eq!(page.status.as_u16(), 429);
    page.shows("Wait 2 minute");
    house.authz.refuse(("/portal/password", 503, "busy", None, Some(2)));
    let page = change(&mut laptop.clone(), PASSWORD, NEW).await;
    assert_eq!(page.status.as_u16(), 503);
    assert!(!page.text().contains("may have been changed"), "nobody looked at it: {}", page.text());
    house.authz.refuse(("/portal/password", 503, "unavailable", None, Some(5)));
    let page = change(&mut laptop.clone(), PASSWORD, NEW).await;
    assert_eq!(page.status.as_u16(), 503);
    page.shows("the password may have been changed or not");
    house.authz.refuse(("/portal/password", 401, "session_ended", None, None));
    let page = change(&mut laptop.clone(), PASSWORD, NEW).await;
    assert_eq!(page.location.as_deref(), Some("/login?next=account"));
}
