//! The chat: piece by piece, stopped, cut, posted twice, and made again.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::house::{Browser, Events, House, eventually};

fn delta(text: &str) -> (String, Value) {
    ("delta".into(), json!({ "text": text }))
}

async fn answer(browser: &Browser<'_>, chat: &str) -> Value {
    let read = browser.get(&format!("/api/chats/{chat}")).await;
    read["messages"].as_array().unwrap().last().unwrap().clone()
}

#[tokio::test]
async fn the_answer_comes_piece_by_piece_and_is_kept_before_it_is_done() {
    let house = House::with_model("held").await;
    let browser = house.sign_in().await;
    let chat = browser.new_chat().await;
    let mut events = Events::of(browser.say(&chat, "message-1", "hello", false).await);
    assert_eq!(events.next().await.unwrap().0, "accepted");
    // The provider keeps each piece until the browser has the one before.
    for text in ["one", " <b>two</b>", " three"] {
        house.provider.gate.add_permits(1);
        assert_eq!(events.next().await.unwrap(), delta(text));
    }
    assert_eq!(events.next().await.unwrap().0, "done");
    let read = browser.get(&format!("/api/chats/{chat}")).await;
    assert_eq!(read["title"], "hello");
    assert_eq!(read["messages"][0]["content"], "hello");
    assert_eq!(read["messages"][1]["content"], "one <b>two</b> three", "markup is text");
    assert_eq!(read["messages"][1]["status"], "done");
    assert!(events.next().await.is_none());

    let sent = house.provider.last();
    assert_eq!(sent.path, "/v1/chat/completions");
    assert_eq!(sent.headers["authorization"], "Bearer canary-provider-key");
    assert!(sent.headers.get("cookie").is_none());

    house.provider.gate.add_permits(3);
    Events::of(browser.say(&chat, "message-2", "more", false).await).all().await;
    let history = house.provider.last().json()["messages"].clone();
    assert_eq!(
        history,
        json!([
            { "role": "user", "content": "hello" },
            { "role": "assistant", "content": "one <b>two</b> three" },
            { "role": "user", "content": "more" },
        ])
    );
}

#[tokio::test]
async fn a_browser_that_leaves_ends_the_request_and_what_came_is_kept() {
    let house = House::with_model("held").await;
    let browser = house.sign_in().await;
    let chat = browser.new_chat().await;
    let mut events = Events::of(browser.say(&chat, "message-1", "hello", false).await);
    house.provider.gate.add_permits(1);
    while events.next().await.unwrap() != delta("one") {}
    drop(events);
    house.provider.left.acquire().await.unwrap().forget();
    eventually(async || answer(&browser, &chat).await["status"] == "partial").await;
    assert_eq!(answer(&browser, &chat).await["content"], "one");

    // The same message again is not asked again, unless it is to be.
    let asked = house.provider.sent.lock().unwrap().len();
    let replayed = Events::of(browser.say(&chat, "message-1", "hello", false).await).all().await;
    assert_eq!(replayed[1], delta("one"));
    assert_eq!((replayed[2].0.as_str(), replayed[2].1["code"].as_str()), ("error", Some("partial")));
    assert_eq!(house.provider.sent.lock().unwrap().len(), asked);
    house.provider.gate.add_permits(3);
    let again = Events::of(browser.say(&chat, "message-1", "hello", true).await).all().await;
    assert_eq!(again.last().unwrap().0, "done");
    let read = browser.get(&format!("/api/chats/{chat}")).await;
    assert_eq!(read["messages"].as_array().unwrap().len(), 2, "nothing is doubled");
    assert_eq!(read["messages"][1]["content"], "one <b>two</b> three");
    let replayed = Events::of(browser.say(&chat, "message-1", "hello", true).await).all().await;
    assert_eq!(replayed.last().unwrap().0, "done");
}

#[tokio::test]
async fn one_answer_at_a_time_and_deleting_ends_it() {
    let house = House::with_model("held").await;
    let browser = house.sign_in().await;
    let chat = browser.new_chat().await;
    let mut events = Events::of(browser.say(&chat, "message-1", "hello", false).await);
    events.next().await.unwrap();
    let second = browser.say(&chat, "message-2", "and", false).await;
    assert_eq!(second.status(), StatusCode::CONFLICT);
    let path = format!("/api/chats/{chat}");
    assert_eq!(browser.request(Method::DELETE, &path).send().await.unwrap().status(), StatusCode::NO_CONTENT);
    house.provider.left.acquire().await.unwrap().forget();
    assert_eq!(browser.request(Method::GET, &path).send().await.unwrap().status(), StatusCode::NOT_FOUND);
    assert_eq!(browser.get("/api/chats").await, json!({ "chats": [] }));
}

#[tokio::test]
async fn what_goes_wrong_at_the_provider_is_said_in_plain_words() {
    for (model, code, kept) in [
        ("cut", "cut", "half"),
        ("silent-end", "cut", "half"),
        ("half-and-error", "provider_failed", "half"),
        ("half-and-noise", "not_an_api", "half"),
        ("bad-key", "bad_key", ""),
        ("no-such", "no_such_model", ""),
        ("no-credit", "quota_or_rate", ""),
        ("broken", "provider_failed", ""),
        ("html", "not_an_api", ""),
        ("redirect", "not_an_api", ""),
    ] {
        let house = House::with_model(model).await;
        let browser = house.sign_in().await;
        let chat = browser.new_chat().await;
        let request = browser.request(Method::POST, &format!("/api/chats/{chat}/messages"));
        let body = json!({ "id": "message-1", "content": "hello" });
        let response = request.header("accept-language", "zh-CN").json(&body).send().await.unwrap();
        let events = Events::of(response).all().await;
        let (name, data) = events.last().unwrap();
        assert_eq!((name.as_str(), data["code"].as_str()), ("error", Some(code)), "{model}");
        assert!(data["message"].as_str().unwrap().contains('。'), "{model}: {data}");
        assert!(!data.to_string().contains("canary"), "{data}");
        let answer = answer(&browser, &chat).await;
        assert_eq!((answer["status"].as_str(), answer["content"].as_str()), (Some("failed"), Some(kept)), "{model}");
        assert_eq!(house.provider.sent.lock().unwrap().len(), 1, "{model}: no redirect is followed");
    }
}

#[tokio::test]
async fn addresses_that_are_refused_or_not_there_are_told_apart() {
    for (base_url, code) in [("http://refused.example/v1", "refused"), ("https://nowhere.example/v1", "unreachable")] {
        let mut house = House::build().await;
        house.configure(2, Some((base_url, "m")));
        house.start().await;
        let browser = house.sign_in().await;
        let chat = browser.new_chat().await;
        let events = Events::of(browser.say(&chat, "message-1", "hello", false).await).all().await;
        assert_eq!(events.last().unwrap().1["code"], code);
    }
}

#[tokio::test]
async fn answers_that_are_not_streamed_or_oddly_streamed_are_read_all_the_same() {
    for (model, text) in
        [("no-stream", "hi"), ("odd", "piece"), ("whole-and-open", "whole"), ("whole-and-cut", "whole")]
    {
        let house = House::with_model(model).await;
        let browser = house.sign_in().await;
        let chat = browser.new_chat().await;
        let events = Events::of(browser.say(&chat, "message-1", "hello", false).await).all().await;
        let said: String = events.iter().filter_map(|(_, data)| data["text"].as_str()).collect();
        assert_eq!((said.as_str(), events.last().unwrap().0.as_str()), (text, "done"));
    }
}

#[tokio::test]
async fn without_a_provider_nothing_is_lost_and_what_is_missing_is_said() {
    let mut house = House::build().await;
    house.start().await;
    let browser = house.sign_in().await;
    let chat = browser.new_chat().await;
    let refused = browser.say(&chat, "message-1", "hello", false).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.json::<Value>().await.unwrap()["code"], "provider_not_configured");
    let page = browser.request(Method::GET, "/").header("accept-language", "zh").send().await.unwrap();
    let page = page.text().await.unwrap();
    assert!(page.contains("还没有设置 AI 服务商") && page.contains("href=\"/settings\""), "{page}");
}

#[tokio::test]
async fn odd_messages_and_other_sites_are_refused() {
    let house = House::with_model("held").await;
    let browser = house.sign_in().await;
    let chat = browser.new_chat().await;
    for (id, content) in
        [("short", "x"), ("with a space", "x"), ("message-1", " \n"), ("message-1", &"x".repeat(300_000))]
    {
        assert_eq!(browser.say(&chat, id, content, false).await.status(), StatusCode::UNPROCESSABLE_ENTITY, "{id}");
    }
    let path = format!("/api/chats/{chat}/messages");
    let cookie = format!("beaver_workspace={}", browser.session);
    let body = json!({ "id": "message-1", "content": "x" });
    for (name, value) in [("origin", "http://bob.localhost:8088"), ("sec-fetch-site", "same-site"), ("x-none", "1")] {
        let foreign = house.edge(Method::POST, &path).header("cookie", &cookie).header(name, value).json(&body);
        assert_eq!(foreign.send().await.unwrap().status(), StatusCode::FORBIDDEN, "{name}");
    }
    assert_eq!(browser.get(&format!("/api/chats/{chat}")).await["messages"], json!([]));
}

#[tokio::test]
async fn an_end_in_the_middle_is_told_and_marked() {
    let mut house = House::with_model("held").await;
    let (session, chat) = {
        let browser = house.sign_in().await;
        (browser.session.clone(), browser.new_chat().await)
    };
    let body = json!({ "id": "message-1", "content": "hello" });
    let request = house.edge(Method::POST, &format!("/api/chats/{chat}/messages")).json(&body);
    let request =
        request.header("cookie", format!("beaver_workspace={session}")).header("origin", crate::fakes::ORIGIN);
    let mut events = Events::of(request.send().await.unwrap());
    house.provider.gate.add_permits(1);
    while events.next().await.unwrap() != delta("one") {}
    let (_, last) = tokio::join!(house.stop(), events.all());
    assert_eq!((last[0].0.as_str(), last[0].1["code"].as_str()), ("error", Some("interrupted")));
    house.start().await;
    let browser = house.sign_in().await;
    let kept = answer(&browser, &chat).await;
    assert_eq!((kept["status"].as_str(), kept["content"].as_str()), (Some("interrupted"), Some("one")));
}

#[tokio::test]
async fn an_answer_that_more_was_said_after_is_not_made_again() {
    let house = House::with_model("held").await;
    let browser = house.sign_in().await;
    let chat = browser.new_chat().await;
    let mut events = Events::of(browser.say(&chat, "message-1", "hello", false).await);
    house.provider.gate.add_permits(1);
    while events.next().await.unwrap() != delta("one") {}
    drop(events);
    eventually(async || answer(&browser, &chat).await["status"] == "partial").await;
    house.provider.gate.add_permits(3);
    let mut second = None;
    // The first one's turn is given back a moment after its answer was kept.
    eventually(async || {
        let response = browser.say(&chat, "message-2", "more", false).await;
        let taken = response.status() == StatusCode::OK;
        second = taken.then_some(response);
        taken
    })
    .await;
    assert_eq!(Events::of(second.unwrap()).all().await.last().unwrap().0, "done");
    let mut refused = None;
    eventually(async || {
        let problem: Value = browser.say(&chat, "message-1", "hello", true).await.json().await.unwrap();
        let other = problem["code"] != "chat_busy";
        refused = Some(problem);
        other
    })
    .await;
    let refused = refused.unwrap();
    assert_eq!((refused["status"].as_u64(), refused["code"].as_str()), (Some(409), Some("answer_not_last")));
    let read = browser.get(&format!("/api/chats/{chat}")).await;
    assert_eq!(read["messages"][1]["content"], "one");
}

#[tokio::test]
async fn the_page_has_the_words_for_every_refusal_in_its_language() {
    let house = House::with_model("odd").await;
    let browser = house.sign_in().await;
    let mut pages = Vec::new();
    for language in ["en", "zh-CN"] {
        let page = browser.request(Method::GET, "/").header("accept-language", language).send().await.unwrap();
        let page = page.text().await.unwrap();
        let found = page.split("data-refusals=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
        let found: Value = serde_json::from_str(&found.replace("&#34;", "\"").replace("&#39;", "'")).unwrap();
        assert!(found["unavailable"].is_string() && found["chat_busy"].is_string(), "{found}");
        pages.push(found);
    }
    let (english, chinese) = (pages[0].as_object().unwrap(), pages[1].as_object().unwrap());
    assert!(english.keys().eq(chinese.keys()) && english.len() >= 10);
    for (code, words) in english {
        assert_ne!(words, &chinese[code], "{code} is not translated");
    }
}

#[tokio::test]
async fn without_room_nothing_new_is_kept_until_enough_was_deleted() {
    let house = House::with_model("held").await;
    let browser = house.sign_in().await;
    let chat = browser.new_chat().await;
    house.provider.gate.add_permits(100);
    let long = "long ".repeat(40_000);
    for n in 0..8 {
        let said = browser.say(&chat, &format!("message-{n}"), &long, false).await;
        assert_eq!(Events::of(said).all().await.last().unwrap().0, "done");
    }
    let other = browser.new_chat().await;
    let taken =
        || std::fs::read_dir(house.path("data")).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum::<u64>();
    let before = taken();
    assert!(before > 1 << 20, "{before}");

    // As deploy-control writes it, while the instance runs.
    let notice = house.path("config/disk.json");
    std::fs::write(&notice, r#"{"used_bytes":3145729,"limit_bytes":2097152}"#).unwrap();
    let asked = house.provider.sent.lock().unwrap().len();
    let refused = async |request: reqwest::RequestBuilder| {
        let answer = request.header("accept-language", "zh-CN").send().await.unwrap();
        let status = answer.status();
        let problem: Value = answer.json().await.unwrap();
        assert!(problem["detail"].as_str().unwrap().contains("磁盘空间"), "{problem}");
        (status, problem["code"].as_str().unwrap().to_owned())
    };
    let full = (StatusCode::INSUFFICIENT_STORAGE, "storage_full".to_owned());
    assert_eq!(refused(browser.request(Method::POST, "/api/chats")).await, full);
    let body = json!({ "id": "message-9", "content": "more" });
    let say = browser.request(Method::POST, &format!("/api/chats/{other}/messages")).json(&body);
    assert_eq!(refused(say).await, full);
    assert_eq!(house.provider.sent.lock().unwrap().len(), asked, "nobody was asked");
    // What is there can be read, and the page says how it stands.
    assert_eq!(browser.get(&format!("/api/chats/{chat}")).await["messages"].as_array().unwrap().len(), 16);
    let page = browser.request(Method::GET, "/").header("accept-language", "en").send().await.unwrap();
    let page = page.text().await.unwrap();
    assert!(page.contains("id=\"disk-full\"") && page.contains("4 MB / 2 MB"), "{page}");

    let deleted = browser.request(Method::DELETE, &format!("/api/chats/{chat}")).send().await.unwrap();
    assert_eq!(deleted.status(), StatusCode::NO_CONTENT);
    eventually(async || taken() < before / 4).await;
    std::fs::remove_file(&notice).unwrap();
    let said = browser.say(&other, "message-9", "more", false).await;
    assert_eq!(Events::of(said).all().await.last().unwrap().0, "done");
    let page = browser.request(Method::GET, "/").send().await.unwrap().text().await.unwrap();
    assert!(!page.contains("disk-full"));
}

#[tokio::test]
async fn it_is_busy_for_as_long_as_something_is_under_way_and_says_what_wakes_it() {
    let house = House::with_model("held").await;
    let activity = async || -> Value {
        let answer = house.internal(Method::GET, "/api/activity").send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        answer.json().await.unwrap()
    };
    assert_eq!(activity().await, json!({ "busy": false, "wake_keys": [] }));
    assert_eq!(house.edge(Method::GET, "/api/activity").send().await.unwrap().status(), StatusCode::NOT_FOUND);
    let browser = house.sign_in().await;
    let key = browser.new_key().await;
    assert_eq!(activity().await, json!({ "busy": false, "wake_keys": [sign_in::fingerprint(&key)] }));

    // An answer in a chat.
    let chat = browser.new_chat().await;
    let mut events = Events::of(browser.say(&chat, "message-1", "hello", false).await);
    assert_eq!(events.next().await.unwrap().0, "accepted");
    assert_eq!(activity().await["busy"], true);
    house.provider.gate.add_permits(3);
    events.all().await;
    eventually(async || activity().await["busy"] == false).await;

    // A stream through the gateway, from before its first byte.
    let ask = house.edge(Method::POST, "/v1/chat/completions").bearer_auth(&key);
    let ask = ask.header("content-type", "application/json").body(r#"{"model":"held","stream":true}"#);
    house.provider.gate.add_permits(1);
    let mut stream = ask.send().await.unwrap();
    assert!(stream.chunk().await.unwrap().is_some());
    assert_eq!(activity().await["busy"], true);
    house.provider.gate.add_permits(2);
    while stream.chunk().await.unwrap().is_some() {}
    eventually(async || activity().await["busy"] == false).await;
}
