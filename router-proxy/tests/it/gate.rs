//! A workspace whose program knows nothing of Beaver: the edge lets its owner in, and nobody else.

mod guarded;

use axum::{Router, body::Body, response::Response, routing::get};
use bytes::Bytes;
use clock::Clock;
use contracts::routes::{Route, RouteState};
use futures_util::StreamExt as _;
use serde_json::json;
use token::{AssertionClaims, Purpose};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{harness::*, websocket};
use guarded::*;

const HTML: &str = "accept: text/html,*/*;q=0.8\r\n";
const WEBSOCKET: &str = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
    sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

#[tokio::test]
async fn nothing_reaches_the_program_without_its_owners_session() {
    let alice = Guarded::new().await;
    let owner = alice.sign_in("sid-1").await;
    let value = owner.trim_end().strip_prefix("cookie: ").unwrap().to_owned();
    let edge_token = alice.house.authz.edge_token(1, ORIGIN);
    for lines in [
        String::new(),
        "cookie: beaver_workspace=garbage\r\n".into(),
        "cookie: beaver_workspace=\r\n".into(),
        format!("cookie: beaver_edge={edge_token}\r\n"),
        format!("cookie: {value}; {value}\r\n"),
        format!("cookie: {value}\r\ncookie: beaver_workspace=tossed\r\n"),
        format!("cookie: x{value}\r\n"),
        "authorization: Bearer key\r\n".into(),
        "x-forwarded-user: alice\r\nremote-user: alice\r\nx-beaver-account: a\r\nx-beaver-internal: 1\r\n".into(),
    ] {
        for path in
            ["/", "/api/auth/login", "/api/x", "/metrics", "/readyz", "/v1/models", "//auth/start", "/auth/other"]
        {
            for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"] {
                let answer = alice.send(method, path, &lines).await;
                assert_eq!(answer.status, 401, "{method} {path} {lines}");
            }
            let answer = alice.get(path, &format!("{HTML}{lines}")).await;
            assert_eq!(answer.status, 303, "{path} {lines}");
            assert!(answer.headers["location"].starts_with("/auth/start?rd=%2F"), "{}", answer.headers["location"]);
        }
        for origin in ["", "origin: http://alice.localhost:8088\r\n"] {
            let request = format!("GET /ws HTTP/1.1\r\nhost: {ALICE}\r\n{WEBSOCKET}{origin}{lines}\r\n");
            let mut client = TcpStream::connect(alice.house.edge).await.unwrap();
            client.write_all(request.as_bytes()).await.unwrap();
            assert!(read_until(&mut client, "\r\n\r\n").await.starts_with("HTTP/1.1 401"), "{lines}");
        }
    }
    // The owner's session at one workspace is nothing at another.
    assert_eq!(alice.house.get("bob.localhost:8088", "/", &owner).await.status, 401);
    assert_eq!(alice.reached(), 0);
    // The control.
    assert_eq!(alice.get("/", &owner).await.status, 200);
    assert_eq!(alice.reached(), 1);
}

#[tokio::test]
async fn the_owner_is_handed_over_and_the_program_is_told_who_it_is() {
    let alice = Guarded::new().await;
    let went = alice.get("/here?a=b", HTML).await;
    assert_eq!((went.status, went.headers["location"].as_str()), (303, "/auth/start?rd=%2Fhere%3Fa%3Db"));
    let (own, code) = alice.code("sid-1").await;
    let entered = alice.finish(&code, &own).await;
    assert_eq!((entered.status, entered.headers["location"].as_str()), (303, "/here?a=b"));
    assert_eq!(
        (entered.headers["cache-control"].as_str(), entered.headers["referrer-policy"].as_str()),
        ("no-store", "no-referrer")
    );
    assert_eq!(entered.cookies["beaver_bind"], "", "the bind cookie is taken away");
    let (session, edge) = (&entered.cookies["beaver_workspace"], &entered.cookies["beaver_edge"]);

    // Whatever says who somebody is comes from the edge alone, however it is spelled.
    let lines = format!(
        "cookie: a=1; beaver_workspace={session}; beaver_edge={edge}; BEAVER_BIND=x; beaver_session=s3cret\r\n\
         cookie: __Host-beaver_workspace=s3cret; b=2\r\nauthorization: Bearer key\r\nX-Forwarded-User: mallory\r\n\
         x_forwarded_user: mallory\r\nx.forwarded.user: mallory\r\nRemote-User: mallory\r\nREMOTE_USER: mallory\r\n\
         X-Remote-User: mallory\r\nx-beaver-account: mallory\r\nX_Beaver-Slug: mallory\r\nx-webauth-user: mallory\r\n\
         x-auth-request-email: mallory\r\nx-forwarded-email: mallory\r\nx-forwarded-preferred-username: mallory\r\n"
    );
    let seen = alice.get("/here", &lines).await.body;
    for line in [
        format!("x-beaver-account: {}\n", account(1)),
        "x-beaver-slug: alice\n".into(),
        "x-forwarded-user: alice\n".into(),
        "remote-user: alice\n".into(),
        "authorization: Bearer key\n".into(),
        "cookie: a=1\n".into(),
        "cookie: b=2\n".into(),
    ] {
        assert!(seen.contains(&line), "{line} is not in {seen}");
    }
    for bad in ["mallory", session, edge.as_str(), "s3cret", "beaver_", "BEAVER_"] {
        assert!(!seen.contains(bad), "{bad} is in {seen}");
    }
    // The same from in front of an instance that does its own signing-in, but nobody is named there.
    alice.house.deploy.change(route("carol", 3, RouteState::Running));
    let _carol = alice.house.instance(3, echo());
    until("carol is there", async || alice.house.get("carol.localhost", "/", "").await.status == 200).await;
    let seen = alice.house.get("carol.localhost", "/", &lines).await.body;
    assert!(!seen.contains("mallory") && !seen.contains("user: ") && !seen.contains("x-beaver"), "{seen}");
    assert!(seen.contains("BEAVER_BIND=x"), "an instance that signs in itself has its own cookies: {seen}");
}

#[tokio::test]
async fn its_paths_are_its_own_but_for_the_four_of_the_way_in_and_out() {
    let alice = Guarded::new().await;
    let owner = alice.sign_in("sid-1").await;
    for path in [
        "/api/auth/login",
        "/metrics",
        "/readyz",
        "/api/provider/test",
        "/auth",
        "/auth/",
        "/auth/start/x",
        "/Auth/start",
    ] {
        let answer = alice.get(path, &owner).await;
        assert!(answer.body.starts_with(&format!("GET {path}\n")), "{path}: {}", answer.body);
    }
    let before = alice.reached();
    for (method, path, status) in [
        ("GET", "/auth/start", 303),
        ("GET", "/auth/finish", 400),
        ("GET", "/auth/signed-out", 200),
        ("GET", "/auth/signout", 405),
        ("POST", "/auth/start", 405),
        ("POST", "/auth/finish?code=x", 405),
        ("HEAD", "/auth/finish?code=x", 405),
        ("POST", "/auth/signout", 403),
        ("GET", "/.well-known/beaver/page.css", 200),
    ] {
        assert_eq!(alice.send(method, path, &owner).await.status, status, "{method} {path}");
    }
    let page = alice.get("/auth/signed-out", &format!("{HTML}accept-language: zh\r\n")).await;
    assert!(page.body.contains("你已退出工作区"), "{}", page.body);
    let page = alice.get("/auth/finish?code=x", HTML).await;
    assert!(
        page.body.contains("This sign-in link no longer works") && page.headers["referrer-policy"] == "no-referrer"
    );
    // What only an instance of ours understands is not asked of it behind its back either.
    for path in ["/api/auth/register", "/api/provider/test", "/api/auth/lo%67in"] {
        assert_eq!(alice.call(1, path, &json!({ "assertion": "x" })).await.status, 404, "{path}");
    }
    assert_eq!(alice.reached(), before);
    // The control: the house may ask it for anything else.
    let health = alice.house.internal_get(&format!("/instances/{}/healthz", id(1)), Some(TOKEN)).await;
    assert!(health.contains("GET /healthz\n"), "{health}");
}

#[tokio::test]
async fn of_fifty_with_the_same_jti_one_wins_and_none_after_a_restart() {
    let alice = Guarded::new().await;
    let (_, bind) = alice.begin().await;
    let claims = alice.claims(&bind);
    let answers = futures_util::future::join_all((0..50).map(|_| alice.log_in(&claims))).await;
    let count = |status| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!((count(200), count(401)), (1, 49));
    let assertion = alice.house.authz.sign(&claims);
    let alice = alice.restarted(vec![guarded("alice", 1)]).await;
    let answer = alice.call(1, "/api/auth/login", &json!({ "assertion": assertion })).await;
    assert_eq!((answer.status, answer.json()["code"].as_str()), (401, Some("assertion_spent")));
    // The control: another one is taken.
    assert_eq!(alice.log_in(&alice.claims(&bind)).await.status, 200);
}

#[tokio::test]
async fn assertions_that_prove_nothing_here_are_refused() {
    let alice = Guarded::new().await;
    let (_, bind) = alice.begin().await;
    let spoiled = |spoil: &dyn Fn(&mut AssertionClaims)| {
        let mut claims = alice.claims(&bind);
        spoil(&mut claims);
        claims
    };
    for (status, claims) in [
        (403, spoiled(&|c| c.sub = account(2).to_string())),
        (401, spoiled(&|c| c.aud = "http://bob.localhost:8088".into())),
        (401, spoiled(&|c| c.iss = ORIGIN.into())),
        (401, spoiled(&|c| (c.iat, c.exp) = (c.iat - 120, c.exp - 120))),
        (401, spoiled(&|c| c.extra.purpose = Purpose::Register)),
        (400, spoiled(&|c| c.extra.bind = None)),
        (400, spoiled(&|c| c.extra.sid = None)),
    ] {
        assert_eq!(alice.log_in(&claims).await.status, status, "{claims:?}");
    }
    let good = alice.house.authz.sign(&alice.claims(&bind));
    for (status, body) in [
        (400, json!({ "assertion": good, "password": "p" })),
        (400, json!({ "assertion": "x".repeat(9000) })),
        (401, json!({ "assertion": alice.house.authz.edge_token(1, ORIGIN) })),
    ] {
        assert_eq!(alice.call(1, "/api/auth/login", &body).await.status, status);
    }
    assert_eq!(
        alice.call(2, "/api/auth/login", &json!({ "assertion": good })).await.status,
        401,
        "another workspace's"
    );
    assert_eq!(alice.call(99, "/api/auth/login", &json!({ "assertion": good })).await.status, 503, "nobody's");
    let unasked = format!("POST /instances/{}/api/auth/login HTTP/1.1\r\nhost: r\r\nconnection: close\r\n\r\n", id(1));
    assert_eq!(Answer::parse(&raw(alice.house.internal, unasked.as_bytes()).await).status, 401, "no service token");
    assert_eq!(alice.reached(), 0);
    assert_eq!(alice.call(1, "/api/auth/login", &json!({ "assertion": good })).await.status, 200, "the control");
}

#[tokio::test]
async fn a_code_opens_once_in_the_browser_that_began_and_its_second_use_ends_what_came_of_it() {
    let alice = Guarded::new().await;
    let bystander = alice.sign_in("sid-2").await;
    let (other, _) = alice.begin().await;
    let (own, code) = alice.code("sid-1").await;
    for cookies in ["", "cookie: beaver_bind=\r\n", &other, &format!("{own}{own}")] {
        let answer = alice.finish(&code, cookies).await;
        assert_eq!((answer.status, answer.json()["code"].as_str()), (400, Some("code_invalid")), "{cookies}");
        assert!(answer.cookies.is_empty());
    }
    let answers = futures_util::future::join_all((0..50).map(|_| alice.finish(&code, &own))).await;
    let entered: Vec<_> = answers.iter().filter(|answer| answer.status == 303).collect();
    assert_eq!(entered.len(), 1);
    let session = format!("cookie: beaver_workspace={}\r\n", entered[0].cookies["beaver_workspace"]);
    assert!(!alice.is_signed_in(&session).await, "what came of the code has ended");
    assert!(alice.is_signed_in(&bystander).await, "and nothing else");
    // A new session at every sign-in: the one that this browser had is over.
    let (own, code) = alice.code("sid-2").await;
    let both = format!("{}; {}", bystander.trim_end(), own.strip_prefix("cookie: ").unwrap());
    assert_eq!(alice.finish(&code, &both).await.status, 303);
    assert!(!alice.is_signed_in(&bystander).await);
}

#[tokio::test]
async fn what_a_neighbours_page_asks_for_is_refused() {
    let alice = Guarded::new().await;
    let owner = alice.sign_in("sid-1").await;
    let before = alice.reached();
    for lines in [
        "",
        "origin: http://bob.localhost:8088\r\n",
        "origin: http://localhost:3081\r\n",
        "origin: null\r\n",
        "origin: http://alice.localhost:8088\r\nsec-fetch-site: same-site\r\n",
    ] {
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            let answer = alice.send(method, "/x", &format!("{owner}{lines}")).await;
            assert_eq!(
                (answer.status, answer.json()["code"].as_str()),
                (403, Some("cross_origin")),
                "{method} {lines}"
            );
        }
        let request = format!("GET /ws HTTP/1.1\r\nhost: {ALICE}\r\n{WEBSOCKET}{owner}{lines}\r\n");
        let mut client = TcpStream::connect(alice.house.edge).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        assert!(read_until(&mut client, "\r\n\r\n").await.starts_with("HTTP/1.1 403"), "{lines}");
    }
    let image = alice.get("/x", &format!("{owner}sec-fetch-site: same-site\r\nsec-fetch-mode: no-cors\r\n")).await;
    assert_eq!(image.status, 403);
    let form = alice.send("POST", "/x", &format!("{owner}{HTML}origin: http://bob.localhost:8088\r\n")).await;
    assert!(form.status == 403 && form.body.contains("<h1>"), "a person reads a page");
    assert_eq!(alice.reached(), before);
    // The control: its own pages may, and people may come from anywhere.
    for lines in [
        "origin: http://alice.localhost:8088\r\n",
        "sec-fetch-site: same-origin\r\n",
        // A form of a page that sends no referrer.
        "origin: null\r\nsec-fetch-site: same-origin\r\n",
    ] {
        assert_eq!(alice.send("POST", "/x", &format!("{owner}{lines}")).await.status, 200, "{lines}");
    }
    let link = format!("{owner}{HTML}sec-fetch-site: cross-site\r\nsec-fetch-mode: navigate\r\n");
    assert_eq!(alice.get("/x", &link).await.status, 200);
}

#[tokio::test]
async fn a_session_ends_from_its_own_pages_and_from_the_portal_and_outlives_the_router() {
    let alice = Guarded::new().await;
    let (one, two, three) = (alice.sign_in("sid-1").await, alice.sign_in("sid-2").await, alice.sign_in("sid-3").await);
    let by_neighbour =
        alice.send("POST", "/auth/signout", &format!("{one}origin: http://bob.localhost:8088\r\n")).await;
    assert_eq!(by_neighbour.status, 403);
    let left = alice.send("POST", "/auth/signout", &format!("{one}origin: {ORIGIN}\r\n")).await;
    assert_eq!((left.status, left.headers["location"].as_str()), (303, "/auth/signed-out"));
    assert!(left.cookies["beaver_workspace"].is_empty() && left.cookies["beaver_edge"].is_empty());
    assert!(!alice.is_signed_in(&one).await);
    assert_eq!(alice.log_out(Some("sid-2")).await.status, 204);
    assert!(!alice.is_signed_in(&two).await && alice.is_signed_in(&three).await);
    let (_, bind) = alice.begin().await;
    let mut late = alice.claims(&bind);
    late.extra.sid = Some("sid-2".into());
    assert_eq!(alice.log_in(&late).await.json()["code"], "session_ended", "what is still on its way from it");

    let alice = alice.restarted(vec![guarded("alice", 1)]).await;
    for (cookie, is) in [(&one, false), (&two, false), (&three, true)] {
        assert_eq!(alice.is_signed_in(cookie).await, is, "{cookie}");
    }
    assert_eq!(alice.log_out(None).await.status, 204);
    assert!(!alice.is_signed_in(&three).await);
}

#[tokio::test]
async fn what_is_open_ends_with_its_session_and_no_other() {
    let stream = async || {
        let pieces = futures_util::stream::once(async { Ok::<_, std::io::Error>(Bytes::from_static(b"begun")) });
        Body::from_stream(pieces.chain(futures_util::stream::pending()))
    };
    let alice = Guarded::with(Router::new().route("/stream", get(stream)).route("/never", get(never))).await;
    let (one, two) = (alice.sign_in("sid-1").await, alice.sign_in("sid-2").await);
    let ask = async |path: &str, lines: &str| {
        let mut client = TcpStream::connect(alice.house.edge).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: {ALICE}\r\n{lines}\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        client
    };
    let (mut streaming, mut of_another) = (ask("/stream", &one).await, ask("/stream", &two).await);
    for client in [&mut streaming, &mut of_another] {
        read_until(client, "begun").await;
    }
    let before = alice.reached();
    let mut waiting = ask("/never", &one).await;
    until("the program has the request", async || alice.reached() > before).await;
    // From here on the program speaks WebSocket.
    websocket::echoing(&alice.house.run(1).join("in/http.sock"));
    let websocket = format!("{WEBSOCKET}origin: {ORIGIN}\r\n");
    let mut open = ask("/ws", &format!("{websocket}{one}")).await;
    let mut open_of_another = ask("/ws", &format!("{websocket}{two}")).await;
    for client in [&mut open, &mut open_of_another] {
        assert!(read_until(client, "\r\n\r\n").await.starts_with("HTTP/1.1 101"));
        client.write_all(b"ping").await.unwrap();
        read_until(client, "ping").await;
    }

    assert_eq!(alice.log_out(Some("sid-1")).await.status, 204);
    assert!(!read_all(&mut streaming).await.contains("0\r\n\r\n"), "broken off, not ended");
    assert!(!read_all(&mut open).await.contains("ping"));
    assert!(read_until(&mut waiting, "session_ended").await.starts_with("HTTP/1.1 401"));
    open_of_another.write_all(b"pong").await.unwrap();
    read_until(&mut open_of_another, "pong").await;
    assert_eq!(alice.log_out(None).await.status, 204);
    read_all(&mut open_of_another).await;
    read_all(&mut of_another).await;
}

#[tokio::test]
async fn a_websocket_in_use_is_use_of_its_session() {
    const HOURS_MS: i64 = 7 * 60 * 60 * 1000;
    let (clock, hands) = Clock::manual(Clock::system().now_ms());
    let alice = Guarded::planned(echo(), Plan { clock: clock.clone(), ..Plan::default() }).await;
    let (speaks, silent) = (alice.sign_in("speaks").await, alice.sign_in("silent").await);
    websocket::echoing(&alice.house.run(1).join("in/http.sock"));
    let open = async |cookie: &str| {
        let mut client = TcpStream::connect(alice.house.edge).await.unwrap();
        let request = format!("GET /ws HTTP/1.1\r\nhost: {ALICE}\r\n{WEBSOCKET}origin: {ORIGIN}\r\n{cookie}\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        assert!(read_until(&mut client, "\r\n\r\n").await.starts_with("HTTP/1.1 101"));
        client
    };
    let (mut speaking, _silent) = (open(&speaks).await, open(&silent).await);
    let kept = alice.house.data.path().join(format!("router/sign-ins/{}.json", id(1)));
    for word in ["one", "two"] {
        // Neither is asked anything for longer than a session lasts unused, in all.
        hands.advance_ms(HOURS_MS);
        speaking.write_all(word.as_bytes()).await.unwrap();
        read_until(&mut speaking, word).await;
        tokio::time::pause();
        tokio::time::advance(std::time::Duration::from_secs(61)).await;
        tokio::time::resume();
        let now = format!("\"seen_at_ms\":{}", clock.now_ms());
        until("its use is written down", async || std::fs::read_to_string(&kept).unwrap().contains(&now)).await;
    }
    let _program = alice.house.instance(1, echo());
    assert!(alice.is_signed_in(&speaks).await);
    assert!(!alice.is_signed_in(&silent).await, "the control");
}

async fn never() {
    std::future::pending().await
}

#[tokio::test]
async fn the_program_sets_its_own_cookies_alone() {
    let program = Router::new().fallback(async || {
        let lines = [
            "own=1; Path=/",
            "mine=1; Domain=alice.localhost",
            "beaver_workspace=x; Path=/",
            "__Host-beaver_workspace=x; Secure; Path=/",
            "BEAVER_BIND=x",
            "beaver_edge=x",
            "beaver_session=x",
            "wide=1; Domain=localhost",
            "wide=1; domain=.LOCALHOST; Path=/",
        ];
        let mut answer = Response::builder().header("x-forwarded-user", "x").header("x-frame-options", "SAMEORIGIN");
        for line in lines {
            answer = answer.header("set-cookie", line);
        }
        answer.body(Body::empty()).unwrap()
    });
    let alice = Guarded::with(program).await;
    let owner = alice.sign_in("sid-1").await;
    let answer = alice.get("/", &owner).await;
    let mut names: Vec<_> = answer.cookies.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["mine", "own"]);
    assert_eq!(answer.headers["x-frame-options"], "SAMEORIGIN", "framing is the program's to say");
    assert!(
        !answer.headers.contains_key("content-security-policy") && !answer.headers.contains_key("x-forwarded-user")
    );
}

#[tokio::test]
async fn what_is_the_matter_is_told_to_the_owner_alone_and_a_workspace_that_is_gone_is_forgotten() {
    let alice = Guarded::with(echo().route("/never", get(never))).await;
    let owner = alice.sign_in("sid-1").await;
    for (state, code) in [
        (RouteState::Stopped, "workspace_stopped"),
        (RouteState::Failed, "workspace_failed"),
        (RouteState::Starting, "workspace_starting"),
    ] {
        alice.house.deploy.change(Route { state, ..guarded("alice", 1) });
        until(code, async || alice.get("/", &owner).await.status == 503).await;
        until(code, async || alice.get("/", &owner).await.json()["code"] == code).await;
        assert_eq!(alice.get("/", HTML).await.status, 303, "{code}");
        assert_eq!(alice.get("/", "").await.json()["code"], "session_ended", "{code}");
        // It can still be ended.
        assert_eq!(alice.log_out(Some("another")).await.status, 204);
    }
    let file = alice.house.data.path().join("router/sign-ins").join(format!("{}.json", id(1)));
    assert!(file.exists());
    // Gone, or another program's that lets people in itself: what ends meanwhile is not heard of here.
    for elsewhere in
        [Route { state: RouteState::Deleted, ..guarded("alice", 1) }, route("alice", 1, RouteState::Running)]
    {
        alice.house.deploy.change(guarded("alice", 1));
        until("it is guarded", async || alice.get("/", "").await.status == 401).await;
        let owner = alice.sign_in("sid-1").await;
        assert!(file.exists() && alice.is_signed_in(&owner).await);
        let before = alice.reached();
        let mut waiting = TcpStream::connect(alice.house.edge).await.unwrap();
        waiting.write_all(format!("GET /never HTTP/1.1\r\nhost: {ALICE}\r\n{owner}\r\n").as_bytes()).await.unwrap();
        until("the program has the request", async || alice.reached() > before).await;
        alice.house.deploy.change(elsewhere);
        until("it is forgotten", async || !file.exists()).await;
        read_until(&mut waiting, "session_ended").await;
        alice.house.deploy.change(guarded("alice", 1));
        until("it is guarded again", async || alice.get("/", "").await.status == 401).await;
        assert!(!alice.is_signed_in(&owner).await);
    }
}

#[tokio::test]
async fn over_https_every_cookie_is_bound_to_this_very_host() {
    const HOST: &str = "alice.localhost";
    const ORIGIN: &str = "https://alice.localhost";
    let https = [
        ("DEPLOY_PUBLIC_SCHEME", "https"),
        ("DEPLOY_PUBLIC_PORT", "443"),
        ("BEAVER_PORTAL_URL", "https://portal.localhost"),
    ];
    let alice = Guarded::on(echo(), https.map(|(key, value)| (key, value.to_owned())).into()).await;
    let asked = async |path: &str, lines: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n{lines}\r\n");
        alice.house.raw(request).await
    };
    let all_bound = |answer: &str, names: &[&str]| {
        let lines: Vec<_> = answer.lines().filter_map(|line| line.strip_prefix("set-cookie: ")).collect();
        assert_eq!(lines.len(), names.len(), "{lines:?}");
        for (line, name) in lines.iter().zip(names) {
            assert!(line.starts_with(&format!("__Host-beaver_{name}=")), "{line}");
            for attribute in ["; Path=/;", "; HttpOnly", "; SameSite=Lax", "; Secure"] {
                assert!(line.contains(attribute) && !line.contains("Domain"), "{line}");
            }
        }
    };
    let begun = asked("/auth/start", "").await;
    all_bound(&begun, &["bind"]);
    let begun = Answer::parse(&begun);
    let bind = begun.headers["location"].split_once("bind=").unwrap().1.split('&').next().unwrap();
    let claims = alice.house.authz.claims(1, ORIGIN, Purpose::Login, Some("sid-1"), Some(bind));
    let edge_token = alice.house.authz.edge_token(1, ORIGIN);
    let body = json!({ "assertion": alice.house.authz.sign(&claims), "edge_token": edge_token });
    let code = alice.call(1, "/api/auth/login", &body).await.json()["code"].as_str().unwrap().to_owned();
    let own = format!("cookie: __Host-beaver_bind={}\r\n", begun.cookies["__Host-beaver_bind"]);
    let plain = own.replace("__Host-", "");
    assert!(asked(&format!("/auth/finish?code={code}"), &plain).await.starts_with("HTTP/1.1 400"), "another name");
    let entered = asked(&format!("/auth/finish?code={code}"), &own).await;
    all_bound(&entered, &["workspace", "bind", "edge"]);
    let session = &Answer::parse(&entered).cookies["__Host-beaver_workspace"];
    // A neighbour can toss a cookie of the name without the prefix, which means nothing here.
    for (lines, status) in [
        (format!("cookie: beaver_workspace={session}\r\n"), "401"),
        (format!("cookie: __Host-beaver_workspace={session}; beaver_workspace=tossed\r\n"), "200"),
    ] {
        let answer = asked("/", &lines).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && !answer.contains("tossed"), "{answer}");
    }
}
