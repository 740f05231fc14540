//! Serving HTTP on a door. Whoever is behind it is hostile until proven otherwise: everything is bounded.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::UnixListener,
    sync::{OwnedSemaphorePermit, Semaphore},
};

use crate::{body::Body, drain::Drain};

/// Connections of one instance to its egress door, beyond those that may lead outside: so that one too many is told so
/// instead of waiting for ever.
pub const SPARE: usize = 32;
/// Connections of one instance to authz at once.
pub const IDENTITY_CONNECTIONS: usize = 16;
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
const MAX_BUFFER: usize = 64 << 10;

/// One of a door's places, in the extensions of every request: who goes on after the connection, as a tunnel, keeps it.
#[derive(Clone)]
pub struct Place(#[allow(dead_code, reason = "held, not looked at")] Arc<Option<OwnedSemaphorePermit>>);

/// Serves a door until its end is asked for. More than `limit` connections at once wait to be accepted.
pub fn spawn<H, F>(listener: UnixListener, limit: usize, drain: &Drain, handler: H)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
{
    let drain = drain.clone();
    let tracker = drain.tracker.clone();
    tracker.spawn(async move {
        let permits = Arc::new(Semaphore::new(limit));
        loop {
            let accept = async { (Arc::clone(&permits).acquire_owned().await, listener.accept().await) };
            let (permit, accepted) = tokio::select! {
                accepted = accept => accepted,
                () = drain.stop.cancelled() => return,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let place = Place(Arc::new(permit.ok()));
            let (handler, of_requests) = (handler.clone(), place.clone());
            let handler = move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(of_requests.clone());
                handler(request)
            };
            let serving = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_header_size(MAX_BUFFER)
                .max_buf_size(MAX_BUFFER)
                .serve_connection(TokioIo::new(stream), service_fn(handler))
                .with_upgrades();
            let drain = drain.clone();
            drain.tracker.clone().spawn(async move {
                let _place = place;
                let mut serving = std::pin::pin!(serving);
                let mut asked = false;
                loop {
                    tokio::select! {
                        _ = serving.as_mut() => return,
                        () = drain.stop.cancelled(), if !asked => {
                            asked = true;
                            serving.as_mut().graceful_shutdown();
                        }
                        () = drain.cut.cancelled() => return,
                    }
                }
            });
        }
    });
}
