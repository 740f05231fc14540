//! Instances that sleep: who wakes them, who waits for that and for how long, and what counts as using one.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes},
    response::IntoResponse,
    routing::get,
};
use contracts::{
    activity::{Activity, ActivityList},
    deploy::WakeReason,
    routes::{Route, RouteState},
};
use futures_util::future::join_all;
use router_proxy::wakes::Limits;
use tokio::{io::AsyncWriteExt, net::TcpStream, sync::mpsc};

use crate::{harness::*, websocket};

const HTML: &str = "accept: text/html,*/*;q=0.8\r\n";
const KEY: &str = "sk-0123456789abcdefghijklmnopqrstuvwxyzABCDEFG";
const PATIENT: Limits = Limits { program: PATIENCE, page: PATIENCE, each: 64, all: 2048 };

/// A workspace of alice's in this state, to which one key belongs.
fn alice(state: RouteState) -> Route {
    let wake_keys = match state {
        RouteState::Running => Vec::new(),
        _ => vec![sign_in::fingerprint(KEY)],
    };
    Route { wake_keys, ..route("alice", 1, state) }
}

async fn house(state: RouteState, hold: Limits) -> House {
    let house = House::with(Plan { routes: vec![alice(state)], hold, ..Plan::default() }).await;
    // The keys are there, so that owners are known at once.
    until("the keys are on disk", async || house.data.path().join("router/jwks.json").exists()).await;
    house
}

fn cookie(house: &House, n: u128) -> String {
    format!("cookie: beaver_edge={}\r\n", house.authz.edge_token(n, "http://alice.localhost:8088"))
}

fn woken(house: &House) -> Vec<WakeReason> {
    house.deploy.woken.lock().unwrap().iter().map(|(_, why)| *why).collect()
}

async fn activity(house: &House) -> Activity {
    let answer = Answer::parse(&house.internal_get(&format!("/activity/{}", id(1)), Some(TOKEN)).await);
    assert_eq!(answer.status, 200, "{}", answer.body);
    serde_json::from_str(&answer.body).unwrap()
}

#[tokio::test]
async fn its_owner_wakes_it_once_however_many_requests_come_and_each_is_answered() {
    for (state, through) in
        [(RouteState::Paused, &[][..]), (RouteState::Asleep, &[RouteState::Starting, RouteState::Starting])]
    {
        let house = house(state, PATIENT).await;
        let _instance = house.instance(1, echo());
        let owner = cookie(&house, 1);
        let key = format!("authorization: Bearer {KEY}\r\n");
        let post = format!(
            "POST /x HTTP/1.1\r\nhost: alice.localhost\r\nconnection: close\r\n{owner}content-length: 5\r\n\r\nhello"
        );
        let asking = async {
            let programs = join_all((0..10).map(|n| {
                let (house, lines) = (&house, if n % 2 == 0 { &owner } else { &key });
                async move { house.get("alice.localhost", "/v1/models", lines).await }
            }));
            let page = format!("{HTML}{owner}");
            let (programs, page, posted) =
                tokio::join!(programs, house.get("alice.localhost", "/", &page), house.raw(&post));
            assert!(programs.iter().all(|answer| answer.status == 200), "{programs:?}");
            assert!(page.status == 200 && page.body.starts_with("GET /\n"), "{page:?}");
            assert!(posted.ends_with("\n\nhello"), "its body has waited too: {posted}");
        };
        let waking = async {
            until("all wait", async || {
                let metrics = house.internal_get("/metrics", None).await;
                metrics.contains("router_held_requests 12") || woken(&house).len() == 1
            })
            .await;
            for state in through {
                house.deploy.change(alice(*state));
            }
            house.deploy.change(alice(RouteState::Running));
        };
        tokio::join!(asking, waking);
        assert_eq!(woken(&house).len(), 1, "{state:?}");
        assert!(matches!(woken(&house)[0], WakeReason::Visit | WakeReason::Api));
    }
}

#[tokio::test]
async fn strangers_learn_nothing_and_wake_nobody() {
    let house = house(RouteState::Asleep, PATIENT).await;
    let other_key = format!("sk-{}", "x".repeat(43));
    for (path, lines) in [
        ("/", String::new()),
        ("/", HTML.to_owned()),
        ("/", cookie(&house, 77)),
        ("/", format!("{HTML}cookie: beaver_edge=garbage\r\n")),
        ("/", "cookie: beaver_workspace=whatever; beaver_session=x\r\n".into()),
        ("/v1/models", format!("authorization: Bearer {other_key}\r\n")),
        ("/v1/models", format!("x-api-key: {other_key}\r\n")),
        // The fingerprint is not the key, and the key opens the gateway alone.
        ("/v1/models", format!("x-api-key: {}\r\n", sign_in::fingerprint(KEY))),
        ("/", format!("authorization: Bearer {KEY}\r\n")),
        ("/v1/models", format!("authorization: Bearer {KEY}\r\nauthorization: Bearer {other_key}\r\n")),
    ] {
        let answer = house.get("alice.localhost", path, &lines).await;
        assert_eq!((answer.status, answer.headers["retry-after"].as_str()), (503, "10"), "{path} {lines}");
        assert!(answer.body.contains("workspace_unavailable"), "{lines}: {}", answer.body);
        assert_eq!(house.get("alice.localhost", "/.well-known/beaver/ready", &lines).await.status, 404, "{lines}");
    }
    assert_eq!(woken(&house), []);
    // The control: each of these wakes it.
    for (lines, why) in [(format!("x-api-key: {KEY}\r\n"), WakeReason::Api), (cookie(&house, 1), WakeReason::Visit)] {
        house.deploy.answers.add_permits(1);
        let before = woken(&house).len();
        let asked = house.get("alice.localhost", "/v1/models", &lines);
        let up = async {
            until("it is woken", async || woken(&house).len() > before).await;
            house.deploy.change(alice(RouteState::Failed));
        };
        assert_eq!(tokio::join!(asked, up).0.status, 503);
        assert_eq!(woken(&house)[before], why);
        house.deploy.change(alice(RouteState::Asleep));
        until("it sleeps again", async || activity(&house).await.state == RouteState::Asleep).await;
    }
}

#[tokio::test]
async fn a_browser_gets_a_page_that_goes_on_by_itself_and_a_program_a_time_to_try_again() {
    let short = Duration::from_millis(30);
    let house = house(RouteState::Asleep, Limits { program: short, page: short, ..PATIENT }).await;
    let owner = cookie(&house, 1);
    let page = house.get("alice.localhost", "/chat", &format!("{HTML}{owner}")).await;
    assert_eq!(page.status, 503);
    assert!(page.body.contains("Your workspace is starting") && page.body.contains("wait.js"), "{}", page.body);
    let ready = house.get("alice.localhost", "/.well-known/beaver/ready", &owner).await;
    assert_eq!(ready.json()["waiting"], true);
    let program = house.get("alice.localhost", "/v1/models", &format!("x-api-key: {KEY}\r\n")).await;
    assert_eq!((program.status, program.headers["retry-after"].as_str()), (503, "3"));
    assert_eq!(program.json()["error"]["code"], "workspace_starting");
    assert_eq!(woken(&house), [WakeReason::Visit], "asked once, and still on its way");
    house.deploy.change(alice(RouteState::Running));
    let _instance = house.instance(1, echo());
    until("the page goes on", async || {
        house.get("alice.localhost", "/.well-known/beaver/ready", &owner).await.json()["waiting"] == false
    })
    .await;
    assert_eq!(house.get("alice.localhost", "/chat", &format!("{HTML}{owner}")).await.status, 200);
}

#[tokio::test]
async fn no_more_wait_than_may() {
    let house = house(RouteState::Asleep, Limits { each: 2, ..PATIENT }).await;
    let _instance = house.instance(1, echo());
    let lines = format!("x-api-key: {KEY}\r\n");
    let refused = async {
        until("two wait, and a third is sent away", async || {
            let metrics = house.internal_get("/metrics", None).await;
            metrics.contains("router_held_refused_total")
        })
        .await;
        house.deploy.change(alice(RouteState::Running));
    };
    let asking = join_all((0..6).map(|_| house.get("alice.localhost", "/v1/models", &lines)));
    let (answers, ()) = tokio::join!(asking, refused);
    let answered = answers.iter().filter(|answer| answer.status == 200).count();
    assert_eq!((answered, answers.iter().filter(|answer| answer.status == 503).count()), (2, 4));
}

#[tokio::test]
async fn what_becomes_of_it_is_told_to_who_waits_and_what_is_down_is_not_woken() {
    let house = house(RouteState::Asleep, PATIENT).await;
    let owner = cookie(&house, 1);
    for (state, code) in [(RouteState::Failed, "workspace_failed"), (RouteState::Stopped, "workspace_stopped")] {
        house.deploy.change(alice(RouteState::Asleep));
        until("it sleeps", async || activity(&house).await.state == RouteState::Asleep).await;
        let before = woken(&house).len();
        house.deploy.answers.add_permits(1);
        let becoming = async {
            until("it is woken", async || woken(&house).len() > before).await;
            house.deploy.change(alice(state));
        };
        let (told, ()) = tokio::join!(house.get("alice.localhost", "/", &owner), becoming);
        assert_eq!(told.json()["code"], code);
        // From now on it is down, and nobody's visit changes that.
        let before = woken(&house).len();
        assert_eq!(house.get("alice.localhost", "/", &owner).await.json()["code"], code);
        let key = house.get("alice.localhost", "/v1/models", &format!("x-api-key: {KEY}\r\n")).await;
        assert_eq!((key.status, woken(&house).len()), (503, before));
    }
}

#[tokio::test]
async fn streams_and_websockets_are_under_way_until_they_end() {
    let house = house(RouteState::Running, PATIENT).await;
    let (to, mut from) = mpsc::unbounded_channel::<Bytes>();
    let body = Body::from_stream(futures_util::stream::poll_fn(move |cx| {
        from.poll_recv(cx).map(|b| b.map(std::io::Result::Ok))
    }));
    let body = Arc::new(Mutex::new(Some(body)));
    let app = Router::new().route("/stream", get(move || std::future::ready(body.lock().unwrap().take().unwrap())));
    let instance = house.instance(1, app);
    assert_eq!(activity(&house).await.in_flight, 0);
    let mut reader = TcpStream::connect(house.edge).await.unwrap();
    reader.write_all(b"GET /stream HTTP/1.1\r\nhost: alice.localhost\r\nconnection: close\r\n\r\n").await.unwrap();
    to.send(Bytes::from_static(b"first")).unwrap();
    read_until(&mut reader, "first").await;
    assert_eq!(activity(&house).await.in_flight, 1);
    to.send(Bytes::from_static(b"last")).unwrap();
    drop(to);
    assert!(read_all(&mut reader).await.contains("last"));
    until("it has ended", async || activity(&house).await.in_flight == 0).await;
    drop(instance);

    websocket::echoing(&house.run(1).join("in/http.sock"));
    let mut client = TcpStream::connect(house.edge).await.unwrap();
    client.write_all(websocket::UPGRADE.as_bytes()).await.unwrap();
    read_until(&mut client, "\r\n\r\n").await;
    assert_eq!(activity(&house).await.in_flight, 1);
    drop(client);
    until("it has ended", async || activity(&house).await.in_flight == 0).await;
    let all = Answer::parse(&house.internal_get("/activity", Some(TOKEN)).await);
    let all: ActivityList = serde_json::from_str(&all.body).unwrap();
    assert_eq!((all.instances.len(), all.instances[0].instance_id), (1, id(1)));
    assert_eq!(Answer::parse(&house.internal_get("/activity", None).await).status, 401);
}

#[tokio::test]
async fn what_is_under_way_with_one_that_is_gone_for_good_ends_at_once() {
    let house = house(RouteState::Running, PATIENT).await;
    let never = Router::new()
        .route("/stream", get(async || Body::from_stream(futures_util::stream::pending::<std::io::Result<Bytes>>())))
        .route("/silent", get(std::future::pending::<()>));
    let _instance = house.instance(1, never);
    let ask = async |path: &str| {
        let mut client = TcpStream::connect(house.edge).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: alice.localhost\r\nconnection: close\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        client
    };
    let (mut stream, mut silent) = (ask("/stream").await, ask("/silent").await);
    read_until(&mut stream, "\r\n\r\n").await;
    until("both are under way", async || activity(&house).await.in_flight == 2).await;
    house.deploy.change(route("alice", 1, RouteState::Deleted));
    read_all(&mut stream).await;
    let answer = read_all(&mut silent).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "what a stranger hears: {answer}");

    let house = self::house(RouteState::Running, PATIENT).await;
    websocket::echoing(&house.run(1).join("in/http.sock"));
    let mut client = TcpStream::connect(house.edge).await.unwrap();
    client.write_all(websocket::UPGRADE.as_bytes()).await.unwrap();
    read_until(&mut client, "\r\n\r\n").await;
    house.deploy.change(route("alice", 1, RouteState::Deleted));
    read_all(&mut client).await;
}

#[tokio::test]
async fn its_owner_uses_it_and_a_stranger_does_not() {
    let house = house(RouteState::Running, PATIENT).await;
    let key = axum::middleware::from_fn(async |request: axum::extract::Request, next: axum::middleware::Next| {
        let good = request.headers().get("x-api-key").is_none_or(|key| key == KEY);
        if good { next.run(request).await } else { http::StatusCode::UNAUTHORIZED.into_response() }
    });
    let _instance = house.instance(1, echo().layer(key));
    let (owner, stranger) = (cookie(&house, 1), cookie(&house, 77));
    let long = Duration::from_millis(60);
    let idle_for_long =
        async || until("it lies idle", async || activity(&house).await.idle_ms >= long.as_millis() as u64).await;
    for (path, lines, is_use) in [
        ("/", stranger, false),
        ("/", String::new(), false),
        ("/v1/models", "x-api-key: sk-wrong\r\n".to_owned(), false),
        ("/", owner, true),
        ("/v1/models", format!("x-api-key: {KEY}\r\n"), true),
    ] {
        idle_for_long().await;
        let before = activity(&house).await.idle_ms;
        let begun = Instant::now();
        house.get("alice.localhost", path, &lines).await;
        let idle = activity(&house).await.idle_ms;
        if is_use {
            assert!(idle <= begun.elapsed().as_millis() as u64, "{lines}: {idle}");
        } else {
            assert!(idle >= before, "{lines}: {idle} after {before}");
        }
    }
    // A fresh one has just been used, whatever was before.
    house.deploy.change(alice(RouteState::Starting));
    idle_for_long().await;
    until("it starts", async || activity(&house).await.state == RouteState::Starting).await;
    let begun = Instant::now();
    house.deploy.change(alice(RouteState::Running));
    until("it runs", async || activity(&house).await.state == RouteState::Running).await;
    assert!(activity(&house).await.idle_ms <= begun.elapsed().as_millis() as u64);
}

#[tokio::test]
async fn the_house_lets_it_sleep_but_for_its_owner_s_sake() {
    let house = house(RouteState::Paused, PATIENT).await;
    let ask = async |path: &str| {
        Answer::parse(&house.internal_get(&format!("/instances/{}{path}", id(1)), Some(TOKEN)).await)
    };
    for path in ["/readyz", "/healthz", "/metrics", "/api/activity", "/"] {
        let answer = ask(path).await;
        assert_eq!((answer.status, answer.json()["code"].as_str()), (503, Some("instance_asleep")), "{path}");
    }
    assert_eq!(woken(&house), []);
    for (path, why) in [
        ("/api/auth/login", WakeReason::Portal),
        ("/api/provider/test", WakeReason::Portal),
        ("/api/auth/logout", WakeReason::Service),
    ] {
        house.deploy.change(alice(RouteState::Paused));
        until("it sleeps", async || activity(&house).await.state == RouteState::Paused).await;
        let _instance = house.instance(1, echo());
        house.deploy.answers.add_permits(1);
        let before = woken(&house).len();
        let up = async {
            until("it is woken", async || woken(&house).len() > before).await;
            house.deploy.change(alice(RouteState::Running));
        };
        let (answer, ()) = tokio::join!(ask(path), up);
        assert_eq!((answer.status, woken(&house)[before]), (200, why), "{path}");
    }
}

#[tokio::test]
async fn what_was_passed_on_before_the_router_heard_that_it_sleeps_wakes_it() {
    let house = house(RouteState::Running, PATIENT).await;
    let never = Router::new().fallback(async || std::future::pending::<&str>().await);
    let _instance = house.instance(1, never);
    let mut client = TcpStream::connect(house.edge).await.unwrap();
    // A stranger's, even: it is under way.
    client.write_all(b"GET / HTTP/1.1\r\nhost: alice.localhost\r\n\r\n").await.unwrap();
    until("it is under way", async || activity(&house).await.in_flight == 1).await;
    assert_eq!(woken(&house), []);
    house.deploy.change(alice(RouteState::Paused));
    until("it is woken", async || woken(&house) == [WakeReason::Visit]).await;
}

#[tokio::test]
async fn a_program_in_a_browser_may_ask_before_it_shows_its_key() {
    let house = house(RouteState::Asleep, PATIENT).await;
    let preflight = "origin: https://elsewhere.example\r\naccess-control-request-method: POST\r\n\
        access-control-request-headers: authorization\r\n";
    let ask = |path: &str| {
        format!("OPTIONS {path} HTTP/1.1\r\nhost: alice.localhost\r\nconnection: close\r\n{preflight}\r\n")
    };
    let answer = Answer::parse(&house.raw(ask("/v1/chat/completions")).await);
    assert_eq!((answer.status, answer.headers["access-control-allow-headers"].as_str()), (204, "authorization"));
    assert_eq!(answer.headers["access-control-allow-origin"], "*");
    assert_eq!(Answer::parse(&house.raw(ask("/api/chats")).await).status, 503, "nowhere else");
    assert_eq!(woken(&house), []);
}
