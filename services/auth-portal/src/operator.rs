//! The operator's console, and the page that makes the first operator.

use askama::Template;
use axum::{
    Form,
    extract::{Query, State},
    response::Response,
};
use contracts::{
    InstanceId,
    authz::{OperatorState, RegisterOperator, SessionToken, SignedIn, SuspendedList},
    deploy::InstanceList,
};
use http::{HeaderMap, Method, StatusCode};
use secrecy::SecretString;
use serde::Deserialize;
use service::Problem;

use crate::{
    Portal,
    account::account_faults,
    next::Next,
    page::{Faults, Layout, page},
    session::{Visit, away, begin, cookie, put_cookie, see_other},
    texts::Texts,
    view::{phase_name, utc},
};

/// How many instances a page has.
const PAGE: usize = 50;
/// How long the link's token stays in its cookie, in seconds.
const SETUP_LIFE_S: i64 = 600;

struct Row {
    slug: String,
    origin: String,
    id: String,
    phase: String,
    suspended: bool,
    error: Option<String>,
    when: String,
    shown: String,
}

#[derive(Template)]
#[template(path = "portal/operator.html")]
struct ConsolePage {
    l: Layout,
    rows: Vec<Row>,
    next: Option<InstanceId>,
    first: bool,
    away: bool,
}

/// Where the page begins.
#[derive(Deserialize)]
pub struct Paging {
    after: Option<InstanceId>,
}

/// `GET /operator`: for operators; for everybody else there is no such page.
pub async fn console(
    State(portal): State<Portal>,
    visit: Visit,
    Query(paging): Query<Paging>,
) -> Result<Response, Problem> {
    let (_, session_token) = match visit.signed_in(Next::Operator) {
        Ok(signed_in) => signed_in,
        Err(way) => return Ok(*way),
    };
    if !visit.is_operator() {
        return Err(Problem::not_found("not_found"));
    }
    let asked = SessionToken { session_token };
    let suspended: SuspendedList = portal.authz().post("/portal/operator/suspended", &asked).await.map_err(away)?;
    let l = visit.layout();
    let after = paging.after.map(|after| format!("&after={after}")).unwrap_or_default();
    let list = portal.deploy().get::<InstanceList>(&format!("/api/instances?limit={PAGE}{after}")).await;
    let (list, away) = match list {
        Ok(list) => (list, false),
        Err(error) => {
            tracing::warn!(cause = format!("{:#}", anyhow::Error::from(error)), "instances cannot be listed");
            (InstanceList { instances: vec![], next: None }, true)
        }
    };
    let rows = list.instances.into_iter().map(|instance| Row {
        suspended: suspended.slugs.contains(&instance.slug),
        slug: instance.slug.to_string(),
        origin: instance.origin,
        id: instance.id.to_string(),
        phase: l.texts.t(&format!("phase.{}", phase_name(instance.phase))).into(),
        error: instance.error.map(|error| error.code),
        when: clock::rfc3339(instance.updated_at_ms),
        shown: utc(instance.updated_at_ms),
    });
    let rows = rows.collect();
    let status = if away { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    page(status, ConsolePage { l, rows, next: list.next, first: paging.after.is_none(), away })
}

#[derive(Template)]
#[template(path = "portal/operator_setup.html")]
struct SetupPage {
    l: Layout,
    /// Whether there is an operator already.
    exists: bool,
    /// Whether the browser brought the link's token.
    invited: bool,
    email: String,
    faults: Faults,
}

/// What the one-time link has.
#[derive(Deserialize)]
pub struct Link {
    token: Option<String>,
}

fn setup_cookie(portal: &Portal) -> &'static str {
    if portal.public().portal_secure() { "__Host-beaver_setup" } else { "beaver_setup" }
}

fn put_setup(portal: &Portal, response: &mut Response, token: &str, max_age_s: i64) {
    put_cookie(response, setup_cookie(portal), token, max_age_s, portal.public().portal_secure());
}

/// `GET /operator/setup?token=`: takes the token out of the address at once; then the form.
pub async fn setup_page(
    State(portal): State<Portal>,
    Query(link): Query<Link>,
    headers: HeaderMap,
    locale: locale::Locale,
) -> Result<Response, Problem> {
    if let Some(token) = link.token {
        let mut response = see_other("/operator/setup");
        if (1..=128).contains(&token.len()) && token.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) {
            put_setup(&portal, &mut response, &token, SETUP_LIFE_S);
        }
        return Ok(response);
    }
    let state: OperatorState = portal.authz().get("/portal/operator").await.map_err(away)?;
    let shown = SetupPage {
        l: Layout::new(locale, "/operator/setup".into(), None),
        exists: state.exists,
        invited: cookie(&headers, setup_cookie(&portal)).is_some(),
        email: String::new(),
        faults: Faults::none(),
    };
    page(StatusCode::OK, shown)
}

/// The form.
#[derive(Deserialize)]
pub struct SetupForm {
    #[serde(default)]
    email: String,
    password: SecretString,
}

/// `POST /operator/setup`.
pub async fn setup(
    State(portal): State<Portal>,
    headers: HeaderMap,
    visit: Visit,
    Form(form): Form<SetupForm>,
) -> Result<Response, Problem> {
    let (locale, texts) = (visit.locale, Texts(visit.locale));
    let token = cookie(&headers, setup_cookie(&portal)).map(SecretString::from);
    let mut shown = SetupPage {
        l: Layout::new(locale, "/operator/setup".into(), None),
        exists: false,
        invited: token.is_some(),
        email: form.email.trim().to_owned(),
        faults: Faults::none(),
    };
    let Some(token) = token else { return page(StatusCode::FORBIDDEN, shown) };
    account_faults(&mut shown.faults, &shown.email, &form.password, texts);
    if !shown.faults.is_empty() {
        return page(StatusCode::UNPROCESSABLE_ENTITY, shown);
    }
    let body = RegisterOperator {
        token,
        email: shown.email.clone(),
        password: form.password,
        locale: locale.code().into(),
        browser: visit.browser(),
    };
    let request = portal.authz().request(Method::POST, "/portal/operator").timeout(std::time::Duration::from_secs(30));
    match portal.authz().json::<SignedIn>(request.json(&body)).await {
        Ok(signed_in) => {
            let mut response = see_other("/operator");
            begin(&portal, &mut response, &signed_in);
            put_setup(&portal, &mut response, "", 0);
            Ok(response)
        }
        Err(error) => {
            shown.exists = error.code() == Some("operator_exists");
            shown.faults = Faults::refused(&error, texts, &["email", "password"]);
            let status = error.status().filter(|status| *status < 500).and_then(|s| StatusCode::from_u16(s).ok());
            tracing::warn!(cause = format!("{:#}", anyhow::Error::from(error)), "an operator was not made");
            page(status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE), shown)
        }
    }
}
