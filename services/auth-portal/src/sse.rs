//! The stream that keeps an open page true.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    extract::{Query, State},
    response::{
        IntoResponse, Response,
        sse::{self, KeepAlive, Sse},
    },
};
use contracts::AccountId;
use futures_util::StreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;
use service::Problem;
use tokio_stream::wrappers::ReceiverStream;

use crate::{Portal, live, next::Next, origin, session::Visit, texts::Texts, view::View};

/// A proxy in front cuts what is silent; so is a browser that went away found out.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// How many pages of one person may listen at once: each costs a connection to deploy-control too.
const AT_ONCE: usize = 16;

/// Who listens at present, and with how many pages.
#[derive(Clone, Default)]
pub struct Listeners(Arc<Mutex<HashMap<AccountId, usize>>>);

/// One page that listens, for as long as this lives.
struct Listener(Listeners, AccountId);

impl Listeners {
    fn counts(&self) -> MutexGuard<'_, HashMap<AccountId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self, account: AccountId) -> Option<Listener> {
        let mut counts = self.counts();
        let count = counts.entry(account).or_default();
        if *count >= AT_ONCE {
            return None;
        }
        *count += 1;
        Some(Listener(self.clone(), account))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut counts = self.0.counts();
        if let Some(count) = counts.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.1);
            }
        }
    }
}

/// Which page listens.
#[derive(Deserialize)]
pub struct Wanted {
    view: View,
}

/// `GET /events?view=`: server-sent events `live` with a [`crate::view::Live`] each, the first at once.
pub async fn events(
    State(portal): State<Portal>,
    headers: HeaderMap,
    Query(Wanted { view }): Query<Wanted>,
    visit: Visit,
) -> Result<Response, Problem> {
    if origin::is_foreign_fetch(&headers) {
        return Err(origin::refusal());
    }
    let Ok(person) = visit.person(Next::Home) else {
        return Err(Problem::new(StatusCode::UNAUTHORIZED, "session_ended", "Sign in again."));
    };
    let Some(listener) = portal.listeners().join(person.session.account_id) else {
        let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", "Too many pages are open.");
        return Err(problem.retry_after(30));
    };
    let texts = Texts(visit.locale);
    let mut last = None;
    let messages = ReceiverStream::new(live::watch(portal, person)).filter_map(move |observed| {
        let _ = &listener;
        let rendered = view.render(&observed, texts).ok().filter(|rendered| last.as_ref() != Some(rendered));
        last = rendered.clone().or(last.take());
        let event = rendered.and_then(|live| sse::Event::default().event("live").json_data(live).ok());
        std::future::ready(event.map(Ok::<_, Infallible>))
    });
    let mut response = Sse::new(messages).keep_alive(KeepAlive::new().interval(HEARTBEAT)).into_response();
    response.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    Ok(response)
}
