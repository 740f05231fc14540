//! From the portal into a workspace, without its password: an assertion for the one who is signed in here, handed to
//! the workspace behind the browser's back; what comes back is a one-time code that only that browser can use.

use askama::Template;
use axum::{
    extract::{Path, Query, State},
    response::Response,
};
use contracts::{
    Slug,
    authz::{AssertionIssued, AssertionRequest, Purpose},
    deploy::{Instance, Phase, ResolveInstance},
    instance::{HandOff, HandOffCode, internal_path},
};
use http::{HeaderValue, Method, StatusCode, header};
use serde::Deserialize;
use service::{CallError, Problem};
use url::form_urlencoded::Serializer;

use crate::{
    Portal,
    next::{Next, is_bind, is_local_path},
    page::{Layout, page},
    session::{Person, Visit, away, see_other},
    view::phase_name,
};

#[derive(Template)]
#[template(path = "portal/not_running.html")]
struct NotRunningPage {
    l: Layout,
    slug: Slug,
    text: String,
    may_start: bool,
}

/// What the workspace sends along.
#[derive(Deserialize)]
pub struct Wanted {
    bind: Option<String>,
    rd: Option<String>,
}

/// `GET /open/{slug}?bind=&rd=`.
pub async fn open(
    State(portal): State<Portal>,
    Path(slug): Path<String>,
    Query(wanted): Query<Wanted>,
    visit: Visit,
) -> Result<Response, Problem> {
    let nothing = || Problem::not_found("not_found");
    let slug = Slug::parse(&slug).map_err(|_| nothing())?;
    let rd = wanted.rd.filter(|rd| is_local_path(rd)).unwrap_or_else(|| "/".into());
    let origin = portal.public().workspace_origin(slug.as_str());
    let bind = match wanted.bind {
        Some(bind) if is_bind(&bind) => bind,
        Some(_) => return Err(Problem::bad_request("This link is damaged. Open the workspace again.")),
        // Somebody typed this address: the workspace has to begin.
        None => return Ok(hand_on(&format!("{origin}/auth/start?{}", query("rd", &rd)))),
    };
    let next = Next::Open { slug: slug.clone(), bind: bind.clone(), rd: rd.clone() };
    let Some(session) = &visit.session else { return Ok(see_other(&next.login())) };
    // Another person's name looks like one that is nobody's.
    if session.slug.as_ref() != Some(&slug) {
        return Err(nothing());
    }
    let person = match visit.person(next) {
        Ok(person) => person,
        Err(way) => return Ok(*way),
    };
    let resolve = ResolveInstance { account_id: person.session.account_id, slug };
    let instance: Instance = match portal.deploy().post("/api/instances/resolve", &resolve).await {
        Ok(instance) => instance,
        Err(error) if error.code() == Some("instance_not_found") => return Ok(see_other("/progress")),
        Err(error) => return Err(away(error)),
    };
    // While the engine cannot be asked, a workspace that ran runs on.
    if !matches!(instance.phase, Phase::Ready | Phase::Unknown) {
        return not_running(&visit, &person, instance.phase);
    }
    match hand_off(&portal, &person, bind, rd).await {
        Ok(code) => Ok(hand_on(&format!("{origin}/auth/finish?{}", query("code", &code)))),
        Err(error) if error.code() == Some("instance_unreachable") => not_running(&visit, &person, Phase::Starting),
        Err(error) if error.code() == Some("session_ended") => Ok(see_other("/login")),
        Err(error) => Err(away(error)),
    }
}

async fn hand_off(portal: &Portal, person: &Person, bind: String, rd: String) -> Result<String, CallError> {
    let ask = AssertionRequest {
        session_token: person.token.clone(),
        slug: person.slug.clone(),
        purpose: Purpose::Login,
        bind: Some(bind),
    };
    let issued: AssertionIssued = portal.authz().post("/portal/assertion", &ask).await?;
    let body = HandOff { assertion: issued.assertion, edge_token: issued.edge_token, rd: Some(rd) };
    let router = portal.router();
    let request = router.request(Method::POST, &internal_path(issued.instance_id, "/api/auth/login"));
    let code: HandOffCode = router.json(request.timeout(std::time::Duration::from_secs(15)).json(&body)).await?;
    Ok(code.code)
}

fn query(name: &str, value: &str) -> String {
    Serializer::new(String::new()).append_pair(name, value).finish()
}

/// 303 to the workspace. No page stands here, so that the policy spoils no form's Origin.
fn hand_on(url: &str) -> Response {
    let mut response = see_other(url);
    response.headers_mut().insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

fn not_running(visit: &Visit, person: &Person, phase: Phase) -> Result<Response, Problem> {
    let l = visit.layout();
    let text = l.texts.t(&format!("phase_text.{}", phase_name(phase))).into();
    let on_its_way =
        !matches!(phase, Phase::Stopped | Phase::Failed | Phase::PendingDeletion | Phase::Deleting | Phase::Deleted);
    let shown = NotRunningPage {
        l: l.refreshing(on_its_way),
        slug: person.slug.clone(),
        text,
        may_start: phase == Phase::Stopped,
    };
    let mut response = page(StatusCode::SERVICE_UNAVAILABLE, shown)?;
    if on_its_way {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("3"));
    }
    Ok(response)
}
