//! The time is paused, and runs ahead by itself while everybody waits: its sleeps take none.

use std::convert::Infallible;

use axum::{extract::Form, routing};
use futures_util::stream;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};

use super::*;

#[derive(serde::Deserialize)]
struct Said {
    said: String,
}

/// A server with a page, a form, a stream that says something every 15 s, and one that never stops talking.
async fn server() -> (SocketAddr, Shutdown, tokio::task::JoinHandle<std::io::Result<()>>) {
    let ticks = || {
        let ticks = stream::unfold((), async |()| {
            sleep(Duration::from_secs(15)).await;
            Some((Ok::<_, Infallible>("tick\n"), ()))
        });
        std::future::ready(Body::from_stream(Box::pin(ticks)))
    };
    let flood =
        || std::future::ready(Body::from_stream(stream::repeat_with(|| Ok::<_, Infallible>(vec![b'x'; 1 << 16]))));
    let peer = async |ConnectInfo(peer): ConnectInfo<SocketAddr>| peer.ip().to_string();
    let router = Router::new()
        .route("/", routing::get(peer))
        .route("/form", routing::post(async |Form(Said { said }): Form<Said>| said.len().to_string()))
        .route("/ticks", routing::get(ticks))
        .route("/flood", routing::get(flood));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), Shutdown::new());
    let serving = tokio::spawn(serve_public(listener, layers(router), stop.clone()));
    (address, stop, serving)
}

async fn sent(address: SocketAddr, request: &str) -> TcpStream {
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(request.as_bytes()).await.unwrap();
    client
}

async fn until(client: &mut TcpStream, what: &str) -> String {
    let (mut read, mut piece) = (String::new(), [0; 4096]);
    while !read.contains(what) {
        let n = client.read(&mut piece).await.unwrap();
        assert!(n > 0, "it ended without {what:?}: {read}");
        read.push_str(&String::from_utf8_lossy(&piece[..n]));
    }
    read
}

/// For how many seconds the connection goes on by itself, and what it says until its end.
async fn to_the_end(client: &mut TcpStream) -> (u64, String) {
    tokio::time::pause();
    let (since, mut rest) = (Instant::now(), Vec::new());
    let _ = timeout(Duration::from_secs(3_600), client.read_to_end(&mut rest)).await;
    let took = since.elapsed().as_secs();
    tokio::time::resume();
    (took, String::from_utf8_lossy(&rest).into_owned())
}

const PAGE: &str = "GET / HTTP/1.1\r\nhost: p\r\n\r\n";

#[tokio::test]
async fn a_head_that_does_not_come_is_given_up() {
    let (address, ..) = server().await;
    for begun in ["", "GET / HTTP/1.1\r\nhost: p\r\nx: "] {
        let (took, said) = to_the_end(&mut sent(address, begun).await).await;
        assert!((15..25).contains(&took), "{begun:?}: {took} s");
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 408"), "{said}");
    }
}

#[tokio::test]
async fn an_idle_connection_is_kept_longer_than_a_proxy_in_front_keeps_it_and_not_for_ever() {
    let (address, ..) = server().await;
    let mut client = sent(address, PAGE).await;
    assert!(until(&mut client, "127.0.0.1").await.starts_with("HTTP/1.1 200"), "the peer is known");
    let (took, _) = to_the_end(&mut client).await;
    assert!((121..=160).contains(&took), "{took} s");
    let mut client = sent(address, PAGE).await;
    until(&mut client, "127.0.0.1").await;
    client.write_all(b"GET / HTTP/1.1\r\nx: ").await.unwrap();
    let (took, _) = to_the_end(&mut client).await;
    assert!(took <= 160, "a later head has an end too: {took} s");
}

#[tokio::test]
async fn a_form_that_does_not_come_is_given_up_even_when_it_drips() {
    let (address, ..) = server().await;
    let head = "POST /form HTTP/1.1\r\nhost: p\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: 1000\r\n\r\nsaid=";
    let (took, said) = to_the_end(&mut sent(address, head).await).await;
    assert!((15..25).contains(&took) && said.starts_with("HTTP/1.1 408"), "{took} s: {said}");
    assert!(said.contains("request_timeout"), "{said}");

    let (mut answer, mut form) = sent(address, head).await.into_split();
    tokio::time::pause();
    let since = Instant::now();
    let dripping = async {
        while form.write_all(b"x").await.is_ok() {
            sleep(Duration::from_secs(1)).await;
        }
    };
    let mut said = String::new();
    tokio::select! {
        _ = answer.read_to_string(&mut said) => {}
        () = dripping => {}
    }
    assert!((15..25).contains(&since.elapsed().as_secs()), "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_form_has_a_length() {
    let (address, ..) = server().await;
    let form = |said: usize| format!("said={}", "x".repeat(said));
    let head =
        "POST /form HTTP/1.1\r\nhost: p\r\nconnection: close\r\ncontent-type: application/x-www-form-urlencoded\r\n";
    for (said, status) in [(1, "200"), (MAX_FORM - 5, "200"), (MAX_FORM - 4, "413"), (MAX_FORM * 4, "413")] {
        let form = form(said);
        let with_length = format!("{head}content-length: {}\r\n\r\n{form}", form.len());
        let in_chunks = format!("{head}transfer-encoding: chunked\r\n\r\n{:x}\r\n{form}\r\n0\r\n\r\n", form.len());
        for request in [with_length, in_chunks] {
            let mut client = TcpStream::connect(address).await.unwrap();
            // It may be refused before it was all sent.
            let _ = client.write_all(request.as_bytes()).await;
            let mut answer = vec![];
            let _ = client.read_to_end(&mut answer).await;
            let answer = String::from_utf8_lossy(&answer);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{said}: {answer}");
        }
    }
}

#[tokio::test]
async fn a_stream_goes_on_for_as_long_as_it_is_read() {
    let (address, ..) = server().await;
    let mut client = sent(address, "GET /ticks HTTP/1.1\r\nhost: p\r\n\r\n").await;
    tokio::time::pause();
    let since = Instant::now();
    for _ in 0..50 {
        until(&mut client, "tick").await;
    }
    assert!(since.elapsed() >= Duration::from_secs(700));
}

#[tokio::test]
async fn who_takes_nothing_of_what_is_sent_loses_the_connection() {
    let (address, ..) = server().await;
    let mut client = sent(address, "GET /flood HTTP/1.1\r\nhost: p\r\n\r\n").await;
    until(&mut client, "x").await;
    tokio::time::pause();
    sleep(Duration::from_secs(90)).await;
    tokio::time::resume();
    // What lies in the sockets is still there; then it ends, where it would never have.
    let drained = timeout(Duration::from_secs(10), async {
        let mut piece = vec![0; 1 << 20];
        while matches!(client.read(&mut piece).await, Ok(n) if n > 0) {}
    });
    drained.await.unwrap();
}

#[tokio::test]
async fn the_end_waits_for_what_is_under_way_and_not_for_what_lies_idle() {
    let (address, stop, serving) = server().await;
    let mut idle = sent(address, PAGE).await;
    until(&mut idle, "127.0.0.1").await;
    let unused = TcpStream::connect(address).await.unwrap();
    until(&mut sent(address, PAGE).await, "127.0.0.1").await;
    tokio::time::pause();
    let since = Instant::now();
    stop.cancel();
    serving.await.unwrap().unwrap();
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    drop((idle, unused));
    tokio::time::resume();

    let (address, stop, serving) = server().await;
    let mut client = sent(address, "GET /ticks HTTP/1.1\r\nhost: p\r\n\r\n").await;
    until(&mut client, "HTTP/1.1 200").await;
    tokio::time::pause();
    let since = Instant::now();
    stop.cancel();
    serving.await.unwrap().unwrap();
    assert_eq!(since.elapsed().as_secs(), 10, "cut");
    let _ = client.read_to_end(&mut vec![]).await;
}
