//! Data to which something happened while the instance was down: a later release ran on it, or it was deleted and that was
//! taken back.

use std::borrow::Cow;

use contracts::instance::{FROM_ARCHIVE, REVOKED, SNAPSHOT};
use http::{Method, StatusCode};
use serde_json::json;
use sqlx::{
    SqlSafeStr,
    migrate::{Migration, MigrationType, Migrator},
};
use store::{Database, Store};

use crate::house::{Browser, Events, House};

/// Opens the data as a later release does, whose migrations have added something.
async fn open_later(house: &House) -> Store {
    let sql = "ALTER TABLE chats ADD COLUMN pinned BIGINT NOT NULL DEFAULT 0; CREATE TABLE later (id TEXT PRIMARY KEY)";
    let (number, kind) = (9_999, MigrationType::Simple);
    let migration = Migration::new(number, Cow::Borrowed("later"), kind, sql.into_sql_str(), false);
    let mut later = Migrator::with_migrations(vec![migration]);
    // Those before it are this release's own.
    later.set_ignore_missing(true);
    Store::open(&Database::Sqlite(house.path("data/instance.db")), &later).await.unwrap()
}

async fn models(house: &House, key: &str) -> StatusCode {
    house.edge(Method::GET, "/v1/models").bearer_auth(key).send().await.unwrap().status()
}

async fn wake_keys(house: &House) -> usize {
    let answer = house.internal(Method::GET, "/api/activity").send().await.unwrap();
    answer.json::<serde_json::Value>().await.unwrap()["wake_keys"].as_array().unwrap().len()
}

#[tokio::test]
async fn data_on_which_a_later_release_ran_is_used_and_left_as_that_release_needs_it() {
    let mut house = House::with_model("odd").await;
    let (session, chat, key) = {
        let browser = house.sign_in().await;
        (browser.session.clone(), browser.new_chat().await, browser.new_key().await)
    };
    house.stop().await;
    let later = open_later(&house).await;
    sqlx::query("UPDATE chats SET pinned = 1").execute(later.pool()).await.unwrap();
    later.close().await;

    house.start().await;
    let browser = Browser::with(&house, &session);
    assert!(browser.signed_in().await);
    assert_eq!(models(&house, &key).await, StatusCode::OK);
    let said = Events::of(browser.say(&chat, "message-1", "hello", false).await).all().await;
    assert_eq!(said.last().unwrap().0, "done");
    let new = browser.new_chat().await;
    let answer = house.internal(Method::POST, "/api/auth/snapshot").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    house.stop().await;

    // An archive of it has the later release's tables as well.
    for name in ["instance.db", "instance.db-wal", "instance.db-shm"] {
        let _ = std::fs::remove_file(house.path(&format!("data/{name}")));
    }
    std::fs::rename(house.path(&format!("data/{SNAPSHOT}")), house.path("data/instance.db")).unwrap();
    std::fs::write(house.path(&format!("data/{FROM_ARCHIVE}")), "").unwrap();
    house.start().await;
    let read = house.sign_in().await.get(&format!("/api/chats/{chat}")).await;
    assert_eq!(read["messages"].as_array().unwrap().len(), 2, "{read}");
    house.stop().await;

    let later = open_later(&house).await;
    let query = sqlx::query_as::<_, (String, i64)>("SELECT id, pinned FROM chats ORDER BY pinned DESC");
    assert_eq!(query.fetch_all(later.pool()).await.unwrap(), [(chat, 1), (new, 0)]);
    later.close().await;
}

#[tokio::test]
async fn after_a_deletion_that_was_taken_back_no_key_and_no_session_holds_and_new_ones_stay() {
    let mut house = House::with_model("odd").await;
    let (session, chat, keys) = {
        let browser = house.sign_in().await;
        let keys = [browser.new_key().await, browser.new_key().await];
        (browser.session.clone(), browser.new_chat().await, keys)
    };
    // The control: a start alone takes nothing away.
    house.stop().await;
    house.start().await;
    assert!(Browser::with(&house, &session).signed_in().await);
    assert_eq!((models(&house, &keys[0]).await, models(&house, &keys[1]).await), (StatusCode::OK, StatusCode::OK));
    assert_eq!(wake_keys(&house).await, 2);
    // Handed over before, and not used until after.
    let (secret, bind) = house.begin().await;
    let code = house.code(&bind).await;

    house.stop().await;
    let mark = house.path(&format!("data/{REVOKED}"));
    std::fs::write(&mark, "").unwrap();
    house.start().await;
    assert!(!mark.exists());
    let refused = [models(&house, &keys[0]).await, models(&house, &keys[1]).await];
    assert_eq!(refused, [StatusCode::UNAUTHORIZED; 2]);
    assert!(!Browser::with(&house, &session).signed_in().await);
    let finished = house.finish(&code, &format!("beaver_bind={secret}")).await;
    assert_eq!(finished.status(), StatusCode::BAD_REQUEST);
    assert_eq!(wake_keys(&house).await, 0, "what is revoked wakes nobody");

    let (new_session, new_key) = {
        let browser = house.sign_in().await;
        let chats = browser.get("/api/chats").await;
        assert_eq!(chats["chats"][0]["id"], json!(chat), "what was said stays");
        (browser.session.clone(), browser.new_key().await)
    };
    house.stop().await;
    house.start().await;
    assert!(Browser::with(&house, &new_session).signed_in().await);
    assert_eq!(
        (models(&house, &new_key).await, models(&house, &keys[0]).await),
        (StatusCode::OK, StatusCode::UNAUTHORIZED)
    );
    assert!(!Browser::with(&house, &session).signed_in().await);
}
