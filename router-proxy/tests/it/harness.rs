//! A router between fake neighbours: deploy-control, authz, and instances on their sockets.

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use clock::{Clock, Entropy};
use contracts::{
    AccountId, InstanceId, Slug,
    deploy::{WakeInstance, WakeReason},
    routes::{Route, RouteMessage, RouteSnapshot, RouteState, SignIn},
};
use futures_util::future::BoxFuture;
use router_proxy::{Router, config::Config, egress::Network, wakes::Limits};
use service::Shutdown;
use settings::Env;
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener},
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};
use uuid::Uuid;

pub const TOKEN: &str = "0123456789abcdef0123456789abcdef";
/// Longer than anything here takes; a test that waits so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A running router and what is around it. Everything ends when it is dropped.
pub struct House {
    pub data: Arc<TempDir>,
    pub edge: SocketAddr,
    pub internal: SocketAddr,
    pub deploy: Deploy,
    pub authz: Authz,
    pub stop: Shutdown,
    pub router: Option<JoinHandle<anyhow::Result<()>>>,
}

/// How a house is to be.
pub struct Plan {
    pub env: Vec<(&'static str, String)>,
    pub network: Arc<dyn Network>,
    pub routes: Vec<Route>,
    pub data: Option<Arc<TempDir>>,
    /// Whether deploy-control is there.
    pub deploy: bool,
    /// authz's key; a new one when there is none.
    pub key: Option<Arc<token::SigningKey>>,
    pub clock: Clock,
    /// How requests for what wakes are held: not for long, as a rule.
    pub hold: Limits,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            env: Vec::new(),
            network: Arc::new(FakeNetwork::default()),
            routes: vec![route("alice", 1, RouteState::Running)],
            data: None,
            deploy: true,
            key: None,
            clock: Clock::system(),
            hold: Limits { program: Duration::from_millis(50), page: Duration::from_millis(50), ..Limits::default() },
        }
    }
}

pub fn id(n: u128) -> InstanceId {
    InstanceId::from_uuid(Uuid::from_u128(n))
}

pub fn account(n: u128) -> AccountId {
    AccountId::from_uuid(Uuid::from_u128(n))
}

/// The route of the n-th instance, whose owner is the n-th account.
pub fn route(slug: &str, n: u128, state: RouteState) -> Route {
    Route {
        slug: Slug::parse(slug).unwrap(),
        instance_id: id(n),
        account_id: account(n),
        state,
        sign_in: SignIn::Instance,
        wake_keys: Vec::new(),
    }
}

impl House {
    pub async fn new() -> Self {
        Self::with(Plan::default()).await
    }

    pub async fn with(plan: Plan) -> Self {
        let data = plan.data.unwrap_or_else(|| Arc::new(TempDir::new().unwrap()));
        let deploy = Deploy::start(plan.routes.clone(), plan.deploy).await;
        let authz = Authz::start(plan.key).await;
        for route in &plan.routes {
            folders(data.path(), route.instance_id);
        }
        let mut env = Env::from_pairs([
            ("ROUTER_LISTEN", "127.0.0.1:0".to_owned()),
            ("ROUTER_INTERNAL_LISTEN", "127.0.0.1:0".to_owned()),
            ("BEAVER_DATA_DIR", data.path().to_str().unwrap().to_owned()),
            ("BEAVER_ROUTER_INTERNAL_TOKEN", TOKEN.to_owned()),
            ("BEAVER_DEPLOY_TOKEN", TOKEN.to_owned()),
            ("BEAVER_DEPLOY_URL", format!("http://{}", deploy.address)),
            ("BEAVER_AUTHZ_URL", format!("http://{}", authz.address)),
        ]);
        for (key, value) in plan.env {
            env = env.with(key, value);
        }
        let config = Config { hold: plan.hold, ..Config::from_env(&env).unwrap() };
        let router = Router::bind(config, plan.clock, plan.network).await.unwrap();
        let (edge, internal) = router.addresses().unwrap();
        let stop = Shutdown::new();
        let serving = tokio::spawn(router.serve(stop.clone()));
        let house = Self { data, edge, internal, deploy, authz, stop, router: Some(serving) };
        if !plan.routes.is_empty() && plan.deploy {
            house.ready().await;
        }
        house
    }

    pub async fn ready(&self) {
        until("the router is ready", async || self.internal_get("/readyz", None).await.starts_with("HTTP/1.1 200"))
            .await;
    }

    /// An instance with this behaviour on the n-th socket.
    pub fn instance(&self, n: u128, app: axum::Router) -> Instance {
        Instance::start(self.data.path(), n, app)
    }

    /// Sends bytes to the edge and reads until it closes or has answered `Connection: close`.
    pub async fn raw(&self, request: impl AsRef<[u8]>) -> String {
        raw(self.edge, request.as_ref()).await
    }

    /// A GET at the edge, with more header lines, each ended by CRLF.
    pub async fn get(&self, host: &str, path: &str, lines: &str) -> Answer {
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{lines}\r\n");
        Answer::parse(&self.raw(request).await)
    }

    pub async fn internal_get(&self, path: &str, token: Option<&str>) -> String {
        let token = token.map(|t| format!("authorization: Bearer {t}\r\n")).unwrap_or_default();
        let request = format!("GET {path} HTTP/1.1\r\nhost: r\r\nconnection: close\r\n{token}\r\n");
        raw(self.internal, request.as_bytes()).await
    }

    pub fn run(&self, n: u128) -> PathBuf {
        self.data.path().join("run").join(id(n).to_string())
    }

    /// Asks the router to end, and waits until it has.
    pub async fn end(mut self) -> Arc<TempDir> {
        self.stop.cancel();
        if let Some(router) = self.router.take() {
            tokio::time::timeout(PATIENCE, router).await.expect("the router ends").unwrap().unwrap();
        }
        Arc::clone(&self.data)
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(router) = self.router.take() {
            router.abort();
        }
    }
}

/// The folders that deploy-control makes.
pub fn folders(data: &Path, id: InstanceId) {
    for part in ["in", "out"] {
        std::fs::create_dir_all(data.join("run").join(id.to_string()).join(part)).unwrap();
    }
}

/// Asks again until it is so.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let asking = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

pub async fn raw(to: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(request).await.unwrap();
    read_all(&mut stream).await
}

/// Everything until the end, or what had come when it was cut.
pub async fn read_all(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut all = Vec::new();
    let reading = async {
        let mut chunk = [0; 4096];
        loop {
            match stream.read(&mut chunk).await {
                Ok(0) | Err(_) => return,
                Ok(n) => all.extend_from_slice(&chunk[..n]),
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("the other side ends the connection");
    String::from_utf8_lossy(&all).into_owned()
}

/// Reads until `marker` has come; what has come so far.
pub async fn read_until(stream: &mut (impl AsyncRead + Unpin), marker: &str) -> String {
    let mut all = Vec::new();
    let reading = async {
        let mut chunk = [0; 4096];
        while !String::from_utf8_lossy(&all).contains(marker) {
            let n = stream.read(&mut chunk).await.unwrap();
            assert!(n > 0, "ended without {marker:?}: {}", String::from_utf8_lossy(&all));
            all.extend_from_slice(&chunk[..n]);
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.unwrap_or_else(|_| panic!("never came: {marker:?}"));
    String::from_utf8_lossy(&all).into_owned()
}

/// A parsed answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HashMap<String, String>,
    /// What it sets, without attributes.
    pub cookies: HashMap<String, String>,
    pub body: String,
}

impl Answer {
    pub fn parse(raw: &str) -> Self {
        let (head, body) = raw.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {raw:?}"));
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let lines: Vec<_> = lines
            .map(|line| line.split_once(':').unwrap())
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let set = lines.iter().filter(|(name, _)| name == "set-cookie");
        let cookies = set
            .filter_map(|(_, line)| line.split(';').next()?.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        Self { status, headers: lines.into_iter().collect(), cookies, body: body.to_owned() }
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.body))
    }
}

/// An instance's server on its socket.
pub struct Instance {
    task: JoinHandle<()>,
}

impl Instance {
    pub fn start(data: &Path, n: u128, app: axum::Router) -> Self {
        folders(data, id(n));
        let path = data.join("run").join(id(n).to_string()).join("in/http.sock");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(path).unwrap();
        Self { task: tokio::spawn(async move { axum::serve(listener, app).await.unwrap() }) }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An instance that answers with what it was asked.
pub fn echo() -> axum::Router {
    axum::Router::new().fallback(async |request: axum::extract::Request| {
        let mut text = format!("{} {}\n", request.method(), request.uri());
        for (name, value) in request.headers() {
            text.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
        }
        let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap_or_default();
        format!("{text}\n{}", String::from_utf8_lossy(&body))
    })
}

/// A deploy-control that has nothing but the feed.
#[derive(Clone)]
pub struct Deploy {
    pub address: SocketAddr,
    state: Arc<Mutex<Feed>>,
    pub connections: Arc<AtomicUsize>,
    /// What was told to have been refused.
    pub refusals: Arc<Mutex<Vec<contracts::egress::ReportedRefusal>>>,
    /// Who was to be woken, and what for.
    pub woken: Arc<Mutex<Vec<(InstanceId, WakeReason)>>>,
    /// A call to wake somebody is answered once it gets one of these.
    pub answers: Arc<Semaphore>,
}

struct Feed {
    /// Nobody is told anything any more.
    lost: bool,
    snapshot: RouteSnapshot,
    readers: Vec<mpsc::UnboundedSender<String>>,
}

impl Deploy {
    async fn start(routes: Vec<Route>, there: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let snapshot = RouteSnapshot { epoch: "one".into(), version: 7, routes };
        let this = Self {
            address,
            state: Arc::new(Mutex::new(Feed { lost: false, snapshot, readers: Vec::new() })),
            connections: Arc::default(),
            refusals: Arc::default(),
            woken: Arc::default(),
            answers: Arc::new(Semaphore::new(0)),
        };
        if there {
            let app = axum::Router::new()
                .route(contracts::routes::PATH, get(feed))
                .route(contracts::egress::REFUSALS_PATH, axum::routing::post(refusals))
                .route("/api/instances/{id}/wake", axum::routing::post(wake))
                .with_state(this.clone());
            tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        }
        this
    }

    /// A change, said to who listens and in every later snapshot.
    pub fn change(&self, route: Route) {
        let mut feed = self.state.lock().unwrap();
        feed.snapshot.version += 1;
        feed.snapshot.routes.retain(|r| r.slug != route.slug);
        if route.state != RouteState::Deleted {
            feed.snapshot.routes.push(route.clone());
        }
        let version = feed.snapshot.version;
        feed.say(&RouteMessage::Change { version, route });
    }

    /// A line as it is, which no later snapshot knows of.
    pub fn say(&self, message: &RouteMessage) {
        self.state.lock().unwrap().say(message);
    }

    /// Another run, with these routes; every connection ends.
    pub fn restart(&self, epoch: &str, routes: Vec<Route>) {
        let mut feed = self.state.lock().unwrap();
        feed.snapshot = RouteSnapshot { epoch: epoch.into(), version: 1, routes };
        feed.readers.clear();
    }

    /// Every connection ends, and none is begun again.
    pub fn lose(&self) {
        let mut feed = self.state.lock().unwrap();
        feed.lost = true;
        feed.readers.clear();
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Feed {
    fn say(&mut self, message: &RouteMessage) {
        let line = serde_json::to_string(message).unwrap() + "\n";
        self.readers.retain(|reader| reader.send(line.clone()).is_ok());
    }
}

async fn wake(
    State(deploy): State<Deploy>,
    axum::extract::Path(id): axum::extract::Path<InstanceId>,
    headers: http::HeaderMap,
    axum::Json(body): axum::Json<WakeInstance>,
) -> Response {
    assert_eq!(headers["authorization"], format!("Bearer {TOKEN}"));
    assert_eq!(body.account_id, None);
    deploy.woken.lock().unwrap().push((id, body.why));
    deploy.answers.acquire().await.unwrap().forget();
    let instance = serde_json::json!({
        "id": id, "slug": "alice", "account_id": account(1), "origin": "http://alice.localhost:8088", "desired": "running",
        "phase": "starting", "generation": 2, "observed_generation": 1, "config_generation": 0,
        "applied_config_generation": 0, "created_at_ms": 0, "updated_at_ms": 0,
    });
    (http::StatusCode::ACCEPTED, axum::Json(instance)).into_response()
}

async fn refusals(
    State(deploy): State<Deploy>,
    headers: http::HeaderMap,
    axum::Json(report): axum::Json<contracts::egress::EgressReport>,
) -> http::StatusCode {
    assert_eq!(headers["authorization"], format!("Bearer {TOKEN}"));
    deploy.refusals.lock().unwrap().extend(report.refusals);
    http::StatusCode::NO_CONTENT
}

async fn feed(State(deploy): State<Deploy>, headers: http::HeaderMap) -> Response {
    assert_eq!(headers["authorization"], format!("Bearer {TOKEN}"));
    deploy.connections.fetch_add(1, Ordering::SeqCst);
    let (sender, receiver) = mpsc::unbounded_channel();
    let mut feed = deploy.state.lock().unwrap();
    if feed.lost {
        return http::StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let first = serde_json::to_string(&RouteMessage::Snapshot(feed.snapshot.clone())).unwrap() + "\n";
    sender.send(first).unwrap();
    feed.readers.push(sender);
    let lines = futures_util::stream::unfold(receiver, async |mut receiver| {
        let line = receiver.recv().await?;
        Some((Ok::<_, Infallible>(Bytes::from(line)), receiver))
    });
    Response::new(Body::from_stream(Box::pin(lines)))
}

/// An authz that has keys, and says what it was asked.
pub struct Authz {
    pub address: SocketAddr,
    pub key: Arc<token::SigningKey>,
}

impl Authz {
    async fn start(key: Option<Arc<token::SigningKey>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let key = key.unwrap_or_else(|| Arc::new(token::SigningKey::generate(&Entropy::system()).unwrap()));
        let keys = token::KeySet::new([key.public()]);
        let app = echo().route("/.well-known/jwks.json", get(async move || axum::Json(keys)));
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, key }
    }

    /// Claims about the n-th account that the workspace at this origin accepts; tests spoil them.
    pub fn claims(
        &self,
        n: u128,
        origin: &str,
        purpose: token::Purpose,
        sid: Option<&str>,
        bind: Option<&str>,
    ) -> token::AssertionClaims {
        let now = Clock::system();
        let (sid, bind) = (sid.map(str::to_owned), bind.map(str::to_owned));
        token::AssertionClaims {
            iss: "http://beaver-authz-service:19090".into(),
            sub: account(n).to_string(),
            aud: origin.into(),
            iat: now.now_s(),
            exp: now.now_s() + 60,
            jti: Entropy::system().token(),
            extra: token::Assertion { sid, purpose, bind, at_ms: Some(now.now_ms()) },
        }
    }

    pub fn sign(&self, claims: &token::AssertionClaims) -> String {
        self.key.sign(token::Kind::Assertion, claims).unwrap()
    }

    /// An edge token of the n-th account for this origin.
    pub fn edge_token(&self, n: u128, origin: &str) -> String {
        let now = Clock::system().now_s();
        let claims = token::EdgeClaims {
            iss: "http://beaver-authz-service:19090".into(),
            sub: account(n).to_string(),
            aud: origin.into(),
            iat: now,
            exp: now + 3600,
            jti: Entropy::system().token(),
            extra: token::Edge { sid: "s".into() },
        };
        self.key.sign(token::Kind::Edge, &claims).unwrap()
    }
}

/// A network in which names and addresses lead where the test says.
#[derive(Default)]
pub struct FakeNetwork {
    pub names: HashMap<&'static str, Vec<IpAddr>>,
    pub listeners: HashMap<SocketAddr, SocketAddr>,
    pub dialled: Mutex<Vec<SocketAddr>>,
    /// Names that lead to another of these addresses each time.
    pub turning: HashMap<&'static str, Vec<IpAddr>>,
    /// How often a name was asked for.
    pub asked: AtomicUsize,
}

impl Network for FakeNetwork {
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        let turn = self.asked.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            let turned = self.turning.get(name).map(|all| vec![all[turn % all.len()]]);
            turned.or_else(|| self.names.get(name).cloned()).ok_or_else(|| io::ErrorKind::NotFound.into())
        })
    }

    fn connect(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        self.dialled.lock().unwrap().push(to);
        Box::pin(async move {
            match self.listeners.get(&to) {
                Some(real) => TcpStream::connect(real).await,
                None => Err(io::ErrorKind::ConnectionRefused.into()),
            }
        })
    }

    fn is_own(&self, address: IpAddr) -> bool {
        address == IpAddr::from([93, 184, 216, 99])
    }
}
