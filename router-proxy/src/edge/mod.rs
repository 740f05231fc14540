//! The public edge: listening, and one connection after another. What is done with a request is [`service`]'s to say.

mod enter;
pub mod forwarded;
pub mod framing;
mod gate;
pub mod guard;
pub mod headers;
pub mod host;
pub mod paths;
pub mod service;
mod websocket;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ::service::places::{Place, Places};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use crate::{App, drain::Drain};
use guard::{Guard, Switch};

/// The most connections of clients at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 20_000;
/// The most connections of one client; a browser has six to a host.
const MAX_EACH: u32 = 512;
/// How long a connection may lie idle between requests: longer than the proxies that may stand in front (Caddy: 120 s),
/// so that it is never us who close one that they are about to use.
const IDLE_TIMEOUT: Duration = Duration::from_secs(150);
/// The most that is read ahead on a connection, in bytes.
const MAX_BUFFER: usize = 64 << 10;

/// What a request's handler knows of its connection.
pub struct Conn {
    /// The other end.
    pub peer: SocketAddr,
    /// Tells the guard about changes of protocol.
    pub switch: Switch,
    /// Its place among all connections; a tunnel made of it keeps it.
    pub place: Place,
}

/// Serves the public until the drain's end is asked for.
pub async fn serve(app: Arc<App>, listener: TcpListener, drain: Drain) {
    let places = Places::new(MAX_CONNECTIONS, MAX_EACH);
    loop {
        let accept = async { (places.any().await, listener.accept().await) };
        let (one_of_all, accepted) = tokio::select! {
            accepted = accept => accepted,
            () = drain.stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Some(place) = places.give(one_of_all, peer.ip()) else {
                    metrics::counter!("router_edge_crowded_total").increment(1);
                    continue;
                };
                let (app, of_connection) = (Arc::clone(&app), drain.clone());
                drain.tracker.spawn(async move {
                    let open = metrics::gauge!("router_open_connections");
                    open.increment(1.0);
                    connection(app, stream, peer, place, of_connection).await;
                    open.decrement(1.0);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: the ones that close make room.
                tracing::warn!(%error, "accepting failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(app: Arc<App>, stream: TcpStream, peer: SocketAddr, place: Place, drain: Drain) {
    let _ = stream.set_nodelay(true);
    // A tunnel may be silent for hours; a peer that is gone is noticed all the same.
    let _ = rustix::net::sockopt::set_socket_keepalive(&stream, true);
    let switch = Switch::default();
    let conn = Arc::new(Conn { peer, switch: switch.clone(), place });
    let of_service = drain.clone();
    let handler =
        service_fn(move |request| service::handle(Arc::clone(&app), Arc::clone(&conn), of_service.clone(), request));
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .max_header_size(MAX_BUFFER)
        .max_buf_size(MAX_BUFFER)
        .serve_connection(TokioIo::new(Guard::new(stream, switch)), handler)
        .with_upgrades();
    let mut serving = std::pin::pin!(serving);
    let mut asked = false;
    loop {
        tokio::select! {
            ended = serving.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a client's connection ended");
                }
                return;
            }
            () = drain.stop.cancelled(), if !asked => {
                asked = true;
                serving.as_mut().graceful_shutdown();
            }
            () = drain.cut.cancelled() => return,
        }
    }
}
