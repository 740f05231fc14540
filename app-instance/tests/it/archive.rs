//! A snapshot while it is used, and data that came from an archive.

use contracts::instance::{FROM_ARCHIVE, SNAPSHOT};
use http::{Method, StatusCode};
use serde_json::json;
use token::Purpose;

use crate::house::House;

async fn register(house: &House) -> StatusCode {
    let body = json!({ "assertion": house.authz.assertion(Purpose::Register, "sid", None) });
    house.internal(Method::POST, "/api/auth/register").json(&body).send().await.unwrap().status()
}

#[tokio::test]
async fn what_was_said_comes_along_in_a_snapshot_and_nothing_that_lets_anybody_in() {
    let mut house = House::build().await;
    house.start().await;
    register(&house).await;
    let browser = house.sign_in().await;
    let chat = browser.new_chat().await;
    let key = browser.new_key().await;
    for _ in 0..2 {
        let answer = house.internal(Method::POST, "/api/auth/snapshot").send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    }
    assert_eq!(house.edge(Method::POST, "/api/auth/snapshot").send().await.unwrap().status(), StatusCode::NOT_FOUND);
    // After the snapshot: not in it.
    let later = browser.new_chat().await;
    let session = browser.session.clone();
    house.stop().await;
    for name in ["instance.db", "instance.db-wal", "instance.db-shm", "identity.key"] {
        let _ = std::fs::remove_file(house.path(&format!("data/{name}")));
    }
    std::fs::rename(house.path(&format!("data/{SNAPSHOT}")), house.path("data/instance.db")).unwrap();
    std::fs::write(house.path(&format!("data/{FROM_ARCHIVE}")), "").unwrap();
    house.authz.revoke("another-token");
    let registration = json!({ "initial_access_token": "another-token", "expires_at_ms": 1 });
    std::fs::write(house.path("config/registration.json"), registration.to_string()).unwrap();
    house.start().await;
    assert!(!house.path(&format!("data/{FROM_ARCHIVE}")).exists());
    let ready: serde_json::Value = house.internal(Method::GET, "/readyz").send().await.unwrap().json().await.unwrap();
    assert_eq!(ready["registered"], false);
    let cookie = format!("beaver_workspace={session}");
    let asked = house.edge(Method::GET, "/api/chats").header("cookie", cookie).send().await.unwrap();
    assert_eq!(asked.status(), StatusCode::UNAUTHORIZED);
    let asked = house.edge(Method::GET, "/v1/models").bearer_auth(&key).send().await.unwrap();
    assert_eq!(asked.status(), StatusCode::UNAUTHORIZED);
    assert_eq!((register(&house).await, house.authz.registrations()), (StatusCode::OK, 2));

    let browser = house.sign_in().await;
    let chats = browser.get("/api/chats").await;
    let ids: Vec<_> = chats["chats"].as_array().unwrap().iter().filter_map(|chat| chat["id"].as_str()).collect();
    assert!(ids.contains(&chat.as_str()) && !ids.contains(&later.as_str()), "{chats}");
}
