//! The service killed at every place of every change, on a simulated engine: see [`walk`].

mod support;
#[path = "support/walk.rs"]
mod walk;

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use deploy_control::engine::Engine;
use support::{World, sqlite_world};
use walk::{Change, Ground};

/// So many of a change's places are walked, unless all are asked for.
const SAMPLE: usize = 12;
/// How many are walked at once: most of the time goes into waiting.
const LANES: usize = 4;

async fn ground() -> Ground {
    on(sqlite_world().await)
}

fn on(world: World) -> Ground {
    let (engine, crashed, images) = (world.engine.clone(), world.engine.clone(), world.engine.clone());
    let made = AtomicUsize::new(0);
    world.write_plans("[notes]\nimage = \"notes:1\"\nport = 8080\n[workspace-small]\nmemory_mb = 100\n");
    let units: Arc<dyn Engine> = Arc::new(world.engine.clone());
    Ground {
        config: Mutex::new(world.config.clone()),
        neighbours: world.neighbours.clone(),
        strikers: Default::default(),
        units: Arc::new(Mutex::new(units)),
        make_engine: Box::new(move || Arc::new(engine.clone())),
        crash: Box::new(move |id| {
            crashed.crash(id);
            Box::pin(std::future::ready(()))
        }),
        new_image: Box::new(move |works| {
            let name = format!("image-{}", made.fetch_add(1, Ordering::SeqCst));
            if !works {
                images.break_image(&name);
            }
            images.set_image(&name);
            Box::pin(std::future::ready(()))
        }),
        units_end_with_service: false,
        keeps: Box::new(world),
    }
}

/// A test a change, so that they are walked side by side.
macro_rules! walked {
    ($($name:ident: $change:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let blows = walk::every_place(Change::$change, SAMPLE, LANES, ground, |_| true).await;
                println!("{}: {blows} blows", stringify!($name));
            }
        )*
    };
}

walked! {
    sign_up: SignUp,
    configure: Configure,
    configure_in_vain: ConfigureInVain,
    stop: Stop,
    suspend: Suspend,
    start: Start,
    restart: Restart,
    retry: Retry,
    limits: Limits,
    plan: Plan,
    plan_back: PlanBack,
    renewal: Renewal,
    discard: Discard,
    delete: Delete,
    undelete: Undelete,
    came_down: CameDown,
    lost_folders: LostFolders,
    lost_socket: LostSocket,
    wrong_rights: WrongRights,
    newer_config: NewerConfig,
    lost_owner: LostOwner,
    pauses: Pauses,
    falls_asleep: FallsAsleep,
    resumes: Resumes,
    wakes: Wakes,
    takes_over: TakesOver,
    upgrade: Upgrade,
    upgrade_in_vain: UpgradeInVain,
    restore: Restore,
    restore_in_vain: RestoreInVain,
    expires: Expires,
}
