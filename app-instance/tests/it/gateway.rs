//! The gateway: bytes as they came, both ways, and keys.

use bytes::Bytes;
use http::{Method, StatusCode};
use reqwest::Response;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    fakes::{ODD_ANSWER, ODD_STREAM, fake_egress},
    house::{Events, House},
};

const CHAT: &str = "/v1/chat/completions";

async fn chat(house: &House, key: &str, body: impl Into<reqwest::Body>) -> Response {
    let request = house.edge(Method::POST, CHAT).bearer_auth(key).header("content-type", "application/json");
    request.body(body).send().await.unwrap()
}

async fn code(response: Response) -> (StatusCode, Value) {
    let status = response.status();
    let body: Value = response.json().await.unwrap();
    let error = &body["error"];
    assert!(error["message"].is_string() && error["type"].is_string() && error.get("param").is_some(), "{body}");
    (status, error["code"].clone())
}

#[tokio::test]
async fn bytes_pass_through_unchanged_both_ways() {
    let house = House::with_model("odd").await;
    let key = house.sign_in().await.new_key().await;
    let body = "{ \"unknown\" : {\"z\":1e2,\"a\":[ ]},\r\n \"model\":\"any\", \"messages\":[],\"temperature\":0.70 }\n";
    let request = house.edge(Method::POST, &format!("{CHAT}?a=b%20c")).header("x-api-key", &key);
    let request = request.header("content-type", "application/json").header("x-stainless-lang", "python");
    let request = request.header("cookie", "beaver_workspace=x").header("x-forwarded-for", "1.2.3.4");
    let response = request.body(body).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.headers().contains_key("x-request-id"));
    assert_eq!(response.text().await.unwrap(), ODD_ANSWER);
    let sent = house.provider.last();
    assert_eq!(
        (sent.path.as_str(), &sent.body),
        ("/v1/chat/completions?a=b%20c", &Bytes::from_static(body.as_bytes()))
    );
    assert_eq!(sent.headers["authorization"], "Bearer canary-provider-key");
    assert_eq!(sent.headers["x-stainless-lang"], "python");
    assert_eq!(sent.headers["host"], "provider.example");
    for gone in ["cookie", "x-api-key", "x-forwarded-for", "x-request-id"] {
        assert!(sent.headers.get(gone).is_none(), "{gone}");
    }

    let streamed = chat(&house, &key, r#"{"model":"odd","stream":true}"#).await;
    assert_eq!(streamed.headers()["x-accel-buffering"], "no");
    assert_eq!(streamed.headers()["x-upstream"], "1");
    assert_eq!(streamed.text().await.unwrap(), ODD_STREAM.concat());

    for (path, upstream) in [("/v1/models", "/v1/models"), ("/v1/models/a%2Fb:c?d=1", "/v1/models/a%2Fb:c?d=1")] {
        let response = house.edge(Method::GET, path).bearer_auth(&key).send().await.unwrap();
        assert!(response.headers().get("set-cookie").is_none());
        assert_eq!(response.text().await.unwrap(), ODD_ANSWER);
        assert_eq!(house.provider.last().path, upstream);
    }
}

#[tokio::test]
async fn a_large_body_passes_and_a_larger_one_is_413() {
    let house = House::with_model("odd").await;
    let key = house.sign_in().await.new_key().await;
    let body = |size: usize| format!(r#"{{"model":"odd","padding":"{}"}}"#, "x".repeat(size));
    let large = body(5 << 20);
    assert_eq!(chat(&house, &key, large.clone()).await.status(), StatusCode::OK);
    assert_eq!(house.provider.last().body, large.as_bytes());
    let (status, code) = code(chat(&house, &key, body(25 << 20)).await).await;
    assert_eq!((status, code), (StatusCode::PAYLOAD_TOO_LARGE, json!("request_too_large")));
}

#[tokio::test]
async fn a_stream_is_not_held_back() {
    let house = House::with_model("held").await;
    let key = house.sign_in().await.new_key().await;
    let mut response = chat(&house, &key, r#"{"model":"held","stream":true}"#).await;
    for text in ["one", "two", "three"] {
        house.provider.gate.add_permits(1);
        let chunk = response.chunk().await.unwrap().unwrap();
        assert!(String::from_utf8_lossy(&chunk).contains(text));
    }
}

/// What came of a stream, and whether it ended cleanly.
async fn drain(mut response: Response) -> (String, bool) {
    let mut text = String::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => text.push_str(std::str::from_utf8(&chunk).unwrap()),
            Ok(None) => return (text, true),
            Err(_) => return (text, false),
        }
    }
}

#[tokio::test]
async fn of_a_stream_that_ends_with_its_connection_done_tells_the_end() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        // The first ends as it should, the second in the middle; HTTP does not tell them apart.
        // The third is one whose length was told; the rest of it is shorter than an error event.
        for (length, body) in [
            ("", "data: {}\n\ndata: [DONE]\n\n"),
            ("", "data: {}\n\ndata: {\"cho"),
            ("content-length: 40\r\n", "data: {}\n\ndata: {\"cho"),
        ] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"}") {
                request.push(stream.read_u8().await.unwrap());
            }
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n";
            stream.write_all(format!("{head}{length}\r\n{body}").as_bytes()).await.unwrap();
        }
    });
    let mut house = House::build().await;
    std::fs::remove_file(house.path("out/egress.sock")).unwrap();
    fake_egress(&house.path("out"), address);
    house.configure(2, Some(("http://provider.example/v1", "m")));
    house.start().await;
    let key = house.sign_in().await.new_key().await;
    let good = drain(chat(&house, &key, r#"{"model":"m","stream":true}"#).await).await;
    assert_eq!(good, ("data: {}\n\ndata: [DONE]\n\n".to_owned(), true));
    for _ in ["no length", "a length"] {
        let (text, clean) = drain(chat(&house, &key, r#"{"model":"m","stream":true}"#).await).await;
        assert!(!clean && text.contains("upstream_cut"), "{text}");
    }
}

#[tokio::test]
async fn a_cut_stream_ends_with_an_error_event_and_not_cleanly() {
    let house = House::with_model("cut").await;
    let key = house.sign_in().await.new_key().await;
    let (text, clean) = drain(chat(&house, &key, r#"{"model":"cut","stream":true}"#).await).await;
    assert!(!clean, "the connection breaks off as the provider's did");
    let last = text.trim_end().rsplit("\n\n").next().unwrap().strip_prefix("data: ").unwrap();
    assert_eq!(serde_json::from_str::<Value>(last).unwrap()["error"]["code"], "upstream_cut", "{text}");
    // A stream that ends without [DONE] but properly is the provider's own affair.
    let ended = chat(&house, &key, r#"{"model":"silent-end","stream":true}"#).await.text().await.unwrap();
    assert!(ended.contains("half") && !ended.contains("error"));
}

#[tokio::test]
async fn a_caller_that_leaves_ends_the_request_at_the_provider() {
    let house = House::with_model("held").await;
    let key = house.sign_in().await.new_key().await;
    let mut response = chat(&house, &key, r#"{"model":"held","stream":true}"#).await;
    house.provider.gate.add_permits(1);
    response.chunk().await.unwrap().unwrap();
    drop(response);
    let left = tokio::time::timeout(std::time::Duration::from_secs(20), house.provider.left.acquire()).await;
    left.expect("the provider saw it").unwrap().forget();
}

#[tokio::test]
async fn only_a_live_key_opens() {
    let house = House::with_model("odd").await;
    let browser = house.sign_in().await;
    let key = browser.new_key().await;
    let good = r#"{"model":"odd"}"#;
    assert_eq!(chat(&house, &key, good).await.status(), StatusCode::OK);
    for wrong in ["sk-", "", &key[..key.len() - 1], "canary-provider-key"] {
        let refused = chat(&house, wrong, good).await;
        assert_eq!(refused.headers()["www-authenticate"], "Bearer");
        assert_eq!(code(refused).await, (StatusCode::UNAUTHORIZED, json!("invalid_api_key")), "{wrong}");
    }
    // A signed-in browser's cookie opens nothing here.
    let by_cookie = browser.request(Method::POST, CHAT).body(good).send().await.unwrap();
    assert_eq!(by_cookie.status(), StatusCode::UNAUTHORIZED);
    let by_cookie = browser.request(Method::GET, "/v1/models").send().await.unwrap();
    assert_eq!(by_cookie.status(), StatusCode::UNAUTHORIZED);

    let page = browser.request(Method::GET, "/settings").send().await.unwrap().text().await.unwrap();
    assert!(!page.contains(&key) && !page.contains("canary-provider-key"));
    let id = page.split("/settings/keys/").nth(1).unwrap().split('/').next().unwrap();
    let revoke = browser.request(Method::POST, &format!("/settings/keys/{id}/revoke")).send().await.unwrap();
    assert_eq!(revoke.status(), StatusCode::SEE_OTHER);
    assert_eq!(chat(&house, &key, good).await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn our_own_refusals_have_openais_shape() {
    let house = House::with_model("odd").await;
    let key = house.sign_in().await.new_key().await;
    for (body, expected) in [
        ("{", "invalid_json"),
        ("[]", "invalid_json"),
        (r#"{"model":1}"#, "invalid_json"),
        ("{}", "missing_required_parameter"),
        (r#"{"model":""}"#, "missing_required_parameter"),
    ] {
        assert_eq!(code(chat(&house, &key, body).await).await, (StatusCode::BAD_REQUEST, json!(expected)), "{body}");
    }
    for (method, path, status, expected) in [
        (Method::POST, "/v1/embeddings", StatusCode::NOT_FOUND, "unknown_url"),
        (Method::GET, "/v1", StatusCode::NOT_FOUND, "unknown_url"),
        (Method::GET, CHAT, StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
    ] {
        let response = house.edge(method, path).bearer_auth(&key).send().await.unwrap();
        assert_eq!(code(response).await, (status, json!(expected)), "{path}");
    }
    // The provider's refusals are the provider's, byte for byte.
    let told = chat(&house, &key, r#"{"model":"no-such"}"#).await;
    assert_eq!(told.status(), StatusCode::NOT_FOUND);
    assert_eq!(told.json::<Value>().await.unwrap()["error"]["type"], "fake");
}

#[tokio::test]
async fn what_is_missing_or_not_allowed_is_said() {
    let mut house = House::build().await;
    house.start().await;
    let key = house.sign_in().await.new_key().await;
    let good = r#"{"model":"m"}"#;
    let refused = code(chat(&house, &key, good).await).await;
    assert_eq!(refused, (StatusCode::SERVICE_UNAVAILABLE, json!("provider_not_configured")));
    for (generation, base_url, expected) in [
        (2, "http://refused.example/v1", "egress_refused"),
        (3, "http://nowhere.example/v1", "upstream_unreachable"),
        (4, "https://provider.example/v1", "upstream_unreachable"),
    ] {
        house.stop().await;
        house.configure(generation, Some((base_url, "m")));
        house.start().await;
        let refused = code(chat(&house, &key, good).await).await;
        assert_eq!(refused, (StatusCode::BAD_GATEWAY, json!(expected)), "{base_url}");
    }
}

#[tokio::test]
async fn browser_programs_of_other_origins_may_call_with_a_key() {
    let house = House::with_model("odd").await;
    let request = house.edge(Method::OPTIONS, CHAT).header("origin", "https://app.example");
    let request = request.header("access-control-request-method", "POST");
    let preflight =
        request.header("access-control-request-headers", "authorization,content-type").send().await.unwrap();
    assert_eq!(preflight.status(), StatusCode::NO_CONTENT);
    let header = |response: &Response, name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header(&preflight, "access-control-allow-origin"), "*");
    assert_eq!(header(&preflight, "access-control-allow-headers"), "authorization,content-type");
    assert!(preflight.headers().get("access-control-allow-credentials").is_none());
    let key = house.sign_in().await.new_key().await;
    let answer = chat(&house, &key, r#"{"model":"odd"}"#).await;
    assert_eq!(header(&answer, "access-control-allow-origin"), "*");
    assert_eq!(header(&answer, "x-content-type-options"), "nosniff");
}

#[tokio::test]
async fn somebody_who_opens_its_address_is_told_in_their_language_what_it_is_for() {
    let house = House::with_model("odd").await;
    for path in ["/v1", "/v1/models", "/v1/nothing"] {
        for (language, words) in [("en", "This address is for programs"), ("zh-CN", "这个地址是给程序用的")] {
            let opened = house.edge(Method::GET, path).header("accept", "text/html,*/*;q=0.8");
            let response = opened.header("accept-language", language).send().await.unwrap();
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{path}");
            assert!(response.headers().contains_key("content-security-policy"));
            let page = response.text().await.unwrap();
            assert!(page.contains(words) && page.contains("invalid_api_key"), "{page}");
        }
        // A program, whatever it speaks.
        let asked = house.edge(Method::GET, path).header("accept", "*/*").header("accept-language", "zh-CN");
        assert_eq!(code(asked.send().await.unwrap()).await.1, "invalid_api_key", "{path}");
    }
}

#[tokio::test]
async fn its_numbers_are_for_beaver_alone() {
    let house = House::with_model("odd").await;
    let browser = house.sign_in().await;
    let key = browser.new_key().await;
    let body = json!({ "model": "canary-model", "messages": [{ "role": "user", "content": "canary-prompt" }] });
    assert_eq!(chat(&house, &key, body.to_string()).await.status(), StatusCode::OK);
    assert_eq!(chat(&house, "sk-wrong", body.to_string()).await.status(), StatusCode::UNAUTHORIZED);
    let said = browser.new_chat().await;
    Events::of(browser.say(&said, "message-1", "canary-prompt", false).await).all().await;

    for outside in [house.edge(Method::GET, "/metrics"), browser.request(Method::GET, "/metrics")] {
        assert_eq!(outside.send().await.unwrap().status(), StatusCode::NOT_FOUND);
    }
    let numbers = house.internal(Method::GET, "/metrics").send().await.unwrap();
    assert_eq!(numbers.status(), StatusCode::OK);
    let numbers = numbers.text().await.unwrap();
    // Other tests of this program count too.
    let of = |name: &str| numbers.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    assert!(of("beaver_gateway_requests_total{status=\"200\"}").is_some_and(|n| n >= 1), "{numbers}");
    assert!(of("beaver_gateway_requests_total{status=\"401\"}").is_some_and(|n| n >= 1), "{numbers}");
    assert!(numbers.contains("beaver_answers_total{"), "{numbers}");
    assert!(!numbers.contains("canary") && !numbers.contains(&key), "{numbers}");
}
