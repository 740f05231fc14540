//! What the tests share: authz on a fresh database, and a fake deploy-control.

use std::sync::{
    Arc,
    atomic::{AtomicU16, AtomicUsize, Ordering},
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::post,
};
use clock::{Clock, Entropy, ManualClock};
use contracts::{
    InstanceId, PlanName,
    deploy::{Desired, Instance, Phase, RegisterInstance, Reserved, ResolveInstance, StopInstance},
    instance::EndSessions,
};
use http::{HeaderMap, Request, StatusCode};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use settings::Env;
use store::testing::TestStore;
use token::{AssertionClaims, Claims, Expected, Kind, NoExtra, SigningKey};
use tower::ServiceExt;

use crate::{MIGRATOR, app::App, config::Config};

/// The time at which every test begins.
pub const START_MS: i64 = 1_800_000_000_000;
pub const INTERNAL_TOKEN: &str = "internal-token-of-the-tests-0123456789";
pub const OPERATOR_TOKEN: &str = "operator-token-of-the-tests-0123456789";
pub const DEPLOY_TOKEN: &str = "deploy-token-of-the-tests-0123456789abc";
pub const ROUTER_TOKEN: &str = "router-token-of-the-tests-0123456789abc";
pub const SEAL_KEY: &str = "seal-key-of-the-tests-0123456789abcdef";
pub const ISSUER: &str = "http://beaver-authz-service:19090";
pub const PUBLIC_ISSUER: &str = "http://localhost:3081";
pub const PASSWORD: &str = "seven sticks make one lodge";

/// authz under test.
pub struct Authz {
    pub app: Arc<App>,
    pub hand: ManualClock,
    pub deploy: FakeDeployControl,
    pub workspaces: FakeWorkspaces,
    pub store: TestStore,
    router: Router,
}

/// One authz on each kind of database.
pub async fn everywhere() -> Vec<Authz> {
    let mut all = vec![];
    for store in store::testing::databases(&MIGRATOR).await {
        all.push(Authz::on(store).await);
    }
    all
}

pub fn config(deploy_url: &str, router_url: &str) -> Config {
    let env = Env::from_pairs([
        ("BEAVER_AUTHZ_INTERNAL_TOKEN", INTERNAL_TOKEN),
        ("BEAVER_OPERATOR_TOKEN", OPERATOR_TOKEN),
        ("BEAVER_SEAL_KEY", SEAL_KEY),
        ("BEAVER_DEPLOY_TOKEN", DEPLOY_TOKEN),
        ("BEAVER_DEPLOY_URL", deploy_url),
        ("BEAVER_ROUTER_INTERNAL_TOKEN", ROUTER_TOKEN),
        ("BEAVER_ROUTER_INTERNAL_URL", router_url),
    ]);
    Config::from_env(&env).unwrap()
}

impl Authz {
    pub async fn on(store: TestStore) -> Self {
        Self::with(store, |config| config).await
    }

    /// With other settings.
    pub async fn with(store: TestStore, change: impl FnOnce(Config) -> Config) -> Self {
        let (deploy, workspaces) = (FakeDeployControl::start().await, FakeWorkspaces::start().await);
        let (clock, hand) = Clock::manual(START_MS);
        let config = change(config(&deploy.url, &workspaces.url));
        let app = App::new(config, store.clone(), clock, Entropy::system()).await.unwrap();
        Self { router: app.router(), app, hand, deploy, workspaces, store }
    }

    /// Another process on the same database, as if the first had died `later_ms` ago.
    pub async fn another_process(&self, later_ms: i64) -> Arc<App> {
        let clock = Clock::manual(self.app.clock.now_ms() + later_ms).0;
        let config = config(&self.deploy.url, &self.workspaces.url);
        App::new(config, self.store.clone(), clock, Entropy::system()).await.unwrap()
    }

    /// On SQLite alone, for what does not depend on the database.
    pub async fn simple() -> Self {
        Self::on(store::testing::sqlite(&MIGRATOR).await).await
    }

    pub fn name(&self) -> String {
        self.store.name()
    }

    pub async fn send(&self, request: Request<Body>) -> Reply {
        Self::send_to(self.router.clone(), request).await
    }

    async fn send_to(router: Router, request: Request<Body>) -> Reply {
        let response = router.oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        Reply { status: parts.status, headers: parts.headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
    }

    /// With the service token.
    pub async fn post(&self, path: &str, body: &impl Serialize) -> Reply {
        self.send(json_request(path, body).body(Body::from(serde_json::to_vec(body).unwrap())).unwrap()).await
    }

    pub async fn get(&self, path: &str) -> Reply {
        let request = Request::get(path).header("authorization", format!("Bearer {INTERNAL_TOKEN}"));
        self.send(request.body(Body::empty()).unwrap()).await
    }

    pub async fn register_with(&self, key: &str, body: &Value) -> Reply {
        Self::register_at(&self.app, key, body).await
    }

    /// Signs somebody up at one of several processes.
    pub async fn register_at(process: &Arc<App>, key: &str, body: &Value) -> Reply {
        let request = json_request("/portal/register", body).header("idempotency-key", key);
        Self::send_to(process.router(), request.body(Body::from(body.to_string())).unwrap()).await
    }

    pub async fn register(&self, body: &Value) -> Reply {
        self.register_with(&Entropy::system().token(), body).await
    }

    /// Signs somebody up and gives the session.
    pub async fn person(&self, slug: &str) -> Person {
        let reply = self.register(&sign_up(slug)).await;
        assert_eq!(reply.status, StatusCode::CREATED, "{}", reply.text);
        Person::of(&reply)
    }

    pub async fn login(&self, login: &str, password: &str, address: &str) -> Reply {
        self.login_with(login, password, browser(address, None)).await
    }

    pub async fn login_with(&self, login: &str, password: &str, browser: Value) -> Reply {
        self.post("/portal/login", &json!({"login": login, "password": password, "browser": browser})).await
    }

    pub async fn session(&self, token: &str) -> Reply {
        self.post("/portal/session", &json!({ "session_token": token })).await
    }

    pub async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(self.store.pool()).await.unwrap()
    }
}

fn json_request(path: &str, _body: &impl Serialize) -> http::request::Builder {
    Request::post(path)
        .header("content-type", "application/json")
        .header("authorization", format!("Bearer {INTERNAL_TOKEN}"))
}

pub fn sign_up(slug: &str) -> Value {
    json!({
        "slug": slug, "email": format!("{slug}@example.com"), "password": PASSWORD, "locale": "zh-CN",
        "browser": browser("203.0.113.1", None),
    })
}

/// A browser at an address, with a device cookie or without.
pub fn browser(address: &str, device: Option<&str>) -> Value {
    json!({ "address": address, "user_agent": "Mozilla/5.0 (X11; Linux x86_64) Test/1.0", "device": device })
}

/// A person who is signed in.
#[derive(Clone, Debug)]
pub struct Person {
    pub token: String,
    pub device: String,
    pub sid: String,
    pub account_id: String,
    pub instance_id: String,
    pub slug: String,
}

impl Person {
    pub fn of(reply: &Reply) -> Self {
        let body: Value = reply.json();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let session = &body["session"];
        Self {
            token: text(&body["session_token"]),
            device: text(&body["device_token"]),
            sid: text(&session["sid"]),
            account_id: text(&session["account_id"]),
            instance_id: text(&session["instance_id"]),
            slug: text(&session["slug"]),
        }
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Reply {
    pub fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// Status and code of a problem.
    pub fn problem(&self) -> (u16, String) {
        let body: Value = self.json();
        (self.status.as_u16(), body["code"].as_str().unwrap_or("no code").to_owned())
    }

    /// Status, code and field of a problem.
    pub fn field(&self) -> (u16, String, String) {
        let ((status, code), body) = (self.problem(), self.json::<Value>());
        (status, code, body["field"].as_str().unwrap_or_default().to_owned())
    }

    pub fn retry_after(&self) -> Option<u64> {
        self.headers.get("retry-after")?.to_str().ok()?.parse().ok()
    }
}

/// A fake deploy-control: takes instances, and can be told to fail.
#[derive(Clone)]
pub struct FakeDeployControl {
    pub url: String,
    state: Arc<FakeState>,
}

#[derive(Default)]
struct FakeState {
    /// 0: take them.
    fails_with: AtomicU16,
    hangs: std::sync::atomic::AtomicBool,
    calls: AtomicUsize,
    taken: std::sync::Mutex<Vec<RegisterInstance>>,
    stopped: std::sync::Mutex<Vec<(InstanceId, Option<String>)>>,
    /// The id of one that is made ahead.
    ahead: std::sync::Mutex<Option<InstanceId>>,
    /// What every instance is said to be; accepted when nothing else was said.
    phase: std::sync::Mutex<Option<Phase>>,
}

impl FakeDeployControl {
    pub async fn start() -> Self {
        let state = Arc::new(FakeState::default());
        let router = Router::new()
            .route("/api/instances/register", post(take))
            .route("/api/instances/reserve", post(reserve))
            .route("/api/instances/resolve", post(resolve))
            .route("/api/instances/{id}/stop", post(stop))
            .with_state(Arc::clone(&state));
        Self { url: serve(router).await, state }
    }

    /// What was to be stopped, in the order it came.
    pub fn stopped(&self) -> Vec<String> {
        self.state.stopped.lock().unwrap().iter().map(|(id, _)| id.to_string()).collect()
    }

    /// Why, as often as something was to be stopped.
    pub fn stopped_for(&self) -> Vec<Option<String>> {
        self.state.stopped.lock().unwrap().iter().map(|(_, reason)| reason.clone()).collect()
    }

    /// From now on it says that every instance is so.
    pub fn say(&self, phase: Phase) {
        *self.state.phase.lock().unwrap() = Some(phase);
    }

    /// From now on one with this id is made ahead, for the next who asks; without, it cannot say.
    pub fn make_ahead(&self, id: Option<InstanceId>) {
        *self.state.ahead.lock().unwrap() = id;
    }

    /// From now on it knows of nothing.
    pub fn forget(&self) {
        self.state.taken.lock().unwrap().clear();
    }

    /// From now on it answers with this status; 0 makes it work again.
    pub fn fail_with(&self, status: u16) {
        self.state.fails_with.store(status, Ordering::SeqCst);
    }

    /// From now on it takes requests and never answers.
    pub fn hang(&self, hangs: bool) {
        self.state.hangs.store(hangs, Ordering::SeqCst);
    }

    pub fn calls(&self) -> usize {
        self.state.calls.load(Ordering::SeqCst)
    }

    /// The names it took, in the order they came.
    pub fn taken(&self) -> Vec<RegisterInstance> {
        self.state.taken.lock().unwrap().clone()
    }
}

async fn reserve(State(state): State<Arc<FakeState>>) -> Result<Json<Reserved>, StatusCode> {
    if state.hangs.load(Ordering::SeqCst) {
        std::future::pending::<()>().await;
    }
    let instance_id = state.ahead.lock().unwrap().take().ok_or(StatusCode::BAD_GATEWAY)?;
    Ok(Json(Reserved { instance_id }))
}

async fn take(
    State(state): State<Arc<FakeState>>,
    headers: HeaderMap,
    Json(body): Json<RegisterInstance>,
) -> Result<(StatusCode, Json<Instance>), (StatusCode, Json<Value>)> {
    state.calls.fetch_add(1, Ordering::SeqCst);
    if state.hangs.load(Ordering::SeqCst) {
        std::future::pending::<()>().await;
    }
    let refuse = |status: u16| {
        let problem =
            json!({"type": "about:blank", "title": "-", "status": status, "code": "fake_refusal", "detail": "-"});
        Err((StatusCode::from_u16(status).unwrap(), Json(problem)))
    };
    if headers.get("authorization").is_none_or(|shown| shown != &format!("Bearer {DEPLOY_TOKEN}")) {
        return refuse(401);
    }
    match state.fails_with.load(Ordering::SeqCst) {
        0 => {}
        status => return refuse(status),
    }
    let mut taken = state.taken.lock().unwrap();
    if !taken.iter().any(|one| one.instance_id == body.instance_id) {
        taken.push(body.clone());
    }
    Ok((StatusCode::ACCEPTED, Json(instance(&body))))
}

fn instance(of: &RegisterInstance) -> Instance {
    Instance {
        id: of.instance_id,
        origin: format!("http://{}.localhost:8088", of.slug),
        slug: of.slug.clone(),
        account_id: of.account_id,
        plan: PlanName::workspace(),
        takes_provider: true,
        waiting: None,
        desired: Desired::Running,
        phase: Phase::Accepted,
        error: None,
        deletion: None,
        generation: 1,
        observed_generation: 0,
        config_generation: 0,
        applied_config_generation: 0,
        created_at_ms: START_MS,
        updated_at_ms: START_MS,
    }
}

async fn resolve(State(state): State<Arc<FakeState>>, Json(body): Json<ResolveInstance>) -> Response {
    match state.fails_with.load(Ordering::SeqCst) {
        0 => {}
        status => return problem(status, "fake_refusal"),
    }
    let taken = state.taken.lock().unwrap();
    match taken.iter().find(|one| one.slug == body.slug && one.account_id == body.account_id) {
        Some(found) => {
            let phase = state.phase.lock().unwrap().unwrap_or(Phase::Accepted);
            Json(Instance { phase, ..instance(found) }).into_response()
        }
        None => problem(404, "instance_not_found"),
    }
}

async fn stop(
    State(state): State<Arc<FakeState>>,
    Path(id): Path<InstanceId>,
    Json(StopInstance { account_id, suspended_for }): Json<StopInstance>,
) -> Response {
    match state.fails_with.load(Ordering::SeqCst) {
        0 => {}
        status => return problem(status, "fake_refusal"),
    }
    let taken = state.taken.lock().unwrap();
    match taken.iter().find(|one| one.instance_id == id && one.account_id == account_id) {
        Some(found) => {
            state.stopped.lock().unwrap().push((id, suspended_for));
            (StatusCode::ACCEPTED, Json(instance(found))).into_response()
        }
        None => problem(404, "instance_not_found"),
    }
}

fn problem(status: u16, code: &str) -> Response {
    let body = json!({"type": "about:blank", "title": "-", "status": status, "code": code, "detail": "-"});
    (StatusCode::from_u16(status).unwrap(), Json(body)).into_response()
}

async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

/// Fake workspaces behind a fake router: they hear of sessions that ended, and can be told not to.
#[derive(Clone)]
pub struct FakeWorkspaces {
    pub url: String,
    state: Arc<Workspaces>,
}

#[derive(Default)]
struct Workspaces {
    /// 0: they answer 204.
    answer_with: AtomicU16,
    /// Those that take the request and never answer.
    hanging: std::sync::Mutex<Vec<InstanceId>>,
    calls: std::sync::Mutex<Vec<(InstanceId, String)>>,
}

impl FakeWorkspaces {
    async fn start() -> Self {
        let state = Arc::new(Workspaces::default());
        let router = Router::new().route("/instances/{id}/api/auth/logout", post(hear)).with_state(Arc::clone(&state));
        Self { url: serve(router).await, state }
    }

    /// From now on every one answers with this status; 0 makes them work again.
    pub fn answer_with(&self, status: u16) {
        self.state.answer_with.store(status, Ordering::SeqCst);
    }

    /// From now on this one never answers.
    pub fn hang(&self, person: &Person) {
        self.state.hanging.lock().unwrap().push(person.instance_id.parse().unwrap());
    }

    /// The assertions that came for a person's workspace, in their order.
    pub fn heard(&self, person: &Person) -> Vec<String> {
        let calls = self.state.calls.lock().unwrap();
        calls.iter().filter(|(id, _)| id.to_string() == person.instance_id).map(|(_, said)| said.clone()).collect()
    }
}

async fn hear(
    State(state): State<Arc<Workspaces>>,
    Path(id): Path<InstanceId>,
    headers: HeaderMap,
    Json(EndSessions { assertion }): Json<EndSessions>,
) -> Response {
    if headers.get("authorization").is_none_or(|shown| shown != &format!("Bearer {ROUTER_TOKEN}")) {
        return problem(401, "service_token_required");
    }
    state.calls.lock().unwrap().push((id, assertion));
    let hangs = state.hanging.lock().unwrap().contains(&id);
    if hangs {
        std::future::pending::<()>().await;
    }
    match state.answer_with.load(Ordering::SeqCst) {
        0 => StatusCode::NO_CONTENT.into_response(),
        status @ 200..300 => StatusCode::from_u16(status).unwrap().into_response(),
        status => problem(status, "instance_unreachable"),
    }
}

/// Client metadata with one key.
pub fn jwks(key: &SigningKey) -> Value {
    json!({ "jwks": { "keys": [key.public()] } })
}

/// Instances' side of things.
impl Authz {
    pub fn expected<'a>(&self, audience: &'a str) -> Expected<'a> {
        Expected { issuer: ISSUER, audience, now_s: self.app.clock.now_s() }
    }

    /// As the instance of this name would.
    pub fn verify_assertion(&self, assertion: &str, slug: &str) -> AssertionClaims {
        let origin = format!("http://{slug}.localhost:8088");
        token::verify(Kind::Assertion, assertion, &self.expected(&origin), &self.app.keys.published()).unwrap()
    }

    pub async fn initial_access_token(&self, person: &Person) -> String {
        let reply = self
            .post(
                "/backends/register",
                &json!({
                    "instance_id": person.instance_id, "account_id": person.account_id, "slug": person.slug,
                    "redirect_uri": format!("http://{}.localhost:8088/auth/callback", person.slug),
                }),
            )
            .await;
        assert_eq!(reply.status, StatusCode::CREATED, "{}", reply.text);
        reply.json::<Value>()["initial_access_token"].as_str().unwrap().to_owned()
    }

    pub async fn oauth_register(&self, token: Option<&str>, metadata: &Value) -> Reply {
        let mut request = Request::post("/oauth/register").header("content-type", "application/json");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        self.send(request.body(Body::from(metadata.to_string())).unwrap()).await
    }

    /// Registers a key for a person's instance; the client's id.
    pub async fn client(&self, person: &Person, key: &SigningKey) -> String {
        let token = self.initial_access_token(person).await;
        let reply = self.oauth_register(Some(&token), &jwks(key)).await;
        assert_eq!(reply.status, StatusCode::CREATED, "{}", reply.text);
        reply.json::<Value>()["client_id"].as_str().unwrap().to_owned()
    }

    /// The claims that a client's assertion has now.
    pub fn client_claims(&self, client_id: &str) -> Claims<NoExtra> {
        let iat = self.app.clock.now_s();
        Claims {
            iss: client_id.into(),
            sub: client_id.into(),
            aud: ISSUER.into(),
            iat,
            exp: iat + 60,
            jti: Entropy::system().token(),
            extra: NoExtra {},
        }
    }

    pub fn client_assertion(&self, key: &SigningKey, client_id: &str) -> String {
        key.sign(Kind::ClientAssertion, &self.client_claims(client_id)).unwrap()
    }

    /// Asks for an access token: the usual parameters, with these instead or besides.
    pub async fn token(&self, change: &[(&str, &str)]) -> Reply {
        let mut form = vec![
            ("grant_type", "client_credentials"),
            ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"),
            ("resource", "https://mcp.example.com/outlook"),
        ];
        form.retain(|(name, _)| change.iter().all(|(changed, _)| changed != name));
        form.extend(change);
        self.form(&url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish()).await
    }

    pub async fn form(&self, body: &str) -> Reply {
        let request = Request::post("/oauth/token").header("content-type", "application/x-www-form-urlencoded");
        self.send(request.body(Body::from(body.to_owned())).unwrap()).await
    }
}

impl Reply {
    /// The `error` of an OAuth refusal.
    pub fn error(&self) -> String {
        self.json::<Value>()["error"].as_str().unwrap_or("no error").to_owned()
    }
}
