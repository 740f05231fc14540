//! Serving pages to strangers, who may be slow, idle, or many on purpose: every wait has an end, every number a limit.

use std::{
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{ConnectInfo, Request},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use http_body_util::LengthLimitError;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tower::ServiceExt;

use crate::{
    Problem, Shutdown,
    http::{RequestIds, drained, layers_with_limit},
    places::{Place, Places},
    stall::Taken,
};

/// The most connections at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 10_000;
/// The most connections of one client; a browser has six to a host.
const MAX_EACH: u32 = 512;
/// How long a new connection may take until its first head is there.
const FIRST_HEAD: Duration = Duration::from_secs(20);
/// How long any other head may take, the time before it included: longer than the proxies that may stand in front keep an idle
/// connection (Caddy: 120 s), so that it is never us who close one that they are about to use.
const IDLE: Duration = Duration::from_secs(150);
/// The longest head, in bytes.
const MAX_HEAD: usize = 64 << 10;
/// The longest form, in bytes, and how long all of it may take.
const MAX_FORM: usize = 32 << 10;
const FORM_TIME: Duration = Duration::from_secs(20);

/// As [`crate::http::layers`], for pages and their forms: a body is read whole, up to 32 KiB and within 20 s, before anything is
/// done with its request.
pub fn layers(router: Router) -> Router {
    layers_with_uploads(router, Router::new())
}

/// As [`layers`], with routes beside the pages that take bodies of any length, and read them themselves as they come.
pub fn layers_with_uploads(pages: Router, uploads: Router) -> Router {
    layers_with_limit(pages.layer(middleware::from_fn(read_first)).merge(uploads), RequestIds::Own, usize::MAX)
}

async fn read_first(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    match read(body).await {
        Ok(bytes) => next.run(Request::from_parts(parts, Body::from(bytes))).await,
        Err(problem) => {
            let mut response = problem.into_response();
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            response
        }
    }
}

async fn read(body: Body) -> Result<Bytes, Problem> {
    let Ok(read) = timeout(FORM_TIME, to_bytes(body, MAX_FORM)).await else {
        let words = "The form did not arrive in time. Send it again.";
        return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", words));
    };
    read.map_err(|error| {
        let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        if causes.into_iter().any(|cause| cause.is::<LengthLimitError>()) {
            let words = "A form has at most 32 KiB.";
            return Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", words);
        }
        Problem::bad_request("The form broke off.")
    })
}

/// Serves until `stop`, then lets open requests go on for 10 s, as [`crate::serve`] does. What is answered may take its time, a
/// stream of events for one; what is sent and what is taken may not.
///
/// # Errors
/// Never at present; as [`crate::serve`].
pub async fn serve_public(listener: TcpListener, router: Router, stop: Shutdown) -> std::io::Result<()> {
    drained(accept(listener, router, stop.clone()), stop).await
}

async fn accept(listener: TcpListener, router: Router, stop: Shutdown) -> std::io::Result<()> {
    let places = Places::new(MAX_CONNECTIONS, MAX_EACH);
    // Dropped with this future: then what is still open is cut.
    let mut open = JoinSet::new();
    loop {
        let next = async { (places.any().await, listener.accept().await) };
        let (one_of_all, accepted) = tokio::select! {
            accepted = next => accepted,
            Some(_) = open.join_next() => continue,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => match places.give(one_of_all, peer.ip()) {
                Some(place) => drop(open.spawn(connection(stream, peer, place, router.clone(), stop.clone()))),
                None => metrics::counter!("public_connections_crowded_total").increment(1),
            },
            Err(error) => {
                // Out of descriptors, most likely: the ones that close make room.
                tracing::warn!(%error, "accepting failed");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    while open.join_next().await.is_some() {}
    Ok(())
}

async fn connection(stream: TcpStream, peer: SocketAddr, _place: Place, router: Router, stop: Shutdown) {
    let _ = stream.set_nodelay(true);
    let begun = Arc::new(AtomicBool::new(false));
    let first = Arc::clone(&begun);
    let handler = service_fn(move |request: hyper::Request<Incoming>| {
        first.store(true, Ordering::Relaxed);
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        router.clone().oneshot(request)
    });
    let mut serving = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE)
            .max_header_size(MAX_HEAD)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(Taken::new(stream)), handler)
    );
    let mut first_head = pin!(sleep(FIRST_HEAD));
    let (mut new, mut asked) = (true, false);
    loop {
        tokio::select! {
            ended = serving.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a client's connection ended");
                }
                return;
            }
            () = first_head.as_mut(), if new => {
                if !begun.load(Ordering::Relaxed) {
                    return;
                }
                new = false;
            }
            () = stop.cancelled(), if !asked => {
                asked = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}

#[cfg(test)]
mod tests;
