//! A false authz and a false router on loopback. The router answers for instances as their engine has them.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    os::unix::fs::FileTypeExt,
    path::{Path as FilePath, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use contracts::{
    InstanceId,
    activity::{self, Activity, ActivityList},
    authz::{BackendRegistered, RegisterBackend, RevokeBackend},
    instance::{InstanceActivity, InstanceConfig, OwnerTaken, Readiness, Registration, SNAPSHOT, TakeOwner},
    routes::{RouteMessage, RouteState},
};
use futures_util::future::BoxFuture;
use http::{StatusCode, Uri};
use service::Problem;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UnixStream},
};

#[derive(Clone)]
pub struct Neighbours {
    pub authz_url: String,
    pub router_url: String,
    state: Arc<Neighbourhood>,
}

/// Which run of an instance's unit there is, as its engine says.
pub type Runs = Arc<dyn Fn(InstanceId) -> BoxFuture<'static, Option<String>> + Send + Sync>;

struct Neighbourhood {
    run_of: Runs,
    data_dir: PathBuf,
    authz_away: AtomicBool,
    router_away: AtomicBool,
    refuse_owner: AtomicBool,
    /// Whether instances end as they are told their owner.
    break_at_owner: AtomicBool,
    tokens: AtomicUsize,
    /// The instances whose identity was taken away, and whether they ran then.
    revoked: Mutex<Vec<(InstanceId, bool)>>,
    /// Which owner each instance took, and how often.
    owners: Mutex<HashMap<InstanceId, usize>>,
    /// The configuration that each run began with.
    runs: Mutex<HashMap<String, i64>>,
    /// Configurations under which an instance does not become healthy.
    sick: Mutex<HashSet<i64>>,
    /// What it says then.
    symptom: Mutex<Symptom>,
    /// What the next runs have read, whatever is there when they are asked.
    read_before: Mutex<VecDeque<i64>>,
    /// The paths under which programs that know nothing of Beaver were asked whether they are there.
    asked: Mutex<Vec<String>>,
    /// What the router was told of each instance.
    routes: Mutex<HashMap<InstanceId, RouteState>>,
    /// How instances are used.
    uses: Mutex<HashMap<InstanceId, Used>>,
    /// How often it was asked who is used.
    looked: AtomicUsize,
    /// How often instances were asked whether they are busy.
    asked_busy: AtomicUsize,
}

/// What an instance says that does not become healthy.
#[derive(Clone, Copy, Debug, Default)]
pub enum Symptom {
    /// It takes no connections, as the router finds.
    #[default]
    Closed,
    /// It takes them, and says nothing.
    Silent,
    /// Something that is no answer.
    Nonsense,
}

/// How an instance is used. Nobody does, as a rule.
#[derive(Clone, Debug)]
pub struct Used {
    /// Requests under way, as the router tells it of all instances.
    pub in_flight: u64,
    /// The same, as it tells it of this one alone, a moment later.
    pub then_in_flight: u64,
    pub idle: Duration,
    /// What it says of itself.
    pub own: InstanceActivity,
}

impl Default for Used {
    fn default() -> Self {
        let own = InstanceActivity { busy: false, wake_keys: vec!["k".repeat(43), "not a fingerprint".into()] };
        Self { in_flight: 0, then_in_flight: 0, idle: Duration::from_secs(3600), own }
    }
}

impl Neighbours {
    pub async fn start(run_of: Runs, data_dir: PathBuf) -> Self {
        let state = Arc::new(Neighbourhood {
            run_of,
            data_dir,
            authz_away: AtomicBool::new(false),
            router_away: AtomicBool::new(false),
            refuse_owner: AtomicBool::new(false),
            break_at_owner: AtomicBool::new(false),
            tokens: AtomicUsize::new(0),
            revoked: Mutex::default(),
            owners: Mutex::default(),
            runs: Mutex::default(),
            sick: Mutex::default(),
            symptom: Mutex::default(),
            read_before: Mutex::default(),
            asked: Mutex::default(),
            routes: Mutex::default(),
            uses: Mutex::default(),
            looked: AtomicUsize::new(0),
            asked_busy: AtomicUsize::new(0),
        });
        let authz = Router::new()
            .route("/backends/register", post(backend))
            .route("/backends/revoke", post(revoke))
            .with_state(state.clone());
        let router = Router::new()
            .route("/instances/{id}/readyz", get(readyz))
            .route("/instances/{id}/api/auth/register", post(take_owner))
            .route("/instances/{id}/api/activity", get(own_activity))
            .route(activity::PATH, get(activities))
            .route("/activity/{id}", get(activity_of))
            .route("/instances/{id}/api/auth/snapshot", post(snapshot))
            .route("/instances/{id}/{*path}", get(pass))
            .route("/instances/{id}/", get(pass))
            .with_state(state.clone());
        Self { authz_url: serve(authz).await, router_url: serve(router).await, state }
    }

    pub fn set_authz_away(&self, away: bool) {
        self.state.authz_away.store(away, Ordering::SeqCst);
    }

    pub fn set_router_away(&self, away: bool) {
        self.state.router_away.store(away, Ordering::SeqCst);
    }

    pub fn set_refuse_owner(&self, refuse: bool) {
        self.state.refuse_owner.store(refuse, Ordering::SeqCst);
    }

    pub fn make_sick(&self, generation: i64) {
        self.state.sick.lock().unwrap().insert(generation);
    }

    /// What those that do not become healthy say from now on.
    pub fn set_symptom(&self, symptom: Symptom) {
        *self.state.symptom.lock().unwrap() = symptom;
    }

    pub fn set_break_at_owner(&self, breaks: bool) {
        self.state.break_at_owner.store(breaks, Ordering::SeqCst);
    }

    /// Lets every configuration be one under which an instance becomes healthy.
    pub fn make_well(&self) {
        self.state.sick.lock().unwrap().clear();
    }

    /// Lets the next new run be one that began before the configuration was exchanged: it says that it runs with this one.
    /// Said twice, the next two.
    pub fn next_run_has_read(&self, generation: i64) {
        self.state.read_before.lock().unwrap().push_back(generation);
    }

    /// Lets the instance's data be lost: it does not know its owner any more.
    pub fn forget_owner(&self, id: InstanceId) {
        self.state.owners.lock().unwrap().remove(&id);
    }

    /// The instances whose identity was taken away when nothing ran with it any more, and so for good.
    pub fn revoked(&self) -> BTreeSet<InstanceId> {
        let revoked = self.state.revoked.lock().unwrap();
        revoked.iter().filter(|(_, is_up)| !is_up).map(|(id, _)| *id).collect()
    }

    /// How many one-time tokens were given, to whomever.
    pub fn tokens_given(&self) -> usize {
        self.state.tokens.load(Ordering::SeqCst)
    }

    /// Whether an instance's identity was taken away at all.
    pub fn was_revoked(&self, id: InstanceId) -> bool {
        self.state.revoked.lock().unwrap().iter().any(|(revoked, _)| *revoked == id)
    }

    /// The paths under which programs that know nothing of Beaver were asked whether they are there.
    pub fn asked(&self) -> Vec<String> {
        self.state.asked.lock().unwrap().clone()
    }

    /// Takes a message of the route feed as the router does.
    pub fn told(&self, message: RouteMessage) {
        let mut routes = self.state.routes.lock().unwrap();
        match message {
            RouteMessage::Snapshot(snapshot) => {
                *routes = snapshot.routes.into_iter().map(|route| (route.instance_id, route.state)).collect();
            }
            RouteMessage::Change { route, .. } => drop(routes.insert(route.instance_id, route.state)),
            RouteMessage::Engine { .. } | RouteMessage::Heartbeat { .. } => {}
        }
    }

    /// What the router was told of it.
    pub fn route(&self, id: InstanceId) -> Option<RouteState> {
        self.state.routes.lock().unwrap().get(&id).copied()
    }

    /// How many it was told are up.
    pub fn routed(&self) -> usize {
        self.state.routes.lock().unwrap().values().filter(|state| **state == RouteState::Running).count()
    }

    /// Says how an instance is used from now on.
    pub fn use_it(&self, id: InstanceId, used: Used) {
        self.state.uses.lock().unwrap().insert(id, used);
    }

    /// How often it was asked who is used.
    pub fn looked(&self) -> usize {
        self.state.looked.load(Ordering::SeqCst)
    }

    /// How often instances were asked whether they are busy.
    pub fn asked_busy(&self) -> usize {
        self.state.asked_busy.load(Ordering::SeqCst)
    }

    pub fn owners_taken(&self, id: InstanceId) -> usize {
        self.state.owners.lock().unwrap().get(&id).copied().unwrap_or(0)
    }
}

async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    url
}

async fn backend(State(state): State<Arc<Neighbourhood>>, Json(body): Json<RegisterBackend>) -> Response {
    if state.authz_away.load(Ordering::SeqCst) {
        return Problem::unavailable(anyhow::anyhow!("away")).into_response();
    }
    assert!(body.redirect_uri.ends_with("/auth/callback") && body.redirect_uri.contains(body.slug.as_str()));
    let number = state.tokens.fetch_add(1, Ordering::SeqCst);
    let issued = BackendRegistered {
        initial_access_token: format!("canary-token-{number}").into(),
        expires_at_ms: i64::MAX,
        register_assertion: format!("canary-assertion-{number}"),
    };
    (StatusCode::CREATED, Json(issued)).into_response()
}

async fn revoke(State(state): State<Arc<Neighbourhood>>, Json(body): Json<RevokeBackend>) -> Response {
    if state.authz_away.load(Ordering::SeqCst) {
        return Problem::unavailable(anyhow::anyhow!("away")).into_response();
    }
    let is_up = (state.run_of)(body.instance_id).await.is_some();
    state.revoked.lock().unwrap().push((body.instance_id, is_up));
    StatusCode::NO_CONTENT.into_response()
}

fn unreachable() -> Response {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "instance_unreachable", "It is not there.").into_response()
}

impl Neighbourhood {
    /// Whether it does not become healthy: with this configuration, or with data that has a file `sick`.
    fn is_sick(&self, id: InstanceId, generation: i64) -> bool {
        let sick = self.data_dir.join("instances").join(id.to_string()).join("data/sick");
        sick.exists() || self.sick.lock().unwrap().contains(&generation)
    }

    /// The generation that the instance's present process read when it began; `None` when there is no process.
    async fn runs_with(&self, id: InstanceId) -> Option<i64> {
        let run = (self.run_of)(id).await?;
        let path = self.data_dir.join("instances").join(id.to_string()).join("config/config.json");
        let mut runs = self.runs.lock().unwrap();
        let generation = runs.entry(format!("{id} {run}")).or_insert_with(|| {
            let there = || serde_json::from_slice::<InstanceConfig>(&std::fs::read(path).expect("a configuration"));
            let before = self.read_before.lock().unwrap().pop_front();
            before.unwrap_or_else(|| there().expect("a configuration").generation)
        });
        Some(*generation)
    }
}

impl Neighbourhood {
    fn used(&self, id: InstanceId) -> Used {
        self.uses.lock().unwrap().get(&id).cloned().unwrap_or_default()
    }

    fn activity(&self, id: InstanceId, state: RouteState, in_flight: u64) -> Activity {
        let idle_ms = u64::try_from(self.used(id).idle.as_millis()).unwrap();
        Activity { instance_id: id, state, in_flight, idle_ms }
    }
}

async fn activities(State(state): State<Arc<Neighbourhood>>) -> Response {
    state.looked.fetch_add(1, Ordering::SeqCst);
    if state.router_away.load(Ordering::SeqCst) {
        return (StatusCode::BAD_GATEWAY, "away").into_response();
    }
    let routes = state.routes.lock().unwrap().clone();
    let instances = routes.into_iter().map(|(id, route)| state.activity(id, route, state.used(id).in_flight));
    Json(ActivityList { instances: instances.collect(), up_ms: u64::MAX }).into_response()
}

async fn activity_of(State(state): State<Arc<Neighbourhood>>, Path(id): Path<InstanceId>) -> Response {
    let route = state.routes.lock().unwrap().get(&id).copied();
    match route {
        _ if state.router_away.load(Ordering::SeqCst) => (StatusCode::BAD_GATEWAY, "away").into_response(),
        Some(route) => Json(state.activity(id, route, state.used(id).then_in_flight)).into_response(),
        None => Problem::not_found("not_found").into_response(),
    }
}

async fn own_activity(State(state): State<Arc<Neighbourhood>>, Path(id): Path<InstanceId>) -> Response {
    state.asked_busy.fetch_add(1, Ordering::SeqCst);
    match (state.run_of)(id).await {
        Some(_) => Json(state.used(id).own).into_response(),
        None => unreachable(),
    }
}

async fn snapshot(State(state): State<Arc<Neighbourhood>>, Path(id): Path<InstanceId>) -> Response {
    if (state.run_of)(id).await.is_none() {
        return unreachable();
    }
    let file = state.data_dir.join("instances").join(id.to_string()).join("data").join(SNAPSHOT);
    std::fs::write(file, "a snapshot").unwrap();
    StatusCode::NO_CONTENT.into_response()
}

async fn readyz(State(state): State<Arc<Neighbourhood>>, Path(id): Path<InstanceId>) -> Response {
    if state.router_away.load(Ordering::SeqCst) {
        return (StatusCode::BAD_GATEWAY, "away").into_response();
    }
    match state.runs_with(id).await {
        Some(generation) if !state.is_sick(id, generation) => {
            let registered = state.owners.lock().unwrap().contains_key(&id);
            Json(Readiness { registered, config_generation: generation }).into_response()
        }
        Some(_) => {
            let symptom = *state.symptom.lock().unwrap();
            match symptom {
                Symptom::Closed => unreachable(),
                Symptom::Silent => std::future::pending().await,
                Symptom::Nonsense => (StatusCode::NOT_FOUND, "<p>Nothing here</p>").into_response(),
            }
        }
        None => unreachable(),
    }
}

/// Passes a question on to the program behind its socket; one on an engine that runs nothing says that all is well.
async fn pass(State(state): State<Arc<Neighbourhood>>, uri: Uri) -> Response {
    let (_, rest) = uri.path().split_once("/instances/").unwrap();
    let (id, path) = rest.split_once('/').unwrap();
    let id: InstanceId = id.parse().unwrap();
    if state.router_away.load(Ordering::SeqCst) || (state.run_of)(id).await.is_none() {
        return unreachable();
    }
    state.asked.lock().unwrap().push(format!("/{path}"));
    let socket = state.data_dir.join("run").join(id.to_string()).join("in/http.sock");
    if !std::fs::metadata(&socket).is_ok_and(|found| found.file_type().is_socket()) {
        return "all is well".into_response();
    }
    let Ok(said) = ask(&socket, &format!("/{path}")).await else { return unreachable() };
    let status = said.split(' ').nth(1).and_then(|status| StatusCode::from_bytes(status.as_bytes()).ok());
    status.map_or_else(unreachable, |status| (status, "the program's own").into_response())
}

/// What a program behind a socket answers, all of it.
pub async fn ask(socket: &FilePath, path: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: instance\r\nConnection: close\r\n\r\n").as_bytes()).await?;
    let mut said = String::new();
    stream.read_to_string(&mut said).await?;
    if said.is_empty() { Err(std::io::ErrorKind::UnexpectedEof.into()) } else { Ok(said) }
}

async fn take_owner(
    State(state): State<Arc<Neighbourhood>>,
    Path(id): Path<InstanceId>,
    Json(body): Json<TakeOwner>,
) -> Response {
    if state.runs_with(id).await.is_none() {
        return unreachable();
    }
    if state.break_at_owner.load(Ordering::SeqCst) {
        return Problem::new(StatusCode::BAD_GATEWAY, "instance_broken", "It gave no usable answer.").into_response();
    }
    if state.refuse_owner.load(Ordering::SeqCst) {
        return Problem::new(StatusCode::FORBIDDEN, "not_the_owner", "No.").into_response();
    }
    let path = state.data_dir.join("instances").join(id.to_string()).join("config/registration.json");
    let registration: Registration = serde_json::from_slice(&std::fs::read(path).expect("a token")).unwrap();
    let number = |text: &str| text.rsplit('-').next().unwrap().to_owned();
    assert_eq!(
        number(&registration.initial_access_token),
        number(&body.assertion),
        "token and assertion of one answer"
    );
    *state.owners.lock().unwrap().entry(id).or_default() += 1;
    Json(OwnerTaken { client_id: "client".into() }).into_response()
}
