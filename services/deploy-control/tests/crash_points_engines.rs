//! The service killed at every step of every change, on the process engine and on the real Docker engine: see [`walk`].
//!
//! Here it is the engine's calls and the steps as a whole; where files and rows are written is walked on the simulated one.

#[path = "support/host.rs"]
mod host;
#[path = "support/instance.rs"]
mod instance;
#[path = "support/program.rs"]
mod program;
mod support;
#[path = "support/walk.rs"]
mod walk;

use std::{
    any::Any,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use deploy_control::{
    config::Config,
    engine::{Engine, docker::Docker, process::Processes},
    strikes::testing::Place,
};
use futures_util::future::BoxFuture;
use host::Host;
use support::neighbours::{Neighbours, Runs, ask};
use tokio::sync::{Semaphore, SemaphorePermit};
use walk::{Change, Ground};

/// So many of a change's places are walked, unless all are asked for.
const SAMPLE: usize = 3;
/// So many changes are walked at once: each has a runtime of its own, and instances.
static TURNS: Semaphore = Semaphore::const_new(2);

/// Not a test: what an engine starts. See [`instance`].
#[test]
fn as_an_instance() {
    program::serve_if_started_as_one();
    instance::serve_if_started_by_an_engine();
}

async fn ground(
    mut config: Config,
    engine: fn(&Config) -> Arc<dyn Engine>,
    new_image: impl Fn(bool) -> BoxFuture<'static, ()> + Send + Sync + 'static,
    keeps: impl Any + Send + Sync,
) -> Ground {
    let units = Arc::new(Mutex::new(engine(&config)));
    let (present, data_dir) = (units.clone(), config.data_dir.clone());
    let run_of: Runs = Arc::new(move |id| {
        let present = present.lock().unwrap().clone();
        support::answering_runs(present, data_dir.clone())(id)
    });
    let neighbours = Neighbours::start(run_of, config.data_dir.clone()).await;
    config.peers.authz_url = neighbours.authz_url.parse().unwrap();
    config.peers.router_url = neighbours.router_url.parse().unwrap();
    config.reconcile.first_retry = Duration::from_millis(20);
    let (made_from, data_dir) = (config.clone(), config.data_dir.clone());
    Ground {
        units_end_with_service: config.engine.kind == deploy_control::config::EngineKind::Process,
        config: Mutex::new(config),
        neighbours,
        strikers: Default::default(),
        units,
        make_engine: Box::new(move || engine(&made_from)),
        crash: Box::new(move |id| {
            let socket = data_dir.join("run").join(id.to_string()).join("in/http.sock");
            Box::pin(async move {
                // It ends without an answer.
                let _ = ask(&socket, "/crash").await;
            })
        }),
        new_image: Box::new(new_image),
        keeps: Box::new(keeps),
    }
}

async fn turn() -> SemaphorePermit<'static> {
    TURNS.acquire().await.unwrap()
}

fn is_walked(place: &Place) -> bool {
    place.call.starts_with("engine.") || place.call == "step"
}

async fn on_processes(change: Change) {
    let _turn = turn().await;
    let ground = async || {
        let folder = tempfile::tempdir().unwrap();
        let config = host::config(folder.path(), "process", "test-process");
        let none = |_| -> BoxFuture<'static, ()> { unreachable!("processes have no images") };
        ground(config, |config| Arc::new(Processes::new(&config.engine)), none, folder).await
    };
    println!("{change:?}: {} blows", walk::every_place(change, SAMPLE, 2, ground, is_walked).await);
}

async fn on_docker(change: Change) {
    let _turn = turn().await;
    if Host::without_image().await.is_none() {
        return;
    }
    let ground = async || {
        let host = Arc::new(Host::new().await.expect("an engine"));
        let plans = &host.config.plans.file;
        std::fs::create_dir_all(plans.parent().unwrap()).unwrap();
        let image = &host.config.engine.image;
        std::fs::write(
            plans,
            format!(
                "[notes]\nimage = \"{image}\"\nport = 8080\nenv = {{ NOTES_PORT = \"8080\" }}\n\
                 [workspace-small]\nmemory_mb = 100\n"
            ),
        )
        .unwrap();
        let (config, made, images) = (host.config.clone(), AtomicUsize::new(0), host.clone());
        let new_image = move |works| -> BoxFuture<'static, ()> {
            let (host, n) = (images.clone(), made.fetch_add(1, Ordering::SeqCst));
            let program = if works { "/instance" } else { "/not-there" };
            Box::pin(async move { host.build_image_with(program, &format!("ENV RELEASE={n}")).await })
        };
        ground(config, |config| Arc::new(Docker::new(&config.engine)), new_image, host).await
    };
    println!("{change:?}: {} blows", walk::every_place(change, SAMPLE, 2, ground, is_walked).await);
}

/// A test a change and engine.
macro_rules! walked {
    ($($change:ident: $processes:ident, $docker:ident;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $processes() {
                on_processes(Change::$change).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $docker() {
                on_docker(Change::$change).await;
            }
        )*
    };
}

walked! {
    SignUp: process_sign_up, docker_sign_up;
    Configure: process_configure, docker_configure;
    Stop: process_stop, docker_stop;
    Start: process_start, docker_start;
    Restart: process_restart, docker_restart;
    Retry: process_retry, docker_retry;
    Renewal: process_renewal, docker_renewal;
    Discard: process_discard, docker_discard;
    Delete: process_delete, docker_delete;
    Undelete: process_undelete, docker_undelete;
    CameDown: process_came_down, docker_came_down;
    LostFolders: process_lost_folders, docker_lost_folders;
    LostSocket: process_lost_socket, docker_lost_socket;
    WrongRights: process_wrong_rights, docker_wrong_rights;
    NewerConfig: process_newer_config, docker_newer_config;
    LostOwner: process_lost_owner, docker_lost_owner;
    Wakes: process_wakes, docker_wakes;
    ConfigureInVain: process_configure_in_vain, docker_configure_in_vain;
    Restore: process_restore, docker_restore;
    RestoreInVain: process_restore_in_vain, docker_restore_in_vain;
    Expires: process_expires, docker_expires;
}

/// With the process engine what sleeps ends with the service, nothing can wait, and there are no images.
macro_rules! walked_on_docker {
    ($($name:ident: $change:ident;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                on_docker(Change::$change).await;
            }
        )*
    };
}

walked_on_docker! {
    docker_suspend: Suspend;
    docker_limits: Limits;
    docker_plan: Plan;
    docker_plan_back: PlanBack;
    docker_takes_over: TakesOver;
    docker_upgrade: Upgrade;
    docker_upgrade_in_vain: UpgradeInVain;
    docker_pauses: Pauses;
    docker_falls_asleep: FallsAsleep;
    docker_resumes: Resumes;
}
