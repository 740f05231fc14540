//! What it costs deploy-control to put a host in order: it starts with a registry of a thousand instances, three in ten of
//! which are not as they must be. The processor's time of the whole process is counted, the false router, the false authz and
//! the engine in memory included; what containers cost is the engine's.
//!
//! `cargo bench -p deploy-control --bench pass`; the last line printed is one JSON object.

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use contracts::deploy::{InstanceList, Phase};
use deploy_control::engine::Engine;
use futures_util::StreamExt;
use support::{Person, Running, World, eventually, sqlite_world};

const ROWS: usize = 1_000;
/// Of each kind of drift.
const OF_EACH: usize = 100;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(measure());
}

async fn measure() {
    let mut world = sqlite_world().await;
    world.config.reconcile.start_timeout = Duration::from_secs(60);
    let people: Vec<_> = (0..ROWS).map(|n| Person::named(&format!("guest-{n}"))).collect();
    let service = world.start().await;
    let taken = people.iter().map(|person| service.register(person));
    futures_util::stream::iter(taken).buffer_unordered(8).collect::<Vec<_>>().await;
    all_up(&world, &service).await;
    // Nothing is to be done: what looking alone costs.
    service.kill_and_wait().await;
    let looking = pass(&world).await;
    for person in &people[..OF_EACH] {
        world.engine.crash(person.id);
    }
    for person in &people[OF_EACH..2 * OF_EACH] {
        world.engine.remove(person.id).await.unwrap();
    }
    for person in &people[2 * OF_EACH..3 * OF_EACH] {
        std::fs::remove_file(world.config_dir(person.id).join("config.json")).unwrap();
    }
    let mending = pass(&world).await;
    let figures = serde_json::json!({
        "bench": "pass",
        "rows": ROWS,
        "drifted": 3 * OF_EACH,
        "cpu_s": mending.0,
        "wall_s": mending.1,
        "cpu_s_without_drift": looking.0,
        "wall_s_without_drift": looking.1,
    });
    println!("{figures}");
}

/// Starts the service and waits until everything is in order; processor and wall time, in seconds.
async fn pass(world: &World) -> (f64, f64) {
    let looks = world.engine.count_all("observe");
    let (cpu, begun) = (processor(), Instant::now());
    let service = world.start().await;
    // Each is looked at once at the least.
    eventually(async || {
        let now = world.engine.count_all("observe");
        if now >= looks + ROWS { Ok(()) } else { Err(format!("{} looks", now - looks)) }
    })
    .await;
    all_up(world, &service).await;
    let measured = (processor() - cpu, begun.elapsed().as_secs_f64());
    service.kill_and_wait().await;
    measured
}

async fn all_up(world: &World, service: &Running) {
    eventually(async || {
        let running = world.engine.running();
        if running < ROWS {
            return Err(format!("{running} run"));
        }
        let (_, list) = service.get::<InstanceList>("/api/instances?limit=1000").await;
        let ready = list.instances.iter().filter(|one| one.phase == Phase::Ready).count();
        if ready == ROWS { Ok(()) } else { Err(format!("{ready} are ready")) }
    })
    .await;
}

/// The processor's time of this process so far, in seconds (proc(5), `stat`: in hundredths).
fn processor() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // The name, which may be anything, ends at the last bracket; time of its own and of the kernel for it are 11 and 12 later.
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    let ticks: f64 = rest.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<f64>().unwrap()).sum();
    ticks / 100.0
}
