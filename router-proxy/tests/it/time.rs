//! What takes too long. The time is paused, and runs ahead by itself while everybody waits: its sleeps take none.

use std::{sync::Arc, time::Duration};

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
