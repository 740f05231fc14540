//! deploy-control in process, on a simulated engine, between a false authz and a false router.
#![allow(dead_code, reason = "each test binary uses its own part of this")]

pub mod neighbours;
pub mod reader;

use std::{path::PathBuf, sync::Arc, time::Duration};

use clock::Clock;
use contracts::{
    AccountId, InstanceId, Slug,
    deploy::{Event, EventCode, EventList, Instance, Phase, RegisterInstance},
};
pub use deploy_control::engine::conformance::eventually;
use deploy_control::{
    Service,
    config::Config,
    engine::{Engine, simulated::Simulated},
    registry::MIGRATOR,
};
use http::StatusCode;
use serde::{Serialize, de::DeserializeOwned};
use service::Shutdown;
use settings::Env;
use store::testing::TestStore;
use tokio::{net::TcpListener, runtime::Runtime};
use uuid::Uuid;

use neighbours::{Neighbours, Runs};

/// The name of the service's threads.
pub const SERVICE: &str = "service";

pub const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// What outlives a restart of the service: engine, neighbours, database, data.
pub struct World {
    pub engine: Simulated,
    pub neighbours: Neighbours,
    pub store: TestStore,
    pub config: Config,
    pub clock: Clock,
    _folder: tempfile::TempDir,
}

/// A running service, on a runtime of its own so that it can be killed.
pub struct Running {
    runtime: Option<Runtime>,
    pub stop: Shutdown,
    pub base: String,
    pub client: reqwest::Client,
    router: Option<tokio::task::JoinHandle<()>>,
}

/// A world on each kind of database.
pub async fn worlds() -> Vec<World> {
    let mut worlds = Vec::new();
    for store in store::testing::databases(&MIGRATOR).await {
        worlds.push(world(store).await);
    }
    worlds
}

pub async fn sqlite_world() -> World {
    world(store::testing::sqlite(&MIGRATOR).await).await
}

/// A world whose folders are here, and whose database, on SQLite, is elsewhere.
pub async fn world_in(data_dir: PathBuf) -> World {
    make_world(store::testing::sqlite(&MIGRATOR).await, tempfile::tempdir().unwrap(), data_dir).await
}

async fn world(store: TestStore) -> World {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().to_owned();
    make_world(store, folder, data_dir).await
}

async fn make_world(store: TestStore, folder: tempfile::TempDir, data_dir: PathBuf) -> World {
    let engine = Simulated::default();
    let units = engine.clone();
    let run_of: Runs = Arc::new(move |id| {
        let run = units.run(id);
        Box::pin(std::future::ready(run))
    });
    let neighbours = Neighbours::start(run_of, data_dir.clone()).await;
    let env = Env::from_pairs([
        ("BEAVER_DEPLOY_TOKEN", TOKEN),
        ("BEAVER_AUTHZ_INTERNAL_TOKEN", TOKEN),
        ("BEAVER_ROUTER_INTERNAL_TOKEN", TOKEN),
        ("BEAVER_DATA_DIR", data_dir.to_str().unwrap()),
        ("BEAVER_AUTHZ_URL", &neighbours.authz_url),
        ("BEAVER_ROUTER_INTERNAL_URL", &neighbours.router_url),
        // The simulated engine takes its place; folders then belong to whoever runs the test.
        ("BEAVER_ENGINE", "process"),
        // What is free on the machine that tests run on is no part of them.
        ("BEAVER_SPARE_MEMORY_MB", "0"),
    ]);
    let mut config = Config::from_env(&env).unwrap();
    config.database = store.database().clone();
    config.reconcile.first_retry = Duration::from_millis(4);
    config.reconcile.start_timeout = Duration::from_millis(700);
    World { engine, neighbours, store, config, clock: Clock::system(), _folder: folder }
}

impl World {
    /// Saves the operator's file of plans.
    pub fn write_plans(&self, text: &str) {
        let file = &self.config.plans.file;
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        // As editors save: nobody reads half of it.
        std::fs::write(file.with_extension("new"), text).unwrap();
        std::fs::rename(file.with_extension("new"), file).unwrap();
    }

    /// Starts the service on what is there; a router follows its routes.
    pub async fn start(&self) -> Running {
        self.start_followed(true).await
    }

    /// As [`World::start`], with or without a router.
    pub async fn start_followed(&self, follows: bool) -> Running {
        let mut running = start_at(&self.config, Arc::new(self.engine.clone()), self.clock.clone()).await;
        if follows {
            running.follow_as(&self.neighbours);
        }
        running
    }

    pub fn socket(&self, id: InstanceId) -> PathBuf {
        self.config.data_dir.join("run").join(id.to_string()).join("in/http.sock")
    }

    pub fn config_dir(&self, id: InstanceId) -> PathBuf {
        self.config.data_dir.join("instances").join(id.to_string()).join("config")
    }

    pub fn current_config(&self, id: InstanceId) -> contracts::instance::InstanceConfig {
        serde_json::from_slice(&std::fs::read(self.config_dir(id).join("config.json")).unwrap()).unwrap()
    }
}

/// Which run of an instance there is on an engine, as the router knows it: by somebody who is there.
pub fn answering_runs(units: Arc<dyn Engine>, data_dir: PathBuf) -> Runs {
    Arc::new(move |id| {
        let (units, socket) = (units.clone(), data_dir.join("run").join(id.to_string()).join("in/http.sock"));
        Box::pin(async move {
            let run = units.observe(id).await.ok()??.run?;
            tokio::net::UnixStream::connect(socket).await.ok().map(|_| run)
        })
    })
}

/// Starts the service with this engine; no router follows its routes yet.
pub async fn start(config: &Config, engine: Arc<dyn Engine>) -> Running {
    start_at(config, engine, Clock::system()).await
}

/// The same by this clock.
pub async fn start_at(config: &Config, engine: Arc<dyn Engine>, clock: Clock) -> Running {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name(SERVICE)
        .enable_all()
        .build()
        .unwrap();
    let (config, stop) = (config.clone(), Shutdown::new());
    let stopping = stop.clone();
    let (to, address) = tokio::sync::oneshot::channel();
    runtime.spawn(async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = Service::start(&config, engine, clock, stopping.clone()).await.unwrap();
        to.send(address).unwrap();
        let router = deploy_control::layers(service.router.clone());
        service::serve(listener, router, stopping).await.unwrap();
        service.ended().await;
    });
    let base = format!("http://{}", address.await.unwrap());
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    Running { runtime: Some(runtime), stop, base, client, router: None }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Running {
    /// Follows the routes for as long as the service runs, as the router does.
    pub fn follow(&mut self) {
        let feed = self.request("GET", "/api/routes").send();
        let task = async {
            let mut feed = reader::Reader::lines(feed.await.unwrap());
            while feed.next().await.is_some() {}
        };
        self.router = self.runtime.as_ref().map(|runtime| runtime.spawn(task));
    }

    /// The same, and the false router knows what it is told.
    pub fn follow_as(&mut self, router: &Neighbours) {
        let task = self.feed(router);
        self.router = self.runtime.as_ref().map(|runtime| runtime.spawn(task));
    }

    /// What the false router is told, for as long as the service runs.
    pub fn feed(&self, router: &Neighbours) -> impl Future<Output = ()> + Send + use<> {
        let (feed, router) = (self.request("GET", "/api/routes").send(), router.clone());
        async move {
            let mut feed = reader::Reader::lines(feed.await.unwrap());
            while let Some(message) = feed.json().await {
                router.told(message);
            }
        }
    }

    /// Ends it where it is, as a kill does; whatever a thread of it was just doing is over then, as it is with a process.
    pub async fn kill_and_wait(mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        let ended = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(Duration::from_secs(20)));
        ended.await.unwrap();
    }

    /// Ends it where it is, as a kill does.
    pub fn kill(self) {
        drop(self);
    }

    pub fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method.parse().unwrap(), format!("{}{path}", self.base)).bearer_auth(TOKEN)
    }

    pub async fn post<R: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> (StatusCode, R) {
        let response = self.request("POST", path).json(body).send().await.unwrap();
        let status = StatusCode::from_u16(response.status().as_u16()).unwrap();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {status}, {error}: {text}")))
    }

    pub async fn get<R: DeserializeOwned>(&self, path: &str) -> (StatusCode, R) {
        let response = self.request("GET", path).send().await.unwrap();
        (StatusCode::from_u16(response.status().as_u16()).unwrap(), response.json().await.unwrap())
    }

    pub async fn register(&self, person: &Person) -> Instance {
        let (status, instance) = self.post("/api/instances/register", &person.wanted()).await;
        assert_eq!(status, StatusCode::ACCEPTED);
        instance
    }

    /// Somebody signs up, and is up.
    pub async fn ready(&self, person: &Person) {
        self.register(person).await;
        self.settled(person, Phase::Ready).await;
    }

    /// All the data of somebody as one file.
    pub async fn export(&self, person: &Person) -> Vec<u8> {
        let path = format!("/api/instances/{}/export?by={}", person.id, person.account);
        let answer = self.request("GET", &path).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "application/x-tar");
        answer.bytes().await.unwrap().to_vec()
    }

    /// `stop`, `start`, `restart`, `retry`.
    pub async fn wish(&self, person: &Person, wish: &str) -> Instance {
        let body = serde_json::json!({ "account_id": person.account });
        let (status, instance) = self.post(&format!("/api/instances/{}/{wish}", person.id), &body).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{wish}");
        instance
    }

    /// Deletes it, for its owner.
    pub async fn delete(&self, person: &Person) -> Instance {
        let body = serde_json::json!({ "by": person.account, "slug": person.slug });
        let (status, instance) = self.post(&format!("/api/instances/{}/delete", person.id), &body).await;
        assert_eq!(status, StatusCode::ACCEPTED);
        instance
    }

    /// Takes its deletion back, for its owner.
    pub async fn undelete(&self, person: &Person) -> Instance {
        let body = serde_json::json!({ "by": person.account });
        let (status, instance) = self.post(&format!("/api/instances/{}/undelete", person.id), &body).await;
        assert_eq!(status, StatusCode::ACCEPTED);
        instance
    }

    pub async fn configure(&self, person: &Person, key: &str) -> Instance {
        let (status, instance) = self.post("/api/instances/configure-provider", &person.provider(key)).await;
        assert_eq!(status, StatusCode::ACCEPTED);
        instance
    }

    pub async fn instance(&self, person: &Person) -> Instance {
        let body = serde_json::json!({ "account_id": person.account, "slug": person.slug });
        let (status, instance) = self.post("/api/instances/resolve", &body).await;
        assert_eq!(status, StatusCode::OK);
        instance
    }

    pub async fn events(&self, person: &Person) -> Vec<Event> {
        let path = format!("/api/instances/{}/events?account_id={}", person.id, person.account);
        self.get::<EventList>(&path).await.1.events
    }

    pub async fn codes(&self, person: &Person) -> Vec<EventCode> {
        self.events(person).await.into_iter().map(|event| event.code).collect()
    }

    /// Why it was made anew though nobody asked for it, each time.
    pub async fn renewals(&self, person: &Person) -> Vec<String> {
        let events = self.events(person).await.into_iter().filter(|event| event.code == EventCode::RenewalBegun);
        events.map(|event| event.detail.unwrap_or_default()).collect()
    }

    /// Waits until it is so, and says what it was when it never is.
    pub async fn until(&self, person: &Person, what: &str, is_so: impl Fn(&Instance) -> bool) -> Instance {
        eventually(async || {
            let instance = self.instance(person).await;
            if is_so(&instance) {
                return Ok(instance);
            }
            Err(format!("never {what}: {instance:?} {:?}", self.codes(person).await))
        })
        .await
    }

    /// Waits until it is in this phase and every wish is fulfilled.
    pub async fn settled(&self, person: &Person, phase: Phase) -> Instance {
        self.settled_in(person, &[phase]).await
    }

    /// Waits until it is in one of these phases and every wish is fulfilled.
    pub async fn settled_in(&self, person: &Person, phases: &[Phase]) -> Instance {
        self.until(person, &format!("settled in {phases:?}"), |instance| {
            phases.contains(&instance.phase) && instance.observed_generation == instance.generation
        })
        .await
    }
}

/// Waits until it is so.
pub async fn until(what: &str, is_so: impl Fn() -> bool) {
    eventually(async || is_so().then_some(()).ok_or_else(|| format!("never {what}"))).await;
}

/// Somebody who signs up.
#[derive(Debug, Clone)]
pub struct Person {
    pub id: InstanceId,
    pub account: AccountId,
    pub slug: Slug,
}

impl Person {
    pub fn named(slug: &str) -> Self {
        // Derived from the name, so that a test reads the same each time.
        let number = slug.bytes().fold(7_u128, |sum, byte| sum.wrapping_mul(257).wrapping_add(byte.into()));
        Self {
            id: InstanceId::from_uuid(Uuid::from_u128(number)),
            account: AccountId::from_uuid(Uuid::from_u128(number + 1)),
            slug: slug.parse().unwrap(),
        }
    }

    pub fn wanted(&self) -> RegisterInstance {
        RegisterInstance { instance_id: self.id, account_id: self.account, slug: self.slug.clone(), plan: None }
    }

    pub fn provider(&self, key: &str) -> serde_json::Value {
        serde_json::json!({
            "account_id": self.account,
            "instance_id": self.id,
            "provider": { "kind": "openai", "base_url": "https://api.example.com/v1", "model": "m", "api_key": key },
        })
    }
}
