//! Signing up, in and out.

use askama::Template;
use axum::{
    Form,
    extract::{Query, State},
    response::Response,
};
use contracts::authz::{IDEMPOTENCY_KEY, Login, Logout, RegisterAccount, Role, SignedIn};
use http::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use service::{CallError, Problem};

use crate::{
    Portal,
    next::{Next, NextFields},
    page::{Faults, Layout, page},
    session::{Visit, away, begin, end, see_other},
    slugs,
    texts::Texts,
};

/// The shortest password authz takes; the page says so while it is typed.
const PASSWORD_MIN: usize = 15;
/// Hashing waits its turn when many sign up at once; the person waits with it rather than being told to try again, for less than
/// the minute after which proxies in front give up. authz's line is about as long as what it can do in this time: `busy` is that
/// even the line is full, and trying again from here would only be a second one, in which nobody's turn comes first. Whoever goes
/// away meanwhile drops the call, and so leaves the line.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(50);

#[derive(Template)]
#[template(path = "portal/welcome.html")]
struct WelcomePage {
    l: Layout,
}

/// `GET /`.
pub async fn welcome(visit: Visit) -> Result<Response, Problem> {
    if visit.session.is_some() {
        return Ok(see_other("/instance"));
    }
    page(StatusCode::OK, WelcomePage { l: visit.layout() })
}

#[derive(Template)]
#[template(path = "portal/register.html")]
struct RegisterPage {
    l: Layout,
    slug: String,
    email: String,
    key: String,
    faults: Faults,
    /// The address that `{}` in place of a name becomes.
    address: String,
}

/// The sign-up form.
#[derive(Deserialize)]
pub struct RegisterForm {
    #[serde(default)]
    slug: String,
    #[serde(default)]
    email: String,
    password: SecretString,
    #[serde(default)]
    key: String,
}

/// `GET /register`.
pub async fn register_page(State(portal): State<Portal>, visit: Visit) -> Result<Response, Problem> {
    if visit.session.is_some() {
        return Ok(see_other("/instance"));
    }
    page(StatusCode::OK, empty_register(&portal, &visit))
}

fn empty_register(portal: &Portal, visit: &Visit) -> RegisterPage {
    RegisterPage {
        l: visit.layout_at("/register"),
        slug: String::new(),
        email: String::new(),
        key: portal.entropy().token(),
        faults: Faults::none(),
        address: portal.public().workspace_origin("{}"),
    }
}

/// `POST /register`.
pub async fn register(
    State(portal): State<Portal>,
    visit: Visit,
    Form(form): Form<RegisterForm>,
) -> Result<Response, Problem> {
    let texts = Texts(visit.locale);
    let mut shown = empty_register(&portal, &visit);
    (shown.slug, shown.email) = (form.slug.trim().to_owned(), form.email.trim().to_owned());
    shown.faults = register_faults(&shown.slug, &shown.email, &form.password, texts);
    if !shown.faults.is_empty() {
        return page(StatusCode::UNPROCESSABLE_ENTITY, shown);
    }
    let sound_key = (16..=64).contains(&form.key.len()) && form.key.bytes().all(|b| b.is_ascii_graphic());
    let key = if sound_key { form.key } else { shown.key.clone() };
    let body = RegisterAccount {
        slug: shown.slug.clone(),
        email: shown.email.clone(),
        password: form.password,
        locale: visit.locale.code().into(),
        browser: visit.browser(),
    };
    let request = portal.authz().request(Method::POST, "/portal/register").timeout(PATIENCE);
    match portal.authz().json::<SignedIn>(request.header(IDEMPOTENCY_KEY, &key).json(&body)).await {
        Ok(signed_in) => {
            let mut response = see_other("/progress");
            begin(&portal, &mut response, &signed_in);
            Ok(response)
        }
        Err(error) => {
            shown.faults = register_refusal(&error, texts);
            let refused = error.status().filter(|status| *status < 500);
            if refused.is_none() {
                // It may have been done all the same: sent again with the same key, nothing is made twice.
                shown.key = key;
                tracing::warn!(cause = format!("{:#}", anyhow::Error::from(error)), "a sign-up was not answered");
            }
            page(status_of(refused), shown)
        }
    }
}

fn register_refusal(error: &CallError, texts: Texts) -> Faults {
    match wait_minutes(error, "too_many_sign_ups") {
        Some(minutes) => Faults::one("", texts.with("register.wait", "minutes", minutes)),
        None => Faults::refused(error, texts, &["slug", "email", "password"]),
    }
}

fn register_faults(slug: &str, email: &str, password: &SecretString, texts: Texts) -> Faults {
    let mut faults = Faults::none();
    if let Some(text) = slugs::fault(slug, texts) {
        faults.add("slug", text);
    }
    account_faults(&mut faults, email, password, texts);
    faults
}

/// What can be said of an e-mail address and a new password without asking anybody.
pub fn account_faults(faults: &mut Faults, email: &str, password: &SecretString, texts: Texts) {
    let (name, domain) = email.rsplit_once('@').unwrap_or_default();
    if name.is_empty() || domain.is_empty() || email.len() > 254 || email.chars().any(char::is_whitespace) {
        faults.add("email", texts.error("email_invalid"));
    }
    password_fault(faults, password, texts);
}

/// What can be said of a new password without asking anybody.
pub fn password_fault(faults: &mut Faults, password: &SecretString, texts: Texts) {
    match password.expose_secret().chars().count() {
        0..PASSWORD_MIN => faults.add("password", texts.error("password_too_short")),
        257.. => faults.add("password", texts.error("password_too_long")),
        _ => {}
    }
}

/// The status of a form's page: of the refusal, or 503 when there was no answer.
pub fn status_of(refused: Option<u16>) -> StatusCode {
    refused.and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE)
}

#[derive(Template)]
#[template(path = "portal/login.html")]
struct LoginPage {
    l: Layout,
    login: String,
    next: Vec<(&'static str, String)>,
    faults: Faults,
    signed_out: bool,
}

/// The query of the sign-in page.
#[derive(Deserialize)]
pub struct LoginQuery {
    #[serde(flatten)]
    next: NextFields,
    signed_out: Option<String>,
}

/// `GET /login`.
pub async fn login_page(visit: Visit, Query(query): Query<LoginQuery>) -> Result<Response, Problem> {
    let next = query.next.read();
    if visit.session.is_some() {
        return Ok(see_other(&next.location()));
    }
    let shown = LoginPage {
        l: visit.layout(),
        login: String::new(),
        next: next.fields(),
        faults: Faults::none(),
        signed_out: query.signed_out.is_some(),
    };
    page(StatusCode::OK, shown)
}

/// The sign-in form.
#[derive(Deserialize)]
pub struct LoginForm {
    #[serde(default)]
    login: String,
    password: SecretString,
    #[serde(flatten)]
    next: NextFields,
}

/// `POST /login`.
pub async fn login(
    State(portal): State<Portal>,
    visit: Visit,
    Form(form): Form<LoginForm>,
) -> Result<Response, Problem> {
    let texts = Texts(visit.locale);
    let next = form.next.read();
    let login = form.login.trim().to_owned();
    let mut faults = Faults::none();
    if login.is_empty() {
        faults.add("login", texts.t("login.login_missing"));
    }
    if form.password.expose_secret().is_empty() {
        faults.add("password", texts.t("login.password_missing"));
    }
    let mut status = StatusCode::UNPROCESSABLE_ENTITY;
    if faults.is_empty() {
        let body = Login {
            login: login.clone(),
            password: form.password,
            browser: visit.browser(),
            replaces: visit.token.clone(),
        };
        let request = portal.authz().request(Method::POST, "/portal/login").timeout(PATIENCE);
        match portal.authz().json::<SignedIn>(request.json(&body)).await {
            Ok(signed_in) => {
                let operator = signed_in.session.role == Role::Operator && next == Next::Home;
                let mut response = see_other(&if operator { Next::Operator.location() } else { next.location() });
                begin(&portal, &mut response, &signed_in);
                return Ok(response);
            }
            Err(error) => {
                status = status_of(error.status().filter(|status| *status < 500));
                faults = login_faults(&error, texts);
                if error.status().is_none_or(|status| status >= 500) {
                    tracing::warn!(cause = format!("{:#}", anyhow::Error::from(error)), "a sign-in was not answered");
                }
            }
        }
    }
    // Whoever was signed in before still is; the page is for whoever was not.
    page(status, LoginPage { l: visit.layout_at(next.login()), login, next: next.fields(), faults, signed_out: false })
}

fn login_faults(error: &CallError, texts: Texts) -> Faults {
    match wait_minutes(error, "too_many_attempts") {
        Some(minutes) => Faults::one("", texts.with("login.wait", "minutes", minutes)),
        None => Faults::refused(error, texts, &[]),
    }
}

/// In how many minutes one may try again, when that is what the refusal says.
pub fn wait_minutes(error: &CallError, code: &str) -> Option<u64> {
    match error {
        CallError::Refused { problem, retry_after_s: Some(seconds), .. } if problem.code == code => {
            Some(seconds.div_ceil(60).max(1))
        }
        _ => None,
    }
}

/// `POST /logout`.
pub async fn logout(State(portal): State<Portal>, visit: Visit) -> Result<Response, Problem> {
    sign_out(&portal, visit, false).await
}

/// `POST /logout/everywhere`.
pub async fn logout_everywhere(State(portal): State<Portal>, visit: Visit) -> Result<Response, Problem> {
    sign_out(&portal, visit, true).await
}

async fn sign_out(portal: &Portal, visit: Visit, everywhere: bool) -> Result<Response, Problem> {
    if let (Some(session_token), Some(_)) = (visit.token, visit.session) {
        let body = Logout { session_token, everywhere };
        // Else the cookie stays: to say "signed out" while the session lives would be a lie. What the workspace made of the
        // session is authz's to end.
        portal.authz().post::<()>("/portal/logout", &body).await.map_err(away)?;
    }
    let mut response = see_other("/login?signed_out=1");
    end(portal, &mut response);
    Ok(response)
}
