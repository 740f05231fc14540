//! The internal listener: the other services' way to an instance, health, metrics, and Caddy's question whether a name
//! deserves a certificate.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{FromRequest, Path, Query, Request, State},
    response::{IntoResponse, Response},
    routing::{any, get},
};
use contracts::{
    InstanceId,
    activity::{self, Activity, ActivityList},
    deploy::WakeReason,
    egress::{EgressUsage, EgressUsageList},
    routes::{Route, SignIn},
};
use http::{HeaderValue, Method, StatusCode, Uri, header};
use http_body_util::BodyExt;
use serde::Deserialize;
use service::{Health, Json, Problem, bearer, http::RequestIds, telemetry};

use crate::{
    App,
    edge::{headers, paths},
    upstream::UpstreamError,
    wakes::sleeps,
};

/// How long an instance may take to begin its answer to the house.
const FIRST_BYTE: Duration = Duration::from_secs(60);
const PREFIX: &str = "/instances/";
/// What an instance is called there.
const HOST: &str = "instance.internal";
/// The calls by which the portal hands a browser over, and ends what came of that.
const LOGIN: &str = "/api/auth/login";
const LOGOUT: &str = "/api/auth/logout";
/// The call by which it tries a provider.
const TEST: &str = "/api/provider/test";
/// How long these wait for one that wakes: less than who asks waits for an answer.
const AWAKE: Duration = Duration::from_secs(10);

/// Everything the internal listener answers.
pub fn router(app: Arc<App>) -> Router {
    let (table, tenants) = (Arc::clone(&app.table), app.tenants.clone());
    let health = Health::new().metrics(move || tenants.metrics()).need("routes", move || {
        let known = table.is_known();
        async move { if known { Ok(()) } else { Err("no routes from deploy-control yet, and none on disk".into()) } }
    });
    let passing = Router::new()
        .route("/instances/{id}/{*path}", any(ask))
        // The one path that a wildcard has no part in.
        .route("/instances/{id}/", any(ask))
        .route(activity::PATH, get(activities))
        .route("/activity/{id}", get(activity_of))
        .route("/egress", get(all_egress))
        .route("/egress/{id}", get(egress));
    let router = bearer::require(passing, app.config.internal_tokens.clone())
        .route("/tls-ask", get(tls_ask))
        .with_state(app)
        .merge(health.routes());
    service::http::layers(router, RequestIds::FromCaller)
}

/// Beaver's own call to an instance: answered here where the router lets people in, else passed on.
async fn ask(State(app): State<Arc<App>>, request: Request) -> Result<Response, Problem> {
    let (mut parts, body) = request.into_parts();
    // The raw path: the instance shall see what the caller wrote.
    let target = parts.uri.path_and_query().map_or("", |p| p.as_str());
    let (id, path) = target.strip_prefix(PREFIX).and_then(|rest| rest.split_once('/')).unwrap_or_default();
    let id: InstanceId = id.parse().map_err(|_| Problem::not_found("not_found"))?;
    parts.uri = format!("/{path}").parse::<Uri>().map_err(|_| Problem::bad_request("The path cannot be read."))?;
    let request = Request::from_parts(parts, body);
    let of_sign_in = matches!(request.uri().path(), LOGIN | LOGOUT);
    let route = app.table.find(id);
    if let Some(route) = route.as_ref().filter(|route| sleeps(route.state) && route.sign_in == SignIn::Instance) {
        // For its owner, who is there, or for what must not wait; whoever only looks at it lets it sleep.
        let why = match request.uri().path() {
            LOGIN | TEST => WakeReason::Portal,
            LOGOUT => WakeReason::Service,
            _ => return Err(asleep()),
        };
        app.wakes.hold(route, why, AWAKE).await;
    }
    match route {
        Some(route) if route.sign_in == SignIn::Edge && paths::is_for_instances(request.uri().path()) => {
            sign_in(&app.sign_in(&route), request).await
        }
        // Whose it would be to answer is not known.
        None if of_sign_in => Err(unreachable()),
        _ => pass(&app, id, request).await,
    }
}

/// Answers in the place of a program that knows nothing of Beaver.
async fn sign_in(sign_in: &sign_in::SignIn, request: Request) -> Result<Response, Problem> {
    match (request.method(), request.uri().path()) {
        (&Method::POST, LOGIN) => {
            let Json(hand_off) = Json::from_request(request, &()).await?;
            sign_in.login(hand_off).await.map(|code| Json(code).into_response())
        }
        (&Method::POST, LOGOUT) => {
            let Json(end) = Json::from_request(request, &()).await?;
            sign_in.logout(end).await.map(|()| StatusCode::NO_CONTENT.into_response())
        }
        _ => Err(Problem::not_found("not_found")),
    }
}

/// Passes a request to an instance, whether or not its route is known.
async fn pass(app: &App, id: InstanceId, request: Request) -> Result<Response, Problem> {
    let in_use = app.uses.enter(id);
    // It would not answer before somebody wakes it.
    if app.table.find(id).is_some_and(|route| sleeps(route.state)) {
        return Err(asleep());
    }
    let (mut parts, body) = request.into_parts();
    parts.version = http::Version::HTTP_11;
    parts.extensions.clear();
    headers::remove_hop_by_hop(&mut parts.headers);
    headers::remove_ours(&mut parts.headers, SignIn::Instance);
    // The service token is for this listener, not for an instance to see.
    parts.headers.remove(header::AUTHORIZATION);
    parts.headers.remove(header::COOKIE);
    parts.headers.remove(header::EXPECT);
    parts.headers.insert(contracts::INTERNAL, HeaderValue::from_static("1"));
    parts.headers.insert(header::HOST, HeaderValue::from_static(HOST));
    if let Some(value) = telemetry::request_id().and_then(|id| HeaderValue::from_str(&id).ok()) {
        parts.headers.insert(contracts::REQUEST_ID, value);
    }
    let request = Request::from_parts(parts, body.map_err(Into::into).boxed_unsync());
    let sent = tokio::time::timeout(FIRST_BYTE, app.upstream.send(id, request)).await;
    let mut response = match sent.unwrap_or(Err(UpstreamError::Timeout)) {
        Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => return Err(no_answer()),
        Ok(response) => response,
        Err(error) => {
            let problem = match &error {
                UpstreamError::Unreachable(_) => unreachable(),
                UpstreamError::Timeout => timeout(),
                UpstreamError::Broken(_) | UpstreamError::Body(_) => no_answer(),
            };
            // No error of ours: most often it has only just been started. Who asked knows what it means.
            let cause = format!("{:#}", anyhow::Error::from(error));
            tracing::info!(instance = %id, cause, "no answer to pass on");
            return Err(problem);
        }
    };
    headers::clean_response(response.headers_mut(), SignIn::Instance, HOST);
    Ok(response.map(|body| axum::body::Body::new(in_use.until_end_of(body))))
}

fn asleep() -> Problem {
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "instance_asleep",
        "The instance sleeps, since nobody uses it. It wakes when its owner visits it.",
    )
    .retry_after(1)
}

fn unreachable() -> Problem {
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "instance_unreachable",
        "The instance does not take connections at present.",
    )
    .retry_after(1)
}

fn timeout() -> Problem {
    Problem::new(StatusCode::GATEWAY_TIMEOUT, "instance_timeout", "The instance did not answer in time.")
}

fn no_answer() -> Problem {
    Problem::new(StatusCode::BAD_GATEWAY, "instance_broken", "The instance gave no usable answer.")
}

/// How every instance is used.
async fn activities(State(app): State<Arc<App>>) -> Json<ActivityList> {
    let instances = app.table.all().iter().map(|route| activity(&app, route)).collect();
    Json(ActivityList { instances, up_ms: app.uses.began().elapsed().as_millis() as u64 })
}

/// How one is.
async fn activity_of(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<Activity>, Problem> {
    let route = id.parse().ok().and_then(|id| app.table.find(id)).ok_or_else(|| Problem::not_found("not_found"))?;
    Ok(Json(activity(&app, &route)))
}

/// The route was read first: a request that found it as it is here is counted.
fn activity(app: &App, route: &Route) -> Activity {
    let id = route.instance_id;
    let out = app.tenants.find(id).and_then(|tenant| tenant.outward.last().max(tenant.inward.last()));
    let last = app.uses.last(id).max(app.table.runs_since(id).unwrap_or(app.uses.last(id)));
    let last = out.map_or(last, |out| out.max(last));
    Activity {
        instance_id: id,
        state: route.state,
        in_flight: app.uses.in_flight(id),
        idle_ms: last.elapsed().as_millis() as u64,
    }
}

/// What one instance has used of its door out.
async fn egress(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<EgressUsage>, Problem> {
    let tenant = id.parse().ok().and_then(|id| app.tenants.find(id));
    tenant.map(|tenant| Json(tenant.usage())).ok_or_else(|| Problem::not_found("not_found"))
}

/// The same of all of them.
async fn all_egress(State(app): State<Arc<App>>) -> Json<EgressUsageList> {
    let mut instances: Vec<_> = app.tenants.all().iter().map(|tenant| tenant.usage()).collect();
    instances.sort_by_key(|usage| usage.instance_id);
    Json(EgressUsageList { instances })
}

#[derive(Deserialize)]
struct TlsAsk {
    domain: String,
}

/// 200 for a domain that is some workspace's, else 404: so that nobody makes us ask for certificates at will.
async fn tls_ask(State(app): State<Arc<App>>, Query(ask): Query<TlsAsk>) -> Response {
    let domain = ask.domain.to_ascii_lowercase();
    let slug = app.config.base_domains.iter().find_map(|base| domain.strip_suffix(base.as_str())?.strip_suffix('.'));
    match slug.and_then(|slug| app.table.get(slug)) {
        Some(_) => StatusCode::OK.into_response(),
        None => Problem::not_found("no_such_address").into_response(),
    }
}
