//! From the portal into a workspace, without its password: an assertion for the one who is signed in here, handed to
//! the workspace behind the browser's back; what comes back is a one-time code that only that browser can use.

use std::time::Duration;

use askama::Template;
use axum::{
    extract::{Path, Query, State},
    response::Response,
};
use contracts::{
    Slug,
    authz::{AssertionIssued, AssertionRequest, Purpose},
    deploy::{Instance, Phase, ResolveInstance, WakeInstance, WakeReason},
    instance::{HandOff, HandOffCode, internal_path},
};
use http::{HeaderValue, Method, StatusCode, header};
use serde::Deserialize;
use service::{CallError, Problem};
use tokio::time::Instant;
use url::form_urlencoded::Serializer;

use crate::{
    Portal,
    live::Known,
    next::{Next, is_bind, is_local_path},
    page::{Layout, page},
    session::{Person, Visit, away, see_other},
    view::{phase_name, sleeps},
};

/// How long a workspace that wakes is waited for before a page says that it does.
const AWAKE: Duration = Duration::from_secs(5);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(50);

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
        // The workspace has to begin, and must be awake for that: it knows nobody without a proof, and this may be the way to
        // one.
        None => {
            let begin = hand_on(&format!("{origin}/auth/start?{}", query("rd", &rd)));
            return match visit.person(Next::Home) {
                Ok(person) if person.slug == slug && !is_awake(&portal, &person).await => {
                    not_running(&visit, &person, Phase::Starting)
                }
                _ => Ok(begin),
            };
        }
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
    if !matches!(instance.phase, Phase::Ready | Phase::Unknown) && !sleeps(&instance) {
        return not_running(&visit, &person, instance.phase);
    }
    match hand_off(&portal, &person, bind, rd).await {
        Ok(code) => Ok(hand_on(&format!("{origin}/auth/finish?{}", query("code", &code)))),
        Err(error) if matches!(error.code(), Some("instance_unreachable" | "instance_asleep")) => {
            not_running(&visit, &person, Phase::Starting)
        }
        Err(error) if error.code() == Some("session_ended") => Ok(see_other("/login")),
        Err(error) => Err(away(error)),
    }
}

/// Wakes a person's workspace if it sleeps, and waits a moment for it. Whether it need not be waited for any longer: also when
/// it does not sleep, but is down, which its own page tells.
async fn is_awake(portal: &Portal, person: &Person) -> bool {
    let begun = Instant::now();
    let mut instance = Known::now(portal, person).await;
    if instance.instance().is_none_or(|instance| !sleeps(instance)) {
        return instance.instance().is_none_or(|instance| instance.phase != Phase::Starting);
    }
    let path = format!("/api/instances/{}/wake", person.instance_id);
    let body = WakeInstance { account_id: Some(person.session.account_id), why: WakeReason::Portal };
    if let Err(error) = portal.deploy().post::<Instance>(&path, &body).await {
        tracing::info!(cause = format!("{:#}", anyhow::Error::from(error)), "a workspace could not be woken");
        return false;
    }
    loop {
        instance = Known::now(portal, person).await;
        match instance.instance().map(|instance| instance.phase) {
            Some(Phase::Paused | Phase::Asleep | Phase::Starting) if begun.elapsed() < AWAKE => {
                tokio::time::sleep(LOOK).await;
            }
            Some(Phase::Paused | Phase::Asleep | Phase::Starting) => return false,
            _ => return true,
        }
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
    let code: HandOffCode = router.json(request.timeout(Duration::from_secs(15)).json(&body)).await?;
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
    } else {
        // It does not come back by itself.
        response.headers_mut().remove(header::RETRY_AFTER);
    }
    Ok(response)
}
