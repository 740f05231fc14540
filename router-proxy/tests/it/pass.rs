//! What passes the edge, and how.

use std::{convert::Infallible, os::unix::fs::symlink, sync::Arc};

use axum::{Router, body::Body, response::Response, routing::get};
use bytes::Bytes;
use contracts::routes::RouteState;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpStream, UnixStream},
    sync::{Mutex, mpsc},
};

use crate::harness::*;

const ALICE: &str = "alice.localhost:8088";

#[tokio::test]
async fn a_request_reaches_the_instance_that_its_host_names() {
    let routes = vec![route("alice", 1, RouteState::Running), route("bob", 2, RouteState::Running)];
    let house = House::with(Plan { routes, ..Plan::default() }).await;
    let _alice = house.instance(1, Router::new().fallback(async || "alice"));
    let _bob = house.instance(2, Router::new().fallback(async || "bob"));
    for (host, expected) in [(ALICE, "alice"), ("BOB.LocalHost", "bob"), ("bob.localhost:1", "bob")] {
        assert_eq!(house.get(host, "/", "").await.body, expected, "{host}");
    }
    for host in
        ["carol.localhost", "localhost", "127.0.0.1", "alice.localhost.", "x.alice.localhost", "alice.example.com"]
    {
        let answer = house.get(host, "/", "").await;
        assert_eq!((answer.status, answer.json()["code"].as_str()), (404, Some("no_such_address")), "{host}");
    }
    assert_eq!(house.get("127.0.0.1", "/healthz", "").await.status, 200);
}

#[tokio::test]
async fn the_instance_sees_the_raw_path_and_only_what_it_may() {
    let house = House::new().await;
    let _alice = house.instance(1, echo());
    let answer = house
        .get(
            ALICE,
            "/a%2Fb/../c?x=%20y",
            "x-beaver-internal: 1\r\nX_Beaver_Internal: 1\r\nx-forwarded-for: 6.6.6.6\r\nforwarded: for=6.6.6.6\r\n\
             x-request-id: forged-forged\r\ncookie: beaver_session=s3cret; a=1\r\nauthorization: Bearer key\r\n\
             connection: x-dropped\r\nx-dropped: 1\r\nte: trailers, gzip\r\n",
        )
        .await;
    assert_eq!(answer.status, 200);
    let seen = answer.body.to_ascii_lowercase();
    assert!(seen.starts_with("get /a%2fb/../c?x=%20y\n"), "{seen}");
    for line in [
        "host: alice.localhost:8088\n",
        "cookie: a=1\n",
        "authorization: bearer key\n",
        "x-forwarded-for: 127.0.0.1\n",
        "x-forwarded-proto: http\n",
        "x-forwarded-host: alice.localhost:8088\n",
        "te: trailers\n",
    ] {
        assert!(seen.contains(line), "{line} is not in {seen}");
    }
    for bad in ["beaver", "6.6.6.6", "forged", "s3cret", "x-dropped", "gzip", "connection"] {
        assert!(!seen.contains(bad), "{bad} is in {seen}");
    }
    let id = &answer.headers["x-request-id"];
    assert!(seen.contains(&format!("x-request-id: {id}\n")), "one id, inside and outside: {seen}");
}

#[tokio::test]
async fn a_believed_proxy_says_who_the_client_is() {
    let env = vec![("BEAVER_TRUSTED_PROXIES", "127.0.0.0/8".to_owned())];
    let house = House::with(Plan { env, ..Plan::default() }).await;
    let _alice = house.instance(1, echo());
    let lines = "x-forwarded-for: 6.6.6.6, 203.0.113.7\r\nx-forwarded-for: 127.0.0.3\r\nx-forwarded-proto: https\r\n";
    let seen = house.get(ALICE, "/", lines).await.body;
    assert!(seen.contains("x-forwarded-for: 203.0.113.7\n") && seen.contains("x-forwarded-proto: https\n"), "{seen}");
}

#[tokio::test]
async fn what_is_not_for_the_public_is_not_there() {
    let house = House::new().await;
    let _alice = house.instance(1, echo());
    for path in [
        "/api/auth/login",
        "/api//auth/login",
        "/API/auth/login",
        "/%61pi/auth/x",
        "/metrics",
        "/readyz",
        "/api/provider/test",
    ] {
        let answer = house.get(ALICE, path, "x-beaver-internal: 1\r\n").await;
        assert_eq!((answer.status, answer.json()["code"].as_str()), (404, Some("not_found")), "{path}");
    }
    assert_eq!(house.get(ALICE, "/api/authors", "").await.status, 200);
}

#[tokio::test]
async fn a_stream_comes_piece_by_piece() {
    let house = House::new().await;
    let (sender, receiver) = mpsc::unbounded_channel::<&str>();
    let receiver = Arc::new(Mutex::new(Some(receiver)));
    let events = get(async move || {
        let receiver = receiver.lock().await.take().unwrap();
        let stream = futures_util::stream::unfold(receiver, async |mut receiver| {
            Some((Ok::<_, Infallible>(Bytes::from(receiver.recv().await?)), receiver))
        });
        Response::builder()
            .header("content-type", "text/event-stream")
            .body(Body::from_stream(Box::pin(stream)))
            .unwrap()
    });
    let _alice = house.instance(1, Router::new().route("/events", events));
    let mut client = TcpStream::connect(house.edge).await.unwrap();
    client.write_all(format!("GET /events HTTP/1.1\r\nhost: {ALICE}\r\n\r\n").as_bytes()).await.unwrap();
    // Each piece is sent only when the one before has come through.
    for piece in ["data: one\n\n", "data: two\n\n", "data: three\n\n"] {
        sender.send(piece).unwrap();
        read_until(&mut client, piece).await;
    }
    drop(sender);
    read_until(&mut client, "0\r\n\r\n").await;
}

#[tokio::test]
async fn an_upload_goes_piece_by_piece_and_expect_is_answered_here() {
    let house = House::new().await;
    let (sender, mut pieces) = mpsc::unbounded_channel::<Bytes>();
    let upload = axum::routing::post(async move |body: Body| {
        let mut frames = body.into_data_stream();
        while let Some(Ok(piece)) = futures_util::StreamExt::next(&mut frames).await {
            sender.send(piece).unwrap();
        }
        "done"
    });
    let _alice = house.instance(1, Router::new().route("/upload", upload));
    let mut client = TcpStream::connect(house.edge).await.unwrap();
    let head =
        format!("POST /upload HTTP/1.1\r\nhost: {ALICE}\r\nexpect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    read_until(&mut client, "HTTP/1.1 100 Continue\r\n\r\n").await;
    for piece in ["first", "second"] {
        client.write_all(format!("{:x}\r\n{piece}\r\n", piece.len()).as_bytes()).await.unwrap();
        assert_eq!(tokio::time::timeout(PATIENCE, pieces.recv()).await.unwrap().unwrap(), piece);
    }
    client.write_all(b"0\r\n\r\n").await.unwrap();
    read_until(&mut client, "done").await;
}

#[tokio::test]
async fn an_upload_is_held_back_while_nobody_reads_it() {
    let house = House::new().await;
    let upload = axum::routing::post(async |_body: Body| std::future::pending::<()>().await);
    let _alice = house.instance(1, Router::new().route("/upload", upload));
    let mut client = TcpStream::connect(house.edge).await.unwrap();
    let size = 1_u64 << 30;
    let head = format!("POST /upload HTTP/1.1\r\nhost: {ALICE}\r\ncontent-length: {size}\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    let (piece, mut sent) = (vec![0; 1 << 20], 0_u64);
    // What the sockets on the way hold is some megabytes; a router that buffered would take all of it.
    while let Ok(written) = tokio::time::timeout(std::time::Duration::from_millis(500), client.write(&piece)).await {
        sent += written.unwrap() as u64;
        assert!(sent < 64 << 20, "the router takes what nobody reads");
    }
}

#[tokio::test]
async fn head_and_keep_alive_and_trailers() {
    let house = House::new().await;
    let app = Router::new().route("/text", get(async || "hello")).route(
        "/trailers",
        axum::routing::post(async |body: Body| {
            let collected = http_body_util::BodyExt::collect(body).await.unwrap();
            let trailers = collected.trailers().cloned().unwrap_or_default();
            format!("{trailers:?}")
        }),
    );
    let _alice = house.instance(1, app);
    let mut client = TcpStream::connect(house.edge).await.unwrap();
    client.write_all(format!("HEAD /text HTTP/1.1\r\nhost: {ALICE}\r\n\r\n").as_bytes()).await.unwrap();
    let head = read_until(&mut client, "\r\n\r\n").await;
    assert!(head.contains("content-length: 5") && head.ends_with("\r\n\r\n"), "{head}");
    client.write_all(format!("GET /text HTTP/1.1\r\nhost: {ALICE}\r\n\r\n").as_bytes()).await.unwrap();
    read_until(&mut client, "hello").await;
    let request = format!(
        "POST /trailers HTTP/1.1\r\nhost: {ALICE}\r\nconnection: close\r\ntrailer: x-sum, x-beaver-internal\r\n\
         transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 42\r\nx-beaver-internal: 1\r\n\r\n"
    );
    client.write_all(request.as_bytes()).await.unwrap();
    let answer = Answer::parse(&read_all(&mut client).await);
    assert!(answer.body.contains("x-sum") && !answer.body.contains("beaver"), "{}", answer.body);
}

#[tokio::test]
async fn a_socket_that_is_a_link_to_anothers_is_not_used() {
    let routes = vec![route("alice", 1, RouteState::Running), route("bob", 2, RouteState::Running)];
    let house = House::with(Plan { routes, ..Plan::default() }).await;
    let _bob = house.instance(2, Router::new().fallback(async || "bob's secret"));
    // What a router that follows links would do: without the defence, either link leads to bob.
    let following = async || {
        let mut stream = UnixStream::connect(house.run(1).join("in/http.sock")).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
        read_all(&mut stream).await
    };
    symlink(house.run(2).join("in/http.sock"), house.run(1).join("in/http.sock")).unwrap();
    assert!(following().await.contains("bob's secret"));
    let answer = house.get(ALICE, "/", "").await;
    assert_eq!(answer.status, 503);
    assert!(!answer.body.contains("secret"));
    // The control: the socket itself answers.
    assert_eq!(house.get("bob.localhost", "/", "").await.body, "bob's secret");

    std::fs::remove_file(house.run(1).join("in/http.sock")).unwrap();
    std::fs::remove_dir(house.run(1).join("in")).unwrap();
    symlink(house.run(2).join("in"), house.run(1).join("in")).unwrap();
    assert!(following().await.contains("bob's secret"));
    assert_eq!(house.get(ALICE, "/", "").await.status, 503);
}

#[tokio::test]
async fn what_is_no_socket_or_speaks_no_http_is_not_available() {
    let house = House::new().await;
    let socket = house.run(1).join("in/http.sock");
    assert_eq!(house.get(ALICE, "/", "").await.status, 503, "nothing there");
    std::fs::write(&socket, "x").unwrap();
    assert_eq!(house.get(ALICE, "/", "").await.status, 503, "a file");
    std::fs::remove_file(&socket).unwrap();
    drop(tokio::net::UnixListener::bind(&socket).unwrap());
    assert_eq!(house.get(ALICE, "/", "").await.status, 503, "nobody listens");
    std::fs::remove_file(&socket).unwrap();
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.write_all(b"\x00\x01garbage\r\n\r\n").await;
        }
    });
    assert_eq!(house.get(ALICE, "/", "").await.status, 503, "garbage");
}

#[tokio::test]
async fn an_instance_that_restarted_is_found_again() {
    let house = House::new().await;
    for round in 0..3 {
        let instance = house.instance(1, Router::new().fallback(async move || format!("round {round}")));
        let mut client = TcpStream::connect(house.edge).await.unwrap();
        for _ in 0..3 {
            client.write_all(format!("GET / HTTP/1.1\r\nhost: {ALICE}\r\n\r\n").as_bytes()).await.unwrap();
            read_until(&mut client, &format!("round {round}")).await;
        }
        drop(instance);
    }
}

#[tokio::test]
async fn an_instance_cannot_set_what_is_not_its_own() {
    let house = House::new().await;
    let app = Router::new().fallback(async || {
        Response::builder()
            .header("x-beaver-internal", "1")
            .header("x-request-id", "forged")
            .header("set-cookie", "beaver_session=tossed; Domain=localhost")
            .header("set-cookie", "own=1")
            .header("connection", "x-hop")
            .header("x-hop", "1")
            .body(Body::empty())
            .unwrap()
    });
    let _alice = house.instance(1, app);
    let raw = house.raw(format!("GET / HTTP/1.1\r\nhost: {ALICE}\r\nconnection: close\r\n\r\n")).await;
    for bad in ["x-beaver", "forged", "tossed", "x-hop"] {
        assert!(!raw.contains(bad), "{bad}: {raw}");
    }
    assert!(raw.contains("set-cookie: own=1"), "{raw}");
}

#[tokio::test]
async fn what_is_under_way_at_the_end_comes_to_its_end() {
    let house = House::new().await;
    let (sender, receiver) = mpsc::unbounded_channel::<&str>();
    let receiver = Arc::new(Mutex::new(Some(receiver)));
    let slow = get(async move || {
        let receiver = receiver.lock().await.take().unwrap();
        let stream = futures_util::stream::unfold(receiver, async |mut receiver| {
            Some((Ok::<_, Infallible>(Bytes::from(receiver.recv().await?)), receiver))
        });
        Response::new(Body::from_stream(Box::pin(stream)))
    });
    let _alice = house.instance(1, Router::new().route("/slow", slow));
    let mut client = TcpStream::connect(house.edge).await.unwrap();
    client.write_all(format!("GET /slow HTTP/1.1\r\nhost: {ALICE}\r\n\r\n").as_bytes()).await.unwrap();
    sender.send("begun").unwrap();
    read_until(&mut client, "begun").await;
    let edge = house.edge;
    let ending = tokio::spawn(house.end());
    until("nobody new is taken", async || TcpStream::connect(edge).await.is_err()).await;
    sender.send("ended").unwrap();
    drop(sender);
    read_until(&mut client, "ended").await;
    ending.await.unwrap();
}
