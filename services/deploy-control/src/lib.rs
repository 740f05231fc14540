//! deploy-control: instances, from a wish to a running workspace.
//!
//! The [`api`] writes wishes into the [`registry`]; the [`reconcile`]r makes them so through an [`engine`], in the order
//! that [`plan`] says, and tells the [`hub`], to which the router and the portal listen.

pub mod api;
pub mod archive;
pub mod config;
pub mod disk;
pub mod engine;
pub mod folders;
pub mod hub;
mod numbers;
pub mod passage;
pub mod peers;
pub mod plan;
pub mod plans;
pub mod reconcile;
pub mod registry;
pub mod sleep;
pub mod strikes;
pub mod turns;

use std::sync::Arc;

use anyhow::Context;
use clock::{Clock, Entropy};
use contracts::{InstanceId, PlanName, deploy::SOCKETS_NEED};
use service::{Health, Shutdown, http::RequestIds};
use settings::Env;
use store::Store;
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use config::{Config, EngineKind};
use engine::{Engine, ErrorKind, InstanceSpec, Program};
use reconcile::{Parts, Reconciler};

/// deploy-control, ready to serve.
pub struct Service {
    /// Its API, health and metrics, without the layers around them.
    pub router: axum::Router,
    /// What works behind it.
    pub reconciler: Reconciler,
    engine: Arc<dyn Engine>,
    /// What else works.
    tasks: TaskTracker,
}

impl Service {
    /// Puts the parts together and begins to work; ends with `stop`.
    ///
    /// # Errors
    ///
    /// When the database or the data directory cannot be used.
    pub async fn start(config: &Config, engine: Arc<dyn Engine>, clock: Clock, stop: Shutdown) -> anyhow::Result<Self> {
        // First: what is counted or described before is not shown, and much is as it is from the start.
        let health = Health::new();
        numbers::describe();
        let root = rustix::process::geteuid().is_root();
        let own_users = config.engine.kind == EngineKind::Docker;
        anyhow::ensure!(
            root || !own_users,
            "with the docker engine deploy-control must run as root: each instance's folders belong to a user of its own"
        );
        std::fs::create_dir_all(&config.data_dir)
            .with_context(|| format!("BEAVER_DATA_DIR: cannot make {}", config.data_dir.display()))?;
        let folders = folders::Folders::open(&config.data_dir, own_users, config.instance.clone())
            .with_context(|| format!("BEAVER_DATA_DIR: cannot use {}", config.data_dir.display()))?
            .with_strikes(config.strikes.clone());
        let store = Store::open(&config.database, &registry::MIGRATOR).await?;
        let registry = registry::Registry::open(store, clock, config.engine.uid_base).await?;
        let registry = registry.with_strikes(config.strikes.clone());
        // An engine that is away says it later, before anything is made.
        if let Ok(shift) = engine.id_shift().await {
            folders.shift_ids(shift);
        }
        // A registry that was restored from before may not know everybody whose files are here.
        if let Some(uid) = folders.greatest_uid().await.context("BEAVER_DATA_DIR: cannot read instances")? {
            registry.pass_over_uid(uid).await?;
        }
        let rows = registry.all().await.context("instances cannot be read")?;
        if let Err(error) = folders.end_all_uploads(&rows).await {
            // They only take room; a disk that takes no writes must not keep everything else from going on.
            tracing::warn!(error = chain(&error), "what is left of uploads stays");
        }
        let entropy = Entropy::system();
        let peers = peers::Peers::new(&config.peers).with_strikes(config.strikes.clone());
        let (plans, keeper) = plans::Plans::open(config.plans.clone(), engine.runs_images());
        let hub = Arc::new(hub::Hub::new(entropy.token(), &rows));
        let env: Vec<_> = config.engine.log.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        let spec = probe_spec(config, &folders, &env);
        let passed = config.data_dir.join("deploy-control").join("passage");
        let (gate, passage) = passage::gate(engine.clone(), folders.clone(), spec, passed);
        let parts = Parts {
            registry: registry.clone(),
            hub: hub.clone(),
            engine: engine.clone(),
            folders: folders.clone(),
            peers: peers.clone(),
            entropy,
            config: config.reconcile.clone(),
            plans: plans.clone(),
            workspace_env: env,
            gate: gate.clone(),
            strikes: config.strikes.clone(),
        };
        let reconciler = Reconciler::start(parts, rows, stop.clone());
        let tasks = TaskTracker::new();
        let meter = disk::Meter {
            registry: registry.clone(),
            folders: folders.clone(),
            hub: hub.clone(),
            plans: plans.clone(),
            reconciler: reconciler.clone(),
            every: config.measure_disk_every,
        };
        tasks.spawn(meter.run(stop.clone()));
        let sleeps = sleep::Keeper {
            registry: registry.clone(),
            hub: hub.clone(),
            peers: peers::Peers::new(&config.peers),
            plans: plans.clone(),
            reconciler: reconciler.clone(),
            engine: engine.clone(),
        };
        tasks.spawn(sleeps.run(stop.clone()));
        tasks.spawn(keeper.keep(stop.clone()));
        tasks.spawn(passage.keep(reconciler.clone(), stop.clone()));
        tasks.close();
        let api = api::Api {
            registry: registry.clone(),
            hub,
            engine: engine.clone(),
            peers,
            folders,
            plans,
            reconciler: reconciler.clone(),
            stop,
            delete_after_ms: i64::try_from(config.delete_after.as_millis()).unwrap_or(i64::MAX),
            staging: turns::Turns::default(),
            archives: api::Archives::default(),
        };
        let router =
            api::router(api, config.tokens.clone()).merge(needs(health, &registry, &engine, gate, config).routes());
        Ok(Self { router, reconciler, engine, tasks })
    }

    /// After `stop`: waits until nothing is under way, and lets go of what must not outlive this service.
    pub async fn ended(&self) {
        self.reconciler.ended().await;
        self.tasks.wait().await;
        self.engine.close().await;
    }
}

/// Runs deploy-control until `stop`.
///
/// # Errors
///
/// [`settings::Error`] for an unusable setting; otherwise what kept it from starting or serving.
pub async fn run(env: Env, stop: Shutdown) -> anyhow::Result<()> {
    let config = Config::from_env(&env)?;
    let engine = engine::from_config(&config.engine);
    match engine.capabilities().await {
        Ok(can) => tracing::info!(engine = can.name, version = can.version, isolates = can.isolates, "engine"),
        Err(error) if error.kind == ErrorKind::Unavailable => {
            tracing::warn!(error = chain(&error), "the engine is not there yet");
        }
        Err(error) => return Err(error.into()),
    }
    if let Some(network) = &config.engine.network {
        tracing::warn!(
            network,
            "BEAVER_ISOLATION=shared: every instance reaches the services, its neighbours, this host and all that the host \
             reaches; no rule holds what it sends there. Without that setting an instance has no network"
        );
    }
    // Bound before anything works: two of us on one registry would undo each other's steps.
    let listener =
        TcpListener::bind(&config.listen).await.with_context(|| format!("DEPLOY_LISTEN={}", config.listen))?;
    let service = Service::start(&config, engine, Clock::system(), stop.clone()).await?;
    tracing::info!(listen = config.listen, "deploy-control is up");
    let router = layers(service.router.clone());
    let served = service::serve(listener, router, stop.clone()).await;
    stop.cancel();
    service.ended().await;
    Ok(served?)
}

/// The layers around everything that it serves. The API limits its bodies itself: an archive may be large.
pub fn layers(router: axum::Router) -> axum::Router {
    service::http::layers_with_limit(router, RequestIds::FromCaller, usize::MAX)
}

/// Where its readiness is, as seen from its own host.
///
/// # Errors
///
/// When the listen address is unusable.
pub fn health_url(env: &Env) -> anyhow::Result<String> {
    service::run::local_url(&env.string("DEPLOY_LISTEN")?, "/readyz")
}

/// What tries whether sockets pass: as a workspace, with a user id that is given to nobody.
fn probe_spec(config: &Config, folders: &folders::Folders, env: &[(String, String)]) -> InstanceSpec {
    let nobody = InstanceId::from_uuid(uuid::Uuid::nil());
    InstanceSpec {
        id: nobody,
        generation: 0,
        plan: PlanName::workspace(),
        program: Program::Workspace,
        not: None,
        uid: (config.engine.kind == EngineKind::Docker).then_some(config.engine.uid_base),
        folders: folders.paths(nobody),
        limits: config.plans.limits,
        env: env.to_vec(),
    }
}

fn needs(
    health: Health,
    registry: &registry::Registry,
    engine: &Arc<dyn Engine>,
    gate: passage::Gate,
    config: &Config,
) -> Health {
    let (store, engine) = (registry.store().clone(), engine.clone());
    let engine_name = match config.engine.kind {
        EngineKind::Docker => "engine_docker",
        EngineKind::Process => "engine_process",
    };
    health
        .need("database", move || {
            let store = store.clone();
            async move { store.ping().await.map_err(|_| format!("{} does not answer", store.kind())) }
        })
        .need(engine_name, move || {
            let engine = engine.clone();
            async move { engine.capabilities().await.map(drop).map_err(|error| error.to_string()) }
        })
        .need(SOCKETS_NEED, move || std::future::ready(gate.need()))
}

/// An error and its causes, on one line: for logs.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
