//! Very many people at once: they stand in line rather than being refused, and the line has an end.

use std::time::Duration;

use futures_util::future::join_all;
use http::{Method, StatusCode};
use serde_json::json;
use service::{ServiceClient, Shutdown};

use super::harness::*;
use crate::{deliveries::Delivery, outbox::send_due, password::Purpose};

/// Signs the i-th of them up, each from an address of their own.
async fn person(authz: &Authz, i: usize) -> Reply {
    let mut body = sign_up(&format!("person-{i}"));
    body["browser"]["address"] = json!(format!("198.18.{}.{}", i / 250, i % 250));
    authz.register_with(&format!("the-only-key-of-person-{i}"), &body).await
}

async fn count(authz: &Authz, table: &str) -> i64 {
    let sql = sqlx::AssertSqlSafe(format!("SELECT COUNT(*) FROM {table}"));
    sqlx::query_scalar(sql).fetch_one(authz.store.pool()).await.unwrap()
}

async fn until(holds: impl Fn() -> bool) {
    let holding = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), holding).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_five_hundred_who_sign_up_at_once_nobody_is_refused() {
    let authz = Authz::simple().await;
    for reply in join_all((0..500).map(|i| person(&authz, i))).await {
        assert_eq!(reply.status, StatusCode::CREATED, "{}", reply.text);
    }
    assert_eq!((count(&authz, "accounts").await, authz.deploy.taken().len()), (500, 500));
}

#[tokio::test]
async fn whoever_finds_the_line_full_is_told_when_to_come_back_and_nobody_is_lost() {
    for authz in everywhere().await {
        let passwords = &authz.app.passwords;
        let (held, places) = (passwords.hold(Purpose::SignUp).await, passwords.places(Purpose::SignUp));
        let room = passwords.room(Purpose::SignUp);
        // Ten more than there are places stand in line, and ten find it full.
        let (first, all) = (places + 10, places + 20);
        authz.deploy.fail_with(503);
        let turned_away = async {
            until(|| passwords.room(Purpose::SignUp) == room - 10).await;
            let in_line = passwords.fill(Purpose::SignUp);
            for reply in join_all((first..all).map(|i| person(&authz, i))).await {
                assert_eq!(reply.problem(), (503, "busy".into()), "{}", authz.name());
                assert_eq!(reply.retry_after(), Some(2), "{}", authz.name());
            }
            for made in ["accounts", "slugs", "sign_ups", "sessions", "devices", "deliveries"] {
                assert_eq!(count(&authz, made).await, 0, "{}: {made}", authz.name());
            }
            // That they tried, and nothing of the accounts that an address may make.
            assert_eq!(count(&authz, "sign_ups_by_address").await, i64::try_from(all).unwrap());
            drop((held, in_line));
        };
        let (admitted, ()) = tokio::join!(join_all((0..first).map(|i| person(&authz, i))), turned_away);
        for reply in admitted {
            assert_eq!(reply.status, StatusCode::CREATED, "{}: {}", authz.name(), reply.text);
        }
        let made = i64::try_from(first).unwrap();
        assert_eq!((count(&authz, "accounts").await, count(&authz, "deliveries").await), (made, made));
        authz.deploy.fail_with(0);
        for reply in join_all((first..all).map(|i| person(&authz, i))).await {
            assert_eq!(reply.status, StatusCode::CREATED, "{}: {}", authz.name(), reply.text);
        }
        let delivered = async {
            while count(&authz, "deliveries").await > 0 {
                authz.hand.advance_ms(60_000);
                send_due::<Delivery>(&authz.app).await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(30), delivered).await.unwrap();
        assert_eq!(authz.deploy.taken().len(), all, "{}: each has an instance, and one", authz.name());
    }
}

#[tokio::test]
async fn a_caller_who_hangs_up_leaves_the_line() {
    let authz = Authz::simple().await;
    let (listener, stop) = (tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap(), Shutdown::new());
    let base = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let server = tokio::spawn(service::serve(listener, authz.app.router(), stop.clone()));
    let client = ServiceClient::new("authz", base, INTERNAL_TOKEN.into());
    let passwords = &authz.app.passwords;
    let (held, places) = (passwords.hold(Purpose::SignUp).await, passwords.places(Purpose::SignUp));
    let room = passwords.room(Purpose::SignUp);
    let calls: Vec<_> = (0..places + 1)
        .map(|i| {
            let request = client.request(Method::POST, "/portal/register").json(&sign_up(&format!("person-{i}")));
            let request = request.header("idempotency-key", format!("the-only-key-of-person-{i}"));
            let client = client.clone();
            tokio::spawn(async move { client.send(request).await.map(drop) })
        })
        .collect();
    until(|| passwords.room(Purpose::SignUp) == room - 1).await;
    for call in calls {
        call.abort();
    }
    until(|| passwords.room(Purpose::SignUp) == room && passwords.places(Purpose::SignUp) == places).await;
    drop(held);
    authz.person("alice").await;
    assert_eq!(count(&authz, "accounts").await, 1, "nothing came of the others");
    stop.cancel();
    server.await.unwrap().unwrap();
}

#[tokio::test]
async fn whoever_leaves_the_line_of_sign_ins_has_not_guessed() {
    for authz in everywhere().await {
        let passwords = &authz.app.passwords;
        let (held, places) = (passwords.hold(Purpose::SignIn).await, passwords.places(Purpose::SignIn));
        let room = passwords.room(Purpose::SignIn);
        let others = (0..places).map(|i| {
            let (name, address) = (format!("nobody-{i}"), format!("198.18.0.{i}"));
            let authz = &authz;
            async move { authz.login(&name, PASSWORD, &address).await }
        });
        let leaves = async {
            until(|| passwords.places(Purpose::SignIn) == 0).await;
            for _ in 0..10 {
                tokio::select! {
                    reply = authz.login("alice", PASSWORD, "192.0.2.1") => panic!("{}", reply.text),
                    () = until(|| passwords.room(Purpose::SignIn) == room - 1) => {}
                }
            }
            drop(held);
        };
        for reply in tokio::join!(join_all(others), leaves).0 {
            assert_eq!(reply.problem(), (401, "bad_credentials".into()), "{}", authz.name());
        }
        authz.person("alice").await;
        assert_eq!(authz.login("alice", PASSWORD, "192.0.2.1").await.status, StatusCode::OK, "{}", authz.name());

        // And whoever has to wait for having guessed too often does not stand there.
        for _ in 0..5 {
            authz.login("alice", "a wrong pass phrase", "192.0.2.1").await;
        }
        let in_line = passwords.fill(Purpose::SignIn);
        let reply = authz.login("alice", PASSWORD, "192.0.2.1").await;
        assert_eq!(reply.problem(), (429, "too_many_attempts".into()), "{}", authz.name());
        drop(in_line);
    }
}
