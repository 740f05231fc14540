//! One's own data: taking it along as a file, putting such a file back, deleting the workspace, and another one after it.

use askama::Template;
use axum::{
    Form,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use contracts::{
    Slug,
    authz::{NewInstance, Session},
    deploy::{By, DeleteInstance, Instance, Phase},
};
use http::{HeaderValue, Method, StatusCode, header};
use serde::Deserialize;
use service::{CallError, Problem};

use crate::{
    Portal,
    live::Known,
    next::Next,
    page::{Faults, Layout, page},
    session::{Person, Visit, see_other},
    texts::Texts,
    upload,
};

#[derive(Template)]
#[template(path = "portal/data.html")]
struct DataPage {
    l: Layout,
    slug: Slug,
    typed: String,
    faults: Faults,
}

fn data_page(
    visit: &Visit,
    person: &Person,
    status: StatusCode,
    typed: String,
    faults: Faults,
) -> Result<Response, Problem> {
    page(status, DataPage { l: visit.layout_at("/instance/data"), slug: person.slug.clone(), typed, faults })
}

/// `GET /instance/data`.
pub async fn show(State(portal): State<Portal>, visit: Visit) -> Result<Response, Problem> {
    let person = match visit.person(Next::Home) {
        Ok(person) => person,
        Err(way) => return Ok(*way),
    };
    match Known::now(&portal, &person).await {
        Known::Here(instance) if instance.deletion.is_none() => {
            data_page(&visit, &person, StatusCode::OK, String::new(), Faults::none())
        }
        // It is deleted, or not there yet: that page says what can be done.
        _ => Ok(see_other("/instance")),
    }
}

/// The name, typed by whoever means it.
#[derive(Deserialize)]
pub struct Meant {
    #[serde(default)]
    slug: String,
}

/// `POST /instance/delete`.
pub async fn delete(
    State(portal): State<Portal>,
    visit: Visit,
    Form(Meant { slug }): Form<Meant>,
) -> Result<Response, Problem> {
    let person = match visit.person(Next::Home) {
        Ok(person) => person,
        Err(way) => return Ok(*way),
    };
    let body = DeleteInstance { by: By::Owner(person.session.account_id), slug: slug.trim().to_owned() };
    let path = format!("/api/instances/{}/delete", person.instance_id);
    match portal.deploy().post::<Instance>(&path, &body).await {
        Ok(_) => Ok(see_other("/instance")),
        Err(error) if error.code() == Some("slug_mismatch") => {
            let faults = Faults::refused(&error, visit.layout().texts, &["slug"]);
            data_page(&visit, &person, StatusCode::UNPROCESSABLE_ENTITY, slug, faults)
        }
        Err(error) => Err(error.into()),
    }
}

/// `GET /instance/export`: everything, as one file. One that breaks off is told from a whole one by the browser, and cannot be
/// put back.
pub async fn export(State(portal): State<Portal>, visit: Visit) -> Result<Response, Problem> {
    let person = match visit.person(Next::Home) {
        Ok(person) => person,
        Err(way) => return Ok(*way),
    };
    let path = format!("/api/instances/{}/export?by={}", person.instance_id, person.session.account_id);
    let archive = portal.deploy().send(portal.deploy().request(Method::GET, &path)).await?;
    let mut response = Body::from_stream(archive.bytes_stream()).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
    let disposition = format!("attachment; filename=\"beaver-{}.tar\"", person.slug);
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::try_from(disposition).map_err(Problem::internal)?);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// `POST /instance/restore`: a file that [`export`] gave, passed on as it comes.
pub async fn restore(State(portal): State<Portal>, visit: Visit, request: Request) -> Result<Response, Problem> {
    let person = match visit.person(Next::Home) {
        Ok(person) => person,
        Err(way) => return Ok(*way),
    };
    let file = upload::file(request, "file")?;
    let path = format!("/api/instances/{}/restore?by={}", person.instance_id, person.session.account_id);
    let asked = portal.deploy().request(Method::POST, &path).header(header::CONTENT_TYPE, "application/x-tar");
    match portal.deploy().json_of_stream::<Instance, _, _>(asked, file).await {
        Ok(_) => Ok(see_other("/instance")),
        Err(error) if matches!(error.status(), Some(409 | 422)) => {
            let status = error.status().and_then(|status| StatusCode::from_u16(status).ok());
            let faults = Faults::one("file", fault(&error, visit.layout().texts));
            data_page(&visit, &person, status.unwrap_or(StatusCode::UNPROCESSABLE_ENTITY), String::new(), faults)
        }
        Err(error) => Err(error.into()),
    }
}

#[derive(Template)]
#[template(path = "portal/new_instance.html")]
struct NewPage {
    l: Layout,
    slug: String,
    faults: Faults,
}

/// `GET /instance/new`: for whom nothing is left of the workspace that they had.
pub async fn new_page(State(portal): State<Portal>, visit: Visit) -> Result<Response, Problem> {
    let person = match visit.person(Next::Home) {
        Ok(person) => person,
        Err(way) => return Ok(*way),
    };
    match Known::now(&portal, &person).await.instance() {
        Some(instance) if instance.phase == Phase::Deleted => {
            page(StatusCode::OK, NewPage { l: visit.layout(), slug: String::new(), faults: Faults::none() })
        }
        _ => Ok(see_other("/instance")),
    }
}

/// `POST /instance/new`.
pub async fn new(
    State(portal): State<Portal>,
    visit: Visit,
    Form(Meant { slug }): Form<Meant>,
) -> Result<Response, Problem> {
    let person = match visit.person(Next::Home) {
        Ok(person) => person,
        Err(way) => return Ok(*way),
    };
    let body = NewInstance { session_token: person.token, slug: slug.trim().to_owned() };
    match portal.authz().post::<Session>("/portal/new-instance", &body).await {
        Ok(_) => Ok(see_other("/progress")),
        // It was pressed twice, or taken back meanwhile.
        Err(error) if error.code() == Some("instance_exists") => Ok(see_other("/instance")),
        Err(error) if matches!(error.status(), Some(409 | 422)) => {
            let status = error.status().and_then(|status| StatusCode::from_u16(status).ok());
            let faults = Faults::refused(&error, visit.layout().texts, &["slug"]);
            let shown = NewPage { l: visit.layout_at("/instance/new"), slug, faults };
            page(status.unwrap_or(StatusCode::UNPROCESSABLE_ENTITY), shown)
        }
        Err(error) => Err(error.into()),
    }
}

/// What is wrong with the file, with the entry that is, where one is.
fn fault(error: &CallError, texts: Texts) -> String {
    let CallError::Refused { problem, .. } = error else { return texts.error("unavailable").into() };
    let said = texts.error(&problem.code);
    match problem.detail.rsplit_once(": ") {
        Some((entry, _)) if problem.code == "archive_entry" => format!("{said} {entry}"),
        _ => said.into(),
    }
}
