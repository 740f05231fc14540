//! WebSockets (RFC 6455): the one protocol that may be switched to. Nothing else is, h2c above all, which would carry
//! requests past every check of the edge.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version, header, request::Parts};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use sign_in::Session;

use super::Conn;
use crate::{
    activity::{Activity, QUIET, Watched},
    drain::Drain,
    uses::InUse,
};

/// How often it is looked whether a session is used: far more often than one ends for being unused.
const LOOK: Duration = Duration::from_secs(60);

/// Whether a request asks for a WebSocket.
pub fn is_asked(request: &Parts) -> bool {
    let connection = request.headers.get_all(header::CONNECTION).iter().filter_map(|line| line.to_str().ok());
    request.method == Method::GET
        && request.version == Version::HTTP_11
        && connection.flat_map(|line| line.split(',')).any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
        && names_websocket(&request.headers)
}

/// Whether an answer grants one.
pub fn is_granted<B>(response: &Response<B>) -> bool {
    response.status() == StatusCode::SWITCHING_PROTOCOLS && names_websocket(response.headers())
}

fn names_websocket(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(header::UPGRADE).iter();
    match (lines.next(), lines.next()) {
        (Some(line), None) => line.as_bytes().trim_ascii().eq_ignore_ascii_case(b"websocket"),
        _ => false,
    }
}

/// Puts the switch into a header that was freed of its hop.
pub fn write(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
}

/// Copies both ways until both sides have ended, or the session is over that it belongs to, or the instance is gone; an end on
/// one side is passed on and the other may go on.
///
/// What is `held` is let go of at the end.
pub fn tunnel(
    client: OnUpgrade,
    instance: OnUpgrade,
    held: (Arc<Conn>, InUse),
    drain: &Drain,
    session: Option<Session>,
) {
    let of_tunnel = drain.clone();
    // With the instance its sessions end too.
    let over = session.as_ref().map_or_else(|| held.1.gone(), |session| session.over.clone());
    drain.tracker.spawn(async move {
        let open = metrics::gauge!("router_open_tunnels");
        open.increment(1.0);
        let activity = Activity::new();
        tokio::select! {
            () = of_tunnel.cut.cancelled() => {}
            () = over.cancelled() => {}
            () = keep(session, &activity) => {}
            // A WebSocket has no natural end to wait for: at the end of the router, a pause is as good.
            () = async { of_tunnel.stop.cancelled().await; activity.silent(QUIET).await } => {}
            ended = copy(client, instance, &activity) => if let Err(error) = ended {
                tracing::debug!(cause = format!("{error:#}"), "a tunnel ended");
            }
        }
        open.decrement(1.0);
        drop(held);
    });
}

/// For ever: a WebSocket is asked for once, and its session is used for as long as something passes.
async fn keep(session: Option<Session>, activity: &Activity) {
    let Some(session) = session else { return std::future::pending().await };
    let mut before = activity.last();
    loop {
        tokio::time::sleep(LOOK).await;
        let last = activity.last();
        if last != before {
            session.is_used();
            before = last;
        }
    }
}

async fn copy(client: OnUpgrade, instance: OnUpgrade, activity: &Arc<Activity>) -> anyhow::Result<()> {
    let (client, instance): (Upgraded, Upgraded) = tokio::try_join!(client, instance)?;
    let mut instance = Watched::new(TokioIo::new(instance), Arc::clone(activity));
    tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut instance).await?;
    Ok(())
}
