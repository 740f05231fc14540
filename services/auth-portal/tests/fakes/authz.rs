//! A fake authz: accounts and sessions in memory, passwords compared as they are.

use std::collections::{BTreeMap, VecDeque};

use axum::{
    Json, Router,
    extract::{Path, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use clock::{Clock, Entropy};
use contracts::{
    AccountId, InstanceId, Slug,
    authz::{
        AccountView, Actioned, AssertionIssued, AssertionRequest, ChangePassword, EndSession, IDEMPOTENCY_KEY, Login,
        Logout, OperatorAction, OperatorQuery, OperatorState, RegisterAccount, RegisterOperator, Role, Session,
        SessionEntry, SessionList, SessionToken, SignedIn, SlugAvailability, SuspendAccount, SuspendedList,
    },
};
use http::{HeaderMap, StatusCode};
use secrecy::ExposeSecret;
use serde_json::json;

use super::{AUTHZ_TOKEN, Shared, deploy::Deploy, problem, shows};

pub const OPERATOR_TOKEN: &str = "operator-link-0123456789abcdef01";

#[derive(Clone)]
struct Account {
    id: AccountId,
    role: Role,
    email: String,
    password: String,
    slug: Option<Slug>,
    instance: Option<InstanceId>,
    locale: String,
    suspended: Option<i64>,
    actions: Vec<OperatorAction>,
}

impl Account {
    fn view(&self) -> AccountView {
        AccountView {
            account_id: self.id,
            email: self.email.clone(),
            slug: self.slug.clone(),
            instance_id: self.instance,
            created_at_ms: 1_795_000_000_000,
            suspended_at_ms: self.suspended,
            actions: self.actions.iter().rev().cloned().collect(),
        }
    }
}

/// A refusal to come: where, status, code, field, Retry-After.
pub type Refusal = (&'static str, u16, &'static str, Option<&'static str>, Option<u64>);

#[derive(Default)]
pub struct Inner {
    accounts: Vec<Account>,
    pub sessions: BTreeMap<String, Session>,
    by_key: BTreeMap<String, (String, String)>,
    /// The next calls of these paths are refused so.
    pub refusals: VecDeque<Refusal>,
    /// Every call is answered 500, as by something that is no authz.
    pub away: bool,
    /// The bodies of logins, without passwords: name, address, the session that is replaced.
    pub logins: Vec<(String, String, Option<String>)>,
    /// The devices that sign-ups and sign-ins came from, in their order.
    pub devices: Vec<Option<String>>,
    /// What every session's browser calls itself.
    pub user_agent: String,
    /// How many sessions there have been.
    begun: usize,
    /// Every assertion's request.
    pub assertions: Vec<(Slug, contracts::authz::Purpose, Option<String>)>,
    /// Logouts: the token, and whether everywhere.
    pub logouts: Vec<(String, bool)>,
    /// How many accounts were really made.
    pub made: usize,
    /// deploy-control is not told of new accounts.
    pub hold: bool,
    /// deploy-control refuses accounts' instances so, for good.
    pub refuse_delivery: Option<&'static str>,
    /// How often somebody asked for another attempt.
    pub retries: usize,
    /// How often the availability of a name was asked.
    pub asked: Vec<String>,
}

#[derive(Clone)]
pub struct Authz {
    pub inner: Shared<Inner>,
    deploy: Deploy,
    entropy: Entropy,
    clock: Clock,
}

impl Authz {
    pub fn new(deploy: Deploy) -> Self {
        Self { inner: Shared::default(), deploy, entropy: Entropy::system(), clock: Clock::system() }
    }

    pub fn refuse(&self, refusal: Refusal) {
        self.inner.lock().refusals.push_back(refusal);
    }

    pub fn router(&self) -> Router {
        let guarded = Router::new()
            .route("/portal/register", post(register))
            .route("/portal/slugs/{text}", get(slug))
            .route("/portal/login", post(login))
            .route("/portal/session", post(session))
            .route("/portal/logout", post(logout))
            .route("/portal/operator/account", post(operator_account))
            .route("/portal/operator/suspend", post(suspend))
            .route("/portal/operator/suspended", post(suspended))
            .route("/portal/sessions", post(sessions))
            .route("/portal/sessions/end", post(end_session))
            .route("/portal/password", post(change_password))
            .route("/portal/retry-delivery", post(retry_delivery))
            .route("/portal/new-instance", post(async || problem(409, "instance_exists", None)))
            .route("/portal/assertion", post(assertion))
            .route("/portal/issuer", get(async || Json(json!({ "issuer": "public" }))))
            .route("/portal/operator", get(operator).post(register_operator))
            .route_layer(middleware::from_fn_with_state(self.clone(), guard));
        Router::new()
            .route("/healthz", get(async || "ok"))
            .route("/.well-known/jwks.json", get(async || Json(json!({ "keys": [] }))))
            // What instances are told; nobody outside has a use for it.
            .route("/.well-known/oauth-authorization-server", get(async || Json(json!({ "issuer": "internal" }))))
            .merge(guarded)
            .with_state(self.clone())
    }

    fn begin(&self, inner: &mut Inner, account: &Account) -> SignedIn {
        let token = self.entropy.token();
        let session = Session {
            sid: format!("sid-{}", inner.begun),
            account_id: account.id,
            role: account.role,
            email: account.email.clone(),
            slug: account.slug.clone(),
            instance_id: account.instance,
            instance_error: inner.refuse_delivery.filter(|_| account.instance.is_some()).map(str::to_owned),
            locale: account.locale.clone(),
            expires_at_ms: self.clock.now_ms() + 7 * 86_400_000,
        };
        inner.begun += 1;
        inner.sessions.insert(token.clone(), session.clone());
        SignedIn { session_token: token.into(), device_token: self.entropy.token().into(), session }
    }
}

async fn guard(State(authz): State<Authz>, request: Request, next: Next) -> Response {
    if !shows(request.headers(), AUTHZ_TOKEN) {
        return problem(401, "service_token_required", None);
    }
    let refusal = {
        let mut inner = authz.inner.lock();
        if inner.away {
            return (StatusCode::INTERNAL_SERVER_ERROR, "<html>secret internals</html>").into_response();
        }
        let due = inner.refusals.iter().position(|refusal| request.uri().path() == refusal.0);
        due.and_then(|at| inner.refusals.remove(at))
    };
    match refusal {
        Some((_, status, code, field, wait)) => {
            let mut response = problem(status, code, field);
            if let Some(seconds) = wait {
                response.headers_mut().insert("retry-after", seconds.into());
            }
            response
        }
        None => next.run(request).await,
    }
}

fn taken(inner: &Inner, slug: &str) -> bool {
    slug == "taken" || inner.accounts.iter().any(|account| account.slug.as_ref().is_some_and(|s| s.as_str() == slug))
}

async fn register(State(authz): State<Authz>, headers: HeaderMap, Json(body): Json<RegisterAccount>) -> Response {
    let mut inner = authz.inner.lock();
    let Some(key) = headers.get(IDEMPOTENCY_KEY).and_then(|key| key.to_str().ok()).map(str::to_owned) else {
        return problem(400, "idempotency_key_required", None);
    };
    inner.devices.push(body.browser.device.map(|device| device.expose_secret().to_owned()));
    let print = format!("{} {} {}", body.slug, body.email, body.password.expose_secret());
    if let Some((same, token)) = inner.by_key.get(&key) {
        if *same != print {
            return problem(422, "idempotency_key_reused", None);
        }
        let answer = SignedIn {
            session_token: token.clone().into(),
            device_token: authz.entropy.token().into(),
            session: inner.sessions[token].clone(),
        };
        return (StatusCode::CREATED, Json(answer)).into_response();
    }
    let slug = match Slug::parse_new(&body.slug) {
        Ok(slug) => slug,
        Err(error) => return problem(error.status(), error.code(), Some("slug")),
    };
    if taken(&inner, &body.slug) {
        return problem(409, "slug_taken", Some("slug"));
    }
    if inner.accounts.iter().any(|account| account.email == body.email) {
        return problem(409, "email_taken", Some("email"));
    }
    let account = Account {
        id: AccountId::from_uuid(authz.entropy.uuid_v7(&authz.clock)),
        role: Role::Person,
        email: body.email,
        password: body.password.expose_secret().into(),
        slug: Some(slug.clone()),
        instance: Some(InstanceId::from_uuid(authz.entropy.uuid_v7(&authz.clock))),
        locale: body.locale,
        suspended: None,
        actions: vec![],
    };
    inner.made += 1;
    inner.accounts.push(account.clone());
    let signed_in = authz.begin(&mut inner, &account);
    inner.by_key.insert(key, (print, signed_in.session_token.expose_secret().into()));
    if !inner.hold && inner.refuse_delivery.is_none() {
        authz.deploy.accept(account.id, account.instance.unwrap(), slug);
    }
    (StatusCode::CREATED, Json(signed_in)).into_response()
}

async fn slug(State(authz): State<Authz>, Path(text): Path<String>) -> Json<SlugAvailability> {
    let mut inner = authz.inner.lock();
    inner.asked.push(text.clone());
    let available = !taken(&inner, &text);
    Json(SlugAvailability { available, code: (!available).then(|| "slug_taken".into()) })
}

async fn login(State(authz): State<Authz>, Json(body): Json<Login>) -> Response {
    let mut inner = authz.inner.lock();
    let replaces = body.replaces.as_ref().map(|token| token.expose_secret().to_owned());
    inner.devices.push(body.browser.device.map(|device| device.expose_secret().to_owned()));
    inner.logins.push((body.login.clone(), body.browser.address, replaces.clone()));
    let found = inner.accounts.iter().find(|account| {
        (account.email == body.login || account.slug.as_ref().is_some_and(|slug| slug.as_str() == body.login))
            && account.password == body.password.expose_secret()
    });
    let Some(account) = found.cloned() else { return problem(401, "bad_credentials", None) };
    if account.suspended.is_some() {
        return problem(403, "account_suspended", None);
    }
    if let Some(old) = replaces {
        inner.sessions.remove(&old);
    }
    Json(authz.begin(&mut inner, &account)).into_response()
}

async fn session(State(authz): State<Authz>, Json(body): Json<SessionToken>) -> Response {
    match authz.inner.lock().sessions.get(body.session_token.expose_secret()) {
        Some(session) => Json(session.clone()).into_response(),
        None => problem(401, "session_ended", None),
    }
}

/// The place of the account that an operator means.
fn meant(inner: &Inner, token: &str, slug: &str) -> Result<usize, Box<Response>> {
    match inner.sessions.get(token) {
        None => Err(problem(401, "session_ended", None)),
        Some(session) if session.role != Role::Operator => Err(problem(403, "operator_required", None)),
        Some(_) => {
            let found = inner.accounts.iter().position(|one| one.slug.as_ref().is_some_and(|own| own.as_str() == slug));
            found.ok_or_else(|| problem(404, "account_not_found", None))
        }
    }
    .map_err(Box::new)
}

async fn operator_account(State(authz): State<Authz>, Json(body): Json<OperatorQuery>) -> Response {
    let inner = authz.inner.lock();
    match meant(&inner, body.session_token.expose_secret(), &body.slug) {
        Ok(at) => Json(inner.accounts[at].view()).into_response(),
        Err(refusal) => *refusal,
    }
}

async fn suspend(State(authz): State<Authz>, Json(body): Json<SuspendAccount>) -> Response {
    let mut inner = authz.inner.lock();
    let at = match meant(&inner, body.session_token.expose_secret(), &body.slug) {
        Ok(at) => at,
        Err(refusal) => return *refusal,
    };
    if body.suspended && body.reason.is_empty() {
        return problem(422, "reason_missing", Some("reason"));
    }
    let now = 1_795_000_000_000;
    let action = if body.suspended { Actioned::Suspended } else { Actioned::Restored };
    let account = &mut inner.accounts[at];
    account.suspended = body.suspended.then_some(now);
    account.actions.push(OperatorAction { at_ms: now, actor: "op@example.com".into(), action, reason: body.reason });
    let account = account.clone();
    if body.suspended {
        inner.sessions.retain(|_, session| session.account_id != account.id);
    }
    Json(account.view()).into_response()
}

async fn suspended(State(authz): State<Authz>) -> Json<SuspendedList> {
    let inner = authz.inner.lock();
    let theirs = inner.accounts.iter().filter(|account| account.suspended.is_some());
    Json(SuspendedList { slugs: theirs.filter_map(|account| account.slug.clone()).collect() })
}

async fn sessions(State(authz): State<Authz>, Json(body): Json<SessionToken>) -> Response {
    let inner = authz.inner.lock();
    let Some(own) = inner.sessions.get(body.session_token.expose_secret()) else {
        return problem(401, "session_ended", None);
    };
    let entry = |session: &Session| SessionEntry {
        sid: session.sid.clone(),
        current: session.sid == own.sid,
        began_at_ms: 1_795_000_000_000,
        last_seen_ms: 1_795_000_060_000,
        address: "192.0.2.7".into(),
        user_agent: inner.user_agent.clone(),
    };
    let theirs = inner.sessions.values().filter(|session| session.account_id == own.account_id);
    Json(SessionList { sessions: theirs.map(entry).collect() }).into_response()
}

async fn end_session(State(authz): State<Authz>, Json(body): Json<EndSession>) -> Response {
    let mut inner = authz.inner.lock();
    let Some(own) = inner.sessions.get(body.session_token.expose_secret()).cloned() else {
        return problem(401, "session_ended", None);
    };
    inner.sessions.retain(|_, session| {
        let meant = body.sid.as_ref().map_or(session.sid != own.sid, |sid| session.sid == *sid);
        session.account_id != own.account_id || !meant
    });
    StatusCode::NO_CONTENT.into_response()
}

async fn change_password(State(authz): State<Authz>, Json(body): Json<ChangePassword>) -> Response {
    let mut inner = authz.inner.lock();
    let Some(own) = inner.sessions.get(body.session_token.expose_secret()).cloned() else {
        return problem(401, "session_ended", None);
    };
    let account = inner.accounts.iter_mut().find(|account| account.id == own.account_id).unwrap();
    if account.password != body.old_password.expose_secret() {
        return problem(422, "password_wrong", Some("old_password"));
    }
    account.password = body.new_password.expose_secret().into();
    let account = account.clone();
    inner.sessions.retain(|_, session| session.account_id != own.account_id);
    Json(authz.begin(&mut inner, &account)).into_response()
}

async fn retry_delivery(State(authz): State<Authz>, Json(body): Json<SessionToken>) -> Response {
    let mut inner = authz.inner.lock();
    let Some(session) = inner.sessions.get(body.session_token.expose_secret()).cloned() else {
        return problem(401, "session_ended", None);
    };
    inner.retries += 1;
    let refused = inner.refuse_delivery.map(str::to_owned);
    for other in inner.sessions.values_mut().filter(|other| other.account_id == session.account_id) {
        other.instance_error.clone_from(&refused);
    }
    if refused.is_none() && !inner.hold {
        authz.deploy.accept(session.account_id, session.instance_id.unwrap(), session.slug.clone().unwrap());
    }
    Json(Session { instance_error: refused, ..session }).into_response()
}

async fn logout(State(authz): State<Authz>, Json(body): Json<Logout>) -> Response {
    let mut inner = authz.inner.lock();
    let token = body.session_token.expose_secret().to_owned();
    inner.logouts.push((token.clone(), body.everywhere));
    if let Some(session) = inner.sessions.remove(&token).filter(|_| body.everywhere) {
        inner.sessions.retain(|_, other| other.account_id != session.account_id);
    }
    StatusCode::NO_CONTENT.into_response()
}

async fn assertion(State(authz): State<Authz>, Json(body): Json<AssertionRequest>) -> Response {
    let mut inner = authz.inner.lock();
    inner.assertions.push((body.slug.clone(), body.purpose, body.bind));
    match inner.sessions.get(body.session_token.expose_secret()) {
        None => problem(401, "session_ended", None),
        Some(session) if session.slug.as_ref() != Some(&body.slug) => problem(404, "not_found", None),
        Some(session) => Json(AssertionIssued {
            instance_id: session.instance_id.unwrap(),
            assertion: "an-assertion".into(),
            edge_token: Some("an-edge-token".into()),
        })
        .into_response(),
    }
}

async fn operator(State(authz): State<Authz>) -> Json<OperatorState> {
    let exists = authz.inner.lock().accounts.iter().any(|account| account.role == Role::Operator);
    Json(OperatorState { exists })
}

async fn register_operator(State(authz): State<Authz>, Json(body): Json<RegisterOperator>) -> Response {
    let mut inner = authz.inner.lock();
    if inner.accounts.iter().any(|account| account.role == Role::Operator) {
        return problem(409, "operator_exists", None);
    }
    if body.token.expose_secret() != OPERATOR_TOKEN {
        return problem(403, "operator_link_invalid", None);
    }
    let account = Account {
        id: AccountId::from_uuid(authz.entropy.uuid_v7(&authz.clock)),
        role: Role::Operator,
        email: body.email,
        password: body.password.expose_secret().into(),
        slug: None,
        instance: None,
        locale: body.locale,
        suspended: None,
        actions: vec![],
    };
    inner.accounts.push(account.clone());
    (StatusCode::CREATED, Json(authz.begin(&mut inner, &account))).into_response()
}
