//! What takes too long, with the time let run by hand.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixListener},
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
