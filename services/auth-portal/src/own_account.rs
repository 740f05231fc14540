//! One's own account: where one is signed in, and the password.

use askama::Template;
use axum::{
    Form,
    extract::{Query, State},
    response::Response,
};
use contracts::authz::{ChangePassword, EndSession, SessionEntry, SessionList, SessionToken, SignedIn};
use http::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use service::{CallError, Problem};

use crate::{
    Portal,
    account::{PATIENCE, password_fault, status_of, wait_minutes},
    agent,
    next::Next,
    page::{Faults, Layout, page},
    session::{Visit, away, begin, see_other},
    texts::Texts,
    view::utc,
};

/// A session as its person sees it.
struct Place {
    sid: String,
    name: String,
    address: String,
    current: bool,
    began: String,
    began_shown: String,
    used: String,
    used_shown: String,
}

impl Place {
    fn of(entry: SessionEntry, texts: Texts) -> Self {
        Self {
            name: agent::name(&entry.user_agent).unwrap_or_else(|| texts.t("account.unknown_browser").into()),
            began: clock::rfc3339(entry.began_at_ms),
            began_shown: utc(entry.began_at_ms),
            used: clock::rfc3339(entry.last_seen_ms),
            used_shown: utc(entry.last_seen_ms),
            sid: entry.sid,
            address: entry.address,
            current: entry.current,
        }
    }
}

#[derive(Template)]
#[template(path = "portal/account.html")]
struct AccountPage {
    l: Layout,
    email: String,
    places: Vec<Place>,
    others: bool,
    /// What was just done.
    done: Option<String>,
}

/// What was just done.
#[derive(Deserialize)]
pub struct Done {
    done: Option<String>,
}

/// `GET /account`.
pub async fn account(
    State(portal): State<Portal>,
    visit: Visit,
    Query(Done { done }): Query<Done>,
) -> Result<Response, Problem> {
    let (session, session_token) = match visit.signed_in(Next::Account) {
        Ok(signed_in) => signed_in,
        Err(way) => return Ok(*way),
    };
    let l = visit.layout();
    let list = portal.authz().post::<SessionList>("/portal/sessions", &SessionToken { session_token }).await;
    let places: Vec<Place> = match list {
        Ok(list) => list.sessions.into_iter().map(|entry| Place::of(entry, l.texts)).collect(),
        Err(error) => return ended_or_away(error),
    };
    let done = match done.as_deref() {
        Some("ended") => Some(l.t("account.done_ended").into()),
        Some("others") => Some(l.t("account.done_others").into()),
        Some("password") => Some(l.t("account.done_password").into()),
        _ => None,
    };
    let others = places.iter().any(|place| !place.current);
    page(StatusCode::OK, AccountPage { l, email: session.email, places, others, done })
}

/// The session may end between two questions.
fn ended_or_away(error: CallError) -> Result<Response, Problem> {
    if error.code() == Some("session_ended") {
        return Ok(see_other(&Next::Account.login()));
    }
    Err(away(error))
}

/// Which session.
#[derive(Deserialize)]
pub struct Which {
    sid: Option<String>,
}

/// `POST /account/sessions/end`: one, or all others.
pub async fn end(
    State(portal): State<Portal>,
    visit: Visit,
    Form(Which { sid }): Form<Which>,
) -> Result<Response, Problem> {
    let (_, session_token) = match visit.signed_in(Next::Account) {
        Ok(signed_in) => signed_in,
        Err(way) => return Ok(*way),
    };
    let done = if sid.is_some() { "/account?done=ended" } else { "/account?done=others" };
    match portal.authz().post::<()>("/portal/sessions/end", &EndSession { session_token, sid }).await {
        Ok(()) => Ok(see_other(done)),
        Err(error) => ended_or_away(error),
    }
}

#[derive(Template)]
#[template(path = "portal/password.html")]
struct PasswordPage {
    l: Layout,
    /// For password managers.
    email: String,
    faults: Faults,
}

/// `GET /account/password`.
pub async fn password_page(visit: Visit) -> Result<Response, Problem> {
    match visit.signed_in(Next::Account) {
        Ok((session, _)) => {
            page(StatusCode::OK, PasswordPage { l: visit.layout(), email: session.email, faults: Faults::none() })
        }
        Err(way) => Ok(*way),
    }
}

/// The form.
#[derive(Deserialize)]
pub struct PasswordForm {
    old_password: SecretString,
    password: SecretString,
}

/// `POST /account/password`.
pub async fn change_password(
    State(portal): State<Portal>,
    visit: Visit,
    Form(form): Form<PasswordForm>,
) -> Result<Response, Problem> {
    let (session, session_token) = match visit.signed_in(Next::Account) {
        Ok(signed_in) => signed_in,
        Err(way) => return Ok(*way),
    };
    let mut shown =
        PasswordPage { l: visit.layout_at("/account/password"), email: session.email, faults: Faults::none() };
    let texts = shown.l.texts;
    if form.old_password.expose_secret().is_empty() {
        shown.faults.add("old_password", texts.t("account.old_missing"));
    }
    password_fault(&mut shown.faults, &form.password, texts);
    if !shown.faults.is_empty() {
        return page(StatusCode::UNPROCESSABLE_ENTITY, shown);
    }
    let body = ChangePassword {
        session_token,
        old_password: form.old_password,
        new_password: form.password,
        browser: visit.browser(),
    };
    let request = portal.authz().request(Method::POST, "/portal/password").timeout(PATIENCE);
    match portal.authz().json::<SignedIn>(request.json(&body)).await {
        Ok(signed_in) => {
            let mut response = see_other("/account?done=password");
            begin(&portal, &mut response, &signed_in);
            Ok(response)
        }
        Err(error) if error.code() == Some("session_ended") => Ok(see_other(&Next::Account.login())),
        Err(error) => {
            let refused = error.status().filter(|status| *status < 500);
            // Too busy to look at it is certain as well; of whatever else it is not known what became.
            let unsure = refused.is_none() && error.code() != Some("busy");
            shown.faults = match wait_minutes(&error, "too_many_attempts") {
                Some(minutes) => Faults::one("", texts.with("login.wait", "minutes", minutes)),
                None if unsure => Faults::one("", texts.t("account.password_unsure")),
                None => Faults::refused(&error, texts, &["old_password", "password"]),
            };
            if refused.is_none() {
                let cause = format!("{:#}", anyhow::Error::from(error));
                tracing::warn!(cause, "a change of a password was not answered");
            }
            page(status_of(refused), shown)
        }
    }
}
