//! Signing up, in and out.

use crate::{
    PASSWORD, alice,
    browser::{Browser, Page},
    fakes::House,
    html,
};

fn set_cookies(page: &Page) -> Vec<String> {
    page.headers.get_all("set-cookie").iter().map(|line| line.to_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn signing_up_leads_to_the_progress_page_and_a_session() {
    let house = House::new().await;
    let mut browser = Browser::new(&house);
    let page = browser.register("alice", " alice@example.com ", PASSWORD).await;
    assert_eq!(page.location.as_deref(), Some("/progress"));
    let cookie = set_cookies(&page).remove(0);
    assert!(cookie.starts_with("beaver_session=") && cookie.contains("; HttpOnly; SameSite=Lax"), "{cookie}");
    assert!(cookie.contains("; Path=/;") && !cookie.contains("Secure") && !cookie.contains("Domain"), "{cookie}");
    assert_eq!(browser.get("/progress").await.status, 200);
    assert_eq!(browser.get("/").await.location.as_deref(), Some("/instance"));
    assert_eq!(browser.get("/register").await.location.as_deref(), Some("/instance"));
}

#[tokio::test]
async fn on_https_cookies_have_the_host_prefix_and_transport_is_strict() {
    let settings = [("BEAVER_PORTAL_URL", "https://portal.example.com"), ("DEPLOY_PUBLIC_SCHEME", "https")];
    let house = House::with(&settings).await;
    let mut browser = Browser::new(&house);
    browser.headers = vec![("origin", "https://portal.example.com".into())];
    let page = browser.register("alice", "alice@example.com", PASSWORD).await;
    let cookies = set_cookies(&page);
    assert_eq!(cookies.len(), 2);
    for (cookie, name) in cookies.iter().zip(["__Host-beaver_session=", "__Host-beaver_device="]) {
        assert!(cookie.starts_with(name) && cookie.ends_with("; HttpOnly; SameSite=Lax; Secure"), "{cookie}");
        assert!(cookie.contains("; Path=/;") && !cookie.contains("Domain"), "{cookie}");
    }
    assert_eq!(page.headers["strict-transport-security"], "max-age=31536000");
    assert_eq!(browser.get("/progress").await.status, 200);
    let token = browser.cookies.remove("__Host-beaver_session").unwrap();
    browser.cookies.insert("beaver_session".into(), token);
    assert_eq!(browser.get("/progress").await.location.as_deref(), Some("/login"), "the name without prefix counts");
}

/// A browser at the form of signing up, and the key in it.
async fn at_the_form(house: &House) -> (Browser, String) {
    let mut browser = Browser::new(house);
    let key = browser.get("/register").await.value("key").unwrap();
    (browser, key)
}

/// The form, filled in.
fn typed(key: &str) -> [(&str, &str); 4] {
    [("slug", "alice"), ("email", "alice@example.com"), ("password", PASSWORD), ("key", key)]
}

#[tokio::test]
async fn a_form_sent_twice_makes_one_account() {
    let house = House::new().await;
    let (mut browser, key) = at_the_form(&house).await;
    let fields = typed(&key);
    let (mut other, mut again) = (browser.clone(), browser.clone());
    let (first, second) = tokio::join!(browser.post("/register", &fields), other.post("/register", &fields));
    for page in [first, second, again.post("/register", &fields).await] {
        assert_eq!(page.location.as_deref(), Some("/progress"));
    }
    assert_eq!(house.authz.inner.lock().made, 1);
}

#[tokio::test]
async fn an_answer_that_was_lost_is_asked_for_with_the_same_key() {
    let house = House::new().await;
    let (mut browser, key) = at_the_form(&house).await;
    let fields = typed(&key);
    house.authz.refuse(("/portal/register", 503, "unavailable", None, None));
    let page = browser.post("/register", &fields).await;
    assert_eq!((page.status.as_u16(), page.value("key")), (503, Some(key.clone())));
    assert_eq!(page.headers["retry-after"], "5");
    page.shows("Try again in a few seconds");
    house.authz.refuse(("/portal/register", 409, "slug_taken", Some("slug"), None));
    let page = browser.post("/register", &fields).await;
    assert_ne!(page.value("key"), Some(key), "a refused form begins anew");
}

#[tokio::test]
async fn when_even_the_line_is_full_what_was_typed_is_kept_and_sent_again_with_the_same_key() {
    let house = House::new().await;
    let (mut browser, key) = at_the_form(&house).await;
    let fields = typed(&key);
    house.authz.refuse(("/portal/register", 503, "busy", None, Some(2)));
    let page = browser.post("/register", &fields).await;
    assert_eq!((page.status.as_u16(), page.headers["retry-after"].to_str().unwrap()), (503, "5"));
    page.shows("Very many people are signing");
    assert_eq!(
        (page.value("slug").as_deref(), page.value("email").as_deref()),
        (Some("alice"), Some("alice@example.com"))
    );
    assert_eq!((page.value("key"), house.authz.inner.lock().made), (Some(key.clone()), 0));
    assert_eq!(browser.post("/register", &fields).await.location.as_deref(), Some("/progress"));
}

#[tokio::test]
async fn every_refusal_of_a_sign_up_stands_at_its_field_in_both_languages() {
    let house = House::new().await;
    let cases: [(&str, u16, &str, &str, &str); 12] = [
        ("slug_taken", 409, "slug", "This name is taken", "这个名称已被使用"),
        ("slug_reserved", 409, "slug", "This name is reserved", "这个名称已被保留"),
        ("slug_too_short", 422, "slug", "at least 3 characters", "至少需要 3 个字符"),
        ("slug_too_long", 422, "slug", "at most 40 characters", "最多 40 个字符"),
        ("slug_characters", 422, "slug", "only lower-case letters", "只能使用小写字母"),
        ("slug_hyphen", 422, "slug", "A hyphen must stand", "连字符必须位于"),
        ("email_invalid", 422, "email", "does not look like an e-mail", "不是有效的电子邮箱"),
        ("email_taken", 409, "email", "There is an account with this", "这个邮箱已注册过"),
        ("password_too_short", 422, "password", "at least 15 characters", "至少需要 15 个字符"),
        ("password_too_long", 422, "password", "at most 256 characters", "最多 256 个字符"),
        ("password_weak", 422, "password", "easy to guess", "容易被猜到"),
        ("password_breached", 422, "password", "known from data leaks", "泄露的数据"),
    ];
    for (code, status, field, english, chinese) in cases {
        for (mut browser, words) in [(Browser::new(&house), english), (Browser::new(&house).chinese(), chinese)] {
            house.authz.refuse(("/portal/register", status, code, Some(field), None));
            let page = browser.register("alice", "alice@example.com", PASSWORD).await;
            assert_eq!(page.status.as_u16(), status);
            let shown = html::of_id(&page.body, &format!("{field}-error"));
            assert!(shown.contains(words), "{code}: {shown}");
            assert_eq!(html::focused(&page.body).as_deref(), Some(field), "{code}");
            assert_eq!(page.value("slug").as_deref(), Some("alice"));
            assert_eq!(page.value("email").as_deref(), Some("alice@example.com"));
            assert_eq!(page.value("password").as_deref(), Some(""));
            assert!(!page.body.contains(PASSWORD) && !page.body.contains("for logs"));
            assert!(browser.session().is_none());
        }
    }
    for (mut browser, words) in [
        (Browser::new(&house), "Too many accounts were made from your network"),
        (Browser::new(&house).chinese(), "你所在的网络注册的账号过多"),
    ] {
        house.authz.refuse(("/portal/register", 429, "too_many_sign_ups", None, Some(1800)));
        let page = browser.register("alice", "alice@example.com", PASSWORD).await;
        assert_eq!(page.status.as_u16(), 429);
        page.shows(words);
        page.shows("30");
    }
    for (code, words) in [("idempotency_key_reused", "already sent with other values"), ("brand_new", "(brand_new)")] {
        house.authz.refuse(("/portal/register", 422, code, None, None));
        let page = Browser::new(&house).register("alice", "alice@example.com", PASSWORD).await;
        assert_eq!(page.status.as_u16(), 422);
        page.shows(words);
    }
}

#[tokio::test]
async fn what_can_be_seen_without_asking_is_refused_without_asking() {
    let house = House::new().await;
    let mut browser = Browser::new(&house);
    let page = browser.register("Al_ice<b>", "not an address", "short").await;
    assert_eq!(page.status.as_u16(), 422);
    assert!(html::of_id(&page.body, "slug-error").contains("lower-case"));
    assert!(html::of_id(&page.body, "email-error").contains("e-mail"));
    assert!(html::of_id(&page.body, "password-error").contains("15"));
    assert_eq!(page.value("slug").as_deref(), Some("Al_ice<b>"), "typed values stay as they were typed");
    assert!(!page.body.contains("<b>"));
    assert_eq!(html::focused(&page.body).as_deref(), Some("slug"));
    assert_eq!(house.authz.inner.lock().made, 0);
}

#[tokio::test]
async fn signing_in_and_its_refusals() {
    let house = House::new().await;
    alice(&house).await;
    let mut browser = Browser::new(&house);
    let page = browser.login("alice", "wrong").await;
    assert_eq!(page.status.as_u16(), 401);
    page.shows("The name or the password is wrong.");
    assert_eq!(page.value("login").as_deref(), Some("alice"));
    let nobody = browser.login("nobody", "wrong").await;
    assert_eq!(nobody.status.as_u16(), 401);
    assert_eq!(nobody.body.replace("nobody", "alice"), page.body, "an unknown name looks the same");
    browser.clone().chinese().login("alice", "wrong").await.shows("名称或密码不正确。");
    house.authz.refuse(("/portal/login", 429, "too_many_attempts", None, Some(150)));
    let page = browser.login("alice", PASSWORD).await;
    assert_eq!(page.status.as_u16(), 429);
    page.shows("Wait 3 minute");
    house.authz.refuse(("/portal/login", 503, "busy", None, Some(2)));
    assert_eq!(browser.login("alice", PASSWORD).await.status.as_u16(), 503);
    let empty = browser.login(" ", "").await;
    assert!(html::of_id(&empty.body, "login-error").contains("Enter your e-mail"));
    assert!(html::of_id(&empty.body, "password-error").contains("Enter your password"));
    for login in ["alice", "alice@example.com"] {
        let mut browser = Browser::new(&house);
        assert_eq!(browser.login(login, PASSWORD).await.location.as_deref(), Some("/instance"));
        assert_eq!(browser.get("/instance").await.status, 200);
    }
}

#[tokio::test]
async fn a_session_from_before_does_not_survive_a_sign_in() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    let old = browser.session().unwrap().to_owned();
    browser.login("alice", PASSWORD).await;
    assert_ne!(browser.session(), Some(&*old));
    assert_eq!(house.authz.inner.lock().logins.last().unwrap().2.as_deref(), Some(&*old));
    let mut thief = Browser::new(&house);
    thief.cookies.insert("beaver_session".into(), old);
    assert_eq!(thief.get("/instance").await.location.as_deref(), Some("/login"));
    // Somebody else's choice of a token is never taken over.
    let mut fixed = Browser::new(&house);
    fixed.cookies.insert("beaver_session".into(), "chosen-by-the-attacker".into());
    fixed.login("alice", PASSWORD).await;
    assert_ne!(fixed.session(), Some("chosen-by-the-attacker"));
}

#[tokio::test]
async fn a_device_stays_known_over_a_sign_out_and_has_another_id_after_every_sign_in() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    let first = browser.cookies["beaver_device"].clone();
    browser.post("/logout", &[]).await;
    assert_eq!(browser.cookies["beaver_device"], first);
    let page = browser.login("alice", "wrong").await;
    assert!(set_cookies(&page).is_empty(), "nothing is learned from a failure");
    let page = browser.login("alice", PASSWORD).await;
    let cookie = set_cookies(&page).remove(1);
    assert!(cookie.starts_with("beaver_device=") && cookie.contains("; Max-Age=7776000; HttpOnly"), "{cookie}");
    assert_ne!(browser.cookies["beaver_device"], first);
    assert_eq!(house.authz.inner.lock().devices, [None, Some(first.clone()), Some(first)]);
}

#[tokio::test]
async fn two_cookies_of_one_name_mean_signed_out() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    let token = browser.session().unwrap().to_owned();
    browser.headers.push(("cookie", format!("beaver_session={token}")));
    assert_eq!(browser.get("/instance").await.location.as_deref(), Some("/login"));
}

#[tokio::test]
async fn the_clients_address_is_the_one_that_a_trusted_proxy_saw() {
    // Without a connection (as here) the peer is 0.0.0.0.
    let house = House::with(&[("BEAVER_TRUSTED_PROXIES", "0.0.0.0, 10.0.0.0/8")]).await;
    let mut browser = Browser::new(&house);
    browser.headers.push(("x-forwarded-for", "6.6.6.6, 192.0.2.7, 10.1.1.1".into()));
    browser.login("alice", "wrong").await;
    assert_eq!(house.authz.inner.lock().logins[0].1, "192.0.2.7");
    let house = House::new().await;
    browser = Browser::new(&house);
    browser.headers.push(("x-forwarded-for", "6.6.6.6".into()));
    browser.login("alice", "wrong").await;
    assert_eq!(house.authz.inner.lock().logins[0].1, "0.0.0.0", "nobody is believed by default");
}

#[tokio::test]
async fn signing_out_ends_the_session_and_takes_the_cookie() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    let token = browser.session().unwrap().to_owned();
    assert_eq!(browser.get("/logout").await.status.as_u16(), 405);
    assert!(browser.session().is_some());
    let page = browser.post("/logout", &[]).await;
    assert_eq!(page.location.as_deref(), Some("/login?signed_out=1"));
    assert!(browser.session().is_none());
    browser.get("/login?signed_out=1").await.shows("You are signed out.");
    assert_eq!(house.authz.inner.lock().logouts, [(token, false)]);
}

#[tokio::test]
async fn signing_out_everywhere_ends_every_session() {
    let house = House::new().await;
    let mut phone = alice(&house).await;
    let mut laptop = Browser::new(&house);
    laptop.login("alice", PASSWORD).await;
    laptop.post("/logout/everywhere", &[]).await;
    assert_eq!(phone.get("/instance").await.location.as_deref(), Some("/login"));
    assert!(house.authz.inner.lock().logouts[0].1, "everywhere");
}

#[tokio::test]
async fn a_sign_out_that_did_not_happen_is_not_claimed() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    house.authz.refuse(("/portal/logout", 503, "unavailable", None, None));
    let page = browser.post("/logout", &[]).await;
    assert_eq!(page.status.as_u16(), 503);
    assert!(browser.session().is_some());
    browser.post("/logout", &[]).await;
    assert!(browser.session().is_none());
}

#[tokio::test]
async fn after_signing_in_one_goes_on_to_where_one_wanted() {
    let house = House::new().await;
    alice(&house).await;
    for (wanted, first) in [("/onboarding", "/login?next=onboarding"), ("/instance", "/login"), ("/progress", "/login")]
    {
        let mut browser = Browser::new(&house);
        assert_eq!(browser.get(wanted).await.location.as_deref(), Some(first));
        let page = browser.get(first).await;
        let next = page.value("next").unwrap_or_default();
        let fields = [("login", "alice"), ("password", PASSWORD), ("next", &*next)];
        let there = browser.post("/login", &fields).await.location.unwrap();
        assert_eq!(there, if wanted == "/onboarding" { "/onboarding" } else { "/instance" });
    }
    let mut browser = Browser::new(&house);
    for evil in ["https://evil.example", "//evil.example", "/\\evil.example"] {
        let page = browser.post("/login", &[("login", "alice"), ("password", PASSWORD), ("next", evil)]).await;
        assert_eq!(page.location.as_deref(), Some("/instance"));
    }
}

#[tokio::test]
async fn names_are_judged_while_they_are_typed() {
    let house = House::new().await;
    let mut browser = Browser::new(&house);
    for (name, available, words) in [
        ("free", true, "This name is free."),
        ("taken", false, "This name is taken"),
        ("Free", false, "lower-case"),
        ("ab", false, "at least 3"),
        ("www", false, "reserved"),
        ("xn--abc", false, "hyphen"),
        ("..%2F..%2Fx", false, "lower-case"),
    ] {
        let page = browser.get(&format!("/api/slugs/{name}")).await;
        let verdict: serde_json::Value = serde_json::from_str(&page.body).unwrap();
        assert_eq!((page.status.as_u16(), &verdict["available"]), (200, &available.into()), "{name}");
        assert!(verdict["text"].as_str().unwrap().contains(words), "{name}: {verdict}");
    }
    assert_eq!(house.authz.inner.lock().asked, ["free", "taken"], "what has no slug's shape goes no further");
    let mut last = 200;
    for _ in 0..60 {
        last = browser.get("/api/slugs/free").await.status.as_u16();
    }
    assert_eq!(last, 429);
}
