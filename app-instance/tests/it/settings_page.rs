//! The settings page, the live test, access tokens' neighbours: what the person and the portal do with a provider.

use app_instance::identity::{AccessTokens, Door, Registrar};
use clock::Entropy;
use http::{Method, StatusCode};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use token::Purpose;

use crate::{
    fakes::{ISSUER, ORIGIN},
    house::{Browser, House, PROVIDER_KEY},
};

async fn submit(browser: &Browser<'_>, action: &str, base_url: &str, model: &str, key: &str) -> (StatusCode, String) {
    submit_with(browser, action, base_url, model, key, &[]).await
}

/// As the form that followed a test.
const USE_TRIED: &[(&str, &str)] = &[("use_tried", "1")];

async fn submit_with(
    browser: &Browser<'_>,
    action: &str,
    base_url: &str,
    model: &str,
    key: &str,
    more: &[(&str, &str)],
) -> (StatusCode, String) {
    let mut form = vec![
        ("kind", "openai-compatible"),
        ("base_url", base_url),
        ("model", model),
        ("api_key", key),
        ("action", action),
    ];
    form.extend_from_slice(more);
    let response = browser.request(Method::POST, "/settings/provider").form(&form).send().await.unwrap();
    (response.status(), response.text().await.unwrap())
}

const BASE: &str = "http://provider.example/v1";

#[tokio::test]
async fn a_provider_is_tried_saved_and_its_key_never_shown() {
    let mut house = House::build().await;
    house.start().await;
    let browser = house.sign_in().await;
    let (status, page) = submit(&browser, "test", BASE, "bad-key", PROVIDER_KEY).await;
    assert_eq!(status, StatusCode::OK);
    assert!(page.contains("does not accept this key") && !page.contains(PROVIDER_KEY), "{page}");
    let (_, page) = submit(&browser, "test", BASE, "fine", PROVIDER_KEY).await;
    assert!(page.contains("the model answered"), "{page}");
    // What was tried need not be typed again to be saved.
    assert!(page.contains("The key you just tried") && !page.contains(PROVIDER_KEY), "{page}");
    assert!(page.contains(r#"<input type="hidden" name="use_tried" value="1">"#), "{page}");
    let (status, page) = submit_with(&browser, "save", "", "m", "", USE_TRIED).await;
    assert!(page.contains("The key you just tried") && page.contains("use_tried"), "{page}");
    assert!(status == StatusCode::UNPROCESSABLE_ENTITY && page.contains("needs a base URL"), "{page}");
    let (status, page) = submit(&browser, "save", BASE, "m", "a b\nc").await;
    assert!(status == StatusCode::UNPROCESSABLE_ENTITY && page.contains("characters that no key has"), "{page}");
    assert_eq!(submit_with(&browser, "save", BASE, "fine", "", USE_TRIED).await.0, StatusCode::SEE_OTHER);

    let page = browser.request(Method::GET, "/settings").send().await.unwrap().text().await.unwrap();
    assert!(page.contains("A key is saved") && page.contains(BASE) && !page.contains(PROVIDER_KEY));
    assert!(!page.contains("use_tried"), "{page}");
    // An empty key is the kept one, as long as it goes where it went.
    assert_eq!(submit(&browser, "save", BASE, "other", "").await.0, StatusCode::SEE_OTHER);
    let (_, page) = submit(&browser, "test", BASE, "other", "").await;
    assert!(page.contains("the model answered"));
    assert_eq!(house.provider.last().headers["authorization"], format!("Bearer {PROVIDER_KEY}"));
    submit(&browser, "test", "http://provider.example/elsewhere", "other", "").await;
    assert!(house.provider.last().headers.get("authorization").is_none());
}

#[tokio::test]
async fn a_key_that_was_only_tried_never_takes_the_place_of_the_kept_one() {
    let mut house = House::build().await;
    house.configure(2, Some((BASE, "fine")));
    house.start().await;
    let browser = house.sign_in().await;
    let key_in_use = async || {
        submit(&browser, "test", BASE, "fine", "").await;
        house.provider.last().headers["authorization"].to_str().unwrap().to_owned()
    };
    let good = format!("Bearer {PROVIDER_KEY}");
    submit(&browser, "test", BASE, "bad-key", "canary-other-key").await;
    // A form that was open before the test speaks of the kept key.
    assert_eq!(submit(&browser, "save", BASE, "fine", "").await.0, StatusCode::SEE_OTHER);
    assert_eq!(key_in_use().await, good);

    // So does the page once it has been opened anew; and the form behind the test then says that its key is gone.
    submit(&browser, "test", BASE, "bad-key", "canary-other-key").await;
    browser.request(Method::GET, "/settings").send().await.unwrap();
    let (status, page) = submit_with(&browser, "save", BASE, "fine", "", USE_TRIED).await;
    assert!(status == StatusCode::UNPROCESSABLE_ENTITY && page.contains("Enter the provider"), "{page}");
    assert_eq!(submit(&browser, "save", BASE, "fine", "").await.0, StatusCode::SEE_OTHER);
    assert_eq!(key_in_use().await, good);
}

#[tokio::test]
async fn markup_in_what_people_and_models_are_called_stays_text() {
    let mut house = House::build().await;
    house.configure(2, Some((BASE, "<script>alert(1)</script>")));
    house.start().await;
    let browser = house.sign_in().await;
    let form = [("name", "<img src=x onerror=alert(1)>")];
    browser.request(Method::POST, "/settings/keys").form(&form).send().await.unwrap();
    for path in ["/", "/settings"] {
        let response = browser.request(Method::GET, path).send().await.unwrap();
        let policy = response.headers()["content-security-policy"].to_str().unwrap().to_owned();
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        let page = response.text().await.unwrap();
        assert!(!page.contains("<script>alert") && !page.contains("<img"), "{page}");
    }
}

#[tokio::test]
async fn the_portals_live_test_tells_each_fault_apart() {
    let mut house = House::build().await;
    house.start().await;
    let try_with = async |base_url: &str, model: &str| -> (StatusCode, Value) {
        let body = json!({
            "assertion": house.authz.assertion(Purpose::ProviderTest, "sid", None),
            "provider": { "kind": "openai-compatible", "base_url": base_url, "model": model, "api_key": PROVIDER_KEY },
        });
        let response = house.internal(Method::POST, "/api/provider/test").json(&body).send().await.unwrap();
        (response.status(), response.json().await.unwrap())
    };
    for (base_url, model, outcome) in [
        (BASE, "fine", "ok"),
        (BASE, "newer", "ok"),
        (BASE, "bad-key", "bad_key"),
        (BASE, "no-such", "no_such_model"),
        (BASE, "no-credit", "quota_or_rate"),
        (BASE, "broken", "provider_failed"),
        (BASE, "html", "not_an_api"),
        (BASE, "redirect", "not_an_api"),
        ("http://refused.example/v1", "m", "refused"),
        ("http://nowhere.example/v1", "m", "unreachable"),
        ("https://provider.example/v1", "m", "unreachable"),
    ] {
        let (status, test) = try_with(base_url, model).await;
        assert_eq!((status, test["outcome"].as_str()), (StatusCode::OK, Some(outcome)), "{base_url} {model}");
        assert!(!test.to_string().contains("canary"), "{test}");
    }
    assert_eq!(try_with(BASE, "").await.0, StatusCode::UNPROCESSABLE_ENTITY);
    // Nothing of it is kept.
    let key = house.sign_in().await.new_key().await;
    let gateway = house.edge(Method::GET, "/v1/models").bearer_auth(key).send().await.unwrap();
    assert_eq!(gateway.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_live_test_needs_its_own_assertion_and_spends_it() {
    let mut house = House::build().await;
    house.start().await;
    let provider = json!({ "kind": "openai-compatible", "base_url": BASE, "model": "fine", "api_key": "" });
    let assertion = house.authz.assertion(Purpose::ProviderTest, "sid", None);
    let login = house.authz.assertion(Purpose::Login, "sid", Some("bind"));
    for (assertion, status) in
        [(&assertion, StatusCode::OK), (&assertion, StatusCode::UNAUTHORIZED), (&login, StatusCode::UNAUTHORIZED)]
    {
        let body = json!({ "assertion": assertion, "provider": provider });
        let answer = house.internal(Method::POST, "/api/provider/test").json(&body).send().await.unwrap();
        assert_eq!(answer.status(), status);
    }
}

#[tokio::test]
async fn the_language_is_remembered_and_every_page_is_in_it() {
    let mut house = House::build().await;
    house.start().await;
    let browser = house.sign_in().await;
    let form = [("locale", "zh-CN"), ("rd", "/settings")];
    let set = browser.request(Method::POST, "/language").form(&form).send().await.unwrap();
    assert_eq!((set.status(), set.headers()["location"].to_str().unwrap()), (StatusCode::SEE_OTHER, "/settings"));
    let kept = crate::house::cookie(&set, "beaver_lang").unwrap();
    for (path, words) in [("/settings", "AI 服务商"), ("/", "新对话"), ("/auth/signed-out", "你已退出工作区")]
    {
        let cookies = format!("beaver_workspace={}; beaver_lang={kept}", browser.session);
        let page = house.edge(Method::GET, path).header("cookie", cookies).send().await.unwrap().text().await.unwrap();
        assert!(page.contains(words) && page.contains("lang=\"zh-Hans\""), "{page}");
    }
}

#[tokio::test]
async fn access_tokens_are_got_once_for_each_resource_and_again_before_they_end() {
    let mut house = House::with_manual_clock().await;
    let body = json!({ "assertion": house.authz.assertion(Purpose::Register, "sid", None) });
    house.internal(Method::POST, "/api/auth/register").json(&body).send().await.unwrap();
    house.stop().await;

    // The same data folder; nothing in it is served.
    let env = ::settings::Env::from_pairs(house.env());
    let settings = app_instance::settings::Settings::from_env(&env).unwrap();
    let database = store::Database::Sqlite(house.path("data/instance.db"));
    let store = store::Store::open(&database, &sqlx::migrate!("../migrations/app-instance")).await.unwrap();
    let door = Door::new(&house.path("out"));
    let registrar = Registrar::new(settings, ORIGIN.into(), door.clone(), store, Entropy::system());
    let tokens = AccessTokens::new(ISSUER.into(), door, registrar.into(), house.clock.clone(), Entropy::system());
    let get = async |resource: &str| tokens.get_token(resource).await.unwrap().expose_secret().to_owned();
    let (first, second) = tokio::join!(get("https://mcp.example/a"), get("https://mcp.example/a"));
    assert_eq!((first.as_str(), &second), ("token-1-for-https://mcp.example/a", &first));
    assert_eq!(get("https://mcp.example/b").await, "token-2-for-https://mcp.example/b");
    let hand = house.hand.as_ref().unwrap();
    hand.advance_ms(269_999);
    assert_eq!(get("https://mcp.example/a").await, first);
    hand.advance_ms(1);
    assert_eq!(get("https://mcp.example/a").await, "token-3-for-https://mcp.example/a");
}
