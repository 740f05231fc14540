//! The bring-up, and "my workspace".

use std::num::NonZeroU32;

use askama::Template;
use axum::{
    Form,
    extract::{Path, Query, State},
    response::Response,
};
use contracts::{
    authz::{Session, SessionToken},
    deploy::{By, Instance, OnBehalfOf, UndeleteInstance},
};
use http::StatusCode;
use serde::Deserialize;
use service::Problem;

use crate::{
    Portal,
    history::Past,
    live::{Known, Observed},
    next::Next,
    page::{self, Layout},
    session::{Visit, away, see_other},
    traffic::Traffic,
    view::View,
};

#[derive(Template)]
#[template(path = "portal/live.html")]
struct LivePage {
    l: Layout,
    title: String,
    view: &'static str,
    say: String,
    part: String,
    beside: Beside,
}

/// What stands beside the part of the page that changes.
#[derive(Default)]
struct Beside {
    lead: String,
    past: Option<Past>,
    traffic: Option<Traffic>,
}

fn live_page(visit: &Visit, view: View, observed: &Observed, beside: Beside) -> Result<Response, Problem> {
    let l = visit.layout();
    let live = view.render(observed, l.texts)?;
    if let Some(path) = live.go {
        return Ok(see_other(path));
    }
    let title = l.t(view.title()).into();
    let l = l.refreshing(live.waiting);
    page::page(StatusCode::OK, LivePage { l, title, view: view.name(), say: live.say, part: live.html, beside })
}

/// `GET /progress`.
pub async fn progress(State(portal): State<Portal>, visit: Visit) -> Result<Response, Problem> {
    let person = match visit.person(Next::Home) {
        Ok(person) => person,
        Err(way) => return Ok(*way),
    };
    let observed = Observed::now(&portal, &person).await;
    let origin = portal.public().workspace_origin(person.slug.as_str());
    let lead = visit.layout().texts.with("progress.lead", "address", origin);
    live_page(&visit, View::Progress, &observed, Beside { lead, ..Beside::default() })
}

/// `GET /applying`.
pub async fn applying(State(portal): State<Portal>, visit: Visit) -> Result<Response, Problem> {
    let person = match visit.person(Next::Home) {
        Ok(person) => person,
        Err(way) => return Ok(*way),
    };
    let observed = Observed::now(&portal, &person).await;
    if let Some(way) = not_there_yet(&observed) {
        return Ok(way);
    }
    live_page(&visit, View::Applying, &observed, Beside::default())
}

/// Which events are to be shown.
#[derive(Deserialize)]
pub struct Paging {
    /// Those from before this one, in place of the newest.
    before: Option<NonZeroU32>,
}

/// `GET /instance?before=`.
pub async fn page(
    State(portal): State<Portal>,
    visit: Visit,
    Query(Paging { before }): Query<Paging>,
) -> Result<Response, Problem> {
    let person = match visit.person(Next::Home) {
        Ok(person) => person,
        Err(way) => return Ok(*way),
    };
    let observed = Observed::now(&portal, &person).await;
    if let Some(way) = not_there_yet(&observed) {
        return Ok(way);
    }
    let t = visit.layout().texts;
    let (view, past) = match before {
        None => (View::Instance, None),
        Some(before) => (View::Past, Some(Past::of(&portal, &person, before.get().into(), t).await)),
    };
    let traffic = Traffic::of(&portal, person.instance_id, t).await;
    live_page(&visit, view, &observed, Beside { past, traffic, ..Beside::default() })
}

/// The way to the bring-up's page, while deploy-control has no such instance.
fn not_there_yet(observed: &Observed) -> Option<Response> {
    matches!(observed.known, Known::Waiting | Known::Refused(_)).then(|| see_other("/progress"))
}

/// Which page asks.
#[derive(Deserialize)]
pub struct From {
    #[serde(default)]
    from: String,
}

/// `POST /instance/{action}`: stop, start, restart, retry or undelete.
pub async fn act(
    State(portal): State<Portal>,
    visit: Visit,
    Path(action): Path<String>,
    Form(From { from }): Form<From>,
) -> Result<Response, Problem> {
    if !matches!(action.as_str(), "stop" | "start" | "restart" | "retry" | "undelete") {
        return Err(Problem::not_found("not_found"));
    }
    let person = match visit.person(Next::Home) {
        Ok(person) => person,
        Err(way) => return Ok(*way),
    };
    if action == "retry" && person.session.instance_error.is_some() {
        let body = SessionToken { session_token: person.token };
        portal.authz().post::<Session>("/portal/retry-delivery", &body).await.map_err(away)?;
        return Ok(see_other("/progress"));
    }
    let account_id = person.session.account_id;
    let path = format!("/api/instances/{}/{action}", person.instance_id);
    let deploy = portal.deploy();
    let taken = match action.as_str() {
        "undelete" => deploy.post::<Instance>(&path, &UndeleteInstance { by: By::Owner(account_id) }).await,
        _ => deploy.post::<Instance>(&path, &OnBehalfOf { account_id }).await,
    };
    match taken {
        Ok(_) => Ok(see_other(if from == "progress" { "/progress" } else { "/instance" })),
        // It is still to be made, such as after a second press of "try again": its page tells how far that is.
        Err(error) if error.code() == Some("instance_not_found") => Ok(see_other("/progress")),
        Err(error) => Err(error.into()),
    }
}
