//! Requests that could be read in two ways: none reaches an instance, nor does what is hidden in it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use axum::{Router, extract::Request};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::harness::*;

const H: &str = "host: alice.localhost\r\n";

/// A house whose instance counts what reaches it, and how often what was hidden did.
async fn house() -> (House, Instance, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let (seen, hidden) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (Arc::clone(&seen), Arc::clone(&hidden));
    let app = Router::new().fallback(async move |request: Request| {
        // A request whose body breaks off has arrived, but nothing came of it.
        let path = request.uri().path().to_owned();
        if axum::body::to_bytes(request.into_body(), 1 << 20).await.is_ok() {
            counts.0.fetch_add(1, Ordering::SeqCst);
        }
        if path.contains("hidden") {
            counts.1.fetch_add(1, Ordering::SeqCst);
        }
        "ok"
    });
    let house = House::new().await;
    let instance = house.instance(1, app);
    (house, instance, seen, hidden)
}

#[tokio::test]
async fn heads_with_two_readings_are_answered_and_go_no_further() {
    let (house, _instance, seen, _) = house().await;
    let many = "x: 1\r\n".repeat(101);
    let (long_line, long_header) = ("a".repeat(9000), "a".repeat(33_000));
    let hidden = "GET /hidden HTTP/1.1\r\nhost: alice.localhost\r\n\r\n";
    let cases: Vec<(&str, String, u16)> = vec![
        (
            "CL.TE",
            format!("POST / HTTP/1.1\r\n{H}content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"),
            400,
        ),
        (
            "TE.CL",
            format!("POST / HTTP/1.1\r\n{H}transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n{hidden}"),
            400,
        ),
        (
            "TE.TE",
            format!("POST / HTTP/1.1\r\n{H}transfer-encoding: chunked\r\ntransfer-encoding: x\r\n\r\n0\r\n\r\n"),
            400,
        ),
        (
            "TE twice",
            format!("POST / HTTP/1.1\r\n{H}transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
            400,
        ),
        ("TE list", format!("POST / HTTP/1.1\r\n{H}transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), 501),
        ("TE identity", format!("POST / HTTP/1.1\r\n{H}transfer-encoding: identity\r\n\r\n"), 501),
        ("TE xchunked", format!("POST / HTTP/1.1\r\n{H}transfer-encoding: xchunked\r\n\r\n0\r\n\r\n"), 501),
        ("TE with a tab", format!("POST / HTTP/1.1\r\n{H}transfer-encoding: chu\tnked\r\n\r\n0\r\n\r\n"), 501),
        ("TE with vertical tab", format!("POST / HTTP/1.1\r\n{H}transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n"), 400),
        (
            "TE with space before colon",
            format!("POST / HTTP/1.1\r\n{H}transfer-encoding : chunked\r\n\r\n0\r\n\r\n"),
            400,
        ),
        ("TE folded", format!("POST / HTTP/1.1\r\n{H}transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n"), 400),
        ("TE in HTTP/1.0", format!("POST / HTTP/1.0\r\n{H}transfer-encoding: chunked\r\n\r\n0\r\n\r\n"), 400),
        ("CL.CL", format!("POST / HTTP/1.1\r\n{H}content-length: 5\r\ncontent-length: 0\r\n\r\nhello"), 400),
        (
            "CL twice the same",
            format!("POST / HTTP/1.1\r\n{H}content-length: 5\r\ncontent-length: 5\r\n\r\nhello"),
            400,
        ),
        ("CL list", format!("POST / HTTP/1.1\r\n{H}content-length: 5, 5\r\n\r\nhello"), 400),
        ("CL signed", format!("POST / HTTP/1.1\r\n{H}content-length: +5\r\n\r\nhello"), 400),
        ("CL negative", format!("POST / HTTP/1.1\r\n{H}content-length: -5\r\n\r\nhello"), 400),
        ("CL hex", format!("POST / HTTP/1.1\r\n{H}content-length: 0x5\r\n\r\nhello"), 400),
        ("CL empty", format!("POST / HTTP/1.1\r\n{H}content-length:\r\n\r\n"), 400),
        ("CL overflowing", format!("POST / HTTP/1.1\r\n{H}content-length: 99999999999999999999\r\n\r\n"), 400),
        ("Host twice", format!("GET / HTTP/1.1\r\n{H}host: bob.localhost\r\n\r\n"), 400),
        ("Host twice the same", format!("GET / HTTP/1.1\r\n{H}{H}\r\n"), 400),
        ("Host missing", "GET / HTTP/1.1\r\n\r\n".into(), 400),
        ("Host empty", "GET / HTTP/1.1\r\nhost:\r\n\r\n".into(), 400),
        ("Host with a space", "GET / HTTP/1.1\r\nhost: alice.localhost x\r\n\r\n".into(), 400),
        ("Host unlike the absolute form", format!("GET http://bob.localhost/ HTTP/1.1\r\n{H}\r\n"), 400),
        ("Host with a user", "GET / HTTP/1.1\r\nhost: x@alice.localhost\r\n\r\n".into(), 400),
        ("bare LF after the request line", format!("GET / HTTP/1.1\n{H}\r\n"), 400),
        ("bare LF after a header", format!("GET / HTTP/1.1\r\n{H}x: 1\ny: 2\r\n\r\n"), 400),
        ("bare LF at the end", format!("GET / HTTP/1.1\r\n{H}\n"), 400),
        ("bare CR in a header", format!("GET / HTTP/1.1\r\n{H}x: 1\ry: 2\r\n\r\n"), 400),
        ("obs-fold", format!("GET / HTTP/1.1\r\n{H}x: 1\r\n y: 2\r\n\r\n"), 400),
        ("space before colon", format!("GET / HTTP/1.1\r\n{H}x : 1\r\n\r\n"), 400),
        ("no colon", format!("GET / HTTP/1.1\r\n{H}x\r\n\r\n"), 400),
        ("empty name", format!("GET / HTTP/1.1\r\n{H}: 1\r\n\r\n"), 400),
        ("NUL in a header", format!("GET / HTTP/1.1\r\n{H}x: a\0b\r\n\r\n"), 400),
        ("NUL in the path", format!("GET /\0 HTTP/1.1\r\n{H}\r\n"), 400),
        ("space in the path", format!("GET /a b HTTP/1.1\r\n{H}\r\n"), 400),
        ("tab in the request line", format!("GET\t/\tHTTP/1.1\r\n{H}\r\n"), 400),
        ("two spaces in the request line", format!("GET  / HTTP/1.1\r\n{H}\r\n"), 400),
        ("empty line first", format!("\r\nGET / HTTP/1.1\r\n{H}\r\n"), 400),
        ("fragment", format!("GET /#x HTTP/1.1\r\n{H}\r\n"), 400),
        ("asterisk", format!("OPTIONS * HTTP/1.1\r\n{H}connection: close\r\n\r\n"), 404),
        ("HTTP/0.9", "GET /\r\n\r\n".into(), 400),
        ("HTTP/1.2", format!("GET / HTTP/1.2\r\n{H}\r\n"), 505),
        ("HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 505),
        ("http/1.1 in lower case", format!("GET / http/1.1\r\n{H}\r\n"), 400),
        ("CONNECT", "CONNECT alice.localhost:80 HTTP/1.1\r\nhost: alice.localhost\r\n\r\n".into(), 405),
        ("TRACE", format!("TRACE / HTTP/1.1\r\n{H}\r\n"), 405),
        ("our own word for it", format!("BEAVER-REFUSED /0 HTTP/1.1\r\n{H}\r\n"), 405),
        ("TLS", "\x16\x03\x01\x02\x00\r\n\r\n".into(), 400),
        ("too many headers", format!("GET / HTTP/1.1\r\n{H}{many}\r\n"), 431),
        ("too long a header", format!("GET / HTTP/1.1\r\n{H}x: {long_header}\r\n\r\n"), 431),
        ("too long a request line", format!("GET /{long_line} HTTP/1.1\r\n{H}\r\n"), 414),
        ("an endless header", format!("GET / HTTP/1.1\r\n{H}x: {long_header}{long_header}"), 431),
    ];
    for (name, request, status) in cases {
        let answer = house.raw(&request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{name}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{name}: what follows is not answered: {answer}");
    }
    assert_eq!(seen.load(Ordering::SeqCst), 0, "one of them reached the instance");
}

#[tokio::test]
async fn bodies_with_two_readings_bring_nothing_through() {
    let (house, _instance, seen, hidden) = house().await;
    for (name, body) in [
        ("chunk extension", "3;a=b\r\nabc\r\n0\r\n\r\n"),
        ("chunk extension with LF", "3;a\nGET /hidden HTTP/1.1\r\nabc\r\n0\r\n\r\n"),
        ("size with 0x", "0x3\r\nabc\r\n0\r\n\r\n"),
        ("size with space", "3 \r\nabc\r\n0\r\n\r\n"),
        ("size with sign", "+3\r\nabc\r\n0\r\n\r\n"),
        ("size negative", "-3\r\nabc\r\n0\r\n\r\n"),
        ("size overflowing", "fffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
        ("size empty", "\r\nabc\r\n0\r\n\r\n"),
        ("bare LF after size", "3\nabc\r\n0\r\n\r\n"),
        ("bare LF after chunk", "3\r\nabc\n0\r\n\r\n"),
        ("longer than said", "3\r\nabcd\r\n0\r\n\r\n"),
        ("shorter than said", "4\r\nabc\r\n0\r\n\r\n"),
        ("bare LF in trailers", "3\r\nabc\r\n0\r\nx: 1\n\r\n"),
        ("folded trailer", "3\r\nabc\r\n0\r\nx: 1\r\n y\r\n\r\n"),
        ("trailer without colon", "3\r\nabc\r\n0\r\nGET /hidden HTTP/1.1\r\n\r\n"),
        ("truncated", "3\r\nab"),
    ] {
        let request = format!("POST /x HTTP/1.1\r\n{H}transfer-encoding: chunked\r\n\r\n{body}");
        let mut client = TcpStream::connect(house.edge).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        if name == "truncated" {
            client.shutdown().await.unwrap();
        }
        let hidden_request = format!("GET /hidden HTTP/1.1\r\n{H}\r\n");
        let _ = client.write_all(hidden_request.as_bytes()).await;
        let answer = read_all(&mut client).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{name}: {answer}");
    }
    assert_eq!((seen.load(Ordering::SeqCst), hidden.load(Ordering::SeqCst)), (0, 0));
    // The control: well-formed chunks, split anywhere, with trailers, and the request after them.
    let request = format!(
        "POST /x HTTP/1.1\r\n{H}transfer-encoding: chunked\r\n\r\n3\r\nabc\r\nA\r\n0123456789\r\n0\r\nx: 1\r\n\r\n\
         GET /hidden HTTP/1.1\r\n{H}connection: close\r\n\r\n"
    );
    let mut client = TcpStream::connect(house.edge).await.unwrap();
    for byte in request.as_bytes() {
        client.write_all(&[*byte]).await.unwrap();
    }
    let answer = read_all(&mut client).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
    assert_eq!((seen.load(Ordering::SeqCst), hidden.load(Ordering::SeqCst)), (2, 1));
}

#[tokio::test]
async fn a_body_that_looks_like_a_request_stays_a_body() {
    let (house, _instance, seen, hidden) = house().await;
    let inner = format!("GET /hidden HTTP/1.1\r\n{H}\r\n");
    let request = format!(
        "POST /x HTTP/1.1\r\n{H}content-length: {}\r\n\r\n{inner}GET /y HTTP/1.1\r\n{H}connection: close\r\n\r\n",
        inner.len()
    );
    let answer = house.raw(&request).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
    assert_eq!((seen.load(Ordering::SeqCst), hidden.load(Ordering::SeqCst)), (2, 0));
}

#[tokio::test]
async fn what_stands_before_a_refused_request_is_answered_first() {
    let (house, _instance, seen, _) = house().await;
    let request = format!("GET /one HTTP/1.1\r\n{H}\r\nGET /two HTTP/1.1\r\n{H}{H}\r\n");
    let answer = house.raw(&request).await;
    let (ok, bad) = (answer.find("HTTP/1.1 200"), answer.find("HTTP/1.1 400"));
    assert!(ok.is_some() && bad > ok, "{answer}");
    assert_eq!(seen.load(Ordering::SeqCst), 1);
}
