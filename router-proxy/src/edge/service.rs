//! One request at the public edge: whom it is for, whether it may pass, and on its way or answered.

use std::{convert::Infallible, sync::Arc, time::Instant};

use axum::extract::FromRequestParts;
use contracts::{
    deploy::WakeReason,
    routes::{Route, RouteState, SignIn},
};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header, request::Parts};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use locale::Locale;
use serde_json::json;
use sign_in::{Redirect, Session};
use tokio_util::sync::CancellationToken;

use super::{
    Conn,
    enter::{self, Kept, Who},
    forwarded,
    framing::Refusal,
    gate::{self, Verdict},
    guard, headers, host, paths, websocket,
};
use crate::{
    App,
    body::{Body, Passing, Until},
    drain::Drain,
    pages::{self, Form, Said},
    upstream::UpstreamError,
    uses::InUse,
};

/// Answers one request. It cannot fail: what goes wrong has an answer too.
pub async fn handle(
    app: Arc<App>,
    conn: Arc<Conn>,
    drain: Drain,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let begun = Instant::now();
    let request_id = service::telemetry::new_request_id();
    let method = request.method().clone();
    let asked_to_switch = request.headers().contains_key(header::UPGRADE);
    let mut exchange = Exchange { app, conn, drain, request_id, slug: None };
    let mut response = exchange.answer(request).await;
    if asked_to_switch && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        exchange.conn.switch.stayed();
    }
    if let Ok(value) = HeaderValue::from_str(&exchange.request_id) {
        response.headers_mut().insert(contracts::REQUEST_ID, value);
    }
    let status = response.status();
    metrics::counter!("router_edge_requests_total", "class" => class(status)).increment(1);
    // Never the path: it may hold a code.
    tracing::info!(
        request_id = %exchange.request_id,
        %method,
        workspace = exchange.slug.as_deref().unwrap_or("-"),
        status = status.as_u16(),
        ms = begun.elapsed().as_millis() as u64,
        "passed"
    );
    Ok(response)
}

fn class(status: StatusCode) -> &'static str {
    match status.as_u16() {
        ..200 => "1xx",
        200..300 => "2xx",
        300..400 => "3xx",
        400..500 => "4xx",
        _ => "5xx",
    }
}

struct Exchange {
    app: Arc<App>,
    conn: Arc<Conn>,
    drain: Drain,
    request_id: String,
    slug: Option<String>,
}

impl Exchange {
    async fn answer(&mut self, request: Request<Incoming>) -> Response<Body> {
        if request.method().as_str() == guard::REFUSED {
            let place = request.uri().path().trim_start_matches('/').parse::<usize>().unwrap_or_default();
            let refusal = Refusal::ALL.get(place).copied().unwrap_or(Refusal::Malformed);
            return self.say(Said::Refused(refusal.status()), Form::Problem);
        }
        let (mut parts, body) = request.into_parts();
        let locale = match Locale::from_request_parts(&mut parts, &()).await {
            Ok(locale) => locale,
            Err(never) => match never {},
        };
        let form = pages::form(parts.uri.path(), &parts.headers, locale);
        let (slug, authority) = match host::host(&parts.uri, &parts.headers, &self.app.config.base_domains) {
            Err(host::BadHost) => return self.say(Said::BadRequest, form),
            Ok(host::Host::Other) if parts.uri.path() == "/healthz" => return pages::json(&json!({ "status": "ok" })),
            Ok(host::Host::Other) => return self.elsewhere(&parts, form),
            Ok(host::Host::Workspace { slug, authority }) => (slug, authority),
        };
        let Some(route) = self.app.table.get(&slug) else { return self.elsewhere(&parts, form) };
        self.slug = Some(slug);
        if let Some(name) = parts.uri.path().strip_prefix(pages::OWN) {
            return self.own(name, &parts, &route, form).await;
        }
        if !parts.uri.path().starts_with('/') {
            return self.say(Said::NotFound, form);
        }
        if route.sign_in == SignIn::Edge {
            return self.guarded(parts, body, &route, &authority, form).await;
        }
        if paths::is_private(parts.uri.path()) {
            return self.say(Said::NotFound, form);
        }
        if let Some(answer) = enter::preflight(&parts, &route) {
            return answer;
        }
        let entered = enter::enter(&self.app, &route, Who::Shown(&parts), form, &parts.method).await;
        let (route, in_use) = match entered {
            Ok(entered) => entered,
            Err(Kept { said, owner: true }) => return self.say(said, form),
            Err(_) => return self.say(Said::Unavailable, form),
        };
        // What the owner is recognised by is needed only when there is no answer to pass on.
        let cookies = parts.headers.get_all(header::COOKIE).iter().cloned().collect::<Vec<_>>();
        let gone = in_use.gone();
        let passing = self.pass(parts, body, &route, &authority, (None, in_use));
        match unless(gone, Said::NoSuchAddress, passing).await {
            Ok(response) => response,
            Err(said) => {
                let mut parts = Request::new(()).into_parts().0;
                for line in cookies {
                    parts.headers.append(header::COOKIE, line);
                }
                match said {
                    Said::BadRequest => self.say(said, form),
                    said => self.say_to_owner(said, &parts, &route, form).await,
                }
            }
        }
    }

    /// For a program that knows nothing of Beaver: lets its owner in, and nobody else.
    async fn guarded(
        &self,
        parts: Parts,
        body: Incoming,
        route: &Arc<Route>,
        authority: &str,
        form: Form,
    ) -> Response<Body> {
        let session = match gate::judge(&self.app.sign_in(route), &parts).await {
            Verdict::Pass(session) => session,
            Verdict::Say(said) => return self.say(said, form),
            Verdict::Redirect(to) => return self.redirect(to, form),
        };
        // Whoever comes so far is the owner.
        let passing = async {
            let (route, in_use) = match enter::enter(&self.app, route, Who::Owner, form, &parts.method).await {
                // Another one lets people in by now.
                Ok((route, _)) if route.sign_in != SignIn::Edge => return Err(Said::Unavailable),
                Ok(entered) => entered,
                Err(kept) => return Err(kept.said),
            };
            self.pass(parts, body, &route, authority, (Some(&session), in_use)).await
        };
        let passed = unless(session.over.clone(), Said::NoSession, passing).await;
        passed.unwrap_or_else(|said| self.say(said, form))
    }

    fn redirect(&self, to: Redirect, form: Form) -> Response<Body> {
        let headers = match to.headers() {
            Ok(headers) => headers,
            // Not met: the location was checked, and everything else is ours.
            Err(error) => {
                tracing::error!(%error, "a redirect that fits no header");
                return self.say(Said::NotFound, form);
            }
        };
        let mut response = Response::new(crate::body::empty());
        *response.status_mut() = StatusCode::SEE_OTHER;
        *response.headers_mut() = headers;
        response
    }

    /// Passes the request to the instance, and the answer back; with whose session, where that is the router's to know. Until
    /// the answer has ended, the instance is in use.
    async fn pass(
        &self,
        mut parts: Parts,
        body: Incoming,
        route: &Route,
        authority: &str,
        (session, mut in_use): (Option<&Session>, InUse),
    ) -> Result<Response<Body>, Said> {
        let config = &self.app.config;
        let shows_key = enter::shown_key(&parts).is_some();
        let host = authority.rsplit_once(':').map_or(authority, |(name, _)| name);
        let secure = config.public.workspaces_secure();
        let client = forwarded::client(self.conn.peer, &parts.headers, &config.trusted_proxies, secure);
        let asked = websocket::is_asked(&parts);
        let mut request = Request::from_parts(parts, ());
        let switching = asked.then(|| hyper::upgrade::on(&mut request));
        parts = request.into_parts().0;
        parts.extensions.clear();

        headers::remove_hop_by_hop(&mut parts.headers);
        headers::remove_ours(&mut parts.headers, route.sign_in);
        // Answered here, when the body is first asked for.
        parts.headers.remove(header::EXPECT);
        forwarded::write(&mut parts.headers, client, authority);
        if session.is_some() {
            headers::identify(&mut parts.headers, route);
        }
        parts.headers.insert(header::HOST, HeaderValue::from_str(authority).map_err(|_| Said::BadRequest)?);
        parts
            .headers
            .insert(contracts::REQUEST_ID, HeaderValue::from_str(&self.request_id).map_err(|_| Said::BadRequest)?);
        if switching.is_some() {
            websocket::write(&mut parts.headers);
        }
        parts.uri = origin_form(&parts.uri).ok_or(Said::BadRequest)?;
        parts.version = http::Version::HTTP_11;

        let body = Passing::new(body, || ()).boxed_unsync();
        let sent = self.app.upstream.send(route.instance_id, Request::from_parts(parts, body)).await;
        let mut response = match sent {
            Ok(response) => response,
            Err(error) => return Err(self.upstream_failed(error, route)),
        };
        if shows_key && response.status() != StatusCode::UNAUTHORIZED {
            in_use.is_use();
        }
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let (Some(client), true) = (switching, websocket::is_granted(&response)) else {
                tracing::info!(instance = %route.instance_id, "the instance switched protocols unasked");
                return Err(Said::Unreachable);
            };
            let instance = hyper::upgrade::on(&mut response);
            let held = (Arc::clone(&self.conn), in_use);
            websocket::tunnel(client, instance, held, &self.drain, session.cloned());
            self.conn.switch.switched();
            headers::clean_response(response.headers_mut(), route.sign_in, host);
            websocket::write(response.headers_mut());
            return Ok(response.map(|_| crate::body::empty()));
        }
        headers::clean_response(response.headers_mut(), route.sign_in, host);
        Ok(response.map(|body| in_use.until_end_of(body).boxed_unsync()))
    }

    fn upstream_failed(&self, error: UpstreamError, route: &Route) -> Said {
        let (said, kind) = match &error {
            // A restart of the workspace, which is what else would be advised, needs the engine.
            UpstreamError::Unreachable(_) if self.app.table.is_engine_away() => (Said::HostRestarting, "unreachable"),
            UpstreamError::Unreachable(_) => (Said::Unreachable, "unreachable"),
            UpstreamError::Broken(_) => (Said::Unreachable, "broken"),
            UpstreamError::Timeout => (Said::Timeout, "timeout"),
            UpstreamError::Body(_) => (Said::BadRequest, "client"),
        };
        metrics::counter!("router_upstream_errors_total", "kind" => kind).increment(1);
        let cause = format!("{:#}", anyhow::Error::from(error));
        tracing::info!(request_id = %self.request_id, instance = %route.instance_id, cause, "no answer to pass on");
        said
    }

    /// The router's own paths on a workspace's host.
    async fn own(&self, name: &str, parts: &Parts, route: &Route, form: Form) -> Response<Body> {
        if !matches!(parts.method, Method::GET | Method::HEAD) {
            return self.say(Said::NotFound, form);
        }
        if let Some(asset) = pages::asset(name) {
            return asset;
        }
        if name == "ready" && self.app.owners.is_owner(&parts.headers, route).await {
            let waiting = match route.state {
                RouteState::Starting => true,
                RouteState::Paused | RouteState::Asleep => {
                    self.app.wakes.ask(route.instance_id, WakeReason::Visit);
                    true
                }
                RouteState::Running => !self.app.upstream.is_reachable(route.instance_id).await,
                _ => false,
            };
            return pages::json(&json!({ "waiting": waiting }));
        }
        self.say(Said::NotFound, form)
    }

    /// A host that is no workspace's.
    fn elsewhere(&self, parts: &Parts, form: Form) -> Response<Body> {
        let asset = parts.uri.path().strip_prefix(pages::OWN).and_then(pages::asset);
        asset.unwrap_or_else(|| self.say(Said::NoSuchAddress, form))
    }

    /// Says it to the owner; everybody else hears that it is not available, whatever it is.
    async fn say_to_owner(&self, said: Said, parts: &Parts, route: &Route, form: Form) -> Response<Body> {
        if self.app.owners.is_owner(&parts.headers, route).await {
            self.say(said, form)
        } else {
            self.say(Said::Unavailable, form)
        }
    }

    fn say(&self, said: Said, form: Form) -> Response<Body> {
        let mut response = pages::answer(said, form, &self.app.portal, &self.request_id);
        if matches!(said, Said::BadRequest | Said::Refused(_)) {
            // Whoever sends one of these has nothing more to say here.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// What is passed on, unless it is `over`: before there is an answer `said` is all there is, and afterwards the answer breaks off.
async fn unless(
    over: CancellationToken,
    said: Said,
    passing: impl Future<Output = Result<Response<Body>, Said>>,
) -> Result<Response<Body>, Said> {
    let response = tokio::select! {
        passed = passing => passed?,
        () = over.cancelled() => return Err(said),
    };
    Ok(response.map(|body| Until::new(body, over).boxed_unsync()))
}

/// The path and query alone, which is what an instance is asked for.
fn origin_form(uri: &Uri) -> Option<Uri> {
    let path = uri.path_and_query()?;
    if !path.as_str().starts_with('/') {
        return None;
    }
    Some(Uri::from(path.clone()))
}
