//! What takes too long. The time is paused, and runs ahead by itself while everybody waits: its sleeps take none.

use std::{sync::Arc, time::Duration};

use contracts::routes::RouteState;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    time::Instant,
};

use crate::harness::*;

#[tokio::test]
async fn a_head_that_does_not_come_is_given_up() {
    let house = House::new().await;
    for begun in ["", "GET / HTTP/1.1\r\nhost: alice.localhost\r\nx: "] {
        let mut client = TcpStream::connect(house.edge).await.unwrap();
        client.write_all(begun.as_bytes()).await.unwrap();
        tokio::time::pause();
        let since = Instant::now();
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer).await;
        let waited = since.elapsed().as_secs();
        tokio::time::resume();
        assert!((15..25).contains(&waited), "{begun:?}: {waited} s");
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    }
}

#[tokio::test]
async fn an_idle_connection_is_kept_longer_than_a_proxy_in_front_keeps_it() {
    let house = House::new().await;
    let _alice = house.instance(1, echo());
    let mut client = TcpStream::connect(house.edge).await.unwrap();
    client.write_all(b"GET /one HTTP/1.1\r\nhost: alice.localhost\r\n\r\n").await.unwrap();
    read_until(&mut client, "GET /one").await;
    tokio::time::pause();
    let since = Instant::now();
    let _ = client.read_to_end(&mut Vec::new()).await;
    assert!((121..=160).contains(&since.elapsed().as_secs()), "{:?}", since.elapsed());
}

#[tokio::test]
async fn the_end_does_not_wait_for_ever() {
    let house = House::new().await;
    let listener = UnixListener::bind(house.run(1).join("in/http.sock")).unwrap();
    let (arrived, under_way) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_until(&mut stream, "\r\n\r\n").await;
        arrived.send(stream).unwrap();
    });
    let mut client = TcpStream::connect(house.edge).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: alice.localhost\r\n\r\n").await.unwrap();
    let _held = under_way.await.unwrap();
    tokio::time::pause();
    let since = Instant::now();
    house.stop.cancel();
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer).await;
    assert!((9..=11).contains(&since.elapsed().as_secs()), "{:?}", since.elapsed());
    assert!(answer.is_empty(), "cut, not answered: {}", String::from_utf8_lossy(&answer));
    house.end().await;
}

/// A tunnel of the first instance through which a question went out; both of its ends.
async fn tunnel(house: &House, listener: &TcpListener) -> (UnixStream, TcpStream) {
    let mut inside = UnixStream::connect(house.run(1).join("out/egress.sock")).await.unwrap();
    inside.write_all(b"CONNECT 93.184.216.34:7 HTTP/1.1\r\nhost: 93.184.216.34:7\r\n\r\n").await.unwrap();
    let (mut outside, _) = listener.accept().await.unwrap();
    read_until(&mut inside, "\r\n\r\n").await;
    inside.write_all(b"question").await.unwrap();
    read_until(&mut outside, "question").await;
    (inside, outside)
}

async fn house_with_listener() -> (House, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listeners = [("93.184.216.34:7".parse().unwrap(), listener.local_addr().unwrap())].into();
    let network = Arc::new(FakeNetwork { listeners, ..FakeNetwork::default() });
    (House::with(Plan { network, ..Plan::default() }).await, listener)
}

#[tokio::test]
async fn the_end_does_not_wait_for_what_lies_idle() {
    let (house, listener) = house_with_listener().await;
    let _alice = house.instance(1, echo());
    let mut browser = TcpStream::connect(house.edge).await.unwrap();
    browser.write_all(b"GET /one HTTP/1.1\r\nhost: alice.localhost\r\n\r\n").await.unwrap();
    read_until(&mut browser, "GET /one").await;
    let unused = TcpStream::connect(house.edge).await.unwrap();
    let mut portal = TcpStream::connect(house.internal).await.unwrap();
    portal.write_all(b"GET /healthz HTTP/1.1\r\nhost: r\r\n\r\n").await.unwrap();
    read_until(&mut portal, "\"ok\"").await;
    let mut identity = UnixStream::connect(house.run(1).join("out/identity.sock")).await.unwrap();
    identity.write_all(b"GET /nothing HTTP/1.1\r\nhost: r\r\n\r\n").await.unwrap();
    read_until(&mut identity, "not_found").await;
    let fresh = UnixStream::connect(house.run(1).join("out/egress.sock")).await.unwrap();
    let (mut inside, mut outside) = tunnel(&house, &listener).await;
    outside.write_all(b"answer").await.unwrap();
    read_until(&mut inside, "answer").await;

    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let since = Instant::now();
    house.end().await;
    assert!(since.elapsed().as_secs() < 1, "{:?}", since.elapsed());
    drop((browser, unused, portal, identity, fresh, inside, outside));
}

#[tokio::test]
async fn an_answer_that_is_due_still_comes_through_a_tunnel() {
    let (house, listener) = house_with_listener().await;
    let (mut inside, mut outside) = tunnel(&house, &listener).await;
    tokio::time::pause();
    house.stop.cancel();
    tokio::time::sleep(Duration::from_secs(6)).await;
    outside.write_all(b"ans").await.unwrap();
    read_until(&mut inside, "ans").await;
    outside.write_all(b"wer").await.unwrap();
    read_until(&mut inside, "wer").await;
    let since = Instant::now();
    house.end().await;
    assert!(since.elapsed().as_secs() < 4, "nothing is under way any more: {:?}", since.elapsed());
}

#[tokio::test]
async fn an_hour_of_a_stream_passes_and_so_do_its_pauses() {
    let (house, listener) = house_with_listener().await;
    let (mut inside, mut outside) = tunnel(&house, &listener).await;
    // The same in absolute-form: an answer without an end.
    let mut asked = UnixStream::connect(house.run(1).join("out/egress.sock")).await.unwrap();
    asked.write_all(b"GET http://93.184.216.34:7/ HTTP/1.1\r\nhost: 93.184.216.34:7\r\n\r\n").await.unwrap();
    let (mut answering, _) = listener.accept().await.unwrap();
    read_until(&mut answering, "\r\n\r\n").await;
    answering.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
    read_until(&mut asked, "\r\n\r\n").await;
    // And through the edge, from the instance to a browser.
    let instance = UnixListener::bind(house.run(1).join("in/http.sock")).unwrap();
    let mut browser = TcpStream::connect(house.edge).await.unwrap();
    browser.write_all(b"GET / HTTP/1.1\r\nhost: alice.localhost\r\n\r\n").await.unwrap();
    let (mut serving, _) = instance.accept().await.unwrap();
    read_until(&mut serving, "\r\n\r\n").await;
    serving.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
    read_until(&mut browser, "\r\n\r\n").await;

    tokio::time::pause();
    let since = Instant::now();
    // Steadily for half an hour, then with pauses of up to an hour: three hours in all.
    let steady = std::iter::repeat_n(10, 180);
    for (n, pause_s) in steady.chain([600, 1200, 3600, 1800, 1800]).enumerate() {
        tokio::time::sleep(Duration::from_secs(pause_s)).await;
        let piece = format!("piece-{n};");
        outside.write_all(piece.as_bytes()).await.unwrap();
        read_until(&mut inside, &piece).await;
        inside.write_all(piece.as_bytes()).await.unwrap();
        read_until(&mut outside, &piece).await;
        let chunk = format!("{:x}\r\n{piece}\r\n", piece.len());
        answering.write_all(chunk.as_bytes()).await.unwrap();
        read_until(&mut asked, &piece).await;
        serving.write_all(chunk.as_bytes()).await.unwrap();
        read_until(&mut browser, &piece).await;
    }
    assert!(since.elapsed() >= Duration::from_secs(3 * 3600), "{:?}", since.elapsed());
    answering.write_all(b"0\r\n\r\n").await.unwrap();
    serving.write_all(b"0\r\n\r\n").await.unwrap();
    drop(outside);
    assert_eq!(read_all(&mut inside).await, "", "it ends when its other side does");
    read_until(&mut asked, "0\r\n\r\n").await;
    read_until(&mut browser, "0\r\n\r\n").await;
}

#[tokio::test]
async fn of_an_instance_that_was_discarded_nothing_is_kept() {
    let routes = vec![route("alice", 1, RouteState::Running), route("bob", 2, RouteState::Running)];
    let house = House::with(Plan { routes, ..Plan::default() }).await;
    for n in [1, 2] {
        let path = house.run(n).join("out/egress.sock");
        until("its door is open", async || path.exists()).await;
        let mut door = UnixStream::connect(path).await.unwrap();
        door.write_all(b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nhost: 127.0.0.1:1\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        assert!(read_all(&mut door).await.starts_with("HTTP/1.1 403"));
    }
    let usage = contracts::egress::usage_path(id(2));
    let told = async |n| {
        let metrics = house.internal_get("/metrics", None).await;
        metrics.lines().filter(|line| line.contains(&id(n).to_string())).count()
    };
    assert!(told(2).await >= 3, "the control: both directions, and a refusal");
    assert_eq!(Answer::parse(&house.internal_get(&usage, Some(TOKEN)).await).status, 200);

    // deploy-control removes the folders, and then says so: the doors may have noticed in between.
    std::fs::remove_dir_all(house.run(2)).unwrap();
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(10)).await;
    tokio::time::resume();
    assert!(told(2).await >= 3, "it may come back");
    house.deploy.change(route("bob", 2, RouteState::Deleted));
    until("nothing tells of it", async || told(2).await == 0).await;
    assert_eq!(Answer::parse(&house.internal_get(&usage, Some(TOKEN)).await).status, 404);
    assert!(told(1).await >= 3, "and of others as before");
    assert!(!house.run(2).exists(), "nor is its folder made again");
}
