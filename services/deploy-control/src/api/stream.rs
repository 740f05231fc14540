//! An instance's progress as server-sent events (WHATWG HTML, section 9.2).

use std::{convert::Infallible, time::Duration};

use axum::{
    extract::{Path, Query, State},
    response::sse::{Event as SseEvent, KeepAlive, Sse},
};
use contracts::{
    AccountId, InstanceId, ProblemDetails,
    deploy::{EVENT_PAGE, InstanceUpdate},
};
use futures_util::{Stream, stream};
use http::HeaderMap;
use service::Problem;
use tokio::sync::watch;

use super::{
    Api,
    instances::{StreamQuery, parse},
};
use crate::{chain, registry};

/// How often a comment tells everybody on the way that the connection lives.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long a client waits before it connects again, in milliseconds.
const RETRY: Duration = Duration::from_secs(1);

/// Its progress as it happens: events named `instance`, each an `InstanceUpdate`; the first at once.
#[utoipa::path(get, path = "/api/instances/{id}/events/stream",
    params(("id" = InstanceId, Path), ("account_id" = AccountId, Query), ("after" = Option<i64>, Query),
        ("last-event-id" = Option<i64>, Header)),
    responses((status = 200, content_type = "text/event-stream", body = InstanceUpdate),
        (status = 404, body = ProblemDetails)))]
pub(super) async fn stream(
    State(api): State<Api>,
    Path(id): Path<String>,
    headers: HeaderMap,
    query: Result<Query<StreamQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Sse<impl Stream<Item = Result<SseEvent, Infallible>>>, Problem> {
    let Query(query) = query.map_err(|error| Problem::bad_request(error.body_text()))?;
    let id = parse(&id)?;
    let row = api.registry.get_owned(id, query.account_id).await?;
    // The first message reads again, so what comes in between is in it or wakes the second.
    let changed = api.hub.watch(id);
    let last_seen = headers.get("last-event-id").and_then(|value| value.to_str().ok()?.parse().ok());
    // A number that this instance never gave means nothing; from the beginning is always right.
    let after = last_seen.unwrap_or(query.after);
    let after = if (0..=row.last_event).contains(&after) { after } else { 0 };

    let state = Watching { api, id, changed, after, first: true };
    let updates = stream::unfold(state, |mut state| async move {
        let event = state.next().await?;
        Some((Ok(event), state))
    });
    Ok(Sse::new(updates).keep_alive(KeepAlive::new().interval(HEARTBEAT)))
}

struct Watching {
    api: Api,
    id: InstanceId,
    changed: watch::Receiver<i64>,
    after: i64,
    first: bool,
}

impl Watching {
    /// The next message; `None` at the end of the service, or when the registry fails: the client then connects again.
    async fn next(&mut self) -> Option<SseEvent> {
        if !self.first {
            let stop = self.api.stop.clone();
            tokio::select! {
                () = stop.cancelled() => return None,
                changed = self.changed.changed() => changed.ok()?,
            }
        }
        let update = match self.update().await {
            Ok(update) => update,
            Err(error) => {
                tracing::info!(error = chain(&error), "a stream ends early");
                return None;
            }
        };
        self.after = update.events.last().map_or(self.after, |event| event.seq);
        let event = SseEvent::default().event("instance").id(self.after.to_string()).json_data(&update).ok()?;
        let event = if self.first { event.retry(RETRY) } else { event };
        self.first = false;
        Some(event)
    }

    async fn update(&mut self) -> Result<InstanceUpdate, registry::Error> {
        self.changed.mark_unchanged();
        let row = self.api.registry.get(self.id).await?;
        let mut events = Vec::new();
        let mut after = self.after;
        // All of them in one message, however many there are since; each page is short.
        loop {
            let page = self.api.registry.events(self.id, after).await?;
            let Some(last) = page.last() else { break };
            after = last.seq;
            let full = page.len() as i64 == EVENT_PAGE;
            events.extend(page);
            if !full {
                break;
            }
        }
        Ok(InstanceUpdate { instance: self.api.instance(&row), events })
    }
}
