//! WebSockets, and everything else that asks for another protocol.

use std::path::Path;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixListener},
};

use crate::harness::*;

pub const UPGRADE: &str = "GET /ws HTTP/1.1\r\nhost: alice.localhost\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\
    sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\norigin: http://alice.localhost:8088\r\n\r\n";

/// An instance that switches protocols and then echoes; it says `bye` at the client's end.
pub fn echoing(socket: &Path) {
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let head = read_until(&mut stream, "\r\n\r\n").await.to_ascii_lowercase();
                assert!(head.contains("upgrade: websocket\r\n") && head.contains("connection: upgrade\r\n"), "{head}");
                assert!(head.contains("sec-websocket-key: dghlihnhbxbszsbub25jzq=="), "{head}");
                let answer = b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                    sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nx-beaver-internal: 1\r\n\r\n";
                stream.write_all(answer).await.unwrap();
                let mut chunk = [0; 1024];
                loop {
                    match stream.read(&mut chunk).await.unwrap() {
                        0 => break,
                        n => stream.write_all(&chunk[..n]).await.unwrap(),
                    }
                }
                stream.write_all(b"bye").await.unwrap();
            });
        }
    });
}

#[tokio::test]
async fn bytes_pass_both_ways_and_either_side_may_end_first() {
    let house = House::new().await;
    echoing(&house.run(1).join("in/http.sock"));
    let mut client = TcpStream::connect(house.edge).await.unwrap();
    client.write_all(UPGRADE.as_bytes()).await.unwrap();
    let head = read_until(&mut client, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    let head = head.to_ascii_lowercase();
    assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
    assert!(!head.contains("beaver"), "{head}");
    for round in 0..3 {
        // Frames are no HTTP; nothing looks at them any more.
        let frame = format!("\x01\x02frame {round}\r\n\r\n\n\n");
        client.write_all(frame.as_bytes()).await.unwrap();
        read_until(&mut client, &frame).await;
    }
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut client).await, "bye", "what the instance still had to say came through");
}

#[tokio::test]
async fn what_a_client_sends_ahead_is_not_lost() {
    let house = House::new().await;
    echoing(&house.run(1).join("in/http.sock"));
    let mut client = TcpStream::connect(house.edge).await.unwrap();
    client.write_all(format!("{UPGRADE}\x01ahead").as_bytes()).await.unwrap();
    read_until(&mut client, "\x01ahead").await;
}

#[tokio::test]
async fn a_refused_switch_leaves_the_connection_as_it_was() {
    let house = House::new().await;
    let _alice = house.instance(1, echo());
    let mut client = TcpStream::connect(house.edge).await.unwrap();
    for path in ["/one", "/two"] {
        client.write_all(UPGRADE.replace("/ws", path).as_bytes()).await.unwrap();
        read_until(&mut client, &format!("GET {path}\n")).await;
    }
    // Two at once: the second waits for the first one's answer, and is then read with the same care.
    let two = format!("{UPGRADE}GET /after HTTP/1.1\r\nhost: alice.localhost\r\n\r\n");
    client.write_all(two.as_bytes()).await.unwrap();
    read_until(&mut client, "GET /after\n").await;
    let smuggled = format!("{UPGRADE}GET /bad HTTP/1.1\r\nhost: alice.localhost\r\nhost: bob.localhost\r\n\r\n");
    client.write_all(smuggled.as_bytes()).await.unwrap();
    assert!(read_all(&mut client).await.contains("HTTP/1.1 400"));
}

#[tokio::test]
async fn no_other_protocol_is_switched_to() {
    let house = House::new().await;
    let _alice = house.instance(1, echo());
    for lines in [
        "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n",
        "connection: Upgrade\r\nupgrade: websocket, h2c\r\n",
        "connection: Upgrade\r\nupgrade: websocket\r\nupgrade: h2c\r\n",
        "upgrade: websocket\r\n",
    ] {
        let request = format!("GET / HTTP/1.1\r\nhost: alice.localhost\r\n{lines}\r\n");
        let mut client = TcpStream::connect(house.edge).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        let answer = read_until(&mut client, "host: alice.localhost\n").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let seen = answer.split_once("\r\n\r\n").unwrap().1;
        assert!(!seen.contains("upgrade") && !seen.contains("http2-settings"), "{seen}");
    }
}

#[tokio::test]
async fn an_instance_cannot_switch_unasked() {
    let house = House::new().await;
    let listener = UnixListener::bind(house.run(1).join("in/http.sock")).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_until(&mut stream, "\r\n\r\n").await;
            let _ = stream
                .write_all(
                    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nGET / x",
                )
                .await;
        }
    });
    assert_eq!(house.get("alice.localhost", "/", "").await.status, 503);
}
