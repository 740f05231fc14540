//! Storage that does not work for a while: whoever asks is told to come back, and nothing half-written stays.

use contracts::ProblemDetails;
use serde_json::{Value, json};
use sqlx::{AnyConnection, Connection, Executor};
use store::{Database, testing::Volume};

use super::harness::*;

/// Room for a few accounts.
const ROOM_KB: u64 = 4 << 10;
/// Everything that a sign-up or a session writes.
const COUNTS: [&str; 6] = [
    "SELECT COUNT(*) FROM accounts",
    "SELECT COUNT(*) FROM slugs",
    "SELECT COUNT(*) FROM sign_ups",
    "SELECT COUNT(*) FROM deliveries",
    "SELECT COUNT(*) FROM sessions",
    "SELECT COUNT(*) FROM goodbyes",
];

async fn counts(authz: &Authz) -> Vec<i64> {
    let mut all = Vec::new();
    for sql in COUNTS {
        all.push(authz.count(sql).await);
    }
    all
}

/// Somebody new, somebody who comes back, and somebody who is there.
async fn asks(authz: &Authz, alice: &Person) -> Vec<(&'static str, Reply)> {
    let (bob, again) = (sign_up("bob"), json!({ "session_token": alice.token }));
    let (registered, signed_in, out) = tokio::join!(
        authz.register(&bob),
        authz.login("alice", PASSWORD, "203.0.113.9"),
        authz.post("/portal/logout", &again),
    );
    vec![("sign up", registered), ("sign in", signed_in), ("sign out", out)]
}

/// Each is answered with 503, a stable code and when to come back, and with nothing of the inside.
async fn refuses(authz: &Authz, alice: &Person) {
    for (what, reply) in asks(authz, alice).await {
        assert_eq!(reply.status, 503, "{what}: {}", reply.text);
        assert!(reply.retry_after().is_some_and(|seconds| seconds > 0), "{what}");
        assert_eq!(reply.json::<ProblemDetails>().code, "unavailable", "{what}");
        for inside in ["sqlite", "SQL", "os error", "database", "/tmp", PASSWORD] {
            assert!(!reply.text.contains(inside), "{what}: {}", reply.text);
        }
    }
}

/// Afterwards everything works, and what was refused can be had.
async fn goes_on(authz: &Authz, alice: &Person) {
    let session: Value = authz.session(&alice.token).await.json();
    assert_eq!(session["slug"], "alice", "the session outlives it");
    for (what, reply) in asks(authz, alice).await {
        assert!(reply.status.is_success(), "{what}: {} {}", reply.status, reply.text);
    }
    assert_eq!(authz.deploy.taken().len(), 2, "both are told of, once");
}

#[tokio::test]
async fn a_full_disk() {
    let Some(volume) = Volume::mount(ROOM_KB) else { return };
    let authz = Authz::on(store::testing::sqlite_in(volume.path(), &crate::MIGRATOR).await).await;
    let alice = authz.person("alice").await;
    let before = counts(&authz).await;
    volume.fill();
    refuses(&authz, &alice).await;
    volume.free();
    assert_eq!(counts(&authz).await, before, "nothing half-written stays");
    goes_on(&authz, &alice).await;
}

#[tokio::test]
async fn a_database_that_is_locked() {
    let authz = Authz::simple().await;
    let alice = authz.person("alice").await;
    let before = counts(&authz).await;
    let Database::Sqlite(path) = authz.store.database() else { panic!("SQLite") };
    let mut other = AnyConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap();
    other.execute("BEGIN EXCLUSIVE").await.unwrap();
    refuses(&authz, &alice).await;
    other.execute("ROLLBACK").await.unwrap();
    assert_eq!(counts(&authz).await, before, "nothing half-written stays");
    goes_on(&authz, &alice).await;
}
