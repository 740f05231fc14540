//! Getting in to an instance: counted before it is looked whether it runs, and held while it wakes.
//!
//! Only its owner wakes one: by a browser that proves itself, or a program that shows one of the keys that the instance knew
//! when it fell asleep. Whoever cannot is told what strangers are always told.

use std::sync::Arc;

use contracts::{
    deploy::WakeReason,
    routes::{Route, RouteState},
};
use http::{HeaderMap, Method, Response, header, request::Parts};
use tokio::time::Instant;

use crate::{
    App,
    body::Body,
    pages::{Form, Said},
    uses::InUse,
    wakes::{Held, sleeps},
};

/// Who asks.
#[derive(Clone, Copy)]
pub enum Who<'a> {
    /// Whoever these headers prove it to be.
    Shown(&'a Parts),
    /// The owner: that was found out already.
    Owner,
}

/// Nobody gets in at present: why, and whether the owner asked for it.
pub struct Kept {
    pub said: Said,
    pub owner: bool,
}

/// Gets in, as soon as the instance runs; the route as it is then, and what tells that it is used.
///
/// # Errors
/// What is to be said instead.
pub async fn enter(
    app: &App,
    route: &Arc<Route>,
    who: Who<'_>,
    form: Form,
    method: &Method,
) -> Result<(Arc<Route>, InUse), Kept> {
    let (mut route, begun) = (Arc::clone(route), Instant::now());
    // A form that was sent cannot be sent again by a page that goes on by itself.
    let page = matches!(form, Form::Page(_)) && matches!(*method, Method::GET | Method::HEAD);
    loop {
        // First counted, then looked: who lets it sleep is told of this one, or this one learns that it sleeps.
        let mut in_use = app.uses.enter(route.instance_id);
        route = app.table.get(route.slug.as_str()).ok_or(Kept { said: Said::NoSuchAddress, owner: true })?;
        let why = why(app, &route, who, &in_use).await;
        if route.state == RouteState::Running {
            if why.is_some() {
                in_use.is_use();
            }
            return Ok((route, in_use));
        }
        drop(in_use);
        let kept = |said| Err(Kept { said, owner: why.is_some() });
        match route.state {
            RouteState::Stopped => return kept(Said::Stopped),
            RouteState::Failed => return kept(Said::Failed),
            _ => {}
        }
        // Without the engine nothing starts and nothing wakes. Looked at last: it may have gone while the request was held.
        let on_its_way = || kept(if app.table.is_engine_away() { Said::HostRestarting } else { Said::Starting });
        let limits = app.wakes.limits();
        let patience = match (page, sleeps(route.state) || app.wakes.is_waking(route.instance_id)) {
            (false, _) => limits.program,
            (true, true) => limits.page,
            // Being made, or restarted: that takes longer than anybody looks at nothing.
            (true, false) => return on_its_way(),
        };
        let Some(why) = why else { return on_its_way() };
        let left = patience.saturating_sub(begun.elapsed());
        if left.is_zero() || app.wakes.hold(&route, why, left).await == Held::GivenUp {
            return on_its_way();
        }
    }
}

/// What its owner comes for; `None` for everybody else.
async fn why(app: &App, route: &Route, who: Who<'_>, in_use: &InUse) -> Option<WakeReason> {
    let Who::Shown(parts) = who else { return Some(WakeReason::Visit) };
    if let Some(token) = app.owners.shown(&parts.headers) {
        if in_use.is_proved(token) {
            return Some(WakeReason::Visit);
        }
        if app.owners.is_owners(token, route).await {
            in_use.proved(token);
            return Some(WakeReason::Visit);
        }
    }
    if route.wake_keys.is_empty() {
        return None;
    }
    let shown = sign_in::fingerprint(shown_key(parts)?);
    route.wake_keys.contains(&shown).then_some(WakeReason::Api)
}

/// The key that a program shows to the gateway, whatever it is worth.
pub fn shown_key(parts: &Parts) -> Option<&str> {
    if !is_gateway(parts.uri.path()) {
        return None;
    }
    let headers = &parts.headers;
    service::bearer::token(headers).or_else(|| headers.get("x-api-key")?.to_str().ok().map(str::trim))
}

fn is_gateway(path: &str) -> bool {
    path == "/v1" || path.starts_with("/v1/")
}

/// Answers what a browser asks before a program in it shows its key, which it cannot show yet: in the place of a gateway that
/// sleeps, with the gateway's own answer.
pub fn preflight(parts: &Parts, route: &Route) -> Option<Response<Body>> {
    let headers: &HeaderMap = &parts.headers;
    let asks = parts.method == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    if !asks || !is_gateway(parts.uri.path()) || !sleeps(route.state) {
        return None;
    }
    let mut answer = HeaderMap::new();
    for (name, value) in [
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, OPTIONS"),
        (header::ACCESS_CONTROL_MAX_AGE, "86400"),
        (header::VARY, "access-control-request-headers"),
    ] {
        answer.insert(name, http::HeaderValue::from_static(value));
    }
    if let Some(asked) = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
    }
    let mut response = Response::new(crate::body::empty());
    *response.status_mut() = http::StatusCode::NO_CONTENT;
    *response.headers_mut() = answer;
    Some(response)
}
