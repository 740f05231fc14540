use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    time::Instant,
};

use super::*;

fn pair(buffer: usize) -> (DuplexStream, Guard<DuplexStream>, Switch) {
    let (client, server) = duplex(buffer);
    let switch = Switch::default();
    (client, Guard::new(server, switch.clone()), switch)
}

const POST: &[u8] = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n";

async fn read(guard: &mut Guard<DuplexStream>, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    guard.read_exact(&mut bytes).await.unwrap();
    bytes
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_is_given_up_and_a_head_is_not() {
    let (mut client, mut guard, _) = pair(1024);
    client.write_all(POST).await.unwrap();
    assert_eq!(read(&mut guard, POST.len()).await, POST);
    // Slow is fine, as long as something comes.
    for _ in 0..5 {
        tokio::time::sleep(STALL - Duration::from_secs(1)).await;
        client.write_all(b"x").await.unwrap();
        assert_eq!(read(&mut guard, 1).await, b"x");
    }
    let begun = Instant::now();
    let error = guard.read_u8().await.unwrap_err();
    assert_eq!((error.kind(), begun.elapsed().as_secs()), (io::ErrorKind::TimedOut, STALL.as_secs()));
}

#[tokio::test(start_paused = true)]
async fn a_head_has_its_time_however_it_trickles() {
    let (_silent, mut guard, _) = pair(1024);
    assert_eq!(guard.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);

    let (mut client, mut guard, _) = pair(1024);
    let head = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    client.write_all(head).await.unwrap();
    read(&mut guard, head.len()).await;
    // Between requests the time is hyper's to keep.
    assert!(tokio::time::timeout(STALL * 3, guard.read_u8()).await.is_err());
    let trickle = tokio::spawn(async move {
        while client.write_all(b"G").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let begun = Instant::now();
    assert_eq!(guard.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert_eq!(begun.elapsed().as_secs(), HEAD.as_secs());
    drop(guard);
    trickle.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_is_given_up() {
    let (client, mut guard, _) = pair(16);
    let error = guard.write_all(&[0; 64]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    drop(client);
}

#[tokio::test]
async fn an_idle_connection_keeps_no_buffer() {
    let (mut client, mut guard, _) = pair(1024);
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    read(&mut guard, 27).await;
    assert_eq!(guard.buffer.capacity(), 0);
}

#[tokio::test]
async fn a_refused_head_becomes_a_request_that_nobody_can_send() {
    let (mut client, mut guard, _) = pair(1024);
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\nGET /hidden").await.unwrap();
    let expected = format!("{REFUSED} /0 HTTP/1.1\r\nhost: -\r\nconnection: close\r\n\r\n");
    assert_eq!(read(&mut guard, expected.len()).await, expected.as_bytes());
    client.write_all(b"more").await.unwrap();
    drop(client);
    // Neither what follows nor the end is seen.
    assert!(tokio::time::timeout(Duration::from_millis(50), guard.read_u8()).await.is_err());
}

#[tokio::test]
async fn after_a_switch_everything_passes_and_before_it_nothing() {
    let (mut client, mut guard, switch) = pair(1024);
    let head = b"GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\n\r\n";
    client.write_all(head).await.unwrap();
    client.write_all(b"\x01\n\0").await.unwrap();
    assert_eq!(read(&mut guard, head.len()).await, head);
    assert!(tokio::time::timeout(Duration::from_millis(50), guard.read_u8()).await.is_err());
    switch.switched();
    assert_eq!(read(&mut guard, 3).await, b"\x01\n\0");
    client.write_all(b"\nraw").await.unwrap();
    assert_eq!(read(&mut guard, 4).await, b"\nraw");
}
