use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use http::Method;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
    task::JoinHandle,
};
use uuid::Uuid;

use super::*;
use crate::body::full;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn id() -> InstanceId {
    InstanceId::from_uuid(Uuid::from_u128(1))
}

fn run_dir() -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let inward = dir.path().join(id().to_string()).join("in");
    std::fs::create_dir_all(&inward).unwrap();
    (dir, inward.join("http.sock"))
}

fn request(method: Method, body: &'static str) -> Request<Body> {
    let body = if body.is_empty() { empty() } else { full(body) };
    Request::builder().method(method).uri("/").header("host", "a").body(body).unwrap()
}

/// What an instance counted.
#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    requests: AtomicUsize,
}

/// An instance that answers so many requests on each connection; at the next it hangs up without a word.
fn answers_each(socket: &Path, answers: usize) -> (Arc<Seen>, JoinHandle<()>) {
    let listener = UnixListener::bind(socket).unwrap();
    let seen = Arc::new(Seen::default());
    let counting = Arc::clone(&seen);
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            counting.connections.fetch_add(1, Ordering::SeqCst);
            let counting = Arc::clone(&counting);
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                for n in 0.. {
                    if stream.read(&mut buffer).await.unwrap_or(0) == 0 {
                        return;
                    }
                    counting.requests.fetch_add(1, Ordering::SeqCst);
                    if n == answers {
                        return;
                    }
                    stream.write_all(OK).await.unwrap();
                }
            });
        }
    });
    (seen, task)
}

async fn send(upstream: &Upstream, request: Request<Body>) -> Result<String, UpstreamError> {
    let response = upstream.send(id(), request).await?;
    let body = response.into_body().collect().await.expect("the body comes whole");
    // The connection's task has a turn, so that it notices the end.
    while upstream.idle().is_empty() {
        tokio::task::yield_now().await;
    }
    Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned())
}

#[tokio::test]
async fn one_connection_serves_many_requests_until_it_is_let_go() {
    let (dir, socket) = run_dir();
    let (seen, _task) = answers_each(&socket, usize::MAX);
    let upstream = Upstream::new(dir.path().to_owned());
    for _ in 0..5 {
        assert_eq!(send(&upstream, request(Method::POST, "x")).await.unwrap(), "ok");
    }
    assert_eq!(seen.connections.load(Ordering::SeqCst), 1);
    upstream.keep_only(&std::collections::HashSet::new());
    send(&upstream, request(Method::GET, "")).await.unwrap();
    assert_eq!(seen.connections.load(Ordering::SeqCst), 2);
    tokio::time::pause();
    tokio::time::advance(IDLE).await;
    upstream.sweep();
    assert!(upstream.idle().is_empty(), "what lies idle is closed");
}

#[tokio::test]
async fn what_may_be_repeated_is_repeated_once_and_nothing_else_is() {
    let (dir, socket) = run_dir();
    let (seen, _task) = answers_each(&socket, 1);
    let upstream = Upstream::new(dir.path().to_owned());
    send(&upstream, request(Method::GET, "")).await.unwrap();
    // The kept connection dies under it.
    assert_eq!(send(&upstream, request(Method::GET, "")).await.unwrap(), "ok");
    assert_eq!((seen.connections.load(Ordering::SeqCst), seen.requests.load(Ordering::SeqCst)), (2, 3));
    // A POST that has gone out may have been acted on.
    let error = upstream.send(id(), request(Method::POST, "x")).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Broken(_)), "{error:?}");
    assert_eq!((seen.connections.load(Ordering::SeqCst), seen.requests.load(Ordering::SeqCst)), (2, 4));
}

#[tokio::test]
async fn a_new_connection_that_hangs_up_is_not_tried_again() {
    let (dir, socket) = run_dir();
    let (seen, _task) = answers_each(&socket, 0);
    let upstream = Upstream::new(dir.path().to_owned());
    assert!(matches!(upstream.send(id(), request(Method::GET, "")).await, Err(UpstreamError::Broken(_))));
    assert_eq!(seen.requests.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_never_answers_is_given_up() {
    let (dir, socket) = run_dir();
    let _listener = UnixListener::bind(socket).unwrap();
    let upstream = Upstream::new(dir.path().to_owned());
    let begun = Instant::now();
    assert!(matches!(upstream.send(id(), request(Method::GET, "")).await, Err(UpstreamError::Timeout)));
    assert_eq!(begun.elapsed().as_secs(), FIRST_BYTE.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_is_waited_for_but_not_for_long() {
    let (dir, socket) = run_dir();
    let listener = UnixListener::bind(&socket).unwrap();
    rustix::net::listen(&listener, 1).unwrap();
    let upstream = Upstream::new(dir.path().to_owned());
    let mut queued = Vec::new();
    let begun = Instant::now();
    let refused = loop {
        match upstream.connect(id()).await {
            Ok(stream) => queued.push(stream),
            Err(error) => break error,
        }
        assert!(queued.len() < 10, "a queue of one takes that many");
    };
    assert!(matches!(refused, beneath::Error::Busy { .. }), "{refused:?}");
    assert!(begun.elapsed() >= BUSY && begun.elapsed() < BUSY * 2);
    // Room again, and it goes on.
    let _accepted = listener.accept().await.unwrap();
    upstream.connect(id()).await.unwrap();
}
