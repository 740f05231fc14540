//! The route feed as newline-delimited JSON.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use contracts::routes::RouteMessage;
use futures_util::stream;
use http::header;
use service::Shutdown;
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::{Instant, Interval, MissedTickBehavior},
};

use super::Api;

/// How often something is sent even when nothing changes.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Every route, then each change: one `RouteMessage` a line, for as long as the connection lasts.
#[utoipa::path(get, path = "/api/routes",
    responses((status = 200, content_type = "application/x-ndjson", body = RouteMessage)))]
pub(super) async fn feed(State(api): State<Api>) -> Response {
    let (snapshot, engine_away, changes) = api.hub.routes();
    // The router is back: checks and registrations that waited for it need not wait any longer.
    api.reconciler.nudge_waiting();

    let mut heartbeat = tokio::time::interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let version = snapshot.version;
    let away = engine_away.then_some(RouteMessage::Engine { away: true });
    let first = [Some(RouteMessage::Snapshot(snapshot)), away].into_iter().flatten().collect();
    let feed = Feed { first, version, changes, heartbeat, stop: api.stop };
    let lines = stream::unfold(feed, |mut feed| async move {
        let message = feed.next().await?;
        let mut line = serde_json::to_vec(&message).ok()?;
        line.push(b'\n');
        Some((Ok::<_, Infallible>(line), feed))
    });
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")];
    (headers, Body::from_stream(lines)).into_response()
}

struct Feed {
    first: VecDeque<RouteMessage>,
    /// What the reader has been told.
    version: u64,
    changes: broadcast::Receiver<RouteMessage>,
    heartbeat: Interval,
    stop: Shutdown,
}

impl Feed {
    /// The next message; `None` at the end of the service, or when the reader is too far behind: it connects again.
    async fn next(&mut self) -> Option<RouteMessage> {
        if let Some(first) = self.first.pop_front() {
            return Some(first);
        }
        tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            change = self.changes.recv() => match change {
                Ok(change) => {
                    if let RouteMessage::Change { version, .. } = change {
                        self.version = version;
                    }
                    Some(change)
                }
                Err(RecvError::Lagged(missed)) => {
                    tracing::warn!(missed, "a reader of the route feed is too slow and must connect again");
                    None
                }
                Err(RecvError::Closed) => None,
            },
            _ = self.heartbeat.tick() => Some(RouteMessage::Heartbeat { version: self.version }),
        }
    }
}
