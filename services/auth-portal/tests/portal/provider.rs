//! Onboarding: choosing, testing and saving a provider.

use contracts::{
    authz::Purpose,
    deploy::{EventCode, InstanceError, Phase},
    provider::{ProviderKind, TestOutcome},
};
use http::Request;
use secrecy::ExposeSecret;

use crate::{alice, browser::Browser, fakes::House, html};

const KEY: &str = "sk-canary-0123456789";

fn fields(action: &'static str) -> [(&'static str, &'static str); 5] {
    [
        ("kind", "deepseek"),
        ("base_url", "https://mirror.example/v1"),
        ("model", "deepseek-chat"),
        ("api_key", KEY),
        ("action", action),
    ]
}

#[tokio::test]
async fn every_kind_of_provider_is_offered() {
    let house = House::new().await;
    let page = alice(&house).await.get("/onboarding").await;
    for kind in ProviderKind::ALL {
        assert!(page.body.contains(&format!("name=\"kind\" value=\"{}\"", kind.code())), "{kind:?}");
        page.shows(kind.brand().unwrap_or("Other, OpenAI-compatible"));
    }
    assert_eq!(page.value("kind").as_deref(), Some("openai"));
    assert_eq!(page.value("base_url").as_deref(), Some(""), "the provider's own");
    page.shows("gpt-4o-mini");
    assert!(page.body.contains("href=\"/instance\""), "it can be skipped");
}

#[tokio::test]
async fn a_test_says_in_plain_words_what_was_found_and_loses_nothing() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    for (outcome, english, chinese) in [
        (TestOutcome::Ok, "The model answered.", "模型已作出回答"),
        (TestOutcome::BadKey, "The key is not accepted", "密钥无效"),
        (TestOutcome::NoSuchModel, "There is no such model", "没有这个模型"),
        (TestOutcome::NotAnApi, "There is no such API", "没有对应的接口"),
        (TestOutcome::QuotaOrRate, "out of credit", "余额不足"),
        (TestOutcome::Unreachable, "cannot be reached", "无法连接该地址"),
        (TestOutcome::Refused, "not allowed", "不允许访问该地址"),
        (TestOutcome::ProviderFailed, "The provider has a problem", "服务商出现故障"),
        (TestOutcome::Timeout, "No answer in time", "未及时响应"),
    ] {
        house.workspace.finds(outcome, Some("its <b>own</b> words"));
        let page = browser.post("/onboarding", &fields("test")).await;
        assert_eq!(page.status.as_u16(), 200);
        page.shows(english);
        page.shows("its <b>own</b> words");
        assert!(!page.body.contains("<b>"));
        for (name, value) in &fields("test")[..4] {
            assert_eq!(page.value(name).as_deref(), Some(*value), "{outcome:?}");
        }
        assert_eq!(page.headers["cache-control"], "no-store");
        browser.clone().chinese().post("/onboarding", &fields("test")).await.shows(chinese);
    }
    let calls = house.workspace.inner.lock().calls.clone();
    assert_eq!((calls[0].0, &*calls[0].1), (house.deploy.only().id, "api/provider/test"));
    assert_eq!((&calls[0].2["assertion"], &calls[0].2["provider"]["api_key"]), (&"an-assertion".into(), &KEY.into()));
    assert_eq!(house.authz.inner.lock().assertions[0].1, Purpose::ProviderTest);
    assert!(house.deploy.inner.lock().providers.is_empty(), "a test saves nothing");
}

#[tokio::test]
async fn a_script_gets_the_finding_alone() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    house.workspace.finds(TestOutcome::BadKey, None);
    browser.headers.push(("accept", "application/json".into()));
    let page = browser.post("/onboarding", &fields("test")).await;
    let finding: serde_json::Value = serde_json::from_str(&page.body).unwrap();
    assert_eq!((&finding["good"], &finding["field"]), (&false.into(), &"api_key".into()));
    assert!(!page.body.contains(KEY));
    let page = browser.post("/onboarding", &[("kind", "ollama"), ("model", "m"), ("api_key", "")]).await;
    assert_eq!(page.status.as_u16(), 422);
    assert!(page.body.contains("\"field\":\"base_url\""), "{}", page.body);
    let page = Browser::new(&house);
    let mut stranger = page;
    stranger.headers.push(("accept", "application/json".into()));
    assert_eq!(stranger.post("/onboarding", &fields("test")).await.status.as_u16(), 401);
}

#[tokio::test]
async fn a_workspace_that_does_not_answer_is_said_to_be_so() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    house.workspace.inner.lock().away = true;
    let page = browser.post("/onboarding", &fields("test")).await;
    page.shows("Check that it is running");
    assert_eq!(page.value("api_key").as_deref(), Some(KEY));
}

#[tokio::test]
async fn saving_applies_and_tells() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    let page = browser.post("/onboarding", &fields("save")).await;
    assert_eq!((page.status.as_u16(), page.location.as_deref()), (303, Some("/applying")));
    let given = house.deploy.inner.lock().providers[0].clone();
    assert_eq!((given.kind, given.api_key.expose_secret()), (ProviderKind::Deepseek, KEY));
    let page = browser.get("/applying").await;
    page.shows("is taking over the new settings");
    assert!(page.body.contains("http-equiv=\"refresh\""));
    house.deploy.step(Phase::Starting, &[]);
    browser.get("/applying").await.shows("is taking over");
    house.deploy.change(
        |i| (i.phase, i.applied_config_generation) = (Phase::Ready, i.config_generation),
        &[EventCode::ConfigApplied],
    );
    let page = browser.get("/applying").await;
    page.shows("The new provider is in place");
    assert!(page.body.contains("http://alice.localhost:8088/auth/start") && !page.body.contains("http-equiv"));
    assert!(!browser.get("/instance").await.text().contains("no AI provider"));
}

#[tokio::test]
async fn what_did_not_hold_is_told_too() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    browser.post("/onboarding", &fields("save")).await;
    let error = InstanceError { code: "config_not_accepted".into(), detail: String::new(), ..Default::default() };
    house.deploy.change(|i| (i.phase, i.error) = (Phase::Ready, Some(error.clone())), &[EventCode::ConfigRolledBack]);
    let page = browser.get("/applying").await;
    page.shows("the previous ones are back in place");
    page.shows("Check them and save again");
    assert!(page.body.contains("href=\"/onboarding\""));
    browser.post("/onboarding", &fields("save")).await;
    browser.get("/applying").await.shows("is taking over the new settings");
    house.deploy.fail("crash_loop");
    let page = browser.get("/applying").await;
    page.shows("kept coming down");
}

#[tokio::test]
async fn every_fault_stands_at_its_field_in_both_languages() {
    let house = House::new().await;
    let browser = alice(&house).await;
    for (kind, base, model, key, field, english, chinese) in [
        ("ollama", "", "m", "", "base_url", "Enter the base URL", "请填写接口地址"),
        ("openai", "ftp://x", "m", KEY, "base_url", "begins with http", "开头的地址"),
        ("openai", "", " ", KEY, "model", "Enter the model", "请填写模型名称"),
        ("openai", "", "a\u{7}b", KEY, "model", "at most 200", "最多 200"),
        ("openai", "", "m", "", "api_key", "Enter the API key", "请填写 API 密钥"),
        ("openai", "", "m", "a b", "api_key", "no key has", "不应出现的字符"),
        ("nonsense", "", "m", KEY, "base_url", "Enter the base URL", "请填写接口地址"),
    ] {
        for action in ["test", "save"] {
            let fields = [("kind", kind), ("base_url", base), ("model", model), ("api_key", key), ("action", action)];
            for (mut browser, words) in [(browser.clone(), english), (browser.clone().chinese(), chinese)] {
                let page = browser.post("/onboarding", &fields).await;
                assert_eq!(page.status.as_u16(), 422);
                let shown = html::of_id(&page.body, &format!("{field}-error"));
                assert!(shown.contains(words), "{field}: {shown}");
                assert_eq!(html::focused(&page.body).as_deref(), Some(field));
                assert_eq!(page.value("api_key").as_deref(), Some(key));
            }
        }
    }
    assert!(house.deploy.inner.lock().providers.is_empty());
}

#[tokio::test]
async fn a_save_that_is_refused_keeps_what_was_typed() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    house.deploy.inner.lock().refuse_provider = Some((422, "provider_key_invalid", Some("api_key")));
    let page = browser.post("/onboarding", &fields("save")).await;
    assert!(html::of_id(&page.body, "api_key-error").contains("no key has"));
    house.deploy.inner.lock().away = true;
    let page = browser.post("/onboarding", &fields("save")).await;
    assert_eq!(page.status.as_u16(), 503);
    page.shows("Try again in a few seconds");
    assert_eq!(page.value("model").as_deref(), Some("deepseek-chat"));
}

/// With JavaScript the field holds the chosen provider's address, without it stays empty. Either way what a person typed goes
/// where they typed, even if it is another provider's.
#[tokio::test]
async fn a_key_goes_to_the_address_that_was_typed_and_to_no_other() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    let deepseek = ProviderKind::Deepseek.default_base_url();
    let openai = ProviderKind::Openai.default_base_url();
    for (kind, typed, meant, shown) in [
        ("deepseek", "", deepseek, ""),
        ("deepseek", deepseek, deepseek, ""),
        ("deepseek", openai, openai, openai),
        ("openai-compatible", openai, openai, openai),
        ("ollama", deepseek, deepseek, deepseek),
        ("deepseek", " https://mirror.example/v1 ", "https://mirror.example/v1", "https://mirror.example/v1"),
    ] {
        let mut fields = fields("test");
        (fields[0].1, fields[1].1) = (kind, typed);
        let page = browser.post("/onboarding", &fields).await;
        assert_eq!(page.value("base_url").as_deref(), Some(shown), "{kind} {typed}");
        let tested = house.workspace.inner.lock().calls.pop().unwrap().2;
        assert_eq!(tested["provider"]["base_url"], meant, "{kind} {typed}");
        fields[4].1 = "save";
        assert_eq!(browser.post("/onboarding", &fields).await.location.as_deref(), Some("/applying"));
        let saved = house.deploy.inner.lock().providers.pop().unwrap();
        assert_eq!((saved.kind.code(), &*saved.base_url), (kind, meant), "{typed}");
    }
}

#[tokio::test]
async fn the_form_needs_a_session() {
    let house = House::new().await;
    let mut stranger = Browser::new(&house);
    for page in [stranger.get("/onboarding").await, stranger.post("/onboarding", &fields("save")).await] {
        assert_eq!(page.location.as_deref(), Some("/login?next=onboarding"));
    }
    let answer = stranger.raw(Request::get("/applying"), String::new()).await;
    assert_eq!(answer.headers()["location"], "/login");
}
